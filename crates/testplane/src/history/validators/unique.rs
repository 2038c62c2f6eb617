//! Once and verbatim: no reader sees an event twice, and every event that it sees was sent.

use std::collections::HashSet;

use super::{Rule, Violation};
use crate::history::Examined;

/// Each reader receives an event once, as it was sent.
///
/// A reader receives no place and no event twice over all its sessions. What an event is, its bytes say, for clients
/// choose audit IDs. Each event that it receives was sent: on `events` its bytes are those that were sent; on
/// `namespacedevents` it shows of them what is shown, and no more.
///
/// # Errors
/// The first event that is there twice, or that nobody sent.
pub fn unique(run: &Examined<'_>) -> Result<(), Violation> {
    for reader in run.readers() {
        let (mut places, mut events) = (HashSet::new(), HashSet::new());
        let is_namespaced = reader.transcript.scope.is_namespaced();
        for (session, delivery) in reader.deliveries() {
            let added = delivery.added;
            let violation = |expected: String| reader.violation(Rule::Unique, session, Some(added.place), expected);
            if added.is_namespaced != is_namespaced {
                return Err(violation("an object of the other kind".to_owned()));
            }
            let Some(event) = delivery.event else {
                let line = added.line();
                let start = String::from_utf8_lossy(&line[..line.len().min(2_000)]);
                return Err(violation(format!("an event that was sent, as it was sent, and not {start}")));
            };
            if !places.insert(added.place) {
                return Err(violation("each place once".to_owned()));
            }
            if !events.insert(event) {
                return Err(violation(format!("{} once", run.event(event).name())));
            }
        }
    }
    Ok(())
}
