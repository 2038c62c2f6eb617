//! What a watch takes that has nothing to do, and one that does not read.

use std::collections::HashMap;
use std::time::Duration;

use crate::corpus;
use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::{Client, Protocol};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Effort;
use crate::figure::{Figure, Goal, Pair};
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

/// In which the lease of each watch is renewed: from 8 s on, and a little later where many come up together.
const RENEWED: Duration = Duration::from_secs(10);

/// What those who do not read are sent: 4,000 events a second, as three kube-apiservers at their default rate, for as long as
/// fills whatever there is to fill.
const BATCHES: u64 = 40;
const EVENTS: usize = 400;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Watches that never get anything, and read.
pub(super) async fn idle(_: Effort) -> Result<Vec<Figure>> {
    let (http2, http1) = (idle_over(Protocol::Http2, 10_000).await?, idle_over(Protocol::Http1, 1_000).await?);
    let memory = |name, idle: Idle, goal| Figure::absolute(name, &[idle.kilobytes], Some(Goal::AtMost(goal)));
    Ok(vec![
        memory("resident memory per idle watch, 10,000 over HTTP/2, KB", http2, 6.0),
        memory("resident memory per idle watch, 1,000 over HTTP/1.1, KB", http1, 32.0),
        Figure::absolute("leases of 10,000 idle watches, share of a core, %", &[http2.percent_of_core], None),
    ])
}

/// What watches take that have nothing to do.
#[derive(Clone, Copy)]
struct Idle {
    /// Each.
    kilobytes: f64,
    /// All together, while their leases are renewed.
    percent_of_core: f64,
}

/// Memory is looked at behind the renewals, because what these take for a moment the process may keep.
async fn idle_over(protocol: Protocol, count: usize) -> Result<Idle> {
    let stand = Stand::start().await?;
    let proxy = stand.proxy(protocol).await?;
    sleep(SETTLED).await;
    let before = stand.resident_bytes()?;
    let watches = open(&proxy, count).await?;
    sleep(SETTLED).await;
    let cpu = stand.cpu_time()?;
    sleep(RENEWED).await;
    let cpu = stand.cpu_time()?.saturating_sub(cpu);
    let growth = stand.resident_bytes()?.saturating_sub(before);
    drop(watches);
    Ok(Idle {
        kilobytes: growth as f64 / count as f64 / KILOBYTE,
        percent_of_core: 100.0 * cpu.as_secs_f64() / RENEWED.as_secs_f64(),
    })
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
pub(super) async fn stalled(_: Effort) -> Result<Vec<Figure>> {
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
        let name = format!("growth with 500 watches that stopped reading / bound told at start, {word}, MB");
        let (ours, reference) = (resident as f64 / MEGABYTE, bound_of_growth(&stand.log())? as f64 / MEGABYTE);
        figures.push(Figure::ratio(name, &[Pair { ours, reference }], Some(Goal::AtMost(1.0))));
        for (what, bytes, most) in [("resident", resident, 160.0), ("kernel", kernel, 256.0)] {
            let name = format!("growth per watch that stopped reading, {word}, {what}, KB");
            figures.push(Figure::absolute(name, &[per_watch(bytes)], Some(Goal::AtMost(most))));
        }
    }
    Ok(figures)
}

/// The terms of what the server says that it takes at most, which readers who take nothing fill.
fn bound_of_growth(log: &str) -> Result<u64> {
    let line = log.lines().find(|line| line.contains("memory is bounded")).context("no bound is told")?;
    let line: Value = serde_json::from_str(line)?;
    let formula = line["formula"].as_str().context("no formula is told")?;
    let terms: HashMap<_, _> = formula.split(" + ").filter_map(|term| term.split_once(' ')).collect();
    let term = |name: &str| Ok(terms.get(name).with_context(|| format!("no {name} in {formula}"))?.parse::<u64>()?);
    ["retained", "frames", "watches", "connections"].into_iter().map(term).sum()
}
