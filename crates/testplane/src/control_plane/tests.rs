//! These start real planes; each takes some seconds, one after the other.

use std::collections::BTreeSet;

use super::*;

const SOON: Duration = Duration::from_secs(30);

/// Fails where a probe of a start cannot be moved to another thread, which a test with a `JoinSet` needs.
#[expect(dead_code, reason = "that it compiles is the test")]
fn can_start_on_any_thread() -> impl Send {
    ControlPlane::start(Options::default())
}

#[tokio::test]
async fn serves_users_and_records_them() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    println!("{:?}", plane.startup());
    assert!(plane.version().await.unwrap().starts_with(&format!("v1.{}.", plane.assets.minor)));
    let namespaces = plane.admin().run(&["get", "namespaces", "--output=name"]).await.unwrap().success().unwrap();
    assert!(namespaces.contains("namespace/kube-system"), "{namespaces}");

    let jane = plane.kubectl(&plane.user_kubeconfig("jane", &["dev", "ops"]).unwrap());
    assert_eq!(groups(&jane).await, ["dev", "ops", "system:authenticated"]);
    let refused = jane.run(&["get", "secrets"]).await.unwrap();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains(r#"User "jane" cannot list resource "secrets""#), "{}", refused.stderr);
    let is_hers = |event: &Value| event["user"]["username"] == "jane" && event["objectRef"]["resource"] == "secrets";
    eventually(async || plane.ledger().unwrap().iter().any(is_hers)).await;

    let robot = plane.service_account_kubeconfig("default", "default").await.unwrap();
    let groups = groups(&plane.kubectl(&robot)).await;
    assert!(groups.contains(&"system:serviceaccounts:default".to_owned()), "{groups:?}");
    let error = plane.service_account_kubeconfig("default", "nobody").await.unwrap_err();
    assert!(format!("{error:#}").contains(r#""nobody" not found"#), "{error:#}");
}

/// Streams, a namespace's deletion (kube-controller-manager), and a restart in between.
#[tokio::test]
async fn watches_and_restarts() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let watch = ["get", "--raw", "/api/v1/namespaces?watch=true&fieldSelector=metadata.name=shop"];
    let mut stream = plane.admin().stream(&watch).unwrap();
    plane.admin().run(&["create", "namespace", "shop"]).await.unwrap().success().unwrap();
    let line = stream.line_within(SOON).await.unwrap();
    assert!(line.starts_with(r#"{"type":"ADDED""#), "{line}");

    let before = plane.process_ids();
    plane.stop_apiserver().await.unwrap();
    assert!(plane.version().await.is_err());
    stream.finish().await.unwrap();
    plane.start_apiserver().await.unwrap();
    let same = BTreeSet::from_iter(before).intersection(&plane.process_ids().into_iter().collect()).count();
    assert_eq!(same, 3, "etcd, kube-controller-manager and the watchdog went on");

    plane.admin().run(&["delete", "namespace", "shop", "--timeout=30s"]).await.unwrap().success().unwrap();
    assert!(plane.aggregator_log().is_file());
}

#[test]
fn nothing_is_left_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let plane = ControlPlane::start(Options::default()).await.unwrap();
            sender.send((plane.process_ids(), plane.directory().to_owned())).unwrap();
            panic!("this panic belongs to the test");
        });
    });
    let (ids, directory) = receiver.recv().unwrap();
    assert!(test.join().is_err());
    assert_eq!(ids.len(), 4);
    for id in ids {
        let mut kill = std::process::Command::new("sh");
        kill.args(["-c", r#"kill -0 "$1" 2>/dev/null"#, "kill", &id.to_string()]);
        assert!(!kill.status().unwrap().success(), "process {id} is left");
    }
    assert!(!directory.exists() || keep_plane());
}

async fn groups(user: &Kubectl) -> Vec<String> {
    let whoami = user.run(&["auth", "whoami", "--output=json"]).await.unwrap().success().unwrap();
    let review: Value = serde_json::from_str(&whoami).unwrap();
    serde_json::from_value(review["status"]["userInfo"]["groups"].clone()).unwrap()
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < end, "it did not happen within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
