//! What it takes to take a batch, and whether readers who do not read delay that.

use std::time::Duration;

use anyhow::Result;
use audit_stream_testplane::front_proxy::Protocol;
use tokio::time::Instant;

use super::Effort;
use crate::corpus;
use crate::figure::{Figure, Goal, Pair, nanoseconds_each, percentile};
use crate::readers::{Chunks, Readers};
use crate::reference::Reference;
use crate::stand::{Stand, watch};

/// Of a batch of `corpus::metadata`.
const EVENTS: u64 = 400;
/// Batches of a round.
const BATCHES: u64 = 60;
/// Batches of 0.65 MB each as they are retained, before the first round: one and a half times what there is room for. A server that has
/// run for a minute lets an old batch go for each new one, and takes no more memory from the system.
const WARMING: u64 = 320;

const PATH: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";
const WATCHES: usize = 1_000;
const WATCHES_OF_A_USER: usize = 20;
/// How long a round goes on while watches are open: some 150 batches for each of both.
const ROUND: Duration = Duration::from_secs(2);
/// So many times as many rounds as of other rows, because a tail differs more from one to the next.
const MORE_ROUNDS: usize = 2;
/// Batches of 400 events, 0.5 MB each, that leave nobody room who does not read.
const FILLING: u64 = 15;

/// From the first byte of a POST to its answer, everything included, against receiving the same bytes and walking them.
pub(super) async fn posts(effort: Effort) -> Result<Vec<Figure>> {
    let (stand, mut reference) = (Stand::start().await?, Reference::receiving().await?);
    for seed in 1..=WARMING {
        let body = corpus::metadata(seed);
        reference.send(&body).await?;
        stand.post(body).await?;
    }
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let bodies: Vec<Vec<u8>> =
            (1..=BATCHES * effort.scale).map(|seed| corpus::metadata(seed + 1_000 * (round as u64 + 1))).collect();
        let events = EVENTS * bodies.len() as u64;
        let before = reference.cpu_time()?;
        for body in &bodies {
            reference.send(body).await?;
        }
        let theirs = nanoseconds_each(reference.cpu_time()?.saturating_sub(before), events);
        let work = async {
            for body in bodies {
                stand.post(body).await?;
            }
            Ok(())
        };
        let ours = nanoseconds_each(stand.cpu_time_of(work).await?, events);
        rounds.push(Pair { ours, reference: theirs });
    }
    let name = "POST of 400 events until the 200, CPU per event, ns";
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(2.5)))])
}

/// How long kube-apiserver waits for its answer while half of the readers do not read, and while all do.
pub(super) async fn beside_stalled(effort: Effort) -> Result<Vec<Figure>> {
    let (mut half, mut none) = (Audience::start(WATCHES / 2).await?, Audience::start(0).await?);
    let mut rounds = Vec::new();
    let mut seeds = FILLING + 1..;
    for _ in 0..MORE_ROUNDS * effort.rounds {
        let (mut with, mut without, began) = (Vec::new(), Vec::new(), Instant::now());
        // One after the other, and each time the other first: what else this machine does is to concern both.
        for seed in seeds.by_ref() {
            if began.elapsed() >= ROUND * u32::try_from(effort.scale)? {
                break;
            }
            if seed % 2 == 0 {
                with.push(half.answer(seed).await?);
                without.push(none.answer(seed).await?);
            } else {
                without.push(none.answer(seed).await?);
                with.push(half.answer(seed).await?);
            }
        }
        rounds.push(Pair { ours: percentile(&mut with, 0.99), reference: percentile(&mut without, 0.99) });
    }
    let name = "answer to a POST beside 1,000 watches, p99: half of them stalled / none, µs";
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(1.2)))])
}

/// A server with a thousand watches, some of whose readers never read.
struct Audience {
    stand: Stand,
    reading: Readers,
    _stalled: Vec<Chunks>,
}

impl Audience {
    async fn start(stalled: usize) -> Result<Self> {
        let stand = Stand::start().await?;
        // Those who do not read keep their connections from being read, so theirs are not the others'.
        let (proxy, stuck) = (stand.proxy(Protocol::Http2).await?, stand.proxy(Protocol::Http1).await?);
        let (mut reading, mut unread) = (Vec::new(), Vec::new());
        let user = |index: usize| format!("user-{}", index / WATCHES_OF_A_USER);
        for index in 0..stalled {
            unread.push(watch(&stuck, &user(index), PATH).await?);
        }
        // Before the others come, who would read all of it.
        for seed in 1..=FILLING {
            stand.post(corpus::namespaced(seed, 400, "shop")).await?;
        }
        for index in stalled..WATCHES {
            reading.push(watch(&proxy, &user(index), PATH).await?);
        }
        Ok(Self { stand, reading: Readers::start(reading), _stalled: unread })
    }

    /// Microseconds until a batch of one event is answered, which goes to all of them. Returns when those who read have it.
    async fn answer(&mut self, seed: u64) -> Result<f64> {
        let body = corpus::namespaced(seed, 1, "shop");
        let since = Instant::now();
        self.stand.post(body).await?;
        let answered = since.elapsed();
        self.reading.wait_for(self.reading.count() as u64).await?;
        Ok(answered.as_secs_f64() * 1e6)
    }
}
