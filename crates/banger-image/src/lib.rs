//! Images and kernels: built from packages or archives, written as ext4, kept by content.
//!
//! ```text
//! tar ──> ext4::tar ──> ext4::tree + ext4::spool ──> ext4::writer ──┐
//! ext4 file ──> ext4::register ─────────────────────────────────────┼──> store
//! Debian archive ──> kernel::{apt, deb, bzimage, modules} ──────────┘      │
//!                                             agent + boot modules ──> initrd
//! ```
//!
//! What it promises: an object of the [`store`] is whole or not there, and never changes; nothing of an
//! archive is ever unpacked as a path on the host; every input is bounded in size, and a refusal names the
//! entry at fault and leaves nothing behind. All of it is synchronous: callers give it a thread.

mod compression;
pub mod debian;
pub mod ext4;
pub mod initrd;
pub mod kernel;
mod progress;
pub mod store;

pub use initrd::{ensure_initrd, prune_initrds, remove_initrds};
pub use progress::{Progress, Silent};
pub use store::{Image, Kernel, Store};
