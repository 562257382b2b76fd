//! The numbered migrations. A released one is never changed: a new one is added below it, and carries whatever it
//! has to know of the old shape in its own text.

use rusqlite_migration::{M, Migrations};

/// Version 1: VMs with their processes, the names of images and kernels, jobs, and the journal.
///
/// - `vms.name` is unique, and that is the only place where a name is reserved.
/// - `processes` goes with its VM; numbers of 64 bits without a sign are stored with the same bits.
/// - `operations` holds what was begun and has not ended; `steps` which effects may have happened.
const V1: &str = "
CREATE TABLE images (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, size INTEGER NOT NULL, disk_used INTEGER NOT NULL,
    source TEXT NOT NULL, created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE kernels (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, release TEXT NOT NULL, package_digest TEXT,
    disk_used INTEGER NOT NULL, source TEXT NOT NULL, created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE vms (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, cause TEXT,
    image TEXT NOT NULL, image_digest TEXT NOT NULL, image_size INTEGER NOT NULL,
    kernel TEXT NOT NULL, kernel_digest TEXT NOT NULL,
    vcpus INTEGER NOT NULL, memory INTEGER NOT NULL, disk INTEGER NOT NULL, disk_strategy TEXT NOT NULL,
    nat INTEGER NOT NULL, ephemeral INTEGER NOT NULL, env TEXT NOT NULL, machine_id TEXT NOT NULL,
    created_at INTEGER NOT NULL, started_at INTEGER, degraded TEXT NOT NULL
) STRICT;
CREATE TABLE processes (
    vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, role TEXT NOT NULL,
    pid INTEGER NOT NULL, boot_id TEXT NOT NULL, start_time INTEGER NOT NULL,
    exe_dev INTEGER NOT NULL, exe_ino INTEGER NOT NULL,
    PRIMARY KEY (vm, role)
) STRICT;
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, vm TEXT, created_at INTEGER NOT NULL, finished_at INTEGER
) STRICT;
CREATE INDEX jobs_by_end ON jobs(finished_at);
CREATE TABLE job_events (
    job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, event TEXT NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
    id TEXT PRIMARY KEY, vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, kind TEXT NOT NULL,
    begun_at INTEGER NOT NULL
) STRICT;
CREATE INDEX operations_by_vm ON operations(vm);
CREATE TABLE steps (
    operation TEXT NOT NULL REFERENCES operations(id) ON DELETE CASCADE, seq INTEGER NOT NULL,
    name TEXT NOT NULL, done INTEGER NOT NULL,
    PRIMARY KEY (operation, seq)
) STRICT, WITHOUT ROWID;
";

/// Version 2: how long the guest has that is asked to stop, for a daemon that goes on with it.
const V2: &str = "ALTER TABLE operations ADD COLUMN stop_within_s INTEGER;";

/// Version 3: the name of what a job is about, which a VM that is gone no longer tells.
const V3: &str = "ALTER TABLE jobs ADD COLUMN subject TEXT;";

/// Version 4: the ports of the host that lead into a VM; they go with it.
const V4: &str = "
CREATE TABLE forwards (
    vm TEXT NOT NULL REFERENCES vms(id) ON DELETE CASCADE, address TEXT NOT NULL, host INTEGER NOT NULL,
    guest INTEGER NOT NULL,
    PRIMARY KEY (vm, address, host)
) STRICT, WITHOUT ROWID;
";

/// Version 5: what a VM gets at its next start only.
const V5: &str = "ALTER TABLE vms ADD COLUMN pending TEXT NOT NULL DEFAULT '[]';";

/// The version that this program writes (`PRAGMA user_version`).
pub const LATEST: usize = 5;

/// Every migration, in order.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::new(vec![M::up(V1), M::up(V2), M::up(V3), M::up(V4), M::up(V5)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    #[test]
    fn the_migrations_are_valid_and_counted() {
        migrations().validate().unwrap();
        let mut conn = Connection::open_in_memory().unwrap();
        migrations().to_latest(&mut conn).unwrap();
        let version: usize = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, LATEST);
    }

    #[test]
    fn every_released_schema_becomes_the_latest_with_its_rows() {
        // What a store of the first version holds.
        const ROWS: &str = "
            INSERT INTO images VALUES ('i','sha256:a',1,1,'s',1);
            INSERT INTO vms (id, name, state, cause, image, image_digest, image_size, kernel, kernel_digest, vcpus,
                             memory, disk, disk_strategy, nat, ephemeral, env, machine_id, created_at, started_at,
                             degraded)
            VALUES ('v','n','running',NULL,'i','sha256:a',1,'k','sha256:b',1,1,1,'qcow2',1,0,'{}','m',1,NULL,'[]');
            INSERT INTO processes VALUES ('v','vmm',1,'b',1,1,1);
            INSERT INTO jobs (id, kind, vm, created_at) VALUES ('j','vm-create','v',1);
            INSERT INTO job_events VALUES ('j',1,1,'{}');
            INSERT INTO operations (id, vm, kind, begun_at) VALUES ('o','v','start',1);
            INSERT INTO steps VALUES ('o',0,'x',0);";
        // What it has more than the version before.
        let more = [
            "",
            "UPDATE operations SET stop_within_s = 5;",
            "UPDATE jobs SET subject = 'n';",
            "INSERT INTO forwards VALUES ('v','127.0.0.1',8080,80);",
            "UPDATE vms SET pending = '[\"disk\"]';",
        ];
        // What comes of it, by the version that has it first.
        let kept = [
            (1, "SELECT count(*) FROM images", "1"),
            (1, "SELECT count(*) FROM vms", "1"),
            (1, "SELECT count(*) FROM processes", "1"),
            (1, "SELECT count(*) FROM jobs", "1"),
            (1, "SELECT count(*) FROM job_events", "1"),
            (1, "SELECT count(*) FROM operations", "1"),
            (1, "SELECT count(*) FROM steps", "1"),
            (2, "SELECT stop_within_s FROM operations", "5"),
            (3, "SELECT subject FROM jobs", "n"),
            (4, "SELECT address || ':' || host || ':' || guest FROM forwards", "127.0.0.1:8080:80"),
            (5, "SELECT pending FROM vms", "[\"disk\"]"),
        ];
        assert_eq!(more.len(), LATEST);
        for version in 1..=LATEST {
            let mut conn = Connection::open_in_memory().unwrap();
            migrations().to_version(&mut conn, version).unwrap();
            let rows: String = std::iter::once(ROWS).chain(more.iter().take(version).copied()).collect();
            conn.execute_batch(&rows).unwrap();
            migrations().to_latest(&mut conn).unwrap();
            for (_, sql, value) in kept.iter().filter(|(since, ..)| *since <= version) {
                let text = format!("SELECT CAST(({sql}) AS TEXT)");
                let found: String = conn.query_row(&text, [], |row| row.get(0)).unwrap();
                assert_eq!(&found, value, "{sql}, from version {version}");
            }
        }
    }
}
