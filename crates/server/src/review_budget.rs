//! How often kube-apiserver may be asked for a review, and who goes first.
//!
//! Leases come before questions: whoever reads already is not cut off because many others ask. A question that there is no
//! room for is turned away at once, so that nothing waits in a queue that a stranger fills. Each asker has a share, so that
//! one who asks for a thousand namespaces keeps nobody else out. It knows nothing of what is asked, nor of the answers.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::metrics::Purpose;

/// Reviews under way at a time, for leases and for questions each; every one takes a connection of its own.
const UNDER_WAY: usize = 100;

/// What the budget holds when nobody has asked for a while: a second's reviews.
const DEPTH: Duration = Duration::from_secs(1);

/// What questions leave of that for leases that come up at once.
const RESERVED: Duration = Duration::from_millis(500);

/// How long a lease waits for its turn at most, which leaves the reviewer a second of the three that an answer may take.
/// Where more leases wait than that, some are turned away, so that the others are in time.
const LONGEST_TURN: Duration = Duration::from_secs(2);

/// One asker's part is a tenth of the rate: 20 a second by default, which are the watches that a user may have.
const SHARES: u32 = 10;

/// What an asker's part holds when they have not asked for a while, as upstream's burst is two seconds of its rate.
const SHARE_DEPTH: Duration = Duration::from_secs(2);

/// Askers that are remembered, at some 100 bytes each. One that is forgotten begins anew, with a full part.
const ASKERS: usize = 8192;

/// Who wants to know something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asker<'a> {
    /// Somebody of whom it is known who they are, anonymous included.
    User(&'a str),
    /// Somebody at this address who shows a token that is not known yet.
    Address(IpAddr),
}

/// There is no room now; in a second there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

/// Room for one review, until it is answered.
#[derive(Debug)]
#[must_use]
pub struct Turn<'a> {
    _under_way: SemaphorePermit<'a>,
}

/// The budget of all the reviews that this process asks for.
#[derive(Debug)]
pub struct ReviewBudget {
    total: Mutex<Bucket>,
    /// A full one, of which each asker gets their own.
    share: Bucket,
    shares: Cache<u64, Arc<Mutex<Bucket>>>,
    /// Of askers, so that a name of 64 KiB takes no more than another. Two of one hash share a part.
    hasher: RandomState,
    leases: Semaphore,
    questions: Semaphore,
    turned_away: Family<Purpose, Counter>,
}

/// How many may pass: one each `interval`, and after a pause as many as fit into `depth`.
#[derive(Debug, Clone)]
struct Bucket {
    interval: Duration,
    depth: Duration,
    /// What it holds is the time since then. In the future: what it owes is the time until then.
    empty_at: Instant,
}

// === impl ReviewBudget ===

impl ReviewBudget {
    /// A budget of so many reviews a second, which counts whom it turns away.
    pub fn new(per_second: NonZeroU32, turned_away: Family<Purpose, Counter>) -> Self {
        let interval = DEPTH / per_second.get();
        let share_interval = interval * SHARES;
        Self {
            total: Mutex::new(Bucket::full(interval, DEPTH.max(interval))),
            share: Bucket::full(share_interval, SHARE_DEPTH.max(share_interval)),
            shares: Cache::new(ASKERS),
            hasher: RandomState::new(),
            leases: Semaphore::new(UNDER_WAY),
            questions: Semaphore::new(UNDER_WAY),
            turned_away,
        }
    }

    /// Room for a question, if there is some now.
    ///
    /// # Errors
    /// If the budget, but for what leases need, or this asker's part of it is used up.
    pub fn question(&self, asker: Asker<'_>) -> Result<Turn<'_>, Exhausted> {
        self.room_for_question(asker).ok_or_else(|| self.turn_away(Purpose::QUESTION))
    }

    fn room_for_question(&self, asker: Asker<'_>) -> Option<Turn<'_>> {
        let under_way = self.questions.try_acquire().ok()?;
        let share = self.share_of(asker);
        let (mut share, mut total, now) = (lock(&share), lock(&self.total), Instant::now());
        if !share.holds(Duration::ZERO, now) || !total.holds(RESERVED, now) {
            return None;
        }
        share.take(now);
        total.take(now);
        Some(Turn { _under_way: under_way })
    }

    /// Room for the review of a lease, when its turn has come. Cancel-safe, but the turn is used up.
    ///
    /// # Errors
    /// If it does not come by the deadline, or would come too late to be of use.
    pub async fn lease(&self, deadline: Instant) -> Result<Turn<'_>, Exhausted> {
        let room = timeout_at(deadline, self.room_for_lease()).await;
        room.ok().flatten().ok_or_else(|| self.turn_away(Purpose::LEASE))
    }

    async fn room_for_lease(&self) -> Option<Turn<'_>> {
        let turn = {
            let (mut total, now) = (lock(&self.total), Instant::now());
            if total.empty_at > now + LONGEST_TURN {
                return None;
            }
            total.take(now)
        };
        sleep_until(turn).await;
        let under_way = self.leases.acquire().await.ok()?;
        Some(Turn { _under_way: under_way })
    }

    fn turn_away(&self, purpose: Purpose) -> Exhausted {
        self.turned_away.get_or_create(&purpose).inc();
        Exhausted
    }

    fn share_of(&self, asker: Asker<'_>) -> Arc<Mutex<Bucket>> {
        let full = || Ok::<_, Infallible>(Arc::new(Mutex::new(self.share.clone())));
        let Ok(share) = self.shares.get_or_insert_with(&self.hasher.hash_one(asker), full);
        share
    }
}

// === impl Bucket ===

impl Bucket {
    fn full(interval: Duration, depth: Duration) -> Self {
        let now = Instant::now();
        // Just after boot the clock cannot be set back that far: then it begins empty.
        Self { interval, depth, empty_at: now.checked_sub(depth).unwrap_or(now) }
    }

    /// Whether one may pass now and leave `reserve`. A bucket that holds less than its depth keeps nothing back that it never
    /// could hold.
    fn holds(&self, reserve: Duration, now: Instant) -> bool {
        let reserve = reserve.min(self.depth - self.interval);
        self.drained(now) + self.interval + reserve <= now
    }

    /// Lets one pass: when its turn is, which is past where there was room.
    fn take(&mut self, now: Instant) -> Instant {
        self.empty_at = self.drained(now) + self.interval;
        self.empty_at
    }

    /// `empty_at`, without what never found room in the bucket.
    fn drained(&self, now: Instant) -> Instant {
        now.checked_sub(self.depth).map_or(self.empty_at, |full_since| self.empty_at.max(full_since))
    }
}

/// What is done under these locks does not panic.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(per_second: u32) -> ReviewBudget {
        ReviewBudget::new(NonZeroU32::new(per_second).unwrap(), Family::default())
    }

    /// How many of so many questions by different people find room.
    fn admitted(budget: &ReviewBudget, questions: u32) -> usize {
        let names: Vec<_> = (0..questions).map(|number| format!("user-{number}")).collect();
        names.iter().filter(|name| budget.question(Asker::User(name)).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn questions_leave_half_of_a_second_to_leases() {
        let budget = budget(200);
        assert_eq!(admitted(&budget, 300), 100);
        for _ in 0..100 {
            let turn = budget.lease(Instant::now() + Duration::from_secs(3));
            assert!(tokio::time::timeout(Duration::ZERO, turn).await.unwrap().is_ok());
        }
        assert_eq!(admitted(&budget, 1), 0);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(admitted(&budget, 300), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn one_asker_has_a_tenth() {
        let budget = budget(200);
        let one = |count| (0..count).filter(|_| budget.question(Asker::User("one")).is_ok()).count();
        assert_eq!(one(100), 40);
        assert!(budget.question(Asker::Address(IpAddr::from([127, 0, 0, 1]))).is_ok());
        assert!(budget.question(Asker::User("two")).is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(one(100), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn leases_wait_for_their_turn_and_no_longer_than_is_of_use() {
        let budget = budget(10);
        let began = Instant::now();
        let leases =
            futures::future::join_all((0..40).map(|_| budget.lease(Instant::now() + Duration::from_secs(3)))).await;
        let turns = leases.iter().filter(|turn| turn.is_ok()).count();
        // A second's worth at once, and two seconds' worth of waiting; who finds the queue just full has one turn more.
        assert_eq!((turns, began.elapsed().as_millis()), (31, 2100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reviewer_that_hangs_keeps_a_bounded_number() {
        let budget = budget(100_000);
        let names: Vec<_> = (0..1000).map(|number| format!("user-{number}")).collect();
        let turns: Vec<_> = names.iter().filter_map(|name| budget.question(Asker::User(name)).ok()).collect();
        assert_eq!(turns.len(), UNDER_WAY);
        assert!(
            budget.lease(Instant::now() + Duration::from_secs(3)).await.is_ok(),
            "questions under way keep no lease waiting"
        );
        drop(turns);
        assert!(budget.question(Asker::User("one")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_budget_still_answers() {
        let budget = budget(1);
        assert!(budget.question(Asker::User("one")).is_ok());
        assert!(budget.question(Asker::User("two")).is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(budget.question(Asker::User("two")).is_ok());
    }
}
