//! What ingest publishes, from a whole body on. What comes before is tested over sockets.

use audit_stream_bus::{Cursor, Start};
use audit_stream_testplane::events::{EventBuilder, event, event_list};
use audit_stream_testplane::pki::Authority;
use futures::FutureExt;
use tokio::time::advance;

use super::*;
use crate::testing::{peer, stranger};

struct Room {
    ingest: Ingest,
    source: Source,
    reader: Cursor<Batch>,
}

impl Room {
    fn new() -> Self {
        Self::allowing(&["a"])
    }

    fn allowing(names: &[&str]) -> Self {
        let allowed_names = names.iter().map(ToString::to_string).collect();
        let config = Config { allowed_names, max_body_bytes: 1 << 20, max_inflight_bytes: 1 << 20 };
        let retain = audit_stream_bus::Config { retain_bytes: 1 << 20, retain_age: Duration::MAX };
        let bus = Arc::new(Bus::new(retain, 0));
        let reader = bus.subscribe(Start::Now).unwrap();
        let ingest = Ingest::new(config, bus, Arc::default(), IngestMetrics::default());
        let source = ingest.sources.claim(None, "a").unwrap();
        Self { ingest, source, reader }
    }

    /// A body that is whole now.
    fn publish(&self, body: &str) -> Result<(), IngestRejection> {
        self.ingest.publish(self.source, body.into(), Instant::now())
    }

    fn refuse(&self, rejection: IngestRejection) {
        self.ingest.refuse(stranger().address, rejection);
    }

    /// What has been published since the last call: audit IDs of events, and what was lost.
    fn published(&mut self) -> Vec<String> {
        let mut published = Vec::new();
        while let Some(delivery) = self.reader.next().now_or_never() {
            let entry = delivery.unwrap().entry;
            let ids = entry.payload().events().map(|event| {
                let event: serde_json::Value = serde_json::from_str(&format!("{{{}}}", full(event))).unwrap();
                event["auditID"].as_str().unwrap().to_owned()
            });
            published.extend(ids);
            published.extend(entry.payload().lost().map(|lost| lost.as_str().to_owned()));
        }
        published
    }
}

fn full(event: batch::StoredEvent<'_>) -> &str {
    std::str::from_utf8(event.full()).unwrap()
}

fn list(events: &[EventBuilder]) -> String {
    event_list(&events.iter().map(EventBuilder::build).collect::<Vec<_>>())
}

fn in_shop(audit_id: &str) -> EventBuilder {
    event().resource("configmaps").namespace("shop").name("prices").audit_id(audit_id)
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_published_once_for_each_source() {
    let mut room = Room::new();
    let (one, two) = (list(&[in_shop("x"), in_shop("y")]), list(&[in_shop("x")]));
    room.publish(&one).unwrap();
    room.publish(&one).unwrap();
    assert_eq!(room.published(), ["x", "y"]);
    room.publish(&two).unwrap();
    assert_eq!(room.published(), ["x"], "an audit ID that was seen before hides nothing");
    room.source = room.ingest.sources.claim(Some("another"), "a").unwrap();
    room.publish(&two).unwrap();
    assert_eq!(room.published(), ["x"]);
    assert_eq!(room.ingest.metrics.duplicate_batches.get(), 1);
    assert_eq!((room.ingest.metrics.batches.get(), room.ingest.metrics.events.get()), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_no_list_is_told_of_once() {
    let mut room = Room::new();
    for _ in 0..2 {
        room.publish("no list").unwrap();
    }
    assert_eq!(room.published(), ["malformed"]);
    room.publish("another").unwrap();
    assert_eq!(room.published(), ["malformed"]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_would_come_too_late_is_not_published_and_its_retry_is() {
    let mut room = Room::new();
    let body = list(&[in_shop("x")]);
    let ended = Instant::now();
    advance(PUBLISH_DEADLINE + Duration::from_millis(1)).await;
    assert_eq!(room.ingest.publish(room.source, body.clone().into(), ended), Err(IngestRejection::Late));
    assert_eq!(room.published(), [""; 0]);
    let ended = Instant::now();
    advance(PUBLISH_DEADLINE).await;
    assert_eq!(room.ingest.publish(room.source, body.clone().into(), ended), Ok(()));
    assert_eq!(room.published(), ["x"]);
    advance(PUBLISH_DEADLINE).await;
    assert_eq!(room.ingest.publish(room.source, body.into(), ended), Ok(()), "it is there, however late it comes");
    assert_eq!(room.published(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_refusal_loses_for_sure_is_told_once_a_minute() {
    use IngestRejection::{
        BodyTooLarge, Busy, ContentEncoding, Incomplete, Late, Method, Path, Sender, SourceBound, TooManySources,
        TooSlow,
    };
    let mut room = Room::new();
    let losing = [ContentEncoding, SourceBound, TooManySources, BodyTooLarge(1)];
    let told = ["source", "source", "source", "oversize"];
    for _ in 0..5 {
        losing.into_iter().for_each(|rejection| room.refuse(rejection));
    }
    assert_eq!(room.published(), told);
    advance(Duration::from_secs(60)).await;
    losing.into_iter().for_each(|rejection| room.refuse(rejection));
    assert_eq!(room.published(), told);
    for rejection in [Path, Method, Sender, Busy, Incomplete, TooSlow, Late] {
        room.refuse(rejection);
    }
    assert_eq!(room.published(), [""; 0]);
}

#[test]
fn a_sender_is_the_first_allowed_name_that_its_certificate_has() {
    let room = Room::allowing(&["b", "a"]);
    let authority = Authority::new("webhook");
    let sender = |common_name, dns_names: &[&str]| {
        let peer = peer(&authority.server(common_name, dns_names));
        room.ingest.sender(&peer).map(str::to_owned)
    };
    assert_eq!(sender("a", &[]), Ok("a".to_owned()));
    assert_eq!(sender("c", &["d", "a"]), Ok("a".to_owned()));
    assert_eq!(sender("a", &["b"]), Ok("b".to_owned()));
    assert_eq!(sender("b", &["a"]), Ok("b".to_owned()), "a renewed certificate may have its names in another order");
    assert_eq!(sender("c", &["d"]), Err(IngestRejection::Sender));
    assert_eq!(room.ingest.sender(&stranger()), Err(IngestRejection::Sender));
}

#[test]
fn a_path_names_a_source_or_none() {
    let longest = "s".repeat(63);
    for (path, name) in [
        ("/webhook".to_owned(), None),
        ("/webhook/a".to_owned(), Some("a")),
        ("/webhook/Control-plane_1.example".to_owned(), Some("Control-plane_1.example")),
        (format!("/webhook/{longest}"), Some(&*longest)),
    ] {
        assert_eq!(source_name(&path), Ok(name), "{path}");
    }
    let longer = format!("/webhook/s{longest}");
    for path in ["", "/", "/webhooks", "/webhook/", "/webhook//", "/webhook/a/b", "/webhook/%61", "/webhook/ä", &longer]
    {
        assert_eq!(source_name(path), Err(IngestRejection::Path), "{path}");
    }
}
