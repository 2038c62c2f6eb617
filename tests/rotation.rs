//! Certificates and CAs that are replaced while watches are open and batches arrive: the old is refused, the new is accepted, and
//! nobody loses an event or gets one twice.
//!
//! Each is rotated as in practice: the old and the new are published together, then everybody moves over, then the old is
//! withdrawn.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol};
use audit_stream_testplane::history::{Bookmarks, Clock, Frame, History, Scope, Sent, Transcript};
use audit_stream_testplane::pki::{Authority, Identity};
use audit_stream_testplane::recording::{RecordingReader, RecordingSender, Stopped};
use audit_stream_testplane::reviewer::AuthenticationConfig;
use audit_stream_testplane::webhook_sender::{Outcome, Sending};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ALONE;
use crate::stage::{ARRIVAL, EVENTS, SENDER, ServingFile, Stage, eventually, in_namespace};

/// How often each is rotated.
const ROTATIONS: usize = 20;

const RELOADS: &str = "audit_stream_certificate_reloads_total";

/// What ends a story: the last event, which every reader waits for.
const END: &str = "the-end";

/// Readers and a sender at work, until they are told that it is enough.
struct Load {
    enough: CancellationToken,
    sending: JoinSet<Result<RecordingSender>>,
    reading: JoinSet<Result<Transcript>>,
}

impl Load {
    /// Readers of the whole cluster behind `proxy`, and a sender.
    async fn begin(stage: &Stage, proxy: &FrontProxy, sender: RecordingSender, clock: &Clock) -> Result<Self> {
        let enough = CancellationToken::new();
        let (mut sending, mut reading) = (JoinSet::new(), JoinSet::new());
        for number in 0..5 {
            let name = format!("reader-{number}");
            stage.reviewer.allow(&name).to("watch").on("events").cluster_wide();
            let reader = RecordingReader::new(clock, proxy.user(&name), &name, Scope::Cluster);
            let mut reader = reader.with_bookmarks(Bookmarks::WithInitialEvents);
            reader.begin().await?;
            reading.spawn(read_to_the_end(reader));
        }
        let told = enough.clone();
        sending.spawn(async move {
            let mut number = 0;
            while !told.is_cancelled() {
                number += 1;
                let sent = |part| sent(&format!("{number}-{part}"));
                let outcome = sender.send((0..20).map(sent).collect()).await;
                ensure!(outcome == Outcome::Delivered, "batch {number} was given up");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ensure!(sender.send(vec![sent(END)]).await == Outcome::Delivered, "the end was given up");
            Ok(sender)
        });
        Ok(Self { enough, sending, reading })
    }

    /// Ends it, and judges all of it.
    async fn judge(mut self, min_events: usize) -> Result<History> {
        self.enough.cancel();
        let sender = self.sending.join_next().await.context("there is one")???;
        let mut transcripts = Vec::new();
        while let Some(transcript) = self.reading.join_next().await {
            transcripts.push(transcript??);
        }
        let history = History::new(sender.finish(), transcripts);
        history.worth_checking(min_events, 5 * min_events)?;
        history.validate()?;
        Ok(history)
    }
}

fn sent(id: &str) -> Sent {
    Sent { json: in_namespace("shop", id).build(), namespace: Some("shop".to_owned()) }
}

/// Reads, and comes back to its place each time that its watch ends.
async fn read_to_the_end(mut reader: RecordingReader) -> Result<Transcript> {
    let is_end = |frame: &Frame| frame.contains(END);
    loop {
        let stopped = timeout(10 * ARRIVAL, reader.read_until(is_end, &CancellationToken::new())).await;
        match stopped.context("the end does not come")?? {
            Stopped::Reached => return Ok(reader.finish()),
            Stopped::Told | Stopped::Ended => reader.resume().await?,
        }
    }
}

/// A kube-apiserver: patient enough for a rotation, and with a connection of its own for each way to be known.
async fn sender(stage: &Stage, clock: &Clock, identity: &Identity) -> Result<RecordingSender> {
    RecordingSender::start(clock, stage.webhook_showing(identity), "a", Sending::default()).await
}

/// How the front proxy with this certificate is answered on a new connection.
async fn answer_to_proxy(stage: &Stage, identity: &Identity) -> Result<u16> {
    let proxy = stage.proxy_showing(identity, Protocol::Http1).await?;
    Ok(proxy.user("admin").groups(["system:masters"]).get("/apis/audit.k8s.io/v1").await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_front_proxys_ca_is_rotated_under_load() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (stage, clock) = (Stage::start().await?, Clock::default());
    let webhook = sender(&stage, &clock, &stage.webhook_ca.client(SENDER, &[])).await?;
    let client = |ca: &Authority| ca.client("front-proxy-client", &[]);
    let mut old = (client(&stage.front_proxy_ca), stage.front_proxy_ca.certificate_pem().to_owned());
    let proxy = stage.proxy_showing(&old.0, Protocol::Http2).await?;
    let load = Load::begin(&stage, &proxy, webhook, &clock).await?;
    for number in 0..ROTATIONS {
        let ca = Authority::new(&format!("front-proxy-{number}"));
        let new = (client(&ca), ca.certificate_pem().to_owned());
        ensure!(answer_to_proxy(&stage, &new.0).await? == 401, "{number}: the new one is believed too soon");
        stage.reviewer.set_config_map(&AuthenticationConfig::trusting(&(old.1.clone() + &new.1)));
        let both = async || Ok((answer_to_proxy(&stage, &new.0).await? == 200).then_some(()));
        eventually("the new one to be believed", both).await?;
        ensure!(answer_to_proxy(&stage, &old.0).await? == 200, "{number}: the old one is refused too soon");
        // A connection of the old one, which it goes on with.
        let lasting = stage.proxy_showing(&old.0, Protocol::Http2).await?.user("admin").groups(["system:masters"]);
        ensure!(lasting.get("/apis").await?.status == 200, "{number}: the old one is refused too soon");
        stage.reviewer.set_config_map(&AuthenticationConfig::trusting(&new.1));
        let alone = async || Ok((answer_to_proxy(&stage, &old.0).await? == 401).then_some(()));
        eventually("the old one to be refused", alone).await?;
        for _ in 0..10 {
            ensure!(answer_to_proxy(&stage, &old.0).await? == 401, "{number}: the old one was believed");
            ensure!(lasting.get("/apis/audit.k8s.io/v1").await?.status == 401, "{number}: on its old connection");
            ensure!(answer_to_proxy(&stage, &new.0).await? == 200, "{number}: the new one was refused");
        }
        // Other users open watches.
        let newcomer = stage.proxy_showing(&new.0, Protocol::Http2).await?.user("admin").groups(["system:masters"]);
        drop(newcomer.watch(EVENTS).await?);
        old = new;
    }
    // What is open is not broken: each of those was let in when it came, and is reviewed again and again.
    let history = load.judge(ROTATIONS * 20).await?;
    for transcript in &history.transcripts {
        ensure!(transcript.sessions.len() == 1, "{} came back", transcript.reader);
    }
    Ok(())
}

/// How a user with this certificate is answered, on a new connection past the front proxy.
async fn answer_to_user(stage: &Stage, identity: &Identity) -> Result<u16> {
    let user = Client::connect(stage.api().identity(identity)).await?;
    Ok(user.get("/apis/audit.k8s.io/v1", &[]).await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_of_users_is_rotated_under_load() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (stage, clock) = (Stage::start().await?, Clock::default());
    let webhook = sender(&stage, &clock, &stage.webhook_ca.client(SENDER, &[])).await?;
    let proxy = stage.proxy(Protocol::Http2).await?;
    let load = Load::begin(&stage, &proxy, webhook, &clock).await?;
    let user = |ca: &Authority| (ca.client("alice", &["system:masters"]), ca.certificate_pem().to_owned());
    let publish = |cas: &str| {
        let proxys = AuthenticationConfig::trusting(stage.front_proxy_ca.certificate_pem());
        stage.reviewer.set_config_map(&proxys.client_ca(cas));
    };
    let mut old = user(&stage.client_ca);
    for number in 0..ROTATIONS {
        let new = user(&Authority::new("clients"));
        ensure!(answer_to_user(&stage, &new.0).await? == 401, "{number}: the new one is believed too soon");
        publish(&(old.1.clone() + &new.1));
        let both = async || Ok((answer_to_user(&stage, &new.0).await? == 200).then_some(()));
        eventually("the new one to be believed", both).await?;
        let lasting = Client::connect(stage.api().identity(&old.0)).await?;
        ensure!(lasting.get("/apis", &[]).await?.status == 200, "{number}: the old one is refused too soon");
        publish(&new.1);
        let alone = async || Ok((answer_to_user(&stage, &old.0).await? == 401).then_some(()));
        eventually("the old one to be refused", alone).await?;
        for _ in 0..10 {
            ensure!(answer_to_user(&stage, &old.0).await? == 401, "{number}: the old one was believed");
            ensure!(lasting.get("/apis", &[]).await?.status == 401, "{number}: on its old connection");
            ensure!(answer_to_user(&stage, &new.0).await? == 200, "{number}: the new one was refused");
        }
        old = new;
    }
    for transcript in &load.judge(ROTATIONS * 20).await?.transcripts {
        ensure!(transcript.sessions.len() == 1, "{} came back", transcript.reader);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serving_certificate_is_rotated_under_load() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (stage, clock) = (Stage::start().await?, Clock::default());
    let webhook = sender(&stage, &clock, &stage.webhook_ca.client(SENDER, &[])).await?;
    let proxy = stage.proxy(Protocol::Http2).await?;
    let load = Load::begin(&stage, &proxy, webhook, &clock).await?;
    for number in 0..ROTATIONS {
        let new = stage.new_serving_pair();
        let served = async || Ok((stage.api().served_certificate().await? == new.certificate()?).then_some(()));
        let served_webhook =
            async || Ok((stage.webhook().served_certificate().await? == new.certificate()?).then_some(()));
        let failures = async || {
            let of = async |file| stage.metric(RELOADS, &[("file", file), ("outcome", "failure")]).await;
            Ok::<_, anyhow::Error>((of("serving").await?, of("webhook_serving").await?))
        };
        let before = failures().await?;
        stage.write(ServingFile::Certificate, &new.certificate_pem)?;
        if number % 5 == 0 {
            // Half of the pair is no pair. It is told for each listener, and what was there before is served.
            let told = async || {
                let now = failures().await?;
                Ok((now.0 > before.0 && now.1 > before.1).then_some(()))
            };
            eventually("half of a pair to be told", told).await?;
            ensure!(served().await?.is_none(), "half of a pair is served");
        }
        stage.write(ServingFile::Key, &new.key_pem)?;
        eventually("the new certificate to be served", served).await?;
        eventually("the new certificate to be served to the webhook", served_webhook).await?;
        ensure!(answer_to_proxy(&stage, &stage.front_proxy_ca.client("front-proxy-client", &[])).await? == 200);
        ensure!(stage.sender().await?.post(event_list::<&str>(&[])).await?.status == 200, "a new sender is refused");
    }
    let expiration = stage.metric("audit_stream_certificate_expiration_timestamp_seconds", &[("listener", "api")]);
    ensure!(expiration.await? > 0.0, "nobody is told when it expires");
    let history = load.judge(ROTATIONS * 20).await?;
    for transcript in &history.transcripts {
        ensure!(transcript.sessions.len() == 1, "{} came back", transcript.reader);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_of_the_webhooks_clients_is_rotated_under_load() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (stage, clock) = (Stage::start().await?, Clock::default());
    let proxy = stage.proxy(Protocol::Http2).await?;
    let mut old = (stage.webhook_ca.client(SENDER, &[]), stage.webhook_ca.certificate_pem().to_owned());
    let poster = stage.sender().await?;
    let mut batches = Vec::new();
    let mut transcripts = JoinSet::new();
    for number in 0..4 {
        let name = format!("reader-{number}");
        stage.reviewer.allow(&name).to("watch").on("events").cluster_wide();
        let mut reader = RecordingReader::new(&clock, proxy.user(&name), &name, Scope::Cluster)
            .with_bookmarks(Bookmarks::WithInitialEvents);
        reader.begin().await?;
        transcripts.spawn(read_to_the_end(reader));
    }
    for number in 0..ROTATIONS {
        let ca = Authority::new(&format!("webhook-{number}"));
        let new = (ca.client(SENDER, &[]), ca.certificate_pem().to_owned());
        let can_post = async |identity: &Identity| {
            let post = poster.raw().identity(identity).path("/webhook/a").body(event_list::<&str>(&[]));
            Ok::<_, anyhow::Error>(post.send().await.is_ok_and(|answer| answer.status == 200))
        };
        // The old one's connection, which is open all the time, and busy.
        let busy = sender(&stage, &clock, &old.0).await?;
        ensure!(busy.send(events(number, "old")).await == Outcome::Delivered, "{number}: the old one is refused");
        ensure!(!can_post(&new.0).await?, "{number}: the new one is believed too soon");
        stage.write(ServingFile::WebhookClientCa, &(old.1.clone() + &new.1))?;
        let both = async || Ok(can_post(&new.0).await?.then_some(()));
        eventually("the new one to be believed", both).await?;
        ensure!(busy.send(events(number, "both")).await == Outcome::Delivered, "{number}: refused too soon");
        let next = sender(&stage, &clock, &new.0).await?;
        ensure!(next.send(events(number, "moved")).await == Outcome::Delivered, "{number}: the new one is refused");
        stage.write(ServingFile::WebhookClientCa, &new.1)?;
        let alone = async || Ok((!can_post(&old.0).await?).then_some(()));
        eventually("the old one to be refused", alone).await?;
        // On the connection that it has had all along, and on every other: what it sends is nobody's.
        ensure!(busy.send(events(number, "refused")).await == Outcome::GivenUp, "{number}: the old one was believed");
        ensure!(next.send(events(number, "new")).await == Outcome::Delivered, "{number}: the new one is refused");
        // The refused batch is not known to have been accepted: were it published, no reader may say so.
        let refused = busy.finish();
        ensure!(refused.last().is_some_and(|batch| batch.accepted.is_none()), "{number}: accepted");
        batches.extend(refused.into_iter().filter(|batch| batch.accepted.is_some()));
        batches.extend(next.finish());
        old = new;
    }
    let last = sender(&stage, &clock, &old.0).await?;
    ensure!(last.send(vec![sent(END)]).await == Outcome::Delivered, "the end was given up");
    batches.extend(last.finish());
    let transcripts: Result<Vec<_>> = transcripts.join_all().await.into_iter().collect();
    let history = History::new(batches, transcripts?);
    history.worth_checking(ROTATIONS * 80, 4 * ROTATIONS * 80)?;
    // What was refused would be an event that nobody sent.
    history.validate()?;
    let untrusted = [("listener", "webhook"), ("reason", "untrusted")];
    let retired = stage.metric("audit_stream_retired_connections_total", &untrusted).await?;
    ensure!(retired >= ROTATIONS as f64, "the old connections were not ended: {retired}");
    Ok(())
}

fn events(rotation: usize, phase: &str) -> Vec<Sent> {
    (0..20).map(|number| sent(&format!("{rotation}-{phase}-{number}"))).collect()
}
