use http::StatusCode;
use http_body_util::{BodyExt, Empty};

use super::*;
use crate::metrics::WatchMetrics;
use crate::testing::{FrontProxy, Reviewer, Verdict, stranger};
use crate::view::Revealed;
use crate::watch;

/// What lives at a path of our group.
fn at(path: &str) -> Option<(Route, Option<String>)> {
    let path = format!("/apis/audit.k8s.io{path}");
    let RequestPath::Resource(asked) = RequestPath::of(&path) else { return None };
    let (route, part) = served(&path, &asked)?;
    Some((
        route,
        match part {
            Part::All => None,
            Part::Object(name) => Some(name.to_owned()),
        },
    ))
}

#[test]
fn what_lives_where() {
    use Resource::{Events, NamespacedEvents};
    use Version::{V1, V1alpha1, V1beta1};
    for (path, version, resource, namespace, name) in [
        ("/v1/events", V1, Events, None, None),
        ("/v1beta1/events/", V1beta1, Events, None, None),
        ("/v1alpha1/namespacedevents//", V1alpha1, NamespacedEvents, None, None),
        ("/v1/namespaces/shop/namespacedevents", V1, NamespacedEvents, Some("shop"), None),
        ("/v1/namespaces/status/namespacedevents", V1, NamespacedEvents, Some("status"), None),
        ("/v1/events/x", V1, Events, None, Some("x")),
        ("/v1/namespaces/shop/namespacedevents/x/", V1, NamespacedEvents, Some("shop"), Some("x")),
        ("/v1/watch/events/event-1", V1, Events, None, Some("event-1")),
        ("/v1/watch/namespaces/shop/namespacedevents", V1, NamespacedEvents, Some("shop"), None),
        ("/v1/watch/namespaces/shop/namespacedevents/x y", V1, NamespacedEvents, Some("shop"), Some("x y")),
    ] {
        let route = Route { version, resource, namespace: namespace.map(str::to_owned) };
        assert_eq!(at(path), Some((route, name.map(str::to_owned))), "{path}");
    }
    for path in [
        "",
        "/",
        "/v1",
        "/v1/",
        "/v2/events",
        "x/v1/events",
        "//v1/events",
        "/v1beta2/namespacedevents",
        "/v1/pods",
        "/v1/Events",
        "/v1//events",
        "/v1/events//x",
        "/v1/events/x/status",
        "/v1/proxy/events",
        "/v1/proxy/namespaces/shop/namespacedevents",
        "/v1/watch",
        "/v1/watch/watch/events",
        "/v1/watch/events/x/status",
        "/v1/watch/events//x",
        "/v1/namespaces",
        "/v1/namespaces/shop",
        "/v1/namespaces/shop/events",
        "/v1/namespaces/shop/status",
        "/v1/namespaces/shop/status/namespacedevents",
        "/v1/namespaces/shop//namespacedevents",
        "/v1/namespaces//namespacedevents",
        "/v1/namespaces//events",
        "/v1/namespaces/../events",
        "/v1/namespaces/../namespacedevents",
        "/v1/namespaces/SHOP/namespacedevents",
        "/v1/namespaces/sh\u{fffd}p/namespacedevents",
        "/v1/./events",
        "/v1/namespaces/a/namespaces/b/namespacedevents",
    ] {
        assert_eq!(at(path), None, "{path}");
    }
    for path in
        ["/api/audit.k8s.io/v1/events", "/api/v1/events", "//apis/audit.k8s.io/v1/events", "/apis/apps/v1/events"]
    {
        let RequestPath::Resource(asked) = RequestPath::of(path) else { panic!("{path}") };
        assert_eq!(served(path, &asked), None, "{path}");
    }
}

const ONE_WATCH: watch::Config = watch::Config {
    limits: watch::Limits { watches: 1, per_user: 1, per_namespace: 1, classes_per_user: 1 },
    frame_bytes: watch::MIN_FRAME_BYTES,
    replay: true,
    revealed: Revealed { user_uid: false, user_extra: false, source_ips: false, authorization_reason: false },
};

struct Stage {
    router: Router,
    front_proxy: FrontProxy,
    reviewer: Arc<Reviewer>,
    closing: watch::Closing,
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
            watches: Watches::new(Arc::clone(&bus), ONE_WATCH, closing.clone(), WatchMetrics::default()).0,
            metrics: Arc::default(),
            authenticator,
            bus,
        };
        Self { router, front_proxy, reviewer, closing }
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
        ("POST", SHOP.replace("/v1/", "/v1/watch/") + "/event-1/x", "watch", Some("shop"), 404),
        ("GET", SHOP.to_owned() + "/event-1/status", "get", Some("shop"), 404),
        ("GET", SHOP.replace("/shop/", "%2Fshop%2F") + "?watch=1", "watch", Some("shop"), 200),
        ("GET", SHOP.to_owned() + "/?watch=1", "watch", Some("shop"), 200),
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
        ("GET", "/readyz/ping", 200),
    ] {
        assert_eq!(stage.status(method, path).await, status, "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_not_ours_is_authorized_before_it_is_not_found() {
    let stage = Stage::new();
    let cases = [
        ("GET", "/apis/apps/v1/deployments?watch=1", "watch", ["apps", "v1", "deployments", "", ""]),
        ("GET", "/api/v1/namespaces/shop/pods/p/log", "get", ["", "v1", "pods", "log", "shop"]),
        ("GET", "/apis/audit.k8s.io/v2/events?watch=1", "watch", ["audit.k8s.io", "v2", "events", "", ""]),
        ("POST", "/apis/audit.k8s.io/v1/pods", "create", ["audit.k8s.io", "v1", "pods", "", ""]),
        (
            "GET",
            "/apis/audit.k8s.io/v1/namespaces/shop/events?watch=1",
            "watch",
            ["audit.k8s.io", "v1", "events", "", "shop"],
        ),
        (
            "GET",
            "/apis/audit.k8s.io/v1/namespaces//namespacedevents?watch=1",
            "watch",
            ["audit.k8s.io", "v1", "namespacedevents", "", ""],
        ),
        ("GET", "/apis/audit.k8s.io/v1/events//x?watch=1", "watch", ["audit.k8s.io", "v1", "events", "x", ""]),
        ("GET", "/apis/audit.k8s.io/v1/proxy/events/e/x", "proxy", ["audit.k8s.io", "v1", "events", "", ""]),
        ("GET", "//apis/audit.k8s.io/v1/events?watch=1", "watch", ["audit.k8s.io", "v1", "events", "", ""]),
        ("GET", "/apis/audit.k8s.io/v1/ev%ffents", "list", ["audit.k8s.io", "v1", "ev\u{fffd}ents", "", ""]),
        (
            "GET",
            "/apis/audit.k8s.io/v1/namespaces/shop/status?watch=1",
            "get",
            ["audit.k8s.io", "v1", "namespaces", "status", "shop"],
        ),
    ];
    for (method, uri, verb, expected) in cases {
        assert_eq!(stage.status(method, uri).await, 404, "{method} {uri}");
        let asked = stage.reviewer.last().resource_attributes.expect("a resource");
        let text = |text: Option<String>| text.unwrap_or_default();
        assert_eq!(text(asked.verb), verb, "{method} {uri}");
        let seen = [asked.group, asked.version, asked.resource, asked.subresource, asked.namespace].map(text);
        assert_eq!(seen, expected, "{method} {uri}");
        assert_eq!(asked.name, None, "{method} {uri}");
    }
    for (method, path, decoded) in [
        ("GET", "/nowhere", "/nowhere"),
        ("PUT", "/%ff%2F", "/\u{fffd}/"),
        ("GET", "/apis/audit.k8s.io/v1/watch", "/apis/audit.k8s.io/v1/watch"),
        ("GET", "/readyz/nonesuch", "/readyz/nonesuch"),
        ("GET", "/livez/", "/livez/"),
        ("GET", "//livez", "//livez"),
    ] {
        assert_eq!(stage.status(method, path).await, 404, "{method} {path}");
        let asked = stage.reviewer.last().non_resource_attributes.expect("a path");
        let expected = (Some(method.to_ascii_lowercase()), Some(decoded.to_owned()));
        assert_eq!((asked.verb, asked.path), expected);
    }
    stage.reviewer.now(Verdict::Deny(""));
    for (method, uri, ..) in cases {
        // Another user, so that no answer comes from the cache.
        let answer = stage.ask(method, uri, &[("x-remote-group", "strangers")]).await;
        assert_eq!(answer.status().as_u16(), 403, "{method} {uri}");
    }
}

#[tokio::test]
async fn a_broken_escape_is_refused_before_anything_else() {
    let stage = Stage::new();
    for path in ["/%zz", "/apis/audit.k8s.io/v1/events/%4", "/%"] {
        assert_eq!(stage.status("GET", path).await, 400, "{path}");
    }
    assert_eq!(stage.reviewer.asked(), 0);
}

#[tokio::test]
async fn health_as_a_whole_is_open_to_everybody_with_a_good_credential_or_none() {
    let stage = Stage::new();
    stage.reviewer.now(Verdict::Deny(""));
    let ask = async |path: &str, token: Option<&str>| {
        let mut request = Request::builder().uri(path);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        stage.router.handle(&stranger(), request.body(()).unwrap()).await.status().as_u16()
    };
    for path in ["/livez", "/readyz?verbose", "/healthz?exclude=ping"] {
        assert_eq!((ask(path, None).await, ask(path, Some("Bearer x")).await), (200, 401), "{path}");
        assert_eq!(stage.status("POST", path).await, 200, "{path}");
    }
    assert_eq!(stage.reviewer.asked(), 0);
    for path in ["/livez/ping", "/readyz/shutdown", "/livez/", "//livez"] {
        assert_eq!(ask(path, None).await, 403, "{path}");
    }
    stage.reviewer.now(Verdict::Allow);
    assert_eq!(stage.status("GET", "/readyz/shutdown").await, 200);
}

#[tokio::test]
async fn every_answer_has_an_audit_id_and_is_not_cached_unless_it_says_so() {
    let stage = Stage::new();
    for (method, path) in [
        ("GET", "/livez"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/apis/audit.k8s.io/v1"),
        ("GET", "/nowhere"),
        ("GET", "/%zz"),
        ("GET", "/openapi/v2"),
        ("POST", SHOP),
        ("GET", &format!("{SHOP}?watch=1")),
    ] {
        let answer = stage.ask(method, path, &[("audit-id", "abc")]).await;
        let headers = [CACHE_CONTROL, AUDIT_ID].map(|name| answer.headers()[name].to_str().unwrap().to_owned());
        assert_eq!(headers, ["no-cache, private", "abc"], "{method} {path}");
    }
    let etag = stage.ask("GET", "/openapi/v2", &[]).await.headers()["etag"].to_str().unwrap().to_owned();
    let held = stage.ask("GET", "/openapi/v2", &[("if-none-match", &etag), ("audit-id", "abc")]).await;
    assert_eq!(
        (held.status(), &held.headers()[AUDIT_ID]),
        (StatusCode::NOT_MODIFIED, &HeaderValue::from_static("abc"))
    );
    assert_eq!(held.headers()["vary"], "Accept");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let answer = stage.ask("GET", "/apis", &[("accept", aggregated)]).await;
    assert_eq!(answer.headers()[CACHE_CONTROL], "public");
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
async fn a_server_on_its_way_out_opens_no_watch_and_answers_the_rest() {
    let stage = Stage::new();
    stage.closing.begin(std::time::Duration::ZERO);
    let answer = stage.ask("GET", &format!("{SHOP}?watch=1"), &[]).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &HeaderValue::from_static("1")));
    for path in ["/apis", "/livez"] {
        assert_eq!(stage.status("GET", path).await, 200, "{path}");
    }
}

#[tokio::test]
async fn who_asks_too_much_is_told_when_to_come_back() {
    let mut stage = Stage::new();
    stage.router.authorizer = stage.reviewer.authorizer_with(1);
    assert_eq!(stage.status("GET", "/metrics").await, 200);
    let answer = stage.ask("GET", "/version", &[]).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &HeaderValue::from_static("1")));
    // What is known is answered.
    assert_eq!(stage.status("GET", "/metrics").await, 200);
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
