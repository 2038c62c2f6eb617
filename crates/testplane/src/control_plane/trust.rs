//! Who trusts whom in a plane: four authorities with nothing in common, as in a cluster that was set up with care.
//!
//! That they are separate is what lets a test show that audit-stream checks against the right one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pki::{Authority, Identity, IdentityFiles, signing_key};

/// The only common name that kube-apiserver and audit-stream accept for the front proxy.
pub const FRONT_PROXY: &str = "front-proxy-client";
/// The common name of kube-apiserver's client certificate for the audit webhook.
pub const WEBHOOK_CLIENT: &str = "kube-apiserver-audit";
/// The name that kube-apiserver expects in audit-stream's certificate.
pub const SERVING_NAME: &str = "audit-stream.audit-stream.svc";
/// The first address of [`SERVICE_RANGE`] is that of the Service `kubernetes`.
const APISERVER_NAMES: [&str; 5] =
    ["localhost", "127.0.0.1", "10.0.0.1", "kubernetes.default", "kubernetes.default.svc"];
/// The addresses of Services.
pub(super) const SERVICE_RANGE: &str = "10.0.0.0/24";

/// The authorities, and the files in which each part finds its own.
pub struct Trust {
    /// Signs users, the parts of the control plane and kube-apiserver's own certificate.
    pub cluster: Authority,
    /// Signs the front proxy's client certificate.
    pub front_proxy: Authority,
    /// Signs client certificates of the audit webhook.
    pub webhook: Authority,
    /// Signs audit-stream's serving certificate.
    pub serving: Authority,
    /// kube-apiserver's client certificate for the audit webhook.
    pub webhook_client: Identity,
    /// The certificates of the authorities and of their servers, as files.
    pub files: TrustFiles,
}

/// See the fields of [`Trust`].
pub struct TrustFiles {
    /// The cluster CA.
    pub cluster_ca: PathBuf,
    /// The front proxy's CA.
    pub front_proxy_ca: PathBuf,
    /// The CA of the audit webhook's clients: audit-stream's `--webhook-client-ca-file`.
    pub webhook_ca: PathBuf,
    /// kube-apiserver's serving certificate.
    pub apiserver: IdentityFiles,
    /// kube-controller-manager's serving certificate.
    pub controller_manager: IdentityFiles,
    /// kube-apiserver's client certificate as the front proxy.
    pub front_proxy_client: IdentityFiles,
    /// audit-stream's serving certificate.
    pub audit_stream: IdentityFiles,
    /// Signs `ServiceAccount` tokens.
    pub service_account_key: PathBuf,
    /// Checks them.
    pub service_account_public_key: PathBuf,
}

impl Trust {
    /// Makes everything new, in `directory`.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let cluster = Authority::new("cluster-ca");
        let front_proxy = Authority::new("front-proxy-ca");
        let webhook = Authority::new("audit-webhook-ca");
        let serving = Authority::new("audit-stream-serving-ca");
        let (private, public) = signing_key();
        let file = |name: &str, pem: &str| {
            let path = directory.join(name);
            std::fs::write(&path, pem).with_context(|| format!("cannot write {}", path.display())).map(|()| path)
        };
        let files = TrustFiles {
            cluster_ca: file("cluster-ca.crt", cluster.certificate_pem())?,
            front_proxy_ca: file("front-proxy-ca.crt", front_proxy.certificate_pem())?,
            webhook_ca: file("audit-webhook-ca.crt", webhook.certificate_pem())?,
            apiserver: cluster.server("kube-apiserver", &APISERVER_NAMES).write(directory, "apiserver")?,
            controller_manager: cluster
                .server("kube-controller-manager", &["localhost", "127.0.0.1"])
                .write(directory, "controller-manager")?,
            front_proxy_client: front_proxy.client(FRONT_PROXY, &[]).write(directory, FRONT_PROXY)?,
            audit_stream: serving
                .server("audit-stream", &[SERVING_NAME, "localhost", "127.0.0.1"])
                .write(directory, "audit-stream")?,
            service_account_key: file("service-account.key", &private)?,
            service_account_public_key: file("service-account.pub", &public)?,
        };
        let webhook_client = webhook.client(WEBHOOK_CLIENT, &[]);
        Ok(Self { cluster, front_proxy, webhook, serving, webhook_client, files })
    }
}
