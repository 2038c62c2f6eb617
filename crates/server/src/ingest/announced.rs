//! Which losses readers were told of lately, so that a sender that tries again and again does not flood them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Between two gaps of one cause. The five tries of a kube-apiserver take 81 s at least (10, 15, 22.5 and 33.75 s between
/// them), so that no batch is lost in this way without a gap that is told while it is still tried.
const INTERVAL: Duration = Duration::from_secs(60);

/// When each cause was last told of: an entry for each word of `IngestRejection::REASONS` at most.
#[derive(Debug, Default)]
pub(super) struct Announced {
    at: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Announced {
    /// Whether readers are to be told of this cause now, which they then are.
    pub(super) fn is_due(&self, cause: &'static str) -> bool {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = at.get(cause).is_none_or(|last| last.elapsed() >= INTERVAL);
        if due {
            at.insert(cause, Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_is_told_of_once_a_minute() {
        let announced = Announced::default();
        assert!(announced.is_due("content_encoding"));
        assert!(!announced.is_due("content_encoding"));
        assert!(announced.is_due("source_bound"), "one cause does not hide another");
        advance(Duration::from_secs(59)).await;
        assert!(!announced.is_due("content_encoding"));
        advance(Duration::from_secs(1)).await;
        assert!(announced.is_due("content_encoding"));
        advance(Duration::from_secs(59)).await;
        assert!(!announced.is_due("content_encoding"), "a minute from the last time, not from the first");
    }
}
