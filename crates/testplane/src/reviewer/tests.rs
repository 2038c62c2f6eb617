use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::front_proxy::{Client, Protocol, Response, Target, Watch, WatchError, request};

const SOON: Duration = Duration::from_secs(10);
const A_MOMENT: Duration = Duration::from_millis(100);
const CONFIG_MAPS: &str =
    "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dextension-apiserver-authentication";

// Speaks to a reviewer as audit-stream does.
struct Asker(Client);

impl Asker {
    async fn new(reviewer: &Reviewer) -> Self {
        Self::with_protocol(reviewer, Protocol::Http2).await
    }

    async fn with_protocol(reviewer: &Reviewer, protocol: Protocol) -> Self {
        let target = Target::new(reviewer.address(), reviewer.ca_pem(), "127.0.0.1").protocol(protocol);
        Self(Client::connect(target).await.unwrap())
    }

    async fn try_send(&self, method: &str, path: &str, body: &Value) -> Result<Response> {
        let authorization = format!("Bearer {TOKEN}");
        self.0.send(request(method, path, &[("Authorization", &authorization)], body.to_string())?).await
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let response = self.try_send(method, path, body).await.unwrap();
        (response.status, response.json().unwrap())
    }

    async fn review(&self, spec: Value) -> (u16, Value) {
        let review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": spec});
        self.send("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await
    }

    async fn may_watch(&self, user: &str, namespace: &str) -> bool {
        let (status, review) = self.review(watch_spec(user, namespace)).await;
        assert_eq!((status, &review["kind"]), (201, &json!("SubjectAccessReview")));
        review["status"]["allowed"].as_bool().unwrap()
    }

    async fn list(&self) -> Value {
        let (status, list) = self.send("GET", CONFIG_MAPS, &Value::Null).await;
        assert_eq!((status, &list["kind"]), (200, &json!("ConfigMapList")));
        list
    }

    async fn watch(&self, parameters: &str) -> Watch {
        let (path, authorization) = (format!("{CONFIG_MAPS}&watch=true{parameters}"), format!("Bearer {TOKEN}"));
        let request = request("GET", &path, &[("Authorization", &authorization)], "").unwrap();
        self.0.watch(request).await.unwrap().unwrap()
    }
}

fn watch_spec(user: &str, namespace: &str) -> Value {
    json!({"user": user, "groups": ["system:authenticated"], "resourceAttributes": {"verb": "watch",
        "group": "audit.k8s.io", "version": "v1", "resource": "namespacedevents", "namespace": namespace}})
}

#[tokio::test]
async fn allows_what_was_stated_and_denies_the_rest() {
    let reviewer = Reviewer::start().await.unwrap();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let asker = Asker::with_protocol(&reviewer, protocol).await;
        assert!(!asker.may_watch("alice", "shop").await);
        reviewer.allow("alice").to("watch").on("namespacedevents").in_namespace("shop");
        assert!(asker.may_watch("alice", "shop").await);
        assert!(!asker.may_watch("alice", "bank").await);
        reviewer.revoke("alice").to("watch").on("namespacedevents").in_namespace("shop");
        assert!(!asker.may_watch("alice", "shop").await);
    }
    assert_eq!(reviewer.reviews().len(), 8);
    assert_eq!(reviewer.reviews()[0], watch_spec("alice", "shop"));
    assert_eq!(reviewer.count("/subjectaccessreviews"), 8);
}

#[tokio::test]
async fn reviews_that_upstream_calls_invalid_are_not_answered() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    assert_eq!(asker.review(json!({"user": "alice"})).await.0, 422);
    let mut both = watch_spec("alice", "shop");
    both["nonResourceAttributes"] = json!({"path": "/", "verb": "get"});
    assert_eq!(asker.review(both).await.0, 422);
    let mut nobody = watch_spec("", "shop");
    nobody["groups"] = json!([]);
    assert_eq!(asker.review(nobody).await.0, 422);
}

#[tokio::test]
async fn only_the_bearer_of_the_token_is_answered() {
    let reviewer = Reviewer::start().await.unwrap();
    let Asker(client) = Asker::new(&reviewer).await;
    for headers in [&[][..], &[("Authorization", "Bearer other")]] {
        assert_eq!(client.get(CONFIG_MAPS, headers).await.unwrap().status, 401);
    }
}

#[tokio::test]
async fn tokens_are_whose_the_test_says() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    let status = async |token: &str| {
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token}});
        let (code, review) = asker.send("POST", "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        assert_eq!(code, 201);
        review["status"].clone()
    };
    assert_ne!(status("t").await["authenticated"], true);
    reviewer.accept_token("t", "bob", &["dev"]);
    assert_eq!(status("t").await["user"]["username"], "bob");
    assert_eq!(status("t").await["authenticated"], true);
    assert_ne!(status("u").await["authenticated"], true);
    reviewer.revoke_token("t");
    assert_ne!(status("t").await["authenticated"], true);
    assert_eq!(reviewer.token_reviews(), 5);
}

#[tokio::test]
async fn says_who_the_server_is_and_knows_nothing_else() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let (_, review) = asker.send("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await;
    assert_eq!(review["status"]["userInfo"]["username"], OWN_USER);
    for path in ["/api/v1/namespaces/default/configmaps", "/api/v1/pods", "/"] {
        let (code, status) = asker.send("GET", path, &Value::Null).await;
        assert_eq!((code, &status["kind"]), (404, &json!("Status")), "{path}");
    }
    let (code, _) = asker.send("GET", "/api/v1/namespaces/kube-system/configmaps", &Value::Null).await;
    assert_eq!(code, 403, "a list of all is not covered by resourceNames");
}

#[tokio::test]
async fn a_config_map_is_listed_and_its_changes_are_pushed() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    let empty = asker.list().await;
    assert_eq!(empty["items"], json!([]));
    let revision = empty["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = asker.watch(&format!("&resourceVersion={revision}")).await;
    assert_eq!(watch.next(A_MOMENT).await, Err(WatchError::Quiet(A_MOMENT)));

    let config = AuthenticationConfig::trusting("PEM").client_ca("OTHER");
    reviewer.set_config_map(&config);
    let added = watch.next(SOON).await.unwrap().unwrap();
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &asker.list().await["items"][0]));
    assert_eq!(added["object"]["data"]["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
    assert_eq!(added["object"]["data"]["client-ca-file"], "OTHER");

    reviewer.set_config_map(&config.allowed_names(&[]).without("requestheader-uid-headers"));
    let modified = watch.next(SOON).await.unwrap().unwrap();
    assert_eq!(
        (&modified["type"], &modified["object"]["data"]["requestheader-allowed-names"]),
        (&json!("MODIFIED"), &json!("[]"))
    );
    reviewer.delete_config_map();
    assert_eq!(watch.next(SOON).await.unwrap().unwrap()["type"], "DELETED");
    assert_eq!(asker.list().await["items"], json!([]));

    // The same three, for a client that was away meanwhile.
    let mut late = asker.watch(&format!("&resourceVersion={revision}&timeoutSeconds=1")).await;
    let types = late.rest(SOON).await.unwrap().iter().map(|frame| frame["type"].clone()).collect::<Vec<_>>();
    assert_eq!(types, ["ADDED", "MODIFIED", "DELETED"]);
}

#[tokio::test]
async fn a_watch_can_begin_with_the_state() {
    let reviewer = Reviewer::start().await.unwrap();
    reviewer.set_config_map(&AuthenticationConfig::trusting("PEM"));
    let asker = Asker::new(&reviewer).await;
    assert_eq!(asker.watch("").await.next(SOON).await.unwrap().unwrap()["type"], "ADDED");
    let streaming = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = asker.watch(streaming).await;
    assert_eq!(watch.next(SOON).await.unwrap().unwrap()["type"], "ADDED");
    let end = watch.next(SOON).await.unwrap().unwrap();
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let bookmark = watch.next(SOON).await.unwrap().unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["metadata"]["annotations"]), (&json!("BOOKMARK"), &Value::Null));
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_told_so_and_an_open_one_goes_on() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    let revision = asker.list().await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut open = asker.watch(&format!("&resourceVersion={revision}")).await;
    reviewer.compact_config_map();
    let frames = asker.watch(&format!("&resourceVersion={revision}")).await.rest(SOON).await.unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!((&frames[0]["type"], &frames[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    reviewer.set_config_map(&AuthenticationConfig::trusting("PEM"));
    assert_eq!(open.next(SOON).await.unwrap().unwrap()["type"], "ADDED");
}

#[tokio::test]
async fn fails_hangs_and_recovers() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    reviewer.allow("alice").to("watch").on("namespacedevents").in_namespace("shop");
    reviewer.fail_with(503);
    let (code, status) = asker.review(watch_spec("alice", "shop")).await;
    assert_eq!((code, &status["reason"]), (503, &json!("ServiceUnavailable")));
    reviewer.hang();
    let review = asker.may_watch("alice", "shop");
    tokio::pin!(review);
    assert!(timeout(A_MOMENT, &mut review).await.is_err());
    // It was asked, although it did not answer.
    reviewer.reviewed(SOON, |spec| *spec == watch_spec("alice", "shop")).await.unwrap();
    assert!(reviewer.reviewed(A_MOMENT, |spec| spec["user"] == "bob").await.is_err());
    reviewer.recover();
    assert!(timeout(SOON, review).await.unwrap());
    reviewer.answer_after(A_MOMENT);
    let asked = Instant::now();
    assert!(asker.may_watch("alice", "shop").await);
    assert!(asked.elapsed() >= A_MOMENT);
}

#[tokio::test]
async fn cuts_connections_and_accepts_new_ones() {
    let reviewer = Reviewer::start().await.unwrap();
    let asker = Asker::new(&reviewer).await;
    let mut watch = asker.watch("").await;
    reviewer.disconnect();
    assert!(matches!(watch.next(SOON).await, Err(WatchError::Reset(_))));
    assert!(!Asker::new(&reviewer).await.may_watch("alice", "shop").await);
}

#[tokio::test]
async fn its_kubeconfig_is_complete() {
    let reviewer = Reviewer::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(reviewer.write_kubeconfig(directory.path()).unwrap()).unwrap();
    assert_eq!(text, reviewer.kubeconfig());
    assert!(text.contains(&format!("https://{}", reviewer.address())) && text.contains(TOKEN));
}
