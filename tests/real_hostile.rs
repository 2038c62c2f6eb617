//! What tenants could do to each other through a real kube-apiserver, and cannot.

use anyhow::Result;
use audit_stream_testplane::control_plane::AuditPolicy;
use audit_stream_testplane::front_proxy::request;

use crate::real_cluster::Cluster;

/// kube-apiserver copies a patch into the event as it came, bytes that are no text included.
#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_is_no_text_hides_nobodys_events() -> Result<()> {
    let policy = AuditPolicy::Everything { config_map_bodies_in: vec!["bank".to_owned()] };
    let cluster = Cluster::start_recording(policy).await?;
    for namespace in ["shop", "bank"] {
        cluster.namespace(namespace).await?;
    }
    let (alice, mallory) = (cluster.person("alice")?, cluster.person("mallory")?);
    cluster.let_watch(&alice, "shop").await?;
    cluster.grant(&mallory, "edit", "bank").await?;
    mallory.kubectl.run(&["create", "configmap", "bait", "-n", "bank"]).await?.success()?;
    let admin = cluster.admin();
    let mut everything = admin.read("/apis/audit.k8s.io/v1/events?watch=true")?;
    everything.until_own_watch(&admin).await?;
    let mut reading = alice.watch("shop")?;
    reading.until_own_watch(&alice).await?;

    let client = cluster.client("mallory", &[]).await?;
    let path = "/api/v1/namespaces/bank/configmaps/bait";
    let headers = [("content-type", "application/merge-patch+json")];
    let patch = [&br#"{"made-up":""#[..], b"\xff\xfe", br#""}"#].concat();
    // One second is a batch: these two travel together.
    assert_eq!(client.send(request("PATCH", path, &headers, patch)?).await?.status, 200);
    admin.kubectl.run(&["create", "configmap", "honest", "-n", "shop"]).await?.success()?;

    reading.until_object("create", "honest").await?;
    let patched = everything.until_object("patch", "bait").await?;
    assert_eq!(patched["object"]["user"]["username"], "mallory");
    assert!(patched["object"]["requestObject"].to_string().contains('\u{fffd}'), "{patched}");
    let seen = serde_json::to_string(&reading.frames)?;
    assert!(!seen.contains("audit-stream.dev/gap"), "{seen}");
    cluster.assert_no_complaint()
}
