//! Golden rows, one for each rule, and properties against an oracle: `RequestInfo`, walked as upstream walks.
//! What kube-apiserver writes for such requests was seen on 1.37.1.

use audit_stream_api::audit::ObjectReference;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// `objectRef` as its resource, API group, namespace and name; empty means absent.
type Reference<'a> = (&'a str, &'a str, &'a str, &'a str);

fn event<'a>(uri: &'a str, verb: &'a str, reference: Option<Reference<'a>>) -> Event<'a> {
    let field = |text: &'a str| (!text.is_empty()).then_some(Cow::Borrowed(text));
    let object_ref = reference.map(|(resource, group, namespace, name)| ObjectReference {
        resource: field(resource),
        api_group: field(group),
        namespace: field(namespace),
        name: field(name),
        ..ObjectReference::default()
    });
    Event { request_uri: uri.into(), verb: verb.into(), object_ref, ..Event::default() }
}

// === Golden rows ===

const SHOP: Attribution<'_> = Attribution::Namespace("shop");
const NOWHERE: Attribution<'_> = Attribution::ClusterScoped;

const NOT_A_PATH: Attribution<'_> = Attribution::Disputed(Dispute::NotAPath);
const UNDECODABLE: Attribution<'_> = Attribution::Disputed(Dispute::Undecodable);
const UNCONFIRMED: Attribution<'_> = Attribution::Disputed(Dispute::ObjectRefAbsent);
const OTHER_RESOURCE: Attribution<'_> = Attribution::Disputed(Dispute::ResourceDiffers);
const NOT_IN_PATH: Attribution<'_> = Attribution::Disputed(Dispute::NamespaceNotInPath);
const OTHER_NAMESPACE: Attribution<'_> = Attribution::Disputed(Dispute::NamespaceDiffers);
const NOT_A_LABEL: Attribution<'_> = Attribution::Disputed(Dispute::NotALabel);

const fn pods(namespace: &str) -> Option<Reference<'_>> {
    Some(("pods", "", namespace, "p"))
}

const fn namespaces<'a>(namespace: &'a str, name: &'a str) -> Option<Reference<'a>> {
    Some(("namespaces", "", namespace, name))
}

/// requestURI, verb, objectRef, where it belongs, why.
type Row = (&'static str, &'static str, Option<Reference<'static>>, Attribution<'static>, &'static str);

fn check(rows: &[Row]) {
    for (uri, verb, reference, expected, why) in rows {
        assert_eq!(attribute(&event(uri, verb, *reference)), *expected, "{verb} {uri} {reference:?}: {why}");
    }
}

#[test]
fn a_request_in_a_namespace_belongs_there() {
    let deployments = Some(("deployments", "apps", "shop", "web"));
    check(&[
        ("/api/v1/namespaces/shop/pods", "list", Some(("pods", "", "shop", "")), SHOP, "core group"),
        ("/api/v1/namespaces/shop/pods/p?pretty=1?x", "get", pods("shop"), SHOP, "cut at the first ?"),
        ("/apis/apps/v1/namespaces/shop/deployments/web", "get", deployments, SHOP, "named group"),
        ("/api/v1/namespaces/shop/pods/p/log", "get", pods("shop"), SHOP, "subresource"),
        ("/api/v1/namespaces/shop/pods", "create", Some(("pods", "", "shop", "")), SHOP, "403 and 401 alike"),
        ("/api/v1/watch/namespaces/shop/pods", "watch", pods("shop"), SHOP, "deprecated prefix"),
        ("/api/v1/proxy/namespaces/shop/pods/p/x/y", "proxy", pods("shop"), SHOP, "deprecated prefix"),
        ("/api/v1/namespaces/shop/pods/p/", "get", pods("shop"), SHOP, "slashes at the end do not count"),
        ("//api/v1/namespaces/shop/pods/p", "get", pods("shop"), SHOP, "nor at the start: no host, a path"),
        ("/api/v1/namespaces/shop//p", "get", Some(("", "", "shop", "p")), SHOP, "resource is empty, namespace is not"),
        ("/api/v1/namespaces/shop/../pods", "get", Some(("..", "", "shop", "pods")), SHOP, "dots are a name"),
        ("/api/v1/namespaces/shop/pods/p", "get", Some(("", "", "shop", "")), SHOP, "resource cannot be compared"),
    ]);
}

#[test]
fn the_path_is_decoded_exactly_once() {
    let named = |namespace| Some(("pods", "", namespace, "p"));
    check(&[
        ("/api/v1/namespaces/sh%6Fp/pods/p", "get", pods("shop"), SHOP, "served as shop"),
        ("/api/v1/names%70aces/shop/pods/p", "get", pods("shop"), SHOP, "keywords too"),
        ("/api/v1/namespaces%2Fshop%2fpods/p", "get", pods("shop"), SHOP, "an encoded slash separates"),
        ("/api/v1/namespaces/sh%256Fp/pods/p", "get", named("sh%6Fp"), NOT_A_LABEL, "not twice"),
        ("/api/v1/namespaces/sh%256Fp/pods/p", "get", pods("shop"), OTHER_NAMESPACE, "not twice"),
        ("/api/v1/namespaces/shop%3F/pods/p", "get", named("shop?"), NOT_A_LABEL, "cut before decoding"),
        ("/api/v1/namespaces/sh+p/pods/p", "get", named("sh p"), OTHER_NAMESPACE, "+ is no space"),
        ("/api/v1/namespaces/shop/pods/p%", "get", pods("shop"), UNDECODABLE, "no digit"),
        ("/api/v1/namespaces/shop/pods/p%4", "get", pods("shop"), UNDECODABLE, "one digit"),
        ("/api/v1/namespaces/shop/pods/%zz", "get", pods("shop"), UNDECODABLE, "wrong digits"),
        ("/api/v1/namespaces/shop/pods/%+1", "get", pods("shop"), UNDECODABLE, "a sign is no digit"),
        ("/api/v1/namespaces/shop/pods/p?x=%zz", "get", pods("shop"), SHOP, "the query is not the path"),
        ("/api/v1/namespaces/shop/pods/%ff", "get", pods("shop"), SHOP, "or who names an object so would hide"),
        ("/api/v1/namespaces/shop/pods/p/%ff", "get", pods("shop"), SHOP, "a subresource too"),
        ("/api/v1/namespaces/sh%ffop/pods/p", "get", named("sh\u{fffd}op"), NOT_A_LABEL, "no namespace is called so"),
        ("/api/v1/namespaces/sh%ffop/pods/p", "get", pods("shop"), OTHER_NAMESPACE, "and it is not left out"),
        ("/api/v1/namespaces/shop%ff/pods/p", "get", pods("shop"), OTHER_NAMESPACE, "nor at the end"),
        ("/api/v1/namespaces/shop/po%ffds/p", "get", pods("shop"), OTHER_RESOURCE, "nor in a resource"),
        ("/metrics/%ff", "get", None, NOWHERE, "nobody's"),
        ("/api/v1/namespaces/shop/pods/%C3%A9", "get", pods("shop"), SHOP, "UTF-8 in another place is no matter"),
    ]);
}

#[test]
fn what_follows_a_proxy_subresource_is_ignored() {
    let node = Some(("nodes", "", "", "n"));
    let clusters = Some(("clusters", "karmada.io", "", "c"));
    check(&[
        ("/api/v1/namespaces/shop/pods/p/proxy/namespaces/victim/pods", "get", pods("shop"), SHOP, "it is the pod's"),
        ("/api/v1/namespaces/shop/pods/p/proxy/../../../victim/pods", "get", pods("shop"), SHOP, "no cleaning"),
        ("/api/v1/namespaces/shop/pods/p/proxy/%ff/a%00b", "get", pods("shop"), SHOP, "or who adds %ff would hide"),
        ("/api/v1/namespaces/shop/pods/p/proxy/%ff", "get", pods("shop"), SHOP, "also first"),
        ("/apis/x.io/v1/watch/namespaces/shop/pods/p/proxy/%ff", "get", pods("shop"), SHOP, "also in the longest form"),
        ("/api/v1/namespaces/shop/pods/p/proxy%ff", "get", pods("shop"), SHOP, "whatever it is"),
        ("/api/v1/namespaces/shop/pods/p/proxy/%z", "get", pods("shop"), UNDECODABLE, "Go refuses it"),
        ("/api/v1/nodes/n/proxy/api/v1/namespaces/shop/pods/p", "get", node, NOWHERE, "the node's"),
        ("/apis/karmada.io/v1/clusters/c/proxy/api/v1/namespaces/shop", "get", clusters, NOWHERE, "another cluster's"),
    ]);
}

#[test]
fn a_request_on_a_namespace_belongs_to_it() {
    let shop = namespaces("shop", "shop");
    let bus = Some(("namespaces", "servicebus.azure", "shop", "shop"));
    check(&[
        ("/api/v1/namespaces/shop", "get", shop, SHOP, "the object"),
        ("/api/v1/namespaces/shop", "delete", shop, SHOP, "the object"),
        ("/api/v1/namespaces/shop/", "patch", shop, SHOP, "the object"),
        ("/api/v1/namespaces/shop/status", "update", shop, SHOP, "subresource, no resource"),
        ("/api/v1/namespaces/shop/finalize", "update", shop, SHOP, "subresource, no resource"),
        ("/api/v1/namespaces/shop/finalize/x", "update", shop, SHOP, "whatever follows"),
        ("/api/v1/watch/namespaces/shop", "watch", shop, SHOP, "the object, watched"),
        ("/api/v1/namespaces/Shop", "get", namespaces("Shop", "Shop"), NOT_A_LABEL, "404 everywhere"),
        ("/apis/servicebus.azure/v1/namespaces/shop", "get", bus, NOWHERE, "a namesake of another group"),
        ("/apis/servicebus.azure/v1/namespaces/shop/status", "update", bus, NOWHERE, "same"),
        ("/apis//v1/namespaces/shop", "get", shop, NOWHERE, "an empty group is not core"),
    ]);
}

#[test]
fn the_create_of_a_namespace_belongs_to_it() {
    let path = "/api/v1/namespaces";
    let shop = namespaces("", "shop");
    check(&[
        (path, "create", shop, SHOP, "named by the body"),
        ("/api/v1/n%61mespaces/?dryRun=All", "create", shop, SHOP, "kube-apiserver serves that as the same"),
        (path, "create", namespaces("victim", "shop"), SHOP, "the body's namespace is cleared, not believed"),
        (path, "create", namespaces("", ""), NOWHERE, "401, 403, RequestReceived, generateName"),
        (path, "create", namespaces("victim", ""), NOT_IN_PATH, "a forged claim, no name"),
        (path, "create", namespaces("", "Shop"), NOT_A_LABEL, "refused with 422"),
        (path, "create", Some(("", "", "", "shop")), NOWHERE, "resource must be said"),
        (path, "create", Some(("pods", "", "", "shop")), OTHER_RESOURCE, "other resource"),
        (path, "create", Some(("namespaces", "x.io", "", "shop")), OTHER_RESOURCE, "other group"),
        (path, "create", None, NOWHERE, "nothing names it"),
        (path, "list", shop, NOWHERE, "fieldSelector=metadata.name=shop, a list all the same"),
        (path, "deletecollection", namespaces("", ""), NOWHERE, "across namespaces"),
        ("/api/v1/watch/namespaces", "create", shop, NOWHERE, "not exactly the path"),
        ("/api/v2/namespaces", "create", shop, NOWHERE, "not exactly the path"),
        ("/apis/x.io/v1/namespaces", "create", shop, NOWHERE, "not exactly the path"),
        ("/apis//v1/namespaces", "create", shop, NOWHERE, "not exactly the path"),
        ("/api/v1//namespaces", "create", namespaces("", "shop"), OTHER_RESOURCE, "not the path"),
    ]);
}

/// `shop` is created, but for one change.
fn creation(change: impl FnOnce(&mut Event<'static>)) -> bool {
    let mut event = event("/api/v1/namespaces", "create", namespaces("", "shop"));
    event.stage = "ResponseComplete".into();
    event.response_code = Some(201);
    change(&mut event);
    creates_namespace(&event)
}

#[test]
fn only_an_answer_201_creates_a_namespace() {
    assert!(creation(|_| {}));
    for stage in ["RequestReceived", "ResponseStarted", "Panic", ""] {
        assert!(!creation(|event| event.stage = stage.into()), "{stage}");
    }
    for code in [200, 202, 403, 409, 422, 500] {
        assert!(!creation(|event| event.response_code = Some(code)), "{code}");
    }
    assert!(!creation(|event| event.response_code = None));
}

#[test]
fn only_a_namespace_object_itself_is_created() {
    let rows = [
        ("/api/v1/namespaces", "create", true, "named by the body"),
        ("//api/v1/n%61mespaces/?fieldManager=kubectl", "create", true, "the same to kube-apiserver"),
        ("/api/v1/namespaces/shop", "patch", true, "server-side apply"),
        ("/api/v1/namespaces/sh%6Fp/", "patch", true, "the same to kube-apiserver"),
        ("/api/v1/namespaces", "patch", false, "no name"),
        ("/api/v1/namespaces/shop", "create", false, "no such route"),
        ("/api/v1/namespaces/shop", "update", false, "creates no Namespace"),
        ("/api/v1/namespaces/shop/status", "patch", false, "a subresource"),
        ("/api/v1/namespaces/shop/finalize", "update", false, "a subresource"),
        ("/api/v1/namespaces/shop/configmaps", "create", false, "something in it"),
        ("/api/v1/namespaces/shop/configmaps/c", "patch", false, "something in it"),
        ("/api/v1/watch/namespaces/shop", "patch", false, "not exactly the path"),
        ("/api/v2/namespaces", "create", false, "not exactly the path"),
        ("/api/v2/namespaces/shop", "patch", false, "not exactly the path"),
        ("/apis/x.io/v1/namespaces", "create", false, "another group's"),
        ("/apis/x.io/v1/namespaces/shop", "patch", false, "another group's"),
        ("/apis//v1/namespaces/shop", "patch", false, "an empty group is not core"),
        ("/api/v1/pods/namespaces", "create", false, "not its position"),
        ("/api/v1/namespaces/%zz", "patch", false, "undecodable"),
        ("https://host/api/v1/namespaces", "create", false, "not a path"),
    ];
    for (uri, verb, expected, why) in rows {
        let created = creation(|event| (event.request_uri, event.verb) = (uri.into(), verb.into()));
        assert_eq!(created, expected, "{verb} {uri}: {why}");
    }
}

#[test]
fn a_dry_run_creates_nothing() {
    let ignored = "x&".repeat(MAX_PARAMETERS);
    let rows = [
        ("dryRun=All", false, "said"),
        ("fieldManager=x&dryRun=All&pretty", false, "said among others"),
        ("dryRun=&dryRun=All", false, "said the second time"),
        ("dry%52un=%41ll", false, "decoded once"),
        ("dryRun=+", false, "a space is not empty"),
        ("dryRun=", true, "empty"),
        ("dryRun", true, "empty"),
        ("dryrun=All", true, "another parameter"),
        ("dry%2552un=All", true, "not decoded twice"),
        ("x=dryRun=All", true, "a value"),
        ("dryRun=All;x", true, "Go passes over a semicolon"),
        ("dryRun=%zz", true, "Go passes over a broken escape"),
        ("dryRun=All%4", true, "Go passes over a broken escape"),
        (&format!("{ignored}dryRun=All"), true, "Go reads no query of so many parameters"),
        (&format!("{}dryRun=All", &ignored[2..]), false, "one less"),
    ];
    for (query, expected, why) in rows {
        for (path, verb) in [("/api/v1/namespaces", "create"), ("/api/v1/namespaces/shop", "patch")] {
            let uri = format!("{path}?{query}");
            let created = creation(|event| {
                (event.request_uri, event.verb) = (uri.into(), verb.into());
            });
            assert_eq!(created, expected, "{verb} {query:.40}: {why}");
        }
    }
}

#[test]
fn path_and_object_ref_must_agree() {
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = Some(("selfsubjectaccessreviews", "authorization.k8s.io", "victim", "forged"));
    let extensions = Some(("deployments", "extensions", "shop", "web"));
    check(&[
        (reviews, "create", review, NOT_IN_PATH, "reliability.md, finding 5"),
        ("/api/v1/namespaces/shop/pods/p", "get", pods("victim"), OTHER_NAMESPACE, "other"),
        ("/api/v1/namespaces/shop/pods/p", "get", pods(""), OTHER_NAMESPACE, "none"),
        ("/api/v1/namespaces/shop/pods/p", "get", None, UNCONFIRMED, "unconfirmed"),
        ("/api/v1/namespaces/shop/secrets/p", "get", pods("shop"), OTHER_RESOURCE, "resource"),
        ("/apis/apps/v1/namespaces/shop/deployments/web", "get", extensions, OTHER_RESOURCE, "group"),
        ("/api/v1/namespaces/SHOP/pods/p", "get", pods("SHOP"), NOT_A_LABEL, "upper case"),
        ("/api/v1/namespaces/a.b/pods/p", "get", pods("a.b"), NOT_A_LABEL, "a subdomain, no label"),
        ("/api/v1/namespaces/-a/pods/p", "get", pods("-a"), NOT_A_LABEL, "dash at the start"),
        ("/api/v1/namespaces/a-/pods/p", "get", pods("a-"), NOT_A_LABEL, "dash at the end"),
        ("/api/v1/namespaces/../pods/p", "get", pods(".."), NOT_A_LABEL, "dots"),
        ("/api/v1/namespaces/%3E/pods/p", "get", pods(">"), NOT_A_LABEL, "a wildcard of NATS"),
        ("/api/v1/namespaces/caf%C3%A9/pods/p", "get", pods("café"), NOT_A_LABEL, "non-ASCII"),
    ]);
}

#[test]
fn what_is_in_no_namespace_is_the_clusters() {
    check(&[
        ("/api/v1/pods", "list", Some(("pods", "", "", "")), NOWHERE, "across namespaces"),
        ("/api/v1/watch/pods", "watch", Some(("pods", "", "", "")), NOWHERE, "across namespaces"),
        ("/api/v1/namespaces//pods", "list", Some(("pods", "", "", "")), NOWHERE, "an empty namespace is none"),
        ("/api/v1/namespaces", "list", Some(("namespaces", "", "", "")), NOWHERE, "the list of namespaces"),
        ("/api/v1/nodes/n", "get", Some(("nodes", "", "", "n")), NOWHERE, "cluster-scoped object"),
        ("/api/v1/pods/namespaces/shop", "get", Some(("pods", "", "", "namespaces")), NOWHERE, "not its position"),
        ("/api/v1/watch/watch/namespaces/shop", "watch", Some(("watch", "", "", "")), NOWHERE, "one prefix only"),
        ("/v1/namespaces/shop/pods", "get", None, NOWHERE, "not an API prefix"),
        ("/API/v1/namespaces/shop/pods", "get", None, NOWHERE, "case matters"),
        ("/apis/v1/namespaces/shop", "get", Some(("shop", "v1", "", "")), NOWHERE, "group v1, version namespaces"),
        ("/api/v1/watch", "get", None, NOWHERE, "upstream's error"),
        ("/apis/apps/v1", "get", None, NOWHERE, "discovery"),
        ("/healthz?namespaces/shop", "get", None, NOWHERE, "non-resource"),
        ("/", "get", None, NOWHERE, "non-resource"),
        ("*", "options", None, NOWHERE, "the server as a whole"),
        ("", "get", None, NOT_A_PATH, "Go writes / at least"),
        ("https://host/api/v1/namespaces/shop/pods/p", "get", pods("shop"), NOT_A_PATH, "absolute form"),
        ("api/v1/namespaces/shop/pods/p", "get", pods("shop"), NOT_A_PATH, "GET http:api/v1/…: opaque"),
        ("%2Fapi/v1/namespaces/shop/pods/p", "get", pods("shop"), NOT_A_PATH, "not before decoding"),
    ]);
}

#[test]
fn a_label_has_at_most_63_characters() {
    for (length, expected) in [(0, false), (1, true), (63, true), (64, false)] {
        assert_eq!(is_label(&"a".repeat(length)), expected, "{length}");
    }
}

#[test]
fn each_dispute_has_its_own_name() {
    let names: std::collections::BTreeSet<_> = Dispute::ALL.iter().map(|dispute| dispute.as_str()).collect();
    assert_eq!(names.len(), Dispute::ALL.len());
}

// === The oracle: upstream's algorithm in upstream's order, on owned strings that are consumed from the front ===

#[derive(Debug, Default, PartialEq)]
struct RequestInfo {
    is_resource: bool,
    prefix: String,
    group: String,
    version: String,
    namespace: String,
    resource: String,
    subresource: String,
    name: String,
    parts: Vec<String>,
    /// Whether `namespaces/{namespace}` was taken off the front of `parts`; upstream forgets it.
    inside: bool,
}

fn request_info(path: &str) -> RequestInfo {
    let mut info = RequestInfo::default();
    let mut parts: Vec<String> = path.trim_matches('/').split('/').map(str::to_owned).collect();
    if parts.len() < 3 || !(parts[0] == "api" || parts[0] == "apis") {
        return info;
    }
    info.prefix = parts.remove(0);
    if info.prefix != "api" {
        if parts.len() < 3 {
            return info;
        }
        info.group = parts.remove(0);
    }
    info.is_resource = true;
    info.version = parts.remove(0);
    let mut verb_takes_subresource = true;
    if parts[0] == "proxy" || parts[0] == "watch" {
        if parts.len() < 2 {
            // An error there, answered outside the audit filter: no event.
            return RequestInfo::default();
        }
        verb_takes_subresource = parts.remove(0) != "proxy";
    }
    if parts[0] == "namespaces" && parts.len() > 1 {
        info.namespace.clone_from(&parts[1]);
        if parts.len() > 2 && parts[2] != "status" && parts[2] != "finalize" {
            parts.drain(..2);
            info.inside = true;
        }
    }
    if parts.len() >= 3 && verb_takes_subresource {
        info.subresource.clone_from(&parts[2]);
    }
    if parts.len() >= 2 {
        info.name.clone_from(&parts[1]);
    }
    info.resource.clone_from(&parts[0]);
    info.parts = parts;
    info
}

/// Upstream's decoded path, each byte that is not UTF-8 as U+FFFD, which is how Go writes it into `objectRef`.
fn decode(uri: &str) -> Option<String> {
    let path = &uri[..uri.find('?').unwrap_or(uri.len())];
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte != b'%' {
            byte
        } else {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).unwrap()
        });
    }
    path.starts_with('/').then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn may_name_a_namespace(name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    (1..64).contains(&name.len())
        && name.iter().all(|c| "abcdefghijklmnopqrstuvwxyz0123456789-".contains(*c))
        && name[0] != '-'
        && name[name.len() - 1] != '-'
}

#[test]
fn the_oracle_agrees_with_upstreams_own_cases() {
    // What the paths of `requestinfo_test.go` come to there: namespace, resource, subresource, name.
    for (path, expected) in [
        ("/api/v1/namespaces", ["", "namespaces", "", ""]),
        ("/api/v1/namespaces/other", ["other", "namespaces", "", "other"]),
        ("/api/v1/namespaces/other/pods", ["other", "pods", "", ""]),
        ("/api/v1/namespaces/other/pods/foo", ["other", "pods", "", "foo"]),
        ("/api/v1/pods", ["", "pods", "", ""]),
        ("/api/v1/proxy/namespaces/other/pods/foo", ["other", "pods", "", "foo"]),
        ("/api/v1/proxy/namespaces/other/pods/foo/subpath/not/a/subresource", ["other", "pods", "", "foo"]),
        ("/api/v1/watch/pods", ["", "pods", "", ""]),
        ("/api/v1/watch/namespaces/other/pods", ["other", "pods", "", ""]),
        ("/api/v1/namespaces/other/pods/foo/status", ["other", "pods", "status", "foo"]),
        ("/api/v1/namespaces/other/pods/foo/proxy/subpath", ["other", "pods", "proxy", "foo"]),
        ("/api/v1/namespaces/other/finalize", ["other", "namespaces", "finalize", "other"]),
        ("/api/v1/namespaces/other/status", ["other", "namespaces", "status", "other"]),
        ("/api/v1/nodes", ["", "nodes", "", ""]),
        ("/apis/extensions/v1/namespaces/other/pods", ["other", "pods", "", ""]),
        ("/apis/group/version/resource/name/subresource", ["", "resource", "subresource", "name"]),
    ] {
        let info = request_info(path);
        assert!(info.is_resource, "{path}");
        assert_eq!([&info.namespace, &info.resource, &info.subresource, &info.name], expected.each_ref(), "{path}");
    }
    for path in ["", "/", "/api", "/api/version/", "/apis/group/version/", "/bad/version/resource", "/apis/v/r"] {
        assert!(!request_info(path).is_resource, "{path}");
    }
}

// === Properties ===

/// What the event of an undisturbed kube-apiserver comes to: one whose `objectRef` says what `RequestInfo` says.
fn honest_verdict<'i>(uri: &str, decoded: Option<&str>, info: &'i RequestInfo) -> Attribution<'i> {
    if !uri.starts_with('/') {
        return NOT_A_PATH;
    }
    if decoded.is_none() {
        return UNDECODABLE;
    }
    let namesake = info.prefix != "api" && !info.inside && info.resource == "namespaces";
    match &*info.namespace {
        "" => NOWHERE,
        _ if namesake => NOWHERE,
        namespace if may_name_a_namespace(namespace) => Attribution::Namespace(namespace),
        _ => NOT_A_LABEL,
    }
}

const SEGMENTS: &str = "api apis v1 apps namespaces namespaces namespaces shop victim victim pods secrets p watch \
    proxy proxy status finalize . .. %2e%2e %2F %2f..%2f sh%6Fp v%69ctim %2573hop n%61mespaces namespaces%2Fvictim \
    victim%2Fpods victim%3F SHOP a.b -a %ff caf%C3%A9 é %zz %00 + ; : \u{7f}";

/// Paths that begin like those of the API, and go on as an attacker likes.
fn uris() -> impl Strategy<Value = String> {
    const STARTS: [&str; 8] =
        ["", "", "/api/v1", "/api/v1/watch", "/api/v1/proxy", "/apis/apps/v1", "//api/v1", "/apis//v1"];
    const PLACES: [&str; 6] = [
        "",
        "/namespaces",
        "/namespaces/shop",
        "/namespaces/victim/pods",
        "/namespaces/shop/pods/p/proxy",
        "/nodes/n/proxy",
    ];
    let rest = proptest::collection::vec(select(SEGMENTS.split(' ').chain([""]).collect::<Vec<_>>()), 0..9);
    let ends = select(["", "", "/", "//", "?", "?a=/namespaces/victim", "%"].as_slice());
    (select(STARTS.as_slice()), select(PLACES.as_slice()), rest, ends).prop_map(|(start, place, rest, end)| {
        let rest: String = rest.iter().flat_map(|segment| ["/", segment]).collect();
        format!("{start}{place}{rest}{end}")
    })
}

fn claims() -> impl Strategy<Value = Option<Reference<'static>>> {
    let namespaces = select(["", "shop", "victim", "victim", "SHOP", "..", "café", "sh%6Fp", "pods"].as_slice());
    let resources = select(["", "", "pods", "namespaces", "secrets"].as_slice());
    let names = select(["", "p", "shop", "victim", "Shop"].as_slice());
    proptest::option::weighted(0.9, (resources, select(["", "", "apps"].as_slice()), namespaces, names))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    /// Whatever `objectRef` claims: no namespace but the one that upstream authorized the request in.
    #[test]
    fn nothing_reaches_a_namespace_that_the_request_was_not_in(
        uri in uris(),
        verb in select(["get", "create", "watch", "proxy", "update"].as_slice()),
        claim in claims(),
    ) {
        let event = event(&uri, verb, claim);
        if let Attribution::Namespace(namespace) = attribute(&event) {
            let info = request_info(&decode(&uri).unwrap());
            let (resource, _, claimed_namespace, claimed_name) = claim.unwrap();
            prop_assert!(may_name_a_namespace(namespace));
            if info.namespace.is_empty() {
                prop_assert_eq!((verb, resource, claimed_name), ("create", "namespaces", namespace));
                prop_assert_eq!((info.prefix.as_str(), info.version.as_str()), ("api", "v1"));
                prop_assert_eq!(info.parts, ["namespaces"]);
            } else {
                prop_assert_eq!((info.namespace.as_str(), claimed_namespace), (namespace, namespace));
                prop_assert!(resource.is_empty() || resource == info.resource);
                prop_assert!(info.inside || info.prefix == "api");
            }
        }
    }

    /// Neither does a request leave its namespace's sight, however its path is dressed.
    #[test]
    fn an_honest_event_is_attributed_as_upstream_authorized_it(uri in uris()) {
        let decoded = decode(&uri);
        let info = decoded.as_deref().map(request_info).unwrap_or_default();
        let claim = (&*info.resource, &*info.group, &*info.namespace, &*info.name);
        let event = event(&uri, "get", info.is_resource.then_some(claim));
        let expected = honest_verdict(&uri, decoded.as_deref(), &info);
        prop_assert_eq!(attribute(&event), expected);
    }

    /// Spelling is the client's choice: it decides nothing.
    #[test]
    fn encoding_changes_nothing(uri in uris(), claim in claims(), encoded in any::<u64>(), upper in any::<bool>()) {
        let uri = format!("/{}", uri.replace(['%', '?'], "-"));
        let encoded: String = uri.bytes().enumerate().map(|(at, byte)| match byte {
            _ if at == 0 || encoded >> (at % 64) & 1 == 0 && byte.is_ascii() => char::from(byte).to_string(),
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        }).collect();
        let (plain, encoded) = (event(&uri, "create", claim), event(&encoded, "create", claim));
        prop_assert_eq!(attribute(&encoded), attribute(&plain));
    }

    #[test]
    fn nothing_panics(uri in any::<String>(), api in any::<bool>(), verb in any::<String>(), name in any::<String>()) {
        let uri = if api { format!("/api/v1/namespaces/{uri}") } else { uri };
        let claim = Some(("", "", name.as_str(), name.as_str()));
        if let Attribution::Namespace(namespace) = attribute(&event(&uri, &verb, claim)) {
            prop_assert!(may_name_a_namespace(namespace));
        }
    }
}
