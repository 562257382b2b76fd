//! ssh into VMs: what the client is told, for our own `vm ssh` and for everybody's `ssh NAME.vm`.
//!
//! ```text
//! ssh NAME.vm ── ProxyCommand: banger vm proxy NAME.vm ── the guest channel ── sshd in the guest
//!   │ IdentityFile: banger's own key, or ssh_key_path
//!   └ UserKnownHostsFile: the host keys that were made for the VMs, written by the daemon
//! ```
//! Whoever answers with another host key is refused by ssh itself, without a question.

pub(crate) mod guest;
pub(crate) mod include;
mod quote;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_proto::{ErrorCode, ErrorReport, VmName};
use banger_sys::{command, env, paths};

use crate::context::Context;
use crate::error::{CliError, io_error};

/// Variables that are handed on where they are set: whoever starts the client later need not have them.
const HANDED_ON: &[&str] =
    &[env::BANGER_RUNTIME_DIR, env::BANGER_DAEMON, env::BANGER_AGENT, env::BANGER_QEMU, env::BANGER_PASST];

/// What the client is told of VMs: keywords and arguments of ssh_config(5).
#[derive(Debug)]
pub(crate) struct Options(Vec<(&'static str, String)>);

impl Options {
    /// For a client with any environment and any configuration beside this one.
    pub(crate) fn of(context: &Context) -> Result<Self, CliError> {
        // Always said, for they may be others where XDG's variables are: the key and the host keys below are of these.
        let paths = &context.paths;
        let places = [
            (env::BANGER_STATE_DIR, &paths.state),
            (env::BANGER_CACHE_DIR, &paths.cache),
            (env::BANGER_CONFIG, &paths.config),
        ];
        let mut proxy = "env ".to_owned();
        for (name, path) in places {
            proxy.push_str(&format!("{name}={} ", quote::written(name, path)?));
        }
        for name in HANDED_ON {
            if let Some(value) = env::var(name) {
                proxy.push_str(&format!("{name}={} ", quote::written(name, Path::new(&value))?));
            }
        }
        let banger = quote::written("the path of banger", &own_path()?)?;
        // In single quotes: a client older than 9.6 hands any host name to the shell.
        proxy.push_str(&format!("{banger} vm proxy '%h' %p"));
        let key = named_key(context)?.unwrap_or_else(|| own_key(context));
        let known_hosts = context.paths.ssh().join("known_hosts");
        Ok(Self(vec![
            ("User", "root".into()),
            ("ProxyCommand", proxy),
            ("ProxyUseFdpass", "no".into()),
            ("CanonicalizeHostname", "no".into()),
            ("IdentityFile", quote::written("the path of the key", &key)?),
            ("IdentitiesOnly", "yes".into()),
            ("PubkeyAuthentication", "yes".into()),
            ("UserKnownHostsFile", quote::written("the state directory", &known_hosts)?),
            ("GlobalKnownHostsFile", "/dev/null".into()),
            ("StrictHostKeyChecking", "yes".into()),
            ("VerifyHostKeyDNS", "no".into()),
            ("UpdateHostKeys", "no".into()),
            // What runs in a VM is not trusted with the keys and the screen of its owner.
            ("ForwardAgent", "no".into()),
            ("ForwardX11", "no".into()),
        ]))
    }

    /// As a configuration file.
    pub(crate) fn file(&self) -> String {
        let mut text = "# ssh NAME.vm, scp, sftp, rsync, git and editors reach banger's VMs by this.\n\
            # Made by 'banger ssh-config': what is changed here is lost when that is run again.\n\
            Host *.vm \"!*'*\"\n"
            .to_owned();
        for (keyword, argument) in &self.0 {
            text.push_str(&format!("    {keyword} {argument}\n"));
        }
        text
    }
}

impl Options {
    /// The path of a file with these, for an Include.
    pub(crate) fn included(file: &Path) -> Result<String, CliError> {
        quote::written("the state directory", file)
    }

    /// Whether a client goes by these, from what its `-G` prints.
    pub(crate) fn shown_in(&self, text: &str) -> bool {
        let proxy = self.0.iter().find(|(keyword, _)| *keyword == "ProxyCommand").map(|(_, proxy)| proxy);
        let mut shown = text.lines().filter_map(|line| line.strip_prefix("proxycommand "));
        proxy.is_some_and(|proxy| shown.any(|line| line == proxy))
    }
}

/// The key that banger makes.
pub(crate) fn own_key(context: &Context) -> PathBuf {
    context.paths.ssh().join("id_ed25519")
}

/// The key that the configuration names instead, where it does.
pub(crate) fn named_key(context: &Context) -> Result<Option<PathBuf>, CliError> {
    let named = context.config()?.ssh_key.value;
    named.map(|path| paths::from_home(&path)).transpose().map_err(|error| {
        CliError::caused_by(ErrorCode::InvalidInput, "cannot tell where ssh_key_path is", &error)
    })
}

/// What `vm ssh` is asked for beyond the VM and the command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wishes {
    /// Keys of the agent here can be used there.
    pub(crate) forward_agent: bool,
    /// A terminal also for a command.
    pub(crate) tty: bool,
}

/// Becomes ssh, with these options and none of any configuration file. Returns only where that fails.
pub(crate) fn become_client(
    client: &Path,
    options: &Options,
    vm: &VmName,
    wishes: Wishes,
    words: &[OsString],
) -> CliError {
    let mut command = Command::new(client);
    command.args(["-F", "none"]);
    if wishes.forward_agent {
        // The first that is said counts.
        command.arg("-A");
    }
    if wishes.tty {
        command.arg("-t");
    }
    for (keyword, argument) in &options.0 {
        command.arg("-o").arg(format!("{keyword} {argument}"));
    }
    command.arg(format!("{vm}.vm"));
    if !words.is_empty() {
        command.arg("--").arg(quote::words(words));
    }
    io_error(format!("cannot start {}", client.display()))(command.exec())
}

/// The ssh that the caller's own PATH finds.
pub(crate) fn client() -> Result<PathBuf, CliError> {
    let path = env::var(env::PATH).unwrap_or_default();
    let own = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).find_map(|dir| {
        let program = dir.join("ssh");
        command::find(program.to_str()?)
    });
    own.or_else(|| command::find("ssh")).ok_or_else(|| {
        let report = ErrorReport::new(ErrorCode::HostUnsupported, "the program 'ssh' is not installed");
        report
            .hint("install it: apt-get install openssh-client")
            .hint("or use: banger vm exec -it NAME -- sh")
            .into()
    })
}

/// The path by which banger can be started also after it was replaced by a newer one: that by which it was found, where
/// it leads to this program, else the program's own.
fn own_path() -> Result<PathBuf, CliError> {
    let doing = "cannot tell where banger itself is";
    let program = std::env::current_exe().map_err(io_error(doing))?;
    let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
    let ours = identity(&program).map_err(io_error(doing))?;
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let found = if called.components().count() > 1 {
        Some(std::path::absolute(&called).map_err(io_error(doing))?)
    } else {
        let path = env::var(env::PATH).unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join(&called))
            .find(|path| path.is_absolute() && path.is_file())
    };
    Ok(found.filter(|path| identity(path).is_ok_and(|found| found == ours)).unwrap_or(program))
}
