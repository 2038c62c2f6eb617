//! Batches as kube-apiserver sends them, the same for the same seed.
//!
//! What decides a parser's speed is imitated: Go's escapes, the mix of verbs and resources, who asks, how long the values
//! are, and in bodies `managedFields` and an embedded `last-applied-configuration`. Nothing here is hostile; see
//! `audit_stream_testplane::events` for that. Texts are written piece by piece: a batch has megabytes.

use std::fmt::{self, Write as _};

use audit_stream_testplane::events::event_list;
use fastrand::Rng;

/// As many as kube-apiserver puts into a batch by default.
const METADATA_EVENTS: usize = 400;

/// Fewer, because a batch is sent after a while even if it is not full.
const BODY_EVENTS: usize = 100;

/// Bytes of an event with bodies, about.
const BODY_EVENT_BYTES: std::ops::Range<usize> = 6_000..49_000;

/// 400 events of about 1.2 KB.
pub fn metadata(seed: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(seed);
    batch((0..METADATA_EVENTS).map(|_| any_event(&mut random, None)))
}

/// 100 events of 5 to 50 KB, whose bodies are deployments.
pub fn request_response(seed: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(seed);
    batch((0..BODY_EVENTS).map(|_| body_event(&mut random)))
}

/// Events of about 1.2 KB, all in one namespace.
pub fn namespaced(seed: u64, events: usize, namespace: &str) -> Vec<u8> {
    let mut random = Rng::with_seed(seed);
    batch((0..events).map(|_| {
        let request = request_in(&mut random, namespace);
        event(&mut random, &request, "Metadata", "")
    }))
}

fn batch(events: impl Iterator<Item = String>) -> Vec<u8> {
    event_list(&events.collect::<Vec<_>>()).into_bytes()
}

/// What is asked for.
struct Request {
    verb: &'static str,
    /// As JSON.
    uri: String,
    /// As JSON; empty where the request is for no resource.
    object_ref: String,
    code: u16,
    denied: bool,
}

/// Path prefix, group and version, resource, and whether it is in namespaces.
const KINDS: [(&str, &str, &str, &str); 9] = [
    ("/api", "", "v1", "pods"),
    ("/apis", "coordination.k8s.io", "v1", "leases"),
    ("/api", "", "v1", "configmaps"),
    ("/apis", "apps", "v1", "deployments"),
    ("/api", "", "v1", "secrets"),
    ("/apis", "discovery.k8s.io", "v1", "endpointslices"),
    ("/api", "", "v1", "events"),
    ("/apis", "apps", "v1", "replicasets"),
    ("/apis", "argoproj.io", "v1alpha1", "applications"),
];

const NAMESPACES: usize = 20;

/// Of 100 events 80 are in a namespace, 14 are of the cluster's objects, and 6 are not about objects.
fn any_event(random: &mut Rng, namespace: Option<&str>) -> String {
    let request = match (namespace, random.u8(..100)) {
        (None, 0..14) => cluster_request(random),
        (None, 14..20) => url_request(random),
        _ => {
            let number = random.usize(..NAMESPACES);
            request_in(random, &format!("team-{number:02}-production"))
        }
    };
    event(random, &request, "Metadata", "")
}

fn request_in(random: &mut Rng, namespace: &str) -> Request {
    let (prefix, group, version, resource) = KINDS[random.usize(..KINDS.len())];
    let slash = if group.is_empty() { "" } else { "/" };
    let path = format!("{prefix}{slash}{group}/{version}/namespaces/{namespace}/{resource}");
    let name = format!("{resource}-backend-{:08x}-{}", random.u32(..), letters(random, 5));
    let one = format!("{path}/{name}");
    let (verb, uri, name, code) = match random.u8(..100) {
        0..35 => ("get", one, name, if random.u8(..10) == 0 { 404 } else { 200 }),
        35..50 => ("update", format!("{one}?timeout=5s"), name, 200),
        50..60 => ("list", format!("{path}?limit=500\\u0026resourceVersion=0"), String::new(), 200),
        60..78 => ("watch", watch_uri(random, &path), String::new(), 200),
        78..90 => {
            ("patch", format!("{one}?fieldManager=kubectl-client-side-apply\\u0026fieldValidation=Strict"), name, 200)
        }
        90..96 => ("create", format!("{path}?fieldManager=kubectl-create\\u0026fieldValidation=Strict"), name, 201),
        _ => ("delete", one, name, 200),
    };
    let mut object_ref = format!(r#"{{"resource":"{resource}","namespace":"{namespace}""#);
    if !name.is_empty() {
        write(&mut object_ref, format_args!(r#","name":"{name}""#));
    }
    if !group.is_empty() {
        write(&mut object_ref, format_args!(r#","apiGroup":"{group}""#));
    }
    write(&mut object_ref, format_args!(r#","apiVersion":"{version}""#));
    if verb == "update" {
        let (uid, revision) = (uuid(random), random.u32(100_000_000..));
        write(&mut object_ref, format_args!(r#","uid":"{uid}","resourceVersion":"{revision}""#));
    }
    object_ref.push('}');
    let denied = random.u8(..50) == 0;
    Request { verb, uri, object_ref, code: if denied { 403 } else { code }, denied }
}

fn watch_uri(random: &mut Rng, path: &str) -> String {
    let (revision, seconds) = (random.u32(100_000_000..), random.u32(300..600));
    format!(
        "{path}?allowWatchBookmarks=true\\u0026fieldSelector=metadata.name%3Dkube-root-ca.crt\\u0026resourceVersion={revision}\
         \\u0026timeout={seconds}s\\u0026timeoutSeconds={seconds}\\u0026watch=true"
    )
}

fn cluster_request(random: &mut Rng) -> Request {
    let node = format!("ip-10-0-{}-{}.eu-central-1.compute.internal", random.u8(..), random.u8(..));
    let (verb, uri, object_ref, code) = match random.u8(..4) {
        0 => (
            "patch",
            format!("/api/v1/nodes/{node}/status?timeout=10s"),
            format!(r#"{{"resource":"nodes","name":"{node}","apiVersion":"v1","subresource":"status"}}"#),
            200,
        ),
        1 => (
            "create",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews?timeout=10s".to_owned(),
            r#"{"resource":"subjectaccessreviews","apiGroup":"authorization.k8s.io","apiVersion":"v1"}"#.to_owned(),
            201,
        ),
        2 => (
            "list",
            "/apis/storage.k8s.io/v1/storageclasses?limit=500\\u0026resourceVersion=0".to_owned(),
            r#"{"resource":"storageclasses","apiGroup":"storage.k8s.io","apiVersion":"v1"}"#.to_owned(),
            200,
        ),
        _ => ("watch", watch_uri(random, "/api/v1/pods"), r#"{"resource":"pods","apiVersion":"v1"}"#.to_owned(), 200),
    };
    Request { verb, uri, object_ref, code, denied: false }
}

fn url_request(random: &mut Rng) -> Request {
    let urls = ["/readyz", "/livez?verbose", "/metrics", "/openapi/v2?timeout=32s", "/apis?timeout=32s"];
    let uri = urls[random.usize(..urls.len())].to_owned();
    Request { verb: "get", uri, object_ref: String::new(), code: 200, denied: false }
}

/// `bodies` are members, each with a comma before it.
fn event(random: &mut Rng, request: &Request, level: &str, bodies: &str) -> String {
    let Request { verb, uri, object_ref, code, denied } = request;
    let mut out = String::with_capacity(2048 + bodies.len());
    let id = uuid(random);
    write(
        &mut out,
        format_args!(
            r#"{{"level":"{level}","auditID":"{id}","stage":"ResponseComplete","requestURI":"{uri}","verb":"{verb}","user":"#
        ),
    );
    let (user, agent) = write_user(random, &mut out);
    let address = format!("10.{}.{}.{}", random.u8(..), random.u8(..), random.u8(..));
    let proxied = if random.u8(..4) == 0 { r#""203.0.113.17","# } else { "" };
    write(&mut out, format_args!(r#","sourceIPs":[{proxied}"{address}"],"userAgent":"{agent}""#));
    if !object_ref.is_empty() {
        write(&mut out, format_args!(r#","objectRef":{object_ref}"#));
    }
    out.push_str(r#","responseStatus":{"metadata":{},"#);
    if *denied {
        let message = format!(r#"it is forbidden: User \"{user}\" cannot {verb} this resource in the API group"#);
        write(
            &mut out,
            format_args!(r#""status":"Failure","message":"{message}","reason":"Forbidden","details":{{}},"#),
        );
    }
    write(&mut out, format_args!(r#""code":{code}}}{bodies}"#));
    let (second, micros) = (random.u8(10..50), random.u32(100_000..900_000));
    write(
        &mut out,
        format_args!(
            r#","requestReceivedTimestamp":"2026-11-20T15:04:{second}.{micros}Z","stageTimestamp":"2026-11-20T15:04:{second}.{}Z""#,
            micros + 8131
        ),
    );
    if *denied {
        out.push_str(r#","annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":""}}"#);
    } else {
        let reason = format!(
            r#"RBAC: allowed by ClusterRoleBinding \"platform-{user}-binding\" of ClusterRole \"platform-controller\" to User \"{user}\""#
        );
        write(
            &mut out,
            format_args!(
                r#","annotations":{{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":"{reason}"}}}}"#
            ),
        );
    }
    out
}

/// Appends a `UserInfo`; its name and a user agent that fits it, both as JSON without quotes.
fn write_user(random: &mut Rng, out: &mut String) -> (String, &'static str) {
    match random.u8(..3) {
        0 => {
            let name =
                format!("system:node:ip-10-0-{}-{}.eu-central-1.compute.internal", random.u8(..8), random.u8(..));
            write(
                out,
                format_args!(
                    r#"{{"username":"{name}","groups":["system:nodes","system:authenticated"],"extra":{{"authentication.kubernetes.io/credential-id":["X509SHA256={}"]}}}}"#,
                    hexadecimal(random, 64)
                ),
            );
            (name, "kubelet/v1.37.1 (linux/amd64) kubernetes/6e93892")
        }
        1 => {
            let account = random.u8(..12);
            let name = format!("system:serviceaccount:platform-system:controller-{account:02}");
            let (uid, pod) = (uuid(random), letters(random, 5));
            write(
                out,
                format_args!(
                    r#"{{"username":"{name}","uid":"{uid}","groups":["system:serviceaccounts","system:serviceaccounts:platform-system","system:authenticated"],"extra":{{"authentication.kubernetes.io/pod-name":["controller-{account:02}-7d9c6b5f48-{pod}"],"authentication.kubernetes.io/pod-uid":["{}"]}}}}"#,
                    uuid(random)
                ),
            );
            (name, "manager/v0.0.0 (linux/amd64) kubernetes/$Format/leader-election")
        }
        _ => {
            let name = format!("jane.doe-{:02}@example.com", random.u8(..30));
            write(
                out,
                format_args!(
                    r#"{{"username":"oidc:{name}","groups":["oidc:developers","oidc:on-call","system:authenticated"],"extra":{{"authentication.kubernetes.io/credential-id":["JTI={}"]}}}}"#,
                    uuid(random)
                ),
            );
            (name, "kubectl/v1.37.1 (linux/amd64) kubernetes/0123456")
        }
    }
}

fn body_event(random: &mut Rng) -> String {
    let bytes = random.usize(BODY_EVENT_BYTES);
    let namespace = format!("team-{:02}-production", random.usize(..NAMESPACES));
    let request = request_in(random, &namespace);
    let mut bodies = String::with_capacity(bytes + 8192);
    if matches!(request.verb, "update" | "create" | "patch") {
        write(&mut bodies, format_args!(r#","requestObject":{}"#, deployment(random, &namespace, bytes / 2 - 600)));
        write(&mut bodies, format_args!(r#","responseObject":{}"#, deployment(random, &namespace, bytes / 2 - 600)));
    } else {
        write(&mut bodies, format_args!(r#","responseObject":{}"#, deployment(random, &namespace, bytes - 1200)));
    }
    event(random, &request, "RequestResponse", &bodies)
}

/// A Deployment of about so many bytes: a quarter is the applied configuration as a string, a quarter `managedFields`, and the
/// rest containers.
fn deployment(random: &mut Rng, namespace: &str, bytes: usize) -> String {
    let containers = containers(random, bytes / 2);
    let applied = go_string(&containers[..bytes.min(containers.len() * 2) / 5]);
    let mut out = format!(
        r#"{{"kind":"Deployment","apiVersion":"apps/v1","metadata":{{"name":"backend","namespace":"{namespace}","uid":"{}","resourceVersion":"{}","generation":{},"creationTimestamp":"2026-10-01T09:12:44Z","labels":{{"app.kubernetes.io/name":"backend","app.kubernetes.io/managed-by":"Helm"}},"annotations":{{"deployment.kubernetes.io/revision":"12","kubectl.kubernetes.io/last-applied-configuration":{applied}}},"managedFields":["#,
        uuid(random),
        random.u32(..),
        random.u8(..)
    );
    let start = out.len();
    while out.len() - start < bytes / 5 {
        let comma = if out.len() > start { "," } else { "" };
        let key = random.u8(..40);
        write(
            &mut out,
            format_args!(
                r#"{comma}{{"manager":"kubectl-client-side-apply","operation":"Update","apiVersion":"apps/v1","time":"2026-11-19T08:00:{:02}Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:kubectl.kubernetes.io/last-applied-configuration":{{}}}}}},"f:spec":{{"f:progressDeadlineSeconds":{{}},"f:template":{{"f:spec":{{"f:containers":{{"k:{{\"name\":\"worker-{key}\"}}":{{".":{{}},"f:env":{{".":{{}},"k:{{\"name\":\"SETTING_{key}\"}}":{{".":{{}},"f:name":{{}},"f:value":{{}}}}}},"f:image":{{}},"f:imagePullPolicy":{{}},"f:resources":{{"f:limits":{{".":{{}},"f:cpu":{{}},"f:memory":{{}}}}}}}}}}}}}}}}}}}}"#,
                random.u8(10..60)
            ),
        );
    }
    write(
        &mut out,
        format_args!(
            r#"]}},"spec":{{"replicas":3,"selector":{{"matchLabels":{{"app":"backend"}}}},"template":{{"metadata":{{"labels":{{"app":"backend"}}}},"spec":{containers}}},"strategy":{{"type":"RollingUpdate"}},"revisionHistoryLimit":10}},"status":{{"observedGeneration":12,"replicas":3,"readyReplicas":3,"conditions":[{{"type":"Available","status":"True","lastUpdateTime":"2026-11-19T08:00:00Z","reason":"MinimumReplicasAvailable","message":"Deployment has minimum availability."}}]}}}}"#
        ),
    );
    out
}

fn containers(random: &mut Rng, bytes: usize) -> String {
    let mut out = r#"{"containers":["#.to_owned();
    let mut comma = "";
    while out.len() < bytes {
        write(
            &mut out,
            format_args!(
                r#"{comma}{{"name":"worker-{}","image":"registry.example.com/platform/backend@sha256:{}","args":["--listen=0.0.0.0:8080","--query=a=1\u0026b=\u003c2\u003e"],"ports":[{{"name":"http","containerPort":8080,"protocol":"TCP"}}],"env":["#,
                random.u8(..),
                hexadecimal(random, 64)
            ),
        );
        for index in 0..random.u8(4..10) {
            let comma = if index > 0 { "," } else { "" };
            let value = letters(random, 24);
            write(
                &mut out,
                format_args!(r#"{comma}{{"name":"SETTING_{index}","value":"https://{value}.svc:8443/v1"}}"#),
            );
        }
        out.push_str(r#"],"resources":{"limits":{"cpu":"2","memory":"1Gi"},"requests":{"cpu":"250m","memory":"256Mi"}},"livenessProbe":{"httpGet":{"path":"/healthz","port":8080,"scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent","securityContext":{"runAsNonRoot":true}}"#);
        comma = ",";
    }
    out.push_str(r#"],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"backend"}"#);
    out
}

/// A string of ASCII as Go's encoder writes it.
fn go_string(text: &str) -> String {
    let mut out = serde_json::to_string(text).expect("a string always serialises");
    for (char, escape) in [('&', "\\u0026"), ('<', "\\u003c"), ('>', "\\u003e")] {
        out = out.replace(char, escape);
    }
    out
}

fn uuid(random: &mut Rng) -> String {
    let [a, b, c] = [random.u32(..), random.u32(..), random.u32(..)];
    format!("{a:08x}-{:04x}-4{:03x}-a{:03x}-{c:08x}{:04x}", b >> 16, b & 0xfff, random.u16(..0x1000), random.u16(..))
}

fn hexadecimal(random: &mut Rng, digits: usize) -> String {
    (0..digits).map(|_| random.digit(16)).collect()
}

fn letters(random: &mut Rng, length: usize) -> String {
    (0..length).map(|_| random.lowercase()).collect()
}

fn write(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes every character");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    fn items(body: &[u8]) -> Vec<Value> {
        let list: Value = serde_json::from_slice(body).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    #[test]
    fn batches_are_as_long_as_they_say() {
        let (metadata, bodies) = (metadata(7), request_response(7));
        assert_eq!((items(&metadata).len(), items(&bodies).len()), (METADATA_EVENTS, BODY_EVENTS));
        assert!((1150..1200).contains(&(metadata.len() / METADATA_EVENTS)), "{}", metadata.len() / METADATA_EVENTS);
        assert!((26_000..29_000).contains(&(bodies.len() / BODY_EVENTS)), "{}", bodies.len() / BODY_EVENTS);
        for item in items(&bodies) {
            let bytes = item.to_string().len();
            assert!((5_000..51_000).contains(&bytes), "{bytes}");
        }
    }

    #[test]
    fn a_seed_decides_everything_and_audit_ids_are_never_the_same() {
        assert_eq!(metadata(1), metadata(1));
        let ids = |seed| items(&metadata(seed)).into_iter().map(|item| item["auditID"].as_str().unwrap().to_owned());
        let all: HashSet<String> = ids(1).chain(ids(2)).collect();
        assert_eq!(all.len(), 2 * METADATA_EVENTS);
    }

    #[test]
    fn a_namespace_has_all_events_that_are_asked_for() {
        let items = items(&namespaced(1, 50, "shop"));
        assert_eq!(items.len(), 50);
        assert!(items.iter().all(|item| item["objectRef"]["namespace"] == "shop"));
    }
}
