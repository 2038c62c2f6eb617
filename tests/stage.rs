//! The whole server in this process, between fakes, over TLS on loopback: what the scenarios without a control plane
//! stand on.
//!
//! It asserts nothing but that the server starts and stops. [`Feed`] is a stage with a sender and a reader of everything.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream::args::{Cli, Command};
use audit_stream::{Config, Server};
use audit_stream_testplane::audit_stream::AuditStream;
use audit_stream_testplane::events::{EventBuilder, event, event_list, fresh_audit_id};
use audit_stream_testplane::front_proxy::{
    Client, FrontProxy, Protocol, ProxiedUser, Response, Target, Watch, Windows,
};
use audit_stream_testplane::pki::{Authority, Identity};
use audit_stream_testplane::reviewer::{AuthenticationConfig, Reviewer};
use audit_stream_testplane::webhook_sender::{Sending, WebhookSender};
use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Things arrive in the end: this long is the end.
pub const ARRIVAL: Duration = Duration::from_secs(30);

/// Both versions of HTTP, for what must not depend on it.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// A watch of the whole cluster.
pub const EVENTS: &str = "/apis/audit.k8s.io/v1/events?watch=true";

/// The name in the serving certificate.
pub const SERVER_NAME: &str = "audit-stream.audit-stream.svc";

/// The name that webhook clients must have.
pub const SENDER: &str = "kube-apiserver-audit";

const WEBHOOK_CA: &str = "webhook-ca.crt";

/// Between two looks at a condition that a peer's task brings about.
const GLANCE: Duration = Duration::from_millis(10);

/// A server that runs, and everything that it talks to.
pub struct Stage {
    /// The part of kube-apiserver that says who may do what.
    pub reviewer: Reviewer,
    /// The CA of the front proxy's certificate.
    pub front_proxy_ca: Authority,
    /// The CA of users' certificates.
    pub client_ca: Authority,
    /// The CA of the webhook's clients.
    pub webhook_ca: Authority,
    serving_ca: Authority,
    address: SocketAddr,
    webhook_address: SocketAddr,
    stopping: CancellationToken,
    server: JoinSet<Result<()>>,
    directory: TempDir,
}

/// The files that the server reads again when they change.
#[derive(Debug, Clone, Copy)]
pub enum ServingFile {
    /// `--tls-cert-file`, for both listeners.
    Certificate,
    /// `--tls-private-key-file`.
    Key,
    /// `--webhook-client-ca-file`.
    WebhookClientCa,
}

/// Whether this is `hack/test --long`, in which scenarios go on for longer, or more often.
pub fn long() -> bool {
    std::env::var_os("AUDIT_STREAM_LONG").is_some_and(|value| value == "1")
}

// === impl Stage ===

impl Stage {
    /// Starts the server with the documented defaults, on loopback.
    pub async fn start() -> Result<Self> {
        Self::with(|_| {}).await
    }

    /// Starts the server with something else than the defaults, and waits until it is ready.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        let stage = Self::trusting_nobody(change).await?;
        stage.reviewer.set_config_map(&stage.trust());
        stage.ready().await?;
        Ok(stage)
    }

    /// Starts the server with something else than the defaults, where there is no `ConfigMap` yet that says whom to trust.
    pub async fn trusting_nobody(change: impl FnOnce(&mut Config)) -> Result<Self> {
        let [serving_ca, front_proxy_ca, client_ca, webhook_ca] =
            ["serving", "front-proxy", "clients", "webhook"].map(Authority::new);
        let reviewer = Reviewer::start().await?;
        let directory = TempDir::new()?;
        let mut config = config(directory.path(), &serving_ca, &webhook_ca, &reviewer)?;
        change(&mut config);
        let bound = Server::bind(config).await?;
        let (address, webhook_address) = bound.addresses()?;
        let (stopping, mut server) = (CancellationToken::new(), JoinSet::new());
        server.spawn(bound.run(stopping.clone()));
        Ok(Self {
            reviewer,
            front_proxy_ca,
            client_ca,
            webhook_ca,
            serving_ca,
            address,
            webhook_address,
            stopping,
            server,
            directory,
        })
    }

    /// Waits until the server is ready.
    pub async fn ready(&self) -> Result<()> {
        let anybody = Client::connect(self.api()).await?;
        eventually("readiness", async || Ok((anybody.get("/readyz", &[]).await?.status == 200).then_some(()))).await
    }

    /// What kube-apiserver says of whom to trust: its front proxy and its users.
    pub fn trust(&self) -> AuthenticationConfig {
        AuthenticationConfig::trusting(self.front_proxy_ca.certificate_pem())
            .client_ca(self.client_ca.certificate_pem())
    }

    /// The API's listener, for a client without a certificate.
    pub fn api(&self) -> Target {
        Target::new(self.address, self.serving_ca.certificate_pem(), SERVER_NAME)
    }

    /// The webhook's listener, for a client with a good certificate.
    pub fn webhook(&self) -> Target {
        self.webhook_showing(&self.webhook_ca.client(SENDER, &[]))
    }

    /// Where the API and the webhook listen.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        [self.address, self.webhook_address]
    }

    /// A kube-apiserver in front of it.
    pub async fn proxy(&self, protocol: Protocol) -> Result<FrontProxy> {
        self.proxy_showing(&self.front_proxy_ca.client("front-proxy-client", &[]), protocol).await
    }

    /// A kube-apiserver in front of it that grants these windows instead of Go's.
    pub async fn proxy_granting(&self, windows: Windows) -> Result<FrontProxy> {
        let identity = self.front_proxy_ca.client("front-proxy-client", &[]);
        FrontProxy::through(self.api().identity(&identity).windows(windows)).await
    }

    /// Somebody in front of it, with this certificate.
    pub async fn proxy_showing(&self, identity: &Identity, protocol: Protocol) -> Result<FrontProxy> {
        FrontProxy::connect(self.address, self.serving_ca.certificate_pem(), SERVER_NAME, identity, protocol).await
    }

    /// A user behind a kube-apiserver of their own that speaks HTTP/2.
    pub async fn user(&self, name: &str) -> Result<ProxiedUser> {
        Ok(self.proxy(Protocol::Http2).await?.user(name))
    }

    /// A user who may do everything, and whom nobody reviews.
    pub async fn admin(&self) -> Result<ProxiedUser> {
        Ok(self.user("admin").await?.groups(["system:masters"]))
    }

    /// A user who may watch a namespace's events.
    pub async fn reader(&self, name: &str, namespace: &str) -> Result<ProxiedUser> {
        self.let_read(name, namespace);
        self.user(name).await
    }

    /// Lets a user watch a namespace's events.
    pub fn let_read(&self, name: &str, namespace: &str) {
        self.reviewer.allow(name).to("watch").on("namespacedevents").in_namespace(namespace);
    }

    /// A kube-apiserver's audit webhook that sends a batch only when it is full or flushed.
    pub async fn sender(&self) -> Result<WebhookSender> {
        self.sender_with(Sending::default()).await
    }

    /// As [`Self::sender`], but for how it sends.
    pub async fn sender_with(&self, sending: Sending) -> Result<WebhookSender> {
        WebhookSender::start(self.webhook(), Sending { max_batch_wait: Duration::from_secs(3600), ..sending }).await
    }

    /// The value of a metric now, by the name and labels of the scrape. Of a metric with labels a series begins with its
    /// first count, and is zero before; one without labels has to be there.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let scrape = self.admin().await?.get("/metrics").await?;
        ensure!(scrape.status == 200, "/metrics: {} {}", scrape.status, scrape.body);
        let written: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let series = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", written.join(",")) };
        let value = scrape.body.lines().find_map(|line| line.strip_prefix(&series)?.strip_prefix(' '));
        match value {
            Some(value) => value.parse().with_context(|| format!("{series} is {value}")),
            None if labels.is_empty() => bail!("no metric {name} in {}", scrape.body),
            None => Ok(0.0),
        }
    }

    /// Waits until a metric has a value.
    pub async fn until_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
        let reached = async || Ok((self.metric(name, labels).await? == value).then_some(()));
        let last = eventually(&format!("{name} {labels:?} to be {value}"), reached).await;
        match last {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("it is {}", self.metric(name, labels).await?))),
        }
    }

    /// Overwrites one of the server's files, as a Secret's volume does: with a new file under the old name.
    pub fn write(&self, file: ServingFile, content: &str) -> Result<()> {
        let name = match file {
            ServingFile::Certificate => "serving.crt",
            ServingFile::Key => "serving.key",
            ServingFile::WebhookClientCa => WEBHOOK_CA,
        };
        let [new, old] = ["new", name].map(|name| self.directory.path().join(name));
        std::fs::write(&new, content)?;
        Ok(std::fs::rename(new, old)?)
    }

    /// Another serving certificate of the same CA.
    pub fn new_serving_pair(&self) -> Identity {
        self.serving_ca.server("audit-stream", &[SERVER_NAME])
    }

    /// The webhook's listener, for a client with this certificate.
    pub fn webhook_showing(&self, identity: &Identity) -> Target {
        Target::new(self.webhook_address, self.serving_ca.certificate_pem(), SERVER_NAME).identity(identity)
    }

    /// Begins to stop the server.
    pub fn begin_to_stop(&self) {
        self.stopping.cancel();
    }

    /// Tells the server to stop, and waits until it has, without an error: how long that took.
    pub async fn stop(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.stopping.cancel();
        let ended = timeout(ARRIVAL, self.server.join_next()).await.context("the server does not stop")?;
        ended.context("the server was stopped before")???;
        Ok(began.elapsed())
    }
}

/// The defaults, as the flags give them, but for addresses, files and the delay of a shutdown.
fn config(directory: &Path, serving_ca: &Authority, webhook_ca: &Authority, reviewer: &Reviewer) -> Result<Config> {
    let Command::Serve(args) = Cli::try_parse_from(command_line(directory, serving_ca, webhook_ca, reviewer)?)?.command;
    args.into_config()
}

/// What is typed, and the files that it names.
fn command_line(
    directory: &Path,
    serving_ca: &Authority,
    webhook_ca: &Authority,
    reviewer: &Reviewer,
) -> Result<Vec<String>> {
    let serving = serving_ca.server("audit-stream", &[SERVER_NAME]).write(directory, "serving")?;
    let client_ca = directory.join(WEBHOOK_CA);
    std::fs::write(&client_ca, webhook_ca.certificate_pem())?;
    let kubeconfig = reviewer.write_kubeconfig(directory)?;
    let flags = [
        ("kubeconfig", kubeconfig.as_path()),
        ("tls-cert-file", &serving.certificate),
        ("tls-private-key-file", &serving.key),
        ("webhook-client-ca-file", &client_ca),
        ("webhook-allowed-names", Path::new(SENDER)),
        ("bind-address", Path::new("127.0.0.1")),
        ("secure-port", Path::new("0")),
        ("webhook-bind-address", Path::new("127.0.0.1")),
        ("webhook-port", Path::new("0")),
        ("shutdown-delay-duration", Path::new("0s")),
    ];
    let flags = flags.map(|(name, value)| format!("--{name}={}", value.display()));
    Ok(["audit-stream".to_owned(), "serve".to_owned()].into_iter().chain(flags).collect())
}

/// The shipped binary instead, beside the same fakes.
pub struct Shipped {
    /// It.
    pub server: AuditStream,
    address: SocketAddr,
    front_proxy_ca: Authority,
    serving_ca: Authority,
    /// The part of kube-apiserver that says who may do what.
    pub reviewer: Reviewer,
    _directory: TempDir,
}

// === impl Shipped ===

impl Shipped {
    /// Starts it, and waits until it is ready.
    pub async fn start() -> Result<Self> {
        let [serving_ca, front_proxy_ca, webhook_ca] = ["serving", "front-proxy", "webhook"].map(Authority::new);
        let (reviewer, directory) = (Reviewer::start().await?, TempDir::new()?);
        reviewer.set_config_map(&AuthenticationConfig::trusting(front_proxy_ca.certificate_pem()));
        let mut words = command_line(directory.path(), &serving_ca, &webhook_ca, &reviewer)?;
        words.push("--logging-format=json".to_owned());
        let server = AuditStream::spawn(&words[1..], directory.path())?;
        let serving = async || {
            let log = server.log();
            let Some(line) = log.lines().find(|line| line.contains("\"serving\"")) else { return Ok(None) };
            Ok(Some(serde_json::from_str::<Value>(line)?["address"].as_str().context("no address")?.parse()?))
        };
        let address = eventually("the server to serve", serving).await?;
        let shipped = Self { server, address, front_proxy_ca, serving_ca, reviewer, _directory: directory };
        let anybody = Client::connect(shipped.api()).await?;
        eventually("readiness", async || Ok((anybody.get("/readyz", &[]).await?.status == 200).then_some(()))).await?;
        Ok(shipped)
    }

    /// The API's listener, for a client without a certificate.
    pub fn api(&self) -> Target {
        Target::new(self.address, self.serving_ca.certificate_pem(), SERVER_NAME)
    }

    /// The API's listener, for the front proxy.
    pub fn front_proxy(&self) -> Target {
        self.api().identity(&self.front_proxy_ca.client("front-proxy-client", &[]))
    }

    /// What it has in memory.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(resident.context("the system does not tell")?.parse::<u64>()? * 1024)
    }
}

/// Waits until something that others bring about has come about.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            sleep(GLANCE).await;
        }
    };
    timeout(ARRIVAL, looking).await.with_context(|| format!("waited {ARRIVAL:?} for {what}"))?
}

/// A watch of one namespace.
pub fn namespaced(namespace: &str) -> String {
    format!("/apis/audit.k8s.io/v1/namespaces/{namespace}/namespacedevents?watch=true")
}

/// An event of a ConfigMap in a namespace.
pub fn in_namespace(namespace: &str, audit_id: &str) -> EventBuilder {
    event().resource("configmaps").namespace(namespace).name("prices").audit_id(audit_id)
}

/// Reads events up to and including the one with this audit ID.
pub async fn read_until(watch: &mut Watch, last: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    loop {
        let next = watch.next_added(ARRIVAL).await;
        let object = next.with_context(|| format!("{last} did not come after {:?}", ids(&objects)))?;
        objects.push(object.with_context(|| format!("the watch ended before {last}, after {:?}", ids(&objects)))?);
        if objects.last().is_some_and(|object| object["auditID"] == last) {
            return Ok(objects);
        }
    }
}

/// Shows every watch that allows bookmarks where the events end that were sent before: an unreadable batch is announced
/// to all of them, whatever they select.
pub async fn announce_end(sender: &WebhookSender) -> Result<()> {
    // One like no other: what is sent again is dropped unseen.
    let answer = sender.post(format!("no list: {}", fresh_audit_id())).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    Ok(())
}

/// The events before what [`announce_end`] brings about.
pub async fn read_until_end(watch: &mut Watch) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    loop {
        let mut frame = watch.next(ARRIVAL).await?.context("it ended without an announcement")?;
        match frame["type"].as_str() {
            Some("ADDED") => objects.push(frame["object"].take()),
            Some("BOOKMARK") if gap(&frame["object"]).is_some() => return Ok(objects),
            _ => bail!("not an event: {frame}"),
        }
    }
}

/// The audit IDs of events.
pub fn ids(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["auditID"].as_str().unwrap_or_default()).collect()
}

/// The gap that an event or a bookmark announces.
pub fn gap(object: &Value) -> Option<Value> {
    let text = object["metadata"]["annotations"]["audit-stream.dev/gap"].as_str()?;
    Some(serde_json::from_str(text).expect("a gap is JSON"))
}

/// Lets more be asked of the reviewer at once than the defaults do.
pub fn many_reviews(config: &mut Config) {
    config.review_qps = NonZeroU32::new(1_000_000).expect("it is not zero");
}

/// Lets one user open more watches than the defaults do.
pub fn many_watches(config: &mut Config) {
    config.watch.limits.per_user = 1000;
    config.watch.limits.classes_per_user = 1000;
}

/// Asserts that a gap is announced, of this size (`None`: unknown), for this reason.
#[track_caller]
pub fn assert_gap(object: &Value, reason: &str, count: Option<usize>) {
    let mut gap = gap(object).unwrap_or_else(|| panic!("no gap is announced by {object}"));
    let since = gap["since"].take();
    let since = since.as_str().unwrap_or_default();
    assert!(since.len() >= 20 && since.starts_with("20") && since.ends_with('Z'), "since {since:?}");
    assert_eq!(gap, serde_json::json!({"count": count, "truncated": 0, "reason": reason, "since": null}));
}

/// A `Status` as upstream writes it, on one line; `details` is empty, or JSON.
pub fn status(code: u16, reason: &str, message: &str, details: &str) -> String {
    let message = serde_json::Value::from(message);
    let details = if details.is_empty() { String::new() } else { format!("\"details\":{details},") };
    format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":{message},\
         \"reason\":\"{reason}\",{details}\"code\":{code}}}\n"
    )
}

/// Asserts the code and the exact body of a refusal, and the headers that each has.
pub fn assert_refused(answer: &Response, code: u16, body: &str) -> Result<()> {
    ensure!(
        (answer.status, &*answer.body) == (code, body),
        "{} {}\nand not\n{code} {body}",
        answer.status,
        answer.body
    );
    let headers = ["content-type", "cache-control", "x-content-type-options"].map(|name| answer.header(name));
    ensure!(headers == [Some("application/json"), Some("no-cache, private"), Some("nosniff")], "{headers:?}");
    Ok(())
}

/// The frame of an error that ends a watch, and then the clean end.
pub async fn read_error(watch: &mut Watch) -> Result<Value> {
    let frame = watch.next(ARRIVAL).await?.context("it ended without an error")?;
    ensure!(frame["type"] == "ERROR", "not an error: {frame}");
    ensure!(watch.next(ARRIVAL).await?.is_none(), "more after an error");
    Ok(frame["object"].clone())
}

/// A stage with a sender, and with somebody who reads everything that is published.
pub struct Feed {
    pub stage: Stage,
    pub sender: WebhookSender,
    pub reader: Watch,
}

// === impl Feed ===

impl Feed {
    /// Opens the watch, so that whatever is sent from now on is read.
    pub async fn start(stage: Stage) -> Result<Self> {
        let sender = stage.sender().await?;
        let reader = stage.admin().await?.watch(EVENTS).await?;
        Ok(Self { stage, sender, reader })
    }

    /// Sends a good batch of one event and asserts that it is the very next to arrive: whatever came before has neither
    /// stopped the server nor been delivered.
    pub async fn goes_on(&mut self) -> Result<Value> {
        let id = fresh_audit_id();
        let answer = self.sender.post(event_list(&[in_namespace("shop", &id).build()])).await?;
        ensure!((answer.status, &*answer.body) == (200, ""), "a good batch: {} {}", answer.status, answer.body);
        let next = self.reader.next_added(ARRIVAL).await?.context("the watch ended")?;
        ensure!(next["auditID"] == *id, "not {id} but {next}");
        Ok(next)
    }

    /// As [`Self::goes_on`], and no gap is told.
    pub async fn goes_on_without_a_gap(&mut self) -> Result<()> {
        let next = self.goes_on().await?;
        ensure!(gap(&next).is_none(), "a gap is announced: {next}");
        Ok(())
    }

    /// Asserts how many of the webhook's requests have been refused so far for a reason.
    pub async fn assert_rejected(&self, reason: &str, count: f64) -> Result<()> {
        let rejected = self.stage.metric("audit_stream_ingest_rejected_requests_total", &[("reason", reason)]).await?;
        ensure!(rejected == count, "{rejected} requests were refused as {reason}, and not {count}");
        Ok(())
    }
}

/// Asserts that nothing more comes, and that it ends cleanly.
pub async fn assert_ends(watch: &mut Watch) -> Result<()> {
    let rest = watch.rest(ARRIVAL).await?;
    ensure!(rest.is_empty(), "more than expected: {rest:?}");
    Ok(())
}
