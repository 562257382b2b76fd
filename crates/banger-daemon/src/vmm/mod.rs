//! VMMs behind [`crate::ports::Vmm`]: QEMU's microvm machine.

pub mod qemu;
mod tail;

pub use tail::{console_tail, tail};
