//! Safe calls of Linux for banger. The only crate of the workspace with unsafe code; each block states what
//! it relies on.

pub mod become_program;
pub mod command;
pub mod descriptors;
pub mod durable;
pub mod env;
pub mod extents;
pub mod guest;
pub mod inherited;
pub mod netif;
pub mod paths;
pub mod peer;
pub mod process;
pub mod rotate;
pub mod seqpacket;
pub mod signals;
pub mod spawn;
pub mod tsc;
pub mod vsock;
