//! The keys of a VM and of its owner, made on the host, so that what a guest shows is known before it boots.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::{durable, paths};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

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

/// The public line of the ssh host key of the VM with this directory; `None` where none was made yet.
pub fn host_public(state: &Path) -> Result<Option<String>, ErrorReport> {
    let Some(key) = read(&host_key_file(state))? else { return Ok(None) };
    let line = key.public_key().to_openssh().map_err(|error| {
        let message = format!("cannot read the ssh key {}", host_key_file(state).display());
        ErrorReport::caused_by(ErrorCode::Internal, message, &error)
    })?;
    Ok(Some(line))
}

/// The key by which the owner comes into VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerKey {
    /// banger's own, which it makes.
    Managed,
    /// The private key in this file, `ssh_key_path` of the configuration.
    File(PathBuf),
}

/// The public line of a key of the owner's own: of the `.pub` file beside it, as ssh(1) does where the private key is
/// in an agent or on a token, or of the private key itself, whose public half is readable also where a passphrase protects it.
pub fn public_line(private: &Path) -> Result<String, ErrorReport> {
    let mut public = private.as_os_str().to_owned();
    public.push(".pub");
    let failed = |file: &Path, error: &(dyn std::error::Error + 'static)| {
        let message = format!("cannot use {} as the key for VMs (ssh_key_path)", file.display());
        ErrorReport::caused_by(ErrorCode::InvalidInput, message, error)
            .hint(format!("make one: ssh-keygen -t ed25519 -f {}", private.display()))
            .hint("or leave ssh_key_path out of the configuration: banger then makes a key of its own")
            .hint("the daemon reads it when it starts: banger daemon stop")
    };
    let key = match std::fs::read_to_string(Path::new(&public)) {
        Ok(text) => PublicKey::from_openssh(&text).map_err(|error| failed(Path::new(&public), &error))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = std::fs::read_to_string(private).map_err(|error| failed(private, &error))?;
            let key = PrivateKey::from_openssh(&text).map_err(|error| failed(private, &error))?;
            key.public_key().clone()
        }
        Err(error) => return Err(failed(Path::new(&public), &error)),
    };
    key.to_openssh().map_err(|error| failed(private, &error))
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
    fn a_key_of_the_owners_own_is_read_from_either_half() {
        let dir = tempfile::tempdir().unwrap();
        let line = owner_key(dir.path()).unwrap();
        let private = dir.path().join("id_ed25519");
        assert_eq!(public_line(&private).unwrap(), line);
        std::fs::remove_file(dir.path().join("id_ed25519.pub")).unwrap();
        assert_eq!(public_line(&private).unwrap(), line);
        std::fs::write(&private, "nonsense").unwrap();
        let error = public_line(&private).unwrap_err();
        assert!(error.message.contains("id_ed25519 as the key for VMs (ssh_key_path)"), "{error:?}");
        assert!(public_line(&dir.path().join("none")).unwrap_err().hints[0].contains("ssh-keygen"));
    }

    #[test]
    fn a_torn_key_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(host_key_file(dir.path()), "").unwrap();
        host_key(dir.path(), Durability::Host).unwrap();
        assert!(std::fs::read_to_string(host_key_file(dir.path())).unwrap().contains("OPENSSH"));
    }
}
