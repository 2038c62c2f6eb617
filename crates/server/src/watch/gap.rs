//! Events that a reader was entitled to and did not get, until they are told.

use audit_stream_api::Sequence;
use audit_stream_api::object::{Gap, GapReason};

/// What is still to be told. One announcement reaches from its first cause to the place where it is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingGap {
    /// The first cause.
    pub(super) reason: GapReason,
    /// The first place that was missed.
    pub(super) from: Sequence,
    /// How many events of the reader's own class; `None` if nobody knows.
    count: Option<u64>,
}

impl PendingGap {
    /// Adds to what is pending.
    pub(super) fn note(pending: &mut Option<Self>, reason: GapReason, from: Sequence, count: Option<u64>) {
        match pending {
            None => *pending = Some(Self { reason, from, count }),
            Some(gap) => gap.count = gap.count.zip(count).map(|(before, more)| before + more),
        }
    }

    /// The value of the annotation.
    pub(super) fn announcement(self) -> String {
        let Self { reason, from, count } = self;
        let gap = Gap { count, truncated: 0, reason, since: time_of(from) };
        serde_json::to_string(&gap).expect("numbers and strings always serialise")
    }
}

/// About when a place was issued: places are made from the clock.
fn time_of(place: Sequence) -> String {
    let micros = i64::try_from(place.get()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX).to_string()
}
