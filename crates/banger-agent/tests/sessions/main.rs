//! Sessions through the whole agent, without a guest: the program itself, serving a socket in place of its port.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod commands;
mod connect;
mod listener;
mod support;
