//! A user who opens and cancels watches as fast as they can, through a real kube-apiserver, is nobody else's trouble.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::front_proxy::{Client, Watch, request};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::ALONE;
use crate::real_cluster::{ARRIVAL, Cluster, watch_path};

/// How long it lasts: eight times over, all watches that a connection takes, which is then replaced.
const STORM: Duration = Duration::from_secs(20);

/// Eight at a time, each every 16 ms: 500 a second.
const AT_A_TIME: u64 = 8;
const PACE: Duration = Duration::from_millis(16);

/// Fewer would be no storm. Two fifths of what is meant, for machines that do other things at the same time.
const LEAST_PER_SECOND: u64 = 200;

/// What somebody else reads meanwhile: twenty events a second.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);

/// How long discovery may take, whatever a user does.
const DISCOVERY_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn opening_and_cancelling_without_end_breaks_nobody_elses_watch() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    cluster.let_watch(&cluster.person("mallory")?, "shop").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    let watched = "/apis/audit.k8s.io/v1/events?watch=true&resource=deeds&timeoutSeconds=600";
    let watch = match admin.watch(request("GET", watched, &[], "")?).await? {
        Ok(watch) => watch,
        Err(refusal) => bail!("{watched}: {} {}", refusal.status, refusal.body),
    };

    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let mut storm = JoinSet::new();
    let mallory = cluster.client("mallory", &[]).await?;
    for _ in 0..AT_A_TIME {
        storm.spawn(open_and_cancel(mallory.clone(), Arc::clone(&counts)));
    }
    let mut deeds = JoinSet::new();
    let webhook = cluster.webhook().await?;
    deeds.spawn(async move { post_deeds(&webhook).await });
    let slowest = discover_until(&admin, &mut storm).await?;
    let took = began.elapsed();
    let sent = deeds.join_next().await.context("it was spawned")???;
    read_all(watch, sent).await?;

    let (opened, refused) = (counts.opened.load(Ordering::Relaxed), counts.refused.load(Ordering::Relaxed));
    let rate = opened / took.as_secs();
    println!("{opened} watches opened in {took:?}, {rate} a second; {refused} refused; slowest discovery {slowest:?}");
    assert!(rate >= LEAST_PER_SECOND, "{rate} a second is no storm");
    cluster.assert_no_complaint()?;
    assert_no_broken_connection(&fs::read_to_string(cluster.plane.aggregator_log())?)
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    refused: AtomicU64,
}

/// Opens a watch, and cancels it as soon as it is answered.
async fn open_and_cancel(client: Client, counts: Arc<Counts>) -> Result<()> {
    let path = watch_path("shop");
    let began = Instant::now();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while began.elapsed() < STORM {
        ticks.tick().await;
        match client.watch(request("GET", &path, &[], "")?).await? {
            Ok(_) => counts.opened.fetch_add(1, Ordering::Relaxed),
            // Too many at once, of ours or of kube-apiserver's own.
            Err(refusal) if refusal.status == 429 => counts.refused.fetch_add(1, Ordering::Relaxed),
            Err(refusal) => bail!("{} {}", refusal.status, refusal.body),
        };
    }
    Ok(())
}

/// Posts an event at a time for as long as the storm lasts, and returns how many.
async fn post_deeds(webhook: &Client) -> Result<usize> {
    let began = Instant::now();
    let mut ticks = interval(EVENT_INTERVAL);
    let mut number = 0;
    while began.elapsed() < STORM {
        ticks.tick().await;
        let deed = event().resource("deeds").namespace("bank").audit_id(&format!("deed-{number}")).build();
        let headers = [("content-type", "application/json")];
        let answer = webhook.send(request("POST", "/webhook/deeds", &headers, event_list(&[deed]))?).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        number += 1;
    }
    Ok(number)
}

/// Asks for the API's resources again and again until the storm is over, and returns how long the slowest answer took.
async fn discover_until(client: &Client, storm: &mut JoinSet<Result<()>>) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    while !storm.is_empty() {
        while let Some(ended) = storm.try_join_next() {
            ended??;
        }
        let asked = Instant::now();
        let answer = timeout(DISCOVERY_WITHIN, client.get("/apis/audit.k8s.io/v1", &[])).await;
        let answer = answer.with_context(|| format!("discovery took longer than {DISCOVERY_WITHIN:?}"))??;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        slowest = slowest.max(asked.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    Ok(slowest)
}

/// Each deed once, in order, on the watch that was open before the storm.
async fn read_all(watch: Watch, count: usize) -> Result<()> {
    let mut lines = watch.into_lines();
    for number in 0..count {
        let line = timeout(ARRIVAL, lines.next()).await.with_context(|| format!("deed-{number} did not come"))??;
        let line = line.with_context(|| format!("it ended before deed-{number}"))?;
        let text = String::from_utf8_lossy(&line);
        ensure!(text.contains(&format!("\"auditID\":\"deed-{number}\"")), "not deed-{number} but {text}");
        ensure!(!text.contains("audit-stream.dev/gap"), "a gap: {text}");
    }
    Ok(())
}

/// kube-apiserver's proxy and transport say so in these words.
fn assert_no_broken_connection(log: &str) -> Result<()> {
    const BROKEN: [&str; 7] =
        ["GOAWAY", "proxy error", "connection reset", "broken pipe", "unexpected EOF", "use of closed", "http2:"];
    let broken: Vec<_> = log.lines().filter(|line| BROKEN.iter().any(|word| line.contains(word))).take(10).collect();
    ensure!(broken.is_empty(), "kube-apiserver's connections broke:\n{}", broken.join("\n"));
    Ok(())
}
