//! Sources, and batches that are sent twice: what is the same is delivered once, and nothing else is taken for it.

use anyhow::Result;
use audit_stream_testplane::events::{event, event_list};
use audit_stream_testplane::webhook_sender::{Answer, RawPost, Sending};
use tokio::task::JoinSet;

use crate::stage::{Feed, SENDER, Stage, assert_gap, assert_refused, ids, in_namespace, read_until, status};

const DUPLICATES: &str = "audit_stream_ingest_duplicate_batches_total";
const SOURCES: &str = "audit_stream_ingest_sources";

/// Another name that senders may have.
const OTHER: &str = "kube-apiserver-audit-2";

async fn start() -> Result<Feed> {
    Feed::start(Stage::with(|config| config.ingest.allowed_names.push(OTHER.to_owned())).await?).await
}

impl Feed {
    /// A POST of this source by whoever has a new certificate with this name.
    fn post_as(&self, name: &str, source: &str, body: &str) -> RawPost {
        let identity = self.stage.webhook_ca.client(name, &[]);
        self.sender.raw().path(&format!("/webhook/{source}")).identity(&identity).body(body)
    }
}

fn batch(audit_id: &str) -> String {
    event_list(&[in_namespace("shop", audit_id).build()])
}

fn forbidden(message: &str) -> String {
    status(403, "Forbidden", message, "")
}

#[tokio::test]
async fn a_retry_after_a_lost_answer_is_delivered_once() -> Result<()> {
    let mut feed = start().await?;
    let sender = feed.stage.sender_with(Sending { answers_lost: true, ..Sending::default() }).await?;
    for round in ["a", "b", "c"] {
        sender.send(in_namespace("shop", round).build());
        sender.flush().await?;
    }
    let batches = sender.ledger().batches;
    assert_eq!(batches.len(), 3);
    assert!(batches.iter().all(|batch| batch.answers == vec![Answer::Status(200); 2]), "{batches:?}");
    assert_eq!(ids(&read_until(&mut feed.reader, "c").await?), ["a", "b", "c"]);
    feed.goes_on_without_a_gap().await?;
    assert_eq!(feed.stage.metric(DUPLICATES, &[]).await?, 3.0);
    assert_eq!(feed.stage.metric("audit_stream_ingest_digests", &[]).await?, 4.0);
    Ok(())
}

#[tokio::test]
async fn an_audit_id_that_was_seen_before_hides_nothing() -> Result<()> {
    let mut feed = start().await?;
    let same = || event().resource("secrets").namespace("shop").audit_id("same");
    let names = ["harmless", "harmless-2", "stolen"];
    for (name, verb) in names.into_iter().zip(["get", "get", "delete"]) {
        // In a batch of its own, and twice in one.
        let body = event_list(&[same().name(name).verb(verb).build(), same().name(name).verb(verb).build()]);
        assert_eq!(feed.sender.post(body).await?.status, 200);
    }
    for name in names {
        for _ in 0..2 {
            let read = read_until(&mut feed.reader, "same").await?;
            assert_eq!(read[0]["objectRef"]["name"], name);
        }
    }
    assert_eq!(feed.stage.metric(DUPLICATES, &[]).await?, 0.0);
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn the_same_bytes_of_two_sources_are_two_batches() -> Result<()> {
    let mut feed = start().await?;
    let body = batch("x");
    // The last is a name in a path, and not the sender who has it in its certificate.
    for source in ["one", "two", SENDER] {
        for _ in 0..2 {
            assert_eq!(feed.post_as(SENDER, source, &body).send().await?.status, 200);
        }
        assert_eq!(ids(&read_until(&mut feed.reader, "x").await?), ["x"], "{source}");
    }
    for _ in 0..2 {
        assert_eq!(feed.sender.post(body.clone()).await?.status, 200);
    }
    assert_eq!(ids(&read_until(&mut feed.reader, "x").await?), ["x"]);
    assert_eq!(feed.stage.metric(DUPLICATES, &[]).await?, 4.0);
    assert_eq!(feed.stage.metric(SOURCES, &[]).await?, 4.0);
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn copies_at_the_same_time_are_delivered_once() -> Result<()> {
    const COPIES: u32 = 20;
    let mut feed = start().await?;
    let events: Vec<_> = (0..400).map(|number| in_namespace("shop", &number.to_string()).build()).collect();
    let body = event_list(&events);
    let mut posts = JoinSet::new();
    for _ in 0..COPIES {
        posts.spawn(feed.sender.raw().body(body.clone()).send());
    }
    for answer in posts.join_all().await {
        assert_eq!(answer?.status, 200);
    }
    assert_eq!(read_until(&mut feed.reader, "399").await?.len(), 400);
    feed.goes_on_without_a_gap().await?;
    assert_eq!(feed.stage.metric(DUPLICATES, &[]).await?, f64::from(COPIES - 1));
    Ok(())
}

#[tokio::test]
async fn a_source_belongs_to_the_name_that_used_it_first() -> Result<()> {
    let mut feed = start().await?;
    assert_eq!(feed.post_as(SENDER, "one", &batch("a")).send().await?.status, 200);
    assert_eq!(ids(&read_until(&mut feed.reader, "a").await?), ["a"]);

    let message = "the source belongs to a client certificate with another name: give each kube-apiserver a \
                   /webhook/{source} of its own";
    for _ in 0..2 {
        assert_refused(&feed.post_as(OTHER, "one", &batch("b")).send().await?, 403, &forbidden(message))?;
    }
    feed.assert_rejected("source_bound", 2.0).await?;
    assert_gap(&feed.goes_on().await?, "source", None);
    feed.goes_on_without_a_gap().await?;

    // A renewed certificate goes on, and the other name has sources of its own.
    for (name, source) in [(SENDER, "one"), (OTHER, "two")] {
        assert_eq!(feed.post_as(name, source, &batch(source)).send().await?.status, 200);
        assert_eq!(ids(&read_until(&mut feed.reader, source).await?), [source]);
    }
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn there_is_an_end_to_sources() -> Result<()> {
    let mut feed = start().await?;
    feed.goes_on_without_a_gap().await?;
    let empty = event_list::<&str>(&[]);
    let post = async |name, source: usize| feed.post_as(name, &source.to_string(), &empty).send().await;
    for source in 1..32 {
        assert_eq!(post(SENDER, source).await?.status, 200, "{source}");
    }
    let message = forbidden("there are 32 sources already, and there may be no more");
    assert_refused(&post(SENDER, 32).await?, 403, &message)?;
    assert_refused(&feed.post_as(OTHER, "", &empty).path("/webhook").send().await?, 403, &message)?;
    feed.assert_rejected("too_many_sources", 2.0).await?;
    assert_eq!(feed.stage.metric(SOURCES, &[]).await?, 32.0);
    assert_eq!(post(SENDER, 31).await?.status, 200);
    assert_gap(&feed.goes_on().await?, "source", None);
    feed.goes_on_without_a_gap().await
}
