//! Straight to audit-stream's port, past kube-apiserver's front proxy: whom it knows by a real token and a real certificate.

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::control_plane::SERVING_NAME;
use audit_stream_testplane::front_proxy::{Client, Protocol, Response, Target, request};

use crate::real_cluster::{ARRIVAL, Cluster};
use crate::stage::eventually;

/// audit-stream's own port.
fn direct(cluster: &Cluster) -> Target {
    let (trust, ports) = (cluster.plane.trust(), cluster.plane.ports());
    Target::new(([127, 0, 0, 1], ports.secure).into(), trust.serving.certificate_pem(), SERVING_NAME)
}

async fn scrape(client: &Client, token: &str) -> Result<Response> {
    client.get("/metrics", &[("Authorization", &format!("Bearer {token}"))]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_certificates_of_the_cluster_are_known_directly() -> Result<()> {
    let cluster = Cluster::start().await?;
    let admin = cluster.plane.admin();
    cluster.namespace("monitoring").await?;
    cluster.namespace("shop").await?;
    // What docs/operations.md tells to do for Prometheus.
    for command in [
        "create serviceaccount prometheus -n monitoring",
        "create clusterrole audit-stream-metrics --verb=get --non-resource-url=/metrics",
        "create clusterrolebinding audit-stream-metrics --clusterrole=audit-stream-metrics \
         --serviceaccount=monitoring:prometheus",
    ] {
        admin.run(&command.split_whitespace().collect::<Vec<_>>()).await?.success()?;
    }
    let token = admin.run(&["create", "token", "prometheus", "-n", "monitoring"]).await?.success()?;
    let token = token.trim();
    let anybody = Client::connect(direct(&cluster)).await?;

    // kube-apiserver takes a moment to know a new binding, and a denial is remembered for ten seconds.
    let scraped = async || Ok(Some(scrape(&anybody, token).await?).filter(|answer| answer.status == 200));
    let metrics = eventually("the scrape", scraped).await?.body;
    assert!(metrics.contains("audit_stream_token_reviews_total{outcome=\"allowed\"}"), "{metrics}");
    let answer = scrape(&anybody, "nonsense").await?;
    assert_eq!((answer.status, answer.json()?["message"].as_str()), (401, Some("Unauthorized")));
    // Changed in its signature, which is its end.
    let mut forged = token.to_owned();
    forged.replace_range(token.len() - 10.., "AAAAAAAAAA");
    assert_eq!(scrape(&anybody, &forged).await?.status, 401);
    let answer = anybody.get("/metrics", &[]).await?;
    assert!(answer.status == 403 && answer.body.contains(r#"User \"system:anonymous\""#), "{}", answer.body);
    let other = anybody.get("/version", &[("Authorization", &format!("Bearer {token}"))]).await?;
    assert_eq!(other.status, 200, "system:authenticated may read what system:discovery opens: {}", other.body);

    let carol = cluster.person("carol")?;
    cluster.let_watch(&carol, "shop").await?;
    let identity = cluster.plane.trust().cluster.client("carol", &["dev"]);
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = Client::connect(direct(&cluster).identity(&identity).protocol(protocol)).await?;
        let path = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";
        let opened = async || Ok(client.watch(request("GET", path, &[("X-Remote-User", "root")], "")?).await?.ok());
        let mut watch = eventually("Carol's watch", opened).await?;
        let name = format!("prices-{protocol:?}").to_lowercase();
        admin.run(&["create", "configmap", &name, "-n", "shop"]).await?.success()?;
        loop {
            let object = watch.next_added(ARRIVAL).await?.context("the watch ended")?;
            ensure!(object["metadata"]["namespace"] == "shop", "{object}");
            if object["objectRef"]["name"] == *name {
                break;
            }
        }
        let answer = client.get("/metrics", &[("X-Remote-Group", "system:masters")]).await?;
        assert!(answer.status == 403 && answer.body.contains(r#"User \"carol\""#), "{}", answer.body);
    }
    Ok(())
}
