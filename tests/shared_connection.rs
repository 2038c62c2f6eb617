//! The one connection over which kube-apiserver sends the requests of all its users, and what users who read nothing leave
//! of it to the others.

use anyhow::{Result, ensure};
use audit_stream_testplane::front_proxy::{FrontProxy, ProxiedUser, Watch, Windows};
use audit_stream_testplane::webhook_sender::WebhookSender;
use futures::future::try_join_all;

use crate::stage::{EVENTS, Stage, eventually, in_namespace, read_until};

/// A sixteenth of what Go's client grants, so that less has to be sent to fill it: as there, 256 streams leave nothing.
const WINDOWS: Windows = Windows { connection: Windows::GO.connection / 16, stream: Windows::GO.stream / 16 };

/// As many watches as one user may have.
const EACH: usize = 20;

/// So many watchers of the whole cluster, [`EACH`] of them the same user.
fn watchers(proxy: &FrontProxy, count: usize) -> impl Iterator<Item = ProxiedUser> {
    (0..count).map(|n| proxy.user(&format!("admin-{}", n / EACH)).groups(["system:masters"]))
}

/// Opens watches, one after the other.
async fn open_watches(proxy: &FrontProxy, count: usize) -> Result<Vec<Watch>> {
    let mut watches = Vec::new();
    for watcher in watchers(proxy, count) {
        watches.push(watcher.watch(EVENTS).await?);
    }
    Ok(watches)
}

/// Sends events of more than a stream's window, and waits until so many watches have as much as they can have unread.
async fn fill(stage: &Stage, sender: &WebhookSender, watches: usize) -> Result<()> {
    let agent = "x".repeat(100_000);
    ["a", "b", "last"].iter().for_each(|id| sender.send(in_namespace("shop", id).user_agent(&agent)));
    sender.flush().await?;
    let windows = f64::from(WINDOWS.stream) * watches as f64;
    let full = async || {
        let sent = stage.metric("audit_stream_watch_sent_bytes_total", &[]).await?;
        Ok((sent >= windows).then_some(()))
    };
    eventually("every watch's window to be full", full).await
}

async fn assert_discovery_answers(proxy: &FrontProxy) -> Result<()> {
    let aggregator = proxy.component("system:kube-aggregator").groups(["system:masters"]);
    let answer = aggregator.get("/apis/audit.k8s.io/v1").await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(())
}

/// How many connections were retired, for either reason.
async fn retired(stage: &Stage) -> Result<[f64; 2]> {
    let name = "audit_stream_retired_connections_total";
    let watches = stage.metric(name, &[("listener", "api"), ("reason", "watches")]).await?;
    let stuck = stage.metric(name, &[("listener", "api"), ("reason", "stuck")]).await?;
    Ok([watches, stuck])
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_answers_beside_as_many_unread_watches_as_a_connection_takes() -> Result<()> {
    let stage = Stage::start().await?;
    let sender = stage.sender().await?;
    let proxy = stage.proxy_granting(WINDOWS).await?;
    let watches = open_watches(&proxy, 199).await?;
    fill(&stage, &sender, watches.len()).await?;
    assert_discovery_answers(&proxy).await?;
    assert_eq!(proxy.connections(), 1);
    assert_eq!(retired(&stage).await?, [0.0, 0.0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_answers_however_many_watches_nobody_reads() -> Result<()> {
    let stage = Stage::start().await?;
    let sender = stage.sender().await?;
    let proxy = stage.proxy_granting(WINDOWS).await?;
    // More than would fill one connection.
    let mut watches = open_watches(&proxy, 280).await?;
    fill(&stage, &sender, watches.len()).await?;
    assert_discovery_answers(&proxy).await?;
    assert_eq!(proxy.connections(), 2);
    assert_eq!(retired(&stage).await?, [1.0, 0.0]);
    // Who begins to read late, on either connection, has missed nothing.
    for index in [0, 199, 200, 279] {
        assert_eq!(read_until(&mut watches[index], "last").await?.len(), 3);
    }
    Ok(())
}

/// As after a restart: all of a cluster's watches come at once, and more of them meet the first connection than it takes.
#[tokio::test(flavor = "multi_thread")]
async fn watches_that_come_at_once_find_connections_with_room_for_them() -> Result<()> {
    let stage = Stage::start().await?;
    let sender = stage.sender().await?;
    let proxy = stage.proxy_granting(WINDOWS).await?;
    let all = watchers(&proxy, 500).map(|watcher| async move { watcher.watch(EVENTS).await });
    let watches = try_join_all(all).await?;
    fill(&stage, &sender, watches.len()).await?;
    assert_discovery_answers(&proxy).await?;
    // No connection had more than 240.
    assert!(proxy.connections() >= 3, "{}", proxy.connections());
    Ok(())
}
