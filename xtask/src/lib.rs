//! Rules of this repository that a compiler does not check.
//!
//! Each check returns the rules that are broken, one sentence each, so that all of them are seen at once.

pub mod check;
