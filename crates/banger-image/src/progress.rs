//! How long work tells its caller where it is, and learns that it is no longer wanted.

/// The view that long work has of whoever asked for it. Methods are cheap and never block for long: they are
/// called from inner loops.
pub trait Progress: Sync {
    /// A new stage begins, in words for people.
    fn stage(&self, text: &str);
    /// The present stage has done so many bytes; `total` is 0 while unknown.
    fn bytes(&self, done: u64, total: u64);
    /// Whether the work should end; looked at between steps and between blocks.
    fn cancelled(&self) -> bool;
}

/// Tells nobody, is never cancelled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _text: &str) {}

    fn bytes(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody wants the work any more, from its beginning.
#[cfg(test)]
pub(crate) struct Unwanted;

#[cfg(test)]
impl Progress for Unwanted {
    fn stage(&self, _text: &str) {}

    fn bytes(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        true
    }
}
