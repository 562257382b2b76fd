//! Root disks: one strategy behind [`crate::ports::RootDisks`], a qcow2 overlay over the image.

mod qcow2;

pub use qcow2::Qcow2Disks;
