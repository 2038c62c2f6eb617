//! What a watch takes that has nothing to do, and one that does not read.

use std::time::Duration;

use crate::corpus;
use anyhow::{Result, ensure};
use audit_stream_testplane::front_proxy::{Client, Protocol};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Effort;
use crate::figure::{Figure, Goal};
use crate::readers::Chunks;
use crate::stand::{Stand, watch};
use crate::usage;

/// As disks and goals have it.
pub(super) const MEGABYTE: f64 = 1e6;
const KILOBYTE: f64 = 1e3;

const IDENTITIES: usize = 1_000;
const CLASSES: usize = 100;

/// Until what was taken for the opening has been given back.
const SETTLED: Duration = Duration::from_secs(2);

/// What those who do not read are sent: 4,000 events a second, as three kube-apiservers at their default rate, for as long as
/// fills whatever there is to fill.
const BATCHES: u64 = 40;
const EVENTS: usize = 400;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Watches that never get anything, and read.
pub(super) async fn idle(effort: Effort) -> Result<Vec<Figure>> {
    let _ = effort;
    Ok(vec![
        Figure::absolute(
            "resident memory per idle watch, 10,000 over HTTP/2, KB",
            &[idle_over(Protocol::Http2, 10_000).await?],
            Some(Goal::AtMost(6.0)),
        ),
        Figure::absolute(
            "resident memory per idle watch, 1,000 over HTTP/1.1, KB",
            &[idle_over(Protocol::Http1, 1_000).await?],
            Some(Goal::AtMost(32.0)),
        ),
    ])
}

async fn idle_over(protocol: Protocol, count: usize) -> Result<f64> {
    let stand = Stand::start().await?;
    let proxy = stand.proxy(protocol).await?;
    sleep(SETTLED).await;
    let before = stand.resident_bytes()?;
    let watches = open(&proxy, count).await?;
    sleep(SETTLED).await;
    let growth = stand.resident_bytes()?.saturating_sub(before);
    drop(watches);
    Ok(growth as f64 / count as f64 / KILOBYTE)
}

/// Each identity has as many watches as it takes, in all classes alike.
async fn open(proxy: &Client, count: usize) -> Result<Vec<Chunks>> {
    let mut watches = Vec::new();
    for index in 0..count {
        let (user, class) = (index % IDENTITIES, (index + index / IDENTITIES) % CLASSES);
        let path = format!("/apis/audit.k8s.io/v1/namespaces/shop-{class}/namespacedevents?watch=true");
        watches.push(watch(proxy, &format!("user-{user}"), &path).await?);
    }
    Ok(watches)
}

/// Watches that are sent much, and do not read.
pub(super) async fn stalled(effort: Effort) -> Result<Vec<Figure>> {
    let _ = effort;
    let mut figures = Vec::new();
    for (protocol, word) in [(Protocol::Http1, "HTTP/1.1"), (Protocol::Http2, "HTTP/2")] {
        let count = 500;
        let stand = Stand::start().await?;
        let proxy = stand.proxy(protocol).await?;
        let mut watches = Vec::new();
        for index in 0..count {
            let path = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";
            watches.push(watch(&proxy, &format!("user-{}", index / 20), path).await?);
        }
        sleep(SETTLED).await;
        // What is retained grows in any case.
        let (resident, kernel) = (stand.resident_bytes()?, usage::kernel_tcp_bytes()?);
        let mut tick = interval(BATCH_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for seed in 1..=BATCHES {
            tick.tick().await;
            stand.post(corpus::namespaced(seed, EVENTS, "shop")).await?;
        }
        let per_watch = |bytes: u64| bytes as f64 / count as f64 / KILOBYTE;
        let resident = stand.resident_bytes()?.saturating_sub(resident);
        let kernel = usage::kernel_tcp_bytes()?.saturating_sub(kernel);
        ensure!(watches.len() == count, "nobody has read");
        for (what, bytes, most) in [("resident", resident, 160.0), ("kernel", kernel, 256.0)] {
            let name = format!("growth per watch that stopped reading, {word}, {what}, KB");
            figures.push(Figure::absolute(name, &[per_watch(bytes)], Some(Goal::AtMost(most))));
        }
    }
    Ok(figures)
}
