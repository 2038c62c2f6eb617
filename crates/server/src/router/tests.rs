use http::StatusCode;
use http_body_util::{BodyExt, Empty};

use super::*;
use crate::metrics::WatchMetrics;
use crate::testing::{FrontProxy, Reviewer, Verdict, stranger};
use crate::watch;

fn resource(version: Version, resource: Resource, namespace: Option<&str>) -> Target {
    let route = Route { version, resource, namespace: namespace.map(str::to_owned) };
    Target::Resource { route, part: Part::All, watch_prefix: false }
}

#[test]
fn paths() {
    use Resource::{Events, NamespacedEvents};
    use Version::{V1, V1alpha1, V1beta1};
    let parse = |path: &str| Target::parse(&format!("/apis/audit.k8s.io{path}"));
    assert_eq!(parse("/v1/events"), resource(V1, Events, None));
    assert_eq!(parse("/v1beta1/events/"), resource(V1beta1, Events, None));
    assert_eq!(parse("/v1alpha1/namespacedevents"), resource(V1alpha1, NamespacedEvents, None));
    assert_eq!(parse("/v1/namespaces/shop/namespacedevents"), resource(V1, NamespacedEvents, Some("shop")));
    let object = |name: &str| Part::Object(name.to_owned());
    for (path, expected, by_prefix) in [
        ("/v1/events/x", object("x"), false),
        ("/v1/namespaces/shop/namespacedevents/x/", object("x"), false),
        ("/v1/watch/events/event-1", object("event-1"), true),
        ("/v1/watch/namespaces/shop/namespacedevents", Part::All, true),
        ("/v1/watch/namespaces/shop/namespacedevents/x y", object("x y"), true),
        ("/v1/events/x/status", Part::Below, false),
        ("/v1/watch/events/x/status", Part::Below, true),
        ("/v1/watch/events//x", Part::Below, true),
    ] {
        match parse(path) {
            Target::Resource { part, watch_prefix, .. } => {
                assert_eq!((part, watch_prefix), (expected, by_prefix), "{path}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    let unknown = [
        "/v1/pods",
        "/v1/namespaces/shop/events",
        "/v1/namespaces/shop",
        "/v1/namespaces//namespacedevents",
        "/v1/watch",
        "/v1/Events",
        "/v1//events",
        "/v1/namespaces/a/namespaces/b/namespacedevents",
    ];
    for path in unknown {
        assert_eq!(parse(path), Target::UnknownResource, "{path}");
    }
    for path in ["", "/", "/v1", "/v1/", "/v2/events", "x/v1/events", "/v1beta2/namespacedevents"] {
        assert_eq!(parse(path), Target::Path, "{path}");
    }
}

const ONE_WATCH: watch::Config = watch::Config {
    limits: watch::Limits { watches: 1, per_user: 1, per_namespace: 1, classes_per_user: 1 },
    frame_bytes: watch::MIN_FRAME_BYTES,
    replay: true,
};

struct Stage {
    router: Router,
    front_proxy: FrontProxy,
    reviewer: Arc<Reviewer>,
}

impl Stage {
    fn new() -> Self {
        let (front_proxy, reviewer) = (FrontProxy::new(), Reviewer::new(Verdict::Allow));
        let authenticator = Arc::new(Authenticator::default());
        authenticator.trust_front_proxy(front_proxy.trust(&[]));
        let retain = audit_stream_bus::Config { retain_bytes: 1 << 20, retain_age: std::time::Duration::MAX };
        let bus = Arc::new(Bus::new(retain, 1_000_000));
        let closing = watch::Closing::default();
        let router = Router {
            health: Arc::new(Health::new(Arc::clone(&authenticator))),
            authorizer: reviewer.authorizer(),
            documents: Documents::new(),
            watches: Watches::new(Arc::clone(&bus), ONE_WATCH, closing, WatchMetrics::default()).0,
            metrics: Arc::default(),
            authenticator,
            bus,
        };
        Self { router, front_proxy, reviewer }
    }

    async fn ask(&self, method: &str, uri: &str, headers: &[(&'static str, &str)]) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(uri).header("x-remote-user", "alice");
        request = request.extension(Exchange::detached());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        self.router.handle(&self.front_proxy.peer(), request).await
    }

    async fn status(&self, method: &str, uri: &str) -> u16 {
        self.ask(method, uri, &[]).await.status().as_u16()
    }
}

const SHOP: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents";

#[tokio::test]
async fn what_is_authorized_is_the_route() {
    let stage = Stage::new();
    let cases = [
        ("GET", format!("{SHOP}?watch=1"), "watch", Some("shop"), 200),
        ("GET", SHOP.replace("shop", "sh%6Fp") + "?watch=1", "watch", Some("shop"), 200),
        ("GET", SHOP.replace("/v1/", "/v1/watch/"), "watch", Some("shop"), 200),
        ("GET", SHOP.replace("/v1/", "/v1/watch/") + "/event-1", "watch", Some("shop"), 200),
        ("GET", SHOP.replace("/v1/", "/v1/watch/") + "/event-1/x", "watch", Some("shop"), 404),
        ("POST", SHOP.replace("/v1/", "/v1/watch/"), "watch", Some("shop"), 405),
        ("POST", SHOP.replace("/v1/", "/v1/watch/") + "/event-1", "watch", Some("shop"), 405),
        ("HEAD", SHOP.replace("/v1/", "/v1/watch/") + "/event-1", "watch", Some("shop"), 405),
        ("GET", format!("{SHOP}?watch=1&fieldSelector=metadata.name%3Devent-1&verbs=get"), "watch", Some("shop"), 200),
        ("HEAD", format!("{SHOP}?watch=1"), "watch", Some("shop"), 405),
        ("GET", SHOP.to_owned(), "list", Some("shop"), 405),
        ("GET", format!("{SHOP}/x?watch=1"), "get", Some("shop"), 405),
        ("POST", SHOP.to_owned(), "create", Some("shop"), 405),
        ("PUT", format!("{SHOP}/x"), "update", Some("shop"), 405),
        ("PATCH", format!("{SHOP}/x"), "patch", Some("shop"), 405),
        ("DELETE", format!("{SHOP}/x"), "delete", Some("shop"), 405),
        ("DELETE", SHOP.to_owned(), "deletecollection", Some("shop"), 405),
        ("GET", "/apis/audit.k8s.io/v1/namespacedevents?watch".to_owned(), "watch", None, 200),
    ];
    for (method, uri, verb, namespace, status) in cases {
        // A user of its own for each, so that no answer comes from the cache; dropping the answer frees the only slot.
        let answer = stage.ask(method, &uri, &[("x-remote-group", &format!("{method} {uri}"))]).await;
        assert_eq!(answer.status().as_u16(), status, "{method} {uri}");
        let asked = stage.reviewer.last().resource_attributes.expect("a resource");
        assert_eq!((asked.verb.as_deref(), asked.namespace.as_deref()), (Some(verb), namespace), "{method} {uri}");
        assert_eq!((asked.resource.as_deref(), asked.name), (Some("namespacedevents"), None), "{method} {uri}");
        assert_eq!((asked.field_selector, asked.label_selector), (None, None), "{method} {uri}");
    }
}

#[tokio::test]
async fn paths_that_are_not_resources() {
    let stage = Stage::new();
    for (method, path, status) in [
        ("GET", "/apis", 200),
        ("GET", "/apis/audit.k8s.io/v1", 200),
        ("GET", "/openapi/v3", 200),
        ("GET", "/version", 200),
        ("GET", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("DELETE", "/apis", 405),
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/apis/audit.k8s.io/v1/namespaces/shop/events?watch=1", 404),
        ("GET", "/%ff", 404),
    ] {
        assert_eq!(stage.status(method, path).await, status, "{method} {path}");
    }
    assert_eq!(stage.reviewer.last().non_resource_attributes.unwrap().path.as_deref(), Some("/nowhere"));
}

#[tokio::test]
async fn refusals_come_in_the_order_that_tells_least() {
    let stage = Stage::new();
    stage.reviewer.now(Verdict::Deny(""));
    // Forbidden before: not served, not acceptable, not understood.
    assert_eq!(stage.status("GET", SHOP).await, 403);
    assert_eq!(stage.status("GET", &format!("{SHOP}?watch=1&fieldSelector=x")).await, 403);
    assert_eq!(stage.status("GET", "/nowhere").await, 403);
    assert_eq!(stage.status("GET", "/livez").await, 200);
    let request = Request::builder().uri(SHOP).header("authorization", "Bearer x").body(()).unwrap();
    assert_eq!(stage.router.handle(&stranger(), request).await.status(), StatusCode::UNAUTHORIZED);
    stage.reviewer.now(Verdict::Fail);
    assert_eq!(stage.status("GET", "/metrics").await, 500);
}

#[tokio::test]
async fn there_are_no_more_watches_than_allowed() {
    let stage = Stage::new();
    let watch = format!("{SHOP}?watch=1");
    let first = stage.ask("GET", &watch, &[]).await;
    let second = stage.ask("GET", &watch, &[]).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 429));
    assert_eq!(second.headers()["retry-after"], "1");
    drop(first);
    assert_eq!(stage.status("GET", &watch).await, 200);
}

#[tokio::test]
async fn the_audit_id_comes_back_bounded_or_is_made() {
    let stage = Stage::new();
    let id = |response: Response<Body>| response.headers()["audit-id"].to_str().unwrap().to_owned();
    assert_eq!(id(stage.ask("GET", "/version", &[("audit-id", "abc")]).await), "abc");
    let long = "x".repeat(100);
    assert_eq!(id(stage.ask("GET", "/nowhere", &[("audit-id", &long)]).await), "x".repeat(64));
    assert_eq!(id(stage.ask("GET", "/version", &[]).await).len(), 36);
}

#[tokio::test]
async fn a_misspelt_filter_is_warned_about() {
    let stage = Stage::new();
    let warnings = async |query: &str| -> Vec<String> {
        let answer = stage.ask("GET", &format!("{SHOP}?watch=1&{query}"), &[]).await;
        answer.headers().get_all(WARNING).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        warnings("feildSelector=verb%3Dget").await,
        ["299 - \"unknown query parameter feildSelector was ignored\""]
    );
    assert_eq!(warnings("%22%0d%0a=x").await, ["299 - \"an unknown query parameter was ignored\""]);
    assert_eq!(warnings("a&b&c&d&e&f&g").await.len(), MAX_WARNINGS);
    assert_eq!(warnings("timeoutSeconds=5&pretty=true&verbs=get&group=dev&sinceSeconds=5").await, [""; 0]);
    // The path says which namespace; on the cluster's events it is a parameter.
    assert_eq!(warnings("namespace=bank").await, ["299 - \"unknown query parameter namespace was ignored\""]);
    let events = stage.ask("GET", "/apis/audit.k8s.io/v1/events?watch=1&namespace=bank", &[]).await;
    assert_eq!((events.status().as_u16(), events.headers().get(WARNING)), (200, None));
}

#[tokio::test]
async fn a_watch_that_cannot_be_is_refused() {
    let stage = Stage::new();
    let watch = format!("{SHOP}?watch=1");
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    assert_eq!(stage.ask("GET", &watch, &protobuf).await.status(), StatusCode::NOT_ACCEPTABLE);
    let websocket = [("upgrade", "websocket")];
    assert_eq!(stage.ask("GET", &watch, &websocket).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(stage.status("GET", &format!("{watch}&fieldSelector=sourceIPs%3D10.0.0.1")).await, 400);
    assert_eq!(stage.status("GET", &format!("{watch}&resourceVersion=x")).await, 422);
    assert_eq!(stage.status("GET", &format!("{watch}&labelSelector=%24")).await, 400);
    assert_eq!(stage.status("GET", &format!("{watch}&sinceSeconds=0")).await, 422);
    assert_eq!(stage.status("GET", &format!("{watch}&tailLines=1&resourceVersion=1")).await, 400);
}

#[tokio::test]
async fn a_replay_is_refused_where_it_is_turned_off() {
    let mut stage = Stage::new();
    let replays = [format!("{SHOP}?watch=1&sinceSeconds=5"), format!("{SHOP}?watch=1&tailLines=0")];
    for replay in &replays {
        assert_eq!(stage.status("GET", replay).await, 200, "{replay}");
    }
    let config = watch::Config { replay: false, ..ONE_WATCH };
    let closing = watch::Closing::default();
    stage.router.watches = Watches::new(Arc::clone(&stage.router.bus), config, closing, WatchMetrics::default()).0;
    for replay in &replays {
        assert_eq!(stage.status("GET", replay).await, 400, "{replay}");
    }
    assert_eq!(stage.status("GET", &format!("{SHOP}?watch=1&sinceSeconds=&tailLines=")).await, 200);
}

#[tokio::test]
async fn a_watch_by_name_selects_by_that_name() {
    let stage = Stage::new();
    let named = SHOP.replace("/v1/", "/v1/watch/") + "/event-7";
    let with = |selector: &str| format!("{named}?fieldSelector={selector}");
    for (uri, status) in [
        (named.clone(), 200),
        (with(""), 200),
        (with("metadata.name%3Devent-7,verb%3Dget"), 200),
        (with("metadata.name%3Devent-8"), 400),
        (with("metadata.name!%3Devent-7"), 400),
        (with("verb%3Dget"), 400),
    ] {
        assert_eq!(stage.status("GET", &uri).await, status, "{uri}");
    }
    // The name is a term among the others.
    let verbs = |count: usize| (0..count).map(|verb| verb.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(stage.status("GET", &format!("{named}?verbs={}", verbs(31))).await, 200);
    assert_eq!(stage.status("GET", &format!("{named}?verbs={}", verbs(32))).await, 400);
}

#[tokio::test]
async fn numbers_are_scraped() {
    let stage = Stage::new();
    stage.status("GET", "/apis/audit.k8s.io/v1/pods").await;
    let body = stage.ask("GET", "/metrics", &[]).await.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("audit_stream_refused_requests_total{code=\"404\"} 1\n"), "{text}");
    for untouched in [
        "audit_stream_bus_retained_bytes 0\n",
        "audit_stream_ingest_rejected_requests_total{reason=\"busy\"} 0\n",
        "audit_stream_watch_gaps_total{reason=\"lag\"} 0\n",
        "audit_stream_reviews_total{outcome=\"error\"} 0\n",
    ] {
        assert!(text.contains(untouched), "no {untouched} in {text}");
    }
}
