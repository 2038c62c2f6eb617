//! Until when a reader's permission is known to hold.
//!
//! Upstream asks once, when a watch is opened; a reader whose right is withdrawn then reads on for up to an hour. Here the
//! question is repeated while the watch is open, and nothing is yielded after the time for which the last answer stands.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{Authorizer, For, Grant, Refusal, Review, ReviewRequest, allowed};

/// A review stands for this long after it was asked for.
const TERM: Duration = Duration::from_secs(20);

/// When to ask again: leaves time for several tries before the term is over.
const RENEW_AFTER: Duration = Duration::from_secs(8);

/// Between two tries where the reviewer does not answer, or cannot be asked for want of room.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Watches of one reader come up for renewal together; they share a review that is no older than this.
pub(super) const SHARED_AGE: Duration = Duration::from_secs(2);

/// A grant that is renewed for as long as it is looked after.
pub struct Lease {
    authorizer: Arc<Authorizer>,
    /// `None`: nobody has to be asked again.
    term: Option<Term>,
}

struct Term {
    request: Arc<ReviewRequest>,
    /// When the review that is in force was asked for.
    started: Instant,
    next_try: Instant,
    /// A task of the authorizer's and not a future of the watch's: a watch is polled only while its reader reads, and others
    /// wait for the same review.
    renewal: Option<JoinHandle<Result<Review, Refusal>>>,
}

// === impl Lease ===

impl Lease {
    /// Begins with the review that the grant came from.
    pub fn new(authorizer: Arc<Authorizer>, grant: Grant) -> Self {
        Self { authorizer, term: grant.reviewed.map(|(request, started)| Term::new(request, started)) }
    }

    /// Waits until permission is known to hold, which it mostly is. A watch that nobody polled for longer than the term,
    /// because its reader took no bytes, asks anew here, once. Cancel-safe.
    ///
    /// # Errors
    /// If permission was withdrawn or could not be confirmed.
    pub async fn confirm(&mut self) -> Result<(), Refusal> {
        match &mut self.term {
            Some(term) if term.started.elapsed() >= TERM => {
                // In a box, because it is rare, and room for it would be taken by every watch.
                let review = Box::pin(self.authorizer.review(&term.request, SHARED_AGE, For::Lease)).await;
                term.take(review)
            }
            _ => Ok(()),
        }
    }

    /// Until when [`Lease::end`] would only wait; `None`: for ever.
    pub fn next_step(&self) -> Option<Instant> {
        let step = |term: &Term| if term.renewal.is_some() { term.started } else { term.next_try };
        self.term.as_ref().map(|term| step(term).min(term.started + TERM))
    }

    /// Renews until that fails, or until the term is over without an answer. Cancel-safe: a review under way goes on with
    /// the next call.
    pub async fn end(&mut self) -> Refusal {
        let Some(term) = &mut self.term else { return std::future::pending().await };
        loop {
            let review = tokio::select! {
                // Time first: a reviewer that keeps answering too late must not hold a lease open.
                biased;
                () = sleep_until(term.started + TERM) => return Refusal::Unknown,
                review = term.renewal(&self.authorizer) => review,
            };
            match term.take(review) {
                Ok(()) => {}
                Err(Refusal::Unknown | Refusal::Exhausted) => term.next_try = Instant::now() + RETRY_AFTER,
                Err(denied @ Refusal::Denied(_)) => return denied,
            }
        }
    }
}

// === impl Term ===

impl Term {
    fn new(request: Arc<ReviewRequest>, started: Instant) -> Self {
        Self { request, started, next_try: started + RENEW_AFTER, renewal: None }
    }

    async fn renewal(&mut self, authorizer: &Arc<Authorizer>) -> Result<Review, Refusal> {
        sleep_until(self.next_try).await;
        let renewal = self.renewal.get_or_insert_with(|| {
            let (authorizer, request) = (Arc::clone(authorizer), Arc::clone(&self.request));
            let tasks = authorizer.renewals.clone();
            tasks.spawn(async move { authorizer.review(&request, SHARED_AGE, For::Lease).await })
        });
        let review = renewal.await;
        self.renewal = None;
        // A task that panicked found nothing out.
        review.unwrap_or(Err(Refusal::Unknown))
    }

    /// Begins the term that an answer stands for.
    fn take(&mut self, review: Result<Review, Refusal>) -> Result<(), Refusal> {
        let started = allowed(review?)?;
        *self = Self::new(Arc::clone(&self.request), started);
        Ok(())
    }
}
