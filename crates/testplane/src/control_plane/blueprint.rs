//! All that is decided before anything runs: directories, ports, certificates, and each part's command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kubeconfig::{Credential, Kubeconfig};
use super::options::Options;
use super::ports::Ports;
use super::trust::{FRONT_PROXY, SERVICE_RANGE, SERVING_NAME, Trust, TrustFiles};
use crate::assets::Assets;
use crate::pki::{Identity, IdentityFiles};

/// The minor version that brought `--requestheader-uid-headers`.
const UID_HEADERS_SINCE: u32 = 32;

pub(super) struct Blueprint {
    pub(super) root: PathBuf,
    pub(super) ports: Ports,
    pub(super) trust: Trust,
    pub(super) admin: Identity,
    options: Options,
}

impl Blueprint {
    /// Lays out `root` and writes every file that a part reads.
    pub(super) fn draw(root: &Path, options: &Options) -> Result<Self> {
        for directory in ["pki", "logs", "kubeconfigs", "kubectl-cache"] {
            std::fs::create_dir(root.join(directory)).context("cannot lay out the plane's directory")?;
        }
        let trust = Trust::create(&root.join("pki"))?;
        let admin = trust.cluster.client("admin", &["system:masters"]);
        let ports = Ports::choose()?;
        let blueprint = Self { root: root.to_owned(), ports, trust, admin, options: options.clone() };
        options.audit_policy.write(&blueprint.audit_policy())?;
        blueprint.kubeconfig(Credential::Certificate(&blueprint.admin)).write(&blueprint.admin_kubeconfig())?;
        let manager = blueprint.trust.cluster.client("system:kube-controller-manager", &[]);
        blueprint.kubeconfig(Credential::Certificate(&manager)).write(&blueprint.manager_kubeconfig())?;
        let Trust { webhook_client, serving, .. } = &blueprint.trust;
        blueprint.write_webhook_kubeconfig(webhook_client, serving.certificate_pem())?;
        Ok(blueprint)
    }

    /// How `credential` speaks to kube-apiserver.
    pub(super) fn kubeconfig<'a>(&'a self, credential: Credential<'a>) -> Kubeconfig<'a> {
        Kubeconfig {
            server: format!("https://127.0.0.1:{}", self.ports.apiserver),
            ca_pem: self.trust.cluster.certificate_pem(),
            tls_server_name: None,
            credential,
        }
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfigs/admin.kubeconfig")
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.root.join("logs/audit.jsonl")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    fn audit_policy(&self) -> PathBuf {
        self.root.join("audit-policy.yaml")
    }

    fn manager_kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfigs/kube-controller-manager.kubeconfig")
    }

    fn webhook_kubeconfig_file(&self) -> PathBuf {
        self.root.join("kubeconfigs/audit-webhook.kubeconfig")
    }

    /// Who kube-apiserver is for the audit webhook, and which CAs it trusts there, once it starts.
    pub(super) fn write_webhook_kubeconfig(&self, client: &Identity, serving_ca_pem: &str) -> Result<()> {
        let kubeconfig = Kubeconfig {
            server: format!("https://127.0.0.1:{}/webhook", self.ports.webhook),
            ca_pem: serving_ca_pem,
            tls_server_name: Some(SERVING_NAME),
            credential: Credential::Certificate(client),
        };
        kubeconfig.write(&self.webhook_kubeconfig_file())
    }

    /// One member, no peers, no fsync: what it stores is worth nothing after the test.
    pub(super) fn etcd(&self, assets: &Assets) -> Command {
        let Ports { etcd, etcd_peer, .. } = self.ports;
        let (client, peer) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{etcd_peer}"));
        let mut command = Command::new(&assets.etcd);
        flag(&mut command, "data-dir", self.root.join("etcd").display());
        flag(&mut command, "listen-client-urls", &client);
        flag(&mut command, "advertise-client-urls", &client);
        flag(&mut command, "listen-peer-urls", &peer);
        flag(&mut command, "initial-advertise-peer-urls", &peer);
        flag(&mut command, "initial-cluster", format!("default={peer}"));
        flag(&mut command, "unsafe-no-fsync", true);
        flag(&mut command, "log-level", "warn");
        command
    }

    pub(super) fn apiserver(&self, assets: &Assets) -> Command {
        let mut command = Command::new(&assets.kube_apiserver);
        self.apiserver_serving(&mut command);
        self.apiserver_identity(&mut command, assets);
        self.apiserver_audit(&mut command);
        // Its ServiceAccounts are kube-controller-manager's work: without one every Pod would be refused.
        if assets.kube_controller_manager.is_none() {
            flag(&mut command, "disable-admission-plugins", "ServiceAccount");
        }
        command.args(&self.options.extra_apiserver_args);
        command
    }

    fn apiserver_serving(&self, command: &mut Command) {
        let Ports { etcd, apiserver, .. } = self.ports;
        flag(command, "etcd-servers", format!("http://127.0.0.1:{etcd}"));
        flag(command, "bind-address", "127.0.0.1");
        flag(command, "secure-port", apiserver);
        // The Service `kubernetes` may not have a loopback endpoint, and nothing here would use it: let nobody write
        // one.
        flag(command, "advertise-address", "127.0.0.1");
        flag(command, "endpoint-reconciler-type", "none");
        flag(command, "service-cluster-ip-range", SERVICE_RANGE);
        // ExternalName, which puts audit-stream on this host, exists for requests that go to a Service's own address
        // only.
        flag(command, "enable-aggregator-routing", false);
        identity(command, &self.trust.files.apiserver, ["tls-cert-file", "tls-private-key-file"]);
    }

    fn apiserver_identity(&self, command: &mut Command, assets: &Assets) {
        let TrustFiles { cluster_ca, front_proxy_ca, front_proxy_client, .. } = &self.trust.files;
        flag(command, "authorization-mode", "Node,RBAC");
        flag(command, "client-ca-file", cluster_ca.display());
        flag(command, "requestheader-client-ca-file", front_proxy_ca.display());
        flag(command, "requestheader-allowed-names", FRONT_PROXY);
        flag(command, "requestheader-username-headers", "X-Remote-User");
        if assets.minor >= UID_HEADERS_SINCE {
            flag(command, "requestheader-uid-headers", "X-Remote-Uid");
        }
        flag(command, "requestheader-group-headers", "X-Remote-Group");
        flag(command, "requestheader-extra-headers-prefix", "X-Remote-Extra-");
        identity(command, front_proxy_client, ["proxy-client-cert-file", "proxy-client-key-file"]);
        flag(command, "service-account-issuer", "https://kubernetes.default.svc");
        flag(command, "service-account-signing-key-file", self.trust.files.service_account_key.display());
        flag(command, "service-account-key-file", self.trust.files.service_account_public_key.display());
    }

    fn apiserver_audit(&self, command: &mut Command) {
        flag(command, "audit-policy-file", self.audit_policy().display());
        flag(command, "audit-webhook-config-file", self.webhook_kubeconfig_file().display());
        flag(command, "audit-webhook-mode", "batch");
        flag(command, "audit-webhook-batch-max-wait", "1s");
        // As docs/operations.md asks for: else anybody's long requests make a batch too long for everybody's events.
        flag(command, "audit-webhook-truncate-enabled", "true");
        if self.options.ledger {
            flag(command, "audit-log-path", self.ledger().display());
            // Strict: a request that the ledger cannot record fails, so that the ledger never lacks one.
            flag(command, "audit-log-mode", "blocking-strict");
            // In megabytes: never rotated, or the first lines would be in another file.
            flag(command, "audit-log-maxsize", 100_000);
        }
    }

    pub(super) fn controller_manager(&self, binary: &Path) -> Command {
        let files = &self.trust.files;
        let mut command = Command::new(binary);
        flag(&mut command, "kubeconfig", self.manager_kubeconfig().display());
        flag(&mut command, "bind-address", "127.0.0.1");
        flag(&mut command, "secure-port", self.ports.controller_manager);
        // Its own certificate, only because it would spend half a second on making one.
        identity(&mut command, &files.controller_manager, ["tls-cert-file", "tls-private-key-file"]);
        // There is one, so there is nobody to elect.
        flag(&mut command, "leader-elect", false);
        flag(&mut command, "service-account-private-key-file", files.service_account_key.display());
        flag(&mut command, "root-ca-file", files.cluster_ca.display());
        // As kubeadm sets it: the stream then names the controller that acted.
        flag(&mut command, "use-service-account-credentials", true);
        flag(&mut command, "kube-api-qps", 500);
        flag(&mut command, "kube-api-burst", 1000);
        command
    }
}

fn flag(command: &mut Command, name: &str, value: impl std::fmt::Display) {
    command.arg(format!("--{name}={value}"));
}

fn identity(command: &mut Command, files: &IdentityFiles, [certificate, key]: [&str; 2]) {
    flag(command, certificate, files.certificate.display());
    flag(command, key, files.key.display());
}
