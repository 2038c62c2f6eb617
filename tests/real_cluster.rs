//! A real control plane with audit-stream installed, and the people who use it.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::audit_stream::AuditStream;
use audit_stream_testplane::control_plane::{
    AuditPolicy, ControlPlane, FRONT_PROXY, Options, SERVING_NAME, WEBHOOK_CLIENT,
};
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol, Target, request};
use audit_stream_testplane::kubectl::{Kubectl, Stream};
use audit_stream_testplane::manifests;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

/// Things arrive in the end: this long is the end.
pub const ARRIVAL: Duration = Duration::from_secs(30);

/// The ClusterRole that ships beside the manifests, for readers of one namespace.
const NAMESPACE_WATCHER: &str = "audit-stream-namespace-watcher";

/// The same for readers of everything.
const CLUSTER_WATCHER: &str = "audit-stream-cluster-watcher";

/// A control plane with audit-stream installed from its manifests, and running.
pub struct Cluster {
    pub plane: ControlPlane,
    pub server: Option<AuditStream>,
    /// How long kube-apiserver's log was when audit-stream had become ready.
    log_from: usize,
}

/// Somebody with a client certificate.
pub struct Person {
    pub name: &'static str,
    pub kubectl: Kubectl,
}

/// The lines of `kubectl get --raw …?watch=true`.
pub struct Reading {
    stream: Stream,
    pub frames: Vec<Value>,
}

impl Cluster {
    /// Starts everything and waits until the API is available.
    pub async fn start() -> Result<Self> {
        Self::start_recording(AuditPolicy::Sample).await
    }

    /// The same with another audit policy than the sample.
    pub async fn start_recording(audit_policy: AuditPolicy) -> Result<Self> {
        Self::start_as(audit_policy, &["--logging-format=json"]).await
    }

    /// The same with flags of audit-stream's.
    pub async fn start_with(flags: &[&str]) -> Result<Self> {
        Self::start_as(AuditPolicy::Sample, flags).await
    }

    async fn start_as(audit_policy: AuditPolicy, flags: &[&str]) -> Result<Self> {
        let plane = ControlPlane::start(Options { audit_policy, ..Options::default() }).await?;
        let mut cluster = Self::install(plane).await?;
        cluster.serve(flags, &[]).await?;
        Ok(cluster)
    }

    /// A control plane that has been told of audit-stream, which does not run yet.
    pub async fn without_server() -> Result<Self> {
        Self::install(ControlPlane::start(Options::default()).await?).await
    }

    async fn install(plane: ControlPlane) -> Result<Self> {
        manifests::apply(&plane).await?;
        Ok(Self { plane, server: None, log_from: 0 })
    }

    /// Starts audit-stream, with flags and environment variables, and waits until the API is available.
    pub async fn serve(&mut self, flags: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        self.server = Some(AuditStream::start_under(&self.plane, flags, environment).await?);
        self.log_from = fs::read(self.plane.aggregator_log())?.len();
        manifests::wait_until_available(&self.plane).await
    }

    /// Whoever may do everything.
    pub fn admin(&self) -> Person {
        Person { name: "admin", kubectl: self.plane.admin() }
    }

    /// A user without any right.
    pub fn person(&self, name: &'static str) -> Result<Person> {
        Ok(Person { name, kubectl: self.plane.kubectl(&self.plane.user_kubeconfig(name, &[])?) })
    }

    /// An HTTP client of kube-apiserver's, as a user with these groups.
    pub async fn client(&self, name: &str, groups: &[&str]) -> Result<Client> {
        Client::connect(self.apiserver(name, groups)).await
    }

    /// kube-apiserver, for such a client.
    pub fn apiserver(&self, name: &str, groups: &[&str]) -> Target {
        let trust = self.plane.trust();
        let address = ([127, 0, 0, 1], self.plane.ports().apiserver).into();
        let target = Target::new(address, trust.cluster.certificate_pem(), "127.0.0.1");
        target.identity(&trust.cluster.client(name, groups))
    }

    /// Makes a namespace.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.plane.admin().run(&["create", "namespace", name]).await?.success()?;
        Ok(())
    }

    /// Binds a ClusterRole to a person in a namespace.
    pub async fn grant(&self, person: &Person, cluster_role: &str, namespace: &str) -> Result<()> {
        let (binding, user) = (format!("{}-{cluster_role}", person.name), format!("--user={}", person.name));
        let role = format!("--clusterrole={cluster_role}");
        let arguments = ["create", "rolebinding", &binding, &role, &user, "-n", namespace];
        self.plane.admin().run(&arguments).await?.success()?;
        Ok(())
    }

    /// Lets a person read a namespace's events.
    pub async fn let_watch(&self, person: &Person, namespace: &str) -> Result<()> {
        self.grant(person, NAMESPACE_WATCHER, namespace).await
    }

    /// Lets a group read everything.
    pub async fn let_group_watch_all(&self, group: &str) -> Result<()> {
        let (role, group_flag) = (format!("--clusterrole={CLUSTER_WATCHER}"), format!("--group={group}"));
        self.plane.admin().run(&["create", "clusterrolebinding", group, &role, &group_flag]).await?.success()?;
        Ok(())
    }

    /// Lets a user read a namespace's events, by a `RoleBinding` of the user's own.
    pub async fn allow(&self, admin: &Client, user: &str, namespace: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": user },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAMESPACE_WATCHER },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
        });
        let (path, headers) = (role_bindings(namespace), [("content-type", "application/json")]);
        let answer = admin.send(request("POST", &path, &headers, binding.to_string())?).await?;
        ensure!(answer.status == 201, "{}: {}", answer.status, answer.body);
        Ok(())
    }

    /// Deletes that `RoleBinding`, and says when that had been answered.
    pub async fn withdraw(&self, admin: &Client, user: &str, namespace: &str) -> Result<Instant> {
        let path = format!("{}/{user}", role_bindings(namespace));
        let answer = admin.send(request("DELETE", &path, &[], "")?).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        Ok(Instant::now())
    }

    /// A second kube-apiserver of this cluster, which reports to the webhook what a test makes up.
    pub async fn webhook(&self) -> Result<Client> {
        let trust = self.plane.trust();
        let address = ([127, 0, 0, 1], self.plane.ports().webhook).into();
        let target = Target::new(address, trust.serving.certificate_pem(), SERVING_NAME);
        Client::connect(target.identity(&trust.webhook.client(WEBHOOK_CLIENT, &[]))).await
    }

    /// Its front proxy, for any user, without kube-apiserver in between.
    pub async fn front_proxy(&self, protocol: Protocol) -> Result<FrontProxy> {
        let trust = self.plane.trust();
        let address = ([127, 0, 0, 1], self.plane.ports().secure).into();
        let identity = trust.front_proxy.client(FRONT_PROXY, &[]);
        FrontProxy::connect(address, trust.serving.certificate_pem(), SERVING_NAME, &identity, protocol).await
    }

    /// Asserts that kube-apiserver has had nothing to complain about us since we were ready. It looks at what is in the
    /// log now: to be said at the end of a scenario in which nothing is broken on purpose.
    pub fn assert_no_complaint(&self) -> Result<()> {
        let log = fs::read(self.plane.aggregator_log())?;
        let found = complaints(&String::from_utf8_lossy(log.get(self.log_from..).unwrap_or_default()));
        ensure!(found.is_empty(), "kube-apiserver complains about us:\n{}", found.join("\n"));
        Ok(())
    }

    /// What kube-apiserver itself recorded, waiting until `complete` says that all is there.
    pub async fn ledger(&self, complete: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + ARRIVAL;
        loop {
            let ledger = self.plane.ledger()?;
            if complete(&ledger) {
                return Ok(ledger);
            }
            if Instant::now() > deadline {
                bail!("kube-apiserver's own audit log is not complete after {ARRIVAL:?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Person {
    /// Runs a command until it succeeds: kube-aggregator asks a new API for its OpenAPI document when it gets round to it.
    pub async fn succeed_in_the_end<A: AsRef<str>>(&self, arguments: &[A]) -> Result<String> {
        let deadline = Instant::now() + ARRIVAL;
        loop {
            match self.kubectl.run(arguments).await?.success() {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(500)).await,
                result => return result,
            }
        }
    }

    /// Opens `kubectl get --raw`, and returns when the first byte of the answer is sure to be under way.
    pub fn read(&self, path: &str) -> Result<Reading> {
        Ok(Reading { stream: self.kubectl.stream(&["get", "--raw", path])?, frames: Vec::new() })
    }

    /// Reads their namespace's events from now on.
    pub fn watch(&self, namespace: &str) -> Result<Reading> {
        self.read(&watch_path(namespace))
    }
}

fn role_bindings(namespace: &str) -> String {
    format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings")
}

/// The path of the README.
pub fn watch_path(namespace: &str) -> String {
    format!("/apis/audit.k8s.io/v1/namespaces/{namespace}/namespacedevents?watch=true")
}

impl Reading {
    /// Reads frames until one of them satisfies `last`.
    pub async fn until(&mut self, last: impl Fn(&Value) -> bool) -> Result<&Value> {
        let reading = async {
            loop {
                let line = self.stream.line_within(ARRIVAL).await?;
                let frame: Value = serde_json::from_str(&line).with_context(|| format!("not a frame: {line}"))?;
                let found = last(&frame);
                self.frames.push(frame);
                if found {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        };
        timeout(ARRIVAL, reading).await.with_context(|| format!("it did not come within {ARRIVAL:?}"))??;
        self.frames.last().context("just pushed")
    }

    /// Reads until the event that says that this very watch has begun.
    pub async fn until_own_watch(&mut self, reader: &Person) -> Result<()> {
        let own = |frame: &Value| {
            let event = &frame["object"];
            event["user"]["username"] == reader.name
                && event["stage"] == "ResponseStarted"
                && event["objectRef"]["apiGroup"] == "audit.k8s.io"
        };
        self.until(own).await.context("the reader's own watch")?;
        Ok(())
    }

    /// Reads until an event of this object.
    pub async fn until_object(&mut self, verb: &str, name: &str) -> Result<&Value> {
        let wanted = |frame: &Value| frame["object"]["verb"] == verb && frame["object"]["objectRef"]["name"] == name;
        self.until(wanted).await.with_context(|| format!("{verb} of {name}"))
    }

    /// Waits for kubectl's end.
    pub async fn finish(self) -> Result<(ExitStatus, String)> {
        self.stream.finish().await
    }

    /// The audit IDs and stages seen so far.
    pub fn seen(&self) -> BTreeSet<(String, String)> {
        self.frames.iter().map(|frame| id_and_stage(&frame["object"])).collect()
    }
}

/// What tells one event of a request from another.
pub fn id_and_stage(event: &Value) -> (String, String) {
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    (text("auditID"), text("stage"))
}

/// The warnings and errors of kube-apiserver's log that speak of us: of the APIServices, the Service, the webhook, or of
/// OpenAPI, where it does not say whose document it is.
fn complaints(log: &str) -> Vec<String> {
    const OURS: [&str; 5] = ["audit.k8s.io", "audit-stream", "audit plugin", "openapi", "OpenAPI"];
    let ours = |record: &String| OURS.iter().any(|word| record.contains(word));
    records(log)
        .into_iter()
        .filter(|record| record.starts_with(['W', 'E', 'F']))
        .filter(ours)
        .filter(|record| is_grave(record))
        .collect()
}

/// Not what kube-apiserver says of others, or could not know yet.
fn is_grave(record: &str) -> bool {
    // A client left its watch: docs/known-issues.md.
    let left = record.contains("\"Timeout or abort while handling\"") && record.contains("watch=");
    // It has not looked since we began to run, and so answers in our place.
    let not_yet = record.contains("openAPI spec") && record.contains("ResponseCode: 503, Body: service unavailable");
    !(left || not_yet)
}

/// klog's records: a line that begins with a severity and a date, and the lines that belong to it.
fn records(log: &str) -> Vec<String> {
    let begins = |line: &str| {
        line.starts_with(['I', 'W', 'E', 'F']) && line.len() > 5 && line.as_bytes()[1..5].iter().all(u8::is_ascii_digit)
    };
    let mut records: Vec<String> = Vec::new();
    for line in log.lines() {
        match records.last_mut() {
            Some(last) if !begins(line) => *last = format!("{last}\n{line}"),
            _ => records.push(line.to_owned()),
        }
    }
    records
}

#[test]
fn complaints_are_told_from_what_others_did() {
    let log = "E1121 12:33:43.403536   15540 remote_available_controller.go:471] \"Unhandled Error\" err=\"v1.audit.k8s.io failed\"\n\
               W1121 12:33:43.403595   15540 handler_proxy.go:100] no RequestInfo found in the context\n\
               E1121 12:33:43.403620   15540 controller.go:157] \"Unhandled Error\" err=<\n\
               \tError updating APIService \"v1.audit.k8s.io\" with err: http error: ResponseCode: 500\n\
               \u{20}> logger=\"UnhandledError\"\n\
               I1121 12:33:43.403620   15540 controller.go:157] OpenAPI AggregationController: v1.audit.k8s.io\n\
               E1121 12:33:48.446642   15540 wrap.go:53] \"Timeout or abort while handling\" URI=\"/apis/audit.k8s.io/v1/events?watch=true\"\n\
               E1121 12:33:48.446642   15540 wrap.go:53] \"Timeout or abort while handling\" URI=\"/apis/audit.k8s.io/v1\"\n";
    let found = complaints(log);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[1].contains("ResponseCode: 500"), "{found:?}");
}
