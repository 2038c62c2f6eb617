use audit_stream_api::Version;
use audit_stream_bus::Config;
use tokio::time::{advance, timeout};

use super::*;
use crate::authn::User;
use crate::authz::Authorizer;
use crate::ingest::batch::BatchBuilder;
use crate::testing::{Reviewer, Verdict, batch};

struct Stage {
    bus: Arc<Bus<Batch>>,
    watches: Watches,
    closing: CancellationToken,
    reviewer: Arc<Reviewer>,
    authorizer: Arc<Authorizer>,
}

impl Stage {
    fn new() -> Self {
        Self::retaining(1 << 20)
    }

    fn retaining(retain_bytes: usize) -> Self {
        let bus = Arc::new(Bus::new(Config { retain_bytes, retain_age: Duration::MAX }, 1_000_000));
        let (closing, reviewer) = (CancellationToken::new(), Reviewer::new(Verdict::Allow));
        let watches = Watches::new(Arc::clone(&bus), 10, closing.clone(), WatchMetrics::default());
        let authorizer = reviewer.authorizer();
        Self { bus, watches, closing, reviewer, authorizer }
    }

    async fn watch(&self, query: &str) -> Watch {
        let user = User { name: "alice".to_owned(), ..User::anonymous() };
        let route =
            Route { version: Version::V1, resource: Resource::NamespacedEvents, namespace: Some("shop".to_owned()) };
        let attributes = Attributes::Resource { verb: "watch", route: route.clone() };
        let grant = self.authorizer.authorize(&user, &attributes).await.unwrap();
        let options = WatchOptions::parse(query, route.resource).unwrap();
        let key = ClassKey { route, selector: options.selector.clone() };
        let lease = Lease::new(Arc::clone(&self.authorizer), grant);
        let reader = Reader { username: user.name, attributes, audit_id: "x".to_owned() };
        self.watches.open(key, &options, lease, reader).unwrap()
    }

    fn publish(&self, id: &str) -> Sequence {
        self.publish_batch(batch(&[(id, Some("shop"))]))
    }

    fn publish_batch(&self, batch: Batch) -> Sequence {
        self.bus.publish(0, batch.len(), batch.bytes(), batch).last()
    }

    fn lose(&self) {
        let mut lost = BatchBuilder::default();
        lost.note_lost(GapReason::Malformed);
        self.publish_batch(lost.build());
    }
}

async fn piece(watch: &mut Watch) -> Option<Vec<serde_json::Value>> {
    let bytes = timeout(Duration::from_secs(3600), watch.next()).await.expect("the watch said nothing for an hour")?;
    let frames = serde_json::Deserializer::from_slice(&bytes).into_iter();
    Some(frames.collect::<Result<_, _>>().unwrap())
}

async fn frame(watch: &mut Watch) -> serde_json::Value {
    let mut frames = piece(watch).await.expect("the watch ended");
    assert_eq!(frames.len(), 1, "{frames:?}");
    frames.remove(0)
}

fn gap(frame: &serde_json::Value) -> serde_json::Value {
    let text = frame["object"]["metadata"]["annotations"]["audit-stream.dev/gap"].as_str().expect("a gap");
    serde_json::from_str(text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_now_and_goes_on() {
    let stage = Stage::new();
    stage.publish("before");
    let mut watch = stage.watch("").await;
    let (first, second) = (stage.publish("a"), stage.publish("b"));
    for (id, sequence) in [("a", first), ("b", second)] {
        let frame = frame(&mut watch).await;
        assert_eq!((&frame["type"], &frame["object"]["auditID"]), (&"ADDED".into(), &id.into()));
        assert_eq!(frame["object"]["metadata"]["resourceVersion"], sequence.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_inside_a_batch() {
    let stage = Stage::new();
    let last = stage.publish_batch(batch(&[("a", Some("shop")), ("b", Some("shop")), ("c", Some("shop"))]));
    let mut watch = stage.watch(&format!("resourceVersion={}", last.get() - 1)).await;
    assert_eq!(frame(&mut watch).await["object"]["auditID"], "c");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_not_retained_is_answered_410_in_the_stream() {
    let stage = Stage::new();
    let mut watch = stage.watch("resourceVersion=5").await;
    let error = frame(&mut watch).await;
    assert_eq!((&error["type"], &error["object"]["code"]), (&"ERROR".into(), &410.into()));
    assert_eq!(error["object"]["message"], "too old resource version: 5 (1000000)");
    assert_eq!(piece(&mut watch).await, None);
}

#[tokio::test(start_paused = true)]
async fn time_is_up() {
    let stage = Stage::new();
    let mut watch = stage.watch("timeoutSeconds=30").await;
    let from = Instant::now();
    assert_eq!(piece(&mut watch).await, None);
    assert_eq!(from.elapsed(), Duration::from_secs(30));
    assert_eq!(piece(&mut stage.watch("timeoutSeconds=-1").await).await, None);

    let mut without = stage.watch("").await;
    let from = Instant::now();
    assert_eq!(piece(&mut without).await, None);
    assert!((DEFAULT_TIMEOUT.0..=DEFAULT_TIMEOUT.1).contains(&from.elapsed()), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_servers_end_is_a_clean_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.closing.cancel();
    assert_eq!(piece(&mut watch).await, None);
    assert_eq!(stage.watches.slots.available_permits(), 9);
    drop(watch);
    assert_eq!(stage.watches.slots.available_permits(), 10);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_only_where_they_are_allowed() {
    let stage = Stage::new();
    let mut watch = stage.watch("allowWatchBookmarks=true").await;
    let from = Instant::now();
    let position = stage.publish_batch(batch(&[("elsewhere", Some("bank"))]));
    let bookmark = frame(&mut watch).await;
    assert_eq!(from.elapsed(), BOOKMARK_INTERVAL);
    // The position served, though nothing matched.
    let expected = serde_json::json!({"type": "BOOKMARK", "object": {"kind": "NamespacedEvent", "apiVersion": "audit.k8s.io/v1",
        "metadata": {"resourceVersion": position.to_string()}}});
    assert_eq!(bookmark, expected);

    let mut without = stage.watch("timeoutSeconds=600").await;
    assert_eq!(piece(&mut without).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_initial_state_is_empty_and_ends_at_once() {
    let stage = Stage::new();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    let from = Instant::now();
    let bookmark = frame(&mut stage.watch(query).await).await;
    assert_eq!(from.elapsed(), Duration::ZERO);
    assert_eq!(bookmark["object"]["metadata"]["annotations"], serde_json::json!({"k8s.io/initial-events-end": "true"}));
}

#[tokio::test(start_paused = true)]
async fn what_a_source_lost_is_told_once() {
    let stage = Stage::new();
    let (mut plain, mut bookmarked) = (stage.watch("").await, stage.watch("allowWatchBookmarks=true").await);
    stage.lose();
    stage.publish("a");
    stage.publish("b");
    let expected = serde_json::json!({"count": null, "truncated": 0, "reason": "malformed", "since": "1970-01-01T00:00:01.000001Z"});
    let told = frame(&mut plain).await;
    assert_eq!((&told["object"]["auditID"], gap(&told)), (&"a".into(), expected.clone()));
    assert!(frame(&mut plain).await["object"]["metadata"]["annotations"].get("audit-stream.dev/gap").is_none());

    let told = frame(&mut bookmarked).await;
    assert_eq!((&told["type"], gap(&told)), (&"BOOKMARK".into(), expected));
    let next = frame(&mut bookmarked).await;
    assert_eq!(next["object"]["auditID"], "a");
    assert!(next["object"]["metadata"]["annotations"].get("audit-stream.dev/gap").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_nothing_came_to_tell_of_is_told_at_the_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("timeoutSeconds=30").await;
    stage.lose();
    assert_eq!(frame(&mut watch).await["object"]["code"], 410);
    assert_eq!(piece(&mut watch).await, None);

    let mut bookmarked = stage.watch("timeoutSeconds=30&allowWatchBookmarks=true").await;
    stage.lose();
    assert_eq!(frame(&mut bookmarked).await["type"], "BOOKMARK");
    assert_eq!(piece(&mut bookmarked).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_is_told_or_ended() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let stage = Stage::retaining(one * 2);
    let start = 1_000_000;
    let mut plain = stage.watch("").await;
    let mut bookmarked = stage.watch("allowWatchBookmarks=true").await;
    let mut strict = stage.watch(&format!("resourceVersion={start}")).await;
    for id in ["a", "b", "c", "d"] {
        stage.publish(id);
    }
    let told = frame(&mut plain).await;
    assert_eq!((&told["object"]["auditID"], &gap(&told)["reason"]), (&"c".into(), &"lag".into()));
    assert_eq!(gap(&frame(&mut bookmarked).await)["reason"], "lag");
    assert_eq!(frame(&mut bookmarked).await["object"]["auditID"], "c");
    assert_eq!(frame(&mut strict).await["object"]["code"], 410);
    assert_eq!(piece(&mut strict).await, None);
}

#[tokio::test(start_paused = true)]
async fn withdrawn_permission_ends_the_watch_and_drops_what_was_not_read() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.reviewer.now(Verdict::Deny("gone"));
    let from = Instant::now();
    let error = frame(&mut watch).await;
    assert_eq!(error["object"]["code"], 403);
    assert!(error["object"]["message"].as_str().unwrap().ends_with("in the namespace \"shop\": gone"), "{error}");
    assert!(from.elapsed() <= Duration::from_secs(20));
    assert_eq!(piece(&mut watch).await, None);

    stage.reviewer.now(Verdict::Allow);
    advance(Duration::from_secs(60)).await;
    let mut unread = stage.watch("").await;
    stage.publish("secret");
    stage.reviewer.now(Verdict::Hang);
    advance(Duration::from_secs(20)).await;
    assert_eq!(frame(&mut unread).await["object"]["code"], 500);
    assert_eq!(piece(&mut unread).await, None);
}

impl Stage {
    /// More than one piece.
    fn publish_large(&self) -> usize {
        let ids: Vec<_> = (0..2000).map(|index| index.to_string()).collect();
        self.publish_batch(batch(&ids.iter().map(|id| (id.as_str(), Some("shop"))).collect::<Vec<_>>()));
        ids.len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_in_a_batch_gets_no_more_of_it_without_permission() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.publish_large();
    watch.next().await.unwrap();
    stage.reviewer.now(Verdict::Deny("gone"));
    advance(Duration::from_secs(60)).await;
    assert_eq!(frame(&mut watch).await["object"]["code"], 403);
    assert_eq!(piece(&mut watch).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_comes_in_pieces() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    let events = stage.publish_large();
    let mut all = Vec::new();
    while all.iter().filter(|byte| **byte == b'\n').count() < events {
        let piece = watch.next().await.unwrap();
        assert!(piece.len() <= PIECE_BYTES);
        all.extend_from_slice(&piece);
    }
    assert!(all.len() > PIECE_BYTES, "one piece is no test");
}
