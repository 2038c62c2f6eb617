//! The matrix of `matrix`, of which a real kube-apiserver's RBAC answers the reviews.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use audit_stream_testplane::front_proxy::Protocol;
use tokio::time::Instant;

use crate::matrix::{GRANTS, Grant, NAMESPACES, Subject, cells, compare};
use crate::real_cluster::Cluster;

/// The grants as RBAC objects, and the namespaces that they are in.
fn manifest() -> String {
    let mut text = String::new();
    for namespace in NAMESPACES.iter().filter(|namespace| **namespace != "kube-system") {
        let _ = writeln!(text, "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
    }
    for (index, Grant { subject, verbs, group, resource, namespace }) in GRANTS.iter().enumerate() {
        let (subject, name) = match subject {
            Subject::User(name) => ("User", name),
            Subject::Group(name) => ("Group", name),
        };
        let (prefix, place) = match namespace {
            Some(namespace) => ("", format!(", namespace: {namespace}")),
            None => ("Cluster", String::new()),
        };
        let rbac = "apiVersion: rbac.authorization.k8s.io/v1";
        let metadata = format!("metadata: {{name: matrix-{index}{place}}}");
        let rules = format!("rules: [{{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: {verbs:?}}}]");
        let role =
            format!("roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {prefix}Role, name: matrix-{index}}}");
        let subjects =
            format!("subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: {subject}, name: \"{name}\"}}]");
        let _ = writeln!(text, "---\n{{{rbac}, kind: {prefix}Role, {metadata}, {rules}}}");
        let _ = writeln!(text, "---\n{{{rbac}, kind: {prefix}RoleBinding, {metadata}, {role}, {subjects}}}");
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn rbac_gives_everybody_what_is_theirs_and_nothing_else() -> Result<()> {
    let flags = [
        "--review-qps=10000",
        "--max-watches-per-user=10000",
        "--max-watches-per-namespace=10000",
        "--max-classes-per-user=10000",
    ];
    let cluster = Cluster::start_with(&flags).await?;
    cluster.plane.admin().apply(&manifest()).await?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(cluster.front_proxy(Protocol::Http2).await?.client().clone());
    }
    // Every second: that has no factor in common with the ways in which cells vary.
    let (cells, from) = (cells().into_iter().step_by(2).collect::<Vec<_>>(), Instant::now());
    let difference = compare(&clients, &cells, &GRANTS).await?;
    println!("{} cells in {:?}: {:?}", cells.len(), from.elapsed(), difference.expected);
    ensure!(difference.is_none(), "{difference:#?}");
    ensure!(cells.len() >= 500 && difference.expected.len() == 4, "too little is shown");
    Ok(())
}
