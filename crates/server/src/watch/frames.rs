//! From selected events to bytes: pieces of whole frames, charged to one budget until the last who holds them lets go.
//!
//! A piece is what a connection is handed at once. It knows neither classes nor readers.

use std::sync::Arc;

use audit_stream_api::object::{self, ObjectMeta};
use audit_stream_api::{Sequence, Version};
use audit_stream_bus::Entry;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ingest::batch::{Batch, StoredEvent};
use crate::view::View;

/// A piece ends before the frame that would make it larger: so large that handing it over costs little beside sending it, so small
/// that a reader who takes no more pins little. A single frame that is larger is a piece of its own.
///
/// rustls takes 64 KiB at a time, so this is two writes: over HTTP/1.1 with the line before it and the line break behind it.
pub(super) const PIECE_BYTES: usize = 128 * 1024 - 16;

/// What a frame has, at most, beyond what its event decides: 200 bytes of keys and braces, a kind of 15 and a version of 8, and the
/// event's place, of 20 digits, in a name and as `resourceVersion`.
const FRAME_OVERHEAD: usize = 272;

/// What a gap's annotation has beyond the gap.
const GAP_OVERHEAD: usize = 32;

/// How many bytes of frames there may be, written and not yet taken by a connection, of all watches together.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// One for each byte.
    permits: Arc<Semaphore>,
    bytes: usize,
}

/// A part of the budget.
#[derive(Debug)]
pub(super) struct Charge(OwnedSemaphorePermit);

/// An event of a batch.
#[derive(Debug)]
pub(super) struct Selected {
    /// The batch.
    pub(super) entry: Arc<Entry<Batch>>,
    /// The event's index in it.
    pub(super) index: u32,
}

/// Frames that are handed to a connection at once.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Shared with every reader that is handed the same.
    pub(super) bytes: Bytes,
    /// The place of its last event.
    pub(super) last: Sequence,
    /// How many.
    pub(super) events: u64,
}

/// Bytes that give back their part of the budget when nobody holds them any more, neither a class nor a connection.
struct Charged {
    bytes: Vec<u8>,
    _charge: Charge,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// A part of what is left, if that much is.
    pub(super) fn try_charge(&self, bytes: usize) -> Option<Charge> {
        Arc::clone(&self.permits).try_acquire_many_owned(self.permits_for(bytes)).ok().map(Charge)
    }

    /// The same, as soon as that much is left. First come, first served. Cancel-safe, but the place in the queue is lost.
    pub(super) async fn charge(&self, bytes: usize) -> Charge {
        let permits = Arc::clone(&self.permits).acquire_many_owned(self.permits_for(bytes)).await;
        Charge(permits.expect("this semaphore is never closed"))
    }

    /// Whether a charge is enough for so many bytes.
    pub(super) fn covers(&self, charge: &Charge, bytes: usize) -> bool {
        charge.0.num_permits() >= bytes.min(self.bytes)
    }

    /// Bytes in use now.
    pub(super) fn used(&self) -> usize {
        self.bytes.saturating_sub(self.permits.available_permits())
    }

    /// What is larger than all of the budget takes all of it, and is written alone.
    fn permits_for(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX)
    }
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

// === impl Selected ===

impl Selected {
    pub(super) fn event(&self) -> StoredEvent<'_> {
        self.entry.payload().event(self.index)
    }

    pub(super) fn place(&self) -> Sequence {
        place(&self.entry, self.index)
    }
}

/// The place of a batch's event.
pub(super) fn place(entry: &Entry<Batch>, index: u32) -> Sequence {
    entry.first().plus(entry.payload().place_of(index))
}

/// The indices of a batch's events whose places come after `at`.
pub(super) fn indices_after(entry: &Entry<Batch>, at: Sequence) -> std::ops::Range<u32> {
    let all = entry.payload().indices();
    let passed = at.plus(1).get().saturating_sub(place(entry, 0).get());
    u32::try_from(passed).map_or(all.end, |passed| passed.min(all.end))..all.end
}

/// What an event's frame takes at most, but close to it unless a masked URI has escapes: a piece is cut by the sum, and what is less
/// of one is not used. A gap on it takes [`gap_bytes`] more.
pub(super) fn frame_bytes(view: View, event: StoredEvent<'_>) -> usize {
    let labels = [event.namespace(), event.creation_timestamp()].into_iter().flatten().map(str::len).sum::<usize>();
    let names = event.withheld_names(view).map(|name| object::max_json_bytes(&name)).sum::<usize>();
    FRAME_OVERHEAD + event.max_fields_bytes(view) + labels + names
}

/// What a gap takes at most on a frame.
pub(super) fn gap_bytes(gap: &str) -> usize {
    GAP_OVERHEAD + object::max_json_bytes(gap)
}

/// Writes the frames of events, of which there is one at least; a gap is told on the first. `bytes` are the sum of their
/// [`frame_bytes`], and what the gap takes, and what was charged is that or more.
pub(super) fn write(
    view: View,
    version: Version,
    events: &[Selected],
    bytes: usize,
    charge: Charge,
    mut gap: Option<&str>,
) -> Piece {
    let resource = view.resource();
    let (mut out, mut withheld) = (Vec::with_capacity(bytes), String::new());
    for selected in events {
        let event = selected.event();
        withheld.clear();
        for name in event.withheld_names(view) {
            withheld.push_str(if withheld.is_empty() { "" } else { "," });
            withheld.push_str(&name);
        }
        let meta = ObjectMeta {
            namespace: event.namespace().filter(|_| resource.namespaced()),
            sequence: selected.place(),
            creation_timestamp: event.creation_timestamp(),
            withheld: Some(&*withheld).filter(|names| !names.is_empty()),
            gap: gap.take(),
        };
        object::write_added(&mut out, resource, version, meta, |out| event.write_fields(view, out));
    }
    debug_assert!(out.len() <= bytes, "a frame is larger than its bound: {} of {bytes} bytes", out.len());
    Piece {
        bytes: Bytes::from_owner(Charged { bytes: out, _charge: charge }),
        last: events.last().expect("there is one at least").place(),
        events: events.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use audit_stream_api::Resource;

    use super::*;

    #[test]
    fn a_frames_bound_is_the_longest_frame() {
        let written = |version, gap| {
            let mut out = Vec::new();
            let (sequence, empty) = (Sequence::new(u64::MAX), Some(""));
            let meta = ObjectMeta { namespace: empty, sequence, creation_timestamp: empty, withheld: empty, gap };
            object::write_added(&mut out, Resource::NamespacedEvents, version, meta, |_| {});
            out.len()
        };
        let bound = FRAME_OVERHEAD + object::max_json_bytes("");
        let longest = Version::ALL.map(|version| written(version, None)).into_iter().max().unwrap();
        assert!((bound - 16..=bound).contains(&longest), "{longest} of {bound}");
        for gap in ["{}", r#"{"count":7,"since":"2026-11-20T00:00:00Z"}"#] {
            let of_gap = written(Version::V1, Some(gap)) - written(Version::V1, None);
            assert!((of_gap..of_gap + 256).contains(&gap_bytes(gap)), "{of_gap} of {}", gap_bytes(gap));
        }
    }
}
