//! banger's configuration: strict TOML, and where each value came from.
//!
//! ```text
//! flag  >  ~/.config/banger/config.toml  >  what the host suggests  >  built in
//! ```
//!
//! Strict means: a key that is not known is an error that names the line and the nearest known key; a key that is
//! specified but that this banger does not act on yet is refused as such, and one that belongs to root's file is
//! refused in an owner's. All problems of a file are reported together. The table in [`keys`] is the only list of keys:
//! parsing, this crate's errors and `docs/config.md` come from it.

mod file;
pub mod firecracker;
mod host;
pub mod keys;
mod reference;
mod settings;

pub use file::{ConfigError, Problem};
pub use host::Host;
pub use reference::reference;
pub use settings::{Config, LogLevel, Origin, Setting, VmmChoice};
