use std::time::Duration;

use audit_stream_bus::{Bus, Config};

use super::*;
use crate::testing::batch;

fn key(resource: Resource, namespace: Option<&str>, selector: &str) -> ClassKey {
    ClassKey {
        resource,
        version: Version::V1,
        namespace: namespace.map(str::to_owned),
        selector: FieldSelector::parse(selector).unwrap(),
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
async fn watches_of_a_class_share_one_copy_that_dies_with_its_last_reader() {
    let classes = Classes::default();
    let entry = entry();
    let shop = || classes.join(key(Resource::NamespacedEvents, Some("shop"), "verb=get"));
    let (one, two) = (shop(), shop());
    let (first, second) = (one.frames(&entry), two.frames(&entry));
    assert_eq!(first.as_ptr(), second.as_ptr());
    let other = classes.join(key(Resource::NamespacedEvents, Some("shop"), "verb!=list"));
    assert_ne!(first.as_ptr(), other.frames(&entry).as_ptr());

    drop((first, second));
    let (_, frames) = one.recent.lock().unwrap()[0].clone();
    assert!(frames.upgrade().is_none(), "nobody holds the frames, and they are still there");
    drop((one, two));
    drop(classes.join(key(Resource::Events, None, "")));
    assert_eq!(classes.live.lock().unwrap().len(), 2, "the class that has a watch, and the one that was just made");
}

#[tokio::test]
async fn a_class_remembers_a_bounded_number_of_batches() {
    let class = Classes::default().join(key(Resource::Events, None, ""));
    let entries = entries((0..20).map(|index| batch(&[(&*index.to_string(), None)])).collect());
    let frames: Vec<_> = entries.iter().map(|entry| class.frames(entry)).collect();
    assert_eq!(class.recent.lock().unwrap().len(), RECENT_BATCHES);
    assert_eq!(class.frames(&entries[19]).as_ptr(), frames[19].as_ptr());
    // Long forgotten: made again, and the same.
    assert_eq!(class.frames(&entries[0]), frames[0]);
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
