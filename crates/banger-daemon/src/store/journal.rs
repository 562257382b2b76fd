//! The journal: which operations were begun and which of their effects may have happened.

use std::time::Duration;

use banger_proto::{OperationId, VmId};
use rusqlite::{Connection, params};

use super::error::StoreError;
use super::parse;
use crate::model::OpenOperation;

/// Writes down that an operation begins, with the steps that are begun with it. An older one of the same VM, whose undo
/// did not work out, is replaced: every operation begins by making sure of what it needs.
pub fn begin(
    conn: &Connection,
    id: &OperationId,
    vm: &VmId,
    kind: &str,
    now: i64,
    stop_within: Option<Duration>,
    steps: &[&str],
) -> Result<(), StoreError> {
    let sql = StoreError::sql("write the journal");
    conn.execute("DELETE FROM operations WHERE vm = ?1", [vm.as_str()]).map_err(&sql)?;
    conn.execute(
        "INSERT INTO operations (id, vm, kind, begun_at, stop_within_s) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id.as_str(), vm.as_str(), kind, now, stop_within.map(|within| within.as_secs())],
    )
    .map_err(&sql)?;
    add(conn, id, steps)
}

/// Everything that was begun is done; these are begun.
pub fn advance(conn: &Connection, id: &OperationId, steps: &[&str]) -> Result<(), StoreError> {
    conn.execute("UPDATE steps SET done = 1 WHERE operation = ?1", [id.as_str()])
        .map_err(StoreError::sql("write the journal"))?;
    add(conn, id, steps)
}

fn add(conn: &Connection, id: &OperationId, steps: &[&str]) -> Result<(), StoreError> {
    let sql = StoreError::sql("write the journal");
    for step in steps {
        conn.prepare_cached(
            "INSERT INTO steps (operation, seq, name, done)
             SELECT ?1, 1 + coalesce(max(seq), 0), ?2, 0 FROM steps WHERE operation = ?1",
        )
        .and_then(|mut statement| statement.execute(params![id.as_str(), step]))
        .map_err(&sql)?;
    }
    Ok(())
}

/// The operation has ended, one way or the other.
pub fn close(conn: &Connection, id: &OperationId) -> Result<(), StoreError> {
    conn.execute("DELETE FROM operations WHERE id = ?1", [id.as_str()])
        .map_err(StoreError::sql("write the journal"))?;
    Ok(())
}

/// What was under way, in the order in which it was begun.
pub fn open_operations(conn: &Connection) -> Result<Vec<OpenOperation>, StoreError> {
    let sql = StoreError::sql("read the journal");
    let mut statement = conn
        .prepare("SELECT id, vm, kind, stop_within_s FROM operations ORDER BY begun_at, rowid")
        .map_err(&sql)?;
    let mut steps = conn.prepare("SELECT name FROM steps WHERE operation = ?1 ORDER BY seq").map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut open = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        let id: OperationId = parse("an operation id", row.get(0).map_err(&sql)?)?;
        let begun =
            steps.query_map([id.as_str()], |row| row.get(0)).and_then(Iterator::collect).map_err(&sql)?;
        open.push(OpenOperation {
            vm: parse("a VM id", row.get(1).map_err(&sql)?)?,
            kind: row.get(2).map_err(&sql)?,
            stop_within: row.get::<_, Option<u64>>(3).map_err(&sql)?.map(Duration::from_secs),
            id,
            begun,
        });
    }
    Ok(open)
}
