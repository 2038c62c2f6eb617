//! By what a watch selects, besides a field selector: the parameters that have an OR, label selectors, a name in the path.

use anyhow::{Context, Result};
use audit_stream_testplane::events::{EventBuilder, event};
use audit_stream_testplane::front_proxy::{ProxiedUser, Watch};
use audit_stream_testplane::webhook_sender::WebhookSender;
use serde_json::{Value, json};

use crate::stage::{
    ARRIVAL, EVENTS, Feed, Stage, announce_end, assert_ends, ids, in_namespace, many_watches, namespaced, read_until,
    read_until_end,
};

/// What happens while these watches are open: a few things in two namespaces, in none, and no thing at all.
fn happenings() -> Vec<EventBuilder> {
    let pod = in_namespace("shop", "pod").resource("pods").name("p").verb("get");
    vec![
        pod,
        in_namespace("shop", "scale").api_group("apps").resource("deployments").verb("update").user("bob,the builder"),
        in_namespace("shop", "job").api_group("batch").resource("jobs").verb("create").groups(&["dev", "ops,on call"]),
        in_namespace("shop", "panic").verb("list").stage("Panic").user("bob").groups(&["dev"]),
        in_namespace("bank", "secret").resource("secrets").verb("delete"),
        event().resource("nodes").name("n").verb("get").user("bob").audit_id("node"),
        event().non_resource("/metrics").verb("get").audit_id("metrics"),
    ]
}

/// All that is in `shop`.
const SHOP: [&str; 4] = ["pod", "scale", "job", "panic"];

/// What a watch of the cluster sees besides.
const ELSEWHERE: [&str; 3] = ["secret", "node", "metrics"];

/// A parameter with its values, and which happenings it selects: in `shop`, and elsewhere.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

fn cases() -> Vec<Case> {
    vec![
        ("", &SHOP, &ELSEWHERE),
        ("username=bob", &["panic"], &["node"]),
        // A name is taken as it is, a comma too; of several one is enough.
        ("username=bob,the builder", &["scale"], &[]),
        ("username=bob&username=bob,the builder", &["scale", "panic"], &["node"]),
        ("group=dev", &["job", "panic"], &[]),
        ("group=dev&group=ops,on call", &["job"], &[]),
        ("apiGroup=<core>", &["pod", "panic"], &["secret", "node"]),
        ("apiGroup=apps", &["scale"], &[]),
        ("apiGroup=apps&apiGroup=<core>", &["pod", "scale", "panic"], &["secret", "node"]),
        ("apiGroup=apps,batch", &["scale", "job"], &[]),
        ("resource=pods", &["pod"], &[]),
        ("resource=pods,jobs&resource=nodes", &["pod", "job"], &["node"]),
        ("verbs=get", &["pod"], &["node", "metrics"]),
        ("verbs=create,update&verb=delete", &["scale", "job"], &["secret"]),
        ("stage=Panic", &["panic"], &[]),
        ("stage=Panic&stage=ResponseComplete", &SHOP, &ELSEWHERE),
        // Each parameter must be met.
        ("verbs=get,list&resource=pods,configmaps&username=bob", &["panic"], &[]),
        ("verbs=get,list&fieldSelector=stage!=Panic", &["pod"], &["node", "metrics"]),
        ("fieldSelector=verb=get&fieldSelector=verb=list", &["pod"], &["node", "metrics"]),
        ("verbs=nothing,like,this", &[], &[]),
        ("verbs=&verb=,&username=&group=&apiGroup=&resource=&stage=,,", &SHOP, &ELSEWHERE),
        // No event has a label.
        ("labelSelector=app", &[], &[]),
        ("labelSelector=app=shop", &[], &[]),
        ("labelSelector=app in (shop,bank),tier!=web", &[], &[]),
        ("labelSelector=replicas>1", &[], &[]),
        ("labelSelector=!app", &SHOP, &ELSEWHERE),
        ("labelSelector=app!=shop,tier notin (web)", &SHOP, &ELSEWHERE),
        ("labelSelector=!app&verbs=list", &["panic"], &[]),
        ("labelSelector=app&verbs=list", &[], &[]),
    ]
}

/// Everything but what separates parameters, keys and values.
fn encoded(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').expect("a key and a value");
        let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        format!("&{key}={value}")
    });
    pairs.collect()
}

struct Reading {
    what: String,
    expected: Vec<&'static str>,
    watch: Watch,
}

async fn open(reader: &ProxiedUser, path: &str, query: &str, expected: Vec<&'static str>) -> Result<Reading> {
    let what = format!("{path}&{query}");
    let watch = reader.watch(&format!("{path}&allowWatchBookmarks=true{}", encoded(query))).await?;
    Ok(Reading { what, expected, watch })
}

async fn happen(sender: &WebhookSender) -> Result<()> {
    happenings().into_iter().for_each(|event| sender.send(event));
    sender.flush().await?;
    announce_end(sender).await
}

#[tokio::test]
async fn every_parameter_selects_what_it_says() -> Result<()> {
    let mut stage = Stage::with(many_watches).await?;
    let (alice, admin) = (stage.reader("alice", "shop").await?, stage.admin().await?);
    let mut readings = Vec::new();
    for (query, shop, elsewhere) in cases() {
        readings.push(open(&alice, &namespaced("shop"), query, shop.to_vec()).await?);
        readings.push(open(&admin, EVENTS, query, [shop, elsewhere].concat()).await?);
    }
    let by_namespace: [(&str, &[&str]); 5] = [
        ("namespace=shop", &SHOP),
        ("namespace=bank&namespace=<none>", &ELSEWHERE),
        ("namespace=<none>", &["node", "metrics"]),
        ("namespace=bank,shop&verbs=get,delete", &["pod", "secret"]),
        ("namespace=nowhere", &[]),
    ];
    for (query, expected) in by_namespace {
        readings.push(open(&admin, EVENTS, query, expected.to_vec()).await?);
    }
    // The path has said which; the parameter is one that nobody knows.
    let ignored = open(&alice, &namespaced("shop"), "namespace=bank", SHOP.to_vec()).await?;
    let warning = "299 - \"unknown query parameter namespace was ignored\"";
    assert_eq!(ignored.watch.headers().get("warning").map(|value| value.as_bytes()), Some(warning.as_bytes()));
    for Reading { what, watch, .. } in &readings {
        assert!(!watch.headers().contains_key("warning"), "{what}");
    }
    readings.push(ignored);

    happen(&stage.sender().await?).await?;
    for Reading { what, expected, watch } in &mut readings {
        // The end was announced to all of them, those that select nothing too: they are open.
        assert_eq!(ids(&read_until_end(watch).await?), *expected, "{what}");
    }
    stage.stop().await?;
    for Reading { what, watch, .. } in &mut readings {
        assert_ends(watch).await.context(what.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn there_is_room_for_so_many_values_and_no_more() -> Result<()> {
    let stage = Stage::start().await?;
    let (admin, sender) = (stage.admin().await?, stage.sender().await?);
    let verbs = |count: usize| (0..count).map(|verb| format!("verb-{verb}")).collect::<Vec<_>>().join(",");
    let path = format!("{EVENTS}&fieldSelector=verb!%3Dx&verbs={}", verbs(31));
    assert_eq!(admin.get(&format!("{path}&stage=Panic")).await?.status, 400);
    let mut watch = admin.watch(&path).await?;
    for verb in ["verb-31", "verb-30"] {
        sender.send(in_namespace("shop", verb).verb(verb));
    }
    sender.flush().await?;
    assert_eq!(ids(&read_until(&mut watch, "verb-30").await?), ["verb-30"]);
    Ok(())
}

/// The deprecated way to watch one object: `prefixed` is a collection below `/watch/`.
fn of_one(prefixed: &str, name: &str) -> String {
    format!("/apis/audit.k8s.io/v1/watch/{prefixed}/{name}?allowWatchBookmarks=true")
}

#[tokio::test]
async fn a_name_behind_the_watch_prefix_selects_one_event() -> Result<()> {
    let Feed { stage, sender, mut reader } = Feed::start(Stage::start().await?).await?;
    let alice = stage.reader("alice", "shop").await?;
    let admin = stage.admin().await?;
    for id in ["start", "a", "b", "c"] {
        sender.send(in_namespace("shop", id).verb(if id == "b" { "list" } else { "get" }));
    }
    sender.flush().await?;
    let read = read_until(&mut reader, "c").await?;
    let metadata = |index: usize, key: &str| read[index]["metadata"][key].as_str().unwrap_or_default();
    let (start, name) = (metadata(0, "resourceVersion"), metadata(2, "name"));
    let selector = format!("fieldSelector=metadata.name%3D{name}");
    let mut readings = Vec::new();
    for (more, expected) in [
        ("", &["b"][..]),
        ("&fieldSelector=", &["b"]),
        (&format!("&{selector}"), &["b"]),
        (&format!("&{selector},verb%3Dget"), &[]),
        ("&verbs=list,get", &["b"]),
        ("&verbs=get", &[]),
    ] {
        let suffix = format!("&resourceVersion={start}{more}");
        for path in [of_one("namespaces/shop/namespacedevents", name), of_one("namespacedevents", name)] {
            readings.push((admin.watch(&(path.clone() + &suffix)).await?, path, more.to_owned(), expected));
        }
        let path = of_one("namespaces/shop/namespacedevents", name);
        readings.push((alice.watch(&(path.clone() + &suffix)).await?, path, more.to_owned(), expected));
        let path = of_one("events", name);
        readings.push((admin.watch(&(path.clone() + &suffix)).await?, path, more.to_owned(), expected));
    }
    let path = of_one("events", "no-such-event");
    readings.push((admin.watch(&path).await?, path, String::new(), &[]));
    sender.send(in_namespace("shop", "d").verb("list"));
    sender.flush().await?;
    announce_end(&sender).await?;
    for (mut watch, path, more, expected) in readings {
        assert_eq!(ids(&read_until_end(&mut watch).await?), expected, "{path} {more}");
    }

    // What was asked about alice is the namespace, and never the name.
    let attributes = json!({"verb": "watch", "group": "audit.k8s.io", "version": "v1", "resource": "namespacedevents",
        "namespace": "shop"});
    let asked: Vec<Value> =
        stage.reviewer.reviews().iter().map(|review| review["resourceAttributes"].clone()).collect();
    assert_eq!(asked, [attributes]);
    Ok(())
}

#[tokio::test]
async fn a_watch_that_can_select_nothing_stays_open_and_says_where_it_is() -> Result<()> {
    let Feed { stage, sender, mut reader } = Feed::start(Stage::start().await?).await?;
    let alice = stage.reader("alice", "shop").await?;
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut empty = open(&alice, &namespaced("shop"), &format!("labelSelector=app&{initial}"), vec![]).await?.watch;
    let first = empty.next(ARRIVAL).await?.context("it ended")?;
    assert_eq!(first["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));

    sender.send(in_namespace("shop", "a"));
    sender.flush().await?;
    let place = read_until(&mut reader, "a").await?[0]["metadata"]["resourceVersion"].clone();
    announce_end(&sender).await?;
    let next = empty.next(ARRIVAL).await?.context("it ended")?;
    let number = |place: &Value| place.as_str().and_then(|place| place.parse::<u64>().ok());
    let told = number(&next["object"]["metadata"]["resourceVersion"]);
    assert!(next["type"] == "BOOKMARK" && told > number(&place), "{next} does not tell of what came after {place}");
    Ok(())
}
