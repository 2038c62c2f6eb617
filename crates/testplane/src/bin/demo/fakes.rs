//! The story without a control plane: audit-stream is real, everything around it is the test plane's.
//!
//! Nobody acts: an audit event says that somebody did.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::control_plane::{FRONT_PROXY, SERVING_NAME, WEBHOOK_CLIENT};
use audit_stream_testplane::events::{EventBuilder, event};
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol, ProxiedUser, Target};
use audit_stream_testplane::pki::{Authority, Identity};
use audit_stream_testplane::process::Process;
use audit_stream_testplane::process::watchdog::Watchdog;
use audit_stream_testplane::reviewer::{AuthenticationConfig, Reviewer};
use audit_stream_testplane::webhook_sender::{Sending, WebhookSender};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::plane::{Lines, Plane};
use crate::story::{ADMIN, ALICE, CLUSTER_PATH, Deed, SHOP};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// audit-stream between fakes. Fields are dropped in this order.
pub(crate) struct Fakes {
    proxy: FrontProxy,
    sender: WebhookSender,
    address: SocketAddr,
    _server: Process,
    _reviewer: Reviewer,
    directory: TempDir,
}

/// Who trusts whom.
struct Trust {
    serving: Authority,
    front_proxy: Authority,
    webhook: Authority,
}

impl Fakes {
    /// Starts everything.
    pub(crate) async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("audit-stream-demo-").tempdir()?;
        let watchdog = Watchdog::start(Some(directory.path()))?;
        let [serving, front_proxy, webhook] = ["serving-ca", "front-proxy-ca", "webhook-ca"].map(Authority::new);
        let trust = Trust { serving, front_proxy, webhook };
        let reviewer = Reviewer::start().await?;
        reviewer.set_config_map(&AuthenticationConfig::trusting(trust.front_proxy.certificate_pem()));
        reviewer.allow(ALICE).to("watch").on("namespacedevents").in_namespace(SHOP);

        let [address, webhook_address] = free_addresses()?;
        let server = trust.serve(directory.path(), &reviewer, [address, webhook_address], &watchdog).await?;
        let identity = trust.front_proxy.client(FRONT_PROXY, &[]);
        write_curl_config(directory.path(), &identity)?;
        let ca = trust.serving.certificate_pem();
        let proxy = FrontProxy::connect(address, ca, SERVING_NAME, &identity, Protocol::Http2).await?;
        let target = Target::new(webhook_address, ca, SERVING_NAME);
        let target = target.identity(&trust.webhook.client(WEBHOOK_CLIENT, &[]));
        let sender = WebhookSender::start(target, Sending::default()).await?;
        Ok(Self { proxy, sender, address, _server: server, _reviewer: reviewer, directory })
    }

    fn user(&self, who: &str) -> ProxiedUser {
        match who {
            ADMIN => self.proxy.user(who).groups(["system:masters"]),
            _ => self.proxy.user(who),
        }
    }
}

impl Trust {
    /// Starts audit-stream, and waits until it is ready.
    async fn serve(
        &self,
        directory: &Path,
        reviewer: &Reviewer,
        [address, webhook_address]: [SocketAddr; 2],
        watchdog: &Watchdog,
    ) -> Result<Process> {
        let pair =
            self.serving.server("audit-stream", &[SERVING_NAME, "127.0.0.1"]).write(directory, "audit-stream")?;
        std::fs::write(directory.join("serving-ca.crt"), self.serving.certificate_pem())?;
        let webhook_ca = directory.join("webhook-ca.crt");
        std::fs::write(&webhook_ca, self.webhook.certificate_pem())?;
        let binary = std::env::current_exe()?.with_file_name("audit-stream");
        let mut command = std::process::Command::new(&binary);
        command
            .arg("serve")
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", address.port()))
            .arg("--webhook-bind-address=127.0.0.1")
            .arg(format!("--webhook-port={}", webhook_address.port()))
            .arg(format!("--webhook-client-ca-file={}", webhook_ca.display()))
            .arg(format!("--webhook-allowed-names={WEBHOOK_CLIENT}"))
            .arg(format!("--tls-cert-file={}", pair.certificate.display()))
            .arg(format!("--tls-private-key-file={}", pair.key.display()))
            .arg(format!("--kubeconfig={}", reviewer.write_kubeconfig(directory)?.display()));
        std::fs::create_dir(directory.join("logs"))?;
        let log = directory.join("logs/audit-stream.log");
        let mut server = Process::spawn("audit-stream", &mut command, &log, watchdog)?;
        let target = Target::new(address, self.serving.certificate_pem(), SERVING_NAME);
        server.wait_until("ready", START_DEADLINE, || ready(target.clone())).await?;
        Ok(server)
    }
}

impl Plane for Fakes {
    async fn version(&self) -> Result<String> {
        Ok("fakes in place of kube-apiserver: no kubectl runs, audit events say what it would have done".to_owned())
    }

    fn command(&self, path: &str) -> String {
        let config = self.directory.path().join("alice.curl");
        format!("curl --config {} 'https://{}{path}'", config.display(), self.address)
    }

    async fn act(&self, deed: &Deed) -> Result<Instant> {
        let event = event().user(deed.who).verb(deed.verb).namespace(deed.namespace).name(deed.name);
        let event = match deed.resource {
            "deployments" => event.resource("deployments").api_group("apps"),
            other => event.resource(other),
        };
        self.sender.send(if deed.allowed { event } else { event.code(403) });
        Ok(Instant::now())
    }

    async fn watch(&self, who: &str, path: &str) -> Result<Lines> {
        let watch = self.user(who).watch(path).await?;
        // kube-apiserver records the start of every watch, of this one too.
        self.sender.send(watch_event(who, path));
        Ok(Lines::FrontProxy { watch: Box::new(watch), taken: 0 })
    }

    async fn refusal(&self, path: &str) -> Result<String> {
        let Err(refusal) = self.user(ALICE).try_watch(path).await? else {
            bail!("expected: Alice is refused {path}; seen: a watch");
        };
        ensure!(refusal.status == 403, "expected: Alice is refused {path}; seen: {} {}", refusal.status, refusal.body);
        Ok(refusal.json()?["message"].as_str().context("a Status has a message")?.to_owned())
    }

    fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }
}

fn watch_event(who: &str, path: &str) -> EventBuilder {
    let event = event().user(who).verb("watch").api_group("audit.k8s.io").stage("ResponseStarted").request_uri(path);
    match path == CLUSTER_PATH {
        true => event.resource("events"),
        false => event.resource("namespacedevents").namespace(SHOP),
    }
}

async fn ready(target: Target) -> Result<()> {
    let answer = Client::connect(target).await?.get("/readyz", &[]).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
    Ok(())
}

/// Both are held until the second is found, or it could be the first again.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1");
    let (first, second) = (listen()?, listen()?);
    Ok([first.local_addr()?, second.local_addr()?])
}

/// What makes a curl speak as the front proxy does for Alice.
fn write_curl_config(directory: &Path, identity: &Identity) -> Result<()> {
    let files = identity.write(directory, FRONT_PROXY)?;
    let text = format!(
        "silent\nshow-error\nno-buffer\ncacert = {:?}\ncert = {:?}\nkey = {:?}\n\
         header = \"X-Remote-User: {ALICE}\"\nheader = \"X-Remote-Group: system:authenticated\"\n",
        directory.join("serving-ca.crt"),
        files.certificate,
        files.key,
    );
    std::fs::write(directory.join("alice.curl"), text).context("cannot write a configuration for curl")
}
