//! The retained window: append at one end, evict at the other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use audit_stream_api::Sequence;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cursor::Cursor;

/// What a bus may retain.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of all retained batches together. The newest batch stays even if it alone is larger.
    pub retain_bytes: usize,
    /// Age of the oldest retained batch. Judged when something is published, a reader begins in the past, or the retained are counted.
    pub retain_age: Duration,
}

/// One published batch: `count` events at the places `first ..= last`.
#[derive(Debug)]
pub struct Entry<T> {
    first: Sequence,
    count: u64,
    bytes: usize,
    published: Instant,
    payload: T,
}

/// The place asked for was never issued by this bus, or what follows it is no longer retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotRetained {
    /// The oldest place that a reader can go on after.
    pub oldest: Sequence,
}

/// The log. Cheap to share by `Arc`; all methods take `&self` and block only for a short lock.
#[derive(Debug)]
pub struct Bus<T> {
    config: Config,
    // One short std lock, never held across an await: an append, an eviction or a look-up.
    ring: Mutex<Ring<T>>,
    // Wakes the cursors. Sent after the ring has changed, so who is woken finds it.
    published: watch::Sender<()>,
}

#[derive(Debug)]
struct Ring<T> {
    entries: VecDeque<Arc<Entry<T>>>,
    retained_bytes: usize,
    /// The last place evicted or, before that, the start value: the oldest place to begin after.
    floor: Sequence,
    last: Sequence,
}

// === impl Bus ===

impl<T> Bus<T> {
    /// An empty bus whose places start at `unix_micros`, so that they are greater than those of any bus before it.
    pub fn new(config: Config, unix_micros: u64) -> Self {
        let start = Sequence::new(unix_micros);
        let ring = Ring { entries: VecDeque::new(), retained_bytes: 0, floor: start, last: start };
        Self { config, ring: Mutex::new(ring), published: watch::Sender::new(()) }
    }

    /// Appends a batch of `count` events (at least one place is taken) that occupies `bytes`, evicts what no longer fits,
    /// and wakes the cursors. Never waits for a reader.
    ///
    /// `unix_micros` is the wall clock; where it stands still or steps back, places go on from the last one.
    pub fn publish(&self, unix_micros: u64, count: usize, bytes: usize, payload: T) -> Arc<Entry<T>> {
        let now = Instant::now();
        let mut ring = self.lock();
        let first = Sequence::new(unix_micros).max(ring.last.plus(1));
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let entry = Arc::new(Entry { first, count, bytes, published: now, payload });
        ring.last = entry.last();
        ring.retained_bytes = ring.retained_bytes.saturating_add(bytes);
        ring.entries.push_back(Arc::clone(&entry));
        ring.evict(self.config, now);
        drop(ring);
        self.published.send_replace(());
        entry
    }

    /// Bytes and age of what is retained now.
    pub fn retained(&self) -> (usize, Duration) {
        let mut ring = self.lock();
        ring.evict(self.config, Instant::now());
        let age = ring.entries.front().map_or(Duration::ZERO, |oldest| oldest.age());
        (ring.retained_bytes, age)
    }

    /// A cursor whose first batch is the next to be published.
    pub fn subscribe(self: &Arc<Self>) -> Cursor<T> {
        let position = self.head();
        Cursor::new(Arc::clone(self), self.published.subscribe(), position)
    }

    /// The last place issued.
    pub fn head(&self) -> Sequence {
        self.lock().last
    }

    /// Whether a reader that has everything up to `place` can go on after it.
    ///
    /// # Errors
    /// If this bus did not issue the place, or what follows it is no longer all retained.
    pub fn check(&self, place: Sequence) -> Result<(), NotRetained> {
        let mut ring = self.lock();
        ring.evict(self.config, Instant::now());
        if ring.issued(place) { Ok(()) } else { Err(NotRetained { oldest: ring.floor }) }
    }

    /// The first batch that reaches beyond `position`; `None` at the head.
    ///
    /// # Errors
    /// If something after `position` is no longer retained.
    pub fn after(&self, position: Sequence) -> Result<Option<Arc<Entry<T>>>, NotRetained> {
        let ring = self.lock();
        if position < ring.floor {
            return Err(NotRetained { oldest: ring.floor });
        }
        let index = ring.entries.partition_point(|entry| entry.last() <= position);
        Ok(ring.entries.get(index).cloned())
    }

    /// The last place that was issued before `place`, or the oldest that a reader can go on after.
    pub fn issued_before(&self, place: Sequence) -> Sequence {
        let ring = self.lock();
        let index = ring.entries.partition_point(|entry| entry.last() < place);
        match ring.entries.get(index) {
            Some(entry) if entry.first < place => place.previous(),
            _ => index
                .checked_sub(1)
                .and_then(|before| ring.entries.get(before))
                .map_or(ring.floor, |entry| entry.last()),
        }
    }

    /// The newest retained batch that ends at `position` or before it.
    pub fn up_to(&self, position: Sequence) -> Option<Arc<Entry<T>>> {
        let mut ring = self.lock();
        ring.evict(self.config, Instant::now());
        let index = ring.entries.partition_point(|entry| entry.last() <= position);
        ring.entries.get(index.checked_sub(1)?).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Ring<T>> {
        // No code under the lock panics between two writes that belong together, so a poisoned ring is still whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Ring<T> {
    fn evict(&mut self, config: Config, now: Instant) {
        while let Some(oldest) = self.entries.front() {
            let too_large = self.retained_bytes > config.retain_bytes && self.entries.len() > 1;
            let too_old = now.duration_since(oldest.published) > config.retain_age;
            if !(too_large || too_old) {
                break;
            }
            self.floor = oldest.last();
            self.retained_bytes = self.retained_bytes.saturating_sub(oldest.bytes);
            self.entries.pop_front();
        }
    }

    /// Whether a place was issued and everything after it is retained. Places between two batches were never issued.
    fn issued(&self, place: Sequence) -> bool {
        let index = self.entries.partition_point(|entry| entry.last() < place);
        place == self.floor || self.entries.get(index).is_some_and(|entry| entry.first <= place)
    }
}

// === impl Entry ===

impl<T> Entry<T> {
    /// The place of its first event.
    pub fn first(&self) -> Sequence {
        self.first
    }

    /// The place of its last event.
    pub fn last(&self) -> Sequence {
        self.first.plus(self.count - 1)
    }

    /// How long ago it was published.
    pub fn age(&self) -> Duration {
        self.published.elapsed()
    }

    /// What was published.
    pub fn payload(&self) -> &T {
        &self.payload
    }
}
