//! Who is on a listener: guests, and connections on which somebody was seen who is known.
//!
//! Anybody in the cluster can open connections, and a limit on all of them would be one that strangers can use up for everybody
//! else. So a stranger's connection is a *guest*, of which there is a bounded number too, but never one too many: a newcomer takes
//! the place of the one that has been a guest for longest, of those from the address that has most. A flood of strangers is then churn, in which who asks at once, such as
//! the kubelet's probe, is answered; and connections that are known are not touched by it. Among those, kube-apiserver's have a
//! number of their own, which no user can use up who comes past it; of theirs each has a part.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

/// Guests at a time on a listener.
///
/// Two cores shake hands with some 4,000 strangers a second, so a guest has a sixteenth of a second for its request in a flood of
/// those. At 160 KiB each they are 40 MiB, and what they ask takes more (`UNANSWERED_OF_A_GUEST` in `exchange`).
pub const MAX_GUESTS: usize = 256;

/// Connections at a time of users who come past the front proxy: Prometheus, and who watches with a token of their own.
pub const MAX_USERS_CONNECTIONS: usize = 1000;

/// How many of those one user may have. Over HTTP/1.1 each watch takes one, and a user may have twenty by default.
const CONNECTIONS_PER_USER: usize = 100;

/// As whose a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownAs<'a> {
    /// kube-apiserver's, which has a certificate and speaks for others.
    ApiServer,
    /// A user's of this name, who speaks for themselves.
    User(&'a str),
}

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Guests {
    max: usize,
    /// Of kube-apiservers.
    max_known: usize,
    here: Mutex<Here>,
}

/// Who is here.
#[derive(Debug, Default)]
struct Here {
    came: u64,
    /// The guests, by where they came from and in the order in which they came. No address is there without one.
    guests: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    /// How many.
    count: usize,
    /// How many connections of kube-apiservers.
    api_servers: usize,
    /// How many of each user who has some.
    users: HashMap<String, usize>,
    /// How many of all users together.
    of_users: usize,
}

/// What a place that is known counts as.
#[derive(Debug)]
enum Known {
    ApiServer,
    User(String),
}

/// One connection's, from its first byte to its last: a guest's, until it is known.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Guests>,
    address: IpAddr,
    number: u64,
    sent_away: CancellationToken,
    known: OnceLock<Known>,
}

// === impl Guests ===

impl Guests {
    /// Room for so many guests, and besides for so many connections of kube-apiservers and [`MAX_USERS_CONNECTIONS`] of users.
    pub(super) fn new(max: usize, max_known: usize) -> Arc<Self> {
        Arc::new(Self { max, max_known, here: Mutex::default() })
    }

    /// A place for a newcomer, if need be that of another.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Place {
        let sent_away = CancellationToken::new();
        let mut here = self.here();
        if here.count >= self.max {
            here.send_one_away();
        }
        here.came += 1;
        here.count += 1;
        let number = here.came;
        here.guests.entry(address).or_default().insert(number, sent_away.clone());
        Place { of: Arc::clone(self), address, number, sent_away, known: OnceLock::new() }
    }

    /// Makes room where it is not places that are short.
    pub(super) fn send_one_away(&self) {
        self.here().send_one_away();
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        // Whoever panicked with it changed nothing halfway.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    /// The first of those from the address that has most; of several such, from the one whose first came first.
    fn send_one_away(&mut self) {
        let most = self.guests.iter().max_by_key(|(_, guests)| (guests.len(), Reverse(guests.keys().next().copied())));
        let Some((&address, guests)) = most else { return };
        let Some((&number, guest)) = guests.first_key_value() else { return };
        guest.cancel();
        self.forget(address, number);
    }

    /// Of one who is no guest any longer.
    fn forget(&mut self, address: IpAddr, number: u64) {
        let Entry::Occupied(mut guests) = self.guests.entry(address) else { return };
        self.count -= usize::from(guests.get_mut().remove(&number).is_some());
        if guests.get().is_empty() {
            guests.remove();
        }
    }

    /// Counts one more that is known, if there is room.
    fn admit(&mut self, known_as: KnownAs<'_>, max_known: usize) -> Option<Known> {
        match known_as {
            KnownAs::ApiServer => {
                if self.api_servers >= max_known {
                    return None;
                }
                self.api_servers += 1;
                Some(Known::ApiServer)
            }
            KnownAs::User(name) => {
                let has = self.users.get(name).copied().unwrap_or_default();
                if self.of_users >= MAX_USERS_CONNECTIONS || has >= CONNECTIONS_PER_USER {
                    return None;
                }
                self.of_users += 1;
                self.users.insert(name.to_owned(), has + 1);
                Some(Known::User(name.to_owned()))
            }
        }
    }

    fn leave(&mut self, known: &Known) {
        match known {
            Known::ApiServer => self.api_servers -= 1,
            Known::User(name) => {
                self.of_users -= 1;
                match self.users.get_mut(name) {
                    Some(has) if *has > 1 => *has -= 1,
                    _ => drop(self.users.remove(name)),
                }
            }
        }
    }
}

// === impl Place ===

impl Place {
    /// Makes it a known connection's, which nobody takes from it. Whether there was room; without, it stays a guest's. One that
    /// is known stays what it was known as first.
    pub(super) fn becomes_known(&self, known_as: KnownAs<'_>) -> bool {
        if self.known.get().is_some() {
            return true;
        }
        let mut here = self.of.here();
        // Again, because two requests may come here at once.
        if self.known.get().is_some() {
            return true;
        }
        let Some(known) = here.admit(known_as, self.of.max_known) else { return false };
        here.forget(self.address, self.number);
        self.known.set(known).is_ok()
    }

    /// Whether somebody who is known was seen on its connection.
    pub(super) fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    /// Runs what the connection does, until it is sent away: then `None`.
    pub(super) async fn unless_sent_away<F: Future>(&self, connection: F) -> Option<F::Output> {
        self.sent_away.run_until_cancelled(connection).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut here = self.of.here();
        match self.known.get() {
            None => here.forget(self.address, self.number),
            Some(known) => here.leave(known),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    const ANYWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn is_here(place: &Place) -> bool {
        place.unless_sent_away(ready(())).now_or_never().flatten().is_some()
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_first() {
        let guests = Guests::new(2, 1);
        let [first, second, third] = [(); 3].map(|()| guests.enter(ANYWHERE));
        assert_eq!([&first, &second, &third].map(is_here), [false, true, true]);
        // One that left has made room.
        drop(third);
        let fourth = guests.enter(ANYWHERE);
        assert_eq!([&second, &fourth].map(is_here), [true, true]);
        // One that was sent away takes nobody's place with it.
        drop(first);
        assert!(guests.enter(ANYWHERE).unless_sent_away(pending::<()>()).now_or_never().is_none());
        assert_eq!([&second, &fourth].map(is_here), [false, true]);
    }

    #[test]
    fn who_is_known_is_no_guest_and_gives_back_what_it_has() {
        let guests = Guests::new(1, 1);
        let known = guests.enter(ANYWHERE);
        assert!(known.becomes_known(KnownAs::ApiServer) && known.becomes_known(KnownAs::ApiServer));
        let guest = guests.enter(ANYWHERE);
        assert!(is_here(&known) && is_here(&guest), "one guest is not too many");
        assert!(!guest.becomes_known(KnownAs::ApiServer), "one is known, and no more may be");
        drop(guests.enter(ANYWHERE));
        assert!(is_here(&known) && !is_here(&guest), "who had no room stayed a guest");
        drop(known);
        let next = guests.enter(ANYWHERE);
        assert!(next.becomes_known(KnownAs::ApiServer));
    }

    #[test]
    fn users_have_a_part_of_their_own_number_and_take_none_of_kube_apiservers() {
        let guests = Guests::new(1, 1);
        let enter = |name: &str, count: usize| {
            let places = (0..count).map(|_| guests.enter(ANYWHERE));
            places.filter(|place| place.becomes_known(KnownAs::User(name))).collect::<Vec<_>>()
        };
        let greedy = enter("greedy", CONNECTIONS_PER_USER + 5);
        assert_eq!(greedy.len(), CONNECTIONS_PER_USER);
        let others: Vec<_> = (0..20).map(|number| enter(&format!("user-{number}"), CONNECTIONS_PER_USER)).collect();
        let all: usize = others.iter().map(Vec::len).sum();
        assert_eq!(all + greedy.len(), MAX_USERS_CONNECTIONS);
        assert!(guests.enter(ANYWHERE).becomes_known(KnownAs::ApiServer));
        assert!(greedy[0].becomes_known(KnownAs::User("another")), "it is known already");
        drop((greedy, others));
        assert_eq!(enter("greedy", 1).len(), 1);
        assert!(guests.here().users.is_empty() && guests.here().of_users == 0);
    }

    #[test]
    fn a_flood_from_one_address_crowds_out_itself() {
        let guests = Guests::new(4, 1);
        let (flood, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let api_server = guests.enter(other);
        let strangers: Vec<_> = (0..100).map(|_| guests.enter(flood)).collect();
        assert!(is_here(&api_server));
        assert_eq!(strangers.iter().filter(|place| is_here(place)).count(), 3);
        assert!(is_here(&strangers[99]) && !is_here(&strangers[96]));
        drop(strangers);
        assert_eq!(guests.here().guests.len(), 1);
        drop(api_server);
        assert!(guests.here().guests.is_empty() && guests.here().count == 0);
    }

    #[test]
    fn where_something_else_is_short_the_first_goes() {
        let guests = Guests::new(10, 1);
        guests.send_one_away();
        let [first, second] = [(); 2].map(|()| guests.enter(ANYWHERE));
        guests.send_one_away();
        assert_eq!([&first, &second].map(is_here), [false, true]);
    }
}
