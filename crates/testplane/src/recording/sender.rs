//! A source of batches that remembers what was accepted.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::events::event_list;
use crate::front_proxy::Target;
use crate::history::{Batch, Clock, Moment, Sent};
use crate::webhook_sender::{Answer, Outcome, Sending, WebhookSender};

/// One kube-apiserver, which posts to `/webhook/{source}` and keeps the ledger of what it posted.
pub struct RecordingSender {
    source: String,
    sender: WebhookSender,
    clock: Clock,
    batches: Mutex<Vec<Batch>>,
}

/// What came back for one batch so far.
#[derive(Default)]
struct Answers {
    accepted: Option<Moment>,
    count: usize,
}

impl RecordingSender {
    /// Connects to `target`. How batches are sent, sent again and doubled is `sending`'s to say, but for the path.
    ///
    /// # Errors
    /// As [`WebhookSender::start`].
    pub async fn start(clock: &Clock, target: Target, source: &str, sending: Sending) -> Result<Self> {
        let sending = Sending { path: format!("/webhook/{source}"), ..sending };
        let sender = WebhookSender::start(target, sending).await?;
        Ok(Self { source: source.to_owned(), sender, clock: clock.clone(), batches: Mutex::default() })
    }

    /// Sends a batch until it is accepted or given up, each time the same bytes, and enters it into the ledger. Batches
    /// that are sent side by side arrive in any order.
    pub async fn send(&self, events: Vec<Sent>) -> Outcome {
        let body = body(&events);
        let first_sent = self.clock.now();
        let answers = Mutex::<Answers>::default();
        let note = |answer| {
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.count += 1;
            if matches!(answer, Answer::Status(200..=206)) {
                answers.accepted.get_or_insert_with(|| self.clock.now());
            }
        };
        let outcome = self.sender.deliver(body, &note).await;
        let Answers { accepted, count } = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let batch = Batch { source: self.source.clone(), events, first_sent, accepted, sends: count };
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        outcome
    }

    /// Begins to send a batch and breaks off in the middle of it: nothing of it may be published, and the ledger does not
    /// know of it.
    ///
    /// # Errors
    /// If the server does not answer with a refusal.
    pub async fn break_off(&self, events: &[Sent]) -> Result<()> {
        let body = body(events);
        let post = self.sender.raw().header("Content-Type", "application/json").declared_length(body.len());
        let answer = post.body(&body[..body.len() / 2]).then_close().send().await?;
        match answer.status {
            400..=499 => Ok(()),
            status => bail!("half a batch was answered with {status}: {}", answer.body),
        }
    }

    /// What was sent, for a history.
    pub fn finish(self) -> Vec<Batch> {
        self.batches.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn body(events: &[Sent]) -> String {
    event_list(&events.iter().map(|sent| &*sent.json).collect::<Vec<_>>())
}
