//! What it takes to wake those who are concerned, and to let the others sleep.

use crate::corpus;
use anyhow::Result;
use audit_stream_testplane::front_proxy::Protocol;

use super::Effort;
use crate::figure::{Figure, Goal, Pair, nanoseconds_each};
use crate::readers::{self, Readers};
use crate::reference::Reference;
use crate::stand::{Stand, watch, watch_without_lease};

const NAMESPACE: &str = "shop";
const SLEEPING: usize = 1_000;
const INTERESTED: usize = 200;
const UNINTERESTED: usize = 9_800;
/// Each with a hundred of the uninterested.
const OTHER_NAMESPACES: usize = 98;
/// As many watches as a user has by default.
const WATCHES_OF_A_USER: usize = 20;
/// Of a batch that concerns the interested.
const EVENTS: usize = 40;
/// Publications of a round.
const PUBLICATIONS: u64 = 50;
/// So many times as many rounds where the difference that is looked for is a tenth.
const MORE_ROUNDS: usize = 3;

fn path(namespace: &str) -> String {
    format!("/apis/audit.k8s.io/v1/namespaces/{namespace}/namespacedevents?watch=true")
}

fn seeds(round: usize, effort: Effort) -> impl Iterator<Item = u64> {
    (1..=PUBLICATIONS * effort.scale).map(move |number| number + 10_000 * (round as u64 + 1))
}

/// One event at a time for a thousand watches that have nothing else to do.
pub(super) async fn sleeping(effort: Effort) -> Result<Vec<Figure>> {
    let stand = Stand::start().await?;
    let proxy = stand.proxy(Protocol::Http2).await?;
    let mut first = watch(&proxy, "first", &path(NAMESPACE)).await?;
    stand.post(corpus::namespaced(0, 1, NAMESPACE)).await?;
    let payload = readers::frames(&mut first, 1).await?;
    drop(first);
    let mut watches = Vec::new();
    for index in 0..SLEEPING {
        watches.push(watch(&proxy, &format!("user-{}", index / WATCHES_OF_A_USER), &path(NAMESPACE)).await?);
    }
    let mut ours = Readers::start(watches);
    let (mut reference, connections) = Reference::writing(&payload, SLEEPING, 1).await?;
    let mut readers = Readers::start(connections);

    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let seeds: Vec<u64> = seeds(round, effort).collect();
        let deliveries = (seeds.len() * SLEEPING) as u64;
        let before = reference.cpu_time()?;
        for _ in &seeds {
            reference.trigger(&[0]).await?;
            readers.wait_for(SLEEPING as u64).await?;
        }
        let theirs = nanoseconds_each(reference.cpu_time()?.saturating_sub(before), deliveries);
        let work = async {
            for seed in seeds {
                stand.post(corpus::namespaced(seed, 1, NAMESPACE)).await?;
                ours.wait_for(SLEEPING as u64).await?;
            }
            Ok(())
        };
        let cpu = stand.cpu_time_of(work).await?;
        rounds.push(Pair { ours: nanoseconds_each(cpu, deliveries), reference: theirs });
    }
    let name = "one event to 1,000 sleeping watches, HTTP/2, CPU per watch, ns";
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(0.8)))])
}

/// Batches that concern 200 of 10,000 watches, and 200 of 200. Those whom they do not concern have no leases, whose renewals come
/// with time and not with batches: what they take is a figure of `idle-watches`.
pub(super) async fn uninterested(effort: Effort) -> Result<Vec<Figure>> {
    let (mut many, mut few) = (Crowd::start(UNINTERESTED).await?, Crowd::start(0).await?);
    let mut rounds = Vec::new();
    for round in 0..MORE_ROUNDS * effort.rounds {
        let seeds: Vec<u64> = seeds(round, effort).collect();
        // Each time the other first: what else this machine does is to concern both.
        let (ours, reference);
        if round % 2 == 0 {
            (ours, reference) = (many.deliver(&seeds).await?, few.deliver(&seeds).await?);
        } else {
            (reference, ours) = (few.deliver(&seeds).await?, many.deliver(&seeds).await?);
        }
        rounds.push(Pair { ours, reference });
    }
    let name = "batch of 40 events to 200 watches: CPU with 9,800 uninterested / without, ns";
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(1.1)))])
}

/// A server with watches that are interested, and some that are not.
struct Crowd {
    stand: Stand,
    interested: Readers,
    _uninterested: Readers,
}

impl Crowd {
    async fn start(uninterested: usize) -> Result<Self> {
        let stand = Stand::start().await?;
        let proxy = stand.proxy(Protocol::Http2).await?;
        let (mut interested, mut others) = (Vec::new(), Vec::new());
        for index in 0..INTERESTED {
            interested.push(watch(&proxy, &format!("user-{}", index / WATCHES_OF_A_USER), &path(NAMESPACE)).await?);
        }
        for index in 0..uninterested {
            let (user, namespace) = (index / WATCHES_OF_A_USER, index % OTHER_NAMESPACES);
            let path = path(&format!("other-{namespace}"));
            others.push(watch_without_lease(&proxy, &format!("other-{user}"), &path).await?);
        }
        Ok(Self { stand, interested: Readers::start(interested), _uninterested: Readers::start(others) })
    }

    /// Nanoseconds of CPU for each batch.
    async fn deliver(&mut self, seeds: &[u64]) -> Result<f64> {
        let Self { stand, interested, .. } = self;
        let work = async {
            for &seed in seeds {
                stand.post(corpus::namespaced(seed, EVENTS, NAMESPACE)).await?;
                interested.wait_for((EVENTS * INTERESTED) as u64).await?;
            }
            Ok(())
        };
        Ok(nanoseconds_each(stand.cpu_time_of(work).await?, seeds.len() as u64))
    }
}
