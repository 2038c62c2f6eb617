//! The end of all watches, when the server ends: spread over a time, because all of them come back to another server.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SetOnce;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::random_part;

/// Whether the watches are being ended. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Closing {
    begun: Arc<SetOnce<Spread>>,
    /// Has a token for each open watch.
    open: TaskTracker,
}

/// When the first watch ends, and how much later the last.
#[derive(Debug, Clone, Copy)]
struct Spread {
    from: Instant,
    time: Duration,
}

impl Closing {
    /// Ends every watch within this time from now, each after a part of it, and opens no more. The first call is the one that counts.
    ///
    /// None ends in the first tenth, in which what was published last reaches all of them.
    pub fn begin(&self, spread: Duration) {
        let lead = spread / 10;
        let _ = self.begun.set(Spread { from: Instant::now() + lead, time: spread - lead });
        self.open.close();
    }

    /// Returns when all watches are over and taken by their connections, once it has begun. Cancel-safe.
    pub async fn all_over(&self) {
        self.open.wait().await;
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.get().is_some()
    }

    /// Returns when it has begun. Cancel-safe.
    pub(super) async fn begun(&self) {
        self.begun.wait().await;
    }

    pub(super) fn open(&self) -> TaskTrackerToken {
        self.open.token()
    }
}

/// Once it has begun, when one watch ends. Never returns without a closing. Cancel-safe.
pub(super) async fn end_of_one(closing: Option<&Closing>) -> Instant {
    match closing {
        None => std::future::pending().await,
        Some(Closing { begun, .. }) => {
            let Spread { from, time } = *begun.wait().await;
            from + random_part(time)
        }
    }
}
