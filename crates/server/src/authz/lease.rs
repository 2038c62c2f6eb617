//! Until when a reader's permission is known to hold.
//!
//! Upstream asks once, when a watch is opened; a reader whose right is withdrawn then reads on for up to an hour. Here the
//! question is repeated while the watch is open, and no byte leaves after the time for which the last answer stands.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::{Authorizer, Grant, REVIEW_TIMEOUT, Refusal, Review, ReviewRequest};

/// A review stands for this long after it was asked for.
const TERM: Duration = Duration::from_secs(20);

/// When to ask again: leaves time for several tries before the term is over.
const RENEW_AFTER: Duration = Duration::from_secs(8);

/// Between two tries where the reviewer does not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Watches of one reader come up for renewal together; they share a review that is no older than this.
const SHARED_AGE: Duration = Duration::from_secs(2);

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
    /// When the first attempt to follow it up was made.
    first_try: Option<Instant>,
    next_try: Instant,
    /// Kept here and not on a caller's stack: the caller drops its wait whenever an event comes first.
    renewal: Option<BoxFuture<'static, Result<Review, Refusal>>>,
}

/// Why a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEnd {
    /// The reviewer said no, for this reason or none.
    Withdrawn(String),
    /// The reviewer did not answer in time.
    Unconfirmed,
}

// === impl Lease ===

impl Lease {
    /// Begins with the review that the grant came from.
    pub fn new(authorizer: Arc<Authorizer>, grant: Grant) -> Self {
        Self { authorizer, term: grant.reviewed.map(|(request, started)| Term::new(request, started)) }
    }

    /// Waits until permission is known to hold, which it mostly is. A watch that nobody polled for longer than the term,
    /// because its reader took no bytes, asks anew here. Cancel-safe.
    ///
    /// # Errors
    /// If permission was withdrawn or could not be confirmed.
    pub async fn confirm(&mut self) -> Result<(), LeaseEnd> {
        match &mut self.term {
            Some(term) if !term.holds() => term.renew(&self.authorizer).await,
            _ => Ok(()),
        }
    }

    /// Renews until that fails. Cancel-safe: a review under way goes on with the next call.
    pub async fn end(&mut self) -> LeaseEnd {
        let Some(term) = &mut self.term else { return std::future::pending().await };
        loop {
            if let Err(end) = term.renew(&self.authorizer).await {
                return end;
            }
        }
    }
}

// === impl Term ===

impl Term {
    fn new(request: Arc<ReviewRequest>, started: Instant) -> Self {
        Self { request, started, first_try: None, next_try: started + RENEW_AFTER, renewal: None }
    }

    fn holds(&self) -> bool {
        self.started.elapsed() < TERM
    }

    /// Waits until a renewal is due and for its success.
    async fn renew(&mut self, authorizer: &Arc<Authorizer>) -> Result<(), LeaseEnd> {
        loop {
            let give_up = self.give_up();
            let outcome = tokio::select! {
                // Time first: a reviewer that keeps answering too late must not hold a lease open.
                biased;
                () = sleep_until(give_up) => return Err(LeaseEnd::Unconfirmed),
                outcome = self.attempt(authorizer) => outcome,
            };
            match outcome {
                Ok(Review { denied: None, started }) => {
                    *self = Self::new(Arc::clone(&self.request), started);
                    return Ok(());
                }
                Ok(Review { denied: Some(reason), .. }) => return Err(LeaseEnd::Withdrawn(reason.to_string())),
                Err(_) => self.next_try = Instant::now() + RETRY_AFTER,
            }
        }
    }

    /// The end of the term; later only where nobody was there to try before it, who then gets one review's time.
    fn give_up(&mut self) -> Instant {
        let (now, expiry) = (Instant::now(), self.started + TERM);
        if now >= self.next_try {
            self.first_try.get_or_insert(now);
        }
        match self.first_try {
            Some(first_try) if first_try >= expiry => first_try + REVIEW_TIMEOUT,
            _ => expiry,
        }
    }

    async fn attempt(&mut self, authorizer: &Arc<Authorizer>) -> Result<Review, Refusal> {
        sleep_until(self.next_try).await;
        self.first_try.get_or_insert_with(Instant::now);
        let renewal = self.renewal.get_or_insert_with(|| {
            let (authorizer, request) = (Arc::clone(authorizer), Arc::clone(&self.request));
            async move { authorizer.review(&request, SHARED_AGE).await }.boxed()
        });
        let outcome = renewal.await;
        self.renewal = None;
        outcome
    }
}
