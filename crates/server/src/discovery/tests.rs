//! Which document is answered, and when a client may keep it. What the documents say is tested in [`content`].

use std::sync::LazyLock;

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderName, StatusCode};
use serde_json::Value;

use super::*;

mod content;

const AGGREGATOR: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const AGGREGATOR_1_27: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const V2BETA1: &str = AGGREGATOR_1_27;
const KUBECTL_GET: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                           application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
}

fn answer(url: &str, pairs: &[(HeaderName, &str)]) -> Option<Answer> {
    let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    static DOCUMENTS: LazyLock<Documents> = LazyLock::new(Documents::new);
    DOCUMENTS.answer(path, query, &headers(pairs))
}

fn get(url: &str, pairs: &[(HeaderName, &str)]) -> Response<Bytes> {
    match answer(url, pairs) {
        Some(Answer::Response(response)) => response,
        other => panic!("{url}: {other:?}"),
    }
}

fn header(response: &Response<Bytes>, name: HeaderName) -> &str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn json(url: &str) -> Value {
    serde_json::from_slice(get(url, &[]).body()).unwrap()
}

#[test]
fn accept_chooses_what_apis_answers() {
    for (accept, kind, version) in [
        ("", "APIGroupList", ""),
        ("*/*", "APIGroupList", ""),
        ("application/json", "APIGroupList", ""),
        ("application/vnd.kubernetes.protobuf, */*", "APIGroupList", ""),
        (KUBECTL_GET, "APIGroupList", ""),
        (AGGREGATOR, "APIGroupDiscoveryList", "v2"),
        (AGGREGATOR_1_27, "APIGroupDiscoveryList", "v2beta1"),
        // client-go's discovery client, and what it sent before 1.30.
        (&format!("{AGGREGATOR},application/json"), "APIGroupDiscoveryList", "v2"),
        (&format!("{AGGREGATOR_1_27},application/json"), "APIGroupDiscoveryList", "v2beta1"),
        // 1.36 asks for its peers' part of discovery, or not, by a profile.
        (&format!("{V2};profile=nopeer"), "APIGroupDiscoveryList", "v2"),
        (&format!("{V2};q=0.2,{V2BETA1};q=0.8"), "APIGroupDiscoveryList", "v2beta1"),
        // Upstream looks for an aggregated clause first, wherever it stands.
        (&format!("application/json,{V2}"), "APIGroupDiscoveryList", "v2"),
        (&format!("application/json,{V2};q=0.1"), "APIGroupDiscoveryList", "v2"),
        // From the future: passed over.
        ("application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,*/*", "APIGroupList", ""),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=Other,application/json;q=0.5", "APIGroupList", ""),
        ("application/json;g=other.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json", "APIGroupList", ""),
    ] {
        for path in ["/apis", "/apis/"] {
            let response = get(path, &[(ACCEPT, accept)]);
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["kind"], kind, "{accept}");
            assert_eq!(header(&response, VARY), "Accept", "{accept}");
            let (content_type, api_version) = match version {
                "" => ("application/json".to_owned(), "v1".to_owned()),
                v => (
                    format!("application/json;g=apidiscovery.k8s.io;v={v};as=APIGroupDiscoveryList"),
                    format!("apidiscovery.k8s.io/{v}"),
                ),
            };
            assert_eq!(header(&response, CONTENT_TYPE), content_type, "{accept}");
            assert_eq!(body["apiVersion"], api_version, "{accept}");
        }
    }
}

#[test]
fn a_client_that_takes_no_json_is_told_what_there_is() {
    let protobuf = "application/vnd.kubernetes.protobuf";
    let v3 = "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList";
    for (path, accept) in [
        ("/apis", protobuf),
        ("/apis", v3),
        ("/apis/audit.k8s.io", protobuf),
        ("/apis/audit.k8s.io", V2),
        ("/apis/audit.k8s.io/v1", protobuf),
        ("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"),
        ("/openapi/v3/apis/audit.k8s.io/v1", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"),
    ] {
        let answer = answer(path, &[(ACCEPT, accept)]);
        assert!(matches!(answer, Some(Answer::NotAcceptable(["application/json"]))), "{path} {accept}: {answer:?}");
    }
    for path in ["/openapi/v3", "/version"] {
        assert_eq!(get(path, &[(ACCEPT, protobuf)]).status(), StatusCode::OK, "{path}: upstream does not negotiate");
    }
}

#[test]
fn one_more_slash_is_ignored_where_upstream_ignores_it() {
    for path in ["/apis", "/apis/audit.k8s.io", "/apis/audit.k8s.io/v1", "/apis/audit.k8s.io/v1alpha1", "/version"] {
        assert_eq!(get(path, &[]).body(), get(&format!("{path}/"), &[]).body(), "{path}");
    }
    for path in [
        "",
        "/",
        "/apis//",
        "//apis",
        "/api",
        "/apis/audit.k8s.io/v2",
        "/apis/audit.k8s.io/v1/events",
        "/apis/apps",
        "/openapi",
        "/openapi/v2/",
        "/openapi/v3/",
        "/openapi/v3/apis/audit.k8s.io",
        "/openapi/v3/apis/audit.k8s.io/v1/",
        "/openapi/v3/apis/apps/v1",
        "/versions",
    ] {
        assert!(answer(path, &[]).is_none(), "{path}");
    }
}

#[test]
fn a_client_that_holds_a_document_is_told_so() {
    for (url, accept) in [
        ("/apis", V2),
        ("/apis", V2BETA1),
        ("/openapi/v2", "application/json"),
        ("/openapi/v3", "application/json"),
        ("/openapi/v3/apis/audit.k8s.io/v1", "application/json"),
    ] {
        let fresh = get(url, &[(ACCEPT, accept)]);
        let etag = header(&fresh, ETAG);
        assert_eq!(etag.len(), 130, "{url}: SHA-512 in quotes");
        assert_eq!(etag.to_uppercase(), etag);
        for held in [etag, &format!("W/{etag}"), "*", &format!("\"other\", {etag}"), &format!("{etag},\"other\"")] {
            let response = get(url, &[(ACCEPT, accept), (IF_NONE_MATCH, held)]);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{url} {held}");
            assert!(response.body().is_empty());
            for name in [ETAG, VARY, CACHE_CONTROL] {
                assert_eq!(header(&response, name.clone()), header(&fresh, name), "{url} {held}");
            }
            assert_eq!(header(&response, CONTENT_TYPE), "");
        }
        for other in ["", "\"other\"", etag.trim_matches('"'), &etag.to_lowercase(), "W/*"] {
            let response = get(url, &[(ACCEPT, accept), (IF_NONE_MATCH, other)]);
            assert_eq!((response.status(), response.body()), (StatusCode::OK, fresh.body()), "{url} {other}");
        }
    }
}

#[test]
fn the_etag_is_the_hash_of_this_very_body() {
    let hash = |body: &[u8]| -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, body);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
    };
    let mut seen = std::collections::HashSet::new();
    for (url, accept) in [("/apis", V2), ("/apis", V2BETA1), ("/openapi/v2", "*/*"), ("/openapi/v3", "*/*")] {
        let response = get(url, &[(ACCEPT, accept)]);
        assert_eq!(header(&response, ETAG), format!("\"{}\"", hash(response.body())));
        assert!(seen.insert(header(&response, ETAG).to_owned()), "{url} shares its ETag with another document");
    }
    // A client must not be told that it holds v2 when what it holds is v2beta1, nor that the plain list is either.
    let beta = get("/apis", &[(ACCEPT, V2BETA1)]);
    for accept in [V2, "application/json"] {
        let response = get("/apis", &[(ACCEPT, accept), (IF_NONE_MATCH, header(&beta, ETAG))]);
        assert_eq!(response.status(), StatusCode::OK, "{accept}");
    }
}

#[test]
fn legacy_discovery_is_never_not_modified() {
    let etag = header(&get("/apis", &[(ACCEPT, V2)]), ETAG).to_owned();
    for path in ["/apis", "/apis/audit.k8s.io", "/apis/audit.k8s.io/v1", "/apis/audit.k8s.io/v1beta1", "/version"] {
        for held in [etag.as_str(), "*"] {
            let response = get(path, &[(ACCEPT, "application/json"), (IF_NONE_MATCH, held)]);
            assert_eq!(response.status(), StatusCode::OK, "{path} {held}");
            assert_eq!(header(&response, ETAG), "", "{path}");
            assert_eq!(header(&response, CACHE_CONTROL), "no-cache, private", "{path}");
        }
    }
}

#[test]
fn only_aggregated_discovery_may_be_kept_by_others() {
    assert_eq!(header(&get("/apis", &[(ACCEPT, AGGREGATOR)]), CACHE_CONTROL), "public");
    for url in ["/openapi/v2", "/openapi/v3", "/openapi/v3/apis/audit.k8s.io/v1"] {
        let response = get(url, &[]);
        assert_eq!(header(&response, CACHE_CONTROL), "no-cache, private", "{url}");
        assert_eq!(header(&response, VARY), "Accept", "{url}");
    }
}

#[test]
fn a_url_with_the_right_hash_is_for_good_and_no_other_redirects() {
    let root = json("/openapi/v3");
    assert_eq!(root["paths"].as_object().unwrap().len(), Version::ALL.len());
    for version in Version::ALL.map(Version::as_str) {
        let url = root["paths"][format!("apis/audit.k8s.io/{version}")]["serverRelativeURL"].as_str().unwrap();
        let (path, hash) = url.split_once("?hash=").unwrap();
        assert_eq!(path, format!("/openapi/v3/apis/audit.k8s.io/{version}"));
        let current = get(path, &[]);
        assert_eq!(header(&current, ETAG), format!("\"{hash}\""));

        for right in [url, &format!("{path}?a=b&hash={hash}&timeout=32s"), &format!("{url}&hash=other")] {
            let response = get(right, &[]);
            assert_eq!((response.status(), response.body()), (StatusCode::OK, current.body()));
            assert_eq!(header(&response, CACHE_CONTROL), "public, immutable", "{right}");
            assert!(header(&response, EXPIRES).ends_with(" GMT"), "{right}");
            let held = get(right, &[(IF_NONE_MATCH, header(&current, ETAG))]);
            assert_eq!(held.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(header(&held, CACHE_CONTROL), "public, immutable", "{right}");
        }
        for wrong in ["hash=other", "hash=", "hash", "hash=other&hash={hash}", "xhash={hash}", "hash={hash}0"] {
            let response = get(&format!("{path}?{}", wrong.replace("{hash}", hash)), &[]);
            assert_eq!((response.status(), response.body()), (StatusCode::OK, current.body()), "{wrong}");
            assert_eq!(header(&response, LOCATION), "", "{wrong}");
            assert_eq!(header(&response, CACHE_CONTROL), "no-cache, private", "{wrong}");
            assert_eq!(header(&response, EXPIRES), "", "{wrong}");
        }
    }
}

#[test]
fn the_promise_runs_for_a_year() {
    let root = json("/openapi/v3");
    let url = root["paths"]["apis/audit.k8s.io/v1"]["serverRelativeURL"].as_str().unwrap();
    let expires = k8s_openapi::jiff::fmt::rfc2822::parse(header(&get(url, &[]), EXPIRES)).unwrap().timestamp();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days = (expires.as_second() - i64::try_from(now).unwrap()) / (24 * 60 * 60);
    assert!((364..=365).contains(&days), "{days}");
}
