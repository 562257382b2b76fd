//! Rows of VMs and of their processes.

use banger_proto::{VmId, VmState};
use banger_sys::process::ProcessRecord;
use rusqlite::{Connection, Row, params};

use super::error::StoreError;
use super::{bytes, parse, parse_json, size, to_json};
use crate::model::VmRecord;
use crate::ports::ProcessRole;

const COLUMNS: &str = "id, name, state, cause, image, image_digest, image_size, kernel, kernel_digest, vcpus, \
                       memory, disk, disk_strategy, nat, ephemeral, env, machine_id, created_at, started_at, degraded, \
                       pending";

/// Adds a VM; its name is reserved by that.
pub fn insert(conn: &Connection, vm: &VmRecord) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO vms ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21)"
    );
    let added = conn.execute(
        &sql,
        params![
            vm.id.as_str(),
            vm.name.as_str(),
            vm.state.as_str(),
            vm.cause,
            vm.image.as_str(),
            vm.image_digest.as_str(),
            bytes("an image size", vm.image_size)?,
            vm.kernel.as_str(),
            vm.kernel_digest.as_str(),
            vm.vcpus,
            bytes("a memory size", vm.memory)?,
            bytes("a disk size", vm.disk)?,
            vm.disk_strategy,
            vm.nat,
            vm.ephemeral,
            to_json("an environment", &vm.env)?,
            vm.machine_id,
            vm.created_at,
            vm.started_at,
            to_json("units", &vm.degraded)?,
            to_json("what waits for a start", &vm.pending)?,
        ],
    );
    match added {
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            Err(StoreError::NameTaken(vm.name.to_string()))
        }
        Err(error) => Err(StoreError::sql("record a VM")(error)),
    }
}

/// Writes what changes in a VM's life.
pub fn update(conn: &Connection, vm: &VmRecord) -> Result<(), StoreError> {
    conn.execute(
        "UPDATE vms SET state = ?2, cause = ?3, disk = ?4, started_at = ?5, degraded = ?6, vcpus = ?7, memory = ?8, \
         nat = ?9, pending = ?10 WHERE id = ?1",
        params![
            vm.id.as_str(),
            vm.state.as_str(),
            vm.cause,
            bytes("a disk size", vm.disk)?,
            vm.started_at,
            to_json("units", &vm.degraded)?,
            vm.vcpus,
            bytes("a memory size", vm.memory)?,
            vm.nat,
            to_json("what waits for a start", &vm.pending)?,
        ],
    )
    .map_err(StoreError::sql("record the state of a VM"))?;
    Ok(())
}

/// Removes a VM with its processes and what the journal has of it. Idempotent.
pub fn delete(conn: &Connection, vm: &VmId) -> Result<(), StoreError> {
    conn.execute("DELETE FROM vms WHERE id = ?1", [vm.as_str()]).map_err(StoreError::sql("forget a VM"))?;
    Ok(())
}

/// Every VM, oldest first.
pub fn all(conn: &Connection) -> Result<Vec<VmRecord>, StoreError> {
    let sql = StoreError::sql("read the VMs of the store");
    let mut statement =
        conn.prepare(&format!("SELECT {COLUMNS} FROM vms ORDER BY created_at, rowid")).map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut vms = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        vms.push(record(row)?);
    }
    Ok(vms)
}

fn record(row: &Row<'_>) -> Result<VmRecord, StoreError> {
    fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
        row.get(index).map_err(StoreError::sql("read a VM of the store"))
    }
    Ok(VmRecord {
        id: parse("a VM id", get(row, 0)?)?,
        name: parse("a VM name", get(row, 1)?)?,
        state: parse::<VmState>("a state", get(row, 2)?)?,
        cause: get(row, 3)?,
        image: parse("an image name", get(row, 4)?)?,
        image_digest: parse("a digest", get(row, 5)?)?,
        image_size: size("an image size", get(row, 6)?)?,
        kernel: parse("a kernel name", get(row, 7)?)?,
        kernel_digest: parse("a digest", get(row, 8)?)?,
        vcpus: get(row, 9)?,
        memory: size("a memory size", get(row, 10)?)?,
        disk: size("a disk size", get(row, 11)?)?,
        disk_strategy: get(row, 12)?,
        nat: get(row, 13)?,
        ephemeral: get(row, 14)?,
        env: parse_json("an environment", get(row, 15)?)?,
        machine_id: get(row, 16)?,
        created_at: get(row, 17)?,
        started_at: get(row, 18)?,
        degraded: parse_json("units", get(row, 19)?)?,
        pending: parse_json("what waits for a start", get(row, 20)?)?,
    })
}

/// Writes down a process of a VM; one of the same role is replaced.
pub fn record_process(
    conn: &Connection,
    vm: &VmId,
    role: ProcessRole,
    process: &ProcessRecord,
) -> Result<(), StoreError> {
    conn.execute(
        "INSERT OR REPLACE INTO processes (vm, role, pid, boot_id, start_time, exe_dev, exe_ino)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            vm.as_str(),
            role.as_str(),
            process.pid,
            process.boot_id,
            process.start_time.cast_signed(),
            process.exe_dev.cast_signed(),
            process.exe_ino.cast_signed(),
        ],
    )
    .map_err(StoreError::sql("record a process"))?;
    Ok(())
}

/// The processes of a VM, in the order in which they are started.
pub fn processes(conn: &Connection, vm: &VmId) -> Result<Vec<(ProcessRole, ProcessRecord)>, StoreError> {
    let sql = StoreError::sql("read the processes of a VM");
    let mut statement = conn
        .prepare_cached(
            "SELECT role, pid, boot_id, start_time, exe_dev, exe_ino FROM processes WHERE vm = ?1",
        )
        .map_err(&sql)?;
    let mut rows = statement.query([vm.as_str()]).map_err(&sql)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        let word: String = row.get(0).map_err(&sql)?;
        let role = ProcessRole::ALL
            .into_iter()
            .find(|role| role.as_str() == word)
            .ok_or(StoreError::Value { what: "the role of a process", value: word })?;
        let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned).map_err(&sql);
        let process = ProcessRecord {
            pid: row.get(1).map_err(&sql)?,
            boot_id: row.get(2).map_err(&sql)?,
            start_time: number(3)?,
            exe_dev: number(4)?,
            exe_ino: number(5)?,
        };
        found.push((role, process));
    }
    found.sort_by_key(|(role, _)| ProcessRole::ALL.iter().position(|other| other == role));
    Ok(found)
}

/// Forgets the processes of a VM that are known to be gone.
pub fn forget_processes(conn: &Connection, vm: &VmId) -> Result<(), StoreError> {
    conn.execute("DELETE FROM processes WHERE vm = ?1", [vm.as_str()])
        .map_err(StoreError::sql("forget the processes of a VM"))?;
    Ok(())
}
