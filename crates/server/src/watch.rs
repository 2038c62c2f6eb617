//! From the bus to one reader: what a watch yields, and when it ends.
//!
//! A watch is pulled by its connection: nothing runs for a reader that takes nothing. It decides neither who may read
//! (`authz`) nor which bytes an event is (`class`), and it knows no HTTP.

pub mod class;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use audit_stream_api::frame::{self, Bookmark};
use audit_stream_api::object::{Gap, GapReason};
use audit_stream_api::query::WatchOptions;
use audit_stream_api::{Resource, Route, Sequence};
use audit_stream_bus::{Bus, Cursor, Delivery, Lagged, Start};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::authz::{Attributes, Lease, Refusal};
use crate::ingest::batch::Batch;
use crate::metrics::{WatchMetrics, count};
use crate::rejection::Rejection;
use crate::view;
pub use class::ClassKey;
use class::{Class, Classes};

/// The most that is handed to a connection at once: large enough that framing costs nothing, small enough that a slow
/// reader's connection holds little of it.
const PIECE_BYTES: usize = 256 * 1024;

/// Upstream's watch cache sends a bookmark about once a minute.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Upstream ends a watch whose client gave no timeout after a random time between these two, and so spreads reconnects.
const DEFAULT_TIMEOUT: (Duration, Duration) = (Duration::from_secs(30 * 60), Duration::from_secs(60 * 60));

/// Opens watches and bounds how many there are.
#[derive(Debug)]
pub struct Watches {
    bus: Arc<Bus<Batch>>,
    classes: Classes,
    slots: Arc<Semaphore>,
    closing: CancellationToken,
    metrics: WatchMetrics,
    /// Whether a watch may begin with what is retained.
    pub replay: bool,
}

/// Who reads: for the words of a refusal, and for the log.
#[derive(Debug)]
pub struct Reader {
    /// The user's name.
    pub username: String,
    /// What they were granted.
    pub attributes: Attributes,
    /// Joins the log with the cluster's audit log.
    pub audit_id: String,
}

/// One open watch. Dropping it ends it.
pub struct Watch {
    reader: Reader,
    class: Arc<Class>,
    cursor: Cursor<Batch>,
    lease: Lease,
    /// Whether BOOKMARK frames may be sent.
    bookmarks: bool,
    /// Whether the reader wants everything after a place or an error, rather than a gap.
    strict: bool,
    closing: CancellationToken,
    deadline: Instant,
    next_bookmark: Instant,
    gap: Option<PendingGap>,
    /// Written for the reader and not yet taken: a batch's frames, and at most a bookmark before them.
    unread: VecDeque<Bytes>,
    /// Why the watch ends when `unread` has been taken; `None` while it goes on.
    ending: Option<&'static str>,
    metrics: WatchMetrics,
    _slot: OwnedSemaphorePermit,
}

/// Events that were missed and not yet told of: why, and since which place.
#[derive(Debug, Clone, Copy)]
struct PendingGap {
    reason: GapReason,
    from: Sequence,
}

/// What a watch was waiting for.
enum Wake {
    Batch(Delivery<Batch>),
    Lagged(Lagged),
    Bookmark,
    LeaseEnd(Refusal),
    Timeout,
    Closing,
}

// === impl Watches ===

impl Watches {
    /// At most `max_watches` at a time; all end when `closing` is cancelled.
    pub fn new(bus: Arc<Bus<Batch>>, max_watches: usize, closing: CancellationToken, metrics: WatchMetrics) -> Self {
        let slots = Arc::new(Semaphore::new(max_watches));
        Self { bus, classes: Classes::default(), slots, closing, metrics, replay: true }
    }

    /// Opens a watch. A place that is no longer retained, or never was, is told in its first frame, as upstream does.
    ///
    /// # Errors
    /// If the selector asks for what the reader may not see, a replay for what nobody may, or there are too many watches.
    pub fn open(
        &self,
        key: ClassKey,
        options: &WatchOptions,
        lease: Lease,
        reader: Reader,
    ) -> Result<Watch, Rejection> {
        check_selector(&key)?;
        if options.replay.is_some() && !self.replay {
            return Err(Rejection::ReplayOff);
        }
        if self.closing.is_cancelled() {
            return Err(Rejection::ShuttingDown);
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Rejection::TooManyWatches)?;
        let start = options.resource_version.map_or(Start::Now, Start::After);
        let (cursor, expired) = match self.bus.subscribe(start) {
            Ok(cursor) => (cursor, None),
            Err(not_retained) => {
                let now = self.bus.subscribe(Start::Now).expect("now is always retained");
                (now, Some(not_retained.oldest))
            }
        };
        let now = Instant::now();
        let mut watch = Watch {
            class: self.classes.join(key),
            lease,
            bookmarks: options.allow_bookmarks,
            strict: options.resource_version.is_some(),
            closing: self.closing.clone(),
            deadline: now + timeout(options.timeout),
            next_bookmark: now + BOOKMARK_INTERVAL,
            gap: None,
            unread: VecDeque::new(),
            ending: None,
            metrics: self.metrics.clone(),
            reader,
            cursor,
            _slot: slot,
        };
        watch.opened();
        match (expired, options.resource_version) {
            (Some(oldest), Some(asked)) => watch.end_with("expired", &Rejection::Expired { asked, oldest }),
            _ if options.send_initial_events && options.allow_bookmarks => {
                watch.write_bookmark(watch.cursor.position(), Bookmark { initial_events_end: true, gap: None });
            }
            _ => {}
        }
        Ok(watch)
    }
}

/// A selector sees what the reader's view shows: on a withheld field it would be a way to guess it.
fn check_selector(key: &ClassKey) -> Result<(), Rejection> {
    let shown = |field| key.route.resource == Resource::Events || view::shows(field);
    let mut fields = key.selector.fields();
    fields.find(|field| !shown(*field)).map_or(Ok(()), |field| Err(Rejection::WithheldField(field.name())))
}

fn timeout(asked: Option<Duration>) -> Duration {
    let (shortest, longest) = DEFAULT_TIMEOUT;
    asked.map_or_else(
        || {
            // A random UUID is the randomness that is at hand; spreading needs no better.
            let spread = (longest - shortest).as_millis();
            let random = uuid::Uuid::new_v4().as_u128() % spread;
            shortest + Duration::from_millis(u64::try_from(random).unwrap_or(0))
        },
        |asked| asked.min(longest),
    )
}

// === impl Watch ===

impl Watch {
    /// The next piece for the connection; `None` at the clean end of the stream. Nothing is yielded without permission.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ending.is_some() {
                // What ends a watch is a Status and nobody's event: it needs no permission.
                return self.take_piece();
            }
            if let Err(refusal) = self.lease.confirm().await {
                self.end_of_lease(refusal);
                continue;
            }
            if let Some(piece) = self.take_piece() {
                return Some(piece);
            }
            let from = self.cursor.position();
            match self.wake().await {
                Wake::Batch(delivery) => self.write_batch(from, &delivery),
                Wake::Lagged(lagged) => self.lagged(lagged),
                Wake::Bookmark => self.write_bookmark(from, Bookmark::default()),
                Wake::LeaseEnd(refusal) => self.end_of_lease(refusal),
                Wake::Timeout => self.end("timeout"),
                Wake::Closing => self.end("shutdown"),
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        tokio::select! {
            // The ends first, so that a stream of events cannot keep a watch from ending.
            biased;
            () = self.closing.cancelled() => Wake::Closing,
            () = sleep_until(self.deadline) => Wake::Timeout,
            end = self.lease.end() => Wake::LeaseEnd(end),
            () = sleep_until(self.next_bookmark), if self.bookmarks => Wake::Bookmark,
            next = self.cursor.next() => match next {
                Ok(delivery) => Wake::Batch(delivery),
                Err(lagged) => Wake::Lagged(lagged),
            },
        }
    }

    fn take_piece(&mut self) -> Option<Bytes> {
        let unread = self.unread.front_mut()?;
        let piece = unread.split_to(unread.len().min(PIECE_BYTES));
        if unread.is_empty() {
            self.unread.pop_front();
        }
        self.metrics.sent_bytes.inc_by(piece.len() as u64);
        Some(piece)
    }

    fn write(&mut self, frames: Bytes) {
        if !frames.is_empty() {
            self.unread.push_back(frames);
        }
    }

    fn write_batch(&mut self, from: Sequence, delivery: &Delivery<Batch>) {
        let Delivery { entry, skip } = delivery;
        if let Some(reason) = entry.payload().lost() {
            self.note_gap(reason, entry.first());
        }
        if self.bookmarks && self.gap.is_some() {
            // Before the events, at the place before them: who breaks off in between is told again when resuming there.
            self.write_bookmark(from, Bookmark::default());
        }
        let shared = (*skip == 0).then(|| self.class.frames(entry));
        match shared {
            Some(frames) if self.gap.is_none() || frames.is_empty() => self.write(frames),
            _ => {
                let told = self.gap.map(announcement);
                let frames = self.class.frames_for_one(entry, *skip, told.as_deref());
                if !frames.is_empty() {
                    self.gap_announced();
                }
                self.write(frames);
            }
        }
    }

    fn lagged(&mut self, lagged: Lagged) {
        if self.strict {
            self.end_with("lagged", &Rejection::Expired { asked: lagged.from, oldest: lagged.to });
            return;
        }
        self.note_gap(GapReason::Lag, lagged.from.plus(1));
        if self.bookmarks {
            self.write_bookmark(lagged.to, Bookmark::default());
        }
    }

    /// A gap that is announced before the next event reaches from its first cause on.
    fn note_gap(&mut self, reason: GapReason, from: Sequence) {
        self.gap.get_or_insert(PendingGap { reason, from });
    }

    fn gap_announced(&mut self) {
        if let Some(gap) = self.gap.take() {
            count(&self.metrics.gaps, gap.reason.as_str());
        }
    }

    /// A clean end, but for a gap that no event or bookmark came to tell of.
    fn end(&mut self, reason: &'static str) {
        match self.gap {
            None => self.ending = Some(reason),
            Some(gap) => {
                self.gap_announced();
                self.end_with(reason, &Rejection::Expired { asked: gap.from, oldest: self.cursor.position() });
            }
        }
    }

    fn write_bookmark(&mut self, position: Sequence, bookmark: Bookmark) {
        self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        let gap = self.gap.map(announcement);
        let Route { resource, version, .. } = self.class.key().route;
        self.write(frame::bookmark(resource, version, position, Bookmark { gap, ..bookmark }).into());
        self.gap_announced();
    }

    fn end_of_lease(&mut self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Denied(_) => "forbidden",
            Refusal::Unknown => "unconfirmed",
        };
        let Reader { username, attributes, .. } = &self.reader;
        let rejection = Rejection::of(refusal, username, attributes);
        self.end_with(reason, &rejection);
    }

    /// Drops what was not taken yet and leaves the refusal as the last frame.
    fn end_with(&mut self, reason: &'static str, rejection: &Rejection) {
        self.unread = VecDeque::from([frame::error(&rejection.status()).into()]);
        self.ending = Some(reason);
    }

    /// The audit ID joins this line with the cluster's audit log, which says who it was.
    fn opened(&self) {
        self.metrics.open.inc();
        let Route { resource, namespace, .. } = &self.class.key().route;
        let audit_id = &self.reader.audit_id;
        info!(auditEvent = true, audit_id, resource = resource.name(), namespace, "watch opened");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.metrics.open.dec();
        // Dropped by its connection before it came to an end of its own: the client left.
        let reason = self.ending.unwrap_or("client");
        count(&self.metrics.ended, reason);
        info!(auditEvent = true, audit_id = self.reader.audit_id, reason, "watch closed");
    }
}

fn announcement(gap: PendingGap) -> String {
    let PendingGap { reason, from } = gap;
    // How many of them would have been this reader's cannot be known.
    let gap = Gap { count: None, truncated: 0, reason, since: time_of(from) };
    serde_json::to_string(&gap).expect("numbers and strings always serialise")
}

/// About when a place was issued: places are made from the clock.
fn time_of(place: Sequence) -> String {
    let micros = i64::try_from(place.get()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests;
