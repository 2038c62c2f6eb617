//! Who may have how many watches open, and which of them take nothing.
//!
//! kube-apiserver gives a stream that its client does not read 4 MiB of a window that all users share, and does not give it back
//! before that client leaves. So a watch whose reader takes nothing keeps its slot long after it is over, until it is cut.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::listener::Exchange;

/// How many watches there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all (`--max-watches`).
    pub watches: usize,
    /// Of one user (`--max-watches-per-user`).
    pub per_user: usize,
    /// Of one namespace (`--max-watches-per-namespace`); watches of more than a namespace do not count.
    pub per_namespace: usize,
    /// Classes that one user's watches are in (`--max-classes-per-user`).
    pub classes_per_user: usize,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// [`Limits::watches`].
    Server,
    /// [`Limits::per_user`].
    User,
    /// [`Limits::per_namespace`].
    Namespace,
    /// [`Limits::classes_per_user`].
    Classes,
}

/// The places for watches.
#[derive(Debug)]
pub(super) struct Slots {
    limits: Limits,
    making_room: Semaphore,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next_id: u64,
    progress: HashMap<u64, Arc<Progress>>,
    users: HashMap<String, User>,
    namespaces: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct User {
    watches: usize,
    /// By id, how many watches each has.
    classes: HashMap<u64, usize>,
}

/// Whether a watch's connection comes back for more.
#[derive(Debug)]
struct Progress {
    /// When the connection was handed something, until it comes back.
    handed_over: Mutex<Option<Instant>>,
    /// Can be ended whatever its peer takes.
    exchange: Exchange,
}

/// Whose watch a slot is for.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) user: String,
    pub(super) namespace: Option<String>,
    pub(super) class_id: u64,
}

/// One watch's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    holder: Holder,
    progress: Arc<Progress>,
}

// === impl Slots ===

impl Slots {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, making_room: Semaphore::new(1), taken: Mutex::default() }
    }

    /// A place; `exchange` is the watch's.
    ///
    /// # Errors
    /// If a limit is reached.
    pub(super) fn take(self: &Arc<Self>, holder: Holder, exchange: Exchange) -> Result<Slot, Full> {
        let mut taken = self.lock();
        self.check(&taken, &holder)?;
        let id = taken.next_id;
        taken.next_id += 1;
        let progress = Arc::new(Progress { handed_over: Mutex::default(), exchange });
        taken.progress.insert(id, Arc::clone(&progress));
        let user = taken.users.entry(holder.user.clone()).or_default();
        user.watches += 1;
        *user.classes.entry(holder.class_id).or_default() += 1;
        if let Some(namespace) = &holder.namespace {
            *taken.namespaces.entry(namespace.clone()).or_default() += 1;
        }
        drop(taken);
        Ok(Slot { slots: Arc::clone(self), id, holder, progress })
    }

    fn check(&self, taken: &Taken, holder: &Holder) -> Result<(), Full> {
        let user = taken.users.get(&holder.user);
        let in_namespace = holder.namespace.as_ref().and_then(|namespace| taken.namespaces.get(namespace));
        let classes = user.map_or(0, |user| user.classes.len());
        let new_class = user.is_none_or(|user| !user.classes.contains_key(&holder.class_id));
        let limits = self.limits;
        if taken.progress.len() >= limits.watches {
            Err(Full::Server)
        } else if user.map_or(0, |user| user.watches) >= limits.per_user {
            Err(Full::User)
        } else if in_namespace.is_some_and(|watches| *watches >= limits.per_namespace) {
            Err(Full::Namespace)
        } else if new_class && classes >= limits.classes_per_user {
            Err(Full::Classes)
        } else {
            Ok(())
        }
    }

    /// Cuts the watches whose connections have not come back for as long as this.
    pub(super) fn cut_stalled(&self, for_as_long_as: Duration) {
        let taken = self.lock();
        let stalled = taken.progress.values().filter(|progress| progress.stalled() >= Some(for_as_long_as));
        stalled.for_each(|progress| progress.exchange.cut());
    }

    /// The half of those that has not come back for longest, rounded up.
    pub(super) fn cut_half_of_stalled(&self, for_as_long_as: Duration) {
        let taken = self.lock();
        let not_cut = taken.progress.values().filter(|progress| !progress.exchange.is_cut());
        let mut stalled: Vec<_> = not_cut.filter_map(|progress| Some((progress.stalled()?, progress))).collect();
        stalled.retain(|(stalled, _)| *stalled >= for_as_long_as);
        stalled.sort_unstable_by_key(|(stalled, _)| std::cmp::Reverse(*stalled));
        let half = stalled.len().div_ceil(2);
        stalled.iter().take(half).for_each(|(_, progress)| progress.exchange.cut());
    }

    /// One turn for those who wait for room.
    pub(super) fn making_room(&self) -> &Semaphore {
        &self.making_room
    }

    /// How many watches there are.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.lock().progress.len()
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Progress ===

impl Progress {
    /// For how long the connection has not come back.
    fn stalled(&self) -> Option<Duration> {
        self.lock().map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.handed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Slot ===

impl Slot {
    /// The connection has been handed something.
    pub(super) fn handed_over(&self) {
        *self.progress.lock() = Some(Instant::now());
    }

    /// The connection comes back for more: for how long it did not, if it had been handed something.
    pub(super) fn came_back(&self) -> Option<Duration> {
        self.progress.lock().take().map(|since| since.elapsed())
    }

    /// Whether the watch was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.progress.exchange.is_cut()
    }

    /// The places that this is one of.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.progress.remove(&self.id);
        let Holder { user: name, namespace, class_id } = &self.holder;
        if let Some(user) = taken.users.get_mut(name) {
            user.watches -= 1;
            decrement(&mut user.classes, class_id);
            if user.watches == 0 {
                taken.users.remove(name);
            }
        }
        if let Some(namespace) = namespace {
            decrement(&mut taken.namespaces, namespace);
        }
    }
}

/// Counts one down, and forgets what is at zero.
fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { watches: 6, per_user: 3, per_namespace: 4, classes_per_user: 2 };

    fn take(slots: &Arc<Slots>, user: &str, namespace: Option<&str>, class_id: u64) -> Result<Slot, Full> {
        let holder = Holder { user: user.to_owned(), namespace: namespace.map(str::to_owned), class_id };
        slots.take(holder, Exchange::detached())
    }

    #[test]
    fn each_limit_is_a_limit_and_what_is_dropped_is_free_again() {
        let slots = Arc::new(Slots::new(LIMITS));
        let full = |user, namespace, class| take(&slots, user, namespace, class).unwrap_err();
        let alice = [1, 1].map(|class| take(&slots, "alice", Some("shop"), class).unwrap());
        let second_class = take(&slots, "alice", None, 2).unwrap();
        assert_eq!(full("alice", None, 1), Full::User);
        drop(second_class);
        let second_class = take(&slots, "alice", Some("shop"), 2).unwrap();
        drop(alice);
        let alice = take(&slots, "alice", Some("shop"), 1).unwrap();
        assert_eq!(full("alice", None, 3), Full::Classes);
        let bob = [1, 2].map(|class| take(&slots, "bob", Some("shop"), class).unwrap());
        assert_eq!(full("carol", Some("shop"), 1), Full::Namespace);
        let carol = [1, 2].map(|class| take(&slots, "carol", Some("bank"), class).unwrap());
        assert_eq!(full("dave", None, 1), Full::Server);
        drop((alice, bob, carol, second_class));
        let nothing = slots.lock();
        assert!(nothing.progress.is_empty() && nothing.users.is_empty() && nothing.namespaces.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_are_cut_that_were_handed_something_and_did_not_come_back() {
        let slots = Arc::new(Slots::new(LIMITS));
        let [waiting, moving, stalled, fresh] = [1, 2, 3, 4].map(|id| take(&slots, &id.to_string(), None, 1).unwrap());
        // Its connection has sent the headers, and waits for what comes.
        waiting.handed_over();
        waiting.came_back();
        moving.handed_over();
        stalled.handed_over();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(moving.came_back(), Some(Duration::from_secs(29)));
        assert_eq!(moving.came_back(), None);
        fresh.handed_over();
        tokio::time::advance(Duration::from_secs(1)).await;
        slots.cut_stalled(Duration::from_secs(30));
        assert_eq!([&waiting, &moving, &stalled, &fresh].map(Slot::is_cut), [false, false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_that_stand_still_the_half_is_cut_that_does_so_for_longest() {
        let slots = Arc::new(Slots::new(LIMITS));
        let mut holders = Vec::new();
        for user in ["a", "b", "c", "d", "e"] {
            let holder = take(&slots, user, None, 1).unwrap();
            holder.handed_over();
            holders.push(holder);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        slots.cut_half_of_stalled(Duration::from_secs(3));
        let cut = |holders: &[Slot]| holders.iter().map(Slot::is_cut).collect::<Vec<_>>();
        assert_eq!(cut(&holders), [true, true, false, false, false]);
        slots.cut_half_of_stalled(Duration::from_secs(3));
        assert_eq!(cut(&holders), [true, true, true, false, false]);
    }
}
