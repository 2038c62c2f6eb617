use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::*;
use server::Server;

pub(crate) mod server;

const SOON: Duration = Duration::from_secs(10);
const A_MOMENT: Duration = Duration::from_millis(100);

async fn proxy(server: &Server, protocol: Protocol) -> FrontProxy {
    let identity = server.authority.client("front-proxy-client", &[]);
    FrontProxy::connect(server.address, server.authority.certificate_pem(), "sink.audit.svc", &identity, protocol)
        .await
        .unwrap()
}

fn values(echo: &Value, name: &str) -> Vec<String> {
    let headers = echo["headers"].as_array().unwrap();
    let named = headers.iter().filter(|header| header[0] == name);
    named.map(|header| header[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn sends_what_kube_apiserver_sends() {
    let server = Server::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let alice = proxy(&server, protocol).await.user("alice").groups(["dev", "ops"]).uid("u-1");
        let alice = alice.extra("example.com/Scope", &["a", "b"]).audit_id("id-1");
        let echo = alice.get("/echo/x%2Fy?watch=1&b=%20&a=2").await.unwrap().json().unwrap();
        assert_eq!(echo["uri"], "/echo/x/y?a=2&b=+&watch=1");
        assert_eq!(echo["authority"], server.address.to_string());
        for (name, expected) in [
            ("x-remote-user", vec!["alice"]),
            ("x-remote-uid", vec!["u-1"]),
            ("x-remote-group", vec!["dev", "ops", "system:authenticated"]),
            ("x-remote-extra-example.com%2fscope", vec!["a", "b"]),
            ("x-forwarded-for", vec!["127.0.0.1"]),
            ("x-forwarded-host", vec![server.address.to_string().as_str()]),
            ("x-forwarded-proto", vec!["https"]),
            ("x-forwarded-uri", vec!["/echo/x/y"]),
            ("audit-id", vec!["id-1"]),
            ("accept-encoding", vec!["gzip"]),
            ("accept", vec!["application/json, */*"]),
        ] {
            assert_eq!(values(&echo, name), expected, "{name} over {protocol:?}");
        }
    }
}

#[tokio::test]
async fn headers_can_be_added_replaced_and_removed() {
    let server = Server::start().await;
    let proxy = proxy(&server, Protocol::Http2).await;
    let eve =
        proxy.component("eve").header("X-Remote-User", "root").replacing("Accept", "text/html").without("Audit-ID");
    let response = eve.send(Method::DELETE, "/echo", "{}").await.unwrap();
    let echo = response.json().unwrap();
    assert_eq!((&echo["method"], &echo["body"]), (&json!("DELETE"), &json!("{}")));
    assert_eq!(values(&echo, "x-remote-user"), ["eve", "root"]);
    assert_eq!(values(&echo, "accept"), ["text/html"]);
    assert!(values(&echo, "audit-id").is_empty());
    assert!(values(&echo, "x-remote-group").is_empty());
    assert!(values(&echo, "x-remote-uid").is_empty());
}

#[tokio::test]
async fn all_users_share_one_http2_connection() {
    let server = Server::start().await;
    let proxy = proxy(&server, Protocol::Http2).await;
    let mut watches = Vec::new();
    for name in ["alice", "bob", "carol"] {
        watches.push(proxy.user(name).watch("/watch/open").await.unwrap());
        assert_eq!(proxy.user(name).get("/echo").await.unwrap().status, 200);
    }
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn after_a_goaway_new_requests_dial_anew_and_open_watches_go_on() {
    let server = Server::start().await;
    let proxy = proxy(&server, Protocol::Http2).await;
    let alice = proxy.user("alice");
    let mut watch = alice.watch("/watch/ticking").await.unwrap();
    watch.next(SOON).await.unwrap().unwrap();
    server.go_away();
    // The GOAWAY needs a moment to arrive; until then requests still go over the old connection.
    while proxy.connections() == 1 {
        assert_eq!(alice.get("/echo").await.unwrap().status, 200);
    }
    for _ in 0..3 {
        assert!(watch.next(SOON).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_watch_yields_frames_and_a_clean_end() {
    let server = Server::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut watch = proxy(&server, protocol).await.user("alice").watch("/watch/clean").await.unwrap();
        assert_eq!(watch.next(SOON).await.unwrap().unwrap()["type"], "BOOKMARK");
        assert_eq!(watch.next_added(SOON).await.unwrap().unwrap()["n"], 1);
        assert_eq!(watch.rest(SOON).await.unwrap(), [json!({"type": "ADDED", "object": {"n": 2}})]);
        assert_eq!(watch.next(SOON).await.unwrap(), None);
        assert!(watch.raw().ends_with(b"{\"type\":\"ADDED\",\"object\":{\"n\":2}}\n"));
    }
}

#[tokio::test]
async fn lines_are_what_was_sent_up_to_the_clean_end() {
    let server = Server::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let alice = proxy(&server, protocol).await.user("alice");
        let mut lines = alice.watch("/watch/clean").await.unwrap().into_lines();
        let bookmark = r#"{"type":"BOOKMARK","object":{}}"#;
        let added = |n: u8| format!(r#"{{"type":"ADDED","object":{{"n":{n}}}}}"#);
        for expected in [bookmark.to_owned(), added(1), added(2)] {
            assert_eq!(lines.next().await.unwrap().unwrap(), expected);
        }
        assert_eq!(lines.next().await, Ok(None));

        let mut broken = alice.watch("/watch/broken").await.unwrap().into_lines();
        assert_eq!(broken.next().await.unwrap().unwrap(), added(1));
        assert!(matches!(broken.next().await, Err(WatchError::Reset(_))), "{protocol:?}");
        let mut truncated = alice.watch("/watch/truncated").await.unwrap().into_lines();
        assert!(matches!(truncated.next().await, Err(WatchError::Truncated(_))), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_broken_watch_is_no_clean_end() {
    let server = Server::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let alice = proxy(&server, protocol).await.user("alice");
        let mut watch = alice.watch("/watch/broken").await.unwrap();
        assert!(watch.next(SOON).await.unwrap().is_some(), "{protocol:?}");
        assert!(matches!(watch.next(SOON).await, Err(WatchError::Reset(_))), "{protocol:?}");
        // Asked again, it says the same.
        assert!(matches!(watch.next(SOON).await, Err(WatchError::Reset(_))), "{protocol:?}");
        let mut watch = alice.watch("/watch/truncated").await.unwrap();
        assert!(matches!(watch.next(SOON).await, Err(WatchError::Truncated(_))), "{protocol:?}");
        let mut watch = alice.watch("/watch/malformed").await.unwrap();
        assert!(matches!(watch.next(SOON).await, Err(WatchError::Malformed(_))), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_reset_without_an_error_code_is_no_clean_end() {
    const NO_ERROR: u32 = 0;
    const CANCEL: u32 = 8;
    for code in [NO_ERROR, CANCEL] {
        let server = Server::resetting_with(code).await;
        let mut watch = proxy(&server, Protocol::Http2).await.user("alice").watch("/any").await.unwrap();
        assert!(watch.next(SOON).await.unwrap().is_some());
        assert!(matches!(watch.next(SOON).await, Err(WatchError::Reset(_))), "code {code}");
    }
}

#[tokio::test]
async fn a_quiet_watch_can_be_asked_again() {
    let server = Server::start().await;
    let mut watch = proxy(&server, Protocol::Http2).await.user("alice").watch("/watch/open").await.unwrap();
    assert!(watch.next(SOON).await.unwrap().is_some());
    assert_eq!(watch.next(A_MOMENT).await, Err(WatchError::Quiet(A_MOMENT)));
    assert_eq!(watch.next_added(A_MOMENT).await, Err(WatchError::Quiet(A_MOMENT)));
}

#[tokio::test]
async fn a_refused_watch_shows_its_status() {
    let server = Server::start().await;
    let alice = proxy(&server, Protocol::Http2).await.user("alice");
    let refusal = alice.try_watch("/refused").await.unwrap().err().unwrap();
    assert_eq!((refusal.status, refusal.body.as_str()), (403, "no"));
    assert!(alice.watch("/refused").await.err().unwrap().to_string().contains("403"));
}

#[tokio::test]
async fn certificates_are_shown_only_where_asked_for() {
    let server = Server::start().await;
    let ca = server.authority.certificate_pem();
    let target = Target::new(server.address, ca, "sink.audit.svc");
    let subject = async |target: Target| {
        let client = Client::connect(target).await?;
        anyhow::Ok(client.get("/echo", &[]).await?.json()?["certificates"].clone())
    };
    assert_eq!(subject(target.clone()).await.unwrap(), 0);
    assert_eq!(subject(target.clone().identity(&server.authority.client("x", &[]))).await.unwrap(), 1);
    let stranger = crate::pki::Authority::new("stranger");
    assert!(subject(target.identity(&stranger.client("x", &[]))).await.is_err());
    assert!(subject(Target::new(server.address, stranger.certificate_pem(), "sink.audit.svc")).await.is_err());
    assert!(subject(Target::new(server.address, ca, "other.audit.svc")).await.is_err());
}

#[tokio::test]
async fn a_clean_request_adds_nothing_but_the_authority() {
    let server = Server::start().await;
    let client = Client::connect(Target::new(server.address, server.authority.certificate_pem(), "sink.audit.svc"));
    let response = client.await.unwrap().get("/echo/%2e%2e?b=1&a=1", &[("X-Remote-User", "root")]).await.unwrap();
    let echo = response.json().unwrap();
    assert_eq!(echo["uri"], "/echo/%2e%2e?b=1&a=1");
    assert_eq!(echo["headers"], json!([["x-remote-user", "root"]]));
}
