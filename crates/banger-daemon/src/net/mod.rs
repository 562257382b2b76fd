//! The guest's network in user mode: passt between QEMU and the host's own sockets, without privilege.

pub mod passt;
pub mod plan;
