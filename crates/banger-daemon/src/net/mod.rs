//! The guest's network in user mode: passt between QEMU and the host's own sockets, without privilege, and a guard
//! between the two.
//!
//! ```text
//! QEMU (virtio-net) <--socket pair--> guard (in the keeper) <--socket pair--> passt <--sockets--> the host's network
//! ```

pub mod frame;
pub mod guard;
pub mod passt;
pub mod plan;
