//! Who gets which events: exact sets, in order, whatever the version of HTTP and whoever else watches.

use anyhow::Result;
use audit_stream_testplane::events::event;
use audit_stream_testplane::front_proxy::{Protocol, Watch};
use audit_stream_testplane::webhook_sender::{Sending, WebhookSender};

use crate::stage::{
    EVENTS, PROTOCOLS, Stage, announce_end, assert_ends, ids, in_namespace, many_watches, namespaced, read_until,
    read_until_end,
};

const ALL_NAMESPACES: &str = "/apis/audit.k8s.io/v1/namespacedevents?watch=true";

/// Something that happens in the cluster of these stories.
struct Happening {
    id: String,
    namespace: Option<&'static str>,
    verb: &'static str,
    user: &'static str,
}

/// The things that happen. The last three, one for each kind of place, end every story.
fn happenings() -> Vec<Happening> {
    let places = [Some("shop"), Some("bank"), None, Some("shop"), Some("sho"), Some("shop-2")];
    let (verbs, users) = (["get", "create", "delete", "list"], ["bob", "carol", "bob", "bob", "mallory"]);
    let mut all: Vec<_> = (0..120)
        .map(|n| Happening {
            id: format!("{n}"),
            namespace: places[n % places.len()],
            verb: verbs[n % verbs.len()],
            user: users[n % users.len()],
        })
        .collect();
    for (namespace, id) in [(Some("shop"), "last-shop"), (Some("bank"), "last-bank"), (None, "last")] {
        all.push(Happening { id: id.to_owned(), namespace, verb: "create", user: "bob" });
    }
    all
}

impl Happening {
    fn send(&self, sender: &WebhookSender) {
        let event = match self.namespace {
            Some(namespace) => in_namespace(namespace, &self.id),
            None => event().resource("nodes").name("node-1").audit_id(&self.id),
        };
        sender.send(event.verb(self.verb).user(self.user));
    }
}

/// Which happenings a watch should yield.
type Expected = fn(&Happening) -> bool;

struct Reading {
    path: String,
    protocol: Protocol,
    expected: Expected,
    watch: Watch,
}

#[tokio::test]
async fn every_watch_gets_its_own_events_in_order_and_no_other() -> Result<()> {
    let mut stage = Stage::start().await?;
    let reviewer = &stage.reviewer;
    reviewer.allow("alice").to("watch").on("namespacedevents").in_namespace("shop");
    reviewer.allow("bert").to("watch").on("namespacedevents").in_namespace("bank");
    reviewer.allow("dora").to("watch").on("namespacedevents").cluster_wide();
    reviewer.allow("eve").to("watch").on("events").cluster_wide();
    let creates = |path: &str| format!("{path}&fieldSelector=verb%3Dcreate");
    let without_bob = namespaced("shop") + "&fieldSelector=user.username!%3Dbob,verb!%3Dlist";
    // Two of a class, and as many classes as there are.
    let wanted: [(&str, String, Expected); 10] = [
        ("alice", namespaced("shop"), |it| it.namespace == Some("shop")),
        ("alice", namespaced("shop"), |it| it.namespace == Some("shop")),
        ("alice", creates(&namespaced("shop")), |it| it.namespace == Some("shop") && it.verb == "create"),
        ("alice", without_bob, |it| it.namespace == Some("shop") && it.user != "bob" && it.verb != "list"),
        ("bert", namespaced("bank"), |it| it.namespace == Some("bank")),
        ("dora", ALL_NAMESPACES.to_owned(), |it| it.namespace.is_some()),
        ("dora", namespaced("bank"), |it| it.namespace == Some("bank")),
        ("eve", EVENTS.to_owned(), |_| true),
        ("eve", EVENTS.to_owned(), |_| true),
        ("eve", creates(EVENTS), |it| it.verb == "create"),
    ];
    let mut readings = Vec::new();
    for protocol in PROTOCOLS {
        let proxy = stage.proxy(protocol).await?;
        for (reader, path, expected) in wanted.clone() {
            let watch = proxy.user(reader).watch(&path).await?;
            readings.push(Reading { path, protocol, expected, watch });
        }
    }
    assert_eq!(stage.metric("audit_stream_watch_open", &[]).await?, 20.0);

    let sender = stage.sender_with(Sending { max_batch_size: 7, ..Sending::default() }).await?;
    let happenings = happenings();
    happenings.iter().for_each(|happening| happening.send(&sender));
    sender.flush().await?;
    for Reading { path, protocol, expected, watch } in &mut readings {
        let expected: Vec<_> = happenings.iter().filter(|it| expected(it)).map(|it| it.id.as_str()).collect();
        let last = expected.last().expect("something happens everywhere");
        assert_eq!(ids(&read_until(watch, last).await?), expected, "{path} over {protocol:?}");
    }

    // Nothing comes behind what was last, and nothing that was sent twice.
    stage.stop().await?;
    for Reading { watch, .. } in &mut readings {
        assert_ends(watch).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_claim_to_be_in_a_namespace_does_not_reach_its_reader() -> Result<()> {
    let stage = Stage::start().await?;
    let mut shop = stage.reader("alice", "shop").await?.watch(&namespaced("shop")).await?;
    let mut everything = stage.admin().await?.watch(EVENTS).await?;
    let review = event().verb("create").api_group("authorization.k8s.io").resource("selfsubjectaccessreviews");
    let forged = [
        ("no namespace in the path", review.object_ref_namespace("shop")),
        ("another one in the path", in_namespace("bank", "").object_ref_namespace("shop")),
        ("another one in objectRef", in_namespace("shop", "").object_ref_namespace("bank")),
        ("none in objectRef", in_namespace("shop", "").object_ref_namespace("")),
        ("no objectRef", in_namespace("shop", "").without_object_ref()),
        ("only in the query", in_namespace("", "").request_uri("/api/v1/configmaps?x=/namespaces/shop/configmaps")),
        ("behind a dot", in_namespace("shop", "").request_uri("/x/../api/v1/namespaces/shop/configmaps")),
        ("encoded twice", in_namespace("shop", "").request_uri("/api/v1/namespaces/sh%256Fp/configmaps")),
        ("as a name", in_namespace("", "").resource("namespaces").name("shop").request_uri("/api/v1/x/shop")),
    ];
    let sender = stage.sender().await?;
    let mut expected = Vec::new();
    for (id, forged) in forged {
        sender.send(forged.audit_id(id));
        expected.push(id);
    }
    // What a client may write, and kube-apiserver serves.
    let encoded = "/api/v1/namespaces/sh%6Fp/configmaps/prices";
    sender.send(in_namespace("shop", "encoded once").request_uri(encoded));
    sender.send(in_namespace("shop", "true"));
    sender.flush().await?;
    expected.extend(["encoded once", "true"]);
    assert_eq!(ids(&read_until(&mut shop, "true").await?), ["encoded once", "true"]);
    let read = read_until(&mut everything, "true").await?;
    assert_eq!(ids(&read), expected, "the cluster's stream has all of them");

    let disputed =
        async |reason| stage.metric("audit_stream_ingest_disputed_events_total", &[("reason", reason)]).await;
    assert_eq!(disputed("namespace_not_in_path").await?, 1.0);
    assert_eq!(disputed("namespace_differs").await?, 4.0);
    assert_eq!(disputed("objectref_absent").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn attempts_that_were_refused_are_their_namespaces_to_see() -> Result<()> {
    let stage = Stage::start().await?;
    let mut shop = stage.reader("alice", "shop").await?.watch(&namespaced("shop")).await?;
    let sender = stage.sender().await?;
    let namespace = event().resource("namespaces").name("shop");
    let attempts = [
        in_namespace("shop", "forbidden").verb("delete").user("mallory").code(403),
        in_namespace("shop", "unauthorized").code(401),
        namespace.clone().verb("get").audit_id("namespace itself"),
        namespace.clone().verb("create").audit_id("its creation"),
        namespace.verb("create").object_ref_name("bank").audit_id("another's creation"),
        event().verb("list").resource("configmaps").audit_id("a list of all"),
        event().non_resource("/healthz").audit_id("no resource"),
        in_namespace("shop", "last"),
    ];
    attempts.into_iter().for_each(|attempt| sender.send(attempt));
    sender.flush().await?;
    let expected = ["forbidden", "unauthorized", "namespace itself", "its creation", "last"];
    assert_eq!(ids(&read_until(&mut shop, "last").await?), expected);
    Ok(())
}

#[tokio::test]
async fn field_selectors_see_what_the_reader_sees() -> Result<()> {
    let stage = Stage::with(many_watches).await?;
    stage.let_read("alice", "shop");
    let (alice, admin) = (stage.user("alice").await?, stage.admin().await?);
    let exec = in_namespace("shop", "exec").resource("pods").name("p").subresource("exec").verb("create");
    let events = [
        in_namespace("shop", "plain").source_ips(&["10.0.0.1", "10.0.0.2"]).user_agent("curl/8,\\="),
        exec.query("command=ls&stdin=true").groups(&["dev", "ops"]).impersonating("bob", &[]),
        in_namespace("shop", "scale").api_group("apps").resource("deployments").subresource("scale").verb("update"),
        in_namespace("shop", "forbidden").user("mallory").verb("delete").code(403).object_uid("u-1"),
        in_namespace("shop", "received").stage("RequestReceived").level("Request"),
    ];
    let all = ["plain", "exec", "scale", "forbidden", "received"];
    let but = |absent: &'static str| all.into_iter().filter(move |id| *id != absent).collect::<Vec<_>>();
    let cases = [
        ("", all.to_vec()),
        ("metadata.namespace=shop", all.to_vec()),
        ("metadata.namespace!=shop", vec![]),
        ("auditID==scale", vec!["scale"]),
        ("level=Request,stage=RequestReceived", vec!["received"]),
        ("stage!=RequestReceived", but("received")),
        ("verb=create,user.groups=dev", vec!["exec"]),
        ("user.groups!=ops", but("exec")),
        ("user.username=mallory", vec!["forbidden"]),
        ("impersonatedUser.username=bob", vec!["exec"]),
        ("impersonatedUser.username=", but("exec")),
        (r"userAgent=curl/8\,\\\=", vec!["plain"]),
        ("objectRef.resource=deployments,objectRef.apiGroup=apps,objectRef.subresource=scale", vec!["scale"]),
        ("objectRef.apiVersion=v1,objectRef.namespace=shop,objectRef.name=p", vec!["exec"]),
        ("objectRef.uid=u-1", vec!["forbidden"]),
        ("responseStatus.code=403", vec!["forbidden"]),
        ("annotations.authorization.k8s.io/decision=forbid", vec!["forbidden"]),
        ("verb=get,verb=delete", vec![]),
    ];
    let exec_uri =
        |command: &str| format!(r"requestURI=/api/v1/namespaces/shop/pods/p/exec?command\={command}&stdin\=true");
    let (masked, whole) = (exec_uri("***"), exec_uri("ls"));
    let both = cases.into_iter().flat_map(|(selector, expected)| {
        [(&alice, selector.to_owned(), expected.clone()), (&admin, selector.to_owned(), expected)]
    });
    let differing = [
        (&alice, masked.clone(), vec!["exec"]),
        (&alice, whole.clone(), vec![]),
        (&admin, masked, vec![]),
        (&admin, whole, vec!["exec"]),
        (&admin, "sourceIPs=10.0.0.2".to_owned(), vec!["plain"]),
    ];
    let mut watches = Vec::new();
    for (reader, selector, expected) in both.chain(differing) {
        let path = if std::ptr::eq(reader, &alice) { namespaced("shop") } else { EVENTS.to_owned() };
        let encoded: String = selector.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let watch = reader.watch(&format!("{path}&fieldSelector={encoded}&allowWatchBookmarks=true")).await?;
        watches.push((selector, expected, watch));
    }
    let sender = stage.sender().await?;
    events.into_iter().for_each(|event| sender.send(event));
    sender.flush().await?;
    announce_end(&sender).await?;
    for (selector, expected, mut watch) in watches {
        assert_eq!(ids(&read_until_end(&mut watch).await?), expected, "{selector:?}");
    }
    Ok(())
}
