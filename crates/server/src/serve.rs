//! Puts the rooms together, and takes them apart in order.

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use audit_stream_bus::Bus;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all, join3};
use http::Request;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::authn::files::TrustFiles;
use crate::authn::tokens::Tokens;
use crate::authn::{self, Authenticator};
use crate::authz::{Authorizer, CacheTtl};
use crate::certs::{self, ClientCa, PairFiles, ServerTls, TlsMinVersion};
use crate::discovery::Documents;
use crate::health::Health;
use crate::ingest::{self, Ingest};
use crate::listener::{self, Exchange, KnownBy, Listener, Peer};
use crate::memory;
use crate::metrics::{ListenerMetrics, Metrics, ReloadMetrics};
use crate::reload::Reload;
use crate::review_budget::ReviewBudget;
use crate::router::Router;
use crate::watch::{self, Closing, Dispatcher, Watches};

/// Beyond the watches. HTTP/1.1 takes a connection for each, and so at the very worst does HTTP/2: a connection that is retired
/// lives on with the last watch that it has, and has at least one.
const SPARE_CONNECTIONS: usize = 1000;

/// As many as there may be watches by default, and more than a connection is read in one turn (see `listener::unhurried`): all of them
/// broken off at once are no reason to end a connection, which is everybody's.
const MAX_RESETS: usize = 10_000;

/// A kube-apiserver keeps one HTTP/2 connection; 32 sources with some that have not noticed yet that theirs is gone.
const MAX_WEBHOOK_CONNECTIONS: usize = 128;

/// kube-apiserver sends batches at the same time, ten a second by default.
const MAX_WEBHOOK_STREAMS: u32 = 100;

/// Two TLS records. Within `listener::CONNECTION_BYTES`, because next to nothing is sent on these connections.
const WEBHOOK_READ_AHEAD_BYTES: usize = 32 * 1024;

/// A body that nobody waits for is read for this long.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// Over this time watches are ended when the server ends, and over a third of the grace period at most: what is left of it is for
/// connections to take the ends. 10,000 watches are 2,000 a second, each of which comes back somewhere as a request.
const MAX_SPREAD: Duration = Duration::from_secs(5);

/// Between two tries to find out who this server is to kube-apiserver.
const SELF_REVIEW_INTERVAL: Duration = Duration::from_secs(5);

/// How to serve: every rule between flags is settled.
#[derive(Debug)]
pub struct Config {
    /// Of the API.
    pub address: SocketAddr,
    /// Of the API.
    pub pair: PairFiles,
    /// Of both listeners.
    pub tls_min_version: TlsMinVersion,
    /// `None`: in-cluster.
    pub authentication_kubeconfig: Option<PathBuf>,
    /// `None`: in-cluster.
    pub authorization_kubeconfig: Option<PathBuf>,
    /// By which CAs clients are known, where the ConfigMap does not say it.
    pub trust_files: TrustFiles,
    /// How long it is remembered whose a token is.
    pub token_cache_ttl: Duration,
    /// How long permissions are remembered.
    pub authorization_cache: CacheTtl,
    /// Reviews of access and of tokens that kube-apiserver is asked for, a second.
    pub review_qps: NonZeroU32,
    /// Of the webhook.
    pub webhook_address: SocketAddr,
    /// Of the webhook.
    pub webhook_pair: PairFiles,
    /// Who signs the webhook's clients.
    pub webhook_client_ca_file: PathBuf,
    /// What the webhook takes.
    pub ingest: ingest::Config,
    /// What the bus retains.
    pub retain: audit_stream_bus::Config,
    /// What readers may have.
    pub watch: watch::Config,
    /// From the signal until watches are ended.
    pub shutdown_delay: Duration,
    /// From then until the process exits whatever is still open. Watches are ended in the first part of it.
    pub shutdown_grace: Duration,
}

impl Config {
    /// Of the API's listener, at a time, those that are known as kube-apiserver's.
    pub fn max_connections(&self) -> usize {
        self.watch.limits.watches.saturating_add(SPARE_CONNECTIONS)
    }

    /// Of both listeners, at a time, those of strangers too.
    pub fn all_connections(&self) -> usize {
        let others = MAX_WEBHOOK_CONNECTIONS + listener::MAX_USERS_CONNECTIONS + 2 * listener::MAX_GUESTS;
        self.max_connections().saturating_add(others)
    }
}

/// A server whose sockets are bound and whose files are read. Nothing is answered before [`Server::run`].
pub struct Server {
    api: Listener,
    webhook: Listener,
    router: Arc<Router>,
    ingest: Arc<Ingest>,
    /// What keeps the server in step with kube-apiserver.
    upkeep: BoxFuture<'static, ()>,
    health: Arc<Health>,
    dispatcher: Dispatcher,
    memory: [memory::Term; memory::TERMS],
    /// Begun, it ends watches.
    closing: Closing,
    /// Cancelled, it ends what they are fed with.
    closed: CancellationToken,
    /// Cancelled, it ends everything else.
    end: CancellationToken,
    shutdown_delay: Duration,
    shutdown_grace: Duration,
}

impl Server {
    /// Reads certificates and kubeconfigs and binds both sockets.
    ///
    /// # Errors
    /// If a file cannot be used, naming it and its flag, or an address cannot be bound.
    pub async fn bind(config: Config) -> Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let memory = memory::bound(&config);
        metrics.set_memory_bound(&memory);
        let tls = Tls::read(&config, &metrics.reload).await?;
        let (api, webhook) = bind_listeners(&config, &tls, &metrics.listener)?;
        let authentication_client =
            client(config.authentication_kubeconfig.as_deref(), "--authentication-kubeconfig").await?;
        let authorization_client =
            client(config.authorization_kubeconfig.as_deref(), "--authorization-kubeconfig").await?;

        let (closing, end) = (Closing::default(), CancellationToken::new());
        let own_username = Arc::new(OnceLock::new());
        let bus = Arc::new(Bus::new(config.retain, ingest::unix_micros()));
        let (own, batches) = (Arc::clone(&own_username), Arc::clone(&bus));
        let closed = CancellationToken::new();
        let ingest = Ingest::new(config.ingest, tls.client_ca, batches, closed.clone(), own, metrics.ingest.clone());
        let budget = Arc::new(ReviewBudget::new(config.review_qps, metrics.access.turned_away.clone()));
        let ttl = config.token_cache_ttl;
        let tokens = Tokens::new(authentication_client.clone(), ttl, Arc::clone(&budget), metrics.access.clone());
        let authenticator = Arc::new(Authenticator::new(tokens));
        let reloads = tls.reloads.into_iter().chain(config.trust_files.load(&authenticator).await?);
        let reloads: Vec<_> = reloads.map(|reload| reload.run(metrics.reload.clone())).collect();
        let upkeep = join3(
            authn::keep_in_step(authentication_client, Arc::clone(&authenticator), config.trust_files),
            learn_own_username(authorization_client.clone(), own_username),
            join_all(reloads),
        );
        let health = Arc::new(Health::new(Arc::clone(&authenticator)));
        let cache = config.authorization_cache;
        let authorizer = Authorizer::new(authorization_client, cache, budget, metrics.access.clone());
        let (watches, dispatcher) =
            Watches::new(Arc::clone(&bus), config.watch, closing.clone(), metrics.watch.clone());
        let router = Router {
            watches,
            authorizer: Arc::new(authorizer),
            documents: Documents::new(),
            health: Arc::clone(&health),
            authenticator,
            bus,
            metrics,
        };
        Ok(Self {
            api,
            webhook,
            router: Arc::new(router),
            ingest: Arc::new(ingest),
            upkeep: upkeep.map(drop).boxed(),
            dispatcher,
            memory,
            health,
            closing,
            closed,
            end,
            shutdown_delay: config.shutdown_delay,
            shutdown_grace: config.shutdown_grace,
        })
    }

    /// Where the API and the webhook listen, with the ports that the system chose where none was given.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.api.local_addr()?, self.webhook.local_addr()?))
    }

    /// Serves until `stop` is cancelled and everything has ended, or the grace period is over.
    ///
    /// # Errors
    /// If a part of the server ends before it was told to.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let (address, webhook_address) = self.addresses()?;
        let health = Arc::clone(&self.health);
        let (closing, closed, end) = (self.closing.clone(), self.closed.clone(), self.end.clone());
        // Also where the caller drops this future: the webhook's thread would otherwise go on without it.
        let _end_with_us = end.clone().drop_guard();
        let (delay, grace, memory) = (self.shutdown_delay, self.shutdown_grace, self.memory);
        let mut parts = self.start()?;
        info!(%address, %webhook_address, "serving");
        memory::print(&memory);

        tokio::select! {
            () = stop.cancelled() => {}
            // None of them ends by itself, so one that did has failed, and a process without it would only look alive.
            Some(part) = parts.join_next() => {
                part.context("a part of the server failed")?;
                bail!("a part of the server ended by itself");
            }
        }
        info!(delay_seconds = delay.as_secs_f64(), "shutting down");
        health.shut_down();
        tokio::time::sleep(delay).await;
        let ended = async {
            let spread = MAX_SPREAD.min(grace / 3);
            // Before the first watch ends: its reader, who comes back to another server, is to find there what arrives now.
            closed.cancel();
            closing.begin(spread);
            // What a connection has not taken by then is no reason to keep the others.
            let _ = timeout(spread, closing.all_over()).await;
            end.cancel();
            while parts.join_next().await.is_some() {}
        };
        if timeout(grace, ended).await.is_err() {
            warn!("the grace period is over, connections that are still open are cut");
        }
        Ok(())
    }

    fn start(self) -> Result<JoinSet<()>> {
        let Self { api, webhook, router, ingest, upkeep, dispatcher, end, .. } = self;
        let mut parts = JoinSet::new();
        let ends = end.clone();
        parts.spawn(async move {
            ends.run_until_cancelled(upkeep).await;
        });
        let ends = end.clone();
        parts.spawn(async move {
            ends.run_until_cancelled(dispatcher.run()).await;
        });
        let bodies = TaskTracker::new();
        let api_handler = move |peer: Arc<Peer>, request: Request<Incoming>| {
            let router = Arc::clone(&router);
            let (head, body) = request.into_parts();
            if !body.is_end_stream() {
                let exchange = head.extensions.get::<Exchange>().expect("each request of a listener has one").clone();
                bodies.spawn(async move { exchange.unless_cut(read_and_forget(body)).await });
            }
            async move { router.handle(&peer, Request::from_parts(head, ())).await }
        };
        parts.spawn(api.serve(api_handler, Handle::current(), end.clone()));
        let webhook_handler = move |peer: Arc<Peer>, request| {
            let ingest = Arc::clone(&ingest);
            async move { ingest.handle(&peer, request).await }
        };
        let webhook = on_own_thread("ingest", webhook.serve(webhook_handler, Handle::current(), end))?;
        parts.spawn(webhook);
        Ok(parts)
    }
}

/// Nothing here takes a body, but one that is not read counts against its HTTP/2 connection until that is closed as abused, and
/// all users of kube-apiserver share one.
async fn read_and_forget(mut body: Incoming) {
    let to_its_end = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(BODY_TIMEOUT, to_its_end).await;
}

/// Runs a future on a thread and a runtime of its own, so that nothing a reader or a stranger causes can delay it.
fn on_own_thread(
    name: &'static str,
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<impl Future<Output = ()> + Send> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, wait) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(future);
        let _ = ended.send(());
    })?;
    Ok(async move {
        // A panic on the thread drops the sender, and the part has ended either way.
        let _ = wait.await;
    })
}

/// The TLS of both listeners, and what keeps it as its files say.
struct Tls {
    api: Arc<ServerTls>,
    webhook: Arc<ServerTls>,
    client_ca: Arc<ClientCa>,
    reloads: Vec<Reload>,
}

impl Tls {
    async fn read(config: &Config, metrics: &ReloadMetrics) -> Result<Self> {
        let (min, api, webhook) = (config.tls_min_version, config.pair.clone(), config.webhook_pair.clone());
        let (reload_api, api) = Reload::begin(
            "serving",
            "--tls-cert-file, --tls-private-key-file",
            api.paths(),
            || ServerTls::read(api, min, certs::any_client(), metrics.expiration_of("api")),
            ServerTls::read_again,
        )
        .await?;
        let file = config.webhook_client_ca_file.clone();
        let (reload_client_ca, client_ca) = Reload::begin(
            "webhook_client_ca",
            "--webhook-client-ca-file",
            vec![file.clone()],
            || ClientCa::read(file),
            ClientCa::read_again,
        )
        .await?;
        let verifier = Arc::clone(&client_ca);
        let (reload_webhook, webhook) = Reload::begin(
            "webhook_serving",
            "--webhook-tls-cert-file, --webhook-tls-private-key-file (or --tls-cert-file, --tls-private-key-file)",
            webhook.paths(),
            || ServerTls::read(webhook, min, verifier, metrics.expiration_of("webhook")),
            ServerTls::read_again,
        )
        .await?;
        Ok(Self { api, webhook, client_ca, reloads: vec![reload_api, reload_client_ca, reload_webhook] })
    }
}

fn bind_listeners(config: &Config, tls: &Tls, metrics: &ListenerMetrics) -> Result<(Listener, Listener)> {
    let api_config = listener::Config {
        name: "api",
        max_connections: config.max_connections(),
        known_by: KnownBy::Request,
        max_streams: listener::STREAMS_PER_CONNECTION,
        max_resets: MAX_RESETS,
        // There are thousands of connections, and what they are sent is short.
        read_ahead_bytes: 0,
    };
    let webhook_config = listener::Config {
        name: "webhook",
        max_connections: MAX_WEBHOOK_CONNECTIONS,
        known_by: KnownBy::Handshake,
        max_streams: MAX_WEBHOOK_STREAMS,
        max_resets: MAX_WEBHOOK_STREAMS as usize,
        read_ahead_bytes: WEBHOOK_READ_AHEAD_BYTES,
    };
    let api = Listener::bind(config.address, tls.api.current(), api_config, metrics.clone());
    let api = api.with_context(|| format!("--bind-address, --secure-port: cannot bind {}", config.address))?;
    let address = config.webhook_address;
    let webhook = Listener::bind(address, tls.webhook.current(), webhook_config, metrics.clone());
    let webhook = webhook.with_context(|| format!("--webhook-bind-address, --webhook-port: cannot bind {address}"))?;
    Ok((api, webhook))
}

/// `flag` is the one that `kubeconfig` comes from, if it does not come from `--kubeconfig`.
async fn client(kubeconfig: Option<&Path>, flag: &str) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(file) => {
            let wrong = || format!("--kubeconfig or {flag}: cannot use {}", file.display());
            let kubeconfig = Kubeconfig::read_from(file).with_context(wrong)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(wrong)?
        }
        None => {
            kube::Config::incluster().map_err(|_| anyhow!("not in a Pod with a ServiceAccount: give --kubeconfig"))?
        }
    };
    // An answer is needed in time or not at all; a client that tries again by itself would also escape the budget.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Asks kube-apiserver by which user name it knows this server, until it answers.
async fn learn_own_username(client: Client, own_username: Arc<OnceLock<String>>) {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let (params, question) = (PostParams::default(), SelfSubjectReview::default());
    loop {
        let answer = timeout(SELF_REVIEW_INTERVAL, reviews.create(&params, &question)).await;
        let review = answer.ok().and_then(Result::ok);
        if let Some(username) = review.and_then(|review| review.status?.user_info?.username) {
            let _ = own_username.set(username);
            return;
        }
        warn!("kube-apiserver does not say who this server is: its own reviews are not kept out of the stream yet");
        tokio::time::sleep(SELF_REVIEW_INTERVAL).await;
    }
}
