//! Where tests break an operation: before and after the effect of every step.
//!
//! In the daemon nothing happens here. A test lets a point fail, or never come back from it and then drops everything,
//! which is what `kill -9` at that point does.

use async_trait::async_trait;
use banger_proto::ErrorReport;

use super::plan::{Kind, Step};

/// On which side of a step's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The journal has it, nothing happened yet.
    Before,
    /// It happened, the journal does not say so yet.
    After,
}

/// A place in an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The operation.
    pub kind: Kind,
    /// The step.
    pub step: Step,
    /// Before or after its effect.
    pub side: Side,
}

/// What happens at a point.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Called when an operation comes to the point; an error is as if the step had failed there.
    async fn reach(&self, point: Point) -> Result<(), ErrorReport>;
}

/// Nothing ever happens.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

#[async_trait]
impl Faults for NoFaults {
    async fn reach(&self, _: Point) -> Result<(), ErrorReport> {
        Ok(())
    }
}
