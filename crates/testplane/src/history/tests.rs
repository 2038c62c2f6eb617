//! A small story, told right: what the validators' tests break. And the parts that a history is made of.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::*;
use crate::events::event;

/// Events in two batches of four: places 11 to 14 from `a`, then 20 to 23 from `b`.
pub(super) const PLACES: [u64; 8] = [11, 12, 13, 14, 20, 21, 22, 23];

pub(super) const SHOP: Option<&str> = Some("shop");
pub(super) const BANK: Option<&str> = Some("bank");

/// The numbers of the story's readers.
pub(super) const CLUSTER: usize = 0;
pub(super) const MARKED: usize = 1;
pub(super) const IN_SHOP: usize = 2;
pub(super) const EVERYWHERE: usize = 3;
pub(super) const OF_BOB: usize = 4;

/// An event with an audit ID that it shares with others, as clients may want it.
pub(super) fn sent(number: usize, namespace: Option<&str>, user: &str) -> Sent {
    let event = match namespace {
        Some(namespace) => {
            event().resource("pods").namespace(namespace).subresource("exec").query("command=ls&tty=true")
        }
        None => event().resource("nodes"),
    };
    // The same each time that the story is told.
    let event = event.received_at(UNIX_EPOCH + Duration::from_secs(1_795_186_800));
    let event = event.verb("get").name("n").user(user).user_agent(&format!("agent {number}"));
    Sent { json: event.audit_id(&format!("id-{}", number / 2)).build(), namespace: namespace.map(str::to_owned) }
}

pub(super) fn events() -> Vec<Sent> {
    let places = [SHOP, BANK, None, SHOP, SHOP, None, BANK, SHOP];
    let user = |number| if matches!(number, 1 | 6) { "bob" } else { "alice" };
    (0..).zip(places).map(|(number, namespace)| sent(number, namespace, user(number))).collect()
}

/// The story: nothing was lost, one reader was cut and came back.
pub(super) fn good() -> History {
    let events = events();
    let batch = |source: &str, events: &[Sent], first_sent, accepted| Batch {
        source: source.to_owned(),
        events: events.to_vec(),
        first_sent: Moment(first_sent),
        accepted: Some(Moment(accepted)),
        sends: 1,
    };
    let batches = vec![batch("b", &events[4..], 5, 8), batch("a", &events[..4], 2, 4)];
    let all = |scope: &Scope, numbers: &[usize]| {
        numbers.iter().map(|number| added(scope, PLACES[*number], &events[*number], None)).collect::<Vec<_>>()
    };
    let [cluster, shop, everywhere] = [Scope::Cluster, Scope::Namespace("shop".to_owned()), Scope::AllNamespaces];
    let whole = all(&cluster, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let marked = [vec![initial(10)], whole.clone(), vec![bookmark(25, None)]].concat();
    let back = [all(&shop, &[4, 7]), vec![bookmark(25, None)]].concat();
    let transcripts = vec![
        transcript("cluster", cluster.clone(), Bookmarks::No, vec![session(Start::Now, whole)]),
        transcript("marked", cluster.clone(), Bookmarks::WithInitialEvents, vec![session(Start::Now, marked)]),
        transcript(
            "shop",
            shop.clone(),
            Bookmarks::Allowed,
            vec![
                Session { end: End::Cut, ..session(Start::Now, all(&shop, &[0, 3])) },
                session(Start::After(14), back),
            ],
        ),
        transcript(
            "everywhere",
            everywhere.clone(),
            Bookmarks::No,
            vec![session(Start::Now, all(&everywhere, &[0, 1, 3, 4, 6, 7]))],
        ),
        Transcript {
            selector: Some(Selector { field: Field::Username, value: "bob".to_owned() }),
            ..transcript("bob", cluster.clone(), Bookmarks::No, vec![session(Start::Now, all(&cluster, &[1, 6]))])
        },
    ];
    History::new(batches, transcripts)
}

pub(super) fn transcript(reader: &str, scope: Scope, bookmarks: Bookmarks, sessions: Vec<Session>) -> Transcript {
    Transcript { reader: reader.to_owned(), scope, selector: None, bookmarks, sessions }
}

/// A session that was open before anything was sent.
pub(super) fn session(start: Start, frames: Vec<Frame>) -> Session {
    Session { start, opened: Moment(1), frames, end: End::Clean }
}

/// An event as a watch of this scope shows it.
pub(super) fn added(scope: &Scope, place: u64, sent: &Sent, gap: Option<&str>) -> Frame {
    let (kind, namespace, event) = match &sent.namespace {
        Some(namespace) if scope.is_namespaced() => {
            ("NamespacedEvent", format!(r#""namespace":"{namespace}","#), shown(&sent.json))
        }
        None if scope.is_namespaced() => ("NamespacedEvent", String::new(), shown(&sent.json)),
        _ => ("Event", String::new(), sent.json.clone()),
    };
    let gap = gap.map(|gap| format!(r#","annotations":{}"#, annotations(gap))).unwrap_or_default();
    let metadata = format!(r#"{{"name":"event-{place}",{namespace}"resourceVersion":"{place}"{gap}}}"#);
    let front = format!(r#"{{"type":"ADDED","object":{{"kind":"{kind}","apiVersion":"audit.k8s.io/v1","metadata":"#);
    read(&format!("{front}{metadata},{}}}}}", event.strip_prefix('{').unwrap().strip_suffix('}').unwrap()))
}

fn shown(json: &str) -> String {
    let view = view::expected(json).unwrap();
    let uri = serde_json::to_string(&view.uri.replace("command=ls", "command=***")).unwrap();
    format!(r#"{},"requestURI":{uri}}}"#, view.shown.strip_suffix('}').unwrap())
}

fn annotations(gap: &str) -> String {
    format!(r#"{{"audit-stream.dev/gap":{}}}"#, serde_json::to_string(gap).unwrap())
}

/// The annotation of a gap.
pub(super) fn gap(count: Option<u64>, reason: &str) -> String {
    let count = count.map_or_else(|| "null".to_owned(), |count| count.to_string());
    format!(r#"{{"count":{count},"truncated":0,"reason":"{reason}","since":"2026-11-20T15:00:00Z"}}"#)
}

pub(super) fn bookmark(place: u64, gap: Option<&str>) -> Frame {
    marked(place, &gap.map_or_else(|| "{}".to_owned(), annotations))
}

pub(super) fn initial(place: u64) -> Frame {
    marked(place, r#"{"k8s.io/initial-events-end":"true"}"#)
}

fn marked(place: u64, annotations: &str) -> Frame {
    read(&format!(
        r#"{{"type":"BOOKMARK","object":{{"kind":"Event","apiVersion":"audit.k8s.io/v1","metadata":{{"resourceVersion":"{place}","annotations":{annotations}}}}}}}"#
    ))
}

pub(super) fn error(code: u16) -> Frame {
    read(&format!(
        r#"{{"type":"ERROR","object":{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"gone","reason":"Expired","code":{code}}}}}"#
    ))
}

pub(super) fn read(line: &str) -> Frame {
    Frame::read(Bytes::from(line.to_owned())).unwrap()
}

#[test]
fn the_story_keeps_every_promise() {
    good().validate().unwrap();
}

#[test]
fn batches_are_in_the_order_of_their_answers() {
    assert_eq!(good().batches.iter().map(|batch| &*batch.source).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_run_that_is_too_small_or_has_a_silent_reader_is_not_worth_checking() {
    let history = good();
    assert!(history.worth_checking(8, 28).is_ok());
    assert!(history.worth_checking(9, 0).unwrap_err().to_string().contains("8 events were accepted"));
    assert!(history.worth_checking(0, 29).unwrap_err().to_string().contains("28 events were received"));

    let mut unanswered = good();
    unanswered.batches[0].accepted = None;
    assert!(unanswered.worth_checking(5, 0).is_err());

    let mut silent = good();
    silent.transcripts[OF_BOB].sessions[0].frames.clear();
    // It would pass, for want of anything to judge by.
    let error = silent.worth_checking(8, 1).unwrap_err().to_string();
    assert!(error.contains("reader bob received nothing"), "{error}");
    silent.transcripts[OF_BOB].sessions.clear();
    assert!(silent.worth_checking(8, 1).is_err());
}

#[test]
fn all_that_is_broken_is_reported() {
    let mut history = good();
    history.transcripts[CLUSTER].sessions[0].frames.remove(3);
    history.transcripts[IN_SHOP].bookmarks = Bookmarks::No;
    let violations = history.validate().unwrap_err();
    let rules: Vec<_> = violations.0.iter().map(|violation| violation.rule).collect();
    assert_eq!(rules, [Rule::ReliableOrGap, Rule::Bookmarkable]);
    let text = violations.to_string();
    assert!(text.contains("ReliableOrGap: reader cluster, session 0, place 14: expected the event id-1 "), "{text}");
}

#[test]
fn a_ledger_that_cannot_tell_events_apart_is_of_no_use() {
    let rule = |history: &History| history.validate().unwrap_err().0[0].rule;
    let mut twice = good();
    let again = twice.batches[0].events[0].clone();
    twice.batches[1].events.push(again);
    assert_eq!(rule(&twice), Rule::Ledger);

    // Different bytes, but nothing that a namespace's reader could know them by.
    let mut alike = good();
    let hidden = alike.batches[0].events[0].json.replace("10.0.0.7", "10.0.0.8");
    alike.batches[1].events.push(Sent { json: hidden, namespace: SHOP.map(str::to_owned) });
    assert_eq!(rule(&alike), Rule::Ledger);

    let mut no_event = good();
    no_event.batches[1].events[0].json = "{}".to_owned();
    assert_eq!(rule(&no_event), Rule::Ledger);
}

#[test]
fn frames_are_read_as_far_as_they_have_to_be() {
    let event = &events()[0];
    let cluster = added(&Scope::Cluster, 11, event, Some(&gap(Some(3), "lag")));
    assert!(cluster.contains("agent 0") && !cluster.contains("agent 1") && !bookmark(7, None).contains("BOOKMARK"));
    let Frame::Added(cluster) = cluster else { panic!() };
    assert_eq!(format!("{{{}}}", String::from_utf8_lossy(cluster.body())), event.json);
    assert_eq!((cluster.place, cluster.is_namespaced, &cluster.namespace), (11, false, &None));
    assert_eq!(cluster.gap, Some(Gap { count: Some(3), reason: "lag".into() }));
    assert!(cluster.line().starts_with(br#"{"type":"ADDED""#) && cluster.line().ends_with(b"}}"));
    let Frame::Added(shop) = added(&Scope::AllNamespaces, 11, event, None) else { panic!() };
    assert_eq!((shop.is_namespaced, shop.namespace.as_deref(), shop.gap), (true, SHOP, None));

    let Frame::Bookmark(bookmark) = bookmark(7, Some(&gap(None, "malformed"))) else { panic!() };
    assert_eq!((bookmark.place, bookmark.initial_events_end), (7, false));
    assert_eq!(bookmark.gap, Some(Gap { count: None, reason: "malformed".into() }));
    assert!(matches!(initial(7), Frame::Bookmark(Bookmark { place: 7, initial_events_end: true, gap: None })));
    assert!(error(410).is_gone() && !error(403).is_gone() && error(403).place().is_none());
}

#[test]
fn what_is_no_frame_is_not_read() {
    let good = added(&Scope::Cluster, 11, &events()[0], None);
    let Frame::Added(good) = good else { panic!() };
    let good = std::str::from_utf8(good.line()).unwrap();
    for (from, to) in [
        ("ADDED", "MODIFIED"),
        (r#""kind":"Event","#, ""),
        (r#""kind":"Event""#, r#""kind":"Pod""#),
        ("audit.k8s.io/v1", "audit.k8s.io/v2"),
        (r#""resourceVersion":"11""#, r#""resourceVersion":11"#),
        (r#""resourceVersion":"11""#, r#""resourceVersion":"x""#),
        (r#""resourceVersion":"11""#, r#""uid":"11""#),
        (r#""metadata":{"#, r#""metadata":["#),
    ] {
        assert!(good.contains(from));
        assert!(Frame::read(Bytes::from(good.replace(from, to))).is_err(), "{to}");
    }
    for no_frame in ["", "{}", r#"{"type":"BOOKMARK","object":{}}"#, r#"{"type":"ERROR","object":{"metadata":{}}}"#] {
        assert!(Frame::read(Bytes::from(no_frame)).is_err(), "{no_frame}");
    }
    let front = good.find(r#","level""#).unwrap();
    assert!(Frame::read(Bytes::from(good[..front].to_owned())).is_err());
}

#[test]
fn views_show_what_the_table_shows() {
    let whole = r#"{"level":"Metadata","auditID":"a","stage":"s","requestURI":"/x?a=1","verb":"get","user":{"username":"u","uid":"1",
        "groups":["g"],"extra":{"k":["v"]}},"sourceIPs":["1"],"userAgent":"ua","objectRef":{"resource":"pods","name":""},
        "responseStatus":{"metadata":{},"status":"Failure","message":"m","code":403},"requestObject":{},
        "annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":"r"},"unknown":1}"#;
    let shown = r#"{"verb":"get","userAgent":"ua","user":{"groups":["g"],"username":"u"},"stage":"s","auditID":"a",
        "responseStatus":{"code":403,"status":"Failure","metadata":{}},"requestURI":"/x?a=1","level":"Metadata",
        "objectRef":{"resource":"pods"},"annotations":{"authorization.k8s.io/decision":"forbid"}}"#;
    let seen = |text: &str| view::seen(text.strip_prefix('{').unwrap().strip_suffix('}').unwrap().as_bytes()).unwrap();
    assert_eq!(view::expected(whole).unwrap(), seen(shown));
    assert_eq!(seen(shown).uri, "/x?a=1");
    for leak in [r#""sourceIPs":["1"]"#, r#""unknown":1"#, r#""requestObject":{"a":1}"#] {
        let leaking = shown.replacen('{', &format!("{{{leak},"), 1);
        assert_ne!(view::expected(whole).unwrap(), seen(&leaking), "{leak}");
    }
}

#[test]
fn masks_stand_for_anything_and_nothing_else_does() {
    for (shown, sent, stands) in [
        ("/a?b=c", "/a?b=c", true),
        ("/a?b=c", "/a?b=d", false),
        ("/a?b=***", "/a?b=d", true),
        ("/a?b=***&c=***&d=1", "/a?b=x&c=&d=1", true),
        ("/a?b=***&c=1", "/a?b=x&c=2", false),
        ("/a/proxy/***", "/a/proxy/x/y?z", true),
        ("/a/proxy/***", "/a/prox/x", false),
        ("/a?b=***", "/x?b=***", false),
        ("/a", "/a/b", false),
    ] {
        assert_eq!(view::uri_stands_for(shown, sent), stands, "{shown} for {sent}");
    }
}

#[test]
fn selectors_are_written_as_kube_apiserver_reads_them() {
    let selector = |field, value: &str| Selector { field, value: value.to_owned() }.to_string();
    assert_eq!(selector(Field::Username, r"a,b=c\d"), r"user.username=a\,b\=c\\d");
    assert_eq!(selector(Field::Verb, "get"), "verb=get");
    assert_eq!(selector(Field::AuditId, "x"), "auditID=x");
}
