use audit_stream_api::Version;
use audit_stream_api::audit::Event;
use audit_stream_bus::Config as Retain;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{advance, timeout};

use audit_stream_api::query::Replay;
use audit_stream_api::selector::FieldSelector;

use audit_stream_api::Resource;

use super::*;
use crate::authn::User;
use crate::authz::{Authorizer, ResourceAttributes};
use crate::ingest::batch::BatchBuilder;
use crate::testing::{Reviewer, Verdict, batch};

/// A watch, read frame by frame.
struct Reading {
    watch: Watch,
    unread: VecDeque<Value>,
}

struct Stage {
    bus: Arc<Bus<Batch>>,
    watches: Watches,
    closing: Closing,
    reviewer: Arc<Reviewer>,
    authorizer: Arc<Authorizer>,
    _dispatcher: JoinSet<()>,
}

const LIMITS: Limits = Limits { watches: 10, per_user: 5, per_namespace: 10, classes_per_user: 5 };

impl Stage {
    fn new() -> Self {
        Self::retaining(1 << 20)
    }

    fn retaining(retain_bytes: usize) -> Self {
        let bus = Arc::new(Bus::new(Retain { retain_bytes, retain_age: Duration::MAX }, 1_000_000));
        let (closing, reviewer) = (Closing::default(), Reviewer::new(Verdict::Allow));
        let config =
            Config { limits: LIMITS, frame_bytes: MIN_FRAME_BYTES, replay: true, revealed: Revealed::default() };
        let (watches, dispatcher) = Watches::new(Arc::clone(&bus), config, closing.clone(), WatchMetrics::default());
        let authorizer = reviewer.authorizer();
        let mut running = JoinSet::new();
        running.spawn(dispatcher.run());
        Self { bus, watches, closing, reviewer, authorizer, _dispatcher: running }
    }

    async fn watch(&self, query: &str) -> Reading {
        Reading { watch: self.watch_of("alice", query).await.unwrap(), unread: VecDeque::new() }
    }

    async fn watch_of(&self, user: &str, query: &str) -> Result<Watch, Rejection> {
        let user = User { name: user.to_owned(), ..User::anonymous() };
        let route =
            Route { version: Version::V1, resource: Resource::NamespacedEvents, namespace: Some("shop".to_owned()) };
        let attributes = Attributes::Resource(Box::new(ResourceAttributes {
            verb: "watch",
            resource: route.resource.name().to_owned(),
            namespace: route.namespace.clone().unwrap_or_default(),
            ..ResourceAttributes::default()
        }));
        let grant = self.authorizer.authorize(&user, &attributes).await.unwrap();
        let options = WatchOptions::parse(query, route.resource).unwrap();
        let key = ClassKey { route, selector: options.selector.clone() };
        let lease = Lease::new(Arc::clone(&self.authorizer), grant);
        let (audit_id, exchange) = ("x".to_owned(), Exchange::detached());
        let reader = Reader { username: user.name, attributes, audit_id, exchange };
        self.watches.open(key, &options, lease, reader).await
    }

    fn publish(&self, id: &str) -> Sequence {
        self.publish_batch(batch(&[(id, Some("shop"))]))
    }

    fn publish_batch(&self, batch: Batch) -> Sequence {
        self.bus.publish(0, batch.places(), batch.bytes(), batch).last()
    }

    fn lose(&self) {
        let mut lost = BatchBuilder::default();
        lost.note_lost(GapReason::Malformed);
        self.publish_batch(lost.build());
    }
}

impl Reading {
    /// The next frame, `None` at the end. A connection comes back for more when it has sent what it was handed.
    async fn next(&mut self) -> Option<Value> {
        if self.unread.is_empty() {
            let bytes = timeout(Duration::from_secs(3600), self.watch.next());
            let bytes = bytes.await.expect("the watch said nothing for an hour")?;
            let frames = serde_json::Deserializer::from_slice(&bytes).into_iter();
            self.unread = frames.collect::<Result<_, _>>().unwrap();
        }
        self.unread.pop_front()
    }

    async fn frame(&mut self) -> Value {
        self.next().await.expect("the watch ended")
    }

    /// Audit IDs up to and including one of them.
    async fn ids_until(&mut self, last: &str) -> String {
        let mut ids = String::new();
        while !ids.ends_with(last) {
            ids += self.frame().await["object"]["auditID"].as_str().expect("an event");
        }
        ids
    }

    async fn error(&mut self) -> Value {
        let frame = self.frame().await;
        assert_eq!(frame["type"], "ERROR");
        self.end().await;
        frame["object"].clone()
    }

    async fn end(&mut self) {
        assert_eq!(self.next().await, None);
    }
}

fn gap(frame: &Value) -> Value {
    let text = frame["object"]["metadata"]["annotations"]["audit-stream.dev/gap"].as_str().expect("a gap");
    serde_json::from_str(text).unwrap()
}

fn tells_gap(frame: &Value) -> bool {
    frame["object"]["metadata"]["annotations"].get("audit-stream.dev/gap").is_some()
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_now_and_goes_on() {
    let stage = Stage::new();
    stage.publish("before");
    let mut watch = stage.watch("").await;
    let (first, second) = (stage.publish("a"), stage.publish("b"));
    for (id, sequence) in [("a", first), ("b", second)] {
        let frame = watch.frame().await;
        assert_eq!((&frame["type"], &frame["object"]["auditID"]), (&"ADDED".into(), &id.into()));
        assert_eq!(frame["object"]["metadata"]["resourceVersion"], sequence.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_inside_a_batch() {
    let stage = Stage::new();
    let last = stage.publish_batch(batch(&[("a", Some("shop")), ("b", Some("shop")), ("c", Some("shop"))]));
    let mut watch = stage.watch(&format!("resourceVersion={}", last.get() - 1)).await;
    assert_eq!(watch.frame().await["object"]["auditID"], "c");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_not_retained_is_answered_410_in_the_stream() {
    let stage = Stage::new();
    let error = stage.watch("resourceVersion=5").await.error().await;
    assert_eq!((&error["code"], &error["message"]), (&410.into(), &"too old resource version: 5 (1000000)".into()));
}

#[tokio::test(start_paused = true)]
async fn what_is_retained_is_replayed_on_request() {
    let stage = Stage::new();
    for id in ["a", "b", "c"] {
        stage.publish(id);
        stage.publish_batch(batch(&[("elsewhere", Some("bank"))]));
        advance(Duration::from_secs(10)).await;
    }
    let replayed = async |query: &str| {
        let mut watch = stage.watch(&format!("timeoutSeconds=1&{query}")).await;
        let mut ids = String::new();
        while let Some(frame) = watch.next().await {
            ids += frame["object"]["auditID"].as_str().unwrap();
        }
        ids
    };
    assert_eq!(replayed("sinceSeconds=3600").await, "abc");
    assert_eq!(replayed("sinceSeconds=22").await, "bc");
    assert_eq!(replayed("sinceSeconds=15").await, "c");
    assert_eq!(replayed("tailLines=0").await, "");
    assert_eq!(replayed("tailLines=2").await, "bc");
    assert_eq!(replayed("tailLines=100").await, "abc");
    assert_eq!(replayed("tailLines=2&sinceSeconds=18").await, "c");
    assert_eq!(replayed("tailLines=1&sinceSeconds=3600").await, "c");
    assert_eq!(replayed("tailLines=1&fieldSelector=auditID%3Da").await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_waits_for_its_turn_is_not_one_that_takes_nothing() {
    let stage = Stage::new();
    stage.publish("a");
    let turn = stage.watches.searches.try_acquire().unwrap();
    let others_turn = async {
        tokio::time::sleep(PROGRESS_TIMEOUT).await;
        stage.watches.slots.cut_half_of_stalled(STALLED_WITHOUT_ROOM);
        drop(turn);
    };
    let (mut watch, ()) = tokio::join!(stage.watch("sinceSeconds=3600"), others_turn);
    assert!(!watch.watch.slot.is_cut());
    assert_eq!(watch.frame().await["object"]["auditID"], "a");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_behind_the_headers_is_cut() {
    let stage = Stage::new();
    let watch = stage.watch("").await;
    tokio::time::sleep(STALLED_TIMEOUT + SWEEP_INTERVAL).await;
    assert!(watch.watch.slot.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_replay_begins_inside_a_batch() {
    let stage = Stage::new();
    stage.publish_batch(batch(&[("a", Some("shop")), ("x", Some("bank")), ("b", Some("shop")), ("c", Some("shop"))]));
    assert_eq!(stage.watch("tailLines=2").await.ids_until("c").await, "bc");
    assert_eq!(stage.watch("tailLines=3").await.ids_until("c").await, "abc");
}

#[tokio::test(start_paused = true)]
async fn time_is_up() {
    let stage = Stage::new();
    let mut watch = stage.watch("timeoutSeconds=30").await;
    let from = Instant::now();
    watch.end().await;
    assert_eq!(from.elapsed(), Duration::from_secs(30));
    stage.watch("timeoutSeconds=-1").await.end().await;

    let mut without = stage.watch("").await;
    let from = Instant::now();
    without.end().await;
    assert!((DEFAULT_TIMEOUT.0..=DEFAULT_TIMEOUT.1).contains(&from.elapsed()), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_servers_end_is_a_clean_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.closing.begin(Duration::ZERO);
    watch.end().await;
    assert_eq!(stage.watches.slots.open(), 1);
    drop(watch);
    assert_eq!(stage.watches.slots.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_servers_end_is_spread_and_until_its_own_a_watch_goes_on() {
    const SPREAD: Duration = Duration::from_secs(5);
    let stage = Stage::new();
    let mut watches = Vec::new();
    for user in ["a", "b"] {
        for _ in 0..LIMITS.per_user {
            let watch = stage.watch_of(user, "").await.unwrap();
            watches.push(Reading { watch, unread: VecDeque::new() });
        }
    }
    let from = Instant::now();
    stage.closing.begin(SPREAD);
    // A second call changes nothing.
    stage.closing.begin(Duration::ZERO);
    assert_eq!(stage.watch_of("c", "").await.err(), Some(Rejection::ShuttingDown));
    stage.publish("late");
    let mut ends = JoinSet::new();
    for mut watch in watches {
        ends.spawn(async move {
            watch.frame().await;
            watch.end().await;
            from.elapsed()
        });
    }
    stage.closing.all_over().await;
    let mut ends = ends.join_all().await;
    ends.sort();
    let [first, .., last] = &*ends else { unreachable!() };
    assert!(*last < SPREAD, "{ends:?}");
    // That ten random ones are all in the same fifth has a probability of one in 400,000.
    assert!(*last - *first > SPREAD / 5, "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_over_before_is_not_put_off_by_the_servers_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("timeoutSeconds=1").await;
    let from = Instant::now();
    stage.closing.begin(Duration::from_secs(100_000));
    watch.end().await;
    assert_eq!(from.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_learns_late_of_the_servers_end_is_over_as_soon_as_it_does() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.closing.begin(Duration::from_secs(5));
    advance(Duration::from_secs(5)).await;
    let from = Instant::now();
    watch.end().await;
    assert_eq!(from.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_ceases_keeps_no_watch_from_ending() {
    let stage = Stage::new();
    let (mut timed, mut closed) = (stage.watch("timeoutSeconds=5").await, stage.watch("").await);
    let mut denied = stage.watch("").await;
    let mut pieces = 0;
    loop {
        stage.publish("a");
        advance(Duration::from_secs(1)).await;
        closed.frame().await;
        denied.frame().await;
        if timed.next().await.is_none() {
            break;
        }
        pieces += 1;
    }
    assert!((4..=5).contains(&pieces), "{pieces}");
    stage.publish("a");
    stage.closing.begin(Duration::ZERO);
    closed.end().await;

    let stage = Stage::new();
    let mut denied = stage.watch("").await;
    stage.reviewer.now(Verdict::Deny("gone"));
    let from = Instant::now();
    loop {
        stage.publish("a");
        advance(Duration::from_millis(500)).await;
        if denied.frame().await["type"] == "ERROR" {
            break;
        }
    }
    assert!(from.elapsed() < Duration::from_secs(12), "it was renewed under way: {:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn bookmarks_only_where_they_are_allowed() {
    let stage = Stage::new();
    let mut watch = stage.watch("allowWatchBookmarks=true").await;
    let from = Instant::now();
    let position = stage.publish_batch(batch(&[("elsewhere", Some("bank"))]));
    let bookmark = watch.frame().await;
    assert_eq!(from.elapsed(), BOOKMARK_INTERVAL);
    // The position served, though nothing matched.
    let expected = json!({"type": "BOOKMARK", "object": {"kind": "NamespacedEvent", "apiVersion": "audit.k8s.io/v1",
        "metadata": {"resourceVersion": position.to_string()}}});
    assert_eq!(bookmark, expected);

    stage.watch("timeoutSeconds=600").await.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_bookmark_comes_before_the_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("allowWatchBookmarks=true&timeoutSeconds=90").await;
    let from = Instant::now();
    let mut bookmarks = Vec::new();
    while let Some(frame) = watch.next().await {
        assert_eq!(frame["type"], "BOOKMARK");
        bookmarks.push(from.elapsed().as_secs());
    }
    assert_eq!(bookmarks, [60, 88]);
}

#[tokio::test(start_paused = true)]
async fn the_initial_state_is_empty_and_ends_at_once() {
    let stage = Stage::new();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    let from = Instant::now();
    let bookmark = stage.watch(query).await.frame().await;
    assert_eq!(from.elapsed(), Duration::ZERO);
    assert_eq!(bookmark["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
}

#[tokio::test(start_paused = true)]
async fn what_a_source_lost_is_told_once() {
    let stage = Stage::new();
    let (mut plain, mut bookmarked) = (stage.watch("").await, stage.watch("allowWatchBookmarks=true").await);
    stage.lose();
    stage.publish("a");
    stage.publish("b");
    let expected =
        json!({"count": null, "truncated": 0, "reason": "malformed", "since": "1970-01-01T00:00:01.000001Z"});
    let told = plain.frame().await;
    assert_eq!((&told["object"]["auditID"], gap(&told)), (&"a".into(), expected.clone()));
    assert!(!tells_gap(&plain.frame().await));

    let told = bookmarked.frame().await;
    assert_eq!((&told["type"], gap(&told)), (&"BOOKMARK".into(), expected));
    let next = bookmarked.frame().await;
    assert_eq!(next["object"]["auditID"], "a");
    assert!(!tells_gap(&next));

    // Who has read the bookmark comes back to what follows it, and who has not to what is before.
    let place: u64 = told["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let back = async |place: u64| stage.watch(&format!("resourceVersion={place}")).await.frame().await;
    assert_eq!((tells_gap(&back(place).await), tells_gap(&back(place - 1).await)), (false, true));
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_nothing_came_to_tell_of_is_told_at_the_end() {
    let stage = Stage::new();
    let mut watch = stage.watch("timeoutSeconds=30").await;
    stage.lose();
    assert_eq!(watch.error().await["code"], 410);

    let mut bookmarked = stage.watch("timeoutSeconds=2&allowWatchBookmarks=true").await;
    stage.lose();
    assert_eq!(bookmarked.frame().await["type"], "BOOKMARK");
    bookmarked.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_is_told_how_much_it_missed_or_ended() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let stage = Stage::retaining(one * 2);
    let mut plain = stage.watch("").await;
    let mut bookmarked = stage.watch("allowWatchBookmarks=true").await;
    let mut strict = stage.watch("resourceVersion=1000000").await;
    let mut all = stage.watch("sinceSeconds=5").await;
    for id in ["a", "b", "c", "d"] {
        stage.publish(id);
        // The dispatcher has its turn.
        tokio::task::yield_now().await;
        if id == "b" {
            assert_eq!(all.ids_until("b").await, "ab");
        }
    }
    let told = plain.frame().await;
    assert_eq!((&told["object"]["auditID"], gap(&told)["count"].as_u64()), (&"c".into(), Some(2)));
    let told = bookmarked.frame().await;
    assert_eq!((&told["type"], gap(&told)["count"].as_u64()), (&"BOOKMARK".into(), Some(2)));
    assert_eq!(gap(&told)["reason"], "lag");
    assert_eq!(bookmarked.ids_until("d").await, "cd");
    assert_eq!(strict.error().await["code"], 410);
    assert_eq!(all.ids_until("d").await, "cd", "it was not behind");
}

#[tokio::test(start_paused = true)]
async fn each_time_a_reader_falls_behind_it_is_told_of_what_it_missed_since() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let stage = Stage::retaining(one * 2);
    let mut watch = stage.watch("allowWatchBookmarks=true").await;
    for round in 1..=3 {
        // One that is told as dropped is not told again as missed.
        let mut dropped = BatchBuilder::default();
        let json = r#"{"level":"","auditID":"x","stage":"","requestURI":"/","verb":"get","user":{}}"#;
        dropped.push_dropped(&Event::parse(json).unwrap(), Some("shop"), GapReason::Oversize);
        stage.publish_batch(dropped.build());
        stage.publish("r");
        tokio::task::yield_now().await;
        assert_eq!(gap(&watch.frame().await)["reason"], "oversize");
        assert_eq!(watch.ids_until("r").await, "r");
        for _ in 0..2 + round {
            stage.publish("f");
            tokio::task::yield_now().await;
        }
        let told = gap(&watch.frame().await);
        assert_eq!((&told["reason"], &told["count"]), (&"lag".into(), &round.into()));
        assert_eq!(watch.ids_until("ff").await, "ff");
    }
}

#[tokio::test(start_paused = true)]
async fn who_had_nothing_to_read_for_long_is_not_told_of_a_gap() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let stage = Stage::retaining(one * 80);
    let mut watch = stage.watch("").await;
    // More of its own than its class remembers, and where it is itself is long evicted.
    for (count, namespace) in [(200, "bank"), (70, "shop")] {
        for _ in 0..count {
            stage.publish_batch(batch(&[("x", Some(namespace))]));
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..70 {
        assert!(!tells_gap(&watch.frame().await));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_evicted_before_it_was_shown_is_a_gap_of_unknown_size() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let stage = Stage::retaining(one * 2);
    let mut watch = stage.watch("").await;
    for id in ["a", "b", "c", "d"] {
        stage.publish(id);
    }
    let told = watch.frame().await;
    assert_eq!((&told["object"]["auditID"], &gap(&told)["count"]), (&"c".into(), &Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_takes_nothing_is_over() {
    let stage = Stage::new();
    let (mut plain, mut strict) = (stage.watch("").await, stage.watch("resourceVersion=1000000").await);
    stage.publish("a");
    plain.frame().await;
    strict.frame().await;
    stage.publish("b");
    advance(PROGRESS_TIMEOUT).await;
    let error = plain.error().await;
    assert_eq!((&error["code"], &error["reason"]), (&410.into(), &"Expired".into()));
    // It comes back to where it was, and misses nothing.
    strict.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_waits_for_events_is_not_one_that_takes_nothing() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    let later = async {
        tokio::time::sleep(STALLED_TIMEOUT * 2).await;
        stage.publish("a")
    };
    let (frame, _) = tokio::join!(watch.frame(), later);
    assert_eq!(frame["object"]["auditID"], "a");
    assert!(!watch.watch.slot.is_cut());
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_end_nobody_comes_for_is_cut_and_keeps_its_slot_until_then() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.publish("a");
    watch.frame().await;
    tokio::time::sleep(STALLED_TIMEOUT - Duration::from_secs(1)).await;
    assert!(!watch.watch.slot.is_cut());
    assert_eq!(stage.watches.slots.open(), 1);
    tokio::time::sleep(SWEEP_INTERVAL + Duration::from_secs(1)).await;
    assert!(watch.watch.slot.is_cut());
}

#[tokio::test(start_paused = true)]
async fn as_many_watches_as_may_be() {
    let stage = Stage::new();
    let mut watches = Vec::new();
    for _ in 0..LIMITS.per_user {
        watches.push(stage.watch_of("alice", "").await.unwrap());
    }
    assert_eq!(stage.watch_of("alice", "").await.err(), Some(Rejection::TooManyWatches(Full::User)));
    watches.push(stage.watch_of("bob", "").await.unwrap());
    watches.remove(0);
    assert!(stage.watch_of("alice", "").await.is_ok());
}

/// An event with a namespace of about a megabyte.
fn large(id: &str) -> Batch {
    let json = format!(
        r#"{{"level":"Metadata","auditID":"{id}","stage":"ResponseComplete","requestURI":"/","verb":"get","user":{{}},"userAgent":"{}"}}"#,
        "x".repeat(1_000_000)
    );
    let mut builder = BatchBuilder::default();
    builder.push_made(&Event::parse(&json).unwrap(), &json, Some("shop"));
    builder.build()
}

/// Takes one large frame with this pause before each part; how many parts there were, or `None` if it broke off.
async fn take_large(watch: &mut Watch, pause: Duration) -> Option<usize> {
    let mut frame = Vec::new();
    let mut parts = 0;
    while !frame.ends_with(b"\n") {
        advance(pause).await;
        let part = watch.next().await?;
        assert!(part.len() <= PIECE_BYTES);
        frame.extend_from_slice(&part);
        parts += 1;
    }
    serde_json::from_slice::<Value>(&frame).expect("a whole frame");
    Some(parts)
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_large_frame_slowly_goes_on() {
    let stage = Stage::retaining(64 << 20);
    let mut watch = stage.watch_of("alice", "").await.unwrap();
    stage.publish_batch(large("a"));
    assert_eq!(take_large(&mut watch, Duration::from_secs(25)).await, Some(8));
    stage.publish("b");
    assert!(watch.next().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_inside_a_frame_is_cut() {
    for (verdict, pause) in [(Verdict::Deny("gone"), 25), (Verdict::Allow, 30)] {
        let stage = Stage::retaining(64 << 20);
        let mut watch = stage.watch_of("alice", "").await.unwrap();
        stage.publish_batch(large("a"));
        watch.next().await.unwrap();
        stage.reviewer.now(verdict);
        advance(Duration::from_secs(pause)).await;
        assert_eq!(watch.next().await, None, "no more of an event that may not be seen, and no frame inside a frame");
        assert!(watch.slot.is_cut());
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_those_are_cut_that_take_nothing() {
    let stage = Stage::retaining(64 << 20);
    // Pieces of eight different classes fill the eight megabytes that there are.
    let mut holders = Vec::new();
    for (user, class) in
        [("alice", 0), ("alice", 1), ("alice", 2), ("alice", 3), ("bob", 4), ("bob", 5), ("bob", 6), ("bob", 7)]
    {
        let query = format!("fieldSelector=auditID!%3D{class}");
        holders.push(stage.watch_of(user, &query).await.unwrap());
    }
    let mut healthy = stage.watch_of("carol", "").await.unwrap();
    stage.publish_batch(large("a"));
    let mut held = Vec::new();
    for holder in &mut holders {
        held.push(holder.next().await.unwrap());
    }
    assert!(stage.watches.frame_bytes() > 7_500_000);
    let let_go = async {
        // As their connections do it.
        while !holders.iter().all(|holder| holder.slot.is_cut()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (held, holders) = (Vec::new(), Vec::new());
    };
    let from = Instant::now();
    let (piece, ()) = tokio::join!(healthy.next(), let_go);
    assert!(piece.is_some());
    assert!(from.elapsed() < Duration::from_secs(5), "{:?}", from.elapsed());
    assert!(!healthy.slot.is_cut());
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_what_classes_keep_goes_first() {
    let stage = Stage::retaining(64 << 20);
    let (mut quick, slow) = (stage.watch_of("alice", "").await.unwrap(), stage.watch_of("alice", "").await.unwrap());
    for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        stage.publish_batch(large(id));
        take_large(&mut quick, Duration::ZERO).await.unwrap();
    }
    assert!(stage.watches.frame_bytes() > 7_500_000, "kept for the slow one");
    let from = Instant::now();
    stage.publish_batch(large("i"));
    take_large(&mut quick, Duration::ZERO).await.unwrap();
    assert!(from.elapsed() < ROOM_WAIT && !slow.slot.is_cut());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_and_finds_the_piece_written_takes_none() {
    let stage = Stage::retaining(64 << 20);
    let mut holder = stage.watch_of("alice", "verbs=get").await.unwrap();
    stage.publish_batch(large("a"));
    let held = holder.next().await.unwrap();
    let budget = stage.watches.classes.budget();
    // So much that a class can remember what it selects, and write nothing.
    let rest = budget.try_charge(MIN_FRAME_BYTES - budget.used() - 100).unwrap();
    let (mut one, mut two) = (stage.watch_of("bob", "").await.unwrap(), stage.watch_of("bob", "").await.unwrap());
    stage.publish("b");
    let give_way = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop((held, rest, holder));
    };
    let (first, second, ()) = tokio::join!(one.next(), two.next(), give_way);
    assert_eq!(first.unwrap().as_ptr(), second.unwrap().as_ptr());
    assert_eq!(stage.watches.frame_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn withdrawn_permission_ends_the_watch() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    stage.reviewer.now(Verdict::Deny("gone"));
    let from = Instant::now();
    let error = watch.error().await;
    assert_eq!(error["code"], 403);
    assert!(error["message"].as_str().unwrap().ends_with("in the namespace \"shop\": gone"), "{error}");
    assert!(from.elapsed() <= Duration::from_secs(20));

    stage.reviewer.now(Verdict::Allow);
    advance(Duration::from_secs(60)).await;
    let mut unread = stage.watch("").await;
    stage.publish("secret");
    stage.reviewer.now(Verdict::Hang);
    advance(Duration::from_secs(20)).await;
    assert_eq!(unread.error().await["code"], 500);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_gets_no_more_without_permission() {
    let stage = Stage::new();
    let mut watch = stage.watch("").await;
    let ids: Vec<_> = (0..2000).map(|index| index.to_string()).collect();
    stage.publish_batch(batch(&ids.iter().map(|id| (id.as_str(), Some("shop"))).collect::<Vec<_>>()));
    watch.watch.next().await.unwrap();
    stage.reviewer.now(Verdict::Deny("gone"));
    advance(Duration::from_secs(25)).await;
    assert_eq!(watch.error().await["code"], 403);
}

/// A batch of two events of `shop`, of which the second says that the namespace was created.
fn creation(before: &str, created: &str) -> Batch {
    let mut builder = BatchBuilder::default();
    for id in [before, created] {
        let json = format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"ResponseComplete","requestURI":"/","verb":"create","user":{{}}}}"#
        );
        if id == created {
            builder.note_creation("shop");
        }
        builder.push_made(&Event::parse(&json).unwrap(), &json, Some("shop"));
    }
    builder.build()
}

#[tokio::test(start_paused = true)]
async fn a_new_owner_of_a_namespace_does_not_see_what_happened_to_the_old_one() {
    let stage = Stage::new();
    let old = stage.publish("old");
    let created = stage.publish_batch(creation("deleted", "created"));
    stage.publish("new");
    assert_eq!(stage.watch("sinceSeconds=3600").await.ids_until("new").await, "creatednew");
    assert_eq!(stage.watch("tailLines=5").await.ids_until("new").await, "creatednew");
    assert_eq!(stage.watch("tailLines=3").await.ids_until("new").await, "creatednew", "inside its batch too");
    assert_eq!(stage.watch("tailLines=1").await.ids_until("new").await, "new");
    let error = stage.watch(&format!("resourceVersion={old}")).await.error().await;
    let oldest = created.get() - 1;
    assert_eq!(
        (&error["code"], error["message"].as_str()),
        (&410.into(), Some(&*format!("too old resource version: {old} ({oldest})")))
    );
    assert_eq!(stage.watch(&format!("resourceVersion={oldest}")).await.ids_until("new").await, "creatednew");
    assert_eq!(stage.watch(&format!("resourceVersion={created}")).await.ids_until("new").await, "new");
}

#[tokio::test(start_paused = true)]
async fn readers_of_more_than_a_namespace_see_its_past_too() {
    let stage = Stage::new();
    let old = stage.publish("old");
    stage.publish_batch(creation("deleted", "created"));
    let route = Route { version: Version::V1, resource: Resource::NamespacedEvents, namespace: None };
    let key = ClassKey { route, selector: FieldSelector::default().into() };
    assert_eq!(start::after(&stage.bus, &key, old).await, Ok(old));
    let replay = Replay { since: Some(Duration::from_secs(60)), tail: None };
    assert!(start::replay(&stage.bus, &key, replay).await < old);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_dropped_is_told_to_those_who_would_have_seen_it() {
    let stage = Stage::new();
    let (mut plain, mut bookmarked) = (stage.watch("").await, stage.watch("allowWatchBookmarks=true").await);
    let (mut other_verb, mut resumed) = (stage.watch("verbs=list").await, stage.watch("resourceVersion=1000000").await);
    let json =
        r#"{"level":"Metadata","auditID":"x","stage":"ResponseComplete","requestURI":"/","verb":"get","user":{}}"#;
    let event = Event::parse(json).unwrap();
    let mut builder = BatchBuilder::default();
    builder.push(&event, json, Some("shop"));
    builder.push_dropped(&event, Some("shop"), GapReason::Oversize);
    builder.push_dropped(&event, Some("bank"), GapReason::Oversize);
    builder.push_dropped(&event, Some("shop"), GapReason::Oversize);
    builder.push(&event, json, Some("shop"));
    stage.publish_batch(builder.build());
    let places = [1, 5].map(|place| (1_000_000 + place).to_string());
    for watch in [&mut plain, &mut resumed] {
        let frames = [watch.frame().await, watch.frame().await];
        assert_eq!(
            [0, 1].map(|at| frames[at]["object"]["metadata"]["resourceVersion"].clone()),
            places.clone().map(Value::from)
        );
        assert!(!tells_gap(&frames[0]));
        let gap = gap(&frames[1]);
        assert_eq!((&gap["count"], &gap["reason"]), (&2.into(), &"oversize".into()));
    }
    bookmarked.frame().await;
    let told = [bookmarked.frame().await, bookmarked.frame().await];
    assert_eq!(told.map(|frame| gap(&frame)["count"].clone()), [1, 1].map(Value::from));
    assert!(!tells_gap(&bookmarked.frame().await));
    stage.publish_batch({
        let json = json.replace("get", "list");
        let mut builder = BatchBuilder::default();
        builder.push_made(&Event::parse(&json).unwrap(), &json, Some("shop"));
        builder.build()
    });
    assert!(!tells_gap(&other_verb.frame().await));
}
