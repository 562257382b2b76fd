//! `bangerd --doctor`: what the store and the directories hold, looked at without a daemon, and without a change; and what
//! a daemon would make of this host.
//!
//! The command line never opens the store; this does, and never writes where banger keeps anything. A store that a daemon
//! has open is read beside it. One that nobody has open is copied first: SQLite makes files beside a store that it reads,
//! and reads one that a crash left only by mending it. The lock of the state directory says which it is; held here, it
//! keeps a daemon from beginning, and so it is for the copy alone.

mod host;

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use banger_config::Config;
use banger_image::store::StoreError as LibraryError;
use banger_proto::doctor::Finding;
use banger_proto::{VmId, VmState};
use banger_sys::paths::Paths;
use banger_sys::process::{Match, Process};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::ports::ProcessRole;
use crate::store::{Store, StoreError, content, journal, vms};

/// A store that is larger is looked at by a daemon only.
const MAX_COPY: u64 = 1 << 30;

/// Everything there is to find. Never fails: what cannot be looked at is a finding.
pub fn look(paths: &Paths) -> Vec<Finding> {
    let mut found = vec![host::disks(paths), host::logout()];
    found.extend(store(paths));
    found
}

fn store(paths: &Paths) -> Vec<Finding> {
    let database = paths.database();
    if !database.exists() {
        let text = format!("{} is made with the first VM, image or kernel", database.display());
        return vec![Finding::fine("store", text)];
    }
    if let Some(lock) = idle(paths) {
        let copied = copy(&database);
        drop(lock);
        let found = match copied {
            Ok(copy) => findings(paths, Store::open_read_only(&copy.path().join("banger.db")), false),
            Err(error) => {
                let text = format!("{} cannot be read: {error}", database.display());
                vec![Finding::failed("store", text, owners_mend(paths))]
            }
        };
        // What a daemon did that began meanwhile would be found to be out of order.
        if idle(paths).is_some() {
            return found;
        }
    }
    // A daemon has it open, and its files beside it: reading makes none.
    findings(paths, Store::open_read_only(&database), true)
}

/// Where no daemon has the store open: what keeps one from that, until it is dropped.
fn idle(paths: &Paths) -> Option<io::Result<File>> {
    let lock = File::open(paths.state_lock());
    let taken = lock.as_ref().map(|lock| flock(lock, FlockOperation::NonBlockingLockShared));
    (!matches!(taken, Ok(Err(Errno::WOULDBLOCK)))).then_some(lock)
}

/// The store with what was not written into it yet (its `-wal`), in a directory that goes when it is dropped.
fn copy(database: &Path) -> io::Result<tempfile::TempDir> {
    if database.metadata()?.len() > MAX_COPY {
        return Err(io::Error::other("it is too large to be copied; ask while the daemon runs"));
    }
    // Variables of VMs are in it, and nobody else's business.
    let private = Permissions::from_mode(0o700);
    let dir = tempfile::Builder::new().prefix("bangerd-doctor-").permissions(private).tempdir()?;
    for end in ["", "-wal"] {
        let mut name = database.as_os_str().to_owned();
        name.push(end);
        match std::fs::copy(&name, dir.path().join(format!("banger.db{end}"))) {
            Err(error) if end.is_empty() || error.kind() != io::ErrorKind::NotFound => {
                return Err(error);
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(dir)
}

fn findings(paths: &Paths, opened: Result<Connection, StoreError>, in_use: bool) -> Vec<Finding> {
    let conn = match opened {
        Ok(conn) => conn,
        Err(error) => return vec![unusable(paths, &error)],
    };
    let read = || -> Result<Vec<Finding>, StoreError> {
        let mut found = vec![Finding::fine("store", format!("{} is in order", paths.database().display()))];
        found.extend(defaults(paths, &conn)?);
        found.push(contents(paths, &conn)?);
        // What a daemon is doing at this moment is nothing to be mended.
        if !in_use {
            found.extend([machines(&conn)?, unfinished(&conn)?, leftovers(paths, &conn)?]);
        }
        Ok(found)
    };
    read().unwrap_or_else(|error| vec![unusable(paths, &error)])
}

/// The file is named as the user knows it: what was opened may be its copy.
fn unusable(paths: &Paths, error: &StoreError) -> Finding {
    let database = paths.database();
    let shown = database.display();
    match error {
        StoreError::Newer { found, known, .. } => Finding::failed(
            "store",
            format!(
                "{shown} has version {found}, and this banger knows versions up to {known}: a newer one wrote it"
            ),
            "install the banger that wrote it; nothing in it was changed",
        ),
        StoreError::Older { found, .. } => Finding::warning(
            "store",
            format!("{shown} has the older version {found}"),
            "the next daemon brings it up to date: banger ps",
        ),
        StoreError::Damaged { why, .. } => Finding::failed(
            "store",
            format!("{shown} is damaged: {why}"),
            format!(
                "begin with an empty one, images and kernels can be made again: mv {shown} {shown}.damaged"
            ),
        ),
        other => Finding::failed(
            "store",
            format!("{shown} cannot be read: {}", banger_proto::error::chain(other).join(": ")),
            owners_mend(paths),
        ),
    }
}

fn owners_mend(paths: &Paths) -> String {
    format!("give it back to yourself: sudo chown -R \"$(id -u):$(id -g)\" {}", paths.state.display())
}

/// The image and the kernel of a VM for which none are named.
fn defaults(paths: &Paths, conn: &Connection) -> Result<Vec<Finding>, StoreError> {
    // A configuration that cannot be used is the command line's finding.
    let Ok(config) = Config::load(&paths.config) else { return Ok(Vec::new()) };
    let (image, kernel) = (&config.image.value, &config.kernel.value);
    let finding = |id: &str, name: &dyn std::fmt::Display, there: bool, mend: String| {
        if there {
            Finding::fine(id, format!("the default, {name}, is there"))
        } else {
            Finding::warning(
                id,
                format!("the default, {name}, is made at its first use, which takes a while"),
                mend,
            )
        }
    };
    Ok(vec![
        finding(
            "image",
            image,
            content::find_image(conn, image)?.is_some(),
            format!("banger image build {image}"),
        ),
        finding(
            "kernel",
            kernel,
            content::find_kernel(conn, kernel)?.is_some(),
            format!("banger kernel pull {kernel}"),
        ),
    ])
}

/// Whether the files of every image and kernel are there, as large as they were.
fn contents(paths: &Paths, conn: &Connection) -> Result<Finding, StoreError> {
    let library = banger_image::Store::existing(&paths.state);
    let told = |what: String, error: LibraryError| match error {
        LibraryError::Missing { .. } => format!("{what} has no files"),
        other => format!("{what}: {}", banger_proto::error::chain(&other).join(": ")),
    };
    let mut bad = Vec::new();
    let mut count = 0;
    for image in content::images(conn)? {
        count += 1;
        if let Err(error) = library.image(&image.digest) {
            let name = image.name;
            bad.push((told(format!("image {name}"), error), format!("banger image delete {name}")));
        }
    }
    for kernel in content::kernels(conn)? {
        count += 1;
        if let Err(error) = library.kernel(&kernel.digest) {
            let name = kernel.name;
            bad.push((told(format!("kernel {name}"), error), format!("banger kernel delete {name}")));
        }
    }
    if bad.is_empty() {
        return Ok(Finding::fine("contents", format!("{count} images and kernels have all of their files")));
    }
    let (what, mends): (Vec<_>, Vec<_>) = bad.into_iter().unzip();
    Ok(Finding::failed("contents", what.join("; "), format!("{}, then make them again", mends.join("; "))))
}

/// Whether the VMs that should run do.
fn machines(conn: &Connection) -> Result<Finding, StoreError> {
    let mut gone = Vec::new();
    let mut running = 0;
    for vm in vms::all(conn)? {
        if !matches!(vm.state, VmState::Running | VmState::Paused) {
            continue;
        }
        let processes = vms::processes(conn, &vm.id)?;
        let vmm = processes.iter().find(|(role, _)| *role == ProcessRole::Vmm);
        // One that cannot be looked at is not said to be gone.
        let lives = vmm.is_some_and(|(_, record)| !matches!(Process::find(record, Match::Started), Ok(None)));
        if lives {
            running += 1;
        } else {
            gone.push(vm.name.to_string());
        }
    }
    Ok(if gone.is_empty() {
        Finding::fine("machines", format!("{running} VMs run without a daemon; the next one takes them over"))
    } else {
        let text = format!("recorded as running, and their VMMs are gone: {}", gone.join(", "));
        Finding::warning("machines", text, "the next daemon settles it: banger ps")
    })
}

/// What was begun and not ended.
fn unfinished(conn: &Connection) -> Result<Finding, StoreError> {
    let open = journal::open_operations(conn)?;
    Ok(if open.is_empty() {
        Finding::fine("journal", "nothing was interrupted")
    } else {
        let text = format!("{} operations were interrupted", open.len());
        Finding::warning("journal", text, "the next daemon finishes or undoes them: banger ps")
    })
}

/// Directories that belong to no VM.
fn leftovers(paths: &Paths, conn: &Connection) -> Result<Finding, StoreError> {
    let known: BTreeSet<VmId> = vms::all(conn)?.into_iter().map(|vm| vm.id).collect();
    let mut left = Vec::new();
    for dir in [paths.state.join("vms"), paths.runtime.join("vms")] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
            if id.is_some_and(|id| !known.contains(&id)) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    let staging = std::fs::read_dir(paths.state.join("staging")).into_iter().flatten().flatten();
    left.extend(staging.map(|entry| entry.path().display().to_string()));
    Ok(if left.is_empty() {
        Finding::fine("leftovers", "nothing is left of what is gone")
    } else {
        let text = format!("belong to nothing: {}", left.join(", "));
        Finding::warning("leftovers", text, "the next daemon removes them: banger ps")
    })
}
