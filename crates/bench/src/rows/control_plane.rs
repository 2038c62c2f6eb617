//! The whole path, through the real kube-apiserver: how much of its CPU is ours, and how much goes through.
//!
//! Nothing is pinned here: kube-apiserver is to have what it can get.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::audit_stream::AuditStream;
use audit_stream_testplane::control_plane::{AuditPolicy, ControlPlane, Options, SERVING_NAME};
use audit_stream_testplane::front_proxy::{Client, Target, request};
use audit_stream_testplane::manifests;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::Effort;
use crate::figure::Figure;
use crate::readers::{self, Readers};
use crate::{cores, corpus, usage};

const NAMESPACE: &str = "shop";
/// What is got over and over: each time is an event.
const OBJECT: &str = "/api/v1/namespaces/shop/configmaps/prices";
const GETS: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true&resource=configmaps&verb=get";

/// Nobody but a made-up kube-apiserver has events of it.
const MADE_UP_NAMESPACE: &str = "bazaar";
/// But for the events of the watches themselves, who reads being visible too.
const POSTS: &str = "/apis/audit.k8s.io/v1/namespaces/bazaar/namespacedevents?watch=true&\
                     fieldSelector=objectRef.resource!=namespacedevents";

const WATCHES: usize = 10;
/// Requests under way at a time, enough to keep kube-apiserver busy.
const AT_A_TIME: u64 = 32;
/// Of each of those, in a round.
const REQUESTS: u64 = 100;
/// Of a made-up kube-apiserver, in a round.
const BATCHES: u64 = 10;
const EVENTS: usize = 400;

pub(super) async fn through_kube_apiserver(effort: Effort) -> Result<Vec<Figure>> {
    cores::unpin()?;
    let figures = measure(effort).await;
    cores::pin_bench()?;
    figures
}

async fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let mut path = WholePath::start().await?;
    let (mut gets, mut posts) = (Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        gets.push(path.gets(REQUESTS * effort.scale).await?);
        let seeds = (1..=BATCHES * effort.scale).map(|batch| batch + 1_000 * (round as u64 + 1));
        posts.push(path.posts(seeds).await?);
    }
    let figure = |name: &str, spent: &[Spent], of: fn(&Spent) -> f64| {
        Figure::absolute(name, &spent.iter().map(of).collect::<Vec<_>>(), None)
    };
    Ok(vec![
        figure("GETs of the real kube-apiserver, 10 watches: events a second", &gets, Spent::events_a_second),
        figure("the same: of the CPU of kube-apiserver and ours, ours, %", &gets, Spent::our_percentage),
        figure("the same: cores that kube-apiserver has", &gets, Spent::cores_of_apiserver),
        figure("batches of a made-up one, 10 watches: events a second", &posts, Spent::events_a_second),
        figure("the same: of the CPU of kube-apiserver and ours, ours, %", &posts, Spent::our_percentage),
        figure("the same: cores that kube-apiserver has", &posts, Spent::cores_of_apiserver),
    ])
}

/// A control plane, ours behind it, and readers in front of it.
struct WholePath {
    plane: ControlPlane,
    server: AuditStream,
    /// Who gets what there is to get.
    client: Client,
    of_gets: Readers,
    /// A made-up kube-apiserver's.
    webhook: Client,
    of_posts: Readers,
}

/// When something began, and the CPU time of kube-apiserver and of ours until then.
struct Begun {
    at: Instant,
    cpu: [Duration; 2],
}

/// What a number of events took until each of the readers had them.
struct Spent {
    events: u64,
    took: Duration,
    apiserver: Duration,
    ours: Duration,
}

impl WholePath {
    async fn start() -> Result<Self> {
        let flags = ["--audit-webhook-batch-throttle-enable=false", "--audit-webhook-batch-buffer-size=100000"];
        let plane = ControlPlane::start(Options {
            audit_policy: AuditPolicy::Everything { config_map_bodies_in: Vec::new() },
            // Nothing but the webhook, or the disk would be measured.
            ledger: false,
            extra_apiserver_args: flags.map(str::to_owned).to_vec(),
        });
        let plane = plane.await?;
        manifests::apply(&plane).await?;
        let server = AuditStream::start(&plane, &[]).await?;
        manifests::wait_until_available(&plane).await?;
        plane.admin().run(&["create", "namespace", NAMESPACE]).await?.success()?;
        plane.admin().run(&["create", "configmap", "prices", "--namespace", NAMESPACE]).await?.success()?;

        let (trust, ports) = (plane.trust(), plane.ports());
        let local = |port: u16| ([127, 0, 0, 1], port).into();
        let root = trust.cluster.client("root", &["system:masters"]);
        let apiserver = Target::new(local(ports.apiserver), trust.cluster.certificate_pem(), "127.0.0.1");
        let client = Client::connect(apiserver.clone().identity(&root)).await?;
        let reader = Client::connect(apiserver.identity(&root)).await?;
        let webhook = Target::new(local(ports.webhook), trust.serving.certificate_pem(), SERVING_NAME);
        let webhook = Client::connect(webhook.identity(&trust.webhook_client)).await?;
        let (of_gets, of_posts) = (watch_all(&reader, GETS).await?, watch_all(&reader, POSTS).await?);
        Ok(Self { plane, server, client, of_gets, webhook, of_posts })
    }

    /// Many get something over and over.
    async fn gets(&mut self, times: u64) -> Result<Spent> {
        let begun = self.begin()?;
        let get = async |client: &Client| {
            for _ in 0..times {
                let answer = client.get(OBJECT, &[]).await?;
                ensure!(answer.status == 200, "{OBJECT}: {}", answer.body);
            }
            anyhow::Ok(())
        };
        try_join_all((0..AT_A_TIME).map(|_| get(&self.client))).await?;
        let events = AT_A_TIME * times;
        self.of_gets.wait_for(events * WATCHES as u64).await.context("of what was got")?;
        self.end(&begun, events)
    }

    /// Batches come one after the other, as soon as the one before has been read.
    async fn posts(&mut self, seeds: impl Iterator<Item = u64>) -> Result<Spent> {
        let bodies: Vec<Vec<u8>> = seeds.map(|seed| corpus::namespaced(seed, EVENTS, MADE_UP_NAMESPACE)).collect();
        let events = (bodies.len() * EVENTS) as u64;
        let begun = self.begin()?;
        for body in bodies {
            let answer = self.webhook.send(request("POST", "/webhook", &[], body)?).await?;
            ensure!(answer.status == 200, "the batch was refused: {} {}", answer.status, answer.body);
            self.of_posts.wait_for((EVENTS * WATCHES) as u64).await.context("of what was posted")?;
        }
        self.end(&begun, events)
    }

    fn begin(&self) -> Result<Begun> {
        Ok(Begun { cpu: self.cpu_times()?, at: Instant::now() })
    }

    fn end(&self, begun: &Begun, events: u64) -> Result<Spent> {
        let took = begun.at.elapsed();
        let [apiserver, ours] = self.cpu_times()?;
        let (apiserver, ours) = (apiserver.saturating_sub(begun.cpu[0]), ours.saturating_sub(begun.cpu[1]));
        Ok(Spent { events, took, apiserver, ours })
    }

    fn cpu_times(&self) -> Result<[Duration; 2]> {
        let apiserver = self.plane.apiserver_id().context("kube-apiserver has ended")?;
        Ok([usage::cpu_time(apiserver)?, usage::cpu_time(self.server.id())?])
    }
}

async fn watch_all(reader: &Client, path: &str) -> Result<Readers> {
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        let answer = reader.open(request("GET", path, &[], "")?).await?;
        ensure!(answer.status() == 200, "{path} was refused: {}", answer.status());
        watches.push(readers::of_body(answer.into_body(), reader.clone()));
    }
    Ok(Readers::start(watches))
}

impl Spent {
    fn events_a_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let events = self.events as f64;
        events / self.took.as_secs_f64()
    }

    fn our_percentage(&self) -> f64 {
        100.0 * self.ours.as_secs_f64() / (self.ours + self.apiserver).as_secs_f64()
    }

    fn cores_of_apiserver(&self) -> f64 {
        self.apiserver.as_secs_f64() / self.took.as_secs_f64()
    }
}
