//! Calling off what runs.

use banger_proto::ErrorReport;
use tokio::sync::watch;

/// The side that may call it off.
#[derive(Debug)]
pub struct Canceller(watch::Sender<Option<ErrorReport>>);

/// The side that is called off. Clones share one fate.
#[derive(Debug, Clone)]
pub struct Cancel(watch::Receiver<Option<ErrorReport>>);

/// A pair of both.
pub fn pair() -> (Canceller, Cancel) {
    let (sender, receiver) = watch::channel(None);
    (Canceller(sender), Cancel(receiver))
}

impl Canceller {
    /// Calls it off, for this reason. The first reason stays.
    pub fn cancel(&self, why: ErrorReport) {
        self.0.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                *state = Some(why);
            }
            first
        });
    }

    /// Whether it was called off.
    pub fn is_cancelled(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl Cancel {
    /// One that nobody calls off.
    pub fn never() -> Self {
        pair().1
    }

    /// The reason, once it is called off; never returns where that cannot happen any more. Cancel-safe.
    pub async fn cancelled(&self) -> ErrorReport {
        let mut receiver = self.0.clone();
        let reason = match receiver.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The reason, where it was called off.
    pub fn reason(&self) -> Option<ErrorReport> {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::ErrorCode;

    #[tokio::test]
    async fn the_first_reason_stays() {
        let (canceller, cancel) = pair();
        assert!(cancel.reason().is_none() && !canceller.is_cancelled());
        canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "one"));
        canceller.cancel(ErrorReport::new(ErrorCode::Cancelled, "two"));
        drop(canceller);
        assert_eq!(cancel.cancelled().await.message, "one");
    }
}
