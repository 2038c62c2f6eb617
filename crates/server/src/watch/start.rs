//! Where a watch begins: now, after a place that the reader names, or with what is replayed.
//!
//! The floor of both is the creation of the reader's namespace: its new owner does not see what happened to the old one.

use std::ops::ControlFlow;

use audit_stream_api::Sequence;
use audit_stream_api::query::Replay;
use audit_stream_bus::{Bus, Entry, NotRetained};

use super::class::{BATCHES_AT_ONCE, ClassKey};
use super::frames::place;
use crate::ingest::batch::Batch;

/// `place`, if what came since is retained and the reader's to see.
///
/// # Errors
/// If this bus did not issue the place, does not retain all that follows, or the namespace was created since. Cancel-safe.
pub(super) async fn after(bus: &Bus<Batch>, key: &ClassKey, asked: Sequence) -> Result<Sequence, NotRetained> {
    bus.check(asked)?;
    let Some(namespace) = &key.route.namespace else { return Ok(asked) };
    let floor = walk_back(bus, |entry| match creation(entry, namespace) {
        _ if entry.last() <= asked => ControlFlow::Break(asked),
        Some(created) => ControlFlow::Break(created.previous().max(asked)),
        None => ControlFlow::Continue(asked),
    });
    match floor.await {
        floor if floor > asked => Err(NotRetained { oldest: bus.issued_before(floor.plus(1)) }),
        _ => Ok(asked),
    }
}

/// The place after which everything comes that is to be replayed. Cancel-safe.
pub(super) async fn replay(bus: &Bus<Batch>, key: &ClassKey, replay: Replay) -> Sequence {
    let Replay { since, mut tail } = replay;
    if tail == Some(0) {
        return bus.head();
    }
    let visit = |entry: &Entry<Batch>| {
        if since.is_some_and(|since| entry.age() > since) {
            return ControlFlow::Break(entry.last());
        }
        let created = key.route.namespace.as_ref().and_then(|namespace| creation(entry, namespace));
        if let Some(tail) = &mut tail {
            let mut places = key.places(entry);
            places.retain(|place| Some(*place) >= created);
            match usize::try_from(*tail).ok().and_then(|wanted| places.len().checked_sub(wanted)) {
                Some(first) => return ControlFlow::Break(places[first].previous()),
                None => *tail -= places.len() as u64,
            }
        }
        match created {
            Some(created) => ControlFlow::Break(created.previous()),
            None => ControlFlow::Continue(entry.first().previous()),
        }
    };
    // A place that was issued, so that a reader can come back to it.
    bus.issued_before(walk_back(bus, visit).await.plus(1))
}

/// The place of the last event in a batch that says that the namespace was created.
fn creation(entry: &Entry<Batch>, namespace: &str) -> Option<Sequence> {
    let created = entry.payload().created_namespaces().filter(|(_, name)| *name == namespace);
    created.last().map(|(index, _)| place(entry, index))
}

/// Visits the retained batches from the newest on, until one breaks off, and returns what the last visit did.
async fn walk_back(
    bus: &Bus<Batch>,
    mut visit: impl FnMut(&Entry<Batch>) -> ControlFlow<Sequence, Sequence>,
) -> Sequence {
    let mut before = bus.head();
    let mut result = before;
    for visited in 1.. {
        // Not held while others have their turn: it may be evicted meanwhile.
        let visit = bus.up_to(before).map(|entry| {
            before = entry.first().previous();
            visit(&entry)
        });
        match visit {
            None => break,
            Some(ControlFlow::Break(place)) => return place,
            Some(ControlFlow::Continue(place)) => result = place,
        }
        if visited % BATCHES_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
    }
    result
}
