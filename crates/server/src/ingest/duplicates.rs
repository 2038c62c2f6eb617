//! Which batches are there already: kube-apiserver sends one again when the answer to it was lost.
//!
//! A batch that is sent again is the same bytes, so it is known by a digest of its bytes, together with its source. Never by
//! the audit IDs in it: clients choose those, and who sends an ID that was seen before must not be able to act unseen.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use tokio::time::Instant;

use super::sources::Source;
use crate::metrics::IngestMetrics;

/// How long a batch is remembered: kube-apiserver gives one up within some five minutes of its first event (30 s of waiting,
/// five attempts of 30 s, 97 s between them), and obeys `Retry-After` for a while beyond that.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Batches remembered at a time. Three kube-apiservers at their default of ten batches a second send 18,000 in
/// [`REMEMBERED`]; beyond ten of them, or where somebody raised that default, the oldest go early and are counted.
const MAX_DIGESTS: usize = 65_536;

/// What all that is remembered costs at the very most: 8.1 MiB.
///
/// An entry has its place in the queue, one and a half times while that grows to the double, and its place in the tree,
/// whose nodes have room for eleven, hold five at least and have links beside them.
pub const MAX_BYTES: usize = MAX_DIGESTS * (size_of::<(Instant, Digest)>() * 3 / 2 + size_of::<Digest>() * 11 / 5 + 32);

/// Of a tag of AES-GCM.
const TAG_BYTES: usize = 16;

/// What a batch is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest {
    tag: [u8; TAG_BYTES],
    source: Source,
}

/// Without the tag, which nobody is to see.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digest").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The batches that were published lately.
#[derive(Debug)]
pub(super) struct Digests {
    /// Of this process, and never told.
    ///
    /// A digest is the tag of AES-GCM over the body as additional data (GMAC, NIST SP 800-38D), always under the same nonce: two
    /// bodies of b blocks have the same one by a chance of b / 2^128, whoever wrote them, as long as nobody sees a tag. Of
    /// 65,536 bodies of 64 MiB, any two: 2^-75. It takes a fifteenth of the time of SHA-256.
    key: LessSafeKey,
    known: Mutex<Known>,
    metrics: IngestMetrics,
}

#[derive(Debug, Default)]
struct Known {
    digests: BTreeSet<Digest>,
    /// The same, the oldest first, and since when.
    by_age: VecDeque<(Instant, Digest)>,
}

impl Digests {
    /// None yet. Duplicates, evictions and how many digests there are go to `metrics`.
    ///
    /// # Panics
    /// If the system has no randomness, without which there is no TLS either.
    pub(super) fn new(metrics: IngestMetrics) -> Self {
        let mut key = [0; 16];
        rand::fill(&mut key).expect("the system has randomness");
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("it has the length of such a key");
        Self { key: LessSafeKey::new(key), known: Mutex::default(), metrics }
    }

    /// What a whole body is known by.
    pub(super) fn digest(&self, source: Source, body: &[u8]) -> Digest {
        // Nothing is encrypted, so there is nothing that a nonce of its own would keep apart.
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(body), &mut []);
        let tag = tag.expect("a body is shorter than 2^61 bytes, all that GCM asks for");
        Digest { tag: tag.as_ref().try_into().expect("a tag has 16 bytes"), source }
    }

    /// Publishes a batch unless it is known, and knows it from then on. Looking, publishing and remembering are one step: of
    /// copies that come at the same time one is published, and none is answered before that one is.
    ///
    /// # Errors
    /// What `publish` says; the batch is then not known, so that the next try publishes it.
    pub(super) fn once<E>(&self, digest: Digest, publish: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // Held while the batch is made, too: ingest has one thread, so nobody waits who would not wait anyway.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.forget_old();
        let outcome = if known.digests.contains(&digest) {
            self.metrics.duplicate_batches.inc();
            Ok(())
        } else {
            publish().inspect(|()| {
                if known.by_age.len() >= MAX_DIGESTS {
                    known.forget_oldest();
                    self.metrics.evicted_digests.inc();
                }
                known.digests.insert(digest);
                known.by_age.push_back((Instant::now(), digest));
            })
        };
        self.metrics.digests.set(i64::try_from(known.by_age.len()).unwrap_or(i64::MAX));
        outcome
    }
}

impl Known {
    fn forget_old(&mut self) {
        while self.by_age.front().is_some_and(|(since, _)| since.elapsed() >= REMEMBERED) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, digest)) = self.by_age.pop_front() {
            self.digests.remove(&digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use tokio::time::advance;

    use super::*;
    use crate::ingest::sources::Sources;

    fn digests() -> Digests {
        Digests::new(IngestMetrics::default())
    }

    fn source(name: &str) -> Source {
        Sources::default().claim(Some(name), "a").unwrap()
    }

    /// Whether it was published.
    fn publish(digests: &Digests, source: Source, body: &str) -> bool {
        let mut published = false;
        let publish = || {
            published = true;
            Ok::<_, ()>(())
        };
        digests.once(digests.digest(source, body.as_bytes()), publish).unwrap();
        published
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_is_known_for_ten_minutes_and_no_longer() {
        let (digests, source) = (digests(), source("one"));
        assert!(publish(&digests, source, "a"));
        assert!(publish(&digests, source, "b"));
        advance(REMEMBERED - Duration::from_millis(1)).await;
        assert!(!publish(&digests, source, "a"));
        assert_eq!((digests.metrics.duplicate_batches.get(), digests.metrics.digests.get()), (1, 2));
        advance(Duration::from_millis(1)).await;
        assert!(publish(&digests, source, "a"), "a copy does not prolong it");
        assert_eq!(digests.metrics.digests.get(), 1, "the other one is forgotten, too");
        assert_eq!(digests.metrics.evicted_digests.get(), 0, "its time was over");
    }

    #[test]
    fn other_bytes_are_another_batch_and_other_processes_have_other_digests() {
        let (digests, source) = (digests(), source("one"));
        let of = |body: &str| digests.digest(source, body.as_bytes());
        let body = "x".repeat(1000);
        let others =
            [format!("{body}\0"), format!("\0{body}"), body[1..].to_owned(), body.replacen('x', "y", 1), String::new()];
        assert!(of(&body) == of(&body) && others.iter().all(|other| of(other) != of(&body)));
        let elsewhere = Digests::new(IngestMetrics::default());
        assert_ne!(elsewhere.digest(source, body.as_bytes()), of(&body));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_bytes_of_another_source_are_another_batch() {
        let (digests, sources) = (digests(), Sources::default());
        for name in ["one", "two"] {
            assert!(publish(&digests, sources.claim(Some(name), "a").unwrap(), "a"), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_not_known() {
        let digests = digests();
        let digest = digests.digest(source("one"), b"a");
        assert_eq!(digests.once(digest, || Err("late")), Err("late"));
        assert!(publish(&digests, source("one"), "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_goes_first_where_there_are_too_many_and_is_counted() {
        let (digests, source) = (digests(), source("one"));
        for number in 0..=MAX_DIGESTS {
            assert!(publish(&digests, source, &number.to_string()));
        }
        assert_eq!((digests.metrics.digests.get(), digests.metrics.evicted_digests.get()), (65_536, 1));
        assert!(!publish(&digests, source, "1") && publish(&digests, source, "0"));
        let known = digests.known.lock().unwrap();
        assert_eq!((known.digests.len(), known.by_age.len()), (MAX_DIGESTS, MAX_DIGESTS));
    }

    #[test]
    fn copies_that_come_at_the_same_time_are_published_once_and_answered_after_that() {
        const COPIES: usize = 8;
        let (digests, published, together) = (digests(), AtomicUsize::new(0), Barrier::new(COPIES));
        let digest = digests.digest(source("one"), b"a");
        thread::scope(|scope| {
            for _ in 0..COPIES {
                scope.spawn(|| {
                    together.wait();
                    let publish = || {
                        // Long enough for the others to come in between, if they could.
                        thread::sleep(Duration::from_millis(20));
                        published.fetch_add(1, Ordering::SeqCst);
                        Ok::<_, ()>(())
                    };
                    digests.once(digest, publish).unwrap();
                    assert_eq!(published.load(Ordering::SeqCst), 1);
                });
            }
        });
    }

    #[test]
    fn what_it_costs_is_what_the_documentation_says() {
        assert!((8 << 20..=9 << 20).contains(&MAX_BYTES), "{MAX_BYTES}");
    }
}
