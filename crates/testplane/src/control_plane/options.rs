//! What a test may choose about its plane.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How to start a plane; the default is the one that the documentation describes.
#[derive(Clone, Debug)]
pub struct Options {
    /// What kube-apiserver records.
    pub audit_policy: AuditPolicy,
    /// Whether kube-apiserver also writes each event into a file before it answers: the truth to compare a stream with.
    pub ledger: bool,
    /// Added at the end of kube-apiserver's command line, so that they win.
    pub extra_apiserver_args: Vec<String>,
}

/// What kube-apiserver records.
#[derive(Clone, Debug)]
pub enum AuditPolicy {
    /// `manifests/audit-policy.yaml`, the sample that we ship.
    Sample,
    /// Everything at level Metadata, audit-stream's own reviews too, and ConfigMaps of these namespaces at level
    /// `RequestResponse`.
    Everything {
        /// Where the bodies of `ConfigMaps` are recorded.
        config_map_bodies_in: Vec<String>,
    },
    /// Another policy.
    File(PathBuf),
}

impl Default for Options {
    fn default() -> Self {
        Self { audit_policy: AuditPolicy::Sample, ledger: true, extra_apiserver_args: Vec::new() }
    }
}

impl AuditPolicy {
    /// Writes the policy where kube-apiserver will read it.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let copy = |from: &Path| std::fs::read(from).with_context(|| format!("cannot read {}", from.display()));
        let text = match self {
            Self::Sample => copy(&crate::manifests::directory().join("audit-policy.yaml"))?,
            Self::File(file) => copy(file)?,
            Self::Everything { config_map_bodies_in } => everything(config_map_bodies_in).to_string().into_bytes(),
        };
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn everything(config_map_bodies_in: &[String]) -> Value {
    let mut rules = Vec::new();
    // A rule without namespaces means all of them.
    if !config_map_bodies_in.is_empty() {
        rules.push(json!({
            "level": "RequestResponse",
            "namespaces": config_map_bodies_in,
            "resources": [{ "group": "", "resources": ["configmaps"] }],
        }));
    }
    rules.push(json!({ "level": "Metadata" }));
    json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_bodies_only_where_asked() {
        let levels = |namespaces: &[String]| {
            let rules = everything(namespaces)["rules"].as_array().unwrap().clone();
            rules.iter().map(|rule| rule["level"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(levels(&[]), ["Metadata"]);
        assert_eq!(levels(&["shop".to_owned()]), ["RequestResponse", "Metadata"]);
    }
}
