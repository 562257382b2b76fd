//! The life of a VM: decided in pure code, done in one task per VM, written down before it is done.
//!
//! - [`state`]: which event leads where.
//! - [`plan`]: which steps an operation has.
//! - [`journal`]: runs them, and undoes them.
//! - [`effects`]: what the steps do, through the ports.
//! - `power_off`: how a guest is asked to end.
//! - [`driver`]: the task. Only it writes its VM's state.
//! - [`recover`]: what an earlier daemon left.

pub mod boot;
pub mod cancel;
pub mod driver;
pub mod effects;
mod failed;
pub mod faults;
mod guest_config;
pub mod identity;
pub mod journal;
pub mod known_hosts;
pub mod lease;
pub mod plan;
pub(crate) mod power_off;
pub mod recover;
pub(crate) mod report;
pub mod state;
pub mod world;
