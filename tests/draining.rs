//! The server's end: not ready at once, open for a while, then one watch after the other, then everything else, and in time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::front_proxy::{Client, Protocol, Watch};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::ALONE;
use crate::stage::{
    ARRIVAL, EVENTS, Feed, Stage, assert_ends, assert_refused, eventually, in_namespace, many_watches, namespaced,
    read_until, status,
};

const WATCHES: usize = 100;

/// Long enough for a busy machine to see what goes on during it, and between the first end and the last.
const DELAY: Duration = Duration::from_secs(8);
const GRACE: Duration = Duration::from_secs(15);
const SPREAD: Duration = Duration::from_secs(5);

/// Reads to the clean end: when it came.
async fn end_of(mut watch: Watch) -> Result<Instant> {
    assert_ends(&mut watch).await?;
    Ok(Instant::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_goes_first_then_watches_one_by_one_and_then_the_rest() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut stage = Stage::with(|config| {
        many_watches(config);
        (config.shutdown_delay, config.shutdown_grace) = (DELAY, GRACE);
    })
    .await?;
    let admin = stage.admin().await?;
    let anybody = Client::connect(stage.api()).await?;
    let watches = try_join_all((0..WATCHES).map(|_| admin.watch(EVENTS))).await?;

    let told = Instant::now();
    stage.begin_to_stop();
    let unready = async || Ok((anybody.get("/readyz", &[]).await?.status == 500).then_some(()));
    eventually("readiness to fail", unready).await?;
    // Nothing else has changed: what is open goes on, and what is new is opened.
    let mut late = stage.admin().await?.watch(EVENTS).await?;
    let sender = stage.sender().await?;
    sender.send(in_namespace("shop", "late"));
    sender.flush().await?;
    read_until(&mut late, "late").await?;

    let mut reading = JoinSet::new();
    for mut watch in watches {
        reading.spawn(async move {
            read_until(&mut watch, "late").await?;
            end_of(watch).await
        });
    }
    // Between the first end and the last, nothing new begins, and what is no watch is answered.
    let first = reading.join_next().await.context("there are some")???;
    let refused = async || {
        let answer = admin.try_watch(EVENTS).await?.err().context("a watch was opened")?;
        let retry = "{\"retryAfterSeconds\":1}";
        let expected = status(503, "ServiceUnavailable", "audit-stream is shutting down", retry);
        assert_refused(&answer, 503, &expected)
    };
    refused().await?;
    // Nor is anything taken that only some would get: who sends it finds another server, and so do those who come back there.
    let batch = event_list(&[in_namespace("shop", "too-late").build()]);
    let answer = sender.post(batch).await?;
    ensure!((answer.status, answer.header("retry-after")) == (503, Some("1")), "a batch: {}", answer.status);
    ensure!(admin.get("/apis/audit.k8s.io/v1").await?.status == 200, "discovery");

    let mut ends = vec![first];
    while let Some(end) = reading.join_next().await {
        ends.push(end??);
    }
    end_of(late).await?;
    let stopped = stage.stop().await?;
    ensure!(told.elapsed() < ARRIVAL, "{:?} and {stopped:?}", told.elapsed());
    ends.sort();
    let spread = ends[WATCHES - 1] - ends[0];
    ensure!(spread > SPREAD / 10, "all of them ended within {spread:?}");
    let early = ends[0] - told;
    ensure!(early >= DELAY, "the first ended {early:?} after the signal, and not {DELAY:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_watches_does_not_wait_for_any() -> Result<()> {
    let mut stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    // It has had one.
    let mut watch = stage.user("alice").await?.watch(&(namespaced("shop") + "&timeoutSeconds=1")).await?;
    assert_ends(&mut watch).await?;
    drop(watch);
    let took = timeout(ARRIVAL, stage.stop()).await??;
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_nobody_reads_hold_up_nobody_else_and_not_the_end() -> Result<()> {
    let grace = Duration::from_secs(6);
    let stage = Stage::with(|config| {
        many_watches(config);
        config.shutdown_grace = grace;
    })
    .await?;
    let feed = Feed::start(stage).await?;
    let mut stalled = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let proxy = feed.stage.proxy(protocol).await?.user("stalled").groups(["system:masters"]);
        for _ in 0..10 {
            stalled.push(proxy.watch(EVENTS).await?);
        }
    }
    let agent = "x".repeat(500_000);
    for n in 0..20 {
        feed.sender.send(in_namespace("shop", &format!("{n}")).user_agent(&agent));
    }
    feed.sender.flush().await?;
    let Feed { mut stage, reader, sender } = feed;
    let reading = async {
        let mut reader = reader;
        while reader.next_added(ARRIVAL).await?.is_some() {}
        anyhow::Ok(())
    };
    // Who reads comes to a clean end while others do not.
    let (took, ()) = tokio::try_join!(stage.stop(), reading)?;
    ensure!(took < grace + Duration::from_secs(5), "{took:?}");
    drop((stalled, sender));
    Ok(())
}
