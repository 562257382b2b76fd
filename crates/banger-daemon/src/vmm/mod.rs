//! VMMs behind [`crate::ports::Vmm`]: QEMU's microvm machine, and Firecracker.
//!
//! What is the same for both is here: how a VM's processes begin, are followed and end.

mod begin;
mod binary;
pub mod choice;
pub mod firecracker;
mod kernel_words;
mod kvm;
mod processes;
pub mod qemu;
mod running;
mod saved;
