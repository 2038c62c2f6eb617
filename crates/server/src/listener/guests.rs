//! Who is on a listener: guests, and connections on which somebody was seen who is known.
//!
//! Anybody in the cluster can open connections, and a limit on all of them would be one that strangers can use up for everybody
//! else. So a stranger's connection is a *guest*, of which there is a bounded number too, but never one too many: a newcomer takes
//! the place of the one that has been a guest for longest. A flood of strangers is then churn, in which who asks at once, such as
//! the kubelet's probe, is answered; and connections that are known, kube-apiserver's, are not touched by it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Guests at a time on a listener.
///
/// Two cores shake hands with some 4,000 strangers a second, so a guest has an eighth of a second for its request in a flood of
/// those. At 160 KiB each they are 80 MiB at the worst.
pub const MAX_GUESTS: usize = 512;

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Guests {
    max: usize,
    here: Mutex<Here>,
    /// One for each connection that may be known.
    known: Arc<Semaphore>,
}

/// The guests, in the order in which they came.
#[derive(Debug, Default)]
struct Here {
    came: u64,
    guests: BTreeMap<u64, CancellationToken>,
}

/// One connection's, from its first byte to its last: a guest's, until it is known.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Guests>,
    number: u64,
    sent_away: CancellationToken,
    known: OnceLock<OwnedSemaphorePermit>,
}

// === impl Guests ===

impl Guests {
    /// Room for so many guests, and besides for so many that are known.
    pub(super) fn new(max: usize, known: usize) -> Arc<Self> {
        let known = Arc::new(Semaphore::new(known.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { max, here: Mutex::default(), known })
    }

    /// A place for a newcomer, if need be that of the first of those who are here.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let sent_away = CancellationToken::new();
        let mut here = self.here();
        if here.guests.len() >= self.max {
            here.send_first_away();
        }
        here.came += 1;
        let number = here.came;
        here.guests.insert(number, sent_away.clone());
        Place { of: Arc::clone(self), number, sent_away, known: OnceLock::new() }
    }

    /// Makes room where it is not places that are short.
    pub(super) fn send_first_away(&self) {
        self.here().send_first_away();
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        // Whoever panicked with it changed nothing halfway.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    fn send_first_away(&mut self) {
        if let Some((_, guest)) = self.guests.pop_first() {
            guest.cancel();
        }
    }
}

// === impl Place ===

impl Place {
    /// Makes it a known connection's, which nobody takes from it. Whether there was room; without, it stays a guest's.
    pub(super) fn becomes_known(&self) -> bool {
        if self.known.get().is_some() {
            return true;
        }
        let Ok(permit) = Arc::clone(&self.of.known).try_acquire_owned() else { return false };
        // Two requests may come here at once; the second's permit is given back.
        let _ = self.known.set(permit);
        self.leave_guests();
        true
    }

    /// Runs what the connection does, until it is sent away: then `None`.
    pub(super) async fn unless_sent_away<F: Future>(&self, connection: F) -> Option<F::Output> {
        self.sent_away.run_until_cancelled(connection).await
    }

    fn leave_guests(&self) {
        self.of.here().guests.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_guests();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    fn is_here(place: &Place) -> bool {
        place.unless_sent_away(ready(())).now_or_never().flatten().is_some()
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_first() {
        let guests = Guests::new(2, 1);
        let [first, second, third] = [(); 3].map(|()| guests.enter());
        assert_eq!([&first, &second, &third].map(is_here), [false, true, true]);
        // One that left has made room.
        drop(third);
        let fourth = guests.enter();
        assert_eq!([&second, &fourth].map(is_here), [true, true]);
        // One that was sent away takes nobody's place with it.
        drop(first);
        assert!(guests.enter().unless_sent_away(pending::<()>()).now_or_never().is_none());
        assert_eq!([&second, &fourth].map(is_here), [false, true]);
    }

    #[test]
    fn who_is_known_is_no_guest_and_gives_back_what_it_has() {
        let guests = Guests::new(1, 1);
        let known = guests.enter();
        assert!(known.becomes_known() && known.becomes_known());
        let guest = guests.enter();
        assert!(is_here(&known) && is_here(&guest), "one guest is not too many");
        assert!(!guest.becomes_known(), "one is known, and no more may be");
        drop(guests.enter());
        assert!(is_here(&known) && !is_here(&guest), "who had no room stayed a guest");
        drop(known);
        let next = guests.enter();
        assert!(next.becomes_known());
    }

    #[test]
    fn where_something_else_is_short_the_first_goes() {
        let guests = Guests::new(10, 1);
        guests.send_first_away();
        let [first, second] = [(); 2].map(|()| guests.enter());
        guests.send_first_away();
        assert_eq!([&first, &second].map(is_here), [false, true]);
    }
}
