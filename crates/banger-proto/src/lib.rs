//! What crosses a boundary in banger: identifiers, sizes, specifications, errors, the messages of each
//! interface, and the guest channel's protocol without I/O.
//!
//! Everything here is plain data or a pure state machine. Nothing opens a file, reads a clock or starts a
//! thread, so the whole crate can be fuzzed and is shared by every process: daemon, command line and guest
//! agent. A string that crosses a boundary becomes a type in one `parse`; see [`name`], [`id`], [`digest`]
//! and [`size`].

pub mod catalog;
pub mod channel;
pub mod daemon;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod forward;
pub mod guest;
pub mod health;
pub mod id;
pub mod name;
mod pick;
pub mod ports;
pub mod size;
pub mod spec;
pub mod state;
mod text;

pub use digest::Digest;
pub use error::{ErrorCode, ErrorReport};
pub use forward::Forward;
pub use id::{JobId, OperationId, SessionId, VmId};
pub use name::{ImageName, KernelName, VmName};
pub use pick::{Key, pick};
pub use size::ByteSize;
pub use spec::VmSpec;
pub use state::VmState;
