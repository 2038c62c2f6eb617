//! To kube-apiserver, kubectl and the namespace controller, audit-stream is an API like any other.

use std::time::Duration;

use anyhow::{Context, Result};
use audit_stream_testplane::front_proxy::request;
use audit_stream_testplane::manifests;
use tokio::time::{Instant, sleep};

use crate::real_cluster::{ARRIVAL, Cluster, watch_path};

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_finds_explains_and_reviews_the_resources() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let alice = cluster.person("alice")?;
    cluster.let_watch(&alice, "shop").await?;
    let admin = cluster.admin();

    let resources =
        admin.kubectl.run(&["api-resources", "--api-group=audit.k8s.io", "--no-headers"]).await?.success()?;
    let rows: Vec<Vec<_>> = resources.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["events", "audit.k8s.io/v1", "false", "Event"],
            vec!["namespacedevents", "audit.k8s.io/v1", "true", "NamespacedEvent"],
        ]
    );

    for (resource, kind) in [("events", "Event"), ("namespacedevents", "NamespacedEvent")] {
        let explain =
            |version| ["explain".to_owned(), resource.to_owned(), format!("--api-version=audit.k8s.io/{version}")];
        let text = alice.succeed_in_the_end(&explain("v1")).await?;
        for expected in [&format!("KIND:       {kind}"), "auditID", "requestURI", "audit event"] {
            assert!(text.to_lowercase().contains(&expected.to_lowercase()), "no {expected} in {text}");
        }
        for version in ["v1beta1", "v1alpha1"] {
            let text = alice.succeed_in_the_end(&explain(version)).await?;
            assert!(text.contains(&format!("VERSION:    {version}")) && text.contains(kind), "{text}");
        }
    }

    let can_i = async |verb: &str, resource: &str, namespace: &str| -> Result<String> {
        let answer = alice.kubectl.run(&["auth", "can-i", verb, resource, "-n", namespace]).await?;
        Ok(answer.stdout.trim().to_owned())
    };
    assert_eq!(can_i("watch", "namespacedevents.audit.k8s.io", "shop").await?, "yes");
    assert_eq!(can_i("watch", "namespacedevents.audit.k8s.io", "default").await?, "no");
    assert_eq!(can_i("list", "namespacedevents.audit.k8s.io", "shop").await?, "no");
    assert_eq!(can_i("watch", "events.audit.k8s.io", "shop").await?, "no");

    // The short name still means core/v1.
    let core = admin.kubectl.run(&["get", "events", "-A", "-v=6"]).await?;
    assert!(core.status.success() && core.stderr.contains("/api/v1/events"), "{}", core.stderr);
    let ours = admin.kubectl.run(&["get", "events.audit.k8s.io"]).await?;
    assert!(
        ours.stderr.contains("(MethodNotAllowed): list is not supported on resources of kind \"events.audit.k8s.io\""),
        "{}",
        ours.stderr
    );
    cluster.assert_no_complaint()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_verb_gets_its_status_through_kube_apiserver() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let root = cluster.client("root", &["system:masters"]).await?;
    let shop = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents";
    let cases = [
        ("GET", shop.to_owned(), 405, "list is not supported on resources of kind \"namespacedevents.audit.k8s.io\""),
        (
            "GET",
            format!("{shop}/x"),
            405,
            "get is not supported on resources of kind \"namespacedevents.audit.k8s.io\"",
        ),
        ("POST", shop.to_owned(), 405, "the server does not allow this method on the requested resource"),
        ("PUT", format!("{shop}/x"), 405, "the server does not allow this method on the requested resource"),
        ("PATCH", format!("{shop}/x"), 405, "the server does not allow this method on the requested resource"),
        ("DELETE", format!("{shop}/x"), 405, "the server does not allow this method on the requested resource"),
        ("DELETE", shop.to_owned(), 405, "the server does not allow this method on the requested resource"),
        (
            "GET",
            shop.replace("namespacedevents", "events?watch=1"),
            404,
            "the server could not find the requested resource",
        ),
        ("GET", format!("{shop}?watch=1&fieldSelector=a"), 400, "invalid selector: 'a'; can't understand 'a'"),
    ];
    for (method, path, code, message) in cases {
        let answer = root.send(request(method, &path, &[], "{}")?).await?;
        let status = answer.json().with_context(|| format!("{method} {path}: {}", answer.body))?;
        let seen = (answer.status, &status["kind"], &status["status"], &status["code"], &status["message"]);
        assert_eq!(seen, (code, &"Status".into(), &"Failure".into(), &code.into(), &message.into()), "{method} {path}");
    }
    cluster.assert_no_complaint()
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_before_the_first_event_and_a_new_grant_within_15_seconds() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.namespace("quiet").await?;
    let alice = cluster.client("alice", &[]).await?;
    // With a selector that nothing matches, so that no event can be what brings the headers.
    let path = format!("{}&fieldSelector=verb%3Dnothing", watch_path("quiet"));
    let watch = async || alice.watch(request("GET", &path, &[], "")?).await;
    let refused = watch().await?.err().context("nobody let Alice in")?;
    assert_eq!(refused.status, 403);

    cluster.let_watch(&cluster.person("alice")?, "quiet").await?;
    let granted = Instant::now();
    let mut open = loop {
        match watch().await? {
            Ok(open) => break open,
            Err(refused) => assert_eq!(refused.status, 403, "{}", refused.body),
        }
        assert!(granted.elapsed() < Duration::from_secs(15), "still refused after {:?}", granted.elapsed());
        sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(open.headers()["content-type"], "application/json");
    assert!(!open.headers().contains_key("content-length"));
    let nothing = open.next(Duration::from_millis(500)).await;
    assert!(nothing.is_err() && open.raw().is_empty(), "{nothing:?}");
    cluster.assert_no_complaint()
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_deleted_to_the_end_with_us_and_without_us() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    create_and_delete_namespace(&cluster, "while-we-run").await?;

    manifests::delete(&cluster.plane).await?;
    let server = cluster.server.take().context("it was started")?;
    assert!(server.terminate().await?.success());
    create_and_delete_namespace(&cluster, "after-us").await
}

async fn create_and_delete_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.namespace(name).await?;
    let admin = cluster.plane.admin();
    admin.run(&["create", "configmap", "x", "-n", name]).await?.success()?;
    let deadline = format!("--timeout={}s", ARRIVAL.as_secs());
    admin.run(&["delete", "namespace", name, "--wait", &deadline]).await?.success()?;
    let gone = admin.run(&["get", "namespace", name]).await?;
    assert!(gone.stderr.contains("(NotFound)"), "{}{}", gone.stdout, gone.stderr);
    Ok(())
}
