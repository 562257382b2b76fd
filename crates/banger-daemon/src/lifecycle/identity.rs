//! The keys of a VM and of its owner, made on the host, so that what a guest shows is known before it boots.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::{durable, paths};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};

use crate::store::Durability;

/// A VM's ssh host key.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey {
    /// The private key in OpenSSH's format.
    pub private: String,
    /// The line of its `.pub` file, with the final newline.
    pub public: String,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The file that holds a VM's ssh host key, mode 0600.
pub fn host_key_file(state: &Path) -> PathBuf {
    state.join("ssh_host_ed25519_key")
}

/// The host key of the VM with this directory; made where there is none, or none that can be read.
pub fn host_key(state: &Path, durability: Durability) -> Result<HostKey, ErrorReport> {
    let file = host_key_file(state);
    let failed = |error: &(dyn std::error::Error + 'static)| {
        ErrorReport::caused_by(
            ErrorCode::Internal,
            format!("cannot make the ssh host key {}", file.display()),
            error,
        )
    };
    let key = match read(&file)? {
        Some(key) => key,
        None => {
            let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(|error| failed(&error))?;
            let text = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
            match durability {
                Durability::Host => durable::replace(&file, text.as_bytes(), 0o600),
                Durability::Process => write(&file, text.as_bytes()),
            }
            .map_err(|error| failed(&error))?;
            key
        }
    };
    let private = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
    let public = key.public_key().to_openssh().map_err(|error| failed(&error))?;
    Ok(HostKey { private: private.to_string(), public: format!("{public}\n") })
}

/// The public line of the owner's managed key `id_ed25519` in this directory, made on first use.
pub fn owner_key(dir: &Path) -> Result<String, ErrorReport> {
    let file = dir.join("id_ed25519");
    let message = || format!("cannot make banger's own ssh key {}", file.display());
    let failed = |error: &(dyn std::error::Error + 'static)| {
        ErrorReport::caused_by(ErrorCode::Internal, message(), error)
    };
    paths::make_private(dir).map_err(|error| failed(&error))?;
    let key = match read(&file)? {
        Some(key) => key,
        None => {
            let mut key =
                PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(|error| failed(&error))?;
            key.set_comment("banger");
            let text = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
            durable::replace(&file, text.as_bytes(), 0o600).map_err(|error| failed(&error))?;
            key
        }
    };
    let public = key.public_key().to_openssh().map_err(|error| failed(&error))?;
    let public_file = dir.join("id_ed25519.pub");
    if !public_file.exists() {
        durable::replace(&public_file, format!("{public}\n").as_bytes(), 0o644)
            .map_err(|error| failed(&error))?;
    }
    Ok(public)
}

/// The key in a file: `None` where there is no file, or a torn one that a crash of the host left.
fn read(file: &Path) -> Result<Option<PrivateKey>, ErrorReport> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(PrivateKey::from_openssh(&text).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ErrorReport::caused_by(
            ErrorCode::Internal,
            format!("cannot read the ssh key {}", file.display()),
            &error,
        )),
    }
}

fn write(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(file)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn keys_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = host_key(dir.path(), Durability::Process).unwrap();
        assert_eq!(host_key(dir.path(), Durability::Host).unwrap(), first);
        assert!(first.public.starts_with("ssh-ed25519 ") && first.public.ends_with('\n'));
        assert!(first.private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert_eq!(host_key_file(dir.path()).metadata().unwrap().mode() & 0o777, 0o600);
        let ssh = dir.path().join("ssh");
        let line = owner_key(&ssh).unwrap();
        assert_eq!(owner_key(&ssh).unwrap(), line);
        assert!(line.ends_with(" banger"), "{line}");
        assert_eq!(ssh.join("id_ed25519").metadata().unwrap().mode() & 0o777, 0o600);
        assert_ne!(line.split(' ').nth(1), first.public.split(' ').nth(1));
    }

    #[test]
    fn a_torn_key_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(host_key_file(dir.path()), "").unwrap();
        host_key(dir.path(), Durability::Host).unwrap();
        assert!(std::fs::read_to_string(host_key_file(dir.path())).unwrap().contains("OPENSSH"));
    }
}
