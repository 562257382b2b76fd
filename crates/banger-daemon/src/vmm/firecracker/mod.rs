//! Firecracker behind [`crate::ports::Vmm`].

pub mod api;
