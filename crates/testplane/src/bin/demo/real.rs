//! The story on a real control plane: every act and every watch is a kubectl process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::assets::Assets;
use audit_stream_testplane::audit_stream::AuditStream;
use audit_stream_testplane::control_plane::{ControlPlane, Options};
use audit_stream_testplane::kubectl::Kubectl;
use audit_stream_testplane::manifests;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::plane::{Lines, Plane};
use crate::story::{ADMIN, ALICE, BOB, Deed, MALLORY};

/// The namespaces, and who may do what in them.
const CAST: &str = include_str!("cast.yaml");
/// The audit events of the preparations come with the next batch, and Alice's stream is to begin with the story.
const SETTLE: Duration = Duration::from_secs(2);
const FORBIDDEN: &str = "(Forbidden)";

/// A control plane with audit-stream. Fields are dropped in this order.
pub(crate) struct RealPlane {
    people: Vec<(&'static str, Kubectl)>,
    alice_kubeconfig: PathBuf,
    kubectl: PathBuf,
    _server: AuditStream,
    plane: ControlPlane,
}

impl RealPlane {
    /// Starts everything, and waits until kube-apiserver has found audit-stream.
    pub(crate) async fn start() -> Result<Self> {
        let plane = ControlPlane::start(Options { ledger: false, ..Options::default() }).await?;
        manifests::apply(&plane).await?;
        let server = AuditStream::start(&plane, &[]).await?;
        manifests::wait_until_available(&plane).await?;
        plane.admin().apply(CAST).await.context("cannot make the namespaces and permissions")?;
        sleep(SETTLE).await;

        let alice_kubeconfig = plane.user_kubeconfig(ALICE, &[])?;
        let mut people = vec![(ADMIN, plane.admin()), (ALICE, plane.kubectl(&alice_kubeconfig))];
        for name in [BOB, MALLORY] {
            people.push((name, plane.kubectl(&plane.user_kubeconfig(name, &[])?)));
        }
        Ok(Self { people, alice_kubeconfig, kubectl: Assets::locate().await?.kubectl, _server: server, plane })
    }

    fn kubectl(&self, who: &str) -> Result<&Kubectl> {
        let found = self.people.iter().find(|(name, _)| *name == who);
        Ok(&found.with_context(|| format!("nobody is called {who}"))?.1)
    }
}

impl Plane for RealPlane {
    async fn version(&self) -> Result<String> {
        let version = self.plane.admin().run(&["get", "--raw", "/version"]).await?.success()?;
        let version: Value = serde_json::from_str(&version).context("/version is not JSON")?;
        Ok(format!("kube-apiserver, /version: {version}"))
    }

    fn command(&self, path: &str) -> String {
        let (kubectl, kubeconfig) = (self.kubectl.display(), self.alice_kubeconfig.display());
        format!("KUBECONFIG={kubeconfig} {kubectl} get --raw '{path}'")
    }

    async fn act(&self, deed: &Deed) -> Result<Instant> {
        let mut arguments = vec!["--namespace", deed.namespace];
        arguments.extend(deed.command.split(' '));
        let output = self.kubectl(deed.who)?.run(&arguments).await?;
        let answered = Instant::now();
        if deed.allowed {
            output.success().with_context(|| format!("expected: {} may do this; seen", deed.who))?;
            return Ok(answered);
        }
        let is_refused = !output.status.success() && output.stderr.contains(FORBIDDEN);
        ensure!(is_refused, "expected: {} may not do this; seen: {output:?}", deed.who);
        Ok(answered)
    }

    async fn watch(&self, who: &str, path: &str) -> Result<Lines> {
        let stream = self.kubectl(who)?.stream(&["get", "--raw", path])?;
        Ok(Lines::Kubectl(Box::new(Some(stream))))
    }

    async fn refusal(&self, path: &str) -> Result<String> {
        let mut watch = self.kubectl(ALICE)?.stream(&["get", "--raw", path])?;
        if let Some(line) = watch.next_line().await? {
            bail!("expected: Alice is refused {path}; seen: {line}");
        }
        let (status, complaint) = watch.finish().await?;
        let is_refused = !status.success() && complaint.contains(FORBIDDEN);
        ensure!(is_refused, "expected: Alice is refused {path}; seen: {status}: {complaint}");
        Ok(complaint)
    }

    fn logs(&self) -> PathBuf {
        self.plane.directory().join("logs")
    }
}
