//! The daemon of banger: life cycle, store, VMMs, guest channels and the local API.
//!
//! ```text
//! rpc/ --> service/ --> lifecycle/ (one driver task per VM) --> ports: store, Vmm, Guests, RootDisks
//! ```
//!
//! State comes back only through a driver's watch channel. What tests replace are the traits of [`ports`].

pub mod clock;
pub mod console;
pub mod disk;
pub mod doctor;
pub mod forward;
pub mod guest;
pub mod jobs;
pub mod keeper;
pub mod launch;
pub mod lifecycle;
pub mod lock;
pub mod log;
pub mod model;
pub mod names;
pub mod net;
pub mod ports;
pub mod random;
mod reconcile;
pub mod rpc;
pub mod scope;
pub mod server;
pub mod service;
pub mod store;
#[cfg(test)]
mod testing;
pub mod vmm;
pub mod wiring;
