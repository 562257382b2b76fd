//! Rows of the ports that lead into VMs. They go with their VM.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use banger_proto::{Forward, VmId};
use rusqlite::{Connection, params};

use super::error::StoreError;
use super::parse;

/// Adds one to a VM.
pub fn insert(conn: &Connection, vm: &VmId, forward: &Forward) -> Result<(), StoreError> {
    conn.execute(
        "INSERT INTO forwards (vm, address, host, guest) VALUES (?1, ?2, ?3, ?4)",
        params![vm.as_str(), forward.address.to_string(), forward.host, forward.guest.get()],
    )
    .map_err(StoreError::sql("record a forward"))?;
    Ok(())
}

/// Removes the one that listens there. Idempotent.
pub fn delete(conn: &Connection, vm: &VmId, listener: SocketAddr) -> Result<(), StoreError> {
    conn.execute(
        "DELETE FROM forwards WHERE vm = ?1 AND address = ?2 AND host = ?3",
        params![vm.as_str(), listener.ip().to_string(), listener.port()],
    )
    .map_err(StoreError::sql("forget a forward"))?;
    Ok(())
}

/// Every one, by VM.
pub fn all(conn: &Connection) -> Result<BTreeMap<VmId, Vec<Forward>>, StoreError> {
    let sql = StoreError::sql("read the forwards of the store");
    let mut statement = conn
        .prepare("SELECT vm, address, host, guest FROM forwards ORDER BY vm, host, address")
        .map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut found: BTreeMap<VmId, Vec<Forward>> = BTreeMap::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        let vm = parse("a VM id", row.get(0).map_err(&sql)?)?;
        let address = parse("an address", row.get(1).map_err(&sql)?)?;
        let guest: u16 = row.get(3).map_err(&sql)?;
        let guest = guest
            .try_into()
            .map_err(|_| StoreError::Value { what: "a port of a guest", value: guest.to_string() })?;
        let forward = Forward { address, host: row.get(2).map_err(&sql)?, guest };
        found.entry(vm).or_default().push(forward);
    }
    Ok(found)
}
