//! Who is known without a front proxy: by a token and by a client certificate; and how trust is learned and changes.

use std::time::Duration;

use anyhow::{Context, Result};
use audit_stream::authn::files::TrustFiles;
use audit_stream::authn::front_proxy::Names;
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Response, Watch, request};
use audit_stream_testplane::pki::{Authority, Identity};
use audit_stream_testplane::reviewer::AuthenticationConfig;
use futures::future::try_join_all;

use crate::stage::{
    ARRIVAL, PROTOCOLS, Stage, assert_refused, eventually, ids, in_namespace, namespaced, read_until, status,
};

/// Whose token Prometheus shows.
const SCRAPER: &str = "system:serviceaccount:monitoring:prometheus";

const TOKEN_REVIEWS: &str = "audit_stream_token_reviews_total";

/// A stage where the scraper has a token.
async fn with_token(change: impl FnOnce(&mut audit_stream::Config)) -> Result<Stage> {
    let stage = Stage::with(change).await?;
    stage.reviewer.accept_token("good", SCRAPER, &["system:serviceaccounts"]);
    stage.reviewer.allow(SCRAPER).to("get").on_path("/metrics");
    Ok(stage)
}

async fn scrape(client: &Client, token: &str) -> Result<Response> {
    client.get("/metrics", &[("Authorization", &format!("Bearer {token}"))]).await
}

async fn watch(client: &Client, path: &str, headers: &[(&str, &str)]) -> Result<Watch> {
    let watch = client.watch(request("GET", path, headers, "")?).await?;
    watch.map_err(|refusal| anyhow::anyhow!("{} {}", refusal.status, refusal.body))
}

fn unauthorized() -> String {
    status(401, "Unauthorized", "Unauthorized", "")
}

#[tokio::test]
async fn a_service_account_scrapes_and_watches_with_its_token() -> Result<()> {
    let stage = with_token(|_| {}).await?;
    stage.let_read(SCRAPER, "shop");
    let sender = stage.sender().await?;
    for protocol in PROTOCOLS {
        let client = Client::connect(stage.api().protocol(protocol)).await?;
        let scraped = scrape(&client, "good").await?;
        assert!(scraped.status == 200 && scraped.body.contains(TOKEN_REVIEWS), "{}", scraped.status);
        let mut watch = watch(&client, &namespaced("shop"), &[("authorization", "bearer good")]).await?;
        sender.send(in_namespace("shop", "a"));
        sender.flush().await?;
        assert_eq!(ids(&read_until(&mut watch, "a").await?), ["a"]);
    }
    let review = stage.reviewer.reviewed(ARRIVAL, |spec| spec["user"] == SCRAPER).await?;
    assert_eq!(review["uid"], format!("uid-of-{SCRAPER}"));
    assert_eq!(review["groups"], serde_json::json!(["system:serviceaccounts", "system:authenticated"]));
    Ok(())
}

#[tokio::test]
async fn a_token_is_asked_about_once_in_a_while_and_once_in_a_storm() -> Result<()> {
    let stage = with_token(|_| {}).await?;
    let client = Client::connect(stage.api()).await?;
    for _ in 0..20 {
        assert_eq!(scrape(&client, "good").await?.status, 200);
        assert_refused(&scrape(&client, "bad").await?, 401, &unauthorized())?;
    }
    assert_eq!(stage.reviewer.token_reviews(), 2);
    stage.reviewer.accept_token("stormy", SCRAPER, &[]);
    stage.reviewer.answer_after(Duration::from_millis(200));
    let answers = try_join_all((0..200).map(|_| scrape(&client, "stormy"))).await?;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(stage.reviewer.token_reviews(), 3);
    assert_eq!(stage.metric(TOKEN_REVIEWS, &[("outcome", "allowed")]).await?, 2.0);
    assert_eq!(stage.metric(TOKEN_REVIEWS, &[("outcome", "denied")]).await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_revoked_token_is_refused_when_its_answer_is_too_old() -> Result<()> {
    let stage = with_token(|config| config.token_cache_ttl = Duration::from_millis(300)).await?;
    let client = Client::connect(stage.api()).await?;
    assert_eq!(scrape(&client, "good").await?.status, 200);
    stage.reviewer.revoke_token("good");
    let refused = async || Ok(Some(scrape(&client, "good").await?).filter(|answer| answer.status != 200));
    assert_refused(&eventually("the token to be refused", refused).await?, 401, &unauthorized())
}

#[tokio::test]
async fn a_token_that_cannot_be_asked_about_is_refused_and_asked_about_again() -> Result<()> {
    let stage = with_token(|_| {}).await?;
    let client = Client::connect(stage.api()).await?;
    for code in [500, 503, 429] {
        stage.reviewer.fail_with(code);
        assert_refused(&scrape(&client, "good").await?, 401, &unauthorized())?;
    }
    stage.reviewer.hang();
    assert_refused(&scrape(&client, "good").await?, 401, &unauthorized())?;
    stage.reviewer.recover();
    assert_eq!(scrape(&client, "good").await?.status, 200);
    assert_eq!(stage.metric(TOKEN_REVIEWS, &[("outcome", "error")]).await?, 4.0);
    Ok(())
}

#[tokio::test]
async fn made_up_tokens_are_told_to_come_later_and_known_ones_are_served() -> Result<()> {
    let stage = with_token(|config| config.review_qps = 10.try_into().expect("not zero")).await?;
    let client = Client::connect(stage.api()).await?;
    assert_eq!(scrape(&client, "good").await?.status, 200);
    let names: Vec<_> = (0..50).map(|number| format!("made-up-{number}")).collect();
    let answers = try_join_all(names.iter().map(|token| scrape(&client, token))).await?;
    let late: Vec<_> = answers.iter().filter(|answer| answer.status != 401).collect();
    assert!(late.len() > 25, "{} of 50", late.len());
    let later = "too many requests, please try again later";
    for answer in late {
        assert_refused(answer, 429, &status(429, "TooManyRequests", later, r#"{"retryAfterSeconds":1}"#))?;
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(scrape(&client, "good").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_user_watches_with_a_client_certificate() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("carol", "shop");
    let sender = stage.sender().await?;
    let carol = stage.client_ca.client("carol", &["dev", "ops"]);
    for protocol in PROTOCOLS {
        let client = Client::connect(stage.api().identity(&carol).protocol(protocol)).await?;
        let mut watch = watch(&client, &namespaced("shop"), &[("X-Remote-User", "root")]).await?;
        sender.send(in_namespace("shop", "a"));
        sender.flush().await?;
        assert_eq!(ids(&read_until(&mut watch, "a").await?), ["a"]);
    }
    let [review] = &stage.reviewer.reviews()[..] else { panic!("{:?}", stage.reviewer.reviews()) };
    assert_eq!(review["user"], "carol");
    assert_eq!(review["groups"], serde_json::json!(["dev", "ops", "system:authenticated"]));
    let credential = review["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().context("no id")?;
    assert!(credential.len() == 11 + 64 && credential.starts_with("X509SHA256="), "{credential}");
    Ok(())
}

/// Waits until a request of `client` is answered with this code; 403 is somebody who is known and may nothing.
async fn until_status(client: &Client, headers: &[(&str, &str)], wanted: u16) -> Result<()> {
    let reached = async || Ok((client.get("/nowhere", headers).await?.status == wanted).then_some(()));
    eventually(&format!("{wanted}"), reached).await
}

#[tokio::test]
async fn trust_moves_from_one_ca_to_the_next_on_connections_that_are_there() -> Result<()> {
    let stage = Stage::start().await?;
    let (clients, proxies) = (Authority::new("clients-2"), Authority::new("front-proxy-2"));
    let connect = async |identity: &Identity| Client::connect(stage.api().identity(identity)).await;
    let alice = [("X-Remote-User", "alice")];
    let (old, new) =
        (connect(&stage.client_ca.client("carol", &[])).await?, connect(&clients.client("carol", &[])).await?);
    let old_proxy = connect(&stage.front_proxy_ca.client("front-proxy-client", &[])).await?;
    let new_proxy = connect(&proxies.client("front-proxy-client", &[])).await?;
    let expect = async |codes: [u16; 4]| {
        until_status(&old, &[], codes[0]).await?;
        until_status(&new, &[], codes[1]).await?;
        until_status(&old_proxy, &alice, codes[2]).await?;
        until_status(&new_proxy, &alice, codes[3]).await
    };
    expect([403, 401, 403, 401]).await?;

    // Both at a time, as kube-apiserver merges them.
    let both = |one: &Authority, other: &Authority| format!("{}{}", one.certificate_pem(), other.certificate_pem());
    let merged = AuthenticationConfig::trusting(&both(&stage.front_proxy_ca, &proxies));
    stage.reviewer.set_config_map(&merged.client_ca(&both(&stage.client_ca, &clients)));
    expect([403, 403, 403, 403]).await?;

    let moved = AuthenticationConfig::trusting(proxies.certificate_pem()).client_ca(clients.certificate_pem());
    stage.reviewer.set_config_map(&moved);
    expect([401, 403, 401, 403]).await?;

    // A front proxy that cannot be read does not keep the old CA of clients in force; nor the other way round.
    let broken = stage.trust().with("requestheader-group-headers", "{");
    stage.reviewer.set_config_map(&broken);
    expect([403, 401, 401, 403]).await?;
    stage.reviewer.set_config_map(&stage.trust().client_ca("not PEM"));
    expect([403, 401, 403, 401]).await?;
    assert_eq!(old.connections() + new.connections() + old_proxy.connections() + new_proxy.connections(), 4);
    Ok(())
}

#[tokio::test]
async fn a_front_proxy_with_the_clients_ca_needs_a_name() -> Result<()> {
    let stage = Stage::start().await?;
    let carol = Client::connect(stage.api().identity(&stage.client_ca.client("carol", &[]))).await?;
    let shared = AuthenticationConfig::trusting(stage.client_ca.certificate_pem())
        .client_ca(stage.client_ca.certificate_pem())
        .allowed_names(&[]);
    stage.reviewer.set_config_map(&shared);
    // When the former front proxy is refused, this one has been read.
    let former = stage.proxy(PROTOCOLS[1]).await?;
    until_status(former.client(), &[("X-Remote-User", "alice")], 401).await?;
    let masters = [("X-Remote-User", "root"), ("X-Remote-Group", "system:masters")];
    let refusal = carol.get("/nowhere", &masters).await?;
    assert!(refusal.status == 403 && refusal.body.contains(r#"User \"carol\""#), "{}", refusal.body);
    let named = shared.allowed_names(&["front-proxy-client"]);
    stage.reviewer.set_config_map(&named);
    let proxy = stage.proxy_showing(&stage.client_ca.client("front-proxy-client", &[]), PROTOCOLS[1]).await?;
    until_status(proxy.client(), &masters, 404).await
}

#[tokio::test]
async fn a_request_that_comes_before_trust_waits_for_it() -> Result<()> {
    let stage = Stage::trusting_nobody(|_| {}).await?;
    stage.let_read("alice", "shop");
    let proxy = stage.proxy(PROTOCOLS[1]).await?;
    let anybody = Client::connect(stage.api()).await?;
    assert_eq!(anybody.get("/readyz", &[]).await?.status, 500);
    let trust_later = async {
        // Whatever came before this answer on the connection has come.
        assert_eq!(proxy.client().get("/livez", &[]).await?.status, 200);
        assert!(stage.reviewer.reviews().is_empty(), "nobody is known");
        stage.reviewer.set_config_map(&stage.trust());
        anyhow::Ok(())
    };
    let (alice, path) = (proxy.user("alice"), namespaced("shop"));
    let (watch, trusted) = tokio::join!(alice.try_watch(&path), trust_later);
    trusted?;
    assert!(watch?.is_ok(), "it was to be served");
    Ok(())
}

#[tokio::test]
async fn a_request_that_trust_does_not_come_for_is_told_to_come_later() -> Result<()> {
    let stage = Stage::trusting_nobody(|_| {}).await?;
    let alice = stage.user("alice").await?;
    let answer = alice.get("/apis").await?;
    let message = "the CAs that certificates are judged by are not loaded yet";
    assert_refused(&answer, 503, &status(503, "ServiceUnavailable", message, r#"{"retryAfterSeconds":1}"#))?;
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(stage.reviewer.reviews().is_empty());
    // Nobody waits who shows nothing to judge.
    let anybody = Client::connect(stage.api()).await?;
    assert_eq!(anybody.get("/nowhere", &[]).await?.status, 403);
    Ok(())
}

#[tokio::test]
async fn flags_that_name_all_cas_need_no_config_map() -> Result<()> {
    let directory = tempfile::TempDir::new()?;
    let (clients, proxies) = (Authority::new("clients"), Authority::new("proxies"));
    let file = |name: &str, ca: &Authority| {
        let path = directory.path().join(name);
        std::fs::write(&path, ca.certificate_pem()).map(|()| path)
    };
    let names = Names { username_headers: vec!["x-remote-user".to_owned()], ..Names::default() };
    let front_proxy = Some((file("proxies.crt", &proxies)?, names));
    let trust_files = TrustFiles { client_ca: Some(file("clients.crt", &clients)?), front_proxy };
    let stage = Stage::trusting_nobody(|config| config.trust_files = trust_files).await?;
    stage.ready().await?;
    let proxy: FrontProxy = stage.proxy_showing(&proxies.client("any name", &[]), PROTOCOLS[1]).await?;
    let carol = Client::connect(stage.api().identity(&clients.client("carol", &[]))).await?;
    for answer in [proxy.user("alice").get("/nowhere").await?, carol.get("/nowhere", &[]).await?] {
        assert_eq!(answer.status, 403, "{}", answer.body);
    }
    let users: Vec<_> = stage.reviewer.reviews().iter().map(|spec| spec["user"].clone()).collect();
    assert_eq!(users, ["alice", "carol"]);
    assert_eq!(stage.reviewer.count("configmaps"), 0);

    // A new file is read while the server runs.
    let successors = Authority::new("clients");
    file("clients.crt", &successors)?;
    until_status(&carol, &[], 401).await?;
    let dave = Client::connect(stage.api().identity(&successors.client("dave", &[]))).await?;
    until_status(&dave, &[], 403).await
}
