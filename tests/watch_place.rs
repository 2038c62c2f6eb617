//! Where a watch starts and how it ends: now, after a place, at a place that is gone; by time, by stop, by falling behind.

use std::time::Duration;

use anyhow::{Context, Result};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::front_proxy::{Protocol, Watch};
use audit_stream_testplane::webhook_sender::WebhookSender;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stage::{
    ARRIVAL, EVENTS, Feed, PROTOCOLS, Stage, assert_ends, assert_gap, assert_refused, eventually, gap, ids,
    in_namespace, namespaced, read_error, read_until, status,
};

/// A watch with the marker of the end of its (always empty) initial state.
const INITIAL: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

async fn send(sender: &WebhookSender, audit_ids: &[&str]) -> Result<()> {
    audit_ids.iter().for_each(|id| sender.send(in_namespace("shop", id)));
    sender.flush().await
}

fn place(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_watch_without_a_place_begins_now() -> Result<()> {
    let stage = Stage::start().await?;
    let (alice, sender) = (stage.reader("alice", "shop").await?, stage.sender().await?);
    send(&sender, &["before"]).await?;
    let mut watches = Vec::new();
    for place in ["", "&resourceVersion=", "&resourceVersion=0"] {
        watches.push(alice.watch(&(namespaced("shop") + place)).await?);
    }
    send(&sender, &["after"]).await?;
    for mut watch in watches {
        assert_eq!(ids(&read_until(&mut watch, "after").await?), ["after"]);
    }
    Ok(())
}

#[tokio::test]
async fn the_initial_state_is_empty_and_says_so() -> Result<()> {
    let stage = Stage::start().await?;
    let (admin, sender) = (stage.admin().await?, stage.sender().await?);
    send(&sender, &["before"]).await?;
    for (path, kind) in [(EVENTS, "Event"), (&namespaced("shop"), "NamespacedEvent")] {
        let mut watch = admin.watch(&format!("{path}{INITIAL}")).await?;
        let bookmark = watch.next(ARRIVAL).await?.context("it ended")?;
        let version = place(&bookmark["object"]).to_owned();
        let metadata = json!({"resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}});
        let object = json!({"kind": kind, "apiVersion": "audit.k8s.io/v1", "metadata": metadata});
        assert_eq!(bookmark, json!({"type": "BOOKMARK", "object": object}));

        // It is the place from which a reader goes on.
        let mut resumed = admin.watch(&format!("{path}&resourceVersion={version}")).await?;
        send(&sender, &[kind]).await?;
        for watch in [&mut watch, &mut resumed] {
            let read = read_until(watch, kind).await?;
            assert_eq!(ids(&read), [kind]);
            assert!(place(&read[0]) > version.as_str(), "{read:?}");
        }
    }
    // Without leave to send bookmarks there is none.
    let silent = INITIAL.replace("&allowWatchBookmarks=true", "");
    let mut silent = admin.watch(&format!("{EVENTS}{silent}")).await?;
    send(&sender, &["next"]).await?;
    assert_eq!(silent.next(ARRIVAL).await?.context("it ended")?["object"]["auditID"], "next");
    Ok(())
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_what_it_missed() -> Result<()> {
    let stage = Stage::start().await?;
    let (alice, sender) = (stage.reader("alice", "shop").await?, stage.sender().await?);
    let mut first = alice.watch(&(namespaced("shop") + INITIAL)).await?;
    let start = place(&first.next(ARRIVAL).await?.context("it ended")?["object"]).to_owned();
    let all = ["a", "b", "c", "d", "e", "f"];
    send(&sender, &all[..4]).await?;
    send(&sender, &all[4..]).await?;
    let read = read_until(&mut first, "f").await?;
    assert_eq!(ids(&read), all);
    assert!(read.is_sorted_by(|a, b| place(a) < place(b)), "{read:?}");
    drop(first);

    // After each of the places that this reader has seen, inside a batch too, and over both versions of HTTP.
    let mut watches = Vec::new();
    for protocol in PROTOCOLS {
        let alice = stage.proxy(protocol).await?.user("alice");
        let places = [start.as_str()].into_iter().chain(read.iter().map(place));
        for (missed, place) in (0..).zip(places) {
            let watch = alice.watch(&format!("{}&resourceVersion={place}", namespaced("shop"))).await?;
            watches.push(([&all[missed..], &["g"]].concat(), watch));
        }
    }
    send(&sender, &["g"]).await?;
    for (expected, mut watch) in watches {
        let resumed = read_until(&mut watch, "g").await?;
        assert_eq!(ids(&resumed), expected);
        // The same objects with the same names.
        assert!(resumed.iter().all(|object| object["auditID"] == "g" || read.contains(object)), "{resumed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_place_that_this_server_never_issued_is_expired() -> Result<()> {
    let stage = Stage::start().await?;
    let sender = stage.sender().await?;
    send(&sender, &["a"]).await?;
    for protocol in PROTOCOLS {
        let admin = stage.proxy(protocol).await?.user("admin").groups(["system:masters"]);
        for unknown in ["5", "1", "18446744073709551615"] {
            let mut watch = admin.watch(&format!("{EVENTS}{INITIAL}&resourceVersion={unknown}")).await?;
            let error = read_error(&mut watch).await?;
            let message = error["message"].as_str().unwrap_or_default();
            assert!(message.starts_with(&format!("too old resource version: {unknown} (")), "{message}");
            let expected = format!(r#"{{"type":"ERROR","object":{}}}"#, status(410, "Expired", message, "").trim_end());
            assert_eq!(String::from_utf8_lossy(watch.raw()), expected + "\n");
        }
    }
    assert_eq!(stage.metric("audit_stream_watch_ended_total", &[("reason", "expired")]).await?, 6.0);
    Ok(())
}

#[tokio::test]
async fn a_place_that_is_no_longer_retained_is_expired() -> Result<()> {
    let stage = Stage::with(|config| config.retain.retain_bytes = 10_000).await?;
    let mut feed = Feed::start(stage).await?;
    let alice = feed.stage.reader("alice", "shop").await?;
    let first = feed.goes_on().await?;
    for _ in 0..20 {
        feed.goes_on().await?;
    }
    let mut late = alice.watch(&format!("{}&resourceVersion={}", namespaced("shop"), place(&first))).await?;
    assert_eq!(read_error(&mut late).await?["code"], 410);
    let retained = feed.stage.metric("audit_stream_bus_retained_bytes", &[]).await?;
    assert!(retained > 0.0 && retained <= 10_000.0, "{retained}");
    feed.goes_on_without_a_gap().await
}

/// Twenty-four megabytes.
const FLOOD: usize = 24;

/// Sends so much that no connection can hold it, for a reader who reads nothing meanwhile.
async fn flood(feed: &mut Feed) -> Result<()> {
    // Hardly less than what is taken out of an event.
    let agent = "x".repeat(1_000_000);
    for number in 0..FLOOD {
        let id = format!("flood-{number}");
        let batch = event_list(&[in_namespace("shop", &id).user_agent(&agent).build()]);
        assert_eq!(feed.sender.post(batch).await?.status, 200);
        assert_eq!(ids(&read_until(&mut feed.reader, &id).await?), [id]);
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_told_what_it_lost_and_costs_nobody_else() -> Result<()> {
    let stage = Stage::with(|config| config.retain.retain_bytes = 4 << 20).await?;
    let mut feed = Feed::start(stage).await?;
    let alice = feed.stage.reader("alice", "shop").await?;
    let now = feed.goes_on().await?;
    let mut plain = alice.watch(&namespaced("shop")).await?;
    let mut bookmarked = alice.watch(&(namespaced("shop") + "&allowWatchBookmarks=true")).await?;
    let mut strict = alice.watch(&format!("{}&resourceVersion={}", namespaced("shop"), place(&now))).await?;
    flood(&mut feed).await?;

    assert_told_where_it_is(&frames_until(&mut plain, "flood-23").await?, "ADDED");
    assert_told_where_it_is(&frames_until(&mut bookmarked, "flood-23").await?, "BOOKMARK");

    // Who asked for everything after a place gets all of it up to an error, and no event after that.
    let frames = strict.rest(ARRIVAL).await?;
    let (error, events) = frames.split_last().context("nothing at all")?;
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    let expected: Vec<_> = (0..events.len()).map(|number| format!("flood-{number}")).collect();
    let events: Vec<_> = events.iter().map(|frame| frame["object"].clone()).collect();
    assert_eq!(ids(&events), expected);
    assert_eq!(feed.stage.metric("audit_stream_watch_ended_total", &[("reason", "lagged")]).await?, 1.0);
    assert_eq!(feed.stage.metric("audit_stream_watch_gaps_total", &[("reason", "lag")]).await?, 2.0);
    feed.goes_on_without_a_gap().await
}

/// All frames up to and including an event.
async fn frames_until(watch: &mut Watch, last: &str) -> Result<Vec<Value>> {
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &Value| frame["object"]["auditID"] != last) {
        frames.push(watch.next(ARRIVAL).await?.context("it ended")?);
    }
    Ok(frames)
}

/// Asserts that a gap is told once: behind what the connection held of the flood, and before what was still retained.
fn assert_told_where_it_is(frames: &[Value], kind: &str) {
    let in_order = |(number, frame): &(usize, &Value)| frame["object"]["auditID"] == format!("flood-{number}");
    let held = frames.iter().enumerate().take_while(in_order).count();
    let told: Vec<_> = (0..frames.len()).filter(|index| gap(&frames[*index]["object"]).is_some()).collect();
    assert_eq!(told, [held]);
    assert_eq!(frames[held]["type"], kind);
    let received = frames.iter().filter(|frame| frame["type"] == "ADDED").count();
    assert_gap(&frames[held]["object"], "lag", Some(FLOOD - received));
}

#[tokio::test]
async fn time_ends_a_watch_cleanly() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    for protocol in PROTOCOLS {
        let alice = stage.proxy(protocol).await?.user("alice");
        let began = Instant::now();
        let mut second = alice.watch(&(namespaced("shop") + "&timeoutSeconds=1")).await?;
        let mut past = alice.watch(&(namespaced("shop") + "&timeoutSeconds=-1")).await?;
        assert_ends(&mut past).await?;
        assert_ends(&mut second).await?;
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    }
    assert_eq!(stage.metric("audit_stream_watch_ended_total", &[("reason", "timeout")]).await?, 4.0);
    assert_eq!(stage.metric("audit_stream_watch_open", &[]).await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_leaves_is_forgotten() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    for protocol in PROTOCOLS {
        let alice = stage.proxy(protocol).await?.user("alice");
        let watch = alice.watch(&namespaced("shop")).await?;
        assert_eq!(stage.metric("audit_stream_watch_open", &[]).await?, 1.0);
        drop(watch);
        stage.until_metric("audit_stream_watch_open", &[], 0.0).await?;
    }
    assert_eq!(stage.metric("audit_stream_watch_ended_total", &[("reason", "client")]).await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn stopping_ends_every_watch_cleanly_and_in_time() -> Result<()> {
    let grace = Duration::from_secs(20);
    let mut stage = Stage::with(|config| config.shutdown_grace = grace).await?;
    stage.let_read("alice", "shop");
    let mut watches = Vec::new();
    for protocol in PROTOCOLS {
        let proxy = stage.proxy(protocol).await?;
        for _ in 0..10 {
            watches.push(proxy.user("alice").watch(&namespaced("shop")).await?);
            watches.push(proxy.user("admin").groups(["system:masters"]).watch(EVENTS).await?);
        }
    }
    let sender = stage.sender().await?;
    send(&sender, &["last"]).await?;
    for watch in &mut watches {
        assert_eq!(ids(&read_until(watch, "last").await?), ["last"]);
    }
    let took = stage.stop().await?;
    assert!(took < grace, "{took:?}");
    for watch in &mut watches {
        assert_ends(watch).await?;
    }
    assert!(sender.post("{}").await.is_err() && stage.admin().await.is_err(), "somebody still listens");
    Ok(())
}

#[tokio::test]
async fn while_it_stops_it_is_not_ready_and_still_serves() -> Result<()> {
    let mut stage = Stage::with(|config| config.shutdown_delay = Duration::from_secs(2)).await?;
    let (alice, sender) = (stage.reader("alice", "shop").await?, stage.sender().await?);
    let mut watch = alice.watch(&namespaced("shop")).await?;
    let anybody = stage.user("anybody").await?;
    let story = async {
        let unready = async || {
            let answer = anybody.get("/readyz").await?;
            Ok((answer.status == 500).then_some(answer.body))
        };
        let report = eventually("readiness to fail", unready).await?;
        assert!(report.contains("[-]shutdown failed"), "{report}");
        assert_eq!(anybody.get("/livez").await?.status, 200);
        let mut late = alice.watch(&namespaced("shop")).await?;
        send(&sender, &["late"]).await?;
        for watch in [&mut watch, &mut late] {
            assert_eq!(ids(&read_until(watch, "late").await?), ["late"]);
        }
        assert_ends(&mut watch).await?;
        assert_ends(&mut late).await
    };
    let (took, ()) = tokio::try_join!(stage.stop(), story)?;
    assert!(took >= Duration::from_secs(2), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_reader_that_does_not_read_cannot_hold_up_the_stop() -> Result<()> {
    let stage = Stage::with(|config| config.shutdown_grace = Duration::from_secs(1)).await?;
    let mut feed = Feed::start(stage).await?;
    let stalled = feed.stage.proxy(Protocol::Http1).await?.user("admin").groups(["system:masters"]);
    let stalled = stalled.watch(EVENTS).await?;
    flood(&mut feed).await?;
    let took = feed.stage.stop().await?;
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop(stalled);
    Ok(())
}

#[tokio::test]
async fn a_refused_place_names_what_is_wrong_with_it() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let refusal = admin.try_watch(&format!("{EVENTS}&resourceVersion=abc")).await?.err().context("it was served")?;
    let cause = "Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax";
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersion: {cause}");
    let cause = json!(cause);
    let details = format!(
        r#"{{"group":"meta.k8s.io","kind":"ListOptions","causes":[{{"reason":"FieldValueInvalid","message":{cause},"field":"resourceVersion"}}]}}"#
    );
    assert_refused(&refusal, 422, &status(422, "Invalid", &message, &details))
}
