//! Starts the real control plane on this host: etcd, kube-apiserver with its audit webhook and aggregator, and
//! kube-controller-manager, each plane in a directory of its own and with CAs of its own.
//!
//! There are no nodes: Pods are accepted and never run. audit-stream itself is started by [`crate::audit_stream`],
//! and announced to kube-apiserver by [`crate::manifests`]. Dropping a plane ends its processes and removes its
//! directory; with `KEEP_PLANE=1` the directory stays.

mod blueprint;
pub(crate) mod https;
mod kubeconfig;
mod options;
mod ports;
mod trust;

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::blueprint::Blueprint;
use self::https::HttpsClient;
use self::kubeconfig::Credential;
pub use self::options::{AuditPolicy, Options};
pub use self::ports::Ports;
pub use self::trust::{FRONT_PROXY, SERVING_NAME, Trust, TrustFiles, WEBHOOK_CLIENT};
use crate::assets::Assets;
use crate::kubectl::Kubectl;
use crate::pki::Identity;
use crate::process::Process;
use crate::process::watchdog::Watchdog;

/// Ten times what two idle cores need: a machine that also compiles is slow.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Enough to answer what is in flight and to send the last audit batches. After that kube-apiserver would wait a
/// minute for open watches, or longer for an audit webhook that does not answer; a restart need not.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const CLASH: &str = "address already in use";

/// Two planes at once would starve each other on a machine with two cores, so within a process they take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A running control plane.
pub struct ControlPlane {
    // Fields are dropped in this order: who writes into the directory ends before it is removed.
    controller_manager: Option<Process>,
    apiserver: Mutex<Option<Process>>,
    etcd: Process,
    blueprint: Blueprint,
    assets: Assets,
    api: HttpsClient,
    kubeconfigs: AtomicUsize,
    startup: Startup,
    _directory: TempDir,
    watchdog: Watchdog,
    turn: Option<tokio::sync::MutexGuard<'static, ()>>,
}

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    /// Certificates, files, and until etcd served.
    pub etcd: Duration,
    /// From then on, until kube-apiserver's `/readyz` was 200.
    pub apiserver: Duration,
    /// From then on, until `ServiceAccounts` are made and roles aggregated.
    pub controller_manager: Duration,
}

impl ControlPlane {
    /// Starts a plane and waits until it can be used; while another plane of this process lives, waits for its end
    /// first.
    ///
    /// # Errors
    /// If binaries are missing (the text says how to get them) or a part does not come up (the text quotes its log).
    pub async fn start(options: Options) -> Result<Self> {
        let assets = Assets::locate().await?;
        let turn = TURN.lock().await;
        let mut plane = match Self::attempt(&assets, &options).await {
            // Somebody took one of the ports between our choice and its use.
            Err(error) if format!("{error:#}").contains(CLASH) => Self::attempt(&assets, &options).await?,
            other => other?,
        };
        plane.turn = Some(turn);
        Ok(plane)
    }

    async fn attempt(assets: &Assets, options: &Options) -> Result<Self> {
        let begin = Instant::now();
        let directory = temporary_directory()?;
        let keeps = keep_plane();
        let watchdog = Watchdog::start(Some(directory.path()).filter(|_| !keeps))?;
        let blueprint = Blueprint::draw(directory.path(), options)?;
        let spawn = |name: &str, command: &mut _| Process::spawn(name, command, &blueprint.log(name), &watchdog);
        let mut etcd = spawn("etcd", &mut blueprint.etcd(assets))?;
        // It listens when it can serve. A kube-apiserver that dials it earlier tries again a second later.
        let store = (Ipv4Addr::LOCALHOST, blueprint.ports.etcd);
        etcd.wait_until("ready", START_DEADLINE, || async move { Ok(TcpStream::connect(store).await.map(drop)?) })
            .await?;
        let etcd_time = begin.elapsed();
        let apiserver = spawn("kube-apiserver", &mut blueprint.apiserver(assets))?;
        let ca = blueprint.trust.cluster.certificate_pem();
        let api = HttpsClient::new(ca, "localhost", blueprint.ports.apiserver, Some(&blueprint.admin))?;
        let mut plane = Self {
            controller_manager: None,
            apiserver: Mutex::new(Some(apiserver)),
            etcd,
            blueprint,
            assets: assets.clone(),
            api,
            kubeconfigs: AtomicUsize::new(0),
            startup: Startup { etcd: etcd_time, apiserver: Duration::ZERO, controller_manager: Duration::ZERO },
            _directory: directory,
            watchdog,
            turn: None,
        };
        plane.come_up().await?;
        Ok(plane)
    }

    async fn come_up(&mut self) -> Result<()> {
        let begin = Instant::now();
        if let Err(error) = self.apiserver_ready().await {
            // Without its store kube-apiserver only says that it cannot start: say what the store said.
            self.etcd.ensure_running()?;
            return Err(error);
        }
        self.startup.apiserver = begin.elapsed();
        let begin = Instant::now();
        self.start_controller_manager().await?;
        self.startup.controller_manager = begin.elapsed();
        Ok(())
    }

    async fn start_controller_manager(&mut self) -> Result<()> {
        let Some(binary) = &self.assets.kube_controller_manager else { return Ok(()) };
        let (name, api) = ("kube-controller-manager", self.api.clone());
        let mut command = self.blueprint.controller_manager(binary);
        let mut process = Process::spawn(name, &mut command, &self.blueprint.log(name), &self.watchdog)?;
        process.wait_until("at work", START_DEADLINE, || at_work(&api)).await?;
        self.controller_manager = Some(process);
        Ok(())
    }

    async fn apiserver_ready(&self) -> Result<()> {
        // Taken out while waiting, so that the lock is not held meanwhile.
        let mut process = self.apiserver_slot().take().context("kube-apiserver was stopped")?;
        let api = self.api.clone();
        process.wait_until("ready", START_DEADLINE, || async { api.get("/readyz").await.map(drop) }).await?;
        *self.apiserver_slot() = Some(process);
        Ok(())
    }

    fn apiserver_slot(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops kube-apiserver alone, politely for 5 s, then by force.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn stop_apiserver(&self) -> Result<()> {
        let process = self.apiserver_slot().take().context("kube-apiserver is not running")?;
        // An error here is the deadline, and the process killed: stopped all the same.
        let _ = process.terminate(STOP_DEADLINE).await;
        Ok(())
    }

    /// Ends kube-apiserver alone with SIGKILL: what it had not sent to the webhook yet is lost.
    ///
    /// # Errors
    /// If it is not running.
    pub fn kill_apiserver(&self) -> Result<()> {
        self.apiserver_slot().take().context("kube-apiserver is not running")?.kill();
        Ok(())
    }

    /// Rewrites the kubeconfig of the audit webhook: who kube-apiserver is there, and which CAs it trusts. It reads this
    /// file when it starts, and never again.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_webhook_peers(&self, client: &Identity, serving_ca_pem: &str) -> Result<()> {
        self.blueprint.write_webhook_kubeconfig(client, serving_ca_pem)
    }

    /// Starts kube-apiserver again after [`Self::stop_apiserver`] or [`Self::kill_apiserver`], with the same ports and store,
    /// and with what its files hold now.
    ///
    /// # Errors
    /// If it runs already, or does not come up.
    pub async fn start_apiserver(&self) -> Result<()> {
        ensure!(self.apiserver_slot().is_none(), "kube-apiserver runs already: stop it first");
        let name = "kube-apiserver";
        let mut command = self.blueprint.apiserver(&self.assets);
        let process = Process::spawn(name, &mut command, &self.blueprint.log(name), &self.watchdog)?;
        *self.apiserver_slot() = Some(process);
        self.apiserver_ready().await
    }

    /// A kubeconfig of a member of `system:masters`.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.blueprint.admin_kubeconfig()
    }

    /// A kubeconfig of a new user with a client certificate and, so far, no permissions.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn user_kubeconfig(&self, name: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.blueprint.trust.cluster.client(name, groups);
        self.write_kubeconfig(name, Credential::Certificate(&identity))
    }

    /// A kubeconfig of an existing `ServiceAccount`, with a token for an hour.
    ///
    /// # Errors
    /// If there is no such `ServiceAccount`.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let arguments = ["create", "token", "--duration=1h", "--namespace", namespace, name];
        let token = self.admin().run(&arguments).await?.success();
        let token = token.with_context(|| format!("no token for ServiceAccount {namespace}/{name}"))?;
        self.write_kubeconfig(name, Credential::Token(token.trim()))
    }

    /// The same, for a server that reaches kube-apiserver through another port of this host.
    ///
    /// # Errors
    /// If there is no such `ServiceAccount`.
    pub async fn service_account_kubeconfig_through(&self, port: u16, namespace: &str, name: &str) -> Result<PathBuf> {
        let path = self.service_account_kubeconfig(namespace, name).await?;
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        config["clusters"][0]["cluster"]["server"] = Value::from(format!("https://127.0.0.1:{port}"));
        std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn write_kubeconfig(&self, name: &str, credential: Credential<'_>) -> Result<PathBuf> {
        // Users may be called anything, `system:node:a/b` too, and two names must not share a file.
        let safe = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.directory().join(format!("kubeconfigs/{safe}-{number}.kubeconfig"));
        self.blueprint.kubeconfig(credential).write(&path)?;
        Ok(path)
    }

    /// kubectl as the user of a kubeconfig that this plane wrote.
    pub fn kubectl(&self, kubeconfig: &Path) -> Kubectl {
        Kubectl::new(&self.assets.kubectl, kubeconfig, &self.directory().join("kubectl-cache"))
    }

    /// kubectl as a member of `system:masters`.
    pub fn admin(&self) -> Kubectl {
        self.kubectl(&self.admin_kubeconfig())
    }

    /// kube-apiserver's `gitVersion`, such as `v1.37.1`.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn version(&self) -> Result<String> {
        let version: Value = serde_json::from_str(&self.api.get("/version").await?)?;
        Ok(version["gitVersion"].as_str().context("/version has no gitVersion")?.to_owned())
    }

    /// What kube-apiserver recorded so far, one event each, in the order of the file.
    ///
    /// An event is there before its request is answered, except that of stage `ResponseComplete`: kube-apiserver may
    /// have flushed the answer already, so wait for it.
    ///
    /// # Errors
    /// If the plane was started without a ledger.
    pub fn ledger(&self) -> Result<Vec<Value>> {
        let path = self.blueprint.ledger();
        let text = std::fs::read_to_string(&path).with_context(|| format!("no ledger at {}", path.display()))?;
        // The last line may be half-written; whole lines end in a newline.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(|line| serde_json::from_str(line).context("the ledger has a malformed line")).collect()
    }

    /// The file with kube-apiserver's own log, which has what its aggregator and its audit webhook complain about.
    pub fn aggregator_log(&self) -> PathBuf {
        self.blueprint.log("kube-apiserver")
    }

    /// The directory that holds everything of this plane.
    pub fn directory(&self) -> &Path {
        &self.blueprint.root
    }

    /// Who listens where; those of audit-stream are reserved for it.
    pub fn ports(&self) -> Ports {
        self.blueprint.ports
    }

    /// The authorities, to make more certificates, and the files of those that exist.
    pub fn trust(&self) -> &Trust {
        &self.blueprint.trust
    }

    /// How long the start took.
    pub fn startup(&self) -> Startup {
        self.startup
    }

    /// The process id of kube-apiserver, if it runs now.
    pub fn apiserver_id(&self) -> Option<u32> {
        self.apiserver_slot().as_ref().map(Process::id)
    }

    /// The process ids of everything that this plane runs now.
    pub fn process_ids(&self) -> Vec<u32> {
        let apiserver = self.apiserver_id();
        let manager = self.controller_manager.as_ref().map(Process::id);
        [apiserver, manager, Some(self.etcd.id()), Some(self.watchdog.id())].into_iter().flatten().collect()
    }

    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }
}

/// `ServiceAccounts` are made, and the rules of `view` have travelled through `edit` into `admin`.
async fn at_work(api: &HttpsClient) -> Result<()> {
    api.get("/api/v1/namespaces/default/serviceaccounts/default").await?;
    let admin = api.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/admin").await?;
    ensure!(admin.contains(r#""pods/log""#), "the ClusterRole admin is not aggregated yet");
    Ok(())
}

fn temporary_directory() -> Result<TempDir> {
    let mut directory = tempfile::Builder::new()
        // Keys of a superuser lie in it.
        .permissions(Permissions::from_mode(0o700))
        .prefix("audit-stream-plane-")
        .tempdir();
    if let (Ok(directory), true) = (&mut directory, keep_plane()) {
        eprintln!("KEEP_PLANE: {} stays", directory.path().display());
        directory.disable_cleanup(true);
    }
    directory.context("cannot create a temporary directory")
}

fn keep_plane() -> bool {
    std::env::var_os("KEEP_PLANE").is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests;
