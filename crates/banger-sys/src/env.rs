//! Every environment variable that banger reads, in one place.

/// Directory of the user's sockets (XDG Base Directory Specification).
pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Base of the user's state (XDG Base Directory Specification).
pub const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Base of the user's caches (XDG Base Directory Specification).
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Base of the user's configuration (XDG Base Directory Specification).
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// The process that systemd started as a unit: the reader, or a parent of it (systemd.exec(5)).
pub const SYSTEMD_EXEC_PID: &str = "SYSTEMD_EXEC_PID";
/// The user's home.
pub const HOME: &str = "HOME";
/// Where the user's shell finds programs.
pub const PATH: &str = "PATH";
/// Replaces the runtime directory.
pub const BANGER_RUNTIME_DIR: &str = "BANGER_RUNTIME_DIR";
/// Replaces the state directory.
pub const BANGER_STATE_DIR: &str = "BANGER_STATE_DIR";
/// Replaces the cache directory.
pub const BANGER_CACHE_DIR: &str = "BANGER_CACHE_DIR";
/// Replaces the configuration file.
pub const BANGER_CONFIG: &str = "BANGER_CONFIG";
/// Level of the daemon's log; wins over the configuration.
pub const BANGER_LOG_LEVEL: &str = "BANGER_LOG_LEVEL";
/// `user` or `system`.
pub const BANGER_MODE: &str = "BANGER_MODE";
/// The daemon's executable, instead of the one beside `banger`.
pub const BANGER_DAEMON: &str = "BANGER_DAEMON";
/// The guest agent's executable, instead of the one beside `bangerd`.
pub const BANGER_AGENT: &str = "BANGER_AGENT";
/// QEMU's executable, instead of the one in PATH.
pub const BANGER_QEMU: &str = "BANGER_QEMU";
/// passt's executable, instead of the one in PATH.
pub const BANGER_PASST: &str = "BANGER_PASST";

/// The value of a variable; unset and empty are the same.
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
