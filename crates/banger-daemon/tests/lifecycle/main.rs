//! The life cycle over fakes: every operation broken at every point, daemons killed at every moment, and any sequence of
//! requests. The host outlives its daemons (`testkit::fake`); time is tokio's and passes at once where all wait.

mod clocks;
mod commands;
mod daemon;
mod faults;
mod forwards;
mod in_use;
mod settings;
