//! What ingest publishes, from a whole body on. What comes before is tested over sockets.

use std::fs;

use audit_stream_api::Resource;
use audit_stream_api::selector::Field;
use audit_stream_bus::Cursor;
use audit_stream_testplane::events::{EventBuilder, event, event_list};
use audit_stream_testplane::pki::Authority;
use futures::FutureExt;
use proptest::prelude::*;
use proptest::sample::select;
use tempfile::NamedTempFile;
use tokio::time::advance;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::Reason;
use crate::testing::{peer, stranger};
use crate::view::{self, Revealed, View};

struct Room {
    ingest: Ingest,
    source: Source,
    reader: Cursor<Batch>,
    ca: Authority,
    ca_file: NamedTempFile,
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
        let reader = bus.subscribe();
        let (ca, ca_file) = (Authority::new("webhook"), NamedTempFile::new().unwrap());
        fs::write(&ca_file, ca.certificate_pem()).unwrap();
        let client_ca = Arc::new(ClientCa::read(ca_file.path().to_owned()).unwrap());
        let ingest =
            Ingest::new(config, client_ca, bus, CancellationToken::new(), Arc::default(), IngestMetrics::default());
        let source = ingest.sources.claim(None, "a").unwrap();
        Self { ingest, source, reader, ca, ca_file }
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
            let entry = delivery.unwrap();
            let ids = entry.payload().events().map(|event| {
                let event: serde_json::Value = serde_json::from_str(&format!("{{{}}}", full(event))).unwrap();
                event["auditID"].as_str().unwrap().to_owned()
            });
            published.extend(ids);
            published.extend(entry.payload().lost().map(|lost| lost.as_str().to_owned()));
        }
        published
    }

    fn batch(&self, events: &[EventBuilder]) -> Batch {
        self.ingest.batch(list(events).as_bytes()).unwrap()
    }

    fn dropped(&self, reason: &'static str) -> u64 {
        self.ingest.metrics.dropped_events.get_or_create(&Reason { reason }).get()
    }

    fn truncated(&self, reason: &'static str) -> u64 {
        self.ingest.metrics.truncated_events.get_or_create(&Reason { reason }).get()
    }
}

fn full(event: batch::StoredEvent<'_>) -> String {
    fields(event, Resource::Events)
}

fn shown(event: batch::StoredEvent<'_>) -> String {
    fields(event, Resource::NamespacedEvents)
}

fn fields(event: batch::StoredEvent<'_>, resource: Resource) -> String {
    let mut fields = b",".to_vec();
    event.write_fields(View::new(resource, Revealed::default()), &mut fields);
    String::from_utf8(fields).unwrap().split_off(1)
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
    for rejection in [Path, Method, IngestRejection::Untrusted, Sender, Busy, Incomplete, TooSlow, Late] {
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
        room.ingest.allowed_name(&peer).map(str::to_owned)
    };
    assert_eq!(sender("a", &[]), Ok("a".to_owned()));
    assert_eq!(sender("c", &["d", "a"]), Ok("a".to_owned()));
    assert_eq!(sender("a", &["b"]), Ok("b".to_owned()));
    assert_eq!(sender("b", &["a"]), Ok("b".to_owned()), "a renewed certificate may have its names in another order");
    assert_eq!(sender("c", &["d"]), Err(IngestRejection::Sender));
    assert_eq!(room.ingest.allowed_name(&stranger()), Err(IngestRejection::Sender));
}

#[test]
fn a_sender_is_believed_for_as_long_as_the_ca_of_now_vouches_for_it() {
    let room = Room::new();
    let (old, next) = (peer(&room.ca.client("a", &[])), Authority::new("next"));
    let new = peer(&next.client("a", &[]));
    let believed = || [&old, &new].map(|peer| room.ingest.sender(peer));
    let (yes, no) = (Ok("a"), Err(IngestRejection::Untrusted));
    assert_eq!(believed(), [yes, no]);
    assert_eq!(room.ingest.sender(&stranger()), no);
    // The right CA, but for serving.
    assert_eq!(room.ingest.sender(&peer(&room.ca.server("a", &["a"]))), no);

    let both = [room.ca.certificate_pem(), next.certificate_pem()].concat();
    for (bundle, expected) in [(&*both, [yes, yes]), (next.certificate_pem(), [no, yes])] {
        fs::write(&room.ca_file, bundle).unwrap();
        room.ingest.client_ca.read_again().unwrap();
        assert_eq!(believed(), expected);
    }
    for unusable in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&room.ca_file, unusable).unwrap();
        let error = format!("{:#}", room.ingest.client_ca.read_again().unwrap_err());
        assert!(error.contains(&room.ca_file.path().display().to_string()), "{error}");
        assert_eq!(believed(), [no, yes], "{unusable}");
    }
}

#[test]
fn a_chain_that_is_long_is_not_even_looked_at() {
    let room = Room::new();
    let sender = peer(&room.ca.client("a", &[]));
    let showing = |count| Peer::new(sender.address, vec![sender.certificates[0].clone(); count]);
    assert_eq!(room.ingest.sender(&showing(5)), Ok("a"));
    assert_eq!(room.ingest.sender(&showing(6)), Err(IngestRejection::Untrusted));
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

#[test]
fn what_is_too_long_loses_its_padding_and_is_counted() {
    let room = Room::new();
    let batch = room.batch(&[in_shop("a"), in_shop("b").user_agent(&"x".repeat(1 << 20)), in_shop("c")]);
    let events: Vec<_> = batch.events().collect();
    assert!(events.iter().all(|event| event.dropped().is_none()));
    for text in [full(events[1]), shown(events[1])] {
        assert!(text.len() < 5000 && text.contains(&"x".repeat(1024)), "{} bytes", text.len());
        assert!(text.contains(r#""audit.k8s.io/truncated":"true""#), "{text}");
    }
    assert!(events[1].holds(Field::UserAgent, &"x".repeat(1024)), "selectors see what is shown");
    assert!(!full(events[0]).contains("truncated") && !full(events[2]).contains("truncated"));
    assert_eq!((room.truncated("size"), room.truncated("depth"), room.dropped("oversize")), (1, 0, 0));
}

#[test]
fn what_is_on_several_lines_becomes_one_whole_and_truncated() {
    let room = Room::new();
    for (agent, truncated) in [("kubectl", 0), (&*"x".repeat(1 << 20), 1)] {
        let one = in_shop("a").user_agent(agent).build().replace(",\"", ",\r\"");
        let other = in_shop("b").user_agent(agent).build().replace("{\"", "{\n\"");
        let batch = room.ingest.batch(event_list(&[one, other]).as_bytes()).unwrap();
        for event in batch.events() {
            let lines = full(event) + &shown(event);
            assert!(!lines.contains(['\n', '\r']) && lines.contains("\"prices\""), "{lines}");
        }
        assert_eq!(room.truncated("size"), 2 * truncated);
    }
}

#[test]
fn what_is_too_long_without_padding_keeps_its_place_and_says_so() {
    let mut room = Room::new();
    room.ingest.config.max_body_bytes = 4 << 20;
    let path = format!("/api/v1/namespaces/shop/configmaps/{}", "x".repeat(1 << 20));
    let groups = vec!["dev"; 300_000];
    let long_path = in_shop("b").request_uri(&path).user("bob").user_agent(&"x".repeat(5000));
    let many_groups = in_shop("c").query("a=b").groups(&groups);
    let batch = room.batch(&[in_shop("a"), long_path, many_groups, in_shop("d")]);
    let events: Vec<_> = batch.events().collect();
    let dropped: Vec<_> = events.iter().map(|event| event.dropped()).collect();
    assert_eq!(dropped, [None, Some(GapReason::Oversize), Some(GapReason::Oversize), None]);
    for event in &events[1..3] {
        assert_eq!((event.namespace(), full(*event), shown(*event)), (Some("shop"), String::new(), String::new()));
        assert_eq!(
            (
                event.withheld_names(View::new(Resource::NamespacedEvents, Revealed::default())).count(),
                event.creation_timestamp()
            ),
            (0, None)
        );
        assert!(event.holds(Field::MetadataNamespace, "shop") && event.holds(Field::Verb, "get"));
        assert!(event.holds(Field::ResponseCode, "200") && event.holds(Field::Decision, "allow"));
    }
    assert!(events[1].holds(Field::Username, "bob") && events[1].holds(Field::UserAgent, &"x".repeat(1024)));
    assert!(events[1].holds(Field::RequestUri, "") && events[1].holds_masked_uri(""), "it is too long to keep");
    assert!(
        events[2].holds(Field::Groups, "dev")
            && events[2].holds_masked_uri("/api/v1/namespaces/shop/configmaps/prices?a=***")
    );
    assert!(full(events[0]).contains(r#""a""#) && full(events[3]).contains(r#""d""#));
    assert_eq!(batch.lost(), None, "whose it was is known");
    assert_eq!((room.dropped("oversize"), room.truncated("size")), (2, 0));
    let (place, group) = (8, "dev".len());
    assert!(batch.bytes() < (place + group) * groups.len() + 20_000, "{}", batch.bytes());
}

#[test]
fn the_creations_of_namespaces_are_told_apart() {
    let mut room = Room::new();
    room.ingest.config.max_body_bytes = 4 << 20;
    let create = || event().resource("namespaces").verb("create");
    let long = "x".repeat(1 << 20);
    let dry_run = format!("{}&dryRun=All", "x".repeat(5000));
    let batch = room.batch(&[
        in_shop("a"),
        create().name("one"),
        create().name("two").code(403),
        create().name("three").user_agent(&long),
        create().name("four").groups(&[&long]),
        create().name("five").query(&dry_run).user_agent(&long).request_object(r#"{"a":"b"}"#),
        create().name("SIX"),
        event().resource("namespaces").verb("patch").name("seven").code(201),
        in_shop("b"),
    ]);
    let created: Vec<_> = batch.created_namespaces().collect();
    assert_eq!(created, [(1, "one"), (3, "three"), (4, "four"), (7, "seven")]);
    assert_eq!((room.truncated("size"), room.dropped("oversize")), (2, 1));
}

/// A body as no kube-apiserver sends it, of which not all is kept.
#[test]
fn beyond_its_bound_a_batch_keeps_where_namespaces_begin_and_says_that_more_is_lost() {
    let mut room = Room::new();
    let one = |name: &str| event().resource("namespaces").verb("create").name(name);
    let groups = vec!["dev"; 200_000];
    let many: Vec<_> = (0..1000).map(|number| one(&format!("late-{number}"))).collect();
    let all = [vec![one("first"), one("large").groups(&groups), in_shop("a")], many, vec![in_shop("b")]].concat();
    room.ingest.config.max_body_bytes = 100_000;
    let batch = room.batch(&all);
    let created: Vec<_> = batch.created_namespaces().collect();
    assert_eq!(created.len(), 1002);
    // What could not be kept has the place of what comes next.
    assert_eq!(created[..3], [(0, "first"), (1, "large"), (2, "late-0")]);
    assert_eq!((created[1001].1, created[1001].0 as usize), ("late-999", batch.len()));
    assert!(batch.len() < all.len() && batch.events().all(|event| event.dropped().is_none()));
    assert_eq!(batch.lost(), Some(GapReason::Oversize));
    assert!(batch.bytes() as u64 <= room.ingest.config.max_batch_bytes(), "{}", batch.bytes());
}

#[test]
fn an_ordinary_batch_is_little_more_than_its_body() {
    let room = Room::new();
    let events: Vec<_> = (0..400).map(|number| in_shop(&number.to_string())).collect();
    let body = list(&events);
    let batch = room.batch(&events);
    assert!(batch.bytes() < body.len() * 3 / 2, "{} of {}", batch.bytes(), body.len());
}

// === What a sender can make of a batch ===

/// A text of what is dear: `count` of an atom.
fn texts(atoms: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    (select(atoms), select(vec![0, 1, 2, 50, most]), select(atoms)).prop_map(|(atom, count, last)| {
        let mut text = atom.repeat(count);
        text.push_str(last);
        text
    })
}

/// `\u{1}` stands for a byte that is no text.
const STRINGS: [&str; 10] = ["", "a", r"\n", r"\u0026", "\u{1}", r#"\""#, "\u{fffd}", r"\u0800", "&", "/proxy/"];
const QUERIES: [&str; 12] =
    ["&=", "=&", "\u{1}=&", "\u{1}", "a=b&", "watch=1&", ";=", r"\u0026=", "%zz=", "/", "?", r"\n=\n&"];
const ITEMS: [&str; 5] = [r#""""#, r#""a""#, r#""\n""#, "\"\u{1}\"", r#""\n\u0001""#];

/// A part of an event: JSON members with a comma in front.
fn members() -> impl Strategy<Value = String> {
    let string = || texts(&STRINGS, 3000);
    let items = || (select(&ITEMS[..]), 0..3000_usize).prop_map(|(item, count)| vec![item; count].join(","));
    let user = (string(), items()).prop_map(|(name, groups)| {
        format!(r#","impersonatedUser":{{"username":"{name}","groups":[{groups}],"uid":"","extra":0}}"#)
    });
    prop_oneof![
        Just(String::new()),
        string().prop_map(|agent| format!(r#","userAgent":"{agent}""#)),
        items().prop_map(|addresses| format!(r#","sourceIPs":[{addresses}]"#)),
        user,
        select(vec![0, 1, 1000]).prop_map(|count| r#","":0"#.repeat(count)),
        string().prop_map(|value| format!(r#","annotations":{{"authorization.k8s.io/decision":"{value}","":""}}"#)),
        string().prop_map(|body| format!(r#","requestObject":"{body}","responseObject":0"#)),
        Just(r#","responseStatus":{"code":-1,"message":"","details":0}"#.to_owned()),
        Just(r#","responseStatus":{}"#.to_owned()),
        Just(r#","stageTimestamp":"2026-11-20T15:00:00Z""#.to_owned()),
        Just(",\n\"kind\":0,\"metadata\":{}".to_owned()),
    ]
}

fn hostile_events() -> impl Strategy<Value = String> {
    let uri = (texts(&["", "/", "\u{1}", r"\n", "/proxy"], 3000), texts(&QUERIES, 3000));
    let parts = proptest::sample::subsequence((0..6).collect::<Vec<_>>(), 0..4);
    (uri, proptest::collection::vec(members(), 6), parts, any::<bool>()).prop_map(
        |((path, query), members, parts, is_token)| {
            let mut members: Vec<_> = parts.into_iter().map(|part| members[part].clone()).collect();
            // A field that is there twice would be malformed.
            members.sort_by_key(|member| member.split(':').next().map(str::to_owned));
            members.dedup_by_key(|member| member.split(':').next().map(str::to_owned));
            let subresource = if is_token { r#","subresource":"token""# } else { "" };
            format!(
                r#"{{"level":"","auditID":"","stage":"","requestURI":"/api/v1/namespaces/a/b/{path}?{query}","verb":"","user":{{}},"objectRef":{{"namespace":"a"{subresource}}}{}}}"#,
                members.concat()
            )
        },
    )
}

/// A body with bytes that are no text where they are asked for.
fn body(events: &[String]) -> Vec<u8> {
    let body = event_list(events).into_bytes();
    body.into_iter().map(|byte| if byte == 1 { 0xff } else { byte }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever a body is: its batch is no larger than what the documentation says, and what is shown of an event is hardly
    /// longer than the event.
    #[test]
    fn a_batch_is_bounded_by_its_body(events in proptest::collection::vec(hostile_events(), 1..4)) {
        let room = Room::new();
        let body = body(&events);
        let batch = room.ingest.batch(&body).unwrap();
        prop_assert_eq!(batch.lost(), None);
        prop_assert_eq!(batch.len(), events.len());
        prop_assert!(batch.bytes() <= batch::max_bytes(body.len()), "{} of {}", batch.bytes(), body.len());
        for (stored, event) in batch.events().zip(&events) {
            prop_assert!(stored.namespace().is_some(), "an event without a namespace is no test");
            // What is no text has become three bytes.
            let own = event.replace('\u{1}', "\u{fffd}").len();
            let shown = shown(stored);
            prop_assert!(shown.len() <= own + view::MAX_QUERY_BYTES * 3 / 2, "{} of {own}", shown.len());
            prop_assert!(shown.len() <= stored.max_fields_bytes(View::new(Resource::NamespacedEvents, Revealed::default())));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&format!("{{{shown}}}")).is_ok(), "{shown}");
        }
    }

    #[test]
    fn any_bytes_are_bounded_by_themselves(bytes in any::<Vec<u8>>(), cut in any::<prop::sample::Index>()) {
        let room = Room::new();
        let list = event_list(&[in_shop("a").build(), in_shop("b").build()]);
        let at = cut.index(list.len());
        let body = [&list.as_bytes()[..at], &bytes, &list.as_bytes()[at..]].concat();
        if let Some(batch) = room.ingest.batch(&body) {
            prop_assert!(batch.bytes() <= batch::max_bytes(body.len()));
        }
    }
}

#[test]
fn a_batch_takes_no_more_than_so_many_times_the_largest_body() {
    let body =
        body(&vec![r#"{"level":"","auditID":"","stage":"","requestURI":"/","verb":"","user":{}}"#.to_owned(); 10_000]);
    let mut room = Room::new();
    room.ingest.config.max_body_bytes = body.len() as u64;
    let batch = room.ingest.batch(&body).unwrap();
    assert_eq!((batch.len() < 10_000, batch.lost()), (true, Some(GapReason::Oversize)));
    assert!(batch.bytes() as u64 <= room.ingest.config.max_batch_bytes());
    assert_eq!(room.dropped("oversize"), (10_000 - batch.len()) as u64);
}

/// The dearest that is known of each kind, so that the factor is not larger than it has to be.
#[test]
fn the_bound_of_a_batch_is_near_what_can_be_reached() {
    let room = Room::new();
    let event = |uri: &str, more: &str| {
        let event = r#"{"level":"","auditID":"","stage":"","requestURI":"/api/v1/namespaces/a/b","verb":"","user":{},"objectRef":{"namespace":"a"}}"#;
        event.replacen("a/b", &format!("a/b/{uri}"), 1).replacen('{', &format!("{{{more}"), 1)
    };
    let no_text = event(&format!(r#"{}\n?="#, "\u{1}".repeat(300_000)), "");
    let masks = event(&format!(r#"\n?{}"#, "=&".repeat(2048)), "");
    let items = event("", &format!(r#""sourceIPs":["{}"],"#, r#"",""#.repeat(300_000)));
    let unknown = event("", &r#""":0,"#.repeat(100_000));
    for (name, events, expected) in [
        ("bytes that are no text", vec![no_text], 8.5..9.0),
        ("masks", vec![masks; 10], 4.0..5.0),
        ("items", vec![items], 3.5..4.5),
        ("unknown fields", vec![unknown], 3.0..4.0),
        ("events", vec![event("", ""); 1000], 2.5..4.0),
    ] {
        let body = body(&events);
        let batch = room.ingest.batch(&body).unwrap();
        let ratio = batch.bytes() as f64 / body.len() as f64;
        assert!(expected.contains(&ratio), "{name}: {ratio}");
    }
}
