//! Who may send to the webhook, and how: certificates, TLS, path, method, encoding.
//!
//! A refusal names what is wrong, is counted, and costs nobody else anything.

use std::net::SocketAddr;

use anyhow::Result;
use audit_stream_testplane::front_proxy::request;
use audit_stream_testplane::pki::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{Feed, Stage, assert_gap, assert_refused, status};

const REFUSED: &str = "audit_stream_refused_connections_total";

/// What comes back for these bytes on a bare connection, up to its end.
async fn converse(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    // Whoever answers before he has read everything resets the connection behind the answer.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_of_the_right_authority() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let name = "kube-apiserver-audit";
    let refused = [
        feed.sender.raw().without_certificate(),
        feed.sender.raw().identity(&Authority::new("stranger").client(name, &[])),
        // The front proxy's CA vouches for nobody here.
        feed.sender.raw().identity(&feed.stage.front_proxy_ca.client(name, &[])),
        // The right CA, but for serving.
        feed.sender.raw().identity(&feed.stage.webhook_ca.server(name, &[name])),
    ];
    for (post, count) in refused.into_iter().zip(1_u32..) {
        let answer = post.body("{}").send().await;
        assert!(answer.is_err(), "{answer:?}");
        let labels = [("listener", "webhook"), ("reason", "client_certificate")];
        feed.stage.until_metric(REFUSED, &labels, f64::from(count)).await?;
        feed.goes_on_without_a_gap().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_with_another_name_is_told_which_flag_lists_the_names() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let message = "the client certificate has none of the names in --webhook-allowed-names";
    let wrong_names = ["kube-apiserver", "kube-apiserver-audit2", "*", ""];
    for (name, count) in wrong_names.into_iter().zip(1_u32..) {
        let somebody = feed.stage.webhook_ca.client(name, &["kube-apiserver-audit"]);
        let answer = feed.sender.raw().identity(&somebody).body("{}").send().await?;
        assert_refused(&answer, 403, &status(403, "Forbidden", message, ""))?;
        feed.assert_rejected("sender", f64::from(count)).await?;
        feed.goes_on_without_a_gap().await?;
    }
    Ok(())
}

#[tokio::test]
async fn plain_http_is_answered_as_go_does() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    for (address, listener) in feed.stage.addresses().into_iter().zip(["api", "webhook"]) {
        let answer = converse(address, b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").await?;
        assert_eq!(
            answer, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            "{listener}"
        );
        let labels = [("listener", listener), ("reason", "plain_http")];
        feed.stage.until_metric(REFUSED, &labels, 1.0).await?;
    }
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn bytes_that_are_no_tls_end_their_connection_alone() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let [_, webhook] = feed.stage.addresses();
    for garbage in [&b"\0"[..], b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\0\x05hello", &[0xff; 100_000], b"lower case"] {
        let mut stream = TcpStream::connect(webhook).await?;
        // It may be refused before all of it is written.
        let _ = stream.write_all(garbage).await;
        drop(stream);
    }
    feed.stage.until_metric(REFUSED, &[("listener", "webhook"), ("reason", "handshake")], 5.0).await?;
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn requests_that_are_no_http_end_their_connection_alone() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    for post in [
        feed.sender.raw().path("/web hook"),
        feed.sender.raw().path("/webhook HTTP/1.1\r\n\0"),
        feed.sender.raw().header("no colon\r\nx", "y"),
        feed.sender.raw().header("Content-Length", "-1"),
        feed.sender.raw().header("Content-Length", "18446744073709551616"),
        feed.sender.raw().header("Transfer-Encoding", "chunked").body("zz\r\n"),
        feed.sender.raw().header("X", &"x".repeat(1 << 20)),
    ] {
        // An answer would be 4xx; some cannot be answered at all.
        let answer = post.then_close().send().await;
        assert!(answer.as_ref().map_or(true, |answer| (400..500).contains(&answer.status)), "{answer:?}");
        feed.goes_on_without_a_gap().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_compressed_body_is_refused() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let message = "the body must not be compressed: remove the Content-Encoding header";
    let expected = status(415, "UnsupportedMediaType", message, "");
    let gzip = [("Content-Encoding", "gzip")];
    let body = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_refused(&feed.sender.post_with(&gzip, body.to_vec()).await?, 415, &expected)?;
    assert_refused(&feed.sender.post_raw(&gzip, body).await?, 415, &expected)?;
    feed.assert_rejected("content_encoding", 2.0).await?;
    // No other try mends it, so readers are told; but not of every try.
    assert_gap(&feed.goes_on().await?, "source", None);
    assert_refused(&feed.sender.post_with(&gzip, body.to_vec()).await?, 415, &expected)?;
    feed.goes_on_without_a_gap().await
}

#[tokio::test]
async fn only_the_webhooks_paths_and_post_are_served() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let not_found = status(404, "NotFound", "audit events are posted to /webhook or /webhook/{source}", "");
    let long = format!("/webhook/{}", "s".repeat(64));
    let wrong = ["/", "/webhookx", "/webhook/", "/webhook/a/b", "/webhook/%61", &long, "/metrics", "/readyz", "/apis"];
    for path in wrong {
        assert_refused(&feed.sender.raw().path(path).body("{}").send().await?, 404, &not_found)?;
    }
    feed.assert_rejected("path", wrong.len() as f64).await?;

    let not_allowed = status(405, "MethodNotAllowed", "audit events are sent by POST", "");
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = feed.sender.client().send(request(method, "/webhook", &[], "")?).await?;
        assert_refused(&answer, 405, &not_allowed)?;
    }
    feed.assert_rejected("method", 5.0).await?;

    let empty = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}"#;
    for path in ["/webhook/control-plane-1", "/webhook?timeout=30s", &long[..long.len() - 1]] {
        assert_eq!(feed.sender.raw().path(path).body(empty).send().await?.status, 200, "{path}");
    }
    feed.goes_on_without_a_gap().await
}
