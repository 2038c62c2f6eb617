//! From the bus to one reader: what a watch yields, and when it ends.
//!
//! A watch is pulled by its connection: nothing runs for a reader that takes nothing. It decides neither who may read
//! (`authz`) nor which bytes an event is (`class`, `frames`), and it knows no HTTP.

mod class;
mod closing;
mod frames;
mod gap;
mod slots;
mod start;

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use audit_stream_api::frame::{self, Bookmark};
use audit_stream_api::object::GapReason;
use audit_stream_api::query::WatchOptions;
use audit_stream_api::{Route, Sequence};
use audit_stream_bus::{Bus, Cursor, Lagged};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::info;

use crate::authz::{Attributes, Lease, Refusal};
use crate::ingest::batch::Batch;
use crate::listener::Exchange;
use crate::metrics::{WatchMetrics, count};
use crate::rejection::Rejection;
use crate::view::Revealed;
pub use class::ClassKey;
use class::{Classes, Loss, MEMORY, Member, Next, Tally};
pub use closing::Closing;
use frames::{Budget, Charge, PIECE_BYTES, Piece};
use gap::PendingGap;
pub use slots::{Full, Limits};
use slots::{Holder, Slot, Slots};

/// Upstream's watch cache sends a bookmark about once a minute, and one before the end.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// Upstream ends a watch whose client gave no timeout after a random time between these two, and so spreads reconnects.
const DEFAULT_TIMEOUT: (Duration, Duration) = (Duration::from_secs(30 * 60), Duration::from_secs(60 * 60));

/// A watch whose connection takes nothing for as long as this is over: it gets no more events.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// A watch that is over is cut if nobody has come for its end by then. Until that it keeps its slot, because it may keep its
/// share of a window at kube-apiserver, and its user is not to have another one.
const STALLED_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How often to look for those.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Where there is no room for frames, watches are cut whose connections have not come back for this long.
const STALLED_WITHOUT_ROOM: Duration = Duration::from_secs(1);

/// How long to wait for room before that. It is the delay that those who take nothing can cause those who do.
const ROOM_WAIT: Duration = Duration::from_millis(100);

/// Less would not hold the largest frames of a few readers.
pub const MIN_FRAME_BYTES: usize = 8 << 20;

/// What one watch takes, beside its connection and the frames on their way.
///
/// Some 5 KB for itself and its HTTP/2 stream, of which 2 KB are the future that yields its pieces; its class, if nobody shares it;
/// and the question whether its reader still may, with room for a reader in many groups.
pub const WATCH_BYTES: u64 = 16 * 1024;

/// Every word for why a watch ended, in metrics and in the log.
pub const ENDS: [&str; 8] =
    ["client", "expired", "forbidden", "lagged", "shutdown", "stalled", "timeout", "unconfirmed"];

/// What readers may have.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How many watches.
    pub limits: Limits,
    /// Bytes of frames that are written and not yet taken by a connection. At least [`MIN_FRAME_BYTES`].
    pub frame_bytes: usize,
    /// Whether a watch may begin with what is retained.
    pub replay: bool,
    /// What readers of `namespacedevents` see that they do not by default.
    pub revealed: Revealed,
}

/// Opens watches and bounds what they take.
#[derive(Debug)]
pub struct Watches {
    bus: Arc<Bus<Batch>>,
    classes: Arc<Classes>,
    slots: Arc<Slots>,
    /// Whether a watch may begin with what is retained.
    replays: bool,
    /// For looking through all that is retained, to find where a replay begins or to count what was missed: one watch at a
    /// time, so that it never takes more than a core from the others.
    searches: Arc<Semaphore>,
    closing: Closing,
    metrics: WatchMetrics,
}

/// Shows what is published to the classes of the open watches.
pub struct Dispatcher {
    cursor: Cursor<Batch>,
    classes: Arc<Classes>,
    slots: Arc<Slots>,
    closing: Closing,
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
    /// By which the watch can be ended whatever the reader takes.
    pub exchange: Exchange,
}

/// One open watch. Dropping it ends it.
pub struct Watch {
    reader: Reader,
    member: Member,
    classes: Arc<Classes>,
    /// Everything up to here was handed over, or told, or passed over.
    at: Sequence,
    /// For saying how much was missed; not kept for a strict reader.
    tally: Option<Tally>,
    searches: Arc<Semaphore>,
    /// For what is written next.
    charge: Option<Charge>,
    lease: Lease,
    /// Whether BOOKMARK frames may be sent.
    bookmarks: bool,
    /// `None` once it has begun and this watch knows.
    closing: Option<Closing>,
    /// For the first that is due of all that is.
    alarm: Pin<Box<Sleep>>,
    deadline: Instant,
    /// Why the watch ends then.
    at_deadline: &'static str,
    next_bookmark: Instant,
    gap: Option<PendingGap>,
    /// Of a frame that is larger than a piece: what was not handed over yet.
    rest: Bytes,
    /// A bookmark or the last error: written for the reader, and not yet handed over.
    unread: VecDeque<Bytes>,
    /// Why the watch ends when `unread` has been taken; `None` while it goes on.
    ending: Option<&'static str>,
    metrics: WatchMetrics,
    slot: Slot,
    _open: TaskTrackerToken,
}

/// What a watch that attends to its ends does it for.
enum Until {
    /// It only looks whether one has come.
    Now,
    /// There is room for frames of so many bytes.
    Room(usize),
    /// There is something new.
    Changed,
}

/// What happened first.
enum Wake {
    /// What it was for.
    Done(Option<Charge>),
    Bookmark,
    LeaseEnd(Refusal),
    Timeout,
    Closing(Instant),
}

// === impl Watches ===

impl Watches {
    /// Watches of what `bus` gets from now on, and what shows it to them. `closing` ends them.
    pub fn new(bus: Arc<Bus<Batch>>, config: Config, closing: Closing, metrics: WatchMetrics) -> (Self, Dispatcher) {
        let cursor = bus.subscribe();
        let budget = Budget::new(config.frame_bytes);
        let classes = Arc::new(Classes::new(Arc::clone(&bus), budget, MEMORY, config.revealed, cursor.position()));
        let slots = Arc::new(Slots::new(config.limits));
        let dispatcher =
            Dispatcher { cursor, classes: Arc::clone(&classes), slots: Arc::clone(&slots), closing: closing.clone() };
        let (replays, searches) = (config.replay, Arc::new(Semaphore::new(1)));
        (Self { bus, classes, slots, replays, searches, closing, metrics }, dispatcher)
    }

    /// Opens a watch. A place that is no longer retained, or never was, is told in its first frame, as upstream does.
    ///
    /// # Errors
    /// If the selector asks for what the reader may not see, a replay for what nobody may, or there are too many watches.
    pub async fn open(
        &self,
        key: ClassKey,
        options: &WatchOptions,
        lease: Lease,
        reader: Reader,
    ) -> Result<Watch, Rejection> {
        self.check_selector(&key)?;
        if options.replay.is_some() && !self.replays {
            return Err(Rejection::ReplayOff);
        }
        if self.closing.has_begun() {
            return Err(Rejection::ShuttingDown);
        }
        let member = self.classes.join(key);
        let holder = Holder {
            user: reader.username.clone(),
            namespace: member.key().route.namespace.clone(),
            class_id: member.class_id(),
        };
        let slot = self.slots.take(holder, reader.exchange.clone()).map_err(Rejection::TooManyWatches)?;
        let (at, refused) = match self.start(&member, options).await {
            Ok(at) => (at, None),
            Err(expired) => (self.bus.head(), Some(expired)),
        };
        let now = Instant::now();
        let strict = options.resource_version.is_some();
        let tally = if strict { None } else { Some(member.tally(at).await) };
        let mut watch = Watch {
            tally,
            searches: Arc::clone(&self.searches),
            member,
            classes: Arc::clone(&self.classes),
            at,
            charge: None,
            lease,
            bookmarks: options.allow_bookmarks,
            _open: self.closing.open(),
            closing: Some(self.closing.clone()),
            alarm: Box::pin(sleep_until(now)),
            deadline: now + duration(options.timeout),
            at_deadline: "timeout",
            next_bookmark: now,
            gap: None,
            rest: Bytes::new(),
            unread: VecDeque::new(),
            ending: None,
            metrics: self.metrics.clone(),
            reader,
            slot,
        };
        watch.reader.exchange.becomes_watch();
        watch.opened();
        watch.schedule_bookmark();
        match refused {
            Some(expired) => watch.end_with("expired", &expired),
            None if options.send_initial_events && options.allow_bookmarks => {
                watch.write_bookmark(Bookmark { initial_events_end: true, gap: None });
            }
            None => {}
        }
        // The headers are what is handed over first: a peer that has room for nothing behind them never comes for more. Not
        // before, because a replay may have had to wait for its turn.
        watch.slot.handed_over();
        Ok(watch)
    }

    /// A selector sees what the reader's view shows: on a withheld field it would be a way to guess it.
    fn check_selector(&self, key: &ClassKey) -> Result<(), Rejection> {
        let view = self.classes.view(key);
        let mut fields = key.selector.fields();
        fields.find(|field| !view.shows(*field)).map_or(Ok(()), |field| Err(Rejection::WithheldField(field.name())))
    }

    /// The place after which a watch begins.
    async fn start(&self, member: &Member, options: &WatchOptions) -> Result<Sequence, Rejection> {
        let key = member.key();
        if let Some(asked) = options.resource_version {
            let place = start::after(&self.bus, key, asked).await;
            return place.map_err(|error| Rejection::Expired { asked, oldest: error.oldest });
        }
        let Some(replay) = options.replay else { return Ok(self.bus.head()) };
        let _turn = self.searches.acquire().await;
        Ok(start::replay(&self.bus, key, replay).await)
    }

    /// Bytes of frames that are written and not yet taken by a connection.
    pub fn frame_bytes(&self) -> usize {
        self.classes.budget().used()
    }
}

/// For how long a watch goes on.
fn duration(asked: Option<Duration>) -> Duration {
    let (shortest, longest) = DEFAULT_TIMEOUT;
    asked.map_or_else(|| shortest + random_part(longest - shortest), |asked| asked.min(longest))
}

/// Any part of a time, in milliseconds. A random UUID is the randomness that is at hand; spreading needs no better.
fn random_part(time: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % time.as_millis().max(1);
    Duration::from_millis(u64::try_from(random).unwrap_or(0))
}

// === impl Dispatcher ===

impl Dispatcher {
    /// Runs for ever. Cancel-safe.
    pub async fn run(mut self) {
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = pin!(self.closing.begun().fuse());
        loop {
            tokio::select! {
                // A watch that sleeps looks at what is due when it is woken.
                () = &mut closing => self.classes.wake_all(),
                next = self.cursor.next() => match next {
                    Ok(entry) => {
                        self.classes.dispatch(&entry);
                        // With a backlog nothing here waits, and the readers are to have their turn.
                        tokio::task::yield_now().await;
                    }
                    Err(Lagged { to, .. }) => self.classes.skip_to(to),
                },
                _ = sweep.tick() => self.slots.cut_stalled(STALLED_TIMEOUT),
            }
        }
    }
}

// === impl Watch ===

impl Watch {
    /// The next piece for the connection; `None` at the clean end of the stream. Nothing is yielded without permission.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.slot.came_back() >= Some(PROGRESS_TIMEOUT) && self.ending.is_none() {
            self.end_of_progress();
        }
        let bytes = match self.rest_of_frame().await {
            Some(bytes) => bytes,
            None => self.next_bytes().await?,
        };
        self.metrics.sent_bytes.inc_by(bytes.len() as u64);
        self.slot.handed_over();
        Some(bytes)
    }

    /// More of a frame of which a part was handed over. A watch that ends here cannot say so: its stream is reset, as half a
    /// frame can neither be taken back nor be followed by another.
    async fn rest_of_frame(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        if self.ending.is_none()
            && let Err(refusal) = self.lease.confirm().await
        {
            self.end_of_lease(refusal);
        }
        if self.ending.is_some() {
            self.reader.exchange.cut();
            (self.rest, self.unread) = (Bytes::new(), VecDeque::new());
            return None;
        }
        Some(self.rest.split_to(self.rest.len().min(PIECE_BYTES)))
    }

    async fn next_bytes(&mut self) -> Option<Bytes> {
        loop {
            if self.ending.is_some() {
                // What ends a watch is a Status and nobody's event: it needs no permission.
                return self.unread.pop_front();
            }
            let quiet = self.is_quiet();
            if !quiet && let Err(refusal) = self.lease.confirm().await {
                self.end_of_lease(refusal);
                continue;
            }
            if let Some(frame) = self.unread.pop_front() {
                return Some(frame);
            }
            if !quiet {
                if Instant::now() >= self.deadline {
                    self.end(self.at_deadline);
                    continue;
                }
                self.attend(Until::Now).await;
                if self.ending.is_some() || !self.unread.is_empty() {
                    continue;
                }
            }
            let told = self.gap.map(PendingGap::announcement);
            let next = self.member.next(self.at, told.as_deref(), &mut self.charge);
            // What there is was too little, or is not needed: others may need it.
            self.charge = None;
            match next {
                Next::Piece(piece) => return Some(self.hand_over(piece)),
                Next::Loss(loss) => self.lost(loss),
                Next::Lagged(oldest) => self.lagged(oldest).await,
                Next::Passed(place) => {
                    self.at = place;
                    tokio::task::yield_now().await;
                }
                Next::Charge(bytes) => match self.classes.budget().try_charge(bytes) {
                    Some(charge) => self.charge = Some(charge),
                    None => self.attend(Until::Room(bytes)).await,
                },
                Next::UpToDate if quiet => self.changed_or_due().await,
                Next::UpToDate => self.attend(Until::Changed).await,
            }
        }
    }

    /// Whether permission is known to hold, and nothing is to be attended to: so it mostly is.
    fn is_quiet(&self) -> bool {
        Instant::now() < self.due() && !self.closing.as_ref().is_some_and(Closing::has_begun)
    }

    /// Before this time there is nothing to attend to but a closing.
    fn due(&self) -> Instant {
        let due = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
        self.lease.next_step().map_or(due, |next_step| next_step.min(due))
    }

    /// Waits for something new, or for there to be something to attend to. Whoever is woken for an event comes here, so it is one
    /// timer that is mostly left as it is; a closing is told as something new.
    async fn changed_or_due(&mut self) {
        let due = self.due();
        if self.alarm.deadline() != due {
            self.alarm.as_mut().reset(due);
        }
        tokio::select! {
            // First, so that a stream of events cannot keep a watch from ending; and attended to at once, because a lease that
            // is found to be over later is asked about once more.
            biased;
            () = self.alarm.as_mut() => self.attend(Until::Now).await,
            () = self.member.changed() => {}
        }
    }

    /// Waits, and meanwhile for all that may end the watch or is due.
    async fn attend(&mut self, until: Until) {
        let done = async {
            match until {
                Until::Now => None,
                Until::Room(bytes) => Some(make_room(&self.classes, self.slot.slots(), bytes).await),
                Until::Changed => {
                    self.member.changed().await;
                    None
                }
            }
        };
        let wake = tokio::select! {
            // The ends first, so that a stream of events cannot keep a watch from ending.
            biased;
            end = closing::end_of_one(self.closing.as_ref()) => Wake::Closing(end),
            () = sleep_until(self.deadline) => Wake::Timeout,
            end = self.lease.end() => Wake::LeaseEnd(end),
            () = sleep_until(self.next_bookmark), if self.bookmarks => Wake::Bookmark,
            charge = done => Wake::Done(charge),
        };
        match wake {
            Wake::Done(None) => {}
            Wake::Done(charge) => self.charge = charge,
            Wake::Bookmark => self.bookmark_is_due(),
            Wake::LeaseEnd(refusal) => self.end_of_lease(refusal),
            Wake::Timeout => self.end(self.at_deadline),
            Wake::Closing(end) => self.closes_at(end),
        }
    }

    /// It goes on until its own end has come, so that not all come back to another server at once.
    fn closes_at(&mut self, end: Instant) {
        self.closing = None;
        if end < self.deadline {
            (self.deadline, self.at_deadline) = (end, "shutdown");
        }
    }

    fn hand_over(&mut self, piece: Piece) -> Bytes {
        if let Some(gap) = self.gap.take() {
            // Told on the piece's one event.
            count(&self.metrics.gaps, gap.reason.as_str());
        }
        self.at = piece.last;
        self.tally = self.tally.map(|tally| tally.plus(piece.events));
        let mut bytes = piece.bytes;
        // One frame alone may be larger. Taken bit by bit, it shows that its reader goes on.
        self.rest = bytes.split_off(bytes.len().min(PIECE_BYTES));
        bytes
    }

    fn lost(&mut self, Loss { place, reason, count }: Loss) {
        self.at = place;
        self.tally = self.tally.map(|tally| tally.plus(count.unwrap_or(0)));
        self.note_gap(reason, place, count);
    }

    async fn lagged(&mut self, oldest: Sequence) {
        let Some(tally) = self.tally else {
            self.end_with("lagged", &Rejection::Expired { asked: self.at, oldest });
            return;
        };
        let turn = self.searches.acquire().await;
        let now = self.member.tally(oldest).await;
        drop(turn);
        let missed = tally.missed_until(now);
        let from = std::mem::replace(&mut self.at, oldest).plus(1);
        self.tally = Some(now);
        if missed != Some(0) {
            self.note_gap(GapReason::Lag, from, missed);
        }
    }

    /// A bookmark tells of a gap at once. Without one it is told on the next event.
    fn note_gap(&mut self, reason: GapReason, from: Sequence, count: Option<u64>) {
        PendingGap::note(&mut self.gap, reason, from, count);
        if self.bookmarks {
            self.write_bookmark(Bookmark::default());
        }
    }

    /// A clean end, but for a gap that no event or bookmark came to tell of.
    fn end(&mut self, reason: &'static str) {
        match self.gap.take() {
            None => self.ending = Some(reason),
            Some(gap) => {
                count(&self.metrics.gaps, gap.reason.as_str());
                self.end_with(reason, &Rejection::Expired { asked: gap.from, oldest: self.at });
            }
        }
    }

    /// The connection took nothing for too long. A strict reader comes back to where it was; another would not know that it
    /// had missed something.
    fn end_of_progress(&mut self) {
        match self.tally {
            None => self.end("stalled"),
            Some(_) => self.end_with("stalled", &Rejection::Stalled),
        }
    }

    fn bookmark_is_due(&mut self) {
        // The position served, though nothing of it was the reader's.
        self.at = self.member.caught_up(self.at).unwrap_or(self.at);
        self.write_bookmark(Bookmark::default());
    }

    fn write_bookmark(&mut self, bookmark: Bookmark) {
        self.schedule_bookmark();
        let gap = self.gap.take().map(|gap| {
            count(&self.metrics.gaps, gap.reason.as_str());
            gap.announcement()
        });
        let Route { resource, version, .. } = self.member.key().route;
        self.unread.push_back(frame::bookmark(resource, version, self.at, Bookmark { gap, ..bookmark }).into());
    }

    fn schedule_bookmark(&mut self) {
        let now = Instant::now();
        let regular = now + BOOKMARK_INTERVAL;
        let last = self.deadline.checked_sub(BOOKMARK_BEFORE_END).filter(|last| *last > now);
        self.next_bookmark = last.map_or(regular, |last| last.min(regular));
    }

    fn end_of_lease(&mut self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Denied(_) => "forbidden",
            Refusal::Unknown | Refusal::Exhausted => "unconfirmed",
        };
        let Reader { username, attributes, .. } = &self.reader;
        let rejection = Rejection::of(refusal, username, attributes);
        self.end_with(reason, &rejection);
    }

    /// Drops what was not handed over yet and leaves the refusal as the last frame.
    fn end_with(&mut self, reason: &'static str, rejection: &Rejection) {
        self.unread = VecDeque::from([frame::error(&rejection.status()).into()]);
        self.ending = Some(reason);
    }

    /// The audit ID joins this line with the cluster's audit log, which says who it was.
    fn opened(&self) {
        self.metrics.open.inc();
        let Route { resource, namespace, .. } = &self.member.key().route;
        let audit_id = &self.reader.audit_id;
        info!(auditEvent = true, audit_id, resource = resource.name(), namespace, "watch opened");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.metrics.open.dec();
        // Dropped by its connection before it came to an end of its own: the client left, unless the watch was cut.
        let reason = if self.slot.is_cut() { "stalled" } else { self.ending.unwrap_or("client") };
        count(&self.metrics.ended, reason);
        info!(auditEvent = true, audit_id = self.reader.audit_id, reason, "watch closed");
    }
}

/// Waits for room for so many bytes of frames. Cancel-safe.
///
/// Pieces that are only kept for watches that may come for them go first; then, of the watches whose connections have taken a
/// piece and not come back, the half is cut that has not for longest: what they hold is given back with them.
async fn make_room(classes: &Classes, slots: &Slots, bytes: usize) -> Charge {
    loop {
        // One of those who wait does it for all.
        let turn = slots.making_room().try_acquire();
        if turn.is_ok() {
            classes.shed();
        }
        if let Ok(charge) = timeout(ROOM_WAIT, classes.budget().charge(bytes)).await {
            return charge;
        }
        if turn.is_ok() {
            slots.cut_half_of_stalled(STALLED_WITHOUT_ROOM);
        }
    }
}

#[cfg(test)]
mod tests;
