//! The shipped binary between fakes, pinned to a core of its own: what the figures are taken of.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::{Client, Protocol, Target, request};
use audit_stream_testplane::pki::Authority;
use audit_stream_testplane::process::Process;
use audit_stream_testplane::process::watchdog::Watchdog;
use audit_stream_testplane::reviewer::{AuthenticationConfig, Reviewer};
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::readers::Chunks;
use crate::{cores, usage};

/// The names in the certificates.
pub const SERVER_NAME: &str = "audit-stream.audit-stream.svc";
const SENDER: &str = "kube-apiserver-audit";

/// The group in which everybody may read.
pub const READERS: &str = "readers";

const START_DEADLINE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(10);

/// How long a process has nothing to do before it is measured: longer than the server's shortest timers.
pub const QUIET: Duration = Duration::from_millis(300);

/// Limits that no figure runs into; everything else is the default.
const FLAGS: [&str; 5] = [
    "--max-watches-per-user=20000",
    "--max-watches-per-namespace=20000",
    "--max-classes-per-user=20000",
    "--review-qps=100000",
    "--shutdown-delay-duration=0s",
];

/// A running server and what it talks to.
pub struct Stand {
    process: Process,
    address: SocketAddr,
    front_proxy_ca: Authority,
    serving_ca: Authority,
    webhook: Target,
    sender: Client,
    _reviewer: Reviewer,
    _directory: TempDir,
}

impl Stand {
    /// Starts it, and waits until it is ready. Members of one group may read everything.
    pub async fn start() -> Result<Self> {
        let [serving_ca, front_proxy_ca, webhook_ca] = ["serving", "front-proxy", "webhook"].map(Authority::new);
        let (reviewer, directory) = (Reviewer::start().await?, TempDir::new()?);
        reviewer.set_config_map(&AuthenticationConfig::trusting(front_proxy_ca.certificate_pem()));
        reviewer.allow_group(READERS).to("watch").on("namespacedevents").cluster_wide();
        reviewer.allow_group(READERS).to("watch").on("events").cluster_wide();
        let flags = flags(directory.path(), &serving_ca, &webhook_ca, &reviewer)?;
        let log = directory.path().join("log");
        let mut process = spawn_pinned("audit-stream", flags.iter().map(String::as_str), &log)?;
        let [address, webhook] = addresses(&mut process).await?;
        let target = |address| Target::new(address, serving_ca.certificate_pem(), SERVER_NAME);
        let anybody = Client::connect(target(address).protocol(Protocol::Http1)).await?;
        let ready = || async {
            let answer = anybody.get("/readyz", &[]).await?;
            ensure!(answer.status == 200, "{}", answer.body);
            Ok(())
        };
        process.wait_until("ready", START_DEADLINE, ready).await?;
        let webhook = target(webhook).identity(&webhook_ca.client(SENDER, &[]));
        let sender = Client::connect(webhook.clone()).await?;
        let (_reviewer, _directory) = (reviewer, directory);
        Ok(Self { process, address, front_proxy_ca, serving_ca, webhook, sender, _reviewer, _directory })
    }

    /// Where batches are posted, for who writes them without a client's help.
    pub fn webhook(&self) -> Target {
        self.webhook.clone().protocol(Protocol::Http1)
    }

    /// A kube-apiserver in front of it. Over HTTP/1.1 each watch has a connection of its own.
    pub async fn proxy(&self, protocol: Protocol) -> Result<Client> {
        Client::connect(self.api(protocol)).await
    }

    /// The API, as a kube-apiserver in front of it connects.
    pub fn api(&self, protocol: Protocol) -> Target {
        let identity = self.front_proxy_ca.client("front-proxy-client", &[]);
        let target = Target::new(self.address, self.serving_ca.certificate_pem(), SERVER_NAME);
        target.identity(&identity).protocol(protocol)
    }

    /// Posts a batch as kube-apiserver does, and waits until it is taken.
    pub async fn post(&self, body: impl Into<Bytes>) -> Result<()> {
        let post = request("POST", "/webhook", &[("content-type", "application/json")], body)?;
        // A large future, which all who post would be made of.
        let answer = Box::pin(self.sender.send(post)).await?;
        ensure!(answer.status == 200, "the batch was refused: {} {}", answer.status, answer.body);
        Ok(())
    }

    /// CPU time of the server so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.process.id())
    }

    /// What the server has logged so far, one JSON object a line.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What the server has in memory.
    pub fn resident_bytes(&self) -> Result<u64> {
        usage::resident_bytes(self.process.id())
    }

    /// CPU time that something takes the server, until it has nothing to do any more.
    pub async fn cpu_time_of(&self, work: impl Future<Output = Result<()>>) -> Result<Duration> {
        let before = self.cpu_time()?;
        work.await?;
        sleep(QUIET).await;
        Ok(self.cpu_time()?.saturating_sub(before))
    }
}

/// Opens a watch for a user who may read everything.
pub async fn watch(proxy: &Client, user: &str, path: &str) -> Result<Chunks> {
    watch_of(proxy, user, READERS, path).await
}

/// The same for one about whom nobody is asked.
pub async fn watch_without_lease(proxy: &Client, user: &str, path: &str) -> Result<Chunks> {
    watch_of(proxy, user, "system:masters", path).await
}

async fn watch_of(proxy: &Client, user: &str, group: &str, path: &str) -> Result<Chunks> {
    let headers = [("X-Remote-User", user), ("X-Remote-Group", group), ("X-Remote-Group", "system:authenticated")];
    let response = proxy.open(request("GET", path, &headers, Bytes::new())?).await?;
    ensure!(response.status() == 200, "{path} was refused: {}", response.status());
    Ok(crate::readers::of_body(response.into_body(), proxy.clone()))
}

/// Starts a program of the directory that this one is in, on the core that is measured.
pub fn spawn_pinned<'a>(name: &str, arguments: impl IntoIterator<Item = &'a str>, log: &Path) -> Result<Process> {
    let mut command = Command::new(sibling(name)?);
    command.args(arguments);
    let watchdog = Watchdog::start(None)?;
    cores::on_measured(|| Process::spawn(name, &mut command, log, &watchdog))?
}

/// A program that was built with this one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let path = own.with_file_name(name);
    ensure!(path.is_file(), "there is no {}: start the bench by hack/bench, which builds it", path.display());
    Ok(path)
}

fn flags(directory: &Path, serving_ca: &Authority, webhook_ca: &Authority, reviewer: &Reviewer) -> Result<Vec<String>> {
    let serving = serving_ca.server("audit-stream", &[SERVER_NAME]).write(directory, "serving")?;
    let client_ca = directory.join("webhook-ca.crt");
    std::fs::write(&client_ca, webhook_ca.certificate_pem())?;
    let kubeconfig = reviewer.write_kubeconfig(directory)?;
    let own = [
        ("kubeconfig", kubeconfig.as_path()),
        ("tls-cert-file", &serving.certificate),
        ("tls-private-key-file", &serving.key),
        ("webhook-client-ca-file", &client_ca),
        ("webhook-allowed-names", Path::new(SENDER)),
        ("bind-address", Path::new("127.0.0.1")),
        ("secure-port", Path::new("0")),
        ("webhook-bind-address", Path::new("127.0.0.1")),
        ("webhook-port", Path::new("0")),
        ("logging-format", Path::new("json")),
    ];
    let own = own.iter().map(|(name, value)| format!("--{name}={}", value.display()));
    Ok(std::iter::once("serve".to_owned()).chain(own).chain(FLAGS.map(str::to_owned)).collect())
}

/// Where it says that it listens: for the API and for the webhook.
async fn addresses(process: &mut Process) -> Result<[SocketAddr; 2]> {
    let looking = async {
        loop {
            process.ensure_running()?;
            if let Some(line) = process.log().lines().find(|line| line.contains("\"serving\"")) {
                let line: Value = serde_json::from_str(line)?;
                return Ok([address_in(&line["address"])?, address_in(&line["webhook_address"])?]);
            }
            sleep(GLANCE).await;
        }
    };
    timeout(START_DEADLINE, looking).await.context("it does not say where it listens")?
}

fn address_in(value: &Value) -> Result<SocketAddr> {
    Ok(value.as_str().context("no address")?.parse()?)
}
