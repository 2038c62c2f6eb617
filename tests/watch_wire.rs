//! The bytes of a watch: its headers, its frames, and what is not in them.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use audit_stream_testplane::events::{EventBuilder, event};
use audit_stream_testplane::front_proxy::Watch;
use serde_json::{Value, json};

use crate::stage::{ARRIVAL, EVENTS, PROTOCOLS, Stage, in_namespace, namespaced, read_until};

const WITHHELD: &str = "audit-stream.dev/withheld";

/// An event with something in each field, always the same.
fn full_event() -> EventBuilder {
    event()
        .user("alice")
        .groups(&["dev", "system:authenticated"])
        .uid("u-1")
        .extra("example.com/scope", &["a"])
        .impersonating("bob", &["ops"])
        .source_ips(&["10.0.0.7", "192.168.1.1"])
        .user_agent("kubectl <&>")
        .received_at(UNIX_EPOCH + Duration::from_micros(1_795_186_800_123_456))
        .audit_id("id-1")
        .verb("create")
        .api_group("apps")
        .resource("deployments")
        .namespace("shop")
        .name("web")
        .query("dryRun=All&token=hunter2")
        .level("RequestResponse")
        .request_object(r#"{"spec": "hunter2"}"#)
        .response_object(r#"{"status": "hunter2"}"#)
        .annotation("mutation.webhook.admission.k8s.io/round_0_index_0", "hunter2")
        .unknown_field("authenticationMetadata", json!({"impersonationConstraint": "hunter2"}))
}

const EVENT_FRAME: &str = concat!(
    r#"{"type":"ADDED","object":{"kind":"Event","apiVersion":"audit.k8s.io/v1","metadata":{"name":"event-SEQUENCE","#,
    r#""resourceVersion":"SEQUENCE","creationTimestamp":"2026-11-20T15:00:00Z"},"#,
    r#""level":"RequestResponse","auditID":"id-1","stage":"ResponseComplete","#,
    r#""requestURI":"/apis/apps/v1/namespaces/shop/deployments?dryRun=All\u0026token=hunter2","verb":"create","#,
    r#""user":{"username":"alice","uid":"u-1","groups":["dev","system:authenticated"],"extra":{"example.com/scope":["a"]}},"#,
    r#""impersonatedUser":{"username":"bob","groups":["ops"]},"sourceIPs":["10.0.0.7","192.168.1.1"],"#,
    r#""userAgent":"kubectl \u003c\u0026\u003e","objectRef":{"resource":"deployments","namespace":"shop","name":"web","#,
    r#""apiGroup":"apps","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":201},"#,
    r#""requestObject":{"spec": "hunter2"},"responseObject":{"status": "hunter2"},"#,
    r#""requestReceivedTimestamp":"2026-11-20T15:00:00.123456Z","stageTimestamp":"2026-11-20T15:00:00.125456Z","#,
    r#""annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"#,
    r#""RBAC: allowed by ClusterRoleBinding \"testplane\" of ClusterRole \"edit\" to User \"alice\"","#,
    r#""mutation.webhook.admission.k8s.io/round_0_index_0":"hunter2"},"#,
    r#""authenticationMetadata":{"impersonationConstraint":"hunter2"}}}"#,
    "\n",
);

const NAMESPACED_EVENT_FRAME: &str = concat!(
    r#"{"type":"ADDED","object":{"kind":"NamespacedEvent","apiVersion":"audit.k8s.io/v1","metadata":{"#,
    r#""name":"event-SEQUENCE","namespace":"shop","resourceVersion":"SEQUENCE","#,
    r#""creationTimestamp":"2026-11-20T15:00:00Z","annotations":{"audit-stream.dev/withheld":"#,
    r#""requestURI,user.uid,user.extra,sourceIPs,requestObject,responseObject,annotations,authenticationMetadata"}},"#,
    r#""level":"RequestResponse","auditID":"id-1","stage":"ResponseComplete","#,
    r#""requestURI":"/apis/apps/v1/namespaces/shop/deployments?dryRun=All&token=***","verb":"create","#,
    r#""user":{"username":"alice","groups":["dev","system:authenticated"]},"#,
    r#""impersonatedUser":{"username":"bob","groups":["ops"]},"userAgent":"kubectl \u003c\u0026\u003e","#,
    r#""objectRef":{"resource":"deployments","namespace":"shop","name":"web","apiGroup":"apps","apiVersion":"v1"},"#,
    r#""responseStatus":{"metadata":{},"code":201},"#,
    r#""requestReceivedTimestamp":"2026-11-20T15:00:00.123456Z","stageTimestamp":"2026-11-20T15:00:00.125456Z","#,
    r#""annotations":{"authorization.k8s.io/decision":"allow"}}}"#,
    "\n",
);

/// The bytes of a watch's only frame, with a word in the place of its sequence number.
async fn only_frame(watch: &mut Watch) -> Result<String> {
    let objects = read_until(watch, "id-1").await?;
    let sequence = objects[0]["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
    assert!(sequence.len() > 15 && sequence.bytes().all(|byte| byte.is_ascii_digit()), "{sequence}");
    Ok(String::from_utf8(watch.raw().to_vec())?.replace(sequence, "SEQUENCE"))
}

#[tokio::test]
async fn the_bytes_of_a_frame() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    let mut watches = Vec::new();
    for protocol in PROTOCOLS {
        let proxy = stage.proxy(protocol).await?;
        let admin = proxy.user("admin").groups(["system:masters"]);
        watches.push((EVENT_FRAME.to_owned(), admin.watch(EVENTS).await?));
        watches.push((NAMESPACED_EVENT_FRAME.to_owned(), proxy.user("alice").watch(&namespaced("shop")).await?));
        let everywhere = admin.watch("/apis/audit.k8s.io/v1/namespacedevents?watch=true").await?;
        watches.push((NAMESPACED_EVENT_FRAME.to_owned(), everywhere));
    }
    each_gets_its_frame(&stage, watches).await
}

async fn each_gets_its_frame(stage: &Stage, watches: Vec<(String, Watch)>) -> Result<()> {
    let sender = stage.sender().await?;
    sender.send(full_event());
    sender.flush().await?;
    for (expected, mut watch) in watches {
        assert_eq!(only_frame(&mut watch).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn the_versions_differ_in_api_version_alone() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let mut watches = Vec::new();
    for version in ["v1", "v1beta1", "v1alpha1"] {
        for (path, frame) in [(EVENTS, EVENT_FRAME), (&namespaced("shop"), NAMESPACED_EVENT_FRAME)] {
            let watch = admin.watch(&path.replace("v1", version)).await?;
            let expected = frame.replacen("audit.k8s.io/v1", &format!("audit.k8s.io/{version}"), 1);
            watches.push((expected, watch));
        }
    }
    each_gets_its_frame(&stage, watches).await
}

#[tokio::test]
async fn headers_come_before_any_event() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    for protocol in PROTOCOLS {
        let alice = stage.proxy(protocol).await?.user("alice").audit_id("my-request");
        // Nothing happens in this cluster: a server that waits for a first event would never answer.
        let watch = alice.watch(&(namespaced("shop") + "&feildSelector=verb%3Dget&feildSelector=x&%22=x")).await?;
        let headers = watch.headers();
        let values = |name: &str| -> Vec<&str> {
            headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
        };
        assert_eq!(values("content-type"), ["application/json"], "{protocol:?}");
        assert_eq!(values("cache-control"), ["no-cache, private"], "{protocol:?}");
        assert_eq!(values("audit-id"), ["my-request"], "{protocol:?}");
        let warnings = [
            "299 - \"unknown query parameter feildSelector was ignored\"",
            "299 - \"an unknown query parameter was ignored\"",
        ];
        let mut warned = values("warning");
        // The front proxy, like Go's url.Values, writes parameters in the order of their names.
        warned.sort_unstable_by_key(|warning| std::cmp::Reverse(*warning));
        assert_eq!(warned, warnings, "{protocol:?}");
        for absent in ["content-length", "content-encoding"] {
            assert!(!headers.contains_key(absent), "{absent} over {protocol:?}");
        }
        assert!(watch.raw().is_empty());
    }
    let alice = stage.user("alice").await?;
    let without = alice.without("Audit-ID").watch(&namespaced("shop")).await?;
    assert!(without.headers().get("audit-id").is_some_and(|id| id.len() == 36), "{:?}", without.headers());
    assert!(!without.headers().contains_key("warning"), "{:?}", without.headers());
    Ok(())
}

/// Events whose bodies are secrets, with what names their withheld parts.
fn secretive() -> [(EventBuilder, &'static str); 5] {
    let recorded = |id: &str, verb: &str| in_namespace("shop", id).verb(verb).level("RequestResponse");
    let admission = "patch.webhook.admission.k8s.io/round_0_index_0";
    [
        (recorded("secret", "create").resource("secrets"), "sourceIPs,requestObject,responseObject,annotations"),
        (recorded("list", "list").resource("secrets"), "sourceIPs,responseObject,annotations"),
        (recorded("patched", "update").level("Metadata").annotation(admission, "c2VjcmV0"), "sourceIPs,annotations"),
        (
            in_namespace("shop", "exec").resource("pods").subresource("exec").query("command=c2VjcmV0"),
            "requestURI,sourceIPs,annotations",
        ),
        (
            in_namespace("shop", "proxied").request_uri("/api/v1/namespaces/shop/configmaps/prices/proxy/c2VjcmV0"),
            "requestURI,sourceIPs,annotations",
        ),
    ]
}

#[tokio::test]
async fn what_a_namespaces_reader_may_not_see_is_absent_and_named() -> Result<()> {
    let stage = Stage::start().await?;
    let mut shop = stage.reader("alice", "shop").await?.watch(&namespaced("shop")).await?;
    let admin = stage.admin().await?;
    let mut namespaces = admin.watch("/apis/audit.k8s.io/v1/namespacedevents?watch=true").await?;
    let mut everything = admin.watch(EVENTS).await?;
    let sender = stage.sender().await?;
    secretive().into_iter().for_each(|(event, _)| sender.send(event));
    let bare = in_namespace("shop", "bare").source_ips(&[]).stage("RequestReceived");
    sender.send(bare);
    sender.flush().await?;

    let expected: Vec<_> = secretive().iter().map(|(_, names)| json!({WITHHELD: names})).collect();
    for watch in [&mut shop, &mut namespaces] {
        let mut read = read_until(watch, "bare").await?;
        let bare = read.pop().context("the last")?;
        assert_eq!(bare["metadata"]["annotations"], Value::Null, "nothing is withheld from it");
        let named: Vec<_> = read.iter().map(|object| object["metadata"]["annotations"].clone()).collect();
        assert_eq!(named, expected);
        let raw = String::from_utf8(watch.raw().to_vec())?;
        for absent in ["c2VjcmV0", "10.0.0.7", "RBAC: allowed", "Object\":", "uid-of", "ClusterRoleBinding"] {
            assert!(!raw.contains(absent), "{absent} is in {raw}");
        }
    }
    // The cluster's reader sees what was recorded.
    read_until(&mut everything, "bare").await?;
    let raw = String::from_utf8(everything.raw().to_vec())?;
    assert_eq!(raw.matches("c2VjcmV0").count(), 6, "{raw}");
    assert!(!raw.contains(WITHHELD), "{raw}");
    Ok(())
}

/// Where a field is in an event, its value in [`full_event`], and the name by which it is withheld.
const HIDDEN_BY_DEFAULT: [(&str, &str, &str); 4] = [
    ("/user/uid", r#""u-1""#, "user.uid"),
    ("/user/extra", r#"{"example.com/scope":["a"]}"#, "user.extra"),
    ("/sourceIPs", r#"["10.0.0.7","192.168.1.1"]"#, "sourceIPs"),
    (
        "/annotations/authorization.k8s.io~1reason",
        r#""RBAC: allowed by ClusterRoleBinding \"testplane\" of ClusterRole \"edit\" to User \"alice\"""#,
        "",
    ),
];

#[tokio::test]
async fn what_is_hidden_by_default_is_shown_one_by_one() -> Result<()> {
    for (number, shown) in HIDDEN_BY_DEFAULT.iter().enumerate() {
        let stage = Stage::with(|config| {
            let revealed = &mut config.watch.revealed;
            let flags = [
                &mut revealed.user_uid,
                &mut revealed.user_extra,
                &mut revealed.source_ips,
                &mut revealed.authorization_reason,
            ];
            *flags.into_iter().nth(number).expect("there are four") = true;
        })
        .await?;
        let reader = stage.reader("alice", "shop").await?;
        let mut watch = reader.watch(&namespaced("shop")).await?;
        let sender = stage.sender().await?;
        sender.send(full_event());
        sender.flush().await?;
        let event = read_until(&mut watch, "id-1").await?.remove(0);
        let names = event["metadata"]["annotations"][WITHHELD].as_str().context("there is more to withhold")?;
        for (place, value, name) in &HIDDEN_BY_DEFAULT {
            let is_shown = *place == shown.0;
            let expected = is_shown.then(|| serde_json::from_str(value)).transpose()?;
            assert_eq!(event.pointer(place), expected.as_ref(), "{place} beside {}", shown.0);
            let named = names.split(',').any(|named| named == *name);
            assert_eq!(named, !is_shown && !name.is_empty(), "{name} in {names}");
        }
        let raw = String::from_utf8(watch.raw().to_vec())?;
        assert!(!raw.contains("hunter2") && names.contains("annotations"), "{raw}");
        let selected = reader.watch(&(namespaced("shop") + "&fieldSelector=sourceIPs%3D10.0.0.7")).await;
        assert_eq!(selected.is_ok(), shown.0 == "/sourceIPs", "a selector sees what is shown");
    }
    Ok(())
}

#[tokio::test]
async fn live_credentials_are_nobodys_to_read() -> Result<()> {
    let stage = Stage::start().await?;
    let mut everything = stage.admin().await?.watch(EVENTS).await?;
    let mut shop = stage.reader("alice", "shop").await?.watch(&namespaced("shop")).await?;
    let with_token = |event: EventBuilder| {
        let body = r#"{"spec":{"token":"hunter2"},"status":{"token":"hunter2"}}"#;
        event.verb("create").level("RequestResponse").request_object(body).response_object(body)
    };
    let token = in_namespace("shop", "token").resource("serviceaccounts").subresource("token");
    let review = event().api_group("authentication.k8s.io").resource("tokenreviews").audit_id("review");
    let sender = stage.sender().await?;
    sender.send(with_token(review));
    sender.send(with_token(token));
    sender.flush().await?;
    let read = read_until(&mut everything, "token").await?;
    assert_eq!(read.len(), 2);
    assert!(read.iter().all(|object| object["requestObject"].is_null() && object["responseObject"].is_null()));
    read_until(&mut shop, "token").await?;
    for watch in [&everything, &shop] {
        assert!(!String::from_utf8_lossy(watch.raw()).contains("hunter2"));
    }
    Ok(())
}

#[tokio::test]
async fn a_large_event_arrives_whole() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    let agent = "x".repeat(700_000);
    let mut watches = Vec::new();
    for protocol in PROTOCOLS {
        watches.push(stage.proxy(protocol).await?.user("alice").watch(&namespaced("shop")).await?);
    }
    let sender = stage.sender().await?;
    let ids = ["a", "b", "c"];
    ids.iter().for_each(|id| sender.send(in_namespace("shop", id).user_agent(&format!("{id}{agent}"))));
    sender.flush().await?;
    for mut watch in watches {
        for id in ids {
            let object = watch.next_added(ARRIVAL).await?.context("the watch ended")?;
            assert!(object["userAgent"] == format!("{id}{agent}"), "{id} is not whole");
        }
    }
    Ok(())
}
