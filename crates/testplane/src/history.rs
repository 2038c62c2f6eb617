//! One run as it was seen from outside, and whether that is what `docs/API.md` promises.
//!
//! A [`History`] is what senders had accepted and what each reader received: plain data, written down while the run lasts
//! and judged afterwards, as etcd's robustness tests do it. The validators know nothing of the server but its promises.
//! [`crate::recording`] has the clients that write histories.
//!
//! What a history is good for is bounded by what it tells apart: no two events of its ledger may have the same bytes, nor
//! look the same on `namespacedevents`; nothing but its ledger may be sent; and as on `events` each event is expected
//! byte by byte, its events are at level `Metadata`, for the bodies of some are withheld and of others truncated.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};

use crate::events::hostile::Generated;

mod examined;
mod frame;
#[cfg(test)]
mod tests;
pub mod validators;
mod view;

pub use examined::Examined;
pub use frame::{Added, Bookmark, Frame, Gap};
pub use validators::{Rule, Violation, Violations};

/// What happened in one run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was sent, in the order in which it was answered.
    pub batches: Vec<Batch>,
    /// What was received, one for each reader.
    pub transcripts: Vec<Transcript>,
}

/// One batch, however often its bytes were sent.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Who sent it, as in `/webhook/{source}`.
    pub source: String,
    /// Its events, in their order.
    pub events: Vec<Sent>,
    /// Before its first byte was sent.
    pub first_sent: Moment,
    /// After the first answer that accepted it. `None`: it never was, and its events may have been published or not.
    pub accepted: Option<Moment>,
    /// How often its bytes were sent.
    pub sends: usize,
}

/// One event that was sent, and the truth about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its bytes: what it is known by. Audit IDs are their clients' to choose.
    pub json: String,
    /// The namespace whose readers may see it. `None`: readers of the whole cluster alone.
    pub namespace: Option<String>,
}

/// What one reader received: somebody who, each time that the stream ends, goes on from where they were, or from now.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// A name for messages.
    pub reader: String,
    /// Whose events.
    pub scope: Scope,
    /// Which of them; `None` means all.
    pub selector: Option<Selector>,
    /// Which bookmarks were asked for.
    pub bookmarks: Bookmarks,
    /// The connections, one after the other.
    pub sessions: Vec<Session>,
}

/// Whose events a watch is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `events`.
    Cluster,
    /// `namespacedevents`, of every namespace.
    AllNamespaces,
    /// `namespacedevents`, of this one.
    Namespace(String),
}

/// A field selector of one term, by equality.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// What is compared.
    pub field: Field,
    /// What with.
    pub value: String,
}

/// A field to select by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `user.username`.
    Username,
    /// `verb`.
    Verb,
    /// `auditID`.
    AuditId,
}

/// Which bookmarks a watch asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bookmarks {
    /// None.
    No,
    /// `allowWatchBookmarks`.
    Allowed,
    /// The same, and `sendInitialEvents` where a session begins now.
    WithInitialEvents,
}

/// One connection of a reader.
#[derive(Debug, Clone)]
pub struct Session {
    /// Where it was asked to begin.
    pub start: Start,
    /// After the answer's headers were there: what is sent later is in the session.
    pub opened: Moment,
    /// What came, in order.
    pub frames: Vec<Frame>,
    /// How it ended.
    pub end: End,
}

/// Where a session was asked to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// No `resourceVersion`.
    Now,
    /// This `resourceVersion`.
    After(u64),
}

/// How a session ended. An error of the server is its last frame, before a clean end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By the end of the stream.
    Clean,
    /// The reader left.
    Cut,
    /// The connection broke, for this reason.
    Broken(String),
}

/// A point of a run's logical time. Of two moments the one that was taken first is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// The logical clock of one run, shared by all its clients.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

// === impl Clock ===

impl Clock {
    /// This moment, which no other call returns.
    pub fn now(&self) -> Moment {
        Moment(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

// === impl History ===

impl History {
    /// The history of batches, in any order, and of readers.
    pub fn new(mut batches: Vec<Batch>, transcripts: Vec<Transcript>) -> Self {
        batches.sort_by_key(|batch| (batch.accepted.is_none(), batch.accepted));
        Self { batches, transcripts }
    }

    /// Whether there was enough in this run for its judgement to mean anything.
    ///
    /// # Errors
    /// If fewer events than `min_events` were accepted, or fewer than `min_deliveries` received by all readers together,
    /// or if a reader received nothing, not even a bookmark: nothing could be missing from that.
    pub fn worth_checking(&self, min_events: usize, min_deliveries: usize) -> Result<()> {
        let accepted = self.batches.iter().filter(|batch| batch.accepted.is_some());
        let events: usize = accepted.map(|batch| batch.events.len()).sum();
        ensure!(events >= min_events, "no more than {events} events were accepted, and {min_events} are wanted");
        let mut deliveries = 0;
        for Transcript { reader, sessions, .. } in &self.transcripts {
            let frames = || sessions.iter().flat_map(|session| &session.frames);
            ensure!(frames().any(|frame| frame.place().is_some()), "reader {reader} received nothing");
            deliveries += frames().filter(|frame| matches!(frame, Frame::Added(_))).count();
        }
        ensure!(
            deliveries >= min_deliveries,
            "no more than {deliveries} events were received, and {min_deliveries} are wanted"
        );
        Ok(())
    }

    /// Asks every validator, and returns what each of them has to say.
    ///
    /// # Errors
    /// The first violation that each validator found.
    pub fn validate(&self) -> Result<(), Violations> {
        let violations = match Examined::new(self) {
            Ok(run) => validators::ALL.iter().filter_map(|validator| validator(&run).err()).collect(),
            Err(violation) => vec![violation],
        };
        if violations.is_empty() { Ok(()) } else { Err(Violations(violations)) }
    }
}

// === impl Batch, Sent ===

impl From<Generated> for Sent {
    fn from(Generated { json, namespace, .. }: Generated) -> Self {
        Self { json, namespace }
    }
}

// === impl Scope, Selector, Bookmarks ===

impl Scope {
    /// The path of a watch, and the beginning of its query.
    pub fn path(&self) -> String {
        match self {
            Self::Cluster => "/apis/audit.k8s.io/v1/events?watch=true".to_owned(),
            Self::AllNamespaces => "/apis/audit.k8s.io/v1/namespacedevents?watch=true".to_owned(),
            Self::Namespace(name) => format!("/apis/audit.k8s.io/v1/namespaces/{name}/namespacedevents?watch=true"),
        }
    }

    /// Whether its watches are of `namespacedevents`.
    pub fn is_namespaced(&self) -> bool {
        *self != Self::Cluster
    }

    /// Whether an event of this namespace, or of none, is in it.
    pub fn includes(&self, namespace: Option<&str>) -> bool {
        match self {
            Self::Cluster => true,
            Self::AllNamespaces => namespace.is_some(),
            Self::Namespace(name) => namespace == Some(name),
        }
    }
}

impl Field {
    /// Its name in a field selector.
    pub fn name(self) -> &'static str {
        match self {
            Self::Username => "user.username",
            Self::Verb => "verb",
            Self::AuditId => "auditID",
        }
    }
}

impl fmt::Display for Selector {
    /// As a field selector is written, before it is encoded for a query. `=`, `,` and `\` of the value are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.field.name())?;
        for character in self.value.chars() {
            if matches!(character, '\\' | ',' | '=') {
                f.write_str("\\")?;
            }
            write!(f, "{character}")?;
        }
        Ok(())
    }
}

// === impl Session ===

impl Session {
    /// The place where it was last known to be: of its last frame that has one.
    pub fn last_place(&self) -> Option<u64> {
        self.frames.iter().rev().find_map(Frame::place)
    }

    /// The code of the error that ended it.
    pub fn error(&self) -> Option<u16> {
        match self.frames.last() {
            Some(Frame::Error { code }) => Some(*code),
            _ => None,
        }
    }
}
