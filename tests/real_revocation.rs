//! Permission that is withdrawn, and permission that nobody can confirm, on the real control plane and under load.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::front_proxy::{Client, Protocol, request};
use audit_stream_testplane::relay::{Relay, Way};
use futures::future::try_join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::real_cluster::{ARRIVAL, Cluster, watch_path};
use crate::real_readers::{End, Follower, LOAD, Load, Record};
use crate::stage::long;

/// Nothing is delivered for longer than this after the last review that said yes.
pub const LEASE: Duration = Duration::from_secs(20);

/// What a frame may take from the server through kube-apiserver to a reader, all of them on a busy machine.
pub const ON_THE_WAY: Duration = Duration::from_secs(2);

/// So many lose their permission at a time. A lease is renewed every 8 s: spread over that, they meet all phases of it.
const AT_A_TIME: usize = 10;
const SPREAD: Duration = Duration::from_secs(8);

/// The path of those who read the load.
pub fn load_path(namespace: &str) -> String {
    format!("{}&username={LOAD}", watch_path(namespace))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolebinding_that_is_deleted_ends_the_open_watch_under_load() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    let load = Load::start(cluster.webhook().await?, "shop");
    cluster.allow(&admin, "keeper", "shop").await?;
    let mut keeper = Follower::start("keeper", cluster.client("keeper", &[]).await?, &load_path("shop"));
    keeper.until_open().await?;

    let repetitions = if long() { 50 } else { 3 };
    let mut slowest = Duration::ZERO;
    for first in (0..repetitions).step_by(AT_A_TIME) {
        let count = AT_A_TIME.min(repetitions - first);
        let losses = (0..count).map(|number| {
            let after = SPREAD * number as u32 / count as u32;
            lose_permission(&cluster, &admin, &load, format!("reader-{}", first + number), after)
        });
        slowest = try_join_all(losses).await?.into_iter().fold(slowest, Duration::max);
    }
    println!("{repetitions} RoleBindings deleted, the slowest watch ended after {slowest:?}");

    let sent = load.finish().await?;
    keeper.until("the end of the load", |record| is_last(record, sent)).await?;
    let record = keeper.finish().await?;
    assert_eq!(record.sessions.len(), 1, "whose permission stays reads on: {:?}", record.sessions);
    record.ensure_whole(sent)
}

/// Whether the last event of the load has been received.
pub fn is_last(record: &Record, sent: u64) -> bool {
    record.received.last().is_some_and(|last| last.what.starts_with(&format!("load-{}-", sent - 1)))
}

/// Lets somebody read, then no longer, and returns how long the watch lasted after that.
pub async fn lose_permission(
    cluster: &Cluster,
    admin: &Client,
    load: &Load,
    user: String,
    after: Duration,
) -> Result<Duration> {
    cluster.allow(admin, &user, "shop").await?;
    let client = cluster.client(&user, &[]).await?;
    let mut reader = Follower::start(&user, client.clone(), &load_path("shop"));
    reader.until_open().await?;
    let opened = Instant::now();
    reader.until_more().await?;
    sleep_until(opened + after).await;
    let withdrawn = cluster.withdraw(admin, &user, "shop").await?;

    reader.until("the end", |record| !record.ends().is_empty()).await?;
    let sessions = reader.record().sessions.clone();
    let [session, ..] = &sessions[..] else { bail!("no watch") };
    let (ended, end) = session.end.clone().context("it has ended")?;
    ensure!(end == End::Error(403), "{user}: it ended with {end:?}");
    let lasted = ended.saturating_duration_since(withdrawn);
    ensure!(lasted <= LEASE + ON_THE_WAY, "{user}: it ended {lasted:?} after permission was withdrawn");

    // They keep trying, in vain: kube-apiserver refuses, and so does the server behind it, whose cache has heard of it.
    reader.until("refusals", |record| record.refusals.len() > 1).await?;
    let direct = cluster.front_proxy(Protocol::Http2).await?.user(&user);
    let refusal = direct.try_watch(&load_path("shop")).await?.err().context("it was opened")?;
    ensure!(refusal.status == 403, "{user}: {}", refusal.body);
    let record = reader.finish().await?;
    ensure!(record.sessions.len() == 1, "{user}: another watch was opened");
    ensure!(record.refusals.iter().all(|(_, code)| *code == 403), "{user}: {:?}", record.refusals);
    for received in &record.received {
        let made = load.made_at(received)?;
        ensure!(made <= withdrawn + LEASE, "{user}: {} is of {:?} later", received.what, made - withdrawn);
    }
    Ok(lasted)
}

/// kube-apiserver itself lives: it proxies, posts events and deletes namespaces, and only our questions do not reach it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reviewer_that_is_cut_off_opens_nothing_and_ends_what_is_open() -> Result<()> {
    let mut cluster = Cluster::without_server().await?;
    let relay = Relay::start(([127, 0, 0, 1], cluster.plane.ports().apiserver).into()).await?;
    let kubeconfig = cluster.plane.service_account_kubeconfig_through(relay.port(), "audit-stream", "audit-stream");
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.await?.display());
    cluster.serve(&["--logging-format=json", &kubeconfig], &[]).await?;

    cluster.namespace("shop").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    let load = Load::start(cluster.webhook().await?, "shop");
    for user in ["alice", "bob"] {
        cluster.allow(&admin, user, "shop").await?;
    }
    let mut readers = Vec::new();
    for user in ["alice", "bob"] {
        let mut reader = Follower::start(user, cluster.client(user, &[]).await?, &load_path("shop"));
        reader.until_open().await?;
        readers.push(reader);
    }
    for (fault, way) in [("silent", Way::Silent), ("closed", Way::Closed)] {
        without_reviewer(&cluster, &admin, &load, &mut readers, &relay, way).await.context(fault)?;
    }

    let sent = load.finish().await?;
    for mut reader in readers {
        reader.until("the end of the load", |record| is_last(record, sent)).await?;
        // What came while they were shut out was theirs to see: they lost nothing.
        reader.finish().await?.ensure_whole(sent)?;
    }
    Ok(())
}

/// Closes the way to the reviewer and opens it again, and looks at everybody meanwhile.
async fn without_reviewer(
    cluster: &Cluster,
    admin: &Client,
    load: &Load,
    readers: &mut [Follower],
    relay: &Relay,
    way: Way,
) -> Result<()> {
    for reader in readers.iter_mut() {
        reader.until_more().await?;
    }
    let stranger = format!("stranger-{way:?}").to_lowercase();
    cluster.allow(admin, &stranger, "shop").await?;
    let doomed = format!("doomed-{way:?}").to_lowercase();
    cluster.namespace(&doomed).await?;
    let sessions: Vec<_> = readers.iter().map(|reader| reader.record().sessions.len()).collect();

    // The last review that said yes was asked for before this.
    let cut = Instant::now();
    relay.set(way);
    let mut newcomer = Follower::start(&stranger, cluster.client(&stranger, &[]).await?, &load_path("shop"));
    // 403 is kube-apiserver's own, until it has heard of the RoleBinding.
    let is_refused = |record: &Record| record.refusals.iter().any(|(_, code)| *code != 403);
    newcomer.until("a refusal", is_refused).await?;
    for (reader, count) in readers.iter_mut().zip(&sessions) {
        reader.until("the end", |record| record.ends().len() >= *count).await?;
    }
    // By now nothing is remembered of who may ask for discovery: not of the namespace controller, which asks every API.
    delete_namespace(cluster, admin, &doomed).await?;
    let discovery = admin.get("/apis/audit.k8s.io/v1", &[]).await?;
    ensure!(discovery.status == 200, "discovery: {}", discovery.body);
    ensure!(is_available(admin).await?, "the APIService is not available");
    // Nobody comes in through what is remembered either: answers are for 10 s, and leases for 20.
    sleep_until(cut + LEASE + ON_THE_WAY).await;
    let healed = Instant::now();
    let shut_out: Vec<_> = readers.iter().map(|reader| reader.record().sessions.len()).collect();
    ensure!(newcomer.record().sessions.is_empty(), "a watch was opened without a review");
    for reader in readers.iter() {
        let record = reader.record();
        let open = record.sessions.iter().filter(|session| session.end.is_none()).count();
        ensure!(open == 0, "{}: a watch is open {:?} after the last review", reader.name, healed - cut);
        let last = record.received.last().context("it has received")?;
        ensure!(load.made_at(last)? <= cut + LEASE, "{}: {last:?} is too late", reader.name);
        for (ended, end) in record.sessions.iter().filter_map(|session| session.end.as_ref()) {
            ensure!(*end == End::Error(500), "{}: it ended with {end:?}", reader.name);
            ensure!(*ended <= cut + LEASE + ON_THE_WAY, "{}: it ended after {:?}", reader.name, *ended - cut);
        }
    }

    relay.set(Way::Open);
    newcomer.until_open().await?;
    newcomer.until_more().await?;
    newcomer.finish().await?;
    for (reader, count) in readers.iter_mut().zip(&shut_out) {
        reader.until("a new watch", |record| record.sessions.len() > *count).await?;
        reader.until_more().await?;
    }
    println!("{way:?}: healed after {:?}", healed.elapsed());
    Ok(())
}

/// Deletes a namespace and waits until it is gone, for which each API must have told what it has.
async fn delete_namespace(cluster: &Cluster, admin: &Client, name: &str) -> Result<()> {
    cluster.plane.admin().run(&["delete", "namespace", name, "--wait=false"]).await?.success()?;
    let deadline = Instant::now() + ARRIVAL;
    let gone = async {
        while admin.get(&format!("/api/v1/namespaces/{name}"), &[]).await?.status != 404 {
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    timeout_at(deadline, gone).await.with_context(|| format!("{name} is still there after {ARRIVAL:?}"))?
}

async fn is_available(admin: &Client) -> Result<bool> {
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.audit.k8s.io/status";
    let status = admin.send(request("GET", path, &[], "")?).await?.json()?;
    let conditions = status["status"]["conditions"].as_array().context("no conditions")?;
    Ok(conditions.iter().any(|condition| condition["type"] == "Available" && condition["status"] == "True"))
}
