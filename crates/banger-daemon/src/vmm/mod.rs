//! VMMs behind [`crate::ports::Vmm`]: QEMU's microvm machine.

pub mod qemu;
