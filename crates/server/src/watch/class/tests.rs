use std::time::Duration;

use audit_stream_api::Version;
use audit_stream_api::audit::Event;
use audit_stream_api::selector::FieldSelector;
use audit_stream_bus::{Config, Cursor, Lagged};
use futures::FutureExt;

use super::*;
use crate::ingest::batch::BatchBuilder;
use crate::testing::batch;

const BUDGET_BYTES: usize = 8 << 20;

/// A bus, its classes, and what dispatches from the one to the others.
struct Scene {
    bus: Arc<Bus<Batch>>,
    classes: Arc<Classes>,
    cursor: Cursor<Batch>,
}

/// A watch, as far as its class is concerned.
struct Reader {
    member: Member,
    at: Sequence,
    tally: Tally,
    charge: Option<Charge>,
    got: Vec<u64>,
    missed: Option<u64>,
}

impl Scene {
    fn new() -> Self {
        Self::with(1 << 20, MEMORY)
    }

    fn with(retain_bytes: usize, memory: Memory) -> Self {
        let bus = Arc::new(Bus::new(Config { retain_bytes, retain_age: Duration::MAX }, 1_000));
        let cursor = bus.subscribe();
        let budget = Budget::new(BUDGET_BYTES);
        let classes = Arc::new(Classes::new(Arc::clone(&bus), budget, memory, Revealed::default(), cursor.position()));
        Self { bus, classes, cursor }
    }

    fn publish(&self, batch: Batch) -> Arc<Entry<Batch>> {
        self.bus.publish(0, batch.places(), batch.bytes(), batch)
    }

    /// Publishes events: audit ID and namespace.
    fn publish_events(&self, events: &[(&str, Option<&str>)]) -> Arc<Entry<Batch>> {
        self.publish(batch(events))
    }

    /// Shows the classes the next batch; whether there was one.
    fn dispatch(&mut self) -> bool {
        match self.cursor.next().now_or_never() {
            Some(Ok(entry)) => self.classes.dispatch(&entry),
            Some(Err(Lagged { to, .. })) => self.classes.skip_to(to),
            None => return false,
        }
        true
    }

    fn dispatch_all(&mut self) {
        while self.dispatch() {}
    }

    fn reader(&self, key: ClassKey) -> Reader {
        let at = self.bus.head();
        let member = self.classes.join(key);
        let tally = member.tally(at).now_or_never().expect("there is not much to look through");
        Reader { tally, member, at, charge: None, got: Vec::new(), missed: Some(0) }
    }

    fn shop(&self) -> Reader {
        self.reader(key(Resource::NamespacedEvents, Some("shop"), ""))
    }

    fn left(&self) -> usize {
        BUDGET_BYTES - self.classes.budget.used()
    }
}

impl Reader {
    /// One step, as a watch does it; `None` when there is nothing more.
    fn step(&mut self, gap: Option<&str>) -> Option<Next> {
        let mut next = self.member.next(self.at, gap, &mut self.charge);
        if let Next::Charge(bytes) = next {
            self.charge = self.member.classes.budget.try_charge(bytes);
            next = self.member.next(self.at, gap, &mut self.charge);
        }
        match &next {
            Next::UpToDate => return None,
            Next::Charge(_) => panic!("no room"),
            Next::Passed(place) => self.at = *place,
            Next::Piece(piece) => {
                self.at = piece.last;
                self.tally = self.tally.plus(piece.events);
                self.got.extend(read(&piece.bytes).into_iter().map(|(_, place)| place));
            }
            Next::Loss(loss) => {
                self.at = loss.place;
                self.tally = self.tally.plus(loss.count.unwrap_or(0));
            }
            Next::Lagged(oldest) => {
                let now = self.member.tally(*oldest).now_or_never().expect("there is not much to look through");
                let missed = self.tally.missed_until(now);
                self.missed = self.missed.zip(missed).map(|(before, more)| before + more);
                self.at = *oldest;
                self.tally = now;
            }
        }
        Some(next)
    }

    fn piece(&mut self) -> Piece {
        match self.step(None) {
            Some(Next::Piece(piece)) => piece,
            other => panic!("not a piece: {other:?}"),
        }
    }

    fn read_all(&mut self) {
        while self.step(None).is_some() {}
    }
}

fn key(resource: Resource, namespace: Option<&str>, selector: &str) -> ClassKey {
    ClassKey {
        route: Route { version: Version::V1, resource, namespace: namespace.map(str::to_owned) },
        selector: FieldSelector::parse(selector).unwrap().into(),
    }
}

/// Audit ID and resourceVersion of each frame.
fn read(frames: &[u8]) -> Vec<(String, u64)> {
    let frames = serde_json::Deserializer::from_slice(frames).into_iter::<serde_json::Value>();
    let object = |frame: serde_json::Value| {
        let version = frame["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        (frame["object"]["auditID"].as_str().unwrap().to_owned(), version)
    };
    frames.map(|frame| object(frame.unwrap())).collect()
}

const MIXED: [(&str, Option<&str>); 4] = [("a", Some("shop")), ("b", Some("bank")), ("c", None), ("d", Some("shop"))];

/// The audit IDs that a class selects of [`MIXED`], as a watch of it reads them, at once and from the bus.
fn selected(key: ClassKey) -> String {
    let mut scene = Scene::new();
    let [mut reader, mut behind] = [0, 1].map(|_| scene.reader(key.clone()));
    scene.publish_events(&MIXED);
    scene.dispatch_all();
    let ids = |frames: &[u8]| read(frames).into_iter().map(|(id, _)| id).collect::<String>();
    let next = reader.step(None);
    scene.classes.skip_to(scene.bus.head());
    behind.read_all();
    assert_eq!(behind.got, reader.got);
    match next {
        Some(Next::Piece(piece)) => ids(&piece.bytes),
        other => format!("{:?}", other.map(|_| "something else")).replace("None", ""),
    }
}

#[tokio::test]
async fn scope_and_selector_decide() {
    assert_eq!(selected(key(Resource::Events, None, "")), "abcd");
    assert_eq!(selected(key(Resource::NamespacedEvents, None, "")), "abd");
    assert_eq!(selected(key(Resource::NamespacedEvents, Some("shop"), "")), "ad");
    assert_eq!(selected(key(Resource::NamespacedEvents, Some("nowhere"), "")), "");
    assert_eq!(selected(key(Resource::Events, None, "metadata.namespace=shop,auditID!=a")), "d");
    assert_eq!(selected(key(Resource::Events, None, "metadata.namespace=")), "c");
    assert_eq!(selected(key(Resource::Events, None, "metadata.name=event-1003")), "c");
}

#[tokio::test]
async fn selectors_see_what_the_view_shows() {
    let full = |resource| selected(key(resource, None, r"requestURI=/x?a\=secret"));
    let masked = |resource| selected(key(resource, None, r"requestURI=/x?a\=***"));
    assert_eq!((full(Resource::Events), masked(Resource::Events)), ("abcd".to_owned(), String::new()));
    assert_eq!(
        (full(Resource::NamespacedEvents), masked(Resource::NamespacedEvents)),
        (String::new(), "abd".to_owned())
    );
}

#[tokio::test]
async fn watches_of_a_class_share_one_copy_that_goes_with_its_last_holder() {
    let mut scene = Scene::new();
    let [mut one, mut two, mut three] = [0, 1, 2].map(|_| scene.shop());
    scene.publish_events(&MIXED);
    scene.dispatch_all();
    let first = one.piece();
    let address = first.bytes.as_ptr();
    drop(first);
    assert_eq!(two.piece().bytes.as_ptr(), address, "it lies there although the first has long sent and dropped it");
    let last = three.piece();
    assert_eq!(last.bytes.as_ptr(), address);
    assert!(scene.left() < BUDGET_BYTES, "a connection still holds it");
    assert!(one.member.class.lock().pieces.is_empty(), "and the class does not");
    drop(last);
    assert_eq!(scene.left(), BUDGET_BYTES);
}

#[tokio::test]
async fn nothing_is_kept_where_nobody_else_will_come() {
    let mut scene = Scene::new();
    let mut alone = scene.shop();
    scene.publish_events(&MIXED);
    scene.dispatch_all();
    drop(alone.piece());
    assert_eq!(scene.left(), BUDGET_BYTES);
}

#[tokio::test]
async fn what_waits_for_watches_that_do_not_come_is_bounded_and_can_be_shed() {
    let mut scene = Scene::with(1 << 20, Memory { batches: 3, pieces: 2 });
    let (mut quick, mut slow) = (scene.shop(), scene.shop());
    for id in ["a", "b", "c", "d", "e"] {
        scene.publish_events(&[(id, Some("shop"))]);
        scene.dispatch_all();
        quick.read_all();
    }
    let hub = quick.member.class.lock();
    assert_eq!((hub.batches.len(), hub.pieces.len()), (3, 2));
    drop(hub);
    scene.classes.shed();
    assert!(quick.member.class.lock().pieces.is_empty());
    slow.read_all();
    assert_eq!((slow.got, slow.missed), (quick.got, Some(0)));
}

#[tokio::test]
async fn only_those_are_woken_whom_it_concerns() {
    let mut scene = Scene::new();
    let mut shop = scene.shop();
    let mut gets = scene.reader(key(Resource::NamespacedEvents, Some("shop"), "verb=list"));
    let mut bank = scene.reader(key(Resource::NamespacedEvents, Some("bank"), ""));
    scene.publish_events(&[("a", Some("shop"))]);
    scene.dispatch_all();
    let woken = |reader: &mut Reader| reader.member.changed().now_or_never().is_some();
    assert_eq!([woken(&mut shop), woken(&mut gets), woken(&mut bank)], [true, false, false]);
    // Whose it was that a source lost, nobody knows.
    let mut lost = BatchBuilder::default();
    lost.note_lost(GapReason::Malformed);
    scene.publish(lost.build());
    scene.dispatch_all();
    assert_eq!([woken(&mut shop), woken(&mut gets), woken(&mut bank)], [true, true, true]);
}

#[tokio::test]
async fn a_large_batch_comes_in_pieces_of_whole_frames() {
    let mut scene = Scene::new();
    let (mut one, mut two) = (scene.shop(), scene.shop());
    let ids: Vec<_> = (0..2000).map(|index| index.to_string()).collect();
    scene.publish_events(&ids.iter().map(|id| (id.as_str(), Some("shop"))).collect::<Vec<_>>());
    scene.dispatch_all();
    let mut lengths = Vec::new();
    while let Some(Next::Piece(piece)) = one.step(None) {
        assert_eq!(two.piece().bytes.as_ptr(), piece.bytes.as_ptr());
        lengths.push(piece.bytes.len());
    }
    let full = PIECE_BYTES - PIECE_BYTES / 10..=PIECE_BYTES;
    assert!(
        lengths.len() > 5 && lengths[..lengths.len() - 1].iter().all(|length| full.contains(length)),
        "{lengths:?}"
    );
    assert_eq!(one.got, (1_001..3_001).collect::<Vec<_>>());
    assert_eq!(scene.left(), BUDGET_BYTES);
}

#[tokio::test]
async fn a_piece_takes_what_several_batches_have_for_it() {
    let mut scene = Scene::new();
    let mut reader = scene.shop();
    for id in ["a", "b", "c"] {
        scene.publish_events(&[(id, Some("shop"))]);
    }
    scene.dispatch_all();
    assert_eq!(reader.piece().events, 3);
    assert!(reader.step(None).is_none());
}

#[tokio::test]
async fn with_a_gap_to_tell_it_is_one_frame_for_one_reader() {
    let mut scene = Scene::new();
    let (mut told, mut other) = (scene.shop(), scene.shop());
    scene.publish_events(&MIXED);
    scene.dispatch_all();
    let Some(Next::Piece(piece)) = told.step(Some("{}")) else { panic!("no piece") };
    let text = String::from_utf8(piece.bytes.to_vec()).unwrap();
    assert_eq!((piece.events, text.matches("audit-stream.dev/gap").count()), (1, 1));
    told.read_all();
    let shared = String::from_utf8(other.piece().bytes.to_vec()).unwrap();
    assert_eq!((shared.matches("audit-stream.dev/gap").count(), told.got), (0, other.got));
}

#[tokio::test]
async fn a_watch_that_had_nothing_to_read_for_long_has_missed_nothing() {
    let one = batch(&[("x", Some("bank"))]).bytes();
    let mut scene = Scene::with(one * 2, Memory { batches: 1, pieces: 1 });
    let mut idle = scene.shop();
    for _ in 0..10 {
        scene.publish_events(&[("x", Some("bank"))]);
        scene.dispatch_all();
    }
    let places = ["a", "b"].map(|id| scene.publish_events(&[(id, Some("shop"))]).first().get());
    scene.dispatch_all();
    // Its class remembers only the second of the two, and where it is itself is no longer retained.
    idle.read_all();
    assert_eq!((idle.got, idle.missed), (places.to_vec(), Some(0)));
}

#[tokio::test]
async fn a_class_goes_with_its_last_watch() {
    let scene = Scene::new();
    let one = scene.shop();
    let two = scene.shop();
    let other = scene.reader(key(Resource::NamespacedEvents, Some("shop"), "verb=get"));
    assert!(Arc::ptr_eq(&one.member.class, &two.member.class));
    drop(one);
    assert_eq!(scene.classes.lock().classes.len(), 2);
    drop((two, other));
    let index = scene.classes.lock();
    assert!(index.classes.is_empty() && index.by_namespace.is_empty() && index.across.is_empty());
}

#[tokio::test]
async fn how_far_it_has_come_is_told_only_where_nothing_is_left() {
    let mut scene = Scene::new();
    let mut reader = scene.shop();
    scene.publish_events(&[("x", Some("bank"))]);
    assert_eq!(reader.member.caught_up(reader.at), Some(reader.at), "not shown yet");
    scene.dispatch_all();
    assert_eq!(reader.member.caught_up(reader.at), Some(scene.bus.head()));
    scene.publish_events(&[("a", Some("shop")), ("y", Some("bank"))]);
    scene.dispatch_all();
    assert_eq!(reader.member.caught_up(reader.at), None);
    reader.read_all();
    assert_eq!(reader.member.caught_up(reader.at), Some(scene.bus.head()));
}

/// What can happen between two watches of a class, the dispatcher and a publisher.
#[derive(Debug, Clone, Copy)]
enum Step {
    PublishOurs,
    PublishTwo,
    PublishOthers,
    Dispatch,
    FirstReads,
    SecondReads,
    Shed,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::PublishOurs,
        Self::PublishTwo,
        Self::PublishOthers,
        Self::Dispatch,
        Self::FirstReads,
        Self::SecondReads,
        Self::Shed,
    ];
}

/// Each step holds a lock from its beginning to its end, so their orders are all that can happen.
fn play(steps: &[Step], retain_batches: usize) {
    let one = batch(&[("x", Some("bank"))]).bytes();
    let mut scene = Scene::with(one * retain_batches, Memory { batches: 2, pieces: 1 });
    let mut readers = [scene.shop(), scene.shop()];
    let mut ours = Vec::new();
    for step in steps {
        match step {
            Step::PublishOurs => ours.push(scene.publish_events(&[("a", Some("shop"))]).first().get()),
            Step::PublishTwo => {
                let entry = scene.publish_events(&[("a", Some("shop")), ("y", Some("bank")), ("b", Some("shop"))]);
                ours.extend([entry.first().get(), entry.last().get()]);
            }
            Step::PublishOthers => drop(scene.publish_events(&[("x", Some("bank"))])),
            Step::Dispatch => drop(scene.dispatch()),
            Step::FirstReads => drop(readers[0].step(None)),
            Step::SecondReads => drop(readers[1].step(None)),
            Step::Shed => scene.classes.shed(),
        }
    }
    scene.dispatch_all();
    for mut reader in readers {
        reader.read_all();
        let missed = ours.iter().filter(|place| !reader.got.contains(place)).count() as u64;
        let in_order = reader.got.is_sorted_by(|a, b| a < b) && reader.got.iter().all(|place| ours.contains(place));
        assert!(in_order, "{steps:?}: {:?} of {ours:?}", reader.got);
        // Unknown only where batches were evicted before they were shown.
        let told = reader.missed.unwrap_or(missed);
        assert_eq!(told, missed, "{steps:?}: {:?} of {ours:?}", reader.got);
        assert!(missed == 0 || retain_batches < steps.len(), "{steps:?}: {:?} of {ours:?}", reader.got);
    }
    assert_eq!(scene.left(), BUDGET_BYTES, "{steps:?}");
}

/// Every order of so many steps.
fn play_all(length: u32, retain_batches: usize) {
    for number in 0..Step::ALL.len().pow(length) {
        let steps: Vec<_> = (0..length).map(|at| Step::ALL[number / 7_usize.pow(at) % 7]).collect();
        play(&steps, retain_batches);
    }
}

#[test]
fn in_every_order_of_steps_each_event_comes_once_or_is_missed_and_counted() {
    play_all(5, 100);
    play_all(5, 3);
}

#[test]
fn the_same_in_longer_orders() {
    // A linear congruential generator with Knuth's factor: which orders does not matter, only that they are always the same.
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % Step::ALL.len()
    };
    for retain_batches in [3, 5, 100].into_iter().cycle().take(6_000) {
        let steps: Vec<_> = (0..25).map(|_| Step::ALL[next()]).collect();
        play(&steps, retain_batches);
    }
}

/// A batch of two events of `shop`, of which something else could not be read.
fn with_loss() -> Batch {
    let mut builder = BatchBuilder::default();
    builder.note_lost(GapReason::Malformed);
    for id in ["a", "b"] {
        let json = format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"ResponseComplete","requestURI":"/","verb":"get","user":{{}}}}"#
        );
        builder.push_made(&Event::parse(&json).unwrap(), &json, Some("shop"));
    }
    builder.build()
}

#[tokio::test]
async fn what_was_lost_has_a_place_of_its_own_and_is_met_once() {
    let mut scene = Scene::new();
    let [mut reader, mut behind] = [0, 1].map(|_| scene.shop());
    let entry = scene.publish(with_loss());
    scene.dispatch_all();
    for reader in [&mut reader, &mut behind] {
        let expected = Loss { place: entry.first(), reason: GapReason::Malformed, count: None };
        let Some(Next::Loss(loss)) = reader.step(None) else { panic!("no loss") };
        assert_eq!(loss, expected);
        assert_eq!(reader.piece().events, 2);
        assert!(reader.step(None).is_none());
        assert_eq!(reader.got, [entry.first().get() + 1, entry.last().get()]);
        // The second time from the bus.
        scene.classes.skip_to(entry.last());
    }
}

#[tokio::test]
async fn where_there_is_no_room_to_remember_the_bus_is_read() {
    let mut scene = Scene::new();
    let mut reader = scene.shop();
    let all = scene.classes.budget.try_charge(BUDGET_BYTES).unwrap();
    let place = scene.publish_events(&[("a", Some("shop"))]).first();
    scene.dispatch_all();
    assert!(reader.member.class.lock().batches.is_empty());
    drop(all);
    assert_eq!(reader.member.caught_up(reader.at), None);
    reader.read_all();
    assert_eq!(reader.got, [place.get()]);
}

#[tokio::test]
async fn who_begins_where_nothing_is_retained_any_more_is_not_told_a_number() {
    let one = batch(&[("x", Some("shop"))]).bytes();
    let mut scene = Scene::with(one * 2, MEMORY);
    let member = scene.shop().member;
    let at = scene.bus.head();
    for id in ["a", "b", "c"] {
        scene.publish_events(&[(id, Some("shop"))]);
        scene.dispatch_all();
    }
    // As if the oldest batch went between the search for a place and this.
    let (from, now) = (member.tally(at).await, member.tally(scene.bus.head()).await);
    assert_eq!((from.missed_until(now), now.missed_until(now)), (None, Some(0)));
}
