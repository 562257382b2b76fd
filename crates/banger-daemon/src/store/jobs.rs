//! Rows of jobs and of their event logs.

use banger_proto::JobId;
use banger_proto::daemon::{JobEvent, JobEventKind};
use rusqlite::{Connection, OptionalExtension, params};

use super::error::StoreError;
use super::{parse, parse_json, to_json};
use crate::model::{JobKind, JobRecord, OpenJob, Subject};

/// Adds a job.
pub fn insert(
    conn: &Connection,
    id: &JobId,
    kind: JobKind,
    subject: &Subject,
    now: i64,
) -> Result<(), StoreError> {
    conn.execute(
        "INSERT INTO jobs (id, kind, vm, subject, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id.as_str(), kind.as_str(), subject.vm_id(), subject.name(), now],
    )
    .map_err(StoreError::sql("record a job"))?;
    Ok(())
}

/// Adds events to a job's log; one that ends the job marks it.
pub fn append(conn: &Connection, id: &JobId, events: &[JobEvent]) -> Result<(), StoreError> {
    let sql = StoreError::sql("write the log of a job");
    let mut statement = conn
        .prepare_cached("INSERT INTO job_events (job, seq, at_ms, event) VALUES (?1, ?2, ?3, ?4)")
        .map_err(&sql)?;
    for event in events {
        let seq = event.seq.cast_signed();
        let text = to_json("an event", &event.event)?;
        statement.execute(params![id.as_str(), seq, event.at_ms, text]).map_err(&sql)?;
        if matches!(event.event, JobEventKind::Finished { .. }) {
            conn.execute(
                "UPDATE jobs SET finished_at = ?2 WHERE id = ?1",
                params![id.as_str(), event.at_ms / 1000],
            )
            .map_err(&sql)?;
        }
    }
    Ok(())
}

/// Whether the store has this job.
pub fn exists(conn: &Connection, id: &JobId) -> Result<bool, StoreError> {
    let found = conn
        .query_row("SELECT 1 FROM jobs WHERE id = ?1", [id.as_str()], |_| Ok(()))
        .optional()
        .map_err(StoreError::sql("look for a job"))?;
    Ok(found.is_some())
}

/// Every job, by its beginning.
pub fn all(conn: &Connection) -> Result<Vec<JobRecord>, StoreError> {
    let sql = StoreError::sql("read the jobs of the store");
    // Only the last event can have a result, and only a failure has an error in it.
    let mut statement = conn
        .prepare_cached(
            "SELECT id, kind, subject, created_at, finished_at,
             (SELECT json_extract(event, '$.result.error') FROM job_events WHERE job = jobs.id
              ORDER BY seq DESC LIMIT 1)
             FROM jobs ORDER BY rowid",
        )
        .map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        let error: Option<String> = row.get(5).map_err(&sql)?;
        jobs.push(JobRecord {
            id: parse("a job id", row.get(0).map_err(&sql)?)?,
            kind: row.get(1).map_err(&sql)?,
            subject: row.get(2).map_err(&sql)?,
            created_at: row.get(3).map_err(&sql)?,
            finished_at: row.get(4).map_err(&sql)?,
            error: error.map(|error| parse_json("an error", error)).transpose()?,
        });
    }
    Ok(jobs)
}

/// A job's events after a number, in order.
pub fn events(conn: &Connection, id: &JobId, after: u64) -> Result<Vec<JobEvent>, StoreError> {
    let sql = StoreError::sql("read the log of a job");
    let mut statement = conn
        .prepare_cached("SELECT seq, at_ms, event FROM job_events WHERE job = ?1 AND seq > ?2 ORDER BY seq")
        .map_err(&sql)?;
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![id.as_str(), after]).map_err(&sql)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        events.push(JobEvent {
            seq: row.get::<_, i64>(0).map_err(&sql)?.cast_unsigned(),
            at_ms: row.get(1).map_err(&sql)?,
            event: parse_json("an event", row.get(2).map_err(&sql)?)?,
        });
    }
    Ok(events)
}

/// Jobs without a result: an earlier daemon ended in the middle of them.
pub fn unfinished(conn: &Connection) -> Result<Vec<OpenJob>, StoreError> {
    let sql = StoreError::sql("read the jobs of the store");
    let mut statement = conn
        .prepare(
            "SELECT id, coalesce((SELECT max(seq) FROM job_events WHERE job = jobs.id), 0)
             FROM jobs WHERE finished_at IS NULL ORDER BY created_at, rowid",
        )
        .map_err(&sql)?;
    let mut rows = statement.query([]).map_err(&sql)?;
    let mut open = Vec::new();
    while let Some(row) = rows.next().map_err(&sql)? {
        open.push(OpenJob {
            id: parse("a job id", row.get(0).map_err(&sql)?)?,
            last_seq: row.get::<_, i64>(1).map_err(&sql)?.cast_unsigned(),
        });
    }
    Ok(open)
}

/// Forgets all but the newest `keep` finished jobs.
pub fn prune(conn: &Connection, keep: u32) -> Result<(), StoreError> {
    conn.prepare_cached(
        "DELETE FROM jobs WHERE finished_at IS NOT NULL AND rowid NOT IN
         (SELECT rowid FROM jobs WHERE finished_at IS NOT NULL ORDER BY rowid DESC LIMIT ?1)",
    )
    .and_then(|mut statement| statement.execute([keep]))
    .map_err(StoreError::sql("forget old jobs"))?;
    Ok(())
}
