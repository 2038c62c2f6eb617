//! A namespace's user sees what happens in their namespace, through a real kube-apiserver, and nothing else.

use std::collections::BTreeSet;

use anyhow::Result;
use audit_stream_testplane::control_plane::AuditPolicy;
use serde_json::Value;

use crate::real_cluster::{Cluster, id_and_stage, watch_path};

#[tokio::test(flavor = "multi_thread")]
async fn an_unprivileged_user_sees_their_namespace_and_nothing_else() -> Result<()> {
    let policy = AuditPolicy::Everything { config_map_bodies_in: vec!["shop".to_owned()] };
    let cluster = Cluster::start_recording(policy).await?;
    cluster.namespace("shop").await?;
    cluster.namespace("bank").await?;
    let (alice, bob, mallory) = (cluster.person("alice")?, cluster.person("bob")?, cluster.person("mallory")?);
    cluster.let_watch(&alice, "shop").await?;
    cluster.grant(&bob, "edit", "shop").await?;
    cluster.grant(&bob, "edit", "bank").await?;

    // What happened before Alice watches is not hers to see. The admin's watch tells when it has arrived.
    let admin = cluster.admin();
    let mut everything = admin.read("/apis/audit.k8s.io/v1/events?watch=true")?;
    everything.until_own_watch(&admin).await?;
    bob.kubectl.run(&["create", "configmap", "early", "-n", "shop"]).await?.success()?;
    everything.until_object("create", "early").await?;
    let mut reading = alice.watch("shop")?;
    reading.until_own_watch(&alice).await?;
    bob.kubectl
        .run(&["create", "configmap", "prices", "-n", "shop", "--from-literal=secret=SECRET"])
        .await?
        .success()?;
    bob.kubectl.run(&["create", "configmap", "accounts", "-n", "bank"]).await?.success()?;
    assert!(!mallory.kubectl.run(&["delete", "configmap", "prices", "-n", "shop"]).await?.status.success());
    assert!(!mallory.kubectl.run(&["get", "configmaps", "-n", "bank"]).await?.status.success());
    bob.kubectl.run(&["delete", "configmap", "prices", "-n", "shop"]).await?.success()?;
    bob.kubectl.run(&["create", "configmap", "last", "-n", "shop"]).await?.success()?;

    let created = reading.until_object("create", "prices").await?["object"].clone();
    assert_eq!(created["kind"], "NamespacedEvent");
    assert_eq!(created["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(created["metadata"]["namespace"], "shop");
    assert_eq!(created["user"]["username"], "bob");
    reading.until_object("create", "last").await?;

    // The truth is what kube-apiserver wrote to its own log, from the first of Alice's events to the last.
    let ledger = cluster.ledger(|ledger| ledger.iter().any(|event| is(event, "create", "last"))).await?;
    let seen = reading.seen();
    let since = ledger.iter().position(|event| seen.contains(&id_and_stage(event))).expect("what was seen is recorded");
    let until = ledger.iter().position(|event| is(event, "create", "last")).expect("just found");
    let expected: BTreeSet<_> = ledger[since..=until].iter().filter(|event| in_shop(event)).map(id_and_stage).collect();
    assert_eq!(seen, expected);
    assert_eq!(seen.len(), reading.frames.len(), "each exactly once");

    everything.until_object("create", "last").await?;
    let everything = serde_json::to_string(&everything.frames)?;
    // The admin sees other namespaces and what the policy recorded of bodies, but not audit-stream's own questions.
    assert!(everything.contains("accounts") && everything.contains("SECRET"));
    assert!(!everything.contains("subjectaccessreviews"));

    let denied =
        reading.frames.iter().find(|frame| frame["object"]["user"]["username"] == "mallory").expect("Mallory tried");
    assert_eq!(denied["object"]["responseStatus"]["code"], 403);
    let text = serde_json::to_string(&reading.frames)?;
    for absent in
        ["bank", "accounts", "early", "SECRET", "\"sourceIPs\":", "authorization.k8s.io/reason", "subjectaccessreviews"]
    {
        assert!(!text.contains(absent), "{absent} is in {text}");
    }

    for refused in [watch_path("bank"), "/apis/audit.k8s.io/v1/events?watch=true".to_owned()] {
        let answer = alice.kubectl.run(&["get", "--raw", &refused]).await?;
        assert!(!answer.status.success());
        assert!(answer.stderr.contains("(Forbidden)"), "{}", answer.stderr);
    }
    cluster.assert_no_complaint()
}

fn is(event: &Value, verb: &str, name: &str) -> bool {
    event["verb"] == verb && event["objectRef"]["name"] == name
}

/// By the path alone, and as simply as can be: nobody in this story forges anything.
fn in_shop(event: &Value) -> bool {
    let path = event["requestURI"].as_str().unwrap_or_default().split('?').next().unwrap_or_default();
    path.ends_with("/namespaces/shop") || path.contains("/namespaces/shop/")
}
