//! How long an event takes from the first byte of its POST to the last of its frame at each of ten readers.

use std::time::Duration;

use crate::corpus;
use anyhow::Result;
use audit_stream_testplane::front_proxy::Protocol;
use tokio::time::{Instant, sleep};

use super::Effort;
use crate::figure::{Figure, Goal, Pair, percentile};
use crate::readers::{self, Readers};
use crate::reference::Reference;
use crate::stand::{Stand, watch};

const WATCHES: usize = 10;
const NAMESPACE: &str = "shop";
const PATH: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";

/// Of a round.
const EVENTS: u64 = 200;

/// Between two events, so that none waits for the one before it.
const PAUSE: Duration = Duration::from_millis(1);

/// Microseconds of one round, of all readers.
type Delays = Vec<f64>;

pub(super) async fn of_single_events(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (protocol, word, [most_p50, most_p99]) in
        [(Protocol::Http1, "HTTP/1.1", [1.5, 2.0]), (Protocol::Http2, "HTTP/2", [2.0, 2.5])]
    {
        let mut rounds = over(protocol, effort).await?;
        for (share, word_of_share, most) in [(0.5, "p50", most_p50), (0.99, "p99", most_p99)] {
            let pair = |(ours, reference): &mut (Delays, Delays)| Pair {
                ours: percentile(ours, share),
                reference: percentile(reference, share),
            };
            let pairs: Vec<Pair> = rounds.iter_mut().map(pair).collect();
            let name = format!("latency of single events, 10 watches, {word}, {word_of_share}, µs");
            figures.push(Figure::ratio(name, &pairs, Some(Goal::AtMost(most))));
        }
    }
    Ok(figures)
}

async fn over(protocol: Protocol, effort: Effort) -> Result<Vec<(Delays, Delays)>> {
    let stand = Stand::start().await?;
    let proxy = stand.proxy(protocol).await?;
    let mut first = watch(&proxy, "first", PATH).await?;
    let trigger = corpus::namespaced(0, 1, NAMESPACE);
    stand.post(trigger.clone()).await?;
    let payload = readers::frames(&mut first, 1).await?;
    drop(first);
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(watch(&proxy, "alice", PATH).await?);
    }
    let mut ours = Readers::start(watches);
    let (mut reference, connections) = Reference::writing(&payload, WATCHES, trigger.len()).await?;
    let mut theirs = Readers::start(connections);

    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let (mut of_ours, mut of_reference) = (Delays::new(), Delays::new());
        for event in 0..EVENTS * effort.scale {
            // One by one, so that both meet the same machine.
            let body = corpus::namespaced(event + 10_000 * (round as u64 + 1), 1, NAMESPACE);
            sleep(PAUSE).await;
            let since = Instant::now();
            stand.post(body).await?;
            ours.wait_for(WATCHES as u64).await?;
            of_ours.extend(ours.delays(since));

            sleep(PAUSE).await;
            let since = Instant::now();
            reference.trigger(&trigger).await?;
            theirs.wait_for(WATCHES as u64).await?;
            of_reference.extend(theirs.delays(since));
        }
        rounds.push((of_ours, of_reference));
    }
    Ok(rounds)
}
