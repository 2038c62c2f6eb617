//! What became of each batch, so that a test can compare what readers saw with what was accepted.

use serde_json::Value;

/// Everything sent so far, in the order in which batches were made.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The batches.
    pub batches: Vec<Batch>,
    /// Events that found the buffer full and were never sent, as JSON text.
    pub overflowed: Vec<String>,
}

/// One batch and what was answered to it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The events, as JSON text.
    pub events: Vec<String>,
    /// One for each time that the body was sent.
    pub answers: Vec<Answer>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What came back for one POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A status code.
    Status(u16),
    /// A transport error, or nothing in time.
    Failed(String),
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not known yet.
    Pending,
    /// Answered 200 to 206.
    Delivered,
    /// All attempts failed; upstream logs this, counts it and forgets the events.
    GivenUp,
}

impl Ledger {
    /// The events that were answered 200.
    pub fn delivered(&self) -> Vec<&str> {
        self.events(Outcome::Delivered)
    }

    /// The events that were given up.
    pub fn given_up(&self) -> Vec<&str> {
        self.events(Outcome::GivenUp)
    }

    /// The audit IDs of the events that were answered 200, where they have one.
    pub fn delivered_audit_ids(&self) -> Vec<String> {
        self.delivered().into_iter().filter_map(audit_id).collect()
    }

    /// The audit IDs of the events that were given up, where they have one.
    pub fn given_up_audit_ids(&self) -> Vec<String> {
        self.given_up().into_iter().filter_map(audit_id).collect()
    }

    /// How often any body was sent.
    pub fn posts(&self) -> usize {
        self.batches.iter().map(|batch| batch.answers.len()).sum()
    }

    fn events(&self, outcome: Outcome) -> Vec<&str> {
        let batches = self.batches.iter().filter(|batch| batch.outcome == outcome);
        batches.flat_map(|batch| batch.events.iter().map(String::as_str)).collect()
    }
}

fn audit_id(event: &str) -> Option<String> {
    Some(serde_json::from_str::<Value>(event).ok()?["auditID"].as_str()?.to_owned())
}
