//! Who may read, and for how long: granted, withdrawn, unknown, and never by a header alone.
//!
//! Leases and caches are measured in real time here, so these stories take 10 to 22 s. All of them are told at once, by
//! one test, because a test that waits holds up another one.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::{event, event_list, fresh_audit_id};
use audit_stream_testplane::front_proxy::{Client, ProxiedUser, Watch, WatchError};
use audit_stream_testplane::pki::Authority;
use audit_stream_testplane::reviewer::{AuthenticationConfig, OWN_USER, Reviewer};
use audit_stream_testplane::webhook_sender::WebhookSender;
use futures::future::{LocalBoxFuture, try_join_all};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stage::{
    ARRIVAL, EVENTS, PROTOCOLS, Stage, assert_ends, assert_refused, eventually, gap, ids, in_namespace, many_watches,
    namespaced, read_error, read_until, status,
};

/// No byte is delivered later than this after the last review that said yes.
const LEASE: Duration = Duration::from_secs(20);

/// What a busy machine may take from the server's end of a connection to the reader's.
const ON_THE_WAY: Duration = Duration::from_secs(2);

/// Between two events where a story needs a steady stream of them.
const BEAT: Duration = Duration::from_millis(200);

fn forbidden(user: &str) -> String {
    let message = format!(
        "namespacedevents.audit.k8s.io is forbidden: User \"{user}\" cannot watch resource \"namespacedevents\" in API \
         group \"audit.k8s.io\" in the namespace \"shop\""
    );
    status(403, "Forbidden", &message, r#"{"group":"audit.k8s.io","kind":"namespacedevents"}"#)
}

async fn send(sender: &WebhookSender, audit_id: &str) -> Result<()> {
    let answer = sender.post(event_list(&[in_namespace("shop", audit_id).build()])).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(())
}

#[tokio::test]
async fn permissions_change_while_people_watch() -> Result<()> {
    fn told<'a>(name: &'a str, story: impl Future<Output = Result<()>> + 'a) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { story.await.with_context(|| name.to_owned()) })
    }
    try_join_all([
        told("granted", a_permission_that_is_granted_is_honoured_in_time()),
        told("withdrawn", a_permission_that_is_withdrawn_ends_its_watches_alone()),
        told("failing", a_reviewer_that_is_lost_ends_every_watch(|stage| stage.reviewer.fail_with(503))),
        told("hanging", a_reviewer_that_is_lost_ends_every_watch(|stage| stage.reviewer.hang())),
        told("gone", a_reviewer_that_is_gone_ends_every_watch()),
        told("back", a_reviewer_that_comes_back_in_time_ends_nothing()),
    ])
    .await?;
    Ok(())
}

async fn a_permission_that_is_granted_is_honoured_in_time() -> Result<()> {
    let stage = Stage::start().await?;
    let alice = stage.user("alice").await?;
    let refusal = alice.try_watch(&namespaced("shop")).await?.err().context("nobody has allowed it")?;
    assert_refused(&refusal, 403, &forbidden("alice"))?;
    stage.let_read("alice", "shop");
    let granted = Instant::now();
    eventually("the watch to be granted", async || Ok(alice.try_watch(&namespaced("shop")).await?.ok())).await?;
    ensure!(granted.elapsed() <= Duration::from_secs(15), "honoured after {:?}", granted.elapsed());
    Ok(())
}

async fn a_permission_that_is_withdrawn_ends_its_watches_alone() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    stage.let_read("bert", "shop");
    let sender = stage.sender().await?;
    let (mut hers, mut his) = (Vec::new(), Vec::new());
    for protocol in PROTOCOLS {
        let proxy = stage.proxy(protocol).await?;
        for _ in 0..2 {
            hers.push(proxy.user("alice").watch(&namespaced("shop")).await?);
            his.push(proxy.user("bert").watch(&namespaced("shop")).await?);
        }
    }
    send(&sender, "before").await?;
    for watch in hers.iter_mut().chain(&mut his) {
        ensure!(ids(&read_until(watch, "before").await?) == ["before"]);
    }

    stage.reviewer.revoke("alice").to("watch").on("namespacedevents").in_namespace("shop");
    let revoked = Instant::now();
    for watch in &mut hers {
        let error = read_error(watch).await?;
        ensure!(error == serde_json::from_str::<Value>(&forbidden("alice"))?, "{error}");
    }
    ensure!(revoked.elapsed() <= LEASE + ON_THE_WAY, "it ended after {:?}", revoked.elapsed());
    let refusal = stage.user("alice").await?.try_watch(&namespaced("shop")).await?.err().context("it was withdrawn")?;
    assert_refused(&refusal, 403, &forbidden("alice"))?;

    send(&sender, "after").await?;
    for watch in &mut his {
        ensure!(ids(&read_until(watch, "after").await?) == ["after"]);
    }
    stage.until_metric("audit_stream_watch_ended_total", &[("reason", "forbidden")], 4.0).await?;
    ensure!(stage.metric("audit_stream_watch_open", &[]).await? == 4.0);
    Ok(())
}

/// What a reader got of a steady stream.
#[derive(Default)]
struct Followed {
    /// When each event that was read had begun to be sent.
    read: Vec<Instant>,
    /// What the watch said last, if that was anything else than an event. `None` inside is an end without a word.
    last: Option<Option<Value>>,
}

/// Sends an event at each beat, and reads all that arrives, until the watch says something else than `ADDED` or `until`
/// is over.
async fn follow(sender: &WebhookSender, watch: &mut Watch, until: Instant) -> Result<Followed> {
    let mut sent = HashMap::new();
    let mut followed = Followed::default();
    while Instant::now() < until {
        let (audit_id, begun) = (fresh_audit_id(), Instant::now());
        send(sender, &audit_id).await?;
        sent.insert(audit_id, begun);
        let beat = Instant::now() + BEAT;
        loop {
            match watch.next(beat.saturating_duration_since(Instant::now())).await {
                Ok(Some(frame)) if frame["type"] == "ADDED" => {
                    let audit_id = frame["object"]["auditID"].as_str().context("an event without an audit ID")?;
                    followed.read.push(*sent.get(audit_id).context("nobody sent it")?);
                }
                Ok(frame) => return Ok(Followed { last: Some(frame), ..followed }),
                Err(WatchError::Quiet(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(followed)
}

async fn a_reviewer_that_is_lost_ends_every_watch(lose: impl FnOnce(&mut Stage)) -> Result<()> {
    let mut stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    let sender = stage.sender().await?;
    let mut watches = Vec::new();
    for protocol in PROTOCOLS {
        watches.push(stage.proxy(protocol).await?.user("alice").watch(&namespaced("shop")).await?);
    }
    // The last review that said yes was asked for before this.
    let last_review = Instant::now();
    lose(&mut stage);
    let [first, second] = &mut watches[..] else { unreachable!("one for each protocol") };
    // Whatever the machine does meanwhile: an event that was sent when the lease was over is never delivered.
    let over = last_review + LEASE;
    let Followed { read, last } = follow(&sender, first, over + ARRIVAL).await?;
    ensure!(
        read.iter().all(|begun| *begun <= over),
        "an event of {:?} after was delivered",
        read.last().map(|b| *b - over)
    );
    ensure!(read.len() > 10, "it was served as long as its lease lasted: {} events", read.len());
    ensure!(Instant::now() <= over + ON_THE_WAY, "it ended after {:?}", last_review.elapsed());
    let error = last.context("it goes on")?.context("it ended without a word")?;
    ensure!((&error["type"], &error["object"]["code"]) == (&json!("ERROR"), &json!(500)), "{error}");
    assert_ends(first).await?;

    // The other reader has read nothing so far. What was on its way is there, and nothing that came after the lease.
    tokio::time::sleep_until(over).await;
    send(&sender, "after").await?;
    let frames = second.rest(ARRIVAL).await?;
    let (last, events) = frames.split_last().context("nothing at all")?;
    ensure!((&last["type"], &last["object"]["code"]) == (&json!("ERROR"), &json!(500)), "{last}");
    ensure!(events.iter().all(|frame| frame["type"] == "ADDED" && frame["object"]["auditID"] != "after"));
    ensure!(stage.metric("audit_stream_watch_open", &[]).await? == 0.0);
    Ok(())
}

async fn a_reviewer_that_is_gone_ends_every_watch() -> Result<()> {
    // Another one, whom nobody knows: the one that was asked closes its listener and its connections.
    let mut successor = Some(Reviewer::start().await?);
    a_reviewer_that_is_lost_ends_every_watch(move |stage| stage.reviewer = successor.take().expect("lost once")).await
}

async fn a_reviewer_that_comes_back_in_time_ends_nothing() -> Result<()> {
    let stage = Stage::start().await?;
    stage.let_read("alice", "shop");
    let sender = stage.sender().await?;
    let mut watch = stage.user("alice").await?.watch(&namespaced("shop")).await?;
    let opened = Instant::now();
    stage.reviewer.fail_with(503);
    // It is asked again, at about 8 s, and does not answer.
    stage.until_metric("audit_stream_reviews_total", &[("outcome", "error")], 2.0).await?;
    ensure!(opened.elapsed() < LEASE, "asked too late: {:?}", opened.elapsed());
    stage.reviewer.recover();
    let Followed { read, last } = follow(&sender, &mut watch, opened + LEASE + ON_THE_WAY).await?;
    ensure!(last.is_none(), "it ended: {last:?}");
    ensure!(read.iter().any(|begun| *begun > opened + LEASE), "it was not served beyond its first lease");
    Ok(())
}

#[tokio::test]
async fn answers_are_remembered_as_long_as_the_flags_say() -> Result<()> {
    let ttl = Duration::from_millis(300);
    let stage = Stage::with(|config| {
        config.authorization_cache.authorized = ttl;
        config.authorization_cache.unauthorized = ttl;
    });
    let stage = stage.await?;
    let alice = stage.user("alice").await?;
    let refused = async || Ok(alice.try_watch(&namespaced("shop")).await?.err());
    let served = async || Ok(alice.try_watch(&namespaced("shop")).await?.ok());
    refused().await?.context("nobody has allowed it")?;
    stage.let_read("alice", "shop");
    let granted = Instant::now();
    eventually("the watch to be granted", served).await?;
    stage.reviewer.revoke("alice").to("watch").on("namespacedevents").in_namespace("shop");
    eventually("the watch to be refused", refused).await?;
    // Either answer lasted 300 ms and not the 10 s of the default.
    assert!(granted.elapsed() < Duration::from_secs(5), "{:?}", granted.elapsed());
    Ok(())
}

#[tokio::test]
async fn many_who_ask_the_same_are_one_question() -> Result<()> {
    let stage = Stage::with(many_watches).await?;
    let alice = stage.reader("alice", "shop").await?;
    stage.reviewer.answer_after(Duration::from_millis(200));
    let path = namespaced("shop");
    let watches = try_join_all((0..50).map(|_| alice.watch(&path))).await?;
    assert_eq!((watches.len(), stage.reviewer.reviews().len()), (50, 1));
    let spec = json!({"user": "alice", "groups": ["system:authenticated"], "extra": {}, "resourceAttributes": {
        "verb": "watch", "group": "audit.k8s.io", "version": "v1", "resource": "namespacedevents", "namespace": "shop"}});
    assert_eq!(stage.reviewer.reviews(), [spec]);
    // Somebody in another group is somebody else.
    let other = alice.clone().groups(["dev"]).watch(&path).await;
    assert!(other.is_ok() && stage.reviewer.reviews().len() == 2);
    Ok(())
}

#[tokio::test]
async fn headers_without_the_front_proxys_certificate_name_nobody() -> Result<()> {
    let stage = Stage::start().await?;
    stage.reviewer.allow("root").to("watch").on("*").cluster_wide();
    let headers = [
        ("X-Remote-User", "root"),
        ("X-Remote-Group", "system:masters"),
        ("X-Remote-Uid", "0"),
        ("X-Remote-Extra-Scopes", "all"),
        ("X-Forwarded-For", "127.0.0.1"),
    ];
    for protocol in PROTOCOLS {
        let anybody = Client::connect(stage.api().protocol(protocol)).await?;
        let answer = anybody.get(&namespaced("shop"), &headers).await?;
        assert_refused(&answer, 403, &forbidden("system:anonymous"))?;
    }
    for review in stage.reviewer.reviews() {
        let asked = [&review["user"], &review["groups"], &review["uid"], &review["extra"]];
        let anonymous = json!(["system:anonymous", ["system:unauthenticated"], null, {}]);
        assert_eq!(json!(asked), anonymous);
    }
    assert_eq!(stage.reviewer.reviews().len(), 1);
    Ok(())
}

#[tokio::test]
async fn the_front_proxy_is_who_the_config_map_says_now() -> Result<()> {
    let stage = Stage::start().await?;
    let alice = stage.reader("alice", "shop").await?;
    let mut watch = alice.watch(&namespaced("shop")).await?;
    let successor = Authority::new("front-proxy-2");
    let identity = successor.client("another-proxy", &[]);
    let status_of = async |proxied: &ProxiedUser, wanted: u16| {
        let path = "/apis/audit.k8s.io/v1";
        let reached = async || Ok((proxied.get(path).await?.status == wanted).then_some(()));
        eventually(&format!("{wanted}"), reached).await
    };
    let hers = stage.proxy_showing(&identity, PROTOCOLS[1]).await?.user("alice");
    status_of(&hers, 401).await?;

    // On the connections that are there.
    let trusting = AuthenticationConfig::trusting(successor.certificate_pem());
    stage.reviewer.set_config_map(&trusting.clone().allowed_names(&["another-proxy"]));
    status_of(&hers, 200).await?;
    status_of(&alice, 401).await?;
    // Also by other headers, and after the ConfigMap was away.
    stage.reviewer.delete_config_map();
    let renamed = trusting.allowed_names(&["another-proxy"]).names("requestheader-username-headers", &["X-User"]);
    stage.reviewer.set_config_map(&renamed);
    let renamed = hers.clone().header("X-User", "alice").without("X-Remote-User");
    status_of(&renamed, 200).await?;
    status_of(&hers, 401).await?;

    // Whoever was let in stays in: the lease asks about the user.
    let sender = stage.sender().await?;
    send(&sender, "a").await?;
    assert_eq!(ids(&read_until(&mut watch, "a").await?), ["a"]);
    Ok(())
}

#[tokio::test]
async fn the_servers_own_reviews_are_not_in_the_stream() -> Result<()> {
    let (stage, dropped) = (Stage::start().await?, "audit_stream_ingest_dropped_events_total");
    let review = |id: &str, user: &str, group: &str, resource: &str| {
        event().user(user).verb("create").api_group(group).resource(resource).audit_id(id)
    };
    let (authorization, authentication) = ("authorization.k8s.io", "authentication.k8s.io");
    // The server asks who it is while it serves already.
    let sender = stage.sender().await?;
    let known = async || {
        sender.post(event_list(&[review("early", OWN_USER, authorization, "subjectaccessreviews").build()])).await?;
        let own_reviews = stage.metric(dropped, &[("reason", "own_review")]).await?;
        Ok((own_reviews > 0.0).then_some(own_reviews))
    };
    let before = eventually("the server to know its own name", known).await?;
    let mut everything = stage.admin().await?.watch(EVENTS).await?;
    let own = [
        review("sar", OWN_USER, authorization, "subjectaccessreviews"),
        review("tokens", OWN_USER, authentication, "tokenreviews"),
        review("self", OWN_USER, authentication, "selfsubjectreviews"),
    ];
    let others = [
        review("somebody", "alice", authorization, "subjectaccessreviews"),
        review("look-alike", &format!("{OWN_USER}2"), authorization, "subjectaccessreviews"),
        review("impersonated", "alice", authorization, "subjectaccessreviews").impersonating(OWN_USER, &[]),
        review("impersonating", OWN_USER, authorization, "subjectaccessreviews").impersonating("alice", &[]),
        review("another group", OWN_USER, "example.com", "subjectaccessreviews"),
        review("another resource", OWN_USER, authorization, "localsubjectaccessreviews"),
        event().user(OWN_USER).resource("configmaps").namespace("kube-system").name("x").audit_id("own read"),
        review("last", "alice", authorization, "selfsubjectaccessreviews"),
    ];
    let expected = [
        "somebody",
        "look-alike",
        "impersonated",
        "impersonating",
        "another group",
        "another resource",
        "own read",
        "last",
    ];
    own.into_iter().chain(others).for_each(|event| sender.send(event));
    sender.flush().await?;
    let read = read_until(&mut everything, "last").await?;
    assert_eq!(ids(&read), expected);
    assert!(read.iter().all(|object| gap(object).is_none()), "nobody missed anything");
    assert_eq!(stage.metric(dropped, &[("reason", "own_review")]).await?, before + 3.0);
    Ok(())
}
