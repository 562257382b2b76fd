//! The guest channel from end to end: command line, daemon and agent over pipes that are cut.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod cuts;
mod ends;
mod hostile;
mod scripts;
mod world;
