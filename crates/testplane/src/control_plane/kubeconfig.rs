//! Writes kubeconfig files: for users, for the control plane's parts, and for the audit webhook.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::pki::Identity;

/// How the bearer of a kubeconfig proves who it is.
pub(super) enum Credential<'a> {
    Certificate(&'a Identity),
    Token(&'a str),
}

/// A server and who speaks to it.
pub(super) struct Kubeconfig<'a> {
    pub(super) server: String,
    pub(super) ca_pem: &'a str,
    /// The name in the server's certificate, where it is not the one in its URL.
    pub(super) tls_server_name: Option<&'a str>,
    pub(super) credential: Credential<'a>,
}

impl Kubeconfig<'_> {
    /// Everything is embedded, so that the file works wherever it is copied. JSON is YAML that needs no quoting rules.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let Self { server, ca_pem, tls_server_name, credential } = self;
        let mut cluster = json!({ "server": server, "certificate-authority-data": STANDARD.encode(ca_pem) });
        if let Some(name) = tls_server_name {
            cluster["tls-server-name"] = Value::from(*name);
        }
        let user = match credential {
            Credential::Token(token) => json!({ "token": token }),
            Credential::Certificate(Identity { certificate_pem, key_pem }) => json!({
                "client-certificate-data": STANDARD.encode(certificate_pem),
                "client-key-data": STANDARD.encode(key_pem),
            }),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "plane", "cluster": cluster }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "plane", "context": { "cluster": "plane", "user": "user" } }],
            "current-context": "plane",
        });
        let text = serde_json::to_vec_pretty(&config).context("a kubeconfig is plain JSON")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}
