//! The answers of reviews, for as long as they are good, and one review at a time for the same question.
//!
//! Yes and no are remembered alike, errors never. It neither asks nor knows what an answer means: `authz` and `authn::tokens`
//! do, each with a cache of its own. Source: the caches of `k8s.io/apiserver/plugin/pkg/authorizer/webhook/webhook.go` and
//! `k8s.io/apiserver/pkg/authentication/token/cache`.

use std::future::Future;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout_at};

/// How long kube-apiserver may take over a review, and how long who asks waits, for the review of another who asks too.
///
/// There is one deadline for both, so that an answer that does not come is counted by who asked.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// A hash of the question: of one size, whatever was asked, and without its text.
pub type Key = [u8; 32];

/// An answer, and when it was asked for, which is when it was surely true.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// What was answered.
    pub value: T,
    /// When it was asked for.
    pub started: Instant,
}

/// Answers by their questions.
#[derive(Debug)]
pub struct ReviewCache<T, W> {
    pub(crate) answers: Cache<Key, Answer<T>, W>,
}

impl<T: Clone, W: Weighter<Key, Answer<T>> + Clone> ReviewCache<T, W> {
    /// A cache for some `count` of answers, which weigh no more than `weight` together.
    pub fn new(count: usize, weight: u64, weighter: W) -> Self {
        Self { answers: Cache::with_weighter(count, weight, weighter) }
    }

    /// The answer that is remembered and still `good`, or else what `ask` finds out by the deadline, which `ask` keeps too.
    /// Dropping the future abandons the question.
    ///
    /// One of those who ask the same asks, and the others wait for its answer. If it finds nothing out, the next of them tries.
    ///
    /// # Errors
    /// What `ask` says; `unanswered` if another's review was not answered in time.
    pub async fn answer<E>(
        &self,
        key: &Key,
        good: impl Fn(&Answer<T>) -> bool,
        deadline: Instant,
        unanswered: E,
        ask: impl Future<Output = Result<Answer<T>, E>>,
    ) -> Result<Answer<T>, E> {
        loop {
            let Ok(found) = timeout_at(deadline, self.answers.get_value_or_guard_async(key)).await else {
                return Err(unanswered);
            };
            match found {
                Ok(answer) if good(&answer) => return Ok(answer),
                Ok(_) => drop(self.answers.remove_if(key, |answer| !good(answer))),
                Err(_) if Instant::now() >= deadline => return Err(unanswered),
                Err(guard) => {
                    let answer = ask.await?;
                    // Fails only if the entry was removed meanwhile; the answer is as good.
                    let _ = guard.insert(answer.clone());
                    return Ok(answer);
                }
            }
        }
    }
}
