//! VMMs behind [`crate::ports::Vmm`]: QEMU's microvm machine, and Firecracker.

pub mod firecracker;
pub mod qemu;
