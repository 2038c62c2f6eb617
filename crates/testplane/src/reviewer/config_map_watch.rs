//! The body of a watch on the `ConfigMap`: state first if asked for, then changes, with bookmarks between them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::state::State;

// Upstream's are a minute apart; tests do not wait for that.
const BOOKMARK_EVERY: Duration = Duration::from_secs(1);
// Upstream's default, where the client states none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// What the client asked for.
pub(super) struct Asked {
    /// Absent or 0: the current state first.
    pub(super) revision: Option<u64>,
    pub(super) initial_events: bool,
    pub(super) bookmarks: bool,
    pub(super) timeout: Option<Duration>,
}

struct Cursor {
    state: Arc<State>,
    changed: watch::Receiver<u64>,
    revision: u64,
    pending: VecDeque<Value>,
    bookmarks: bool,
    bookmark_at: Instant,
    ends_at: Instant,
    ended: bool,
}

/// The frames, one line each.
pub(super) fn lines(state: Arc<State>, asked: &Asked) -> impl Stream<Item = Bytes> + Send + 'static {
    unfold(Cursor::new(state, asked), Cursor::next)
}

impl Cursor {
    fn new(state: Arc<State>, asked: &Asked) -> Self {
        let changed = state.config_map.subscribe();
        let (current_revision, current) = state.config_map.current();
        let from = asked.revision.filter(|&revision| revision > 0);
        let mut pending = VecDeque::new();
        if from.is_none() || asked.initial_events {
            pending.extend(current.map(|object| json!({"type": "ADDED", "object": object})));
        }
        if asked.initial_events {
            pending.push_back(bookmark(current_revision, true));
        }
        let revision = from.filter(|_| !asked.initial_events).unwrap_or(current_revision);
        let ended = state.config_map.is_expired(revision);
        if ended {
            pending = VecDeque::from([expired(revision, current_revision)]);
        }
        let (now, timeout) = (Instant::now(), asked.timeout.unwrap_or(DEFAULT_TIMEOUT));
        let (bookmark_at, ends_at) = (now + BOOKMARK_EVERY, now + timeout);
        Self { state, changed, revision, pending, bookmarks: asked.bookmarks, bookmark_at, ends_at, ended }
    }

    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Some((Bytes::from(format!("{frame}\n")), self));
            }
            if self.ended {
                return None;
            }
            if let Some(change) = self.state.config_map.after(self.revision) {
                self.revision = change.revision;
                self.pending.push_back(change.frame);
                continue;
            }
            tokio::select! {
                changed = self.changed.changed() => self.ended = changed.is_err(),
                () = sleep_until(self.ends_at) => self.ended = true,
                () = sleep_until(self.bookmark_at), if self.bookmarks => {
                    self.bookmark_at += BOOKMARK_EVERY;
                    self.pending.push_back(bookmark(self.revision, false));
                }
            }
        }
    }
}

fn bookmark(revision: u64, initial_events_end: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_events_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}})
}

fn expired(revision: u64, current: u64) -> Value {
    let message = format!("too old resource version: {revision} ({current})");
    json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "Expired", "code": 410}})
}
