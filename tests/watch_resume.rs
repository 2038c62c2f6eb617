//! Readers whose connection is cut, and who come back to where they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::front_proxy::Protocol;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::stage::{Feed, PROTOCOLS, Stage, ids, in_namespace, namespaced, read_error, read_until};

/// A thousand events a second, for five seconds.
const BATCHES: usize = 50;
const BATCH_EVENTS: usize = 100;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

fn place(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_reader_that_was_offline_for_five_seconds_gets_exactly_what_it_missed() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    feed.stage.let_read("alice", "shop");
    let mut last = Vec::new();
    for protocol in PROTOCOLS {
        let mut watch = feed.stage.proxy(protocol).await?.user("alice").watch(&namespaced("shop")).await?;
        let seen = feed.goes_on().await?;
        let read = read_until(&mut watch, seen["auditID"].as_str().unwrap_or_default()).await?;
        last.push((protocol, place(read.last().context("just read")?).to_owned()));
        // With the last of what holds it goes the connection.
        drop(watch);
    }
    let mut ticks = interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut missed = Vec::new();
    for batch in 0..BATCHES {
        ticks.tick().await;
        let numbers = (batch * BATCH_EVENTS..).take(BATCH_EVENTS);
        let batch: Vec<_> = numbers.map(|number| format!("missed-{number}")).collect();
        let events: Vec<_> = batch.iter().map(|id| in_namespace("shop", id).build()).collect();
        ensure!(feed.sender.post(event_list(&events)).await?.status == 200);
        missed.extend(batch);
    }
    for (protocol, last) in last {
        let alice = feed.stage.proxy(protocol).await?.user("alice");
        let mut watch = alice.watch(&format!("{}&resourceVersion={last}", namespaced("shop"))).await?;
        let read = read_until(&mut watch, "missed-4999").await?;
        // The reader who left first also missed what the second waited for.
        let missed_before = usize::from(protocol == Protocol::Http1);
        assert_eq!(ids(&read)[missed_before..], missed);
    }
    Ok(())
}

#[tokio::test]
async fn a_place_of_before_a_restart_is_expired() -> Result<()> {
    let mut before = Feed::start(Stage::start().await?).await?;
    let last = before.goes_on().await?;
    before.stage.stop().await?;
    let mut after = Feed::start(Stage::start().await?).await?;
    after.goes_on().await?;
    let path = format!("{}&resourceVersion={}", namespaced("shop"), place(&last));
    let mut watch = after.stage.reader("alice", "shop").await?.watch(&path).await?;
    assert_eq!(read_error(&mut watch).await?["code"], 410);
    Ok(())
}

#[tokio::test]
async fn what_is_retained_is_replayed_and_never_a_former_namespaces() -> Result<()> {
    let feed = Feed::start(Stage::start().await?).await?;
    let alice = feed.stage.reader("alice", "shop").await?;
    let old = ["a", "b", "c"].map(|id| in_namespace("shop", id).build());
    ensure!(feed.sender.post(event_list(&old)).await?.status == 200);
    let replayed = async |query: &str, last: &str| {
        let mut watch = alice.watch(&format!("{}&{query}", namespaced("shop"))).await?;
        let read = read_until(&mut watch, last).await?;
        anyhow::Ok(ids(&read).join(""))
    };
    assert_eq!(replayed("sinceSeconds=60", "c").await?, "abc");
    assert_eq!(replayed("tailLines=2", "c").await?, "bc");
    assert_eq!(replayed("sinceSeconds=60&tailLines=1&fieldSelector=auditID!%3Dc", "b").await?, "b");

    let created = event().resource("namespaces").verb("create").name("shop").code(201).audit_id("created").build();
    ensure!(feed.sender.post(event_list(&[created, in_namespace("shop", "new").build()])).await?.status == 200);
    assert_eq!(replayed("sinceSeconds=60", "new").await?, "creatednew");
    assert_eq!(replayed("tailLines=9", "new").await?, "creatednew");
    Ok(())
}
