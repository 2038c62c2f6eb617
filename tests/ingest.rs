//! What arrives at the webhook and is wrong costs itself alone, is counted, and is told to readers as a gap.
//!
//! kube-apiserver drops a whole batch after five refusals. So a complete body is answered 200 whatever is in it, and
//! after each of these bodies the next good batch is served.

use anyhow::Result;
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::webhook_sender::{Answer, Sending};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::stage::{
    ARRIVAL, Feed, Stage, assert_gap, assert_refused, eventually, gap, ids, in_namespace, namespaced, read_until,
    status,
};

const DROPPED: &str = "audit_stream_ingest_dropped_events_total";
const MALFORMED: [(&str, &str); 1] = [("reason", "malformed")];
const INFLIGHT: &str = "audit_stream_ingest_inflight_bytes";
const TRUNCATED: &str = "audit_stream_ingest_truncated_events_total";

fn good(audit_id: &str) -> String {
    in_namespace("shop", audit_id).build()
}

/// Well-formed JSON, and no event: its verb is a number.
fn mistyped(audit_id: &str) -> String {
    good(audit_id).replace(r#""verb":"get""#, r#""verb":7"#)
}

#[tokio::test]
async fn a_malformed_event_costs_itself_alone() -> Result<()> {
    let stage = Stage::start().await?;
    let alice = stage.reader("alice", "shop").await?;
    let with_bookmarks = namespaced("shop") + "&allowWatchBookmarks=true";
    let mut plain = alice.watch(&namespaced("shop")).await?;
    let mut bookmarked = alice.watch(&with_bookmarks).await?;

    let sender = stage.sender().await?;
    let all: Vec<_> = (0..400).map(|number| format!("id-{number}")).collect();
    all.iter().for_each(|id| sender.send(if id == "id-123" { mistyped(id) } else { good(id) }));
    sender.flush().await?;
    let batches = sender.ledger().batches;
    assert_eq!(batches.iter().map(|batch| &*batch.answers).collect::<Vec<_>>(), [[Answer::Status(200)]]);

    let expected: Vec<_> = all.iter().map(String::as_str).filter(|id| *id != "id-123").collect();
    let read = read_until(&mut plain, "id-399").await?;
    assert_eq!(ids(&read), expected);
    assert_gap(&read[0], "malformed", None);
    assert!(read[1..].iter().all(|object| gap(object).is_none()), "the gap is announced again");

    // Who takes bookmarks is told in one of them, and every event is as it is for everybody.
    let mut frames = Vec::new();
    while frames.len() < 400 {
        frames.extend(bookmarked.next(ARRIVAL).await?);
    }
    let place = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    assert!(frames.is_sorted_by_key(|frame| place(&frame["object"])), "the bookmark is not where it says");
    let (added, bookmarks): (Vec<Value>, Vec<Value>) = frames.into_iter().partition(|frame| frame["type"] == "ADDED");
    let added: Vec<_> = added.into_iter().map(|frame| frame["object"].clone()).collect();
    assert_eq!(ids(&added), expected);
    assert!(added.iter().all(|object| gap(object).is_none()), "the gap is announced on an event");
    assert_eq!(bookmarks[0]["type"], "BOOKMARK");
    assert_gap(&bookmarks[0]["object"], "malformed", None);

    // The bookmark is a place from which one can go on: with what comes after it in the order of the log.
    let bookmark = place(&bookmarks[0]["object"]);
    let mut resumed = alice.watch(&format!("{}&resourceVersion={bookmark}", namespaced("shop"))).await?;
    sender.send(good("later"));
    sender.flush().await?;
    let after: Vec<_> = added.iter().filter(|object| place(object) > bookmark).cloned().collect();
    let resumed = read_until(&mut resumed, "later").await?;
    assert_eq!(ids(&resumed), [ids(&after), vec!["later"]].concat());

    assert_eq!(stage.metric(DROPPED, &MALFORMED).await?, 1.0);
    assert_eq!(stage.metric("audit_stream_ingest_events_total", &[]).await?, 400.0);
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_no_list_is_accepted_and_delivers_nothing() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let list = event_list(&[good("a"), good("b")]);
    let broken = [
        Vec::new(),
        b"null".to_vec(),
        b"{}".to_vec(),
        b"not json".to_vec(),
        list[..list.len() - 3].into(),
        list[..list.len() / 2].into(),
        (list.clone() + "x").into(),
        list.replace("EventList", "PodList").into(),
        list.replace("audit.k8s.io/v1", "audit.k8s.io/v2").into(),
        list.replace("},{", "}{").into(),
        "[".repeat(1 << 20).into(),
        r#"{"items":"#.repeat(1 << 17).into(),
    ];
    for (body, count) in broken.into_iter().zip(1_u32..) {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let answer = feed.sender.post(body).await?;
        assert_eq!((answer.status, &*answer.body), (200, ""), "{shown}");
        assert_gap(&feed.goes_on().await?, "malformed", None);
        feed.goes_on_without_a_gap().await?;
        let malformed = feed.stage.metric("audit_stream_ingest_malformed_batches_total", &[]).await?;
        assert_eq!(malformed, f64::from(count), "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_text_cost_nobody_an_event() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let list = event_list(&[good("a"), good("b"), good("c")]);
    let mut not_utf8 = list.clone().into_bytes();
    let agent = list.rfind("kubectl").expect("the user agent");
    not_utf8[agent] = 0xff;
    assert_eq!(feed.sender.post(not_utf8).await?.status, 200);
    let frames = read_until(&mut feed.reader, "c").await?;
    assert_eq!(ids(&frames), ["a", "b", "c"]);
    assert!(frames[2].to_string().contains("\u{fffd}ubectl"), "{}", frames[2]);
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn an_event_that_nests_too_deep_goes_without_its_bodies() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let deep = |field: &str, levels: usize| {
        let member = format!(r#"{{"{field}":{}{},"#, "[".repeat(levels), "]".repeat(levels));
        good("deep").replacen('{', &member, 1)
    };
    for (levels, count) in [(9_999, 1.0), (3_000_000, 2.0)] {
        let answer = feed.sender.post(event_list(&[good("a"), deep("requestObject", levels), good("b")])).await?;
        assert_eq!(answer.status, 200);
        let frames = read_until(&mut feed.reader, "b").await?;
        assert_eq!(ids(&frames), ["a", "deep", "b"], "{levels}");
        assert_eq!(frames[1]["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(frames[1].get("requestObject").is_none());
        assert_eq!(feed.stage.metric(TRUNCATED, &[("reason", "depth")]).await?, count);
    }
    feed.goes_on_without_a_gap().await?;

    // Not in a body, so that nothing can be removed: it costs itself alone.
    feed.sender.post(event_list(&[good("c"), deep("madeUp", 9_999), good("d")])).await?;
    assert_eq!(ids(&read_until(&mut feed.reader, "d").await?), ["c", "d"]);
    assert_eq!(feed.stage.metric(DROPPED, &MALFORMED).await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn an_event_that_is_padded_loses_its_padding() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let alice = feed.stage.reader("alice", "shop").await?;
    let mut shop = alice.watch(&namespaced("shop")).await?;
    let padding = "x".repeat(1 << 20);
    let plain = in_namespace("shop", "padded").user("mallory").verb("delete").query("a=b");
    let expected = serde_json::from_str::<Value>(&plain.build())?;
    let addresses: Vec<_> = (0..100).map(|number| format!("10.0.0.{number}")).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let padded = plain
        .level("Request")
        .request_object(&format!(r#"{{"padding":"{padding}"}}"#))
        .query(&format!("a=b&{padding}"))
        .user_agent(&padding)
        .source_ips(&addresses)
        .annotation("example.com/kept", "because the rest fits");
    let answer = feed.sender.post(event_list(&[good("a"), padded.build(), good("b")])).await?;
    assert_eq!(answer.status, 200);

    let frames = read_until(&mut feed.reader, "b").await?;
    assert_eq!(ids(&frames), ["a", "padded", "b"]);
    let event = &frames[1];
    assert!(event.get("requestObject").is_none());
    let uri = event["requestURI"].as_str().expect("a URI");
    assert!(uri.ends_with(&format!("/prices?a=b&{}", "x".repeat(4092))), "{}", uri.len());
    assert_eq!(event["userAgent"], "x".repeat(1024));
    assert_eq!(event["sourceIPs"].as_array().map(Vec::len), Some(100), "what is short enough was cut");
    assert_eq!(event["annotations"]["audit.k8s.io/truncated"], "true");
    assert_eq!(event["annotations"]["example.com/kept"], "because the rest fits");
    for kept in ["user", "verb", "objectRef", "responseStatus", "stage", "auditID"] {
        assert_eq!(event[kept], expected[kept], "{kept}");
    }

    let frames = read_until(&mut shop, "b").await?;
    assert_eq!(ids(&frames), ["a", "padded", "b"]);
    assert!(frames[1]["requestURI"].as_str().is_some_and(|uri| uri.contains("?a=***&xxx")), "{}", frames[1]);
    assert_eq!(feed.stage.metric(TRUNCATED, &[("reason", "size")]).await?, 1.0);
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn an_event_whose_path_is_too_long_is_dropped_alone() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let path = format!("/api/v1/namespaces/shop/configmaps/{}?&=&=", "x".repeat(1 << 20));
    let hostile = in_namespace("shop", "hostile").request_uri(&path).build();
    assert_eq!(feed.sender.post(event_list(&[good("a"), hostile, good("b")])).await?.status, 200);
    let frames = read_until(&mut feed.reader, "b").await?;
    assert_eq!(ids(&frames), ["a", "b"]);
    // It keeps its place, so that who would have seen it can be told of a gap.
    let place = |object: &Value| -> Result<u64> {
        Ok(object["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?)
    };
    assert_eq!(place(&frames[1])?, place(&frames[0])? + 2);
    assert_eq!(feed.stage.metric(DROPPED, &[("reason", "oversize")]).await?, 1.0);
    assert_eq!(feed.stage.metric("audit_stream_ingest_events_total", &[]).await?, 2.0);
    feed.goes_on().await.map(drop)
}

#[tokio::test]
async fn an_empty_list_is_nothing() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let empty = event_list::<&str>(&[]);
    for body in [empty.replace("[]", "null"), empty.replace("/v1", "/v1beta1"), empty] {
        let answer = feed.sender.post(body).await?;
        assert_eq!((answer.status, &*answer.body), (200, ""));
    }
    assert_eq!(feed.stage.metric("audit_stream_ingest_batches_total", &[]).await?, 0.0);
    assert_eq!(feed.stage.metric("audit_stream_ingest_malformed_batches_total", &[]).await?, 0.0);
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn other_spellings_of_a_list_are_understood() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let pretty: Value = serde_json::from_str(&event_list(&[good("pretty")]))?;
    let doubled = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","metadata":{"name":"mine"},"#;
    let lists = [
        ("pretty", serde_json::to_string_pretty(&pretty)?.replace('\n', "\r\n")),
        ("beta", event_list(&[good("beta")]).replace("audit.k8s.io/v1", "audit.k8s.io/v1beta1")),
        ("alpha", event_list(&[good("alpha")]).replace("audit.k8s.io/v1", "audit.k8s.io/v1alpha1")),
        ("carries", event_list(&[good("carries").replacen('{', doubled, 1)])),
        ("unknown", event_list(&[event().audit_id("unknown").unknown_field("x", Value::Null).build()])),
    ];
    for (id, list) in lists {
        assert_eq!(feed.sender.post(list).await?.status, 200, "{id}");
        let read = read_until(&mut feed.reader, id).await?;
        assert_eq!(ids(&read), [id]);
        assert_eq!((&read[0]["kind"], &read[0]["apiVersion"]), (&"Event".into(), &"audit.k8s.io/v1".into()), "{id}");
        assert_ne!(read[0]["metadata"]["name"], "mine");
    }
    // One line each, and no key twice: a parser that takes the first or the last of two must read the same.
    let raw = String::from_utf8(feed.reader.raw().to_vec())?;
    assert_eq!(raw.lines().count(), 5);
    assert!(raw.lines().all(|line| line.matches(r#""apiVersion":"audit.k8s.io"#).count() == 1), "{raw}");
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_told_to_readers() -> Result<()> {
    const LIMIT: usize = 4096;
    let stage = Stage::with(|config| config.ingest.max_body_bytes = LIMIT as u64).await?;
    let mut feed = Feed::start(stage).await?;
    let of_size = |size: usize| {
        let empty = event_list(&[event().audit_id("padded").user_agent("?").build()]);
        empty.replace('?', &"x".repeat(size + 1 - empty.len()))
    };
    let (fitting, large) = (of_size(LIMIT), of_size(LIMIT + 1));
    assert_eq!(feed.sender.post(fitting).await?.status, 200);
    assert_eq!(ids(&read_until(&mut feed.reader, "padded").await?), ["padded"]);

    let chunked = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let message = "the body is larger than 4096 bytes (--webhook-max-body-bytes)";
    let expected = status(413, "RequestEntityTooLarge", message, "");
    let answers = [
        feed.sender.post(large.clone()).await?,
        feed.sender.post_raw(&[], large.clone()).await?,
        feed.sender.post_raw(&[("Transfer-Encoding", "chunked")], chunked).await?,
        // So much larger that it cannot all be under way when it is refused.
        feed.sender.post(large.repeat(10_000)).await?,
    ];
    for answer in &answers {
        assert_refused(answer, 413, &expected)?;
    }
    feed.assert_rejected("body_too_large", 4.0).await?;
    // All of them in one: a gap reaches from its first cause on.
    assert_gap(&feed.goes_on().await?, "oversize", None);
    feed.goes_on_without_a_gap().await?;
    // Within a minute: who tries again and again does not flood readers.
    assert_refused(&feed.sender.post(large).await?, 413, &expected)?;
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_so_that_the_retry_is_whole() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let list = event_list(&[good("a"), good("b")]);
    let expected = status(400, "BadRequest", "the body ended before its declared length", "");
    let part = &list[..list.len() / 2];

    // What is declared never comes, and the sender says so, with its own end still open for an answer.
    let short = feed.sender.raw().body(part).declared_length(list.len()).then_close();
    assert_refused(&short.send().await?, 400, &expected)?;
    feed.assert_rejected("incomplete", 1.0).await?;
    let chunk = format!("{:x}\r\n{part}\r\n", part.len());
    let unfinished = feed.sender.raw().header("Transfer-Encoding", "chunked").body(chunk).then_close();
    assert_refused(&unfinished.send().await?, 400, &expected)?;
    feed.assert_rejected("incomplete", 2.0).await?;
    feed.goes_on_without_a_gap().await?;

    // In HTTP/2 such a request is malformed: its stream is reset, and the connection lives on (RFC 9113, 8.1.1).
    let declared = list.len().to_string();
    let answer = feed.sender.post_with(&[("Content-Length", &declared)], part.to_owned()).await;
    assert!(answer.as_ref().map_or(true, |answer| answer.status == 400), "{answer:?}");
    feed.stage.until_metric("audit_stream_ingest_rejected_requests_total", &[("reason", "incomplete")], 3.0).await?;
    feed.goes_on_without_a_gap().await?;
    assert_eq!(feed.sender.client().connections(), 1);

    // The retry.
    assert_eq!(feed.sender.post(list).await?.status, 200);
    assert_eq!(ids(&read_until(&mut feed.reader, "b").await?), ["a", "b"]);
    Ok(())
}

#[tokio::test]
async fn a_full_budget_is_told_and_the_senders_retries_arrive() -> Result<()> {
    const BUDGET: u64 = 1 << 16;
    let stage = Stage::with(|config| {
        config.ingest.max_body_bytes = BUDGET;
        config.ingest.max_inflight_bytes = BUDGET;
    });
    let stage = stage.await?;
    // A second of Retry-After lasts a tenth here, so that retries go on for five seconds.
    let sender = stage.sender_with(Sending { retry_after_scale: 0.1, ..Sending::default() }).await?;
    let mut feed = Feed::start(stage).await?;

    // Somebody sends a body so slowly that it is never done, and takes the whole budget with it.
    let mut slow = JoinSet::new();
    slow.spawn(feed.sender.raw().body("{").declared_length(BUDGET as usize).send());
    let refusal = eventually("a refusal", async || {
        let answer = feed.sender.post(event_list::<&str>(&[])).await?;
        Ok((answer.status != 200).then_some(answer))
    });
    let refusal = refusal.await?;
    assert_eq!(feed.stage.metric(INFLIGHT, &[]).await?, BUDGET as f64);
    let message = "the batches in flight fill their budget (--webhook-max-inflight-bytes)";
    let expected = status(503, "ServiceUnavailable", message, r#"{"retryAfterSeconds":1}"#);
    assert_refused(&refusal, 503, &expected)?;
    assert_eq!(refusal.header("retry-after"), Some("1"));

    let sent: Vec<_> = (0..10).map(|number| format!("id-{number}")).collect();
    sent.iter().for_each(|id| sender.send(good(id)));
    let relief = async {
        let refused = async || Ok((sender.ledger().posts() > 0).then_some(()));
        eventually("the sender's refusal", refused).await?;
        slow.shutdown().await;
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(sender.flush(), relief)?;
    let batch = &sender.ledger().batches[0];
    let (last, before) = batch.answers.split_last().expect("it was answered");
    assert_eq!(*last, Answer::Status(200));
    assert!(!before.is_empty() && before.iter().all(|answer| *answer == Answer::Status(503)), "{before:?}");
    assert_eq!(ids(&read_until(&mut feed.reader, "id-9").await?), sent);
    feed.goes_on_without_a_gap().await?;
    feed.stage.until_metric(INFLIGHT, &[], 0.0).await
}

#[tokio::test]
async fn bytes_that_somebody_made_up_end_nothing() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let shop = feed.stage.reader("alice", "shop").await?;
    let mut shop = shop.watch(&namespaced("shop")).await?;
    let list = event_list(&[good("a"), event().level("RequestResponse").verb("create").resource("secrets").build()]);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |bound: usize| {
        // Xorshift: the same bytes in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % bound as u64).expect("below a usize")
    };
    for round in 0..500 {
        let mut body = list.clone().into_bytes();
        for _ in 0..=below(4) {
            let at = below(body.len());
            match below(3) {
                0 => body[at] = u8::try_from(below(256)).expect("below 256"),
                1 => body[at] = br#"{}[]",:\0"#[below(9)],
                _ => drop(body.drain(at..body.len().min(at + below(50)))),
            }
        }
        let shown = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(feed.sender.post(body).await?.status, 200, "round {round}: {shown}");
    }
    feed.sender.post(event_list(&[good("last")])).await?;
    // Every frame is JSON, or this fails.
    read_until(&mut feed.reader, "last").await?;
    read_until(&mut shop, "last").await?;
    let batches = feed.stage.metric("audit_stream_ingest_malformed_batches_total", &[]).await?;
    let events = feed.stage.metric(DROPPED, &MALFORMED).await?;
    assert!(batches > 100.0 && events > 10.0, "the bytes are too good: {batches} batches, {events} events");
    feed.goes_on_without_a_gap().await
}
