//! Starts the server's binary beside a plane, as its Deployment would, and stops it.
//!
//! The binary is only run, never linked: this crate does not depend on the server.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::control_plane::https::HttpsClient;
use crate::control_plane::{ControlPlane, SERVING_NAME, WEBHOOK_CLIENT};
use crate::process::Process;
use crate::process::watchdog::Watchdog;

const VARIABLE: &str = "AUDIT_STREAM_BIN";
const BINARY: &str = "audit-stream";
const START_DEADLINE: Duration = Duration::from_secs(60);
/// The defaults of `--shutdown-delay-duration` and `--shutdown-grace-period`, and some room.
const STOP_DEADLINE: Duration = Duration::from_secs(50);

/// Each start has a log of its own.
static STARTS: AtomicUsize = AtomicUsize::new(0);

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct AuditStream {
    process: Process,
}

impl AuditStream {
    /// Starts `audit-stream serve` and waits until it is ready. Needs [`crate::manifests::apply`] first, which makes
    /// its `ServiceAccount`. A flag in `extra_args`, written `--flag=value`, takes the place of the default of that
    /// name.
    ///
    /// # Errors
    /// If there is no binary, or it does not become ready; the text says which, and quotes its log.
    pub async fn start(plane: &ControlPlane, extra_args: &[&str]) -> Result<Self> {
        Self::start_under(plane, extra_args, &[]).await
    }

    /// The same with environment variables.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_under(plane: &ControlPlane, extra_args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(find_binary()?);
        command.envs(environment.iter().copied());
        Self::start_command(command, plane, extra_args).await
    }

    /// Starts `audit-stream` with these arguments, beside no plane, and its log in `directory`. It is not ready yet.
    ///
    /// # Errors
    /// If there is no binary.
    pub fn spawn(arguments: &[String], directory: &Path) -> Result<Self> {
        let mut command = Command::new(find_binary()?);
        let (log, watchdog) = (directory.join("audit-stream.log"), Watchdog::start(None)?);
        Ok(Self { process: Process::spawn(BINARY, command.args(arguments), &log, &watchdog)? })
    }

    async fn start_command(mut command: Command, plane: &ControlPlane, extra_args: &[&str]) -> Result<Self> {
        let kubeconfig = plane.service_account_kubeconfig("audit-stream", "audit-stream").await;
        let kubeconfig = kubeconfig.context("audit-stream's ServiceAccount is missing: apply the manifests first")?;
        let number = STARTS.fetch_add(1, Ordering::Relaxed);
        let log = plane.directory().join(format!("logs/audit-stream-{number}.log"));
        command.arg("serve").args(arguments(plane, &kubeconfig, extra_args));
        let mut process = Process::spawn(BINARY, &mut command, &log, plane.watchdog())?;
        let ca = plane.trust().serving.certificate_pem();
        let client = HttpsClient::new(ca, SERVING_NAME, plane.ports().secure, None)?;
        process.wait_until("ready", START_DEADLINE, || async { client.get("/readyz").await.map(drop) }).await?;
        Ok(Self { process })
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the end.
    ///
    /// # Errors
    /// If it still runs after 50 s; then it is killed.
    pub async fn terminate(self) -> Result<ExitStatus> {
        self.process.terminate(STOP_DEADLINE).await
    }

    /// Ends it with SIGKILL: a crash.
    pub fn kill(self) {
        self.process.kill();
    }

    /// Sends a signal by its name without `SIG`: `STOP` makes it hang, `CONT` lets it go on.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        self.process.signal(signal)
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

fn arguments(plane: &ControlPlane, kubeconfig: &Path, extra_args: &[&str]) -> Vec<String> {
    let (ports, files) = (plane.ports(), &plane.trust().files);
    let defaults = [
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={}", ports.secure),
        format!("--tls-cert-file={}", files.audit_stream.certificate.display()),
        format!("--tls-private-key-file={}", files.audit_stream.key.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        "--webhook-bind-address=127.0.0.1".to_owned(),
        format!("--webhook-port={}", ports.webhook),
        format!("--webhook-client-ca-file={}", files.webhook_ca.display()),
        format!("--webhook-allowed-names={WEBHOOK_CLIENT}"),
        // In a cluster it waits until no one is sent here any more: here no one else is, and a test need not wait.
        "--shutdown-delay-duration=0s".to_owned(),
    ];
    override_defaults(defaults, extra_args)
}

/// A flag given twice would be an error, so a default gives way to an extra argument of the same name.
fn override_defaults(defaults: impl IntoIterator<Item = String>, extra_args: &[&str]) -> Vec<String> {
    let name = |argument: &str| argument.split_once('=').map_or(argument, |(name, _)| name).to_owned();
    let kept = defaults.into_iter().filter(|default| !extra_args.iter().any(|extra| name(extra) == name(default)));
    kept.chain(extra_args.iter().map(ToString::to_string)).collect()
}

/// Cargo puts tests into `target/<profile>/deps`, and the binary two floors up at most.
fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        ensure!(path.is_file(), "{VARIABLE} names {}, which is not a file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let name = format!("{BINARY}{}", std::env::consts::EXE_SUFFIX);
    let candidates: Vec<_> = own.ancestors().skip(1).take(2).map(|directory| directory.join(&name)).collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "there is no {}: build it with `cargo build -p audit-stream`, or name it in {VARIABLE}",
            candidates.last().unwrap_or(&own).display()
        ),
    }
}

#[cfg(test)]
mod tests;
