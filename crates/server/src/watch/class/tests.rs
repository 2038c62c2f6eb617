use std::time::Duration;

use audit_stream_api::Version;
use audit_stream_api::selector::FieldSelector;
use audit_stream_bus::{Bus, Config};

use super::*;
use crate::testing::batch;

fn key(resource: Resource, namespace: Option<&str>, selector: &str) -> ClassKey {
    ClassKey {
        route: Route { version: Version::V1, resource, namespace: namespace.map(str::to_owned) },
        selector: FieldSelector::parse(selector).unwrap().into(),
    }
}

fn entries(batches: Vec<Batch>) -> Vec<Arc<Entry<Batch>>> {
    let bus = Bus::new(Config { retain_bytes: 1 << 20, retain_age: Duration::MAX }, 0);
    batches.into_iter().zip(1..).map(|(batch, at)| bus.publish(at * 1000, batch.len(), 0, batch)).collect()
}

fn entry() -> Arc<Entry<Batch>> {
    entries(vec![batch(&[("a", Some("shop")), ("b", Some("bank")), ("c", None), ("d", Some("shop"))])]).remove(0)
}

/// Audit ID and resourceVersion of each frame.
fn read(frames: &Bytes) -> Vec<(String, u64)> {
    let frames = serde_json::Deserializer::from_slice(frames).into_iter::<serde_json::Value>();
    let object = |frame: serde_json::Value| {
        let version = frame["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        (frame["object"]["auditID"].as_str().unwrap().to_owned(), version)
    };
    frames.map(|frame| object(frame.unwrap())).collect()
}

fn selected(key: ClassKey) -> String {
    let frames = Classes::default().join(key).frames(&entry());
    read(&frames).into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn scope_and_selector_decide() {
    assert_eq!(selected(key(Resource::Events, None, "")), "abcd");
    assert_eq!(selected(key(Resource::NamespacedEvents, None, "")), "abd");
    assert_eq!(selected(key(Resource::NamespacedEvents, Some("shop"), "")), "ad");
    assert_eq!(selected(key(Resource::NamespacedEvents, Some("nowhere"), "")), "");
    assert_eq!(selected(key(Resource::Events, None, "metadata.namespace=shop,auditID!=a")), "d");
    assert_eq!(selected(key(Resource::Events, None, "metadata.namespace=")), "c");
    assert_eq!(selected(key(Resource::Events, None, "metadata.name=event-1002")), "c");
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
async fn watches_of_a_class_share_one_copy_that_is_let_go_with_its_last_reader() {
    let classes = Classes::default();
    let entry = entry();
    let shop = |selector| classes.join(key(Resource::NamespacedEvents, Some("shop"), selector));
    let (one, two, three) = (shop("verb=get"), shop("verb=get"), shop("verb=get"));
    // Where it lies, though whoever wrote it has long sent and dropped it.
    let taken = |class: &Arc<Class>| class.frames(&entry).as_ptr();
    let first = taken(&one);
    assert_eq!(classes.budget.available_permits(), CLASS_BYTES - one.frames_for_one(&entry, 0, None).len());
    assert_eq!((taken(&two), taken(&three)), (first, first));
    assert_eq!((classes.budget.available_permits(), one.recent.lock().unwrap().len()), (CLASS_BYTES, 0));

    let alone = shop("verb!=list");
    taken(&alone);
    assert_eq!(classes.budget.available_permits(), CLASS_BYTES, "nobody else will come");
}

#[tokio::test]
async fn a_class_goes_with_its_last_watch() {
    let classes = Classes::default();
    let one = classes.join(key(Resource::Events, None, "verb=get"));
    let two = classes.join(key(Resource::Events, None, "verb=get"));
    assert!(Arc::ptr_eq(&one, &two));
    drop(one.frames(&entry()));
    drop((one, two));
    assert_eq!(classes.budget.available_permits(), CLASS_BYTES);
    let _other = classes.join(key(Resource::Events, None, ""));
    assert_eq!(classes.live.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_waits_for_readers_is_bounded() {
    let classes = Classes::default();
    let class = classes.join(key(Resource::Events, None, ""));
    let _never_comes = Arc::clone(&class);
    let entries = entries((0..20).map(|index| batch(&[(&*index.to_string(), None)])).collect());
    for entry in &entries {
        class.frames(entry);
    }
    assert_eq!(class.recent.lock().unwrap().len(), RECENT_BATCHES);
    let _spent = classes.budget.try_acquire_many(u32::try_from(classes.budget.available_permits()).unwrap()).unwrap();
    // No longer kept, and none can be: made again, and the same.
    assert_eq!(read(&class.frames(&entries[0])), [("0".to_owned(), 1000)]);
    assert_eq!(class.recent.lock().unwrap().len(), RECENT_BATCHES);
}

#[tokio::test]
async fn one_readers_frames_begin_where_it_left_off_and_tell_its_gap_once() {
    let class = Classes::default().join(key(Resource::NamespacedEvents, Some("shop"), ""));
    let resumed = class.frames_for_one(&entry(), 1, None);
    assert_eq!(read(&resumed), [("d".to_owned(), 1003)]);
    let told = class.frames_for_one(&entry(), 0, Some("{}"));
    let text = std::str::from_utf8(&told).unwrap();
    assert_eq!(text.matches(object::GAP_ANNOTATION).count(), 1);
    assert!(text.lines().next().unwrap().contains(object::GAP_ANNOTATION));
}
