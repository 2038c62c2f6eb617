//! Every way in which the API says no: the exact `Status`, its headers, and what is counted.

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::{Client, Protocol, ProxiedUser, Response};
use audit_stream_testplane::pki::Authority;
use http::Method;

use crate::stage::{ARRIVAL, EVENTS, PROTOCOLS, Stage, assert_refused, in_namespace, namespaced, read_until, status};

const V1: &str = "/apis/audit.k8s.io/v1";
const METHOD_NOT_ALLOWED: &str = "the server does not allow this method on the requested resource";

/// The answer to a watch that is not to be served.
async fn refused(user: &ProxiedUser, path: &str) -> Result<Response> {
    user.try_watch(path).await?.err().with_context(|| format!("{path} was served"))
}

fn not_found() -> String {
    status(404, "NotFound", "the server could not find the requested resource", "{}")
}

fn bad_request(message: &str) -> String {
    status(400, "BadRequest", message, "")
}

/// A mistake in an option of the query, in upstream's words.
fn invalid(field: &str, reason: &str, message: &str) -> String {
    all_invalid(&[(field, reason, message)])
}

/// Several mistakes, which upstream tells together.
fn all_invalid(mistakes: &[(&str, &str, &str)]) -> String {
    let causes: Vec<_> = mistakes
        .iter()
        .map(|(field, reason, message)| {
            let message = serde_json::json!(message);
            format!(r#"{{"reason":"{reason}","message":{message},"field":"{field}"}}"#)
        })
        .collect();
    let details = format!(r#"{{"group":"meta.k8s.io","kind":"ListOptions","causes":[{}]}}"#, causes.join(","));
    let told: Vec<_> = mistakes.iter().map(|(field, _, message)| format!("{field}: {message}")).collect();
    let told = if told.len() == 1 { told.concat() } else { format!("[{}]", told.join(", ")) };
    status(422, "Invalid", &format!("ListOptions.meta.k8s.io \"\" is invalid: {told}"), &details)
}

#[tokio::test]
async fn a_resource_that_can_only_be_watched_says_so() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let paths = [
        (format!("{V1}/events"), "events"),
        (format!("{V1}/namespacedevents"), "namespacedevents"),
        (format!("{V1}/namespaces/shop/namespacedevents"), "namespacedevents"),
        ("/apis/audit.k8s.io/v1alpha1/events".to_owned(), "events"),
    ];
    for (path, resource) in paths {
        let named = format!("{path}/event-1");
        let named_by_prefix = named.replace("/v1", "/v1/watch").replace("/watchalpha1", "alpha1/watch");
        let requests = [
            (Method::GET, path.clone(), Some("list")),
            (Method::GET, format!("{path}?watch=false"), Some("list")),
            (Method::GET, named.clone(), Some("get")),
            // A name in the path wins: this is no watch.
            (Method::GET, format!("{named}?watch=true"), Some("get")),
            (Method::POST, path.clone(), None),
            (Method::PUT, named.clone(), None),
            (Method::PATCH, named.clone(), None),
            (Method::DELETE, named, None),
            (Method::DELETE, path.clone(), None),
            (Method::OPTIONS, path.clone(), None),
            // The deprecated prefix makes any method a watch for the authorizer, and only GET one for the server.
            (Method::POST, path.replace("/v1", "/v1/watch").replace("/watchalpha1", "alpha1/watch"), None),
            (Method::PUT, named_by_prefix, None),
        ];
        for (method, path, verb) in requests {
            let body = if method == Method::GET { "" } else { "{}" };
            let answer = admin.send(method.clone(), &path, body).await?;
            let expected = match verb {
                Some(verb) => {
                    let message = format!("{verb} is not supported on resources of kind \"{resource}.audit.k8s.io\"");
                    let details = format!(r#"{{"group":"audit.k8s.io","kind":"{resource}"}}"#);
                    status(405, "MethodNotAllowed", &message, &details)
                }
                None => status(405, "MethodNotAllowed", METHOD_NOT_ALLOWED, "{}"),
            };
            assert_refused(&answer, 405, &expected).with_context(|| format!("{method} {path}"))?;
            assert_eq!(answer.header("allow"), Some("GET"), "{method} {path}");
        }
    }
    assert_eq!(stage.metric("audit_stream_refused_requests_total", &[("code", "405")]).await?, 48.0);
    Ok(())
}

#[tokio::test]
async fn head_opens_no_watch() -> Result<()> {
    let stage = Stage::start().await?;
    for protocol in PROTOCOLS {
        let admin = stage.proxy(protocol).await?.user("admin").groups(["system:masters"]);
        let answer = admin.send(Method::HEAD, EVENTS, "").await?;
        assert_eq!((answer.status, &*answer.body, answer.header("allow")), (405, "", Some("GET")));
        assert_eq!(stage.metric("audit_stream_watch_open", &[]).await?, 0.0);
        for path in ["/readyz", "/apis", "/openapi/v2"] {
            let (head, get) = (admin.send(Method::HEAD, path, "").await?, admin.get(path).await?);
            assert_eq!((head.status, &*head.body), (200, ""), "{path} over {protocol:?}");
            assert_eq!(head.header("content-length"), Some(&*get.body.len().to_string()), "{path} over {protocol:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    for path in [
        "/apis/audit.k8s.io/v1/pods?watch=true",
        "/apis/audit.k8s.io/v1/Events?watch=true",
        "/apis/audit.k8s.io/v1/namespaces/shop/events?watch=true",
        "/apis/audit.k8s.io/v1/namespaces/shop?watch=true",
        "/apis/audit.k8s.io/v1/namespaces//namespacedevents?watch=true",
        "/apis/audit.k8s.io/v1/watch/namespaces/shop/events",
        "/apis/audit.k8s.io/v1/watch",
        "/apis/audit.k8s.io/v1/watch/events/event-1/status",
        "/apis/audit.k8s.io/v1/watch/namespaces/shop/namespacedevents/event-1/x?watch=true",
        "/apis/audit.k8s.io/v1/watch/namespaces/shop/events/event-1",
        "/apis/audit.k8s.io/v1/proxy/events?watch=true",
        "/apis/audit.k8s.io/v1/events/event-1/status",
        "/apis/audit.k8s.io/v1/namespaces/SHOP/namespacedevents?watch=true",
        "/apis/audit.k8s.io/v2/events?watch=true",
        "/apis/audit.k8s.iox/v1/events?watch=true",
        "/apis/apps/v1/deployments?watch=true",
        "/api/v1/events?watch=true",
        "/apis/audit.k8s.io/v2",
        "/",
        "/nowhere",
        "/readyz/nowhere",
        "/openapi/v3/apis/audit.k8s.io/v2",
    ] {
        assert_refused(&admin.get(path).await?, 404, &not_found()).context(path)?;
    }
    // As written, which no front proxy would.
    let identity = stage.front_proxy_ca.client("front-proxy-client", &[]);
    let client = Client::connect(stage.api().identity(&identity)).await?;
    let masters = [("X-Remote-User", "admin"), ("X-Remote-Group", "system:masters")];
    for path in [
        "/apis/audit.k8s.io/v1/namespaces/shop%2Fevents?watch=true",
        "/apis/audit.k8s.io/v1/namespaces/../events?watch=true",
        "/apis/audit.k8s.io/v1/./events?watch=true",
        "//apis/audit.k8s.io/v1/events?watch=true",
        "/apis/audit.k8s.io/v1/%ff?watch=true",
    ] {
        assert_refused(&client.get(path, &masters).await?, 404, &not_found()).context(path)?;
    }
    let broken = bad_request("the path has a percent sign without two hexadecimal digits behind it");
    for path in ["/%zz", "/apis/audit.k8s.io/v1/events/%4"] {
        assert_refused(&client.get(path, &[]).await?, 400, &broken).context(path)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_credential_is_unauthorized() -> Result<()> {
    let stage = Stage::start().await?;
    let expected = status(401, "Unauthorized", "Unauthorized", "");
    for protocol in PROTOCOLS {
        let anybody = Client::connect(stage.api().protocol(protocol)).await?;
        for token in ["Bearer nobodys", "Bearer ", "Basic YTpi", "nonsense"] {
            let answer = anybody.get(EVENTS, &[("Authorization", token)]).await?;
            assert_refused(&answer, 401, &expected).context(token)?;
        }
        assert_eq!(anybody.get("/livez", &[]).await?.status, 200);
        let strangers = [
            Authority::new("front-proxy").client("front-proxy-client", &[]),
            stage.front_proxy_ca.client("front-proxy-client2", &["front-proxy-client"]),
            stage.front_proxy_ca.server("front-proxy-client", &["front-proxy-client"]),
            stage.webhook_ca.client("front-proxy-client", &[]),
        ];
        for identity in &strangers {
            let stranger = stage.proxy_showing(identity, protocol).await?.user("admin").groups(["system:masters"]);
            assert_refused(&refused(&stranger, EVENTS).await?, 401, &expected)?;
            // Health is everybody's who shows no credential or a good one, as upstream.
            assert_refused(&stranger.get("/livez").await?, 401, &expected)?;
        }
    }
    assert!(stage.reviewer.reviews().is_empty(), "{:?}", stage.reviewer.reviews());
    Ok(())
}

#[tokio::test]
async fn forbidden_says_who_and_what_and_nothing_else_is_told_before() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    let alice = stage.user("alice").await?;
    let group = r#"API group \"audit.k8s.io\""#.replace('\\', "");
    let cases = [
        ("GET", namespaced("bank"), "watch", "namespacedevents", "in the namespace \"bank\""),
        // A right to watch is none to anything else.
        ("GET", namespaced("shop").replace("?watch=true", ""), "list", "namespacedevents", "in the namespace \"shop\""),
        ("GET", "/apis/audit.k8s.io/v1/namespacedevents?watch=1".into(), "watch", "namespacedevents", ""),
        ("GET", EVENTS.to_owned(), "watch", "events", ""),
        ("GET", format!("{EVENTS}&resourceVersion=x&fieldSelector=x"), "watch", "events", ""),
        ("POST", format!("{V1}/events"), "create", "events", ""),
        ("DELETE", format!("{V1}/events"), "deletecollection", "events", ""),
    ];
    for (method, path, verb, resource, place) in cases {
        let answer = alice.send(method.parse()?, &path, "").await?;
        let place = if place.is_empty() { "at the cluster scope" } else { place };
        let message = format!(
            "{resource}.audit.k8s.io is forbidden: User \"alice\" cannot {verb} resource \"{resource}\" in {group} {place}"
        );
        let details = format!(r#"{{"group":"audit.k8s.io","kind":"{resource}"}}"#);
        assert_refused(&answer, 403, &status(403, "Forbidden", &message, &details)).context(path)?;
    }
    // What does not exist is told to nobody who may not ask.
    let cases = [
        ("GET", format!("{V1}/events/event-1?watch=1"), "get", ["audit.k8s.io", "events", "", "event-1"], ""),
        ("GET", format!("{V1}/watch/events/event-1"), "watch", ["audit.k8s.io", "events", "", "event-1"], ""),
        (
            "PUT",
            format!("{V1}/namespaces/shop/pods/p/status"),
            "update",
            ["audit.k8s.io", "pods", "status", "p"],
            "shop",
        ),
        ("GET", "/apis/audit.k8s.io/v2/events?watch=1".to_owned(), "watch", ["audit.k8s.io", "events", "", ""], ""),
        ("GET", format!("{V1}/namespaces/shop/events?watch=1"), "watch", ["audit.k8s.io", "events", "", ""], "shop"),
        ("GET", format!("{V1}/proxy/events"), "proxy", ["audit.k8s.io", "events", "", ""], ""),
        ("GET", "/api/v1/namespaces/shop/pods".to_owned(), "list", ["", "pods", "", ""], "shop"),
    ];
    for (method, path, verb, [api, resource, subresource, name], namespace) in cases {
        let answer = alice.send(method.parse()?, &path, "").await?;
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let about = if api.is_empty() { resource.to_owned() } else { format!("{resource}.{api}") };
        let named = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let part = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        let message = format!(
            "{about}{named} is forbidden: User \"alice\" cannot {verb} resource \"{part}\" in API group \"{api}\" {place}"
        );
        let details: Vec<_> = [("name", name), ("group", api), ("kind", resource)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!("\"{key}\":\"{value}\""))
            .collect();
        let details = format!("{{{}}}", details.join(","));
        assert_refused(&answer, 403, &status(403, "Forbidden", &message, &details)).context(path)?;
    }
    for (user, path) in [("alice", "/metrics"), ("alice", "/nowhere"), ("<b>", "/metrics/<i>&")] {
        let answer = stage.user(user).await?.get(path).await?;
        let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let message = format!("forbidden: User \"{}\" cannot get path \"{}\"", escaped(user), escaped(path));
        assert_refused(&answer, 403, &status(403, "Forbidden", &message, "{}")).context(path)?;
    }
    Ok(())
}

#[tokio::test]
async fn only_json_is_spoken() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let protobuf = admin.clone().replacing("Accept", "application/vnd.kubernetes.protobuf");
    let message = "only the following media types are accepted: application/json;stream=watch";
    let expected = status(406, "NotAcceptable", message, "");
    assert_refused(&refused(&protobuf, EVENTS).await?, 406, &expected)?;
    let message = "only the following media types are accepted: application/json";
    let expected = status(406, "NotAcceptable", message, "");
    for path in ["/apis", V1, "/openapi/v2"] {
        assert_refused(&protobuf.get(path).await?, 406, &expected).context(path)?;
    }
    let both = admin.replacing("Accept", "application/vnd.kubernetes.protobuf;stream=watch, application/json");
    assert_eq!(both.watch(EVENTS).await?.headers()["content-type"], "application/json");
    Ok(())
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_refused() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let fields = "metadata.name, metadata.namespace, auditID, level, stage, verb, user.username, user.groups, \
                  impersonatedUser.username, userAgent, sourceIPs, objectRef.resource, objectRef.apiGroup, \
                  objectRef.apiVersion, objectRef.namespace, objectRef.name, objectRef.subresource, objectRef.uid, \
                  responseStatus.code, annotations.authorization.k8s.io/decision, requestURI";
    let unknown = bad_request(&format!("field label not supported: spec.nodeName; supported are {fields}"));
    let number =
        |value: &str| format!("Invalid value: \"{value}\": strconv.ParseUint: parsing \"{value}\": invalid syntax");
    let label = "unable to parse requirement: <nil>: Invalid value: \"$\": name part must consist of alphanumeric \
                 characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or \
                 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let out_of_range =
        |field: &str, message: &str| invalid(field, "FieldValueInvalid", &format!("Invalid value: {message}"));
    let beside =
        |parameter: &str| bad_request(&format!("at most one of `{parameter}` or `resourceVersion` may be specified"));
    let too_many: String = (0..16).map(|n| format!("&username={n}&group={n}")).collect();
    let too_many = format!("fieldSelector=verb%3Dget{too_many}");
    let many = "a watch selects by at most 32 terms and values, all selectors and parameters together";
    let cases = [
        ("fieldSelector=verb", 400, bad_request("invalid selector: 'verb'; can't understand 'verb'")),
        ("fieldSelector=verb%3Da,b", 400, bad_request("invalid selector: 'verb=a,b'; can't understand 'b'")),
        ("fieldSelector=spec.nodeName%3Dx", 400, unknown),
        ("resourceVersion=abc", 422, invalid("resourceVersion", "FieldValueInvalid", &number("abc"))),
        (
            "resourceVersion=18446744073709551616",
            422,
            invalid(
                "resourceVersion",
                "FieldValueInvalid",
                "Invalid value: \"18446744073709551616\": strconv.ParseUint: parsing \"18446744073709551616\": value out of range",
            ),
        ),
        ("resourceVersion=-1", 422, invalid("resourceVersion", "FieldValueInvalid", &number("-1"))),
        ("timeoutSeconds=x", 400, bad_request("timeoutSeconds: \"x\" is not a whole number of seconds")),
        ("fieldSelector=verb%3Da%3Db", 400, bad_request("invalid field selector: unescaped character in value: 61")),
        ("labelSelector=app%3Da,%24", 400, bad_request(label)),
        ("labelSelector=(app)", 400, bad_request("found '(', expected: !, identifier, or 'end of string'")),
        ("labelSelector=app%3D(", 400, bad_request("unable to parse requirement: found '(', expected: identifier")),
        ("sinceSeconds=x", 400, bad_request("sinceSeconds: \"x\" is not a whole number of seconds")),
        ("tailLines=x", 400, bad_request("tailLines: \"x\" is not a whole number")),
        ("sinceSeconds=0", 422, out_of_range("sinceSeconds", "0: must be greater than 0")),
        ("tailLines=-1", 422, out_of_range("tailLines", "-1: must be greater than or equal to 0")),
        ("sinceSeconds=60&resourceVersion=0", 400, beside("sinceSeconds")),
        ("tailLines=10&resourceVersion=7", 400, beside("tailLines")),
        (&too_many, 400, bad_request(many)),
    ];
    for (query, code, expected) in cases {
        let refusal = refused(&admin, &format!("{EVENTS}&{query}")).await?;
        assert_refused(&refusal, code, &expected).with_context(|| query.to_owned())?;
    }
    let matching = "resourceVersionMatch";
    let forbidden = "FieldValueForbidden";
    let companion =
        (matching, forbidden, "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    let alone = (
        matching,
        forbidden,
        "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
    );
    let page = (matching, forbidden, "Forbidden: resourceVersionMatch is forbidden when continue is provided");
    let other =
        (matching, "FieldValueNotSupported", "Unsupported value: \"Exact\": supported values: \"NotOlderThan\"");
    let place = number("x");
    let place = ("resourceVersion", "FieldValueInvalid", &*place);
    for (query, mistakes) in [
        ("sendInitialEvents=true", vec![companion]),
        ("resourceVersionMatch=NotOlderThan", vec![alone]),
        ("sendInitialEvents=true&resourceVersionMatch=Exact", vec![companion, other]),
        ("resourceVersionMatch=Exact&continue=x&resourceVersion=x", vec![alone, other, page, place]),
    ] {
        let expected = all_invalid(&mistakes);
        assert_refused(&refused(&admin, &format!("{EVENTS}&{query}")).await?, 422, &expected).context(query)?;
    }
    // Upstream minds a page only beside a match.
    admin.watch(&format!("{EVENTS}&continue=x")).await?;
    // What the reader's view hides cannot be guessed by asking for it; the cluster's reader sees it.
    let withheld = "field label not supported: sourceIPs is withheld from readers of namespacedevents";
    let selector = "&fieldSelector=verb%3Dget,sourceIPs%3D10.0.0.7";
    let refusal = refused(&admin, &(namespaced("shop") + selector)).await?;
    assert_refused(&refusal, 400, &bad_request(withheld))?;
    admin.watch(&format!("{EVENTS}{selector}")).await?;
    Ok(())
}

#[tokio::test]
async fn a_name_in_the_path_and_another_in_the_selector_are_refused() -> Result<()> {
    let stage = Stage::start().await?;
    let admin = stage.admin().await?;
    let expected = bad_request("fieldSelector metadata.name doesn't match requested name");
    for collection in ["events", "namespaces/shop/namespacedevents"] {
        for selector in ["metadata.name%3Devent-2", "metadata.name!%3Devent-1", "verb%3Dget"] {
            let path = format!("{V1}/watch/{collection}/event-1?fieldSelector={selector}");
            assert_refused(&refused(&admin, &path).await?, 400, &expected).context(path)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_that_is_turned_off_is_refused_by_name() -> Result<()> {
    let stage = Stage::with(|config| config.watch.replay = false).await?;
    let (admin, sender) = (stage.admin().await?, stage.sender().await?);
    let expected = bad_request("sinceSeconds and tailLines are turned off on this server (--replay=false)");
    for query in ["sinceSeconds=60", "tailLines=0", "sinceSeconds=60&tailLines=5"] {
        assert_refused(&refused(&admin, &format!("{EVENTS}&{query}")).await?, 400, &expected).context(query)?;
    }
    let mut watch = admin.watch(&format!("{EVENTS}&sinceSeconds=")).await?;
    sender.send(in_namespace("shop", "a"));
    sender.flush().await?;
    read_until(&mut watch, "a").await?;
    Ok(())
}

#[tokio::test]
async fn a_websocket_is_refused() -> Result<()> {
    let stage = Stage::start().await?;
    let upgrading = stage.proxy(Protocol::Http1).await?.user("admin").groups(["system:masters"]);
    let upgrading = upgrading.header("Connection", "Upgrade").header("Upgrade", "websocket");
    let upgrading =
        upgrading.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let message = "watching over a websocket is not supported; use a plain GET";
    assert_refused(&refused(&upgrading, EVENTS).await?, 400, &bad_request(message))
}

#[tokio::test]
async fn one_watch_too_many_is_told_when_to_come_back() -> Result<()> {
    let stage = Stage::with(|config| config.watch.limits.watches = 2).await?;
    let (admin, sender) = (stage.admin().await?, stage.sender().await?);
    let (mut first, second) = (admin.watch(EVENTS).await?, admin.watch(EVENTS).await?);
    let refusal = refused(&admin, EVENTS).await?;
    let message = "too many open watches, please try again later (--max-watches)";
    let expected = status(429, "TooManyRequests", message, r#"{"retryAfterSeconds":1}"#);
    assert_refused(&refusal, 429, &expected)?;
    assert_eq!(refusal.header("retry-after"), Some("1"));

    // Those that are open go on, everything else is served, and a place that becomes free is given away.
    sender.send(in_namespace("shop", "a"));
    sender.flush().await?;
    read_until(&mut first, "a").await?;
    assert_eq!(admin.get(V1).await?.status, 200);
    drop(second);
    stage.until_metric("audit_stream_watch_open", &[], 1.0).await?;
    admin.watch(EVENTS).await?;
    Ok(())
}

#[tokio::test]
async fn a_reviewer_that_fails_means_no() -> Result<()> {
    let stage = Stage::start().await?;
    let alice = stage.reader("alice", "shop").await?;
    let message = "Internal error occurred: the request could not be authorized, because kube-apiserver did not answer \
                   a SubjectAccessReview";
    let expected = status(500, "InternalError", message, "");
    for code in [500, 503, 429, 404, 401] {
        stage.reviewer.fail_with(code);
        assert_refused(&refused(&alice, &namespaced("shop")).await?, 500, &expected).context(code)?;
    }
    stage.reviewer.hang();
    assert_refused(&refused(&alice, &namespaced("shop")).await?, 500, &expected)?;
    assert_eq!(stage.metric("audit_stream_reviews_total", &[("outcome", "error")]).await?, 6.0);
    // An error is not remembered.
    stage.reviewer.recover();
    alice.watch(&namespaced("shop")).await?;
    Ok(())
}

#[tokio::test]
async fn discovery_needs_no_reviewer() -> Result<()> {
    let stage = Stage::start().await?;
    stage.reviewer.hang();
    let aggregator = stage.proxy(Protocol::Http2).await?.component("system:kube-aggregator").groups(["system:masters"]);
    for path in ["/apis", "/apis/audit.k8s.io", V1, "/openapi/v2", "/openapi/v3", "/version", "/metrics"] {
        let answer = tokio::time::timeout(ARRIVAL, aggregator.get(path)).await??;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
    }
    let anybody = Client::connect(stage.api()).await?;
    for path in ["/readyz", "/livez", "/healthz", "/readyz?verbose"] {
        assert_eq!(anybody.get(path, &[]).await?.status, 200, "{path}");
    }
    assert!(stage.reviewer.reviews().is_empty(), "{:?}", stage.reviewer.reviews());
    Ok(())
}
