//! What the shipped binary takes, beside what it says at start that it takes at most.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::audit_stream::AuditStream;
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::front_proxy::{Client, Protocol, Watch, request};
use futures::future::try_join_all;
use serde_json::Value;

use crate::ALONE;
use crate::real_cluster::Cluster;

/// A tenth of the defaults.
const FLAGS: [&str; 9] = [
    "--webhook-max-body-bytes=6710886",
    "--webhook-max-inflight-bytes=13421772",
    "--retain-bytes=13421772",
    "--retain-age=90s",
    "--max-watches=1000",
    "--max-watches-per-user=2",
    "--max-watches-per-namespace=20",
    "--max-classes-per-user=2",
    "--logging-format=json",
];

/// Two watches each, all of them different.
const USERS: usize = 150;

/// Three batches of four megabytes at a time, again and again.
const BATCHES_AT_A_TIME: usize = 3;
const ROUNDS: usize = 40;
const BATCH_EVENTS: usize = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_what_is_printed_at_start() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start_with(&FLAGS).await?;
    cluster.let_group_watch_all("stalled").await?;
    let server = cluster.server.as_ref().context("it runs")?;
    let bound = printed_bound(server)?;
    let stalled = open_stalled(&cluster).await?;
    let senders = try_join_all((0..BATCHES_AT_A_TIME).map(|_| cluster.webhook())).await?;
    for round in 0..ROUNDS {
        try_join_all(senders.iter().enumerate().map(|(number, sender)| post(sender, round, number))).await?;
    }
    let peak = peak_bytes(server)?;
    println!("peak {} MiB of {} MiB", peak >> 20, bound >> 20);
    ensure!(peak <= bound, "{peak} bytes were taken, and {bound} were promised");

    // It was as bad as it is said to be: there was no room for all that nobody read.
    let metrics = cluster.front_proxy(Protocol::Http2).await?.user("root").groups(["system:masters"]);
    let metrics = metrics.get("/metrics").await?.body;
    let cut = metrics.lines().find_map(|line| line.strip_prefix("audit_stream_watch_ended_total{reason=\"stalled\"} "));
    ensure!(cut.is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 0)), "none had to be cut: {cut:?}");
    drop(stalled);
    Ok(())
}

/// The sum that the log tells at start.
fn printed_bound(server: &AuditStream) -> Result<u64> {
    let log = server.log();
    let line = log.lines().find(|line| line.contains("memory is bounded")).context("nothing is printed")?;
    serde_json::from_str::<Value>(line)?["bytes"].as_u64().with_context(|| format!("no sum: {line}"))
}

/// The most that the process ever had in memory.
fn peak_bytes(server: &AuditStream) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Ok(peak.context("the system does not tell")?.parse::<u64>()? * 1024)
}

/// Watches that nobody reads, half of them over HTTP/1.1 with a connection each.
async fn open_stalled(cluster: &Cluster) -> Result<Vec<Watch>> {
    let mut watches = Vec::new();
    for user in 0..USERS {
        let protocol = if user % 2 == 0 { Protocol::Http1 } else { Protocol::Http2 };
        let reader = cluster.front_proxy(protocol).await?.user(&format!("stalled-{user}")).groups(["stalled"]);
        for number in [0, 1] {
            let path = format!("/apis/audit.k8s.io/v1/events?watch=true&fieldSelector=auditID!%3D{user}-{number}");
            watches.push(reader.watch(&path).await?);
        }
    }
    Ok(watches)
}

async fn post(sender: &Client, round: usize, number: usize) -> Result<()> {
    let event = |index| event().resource("pods").namespace("shop").audit_id(&format!("{round}-{number}-{index}"));
    let events: Vec<_> = (0..BATCH_EVENTS).map(|index| event(index).user_agent(&"x".repeat(500)).build()).collect();
    let body = event_list(&events);
    ensure!(body.len() > 3 << 20, "{} bytes are no large batch", body.len());
    let answer = sender.send(request("POST", "/webhook", &[("content-type", "application/json")], body)?).await?;
    match answer.status {
        200 => Ok(()),
        other => bail!("{other} {}", answer.body),
    }
}
