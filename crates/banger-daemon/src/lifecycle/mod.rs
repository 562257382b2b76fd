//! The life of a VM: decided in pure code, done in one task per VM, written down before it is done.
//!
//! - [`state`]: which event leads where.
//! - [`plan`]: which steps an operation has.
//! - [`journal`]: runs them, and undoes them.

pub mod cancel;
pub mod faults;
pub mod journal;
pub mod plan;
pub mod state;
