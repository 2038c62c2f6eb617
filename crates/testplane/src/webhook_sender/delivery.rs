//! One batch on its way: attempts, back-off, and the retries within an attempt.
//!
//! Two loops, as upstream has them: `pkg/util/webhook` tries five times whatever went wrong, and inside each try
//! client-go's `rest/with_retry.go` obeys `Retry-After` up to ten times.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::ledger::{Answer, Batch, Ledger, Outcome};
use super::{Sending, lock};
use crate::events::event_list;
use crate::front_proxy::{Client, Response, request};

const FACTOR: f64 = 1.5;
const MAX_INNER_RETRIES: u32 = 10;

/// The headers of every batch; `Host`, `Content-Length` and the TLS certificate come from below.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("Accept", "application/json, */*"),
    ("Accept-Encoding", "gzip"),
    ("Content-Type", "application/json"),
    ("User-Agent", "kube-apiserver/v1.37.1 (linux/amd64) kubernetes/testplane"),
];

/// Sends batches and writes down what was answered.
#[derive(Clone)]
pub(super) struct Delivery {
    pub(super) client: Client,
    pub(super) sending: Arc<Sending>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

impl Delivery {
    /// Enters a batch into the ledger; the returned index is its name there.
    pub(super) fn enter(&self, events: Vec<String>) -> usize {
        let mut ledger = lock(&self.ledger);
        ledger.batches.push(Batch { events, answers: Vec::new(), outcome: Outcome::Pending });
        ledger.batches.len() - 1
    }

    /// Sends a batch of the ledger until it is accepted or given up.
    pub(super) async fn deliver(self, batch: usize) {
        let body = Bytes::from(event_list(&lock(&self.ledger).batches[batch].events));
        let note = |answer| lock(&self.ledger).batches[batch].answers.push(answer);
        let outcome = self.send(&body, &note).await;
        lock(&self.ledger).batches[batch].outcome = outcome;
    }

    /// Sends a body until it is accepted or given up, and tells each answer. Every POST carries the same bytes.
    pub(super) async fn send(&self, body: &Bytes, note: &(dyn Fn(Answer) + Sync)) -> Outcome {
        let attempts = || Box::pin(self.attempt_all(body, note));
        let was_accepted = if self.sending.doubled {
            let (one, other) = tokio::join!(attempts(), attempts());
            one || other
        } else {
            attempts().await
        };
        if was_accepted { Outcome::Delivered } else { Outcome::GivenUp }
    }

    async fn attempt_all(&self, body: &Bytes, note: &(dyn Fn(Answer) + Sync)) -> bool {
        let mut backoff = self.sending.initial_backoff;
        let mut may_lose_answer = self.sending.answers_lost;
        let mut was_accepted = false;
        for attempt in 0..self.sending.attempts {
            if attempt > 0 {
                // Upstream adds up to a fifth at random; tests are better off without.
                sleep(backoff).await;
                backoff = backoff.mul_f64(FACTOR);
            }
            let is_accepted = self.attempt(body, note).await;
            was_accepted |= is_accepted;
            // The server has the batch, but its answer never arrives: a duplicate follows.
            if is_accepted && !std::mem::take(&mut may_lose_answer) {
                break;
            }
        }
        was_accepted
    }

    async fn attempt(&self, body: &Bytes, note: &(dyn Fn(Answer) + Sync)) -> bool {
        let within = self.sending.attempt_timeout;
        let accepted = timeout(within, self.post_obediently(body, note)).await;
        accepted.unwrap_or_else(|_| {
            note(Answer::Failed(format!("no answer within {within:?}")));
            false
        })
    }

    async fn post_obediently(&self, body: &Bytes, note: &(dyn Fn(Answer) + Sync)) -> bool {
        let mut retries = 0;
        loop {
            let response = match self.post(body).await {
                Ok(response) => response,
                Err(error) => {
                    note(Answer::Failed(format!("{error:#}")));
                    return false;
                }
            };
            note(Answer::Status(response.status));
            match retry_after(&response) {
                Some(seconds) if retries < MAX_INNER_RETRIES => {
                    retries += 1;
                    sleep(Duration::from_secs(seconds).mul_f64(self.sending.retry_after_scale)).await;
                }
                _ => return matches!(response.status, 200..=206),
            }
        }
    }

    pub(super) async fn post(&self, body: &Bytes) -> Result<Response> {
        self.client.send(request("POST", &self.sending.path, HEADERS, body.clone())?).await
    }
}

// Only whole seconds count, as in client-go; an HTTP date is no Retry-After to it.
fn retry_after(response: &Response) -> Option<u64> {
    let may_wait = response.status == 429 || response.status >= 500;
    response.header("retry-after").filter(|_| may_wait)?.parse().ok()
}
