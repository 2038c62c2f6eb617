//! Readers that never read, through a real kube-apiserver, whose one connection to us they share with everybody.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::front_proxy::{Client, Watch, Windows, request};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::ALONE;
use crate::real_cluster::{ARRIVAL, Cluster};

/// Three hundred watches in all: their windows alone, 4 MiB each, are more than a connection of kube-apiserver's has.
const USERS: usize = 30;
const WATCHES_PER_USER: usize = 10;

/// Ten batches of 400 a second, as many as a kube-apiserver sends by default.
const BATCH_EVENTS: usize = 400;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Some twenty seconds: longer than it takes to fill all windows.
const FLOOD_BATCHES: usize = 200;

/// How long a watch has taken nothing when it is over.
const OVER_AFTER: Duration = Duration::from_secs(30);

/// How long discovery may take, whatever readers do.
const DISCOVERY_WITHIN: Duration = Duration::from_secs(1);

/// How long ingest may take before it says that it cannot.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const EVENTS: &str = "/apis/audit.k8s.io/v1/events?watch=true";
const DISCOVERY: &str = "/apis/audit.k8s.io/v1";

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_read_cost_nobody_else() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    cluster.let_group_watch_all("stalled").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    let healthy = watch(&admin, &format!("{EVENTS}&resource=floods&timeoutSeconds=600")).await?;
    let stalled = open_stalled(&cluster).await?;

    let mut tasks = JoinSet::new();
    tasks.spawn(read_all(healthy));
    let webhook = cluster.webhook().await?;
    let mut flood = JoinSet::new();
    flood.spawn(async move { post_flood(&webhook).await });
    let slowest_discovery = discover_until(&admin, &mut flood).await?;
    tasks.join_next().await.context("it was spawned")???;
    println!("slowest discovery: {slowest_discovery:?}");

    sleep(OVER_AFTER).await;
    // All at once: those of a user share a connection, on which what one does not read keeps it from the others.
    let mut ends = JoinSet::new();
    stalled.into_iter().for_each(|watch| drop(ends.spawn(end(watch))));
    while let Some(message) = ends.join_next().await {
        assert_eq!(message??, "the watch took nothing for 30 seconds and is over");
    }
    Ok(())
}

/// The watches that nobody reads. Each user has a connection of their own to kube-apiserver.
async fn open_stalled(cluster: &Cluster) -> Result<Vec<Watch>> {
    let mut watches = Vec::new();
    for user in 0..USERS {
        // Small windows of their own: what is to be full is kube-apiserver's.
        let target = cluster.apiserver(&format!("stalled-{user}"), &["stalled"]);
        let client = Client::connect(target.windows(Windows { connection: 1 << 20, stream: 1 << 16 })).await?;
        for number in 0..WATCHES_PER_USER {
            watches.push(watch(&client, &format!("{EVENTS}&fieldSelector=auditID!%3D{number}")).await?);
        }
    }
    Ok(watches)
}

async fn watch(client: &Client, path: &str) -> Result<Watch> {
    match client.watch(request("GET", path, &[], "")?).await? {
        Ok(watch) => Ok(watch),
        Err(refusal) => bail!("{path}: {} {}", refusal.status, refusal.body),
    }
}

async fn post_flood(webhook: &Client) -> Result<()> {
    let mut ticks = interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut slowest = Duration::ZERO;
    for batch in 0..FLOOD_BATCHES {
        let events: Vec<_> = (0..BATCH_EVENTS).map(|number| flood_event(batch * BATCH_EVENTS + number)).collect();
        let body = event_list(&events);
        ticks.tick().await;
        let posted = Instant::now();
        let answer = webhook.send(request("POST", "/webhook/flood", &[("content-type", "application/json")], body)?);
        let answer = timeout(ANSWER_WITHIN, answer).await.context("ingest did not answer in time")??;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        slowest = slowest.max(posted.elapsed());
    }
    println!("slowest answer of ingest: {slowest:?}");
    Ok(())
}

fn flood_event(number: usize) -> String {
    let event = event().resource("floods").namespace("shop").name("prices").audit_id(&format!("flood-{number}"));
    event.user_agent(&"x".repeat(300)).build()
}

/// Asks for the API's resources again and again until the flood is over, and returns how long the slowest answer took.
async fn discover_until(admin: &Client, flood: &mut JoinSet<Result<()>>) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    loop {
        if let Some(ended) = flood.try_join_next() {
            ended??;
            return Ok(slowest);
        }
        let asked = Instant::now();
        let answer = timeout(DISCOVERY_WITHIN, admin.get(DISCOVERY, &[])).await;
        let answer = answer.with_context(|| format!("discovery took longer than {DISCOVERY_WITHIN:?}"))??;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        slowest = slowest.max(asked.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
}

/// Reads the whole flood, each of it once and in order.
async fn read_all(watch: Watch) -> Result<()> {
    let mut lines = watch.into_lines();
    for number in 0..FLOOD_BATCHES * BATCH_EVENTS {
        let line = timeout(ARRIVAL, lines.next()).await.with_context(|| format!("flood-{number} did not come"))??;
        let line = line.with_context(|| format!("it ended before flood-{number}"))?;
        let text = String::from_utf8_lossy(&line);
        ensure!(text.contains(&format!("\"auditID\":\"flood-{number}\"")), "not flood-{number} but {text}");
        ensure!(!text.contains("audit-stream.dev/gap"), "a gap: {text}");
    }
    Ok(())
}

/// What the last frame of a watch says, which is an error.
async fn end(watch: Watch) -> Result<String> {
    let mut lines = watch.into_lines();
    let mut last = None;
    while let Some(line) = timeout(ARRIVAL, lines.next()).await.context("nothing came")?? {
        last = Some(line);
    }
    let last: Value = serde_json::from_slice(&last.context("it ended without a word")?)?;
    ensure!(last["type"] == "ERROR" && last["object"]["code"] == 410, "it ended with {last}");
    Ok(last["object"]["message"].as_str().unwrap_or_default().to_owned())
}
