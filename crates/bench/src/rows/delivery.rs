//! What it takes to deliver a burst to a hundred watches: from the batch's POST to the last byte at the last reader.

use crate::corpus;
use anyhow::Result;
use audit_stream_testplane::front_proxy::Protocol;

use super::Effort;
use crate::figure::{Figure, Goal, Pair, nanoseconds_each};
use crate::readers::{self, Readers};
use crate::reference::Reference;
use crate::stand::{Stand, watch};

const WATCHES: usize = 100;
const EVENTS: usize = 400;
/// One namespace's, so that every watch gets every event.
const NAMESPACE: &str = "shop";
const PATH: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";

/// Batches of a round.
const BATCHES: u64 = 20;

const DELIVERIES: u64 = (EVENTS * WATCHES) as u64;

/// Each watch on a connection of its own.
pub(super) async fn over_http1(effort: Effort) -> Result<Vec<Figure>> {
    let name = "CPU per delivered event, HTTP/1.1, 100 watches of one class, ns";
    let rounds = against_raw_tls(Protocol::Http1, effort).await?;
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(1.2)))])
}

/// All watches on one connection, as kube-aggregator connects.
pub(super) async fn over_http2(effort: Effort) -> Result<Vec<Figure>> {
    let name = "CPU per delivered event, HTTP/2, one connection of 100 watches, ns";
    let rounds = against_raw_tls(Protocol::Http2, effort).await?;
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(1.3)))])
}

/// Each watch wants something else, and gets the same.
pub(super) async fn of_many_classes(effort: Effort) -> Result<Vec<Figure>> {
    let other = |index: usize| format!("{PATH}&fieldSelector=auditID!=none-{index}");
    let (mut many, mut one) =
        (Ours::start(Protocol::Http2, other).await?, Ours::start(Protocol::Http2, |_| PATH.to_owned()).await?);
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let bodies = bodies(round, effort);
        rounds.push(Pair { ours: many.deliver(&bodies).await?, reference: one.deliver(&bodies).await? });
    }
    let name = "CPU per delivered event, HTTP/2, 100 classes / one class, ns";
    Ok(vec![Figure::ratio(name, &rounds, Some(Goal::AtMost(3.0)))])
}

async fn against_raw_tls(protocol: Protocol, effort: Effort) -> Result<Vec<Pair>> {
    let mut ours = Ours::start(protocol, |_| PATH.to_owned()).await?;
    let (mut reference, connections) = Reference::writing(&ours.payload, WATCHES, 1).await?;
    let mut readers = Readers::start(connections);
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let bodies = bodies(round, effort);
        let before = reference.cpu_time()?;
        for _ in &bodies {
            reference.trigger(&[0]).await?;
            readers.wait_for(DELIVERIES).await?;
        }
        let reference = reference.cpu_time()?.saturating_sub(before);
        let reference = nanoseconds_each(reference, DELIVERIES * bodies.len() as u64);
        rounds.push(Pair { ours: ours.deliver(&bodies).await?, reference });
    }
    Ok(rounds)
}

fn bodies(round: usize, effort: Effort) -> Vec<Vec<u8>> {
    let seeds = (1..=BATCHES * effort.scale).map(|batch| batch + 1_000 * (round as u64 + 1));
    seeds.map(|seed| corpus::namespaced(seed, EVENTS, NAMESPACE)).collect()
}

/// A server with a hundred watches.
struct Ours {
    stand: Stand,
    readers: Readers,
    /// The frames of one batch.
    payload: Vec<u8>,
}

impl Ours {
    async fn start(protocol: Protocol, path: impl Fn(usize) -> String) -> Result<Self> {
        let stand = Stand::start().await?;
        let proxy = stand.proxy(protocol).await?;
        let mut first = watch(&proxy, "first", PATH).await?;
        stand.post(corpus::namespaced(0, EVENTS, NAMESPACE)).await?;
        let payload = readers::frames(&mut first, EVENTS).await?;
        drop(first);
        let mut watches = Vec::new();
        for index in 0..WATCHES {
            watches.push(watch(&proxy, "alice", &path(index)).await?);
        }
        Ok(Self { stand, readers: Readers::start(watches), payload })
    }

    /// Nanoseconds of CPU for each delivered event, everything included.
    async fn deliver(&mut self, bodies: &[Vec<u8>]) -> Result<f64> {
        let Self { stand, readers, .. } = self;
        let work = async {
            for body in bodies {
                stand.post(body.clone()).await?;
                readers.wait_for(DELIVERIES).await?;
            }
            Ok(())
        };
        let cpu = stand.cpu_time_of(work).await?;
        Ok(nanoseconds_each(cpu, DELIVERIES * bodies.len() as u64))
    }
}
