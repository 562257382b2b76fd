//! What every implementation of a port has to do. Each suite is a list of cases over a *bench*: the implementation, with
//! what a case needs of the place where it runs. A new implementation gets a bench and runs the same list.

pub mod channel;
pub mod disks;
pub mod machines;
pub mod vmm;

use std::pin::Pin;

use anyhow::Context;
use banger_proto::ErrorReport;

/// A case that runs.
pub type Running<'b> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'b>>;

/// A case with its name, over a bench of this kind.
pub struct Case<B: ?Sized> {
    /// For people and for filters.
    pub name: &'static str,
    body: for<'b> fn(&'b B) -> Running<'b>,
}

impl<B: ?Sized> std::fmt::Debug for Case<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<B: ?Sized> Case<B> {
    /// Runs it.
    pub async fn run(&self, bench: &B) -> anyhow::Result<()> {
        (self.body)(bench).await.with_context(|| self.name)
    }
}

/// Runs a suite, each case after the other, and tells of every one that failed.
pub async fn run<B: ?Sized>(cases: &[Case<B>], bench: &B) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for case in cases {
        if let Err(error) = case.run(bench).await {
            failed.push(format!("{error:#}"));
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "{} of {} cases failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    Ok(())
}

/// An error with everything it knows.
fn whole(error: ErrorReport) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", error.message, error.causes.join(": "))
}

/// The list of a suite: every function named here is a case.
macro_rules! cases {
    ($bench:ty: $($name:ident),+ $(,)?) => {
        /// The suite.
        pub const CASES: &[crate::contract::Case<$bench>] = &[
            $(crate::contract::Case { name: stringify!($name), body: |bench| Box::pin($name(bench)) }),+
        ];
    };
}
pub(crate) use cases;
