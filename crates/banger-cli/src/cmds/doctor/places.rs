//! Checks of banger's directories, and of what is in them.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use banger_proto::ByteSize;
use banger_proto::doctor::Finding;
use banger_sys::paths;
use rustix::fs::Access;

use super::told;
use crate::context::Context;
use crate::ssh;

/// The default image with the build's temporary files needs about this.
const ENOUGH_DISK: ByteSize = ByteSize::mib(6 * 1024);
/// With less not even a small VM starts.
const LITTLE_DISK: ByteSize = ByteSize::mib(512);

/// Every check of a place.
pub(super) fn all(context: &Context) -> Vec<Finding> {
    let paths = &context.paths;
    vec![
        runtime(context),
        socket(context),
        own("state", &paths.state),
        own("cache", &paths.cache),
        disk(context),
        temporary(),
        keys(context),
        configuration(context),
    ]
}

/// A directory that is made when it is needed: the nearest one that is there must let it be made, and it must be its
/// owner's.
fn own(id: &str, dir: &Path) -> Finding {
    let shown = dir.display();
    let me = rustix::process::geteuid().as_raw();
    let back = |dir: &Path| format!("sudo chown -R \"$(id -u):$(id -g)\" {}", dir.display());
    match dir.metadata() {
        Ok(meta) if !meta.is_dir() => {
            Finding::failed(id, format!("{shown} is no directory"), format!("mv {shown} {shown}.old"))
        }
        Ok(meta) if meta.uid() != me => {
            let text = format!("{shown} belongs to user id {}, not to you ({me})", meta.uid());
            Finding::failed(id, text, back(dir))
        }
        Ok(meta) if meta.mode() & 0o022 != 0 => Finding::failed(
            id,
            format!(
                "others may write in {shown} (mode {:o}): they could change what your VMs boot",
                meta.mode() & 0o7777
            ),
            format!("chmod 700 {shown}"),
        ),
        Ok(meta) if meta.mode() & 0o055 != 0 => Finding::warning(
            id,
            format!(
                "others may look into {shown} (mode {:o}), where disks and keys of VMs are",
                meta.mode() & 0o7777
            ),
            format!("chmod 700 {shown}"),
        ),
        Ok(_) => match rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Finding::fine(id, format!("{shown} is yours alone")),
            Err(error) => Finding::failed(
                id,
                format!("{shown} cannot be written in: {error}"),
                format!("chmod 700 {shown}"),
            ),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = dir.ancestors().skip(1).find(|dir| dir.exists()).unwrap_or(Path::new("/"));
            match rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => Finding::fine(id, format!("{shown} is made when it is needed")),
                Err(error) => {
                    let text = format!("{shown} cannot be made in {}: {error}", parent.display());
                    Finding::failed(id, text, back(parent))
                }
            }
        }
        Err(error) => Finding::failed(id, format!("{shown} cannot be looked at: {error}"), back(dir)),
    }
}

/// A socket without a listener is what a killed daemon leaves. The next one replaces it.
fn socket(context: &Context) -> Finding {
    let (id, path) = ("socket", context.paths.socket());
    let shown = path.display();
    match path.symlink_metadata() {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Finding::failed(id, format!("{shown} is no socket"), format!("rm -r {shown}"));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Finding::fine(id, format!("{shown} is made when it is needed"));
        }
        // What is wrong shows below.
        Ok(_) | Err(_) => {}
    }
    match UnixStream::connect(&path) {
        Ok(_) => Finding::fine(id, format!("a daemon listens at {shown}")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let text = format!("{shown} is left of a daemon that was killed");
            Finding::warning(id, text, "the next daemon replaces it: banger ps")
        }
        Err(error) => {
            Finding::failed(id, format!("{shown} cannot be connected to: {error}"), format!("rm -r {shown}"))
        }
    }
}

/// Where a build puts what it needs meanwhile.
fn temporary() -> Finding {
    let (id, dir) = ("temporary", std::env::temp_dir());
    let shown = dir.display();
    match rustix::fs::access(&dir, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::fine(id, format!("{shown} can be written in")),
        Err(error) => {
            let text = format!("{shown}, where builds put what they need meanwhile, cannot be used: {error}");
            Finding::failed(id, text, "sudo chmod 1777 /tmp, or unset TMPDIR")
        }
    }
}

/// The owner's key, by which VMs let them in: the one that the configuration names, else banger's own. ssh takes no private key
/// that others may read.
fn keys(context: &Context) -> Finding {
    let id = "keys";
    let named = match ssh::named_key(context) {
        Ok(named) => named,
        Err(error) => return Finding::failed(id, told(&error), "banger config check"),
    };
    let is_named = named.is_some();
    let key = named.unwrap_or_else(|| ssh::own_key(context));
    let has_public_half = public_half(&key).is_file();
    let shown = key.display();
    match key.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound && !is_named => {
            Finding::fine(id, format!("{shown} is made with the first VM"))
        }
        // As where the private key is in an agent or on a token.
        Err(error) if error.kind() == ErrorKind::NotFound && has_public_half => {
            Finding::fine(id, format!("{shown} is there by its public half alone"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = format!("{shown}, which ssh_key_path names, is not there: no VM can start");
            Finding::failed(id, text, format!("ssh-keygen -t ed25519 -f {shown}"))
        }
        Err(error) => {
            let dir = key.parent().unwrap_or(&key).display();
            Finding::failed(id, format!("{shown} cannot be looked at: {error}"), format!("chmod 700 {dir}"))
        }
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            let text = format!(
                "others may read the key {shown} (mode {:o}): ssh does not use it",
                meta.mode() & 0o7777
            );
            Finding::failed(id, text, format!("chmod 600 {shown}"))
        }
        // Of a key that is named the private one alone will do.
        Ok(_) if !is_named && !has_public_half => {
            let text = format!("{shown} has no public half beside it");
            Finding::failed(id, text, format!("ssh-keygen -y -f {shown} >{shown}.pub"))
        }
        Ok(_) => Finding::fine(id, format!("{shown} is yours alone")),
    }
}

/// The file of a key's public half.
fn public_half(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

fn runtime(context: &Context) -> Finding {
    let (id, dir) = ("runtime", &context.paths.runtime);
    match paths::check_private(dir) {
        Ok(()) => {
            let length = dir.as_os_str().len();
            Finding::fine(
                id,
                format!("{} is yours alone, and short enough for sockets ({length} bytes)", dir.display()),
            )
        }
        Err(paths::PathsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Finding::fine(id, format!("{} is made when it is needed", dir.display()))
        }
        Err(error) => Finding::failed(
            id,
            error.to_string(),
            format!(
                "chmod 700 {}; if it is another's, set BANGER_RUNTIME_DIR to a directory of your own",
                dir.display()
            ),
        ),
    }
}

fn disk(context: &Context) -> Finding {
    let id = "disk";
    let dir = context.paths.state.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(dir) {
        Ok(fs) => ByteSize::bytes(fs.f_bavail.saturating_mul(fs.f_frsize)),
        Err(error) => {
            let text = format!("cannot tell how much room {} has: {error}", dir.display());
            return Finding::warning(id, text, "check that the directory can be used");
        }
    };
    let text = format!("{free} free for {}", context.paths.state.display());
    let mend = "delete VMs and images that are not needed: banger ps, banger image list";
    // A file system may be full of files before it is full of bytes.
    let files = rustix::fs::statvfs(dir).map_or(0, |fs| if fs.f_files == 0 { u64::MAX } else { fs.f_favail });
    if files < 100 {
        Finding::failed(id, format!("{text}, and room for {files} more files"), mend)
    } else if free < LITTLE_DISK {
        Finding::failed(id, text, mend)
    } else if free < ENOUGH_DISK {
        Finding::warning(id, format!("{text}, little for an image"), mend)
    } else {
        Finding::fine(id, text)
    }
}

/// Whether the file can be used, and what in it is not as it would be without it.
fn configuration(context: &Context) -> Finding {
    let id = "config";
    let config = match context.config() {
        Ok(config) => config,
        Err(error) => return Finding::failed(id, told(&error), "correct the file: banger config check"),
    };
    let path = config.path.display();
    let set: Vec<_> = crate::cmds::config::set_by_file(&config);
    Finding::fine(
        id,
        match (config.exists, set.is_empty()) {
            (false, _) => format!("{path} does not exist; all values: banger config show"),
            (true, true) => format!("{path} sets nothing; all values: banger config show"),
            (true, false) => format!("{path} sets {}; all values: banger config show", set.join(", ")),
        },
    )
}
