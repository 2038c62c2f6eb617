//! Clients that nobody here wrote read a scenario, through a real kube-apiserver, to exactly what happened.
//!
//! Those with a library that comes back by itself have watches of five seconds, so that each resumes several times; and
//! where they can be told to they come back two seconds late, so that there is something to resume.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::assets::Clients;
use audit_stream_testplane::control_plane::AuditPolicy;
use futures::TryStreamExt;
use futures::future::join_all;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, watcher};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::real_cluster::{ARRIVAL, Cluster, Person, id_and_stage, watch_path};
use crate::stage::long;

/// Three watches of those that come back, each some seven seconds with the pause.
const SCENARIO: Duration = Duration::from_secs(21);

/// Two turns of kube-apiserver's OpenAPI aggregation, which asks every minute, and half a minute to complain.
const LONG_SCENARIO: Duration = Duration::from_secs(150);

/// The watch of a client that comes back.
const SHORT_WATCH_SECONDS: u32 = 5;

/// Some ten times what a long scenario has: no client is ever made to wait.
const RECEIVED: usize = 1 << 15;

type Seen = BTreeSet<(String, String)>;

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_read_exactly_what_happened() -> Result<()> {
    let clients = Clients::locate().await?;
    let cluster = Cluster::start_recording(AuditPolicy::Everything { config_map_bodies_in: Vec::new() }).await?;
    // What is older than the namespace is nobody's to resume from, and a place of before its creation has arrived would be.
    let admin = cluster.admin();
    let mut everything = admin.read("/apis/audit.k8s.io/v1/events?watch=true")?;
    everything.until_own_watch(&admin).await?;
    cluster.namespace("shop").await?;
    everything.until_object("create", "shop").await?;
    drop(everything);
    let (alice, bob, mallory) = (cluster.person("alice")?, cluster.person("bob")?, cluster.person("mallory")?);
    cluster.let_watch(&alice, "shop").await?;
    cluster.grant(&bob, "admin", "shop").await?;

    let mut readers = Readers::default();
    readers.start_all(&cluster, &alice, &clients).await?;
    readers.until(|reader| !reader.seen.is_empty()).await?;
    play(&bob, &mallory).await?;

    let ledger = cluster.ledger(|ledger| position(ledger, "last").is_some()).await?;
    let expected = between_markers(&ledger)?;
    readers.until(|reader| expected.is_subset(&reader.seen)).await?;
    let ledger = cluster.plane.ledger()?;
    let recorded: Seen = ledger.iter().filter(in_shop).map(id_and_stage).collect();
    for reader in &readers.all {
        println!("{}: {} events, {} of them between the markers", reader.name, reader.count, expected.len());
        assert_eq!(reader.count, reader.seen.len(), "{}: some came twice", reader.name);
        let unheard_of: Vec<_> = reader.seen.difference(&recorded).collect();
        assert!(unheard_of.is_empty(), "{}: {unheard_of:?} did not happen", reader.name);
    }
    assert_came_back_without_a_list(&ledger)?;
    cluster.assert_no_complaint()
}

/// What Bob and Mallory do, one thing after the other, between two markers.
async fn play(bob: &Person, mallory: &Person) -> Result<()> {
    let began = Instant::now();
    let succeed = async |arguments: &str| -> Result<()> {
        let arguments: Vec<_> = arguments.split(' ').chain(["-n", "shop"]).collect();
        bob.kubectl.run(&arguments).await?.success().map(drop)
    };
    succeed("create configmap first").await?;
    succeed("create serviceaccount till").await?;
    while began.elapsed() < if long() { LONG_SCENARIO } else { SCENARIO } {
        succeed("create configmap prices --from-literal=bread=1").await?;
        succeed("patch configmap prices --type=merge --patch={\"data\":{\"bread\":\"2\"}}").await?;
        succeed("get configmaps").await?;
        succeed("create secret generic key --from-literal=password=SECRET").await?;
        succeed("create token till").await?;
        for denied in ["delete configmap prices -n shop", "get secret key -n shop"] {
            let answer = mallory.kubectl.run(&denied.split(' ').collect::<Vec<_>>()).await?;
            ensure!(!answer.status.success(), "Mallory may {denied}");
        }
        succeed("delete configmap prices").await?;
        succeed("delete secret key").await?;
    }
    succeed("create configmap last").await
}

/// What everybody who watched all the time must have seen: the namespace's events of kube-apiserver's own log from the
/// first marker to the last, both included.
///
/// kube-apiserver writes its log and its batches one after the other, so of two requests at the same time each may come
/// first in one of them. Bob and Mallory do one thing at a time. The clients' own watches come and go when they like, so
/// of these only those count that lie between what Bob did after the first marker and what he did before the last:
/// starting kubectl in between takes far longer than that race.
fn between_markers(ledger: &[Value]) -> Result<Seen> {
    let first = position(ledger, "first").context("no first marker")?;
    let last = position(ledger, "last").context("no last marker")?;
    let after_first = position(ledger, "till").context("no till")?;
    let before_last = ledger.iter().rposition(|event| is(event, "delete", "key")).context("no key")?;
    ensure!(first < after_first && after_first < before_last && before_last < last, "Bob's log is out of order");
    let counts = |(at, event): &(usize, &Value)| {
        in_shop(event) && (!of_a_watch(event) || (after_first..before_last).contains(at))
    };
    let events: Vec<_> = ledger.iter().enumerate().take(last + 1).skip(first).filter(counts).collect();
    let watches = events.iter().filter(|(_, event)| of_a_watch(event)).count();
    ensure!(watches > 0 && watches < events.len(), "{watches} of {} events are of watches", events.len());
    Ok(events.into_iter().map(|(_, event)| id_and_stage(event)).collect())
}

/// Those that should have come back did, and nobody listed anything instead.
fn assert_came_back_without_a_list(ledger: &[Value]) -> Result<()> {
    let requests: Vec<_> = ledger.iter().filter(|event| of_a_watch(event) && in_shop(event)).collect();
    let list = requests.iter().find(|event| event["verb"] != "watch");
    ensure!(list.is_none(), "a client did not only watch: {list:?}");
    let from_a_place = |event: &&&Value| {
        let uri = event["requestURI"].as_str().unwrap_or_default();
        event["stage"] == "ResponseStarted"
            && uri.contains(&format!("timeoutSeconds={SHORT_WATCH_SECONDS}"))
            && uri.split(['?', '&']).any(|pair| pair.strip_prefix("resourceVersion=").is_some_and(|at| at.len() > 1))
    };
    for (agent, name) in
        [("go-retrywatcher", "RetryWatcher"), ("go-informer", "the informer"), ("python-custom", "Python")]
    {
        let of_it = |event: &&&Value| event["userAgent"] == agent;
        let resumed = requests.iter().filter(of_it).filter(from_a_place).count();
        ensure!(resumed >= 2, "{name} came back {resumed} times");
    }
    Ok(())
}

/// The creation of something of this name that succeeded.
fn position(ledger: &[Value], name: &str) -> Option<usize> {
    ledger.iter().position(|event| is(event, "create", name))
}

fn is(event: &Value, verb: &str, name: &str) -> bool {
    event["verb"] == verb && event["objectRef"]["name"] == name && event["objectRef"]["subresource"].is_null()
}

fn of_a_watch(event: &Value) -> bool {
    event["objectRef"]["apiGroup"] == "audit.k8s.io"
}

/// By the path alone, and as simply as can be: nobody in this story forges anything.
fn in_shop(event: &&Value) -> bool {
    let path = event["requestURI"].as_str().unwrap_or_default().split('?').next().unwrap_or_default();
    path.ends_with("/namespaces/shop") || path.contains("/namespaces/shop/")
}

/// The clients that run, as one user.
#[derive(Default)]
struct Readers {
    all: Vec<Reader>,
    tasks: JoinSet<()>,
}

/// A client, and what it printed so far.
struct Reader {
    name: &'static str,
    received: mpsc::Receiver<Result<Value>>,
    seen: Seen,
    count: usize,
}

impl Readers {
    async fn start_all(&mut self, cluster: &Cluster, user: &Person, clients: &Clients) -> Result<()> {
        let kubeconfig = cluster.plane.user_kubeconfig(user.name, &[])?;
        self.run("kubectl get --raw", user.kubectl.command(&["get", "--raw", &watch_path("shop")]))?;
        for (name, mode) in
            [("Go's dynamic Watch", "dynamic"), ("Go's RetryWatcher", "retrywatcher"), ("Go's informer", "informer")]
        {
            self.run(name, go(clients, mode, &kubeconfig))?;
        }
        for (name, mode) in [("Python's watch.Watch", "custom"), ("Python's dynamic client", "dynamic")] {
            self.run(name, python(clients, mode, &kubeconfig))?;
        }
        let events = api(&kubeconfig).await?;
        let config = watcher::Config::default().streaming_lists().timeout(SHORT_WATCH_SECONDS);
        self.add("kube's watcher", |printed| async move {
            let failed = watch_with_kube(events, config, &printed).await.err();
            let _ = printed.send(Err(failed.unwrap_or_else(|| anyhow::anyhow!("it ended")))).await;
        });
        Ok(())
    }

    /// Starts a program that prints a line of JSON for each event: a frame, or what [`summary`] makes of one.
    fn run(&mut self, name: &'static str, mut command: Command) -> Result<()> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        self.add(name, |printed| async move {
            let failed = read_lines(&mut child, &printed).await.err();
            let _ = printed.send(Err(failed.unwrap_or_else(|| anyhow::anyhow!("it ended")))).await;
        });
        Ok(())
    }

    /// Waits until each has enough, and says of all of them what is wrong.
    async fn until(&mut self, enough: impl Fn(&Reader) -> bool) -> Result<()> {
        let results = join_all(self.all.iter_mut().map(|reader| reader.until(&enough))).await;
        let wrong: Vec<_> = results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    fn add<F>(&mut self, name: &'static str, task: impl FnOnce(mpsc::Sender<Result<Value>>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (printed, received) = mpsc::channel(RECEIVED);
        self.tasks.spawn(task(printed));
        self.all.push(Reader { name, received, seen: Seen::new(), count: 0 });
    }
}

impl Reader {
    /// Takes in what the client printed until it is enough.
    async fn until(&mut self, enough: impl Fn(&Self) -> bool) -> Result<()> {
        let name = self.name;
        let reading = async {
            while !enough(self) {
                let event = self.received.recv().await.context("the task is gone")?;
                self.take(event?)?;
            }
            Ok(())
        };
        let read = timeout(ARRIVAL, reading).await.unwrap_or_else(|_| bail!("it has not all after {ARRIVAL:?}"));
        read.with_context(|| format!("{name}, after {} events", self.count))
    }

    fn take(&mut self, event: Value) -> Result<()> {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        ensure!(text("kind") == "NamespacedEvent" && !text("resourceVersion").is_empty(), "no kind or place: {event}");
        if text("type") == "BOOKMARK" {
            return Ok(());
        }
        ensure!(text("type") == "ADDED" && !text("name").is_empty(), "not an event added: {event}");
        self.seen.insert(id_and_stage(&event));
        self.count += 1;
        Ok(())
    }
}

fn go(clients: &Clients, mode: &str, kubeconfig: &Path) -> Command {
    let mut command = Command::new(&clients.go);
    command.arg(mode).arg(kubeconfig).arg("shop").kill_on_drop(true);
    command
}

fn python(clients: &Clients, mode: &str, kubeconfig: &Path) -> Command {
    let mut command = Command::new(&clients.python);
    command.arg(clients.python_programs.join("reader.py")).arg(mode).arg(kubeconfig).arg("shop").kill_on_drop(true);
    command
}

/// Prints on until the client ends, which is an error with what it complained about.
async fn read_lines(child: &mut Child, printed: &mpsc::Sender<Result<Value>>) -> Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    while let Some(line) = lines.next_line().await? {
        let event: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        // kubectl prints frames as they are.
        let event = if event["object"].is_object() { summary(&event["type"], &event["object"]) } else { event };
        printed.send(Ok(event)).await?;
    }
    let mut complaint = String::new();
    child.stderr.take().context("stderr is piped")?.read_to_string(&mut complaint).await?;
    bail!("it ended: {complaint}");
}

/// What the programs print of an event.
fn summary(kind: &Value, object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "type": kind, "kind": object["kind"], "name": metadata["name"], "resourceVersion": metadata["resourceVersion"],
        "auditID": object["auditID"], "stage": object["stage"],
    })
}

/// kube's own client, as the user of a kubeconfig.
async fn api(kubeconfig: &Path) -> Result<kube::Api<DynamicObject>> {
    let config =
        kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    let kind = GroupVersionKind::gvk("audit.k8s.io", "v1", "NamespacedEvent");
    let resource = ApiResource::from_gvk_with_plural(&kind, "namespacedevents");
    Ok(kube::Api::namespaced_with(kube::Client::try_from(config)?, "shop", &resource))
}

/// Everything that a watcher hands out must be an event that was added.
async fn watch_with_kube(
    events: kube::Api<DynamicObject>,
    config: watcher::Config,
    printed: &mpsc::Sender<Result<Value>>,
) -> Result<()> {
    let mut stream = std::pin::pin!(watcher(events, config));
    while let Some(event) = stream.try_next().await? {
        match event {
            watcher::Event::Init | watcher::Event::InitDone => {}
            watcher::Event::Apply(object) => {
                printed.send(Ok(summary(&"ADDED".into(), &serde_json::to_value(&object)?))).await?;
            }
            other => bail!("not an event added: {other:?}"),
        }
    }
    bail!("the stream ended")
}

/// Why nobody can list, to those who may only watch, and to those who could list if there were something to list.
const MAY_NOT_LIST: &str = "namespacedevents.audit.k8s.io is forbidden: User \"alice\" cannot list resource \
                            \"namespacedevents\" in API group \"audit.k8s.io\" in the namespace \"shop\"";
const NOTHING_TO_LIST: &str = "list is not supported on resources of kind \"namespacedevents.audit.k8s.io\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_has_to_list_prints_what_the_documentation_says() -> Result<()> {
    let clients = Clients::locate().await?;
    let cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let alice = cluster.person("alice")?;
    cluster.let_watch(&alice, "shop").await?;
    let kubeconfig = cluster.plane.user_kubeconfig("alice", &[])?;
    assert_what_lists_prints(&clients, &alice, &kubeconfig, "Forbidden", "(403)", MAY_NOT_LIST).await?;
    let (admin, kubeconfig) = (cluster.admin(), cluster.plane.admin_kubeconfig());
    assert_what_lists_prints(&clients, &admin, &kubeconfig, "MethodNotAllowed", "(405)", NOTHING_TO_LIST).await?;
    cluster.assert_no_complaint()
}

async fn assert_what_lists_prints(
    clients: &Clients,
    person: &Person,
    kubeconfig: &Path,
    reason: &str,
    code: &str,
    message: &str,
) -> Result<()> {
    let documented = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/API.md"))?;
    let mut said = Vec::new();
    for watch in ["", " -w", " --watch-only"] {
        let arguments = format!("get namespacedevents -n shop{watch}");
        let answer = person.kubectl.run(&arguments.split(' ').collect::<Vec<_>>()).await?;
        said.push((format!("Error from server ({reason}): "), answer.stderr));
    }
    let mut informer = go(clients, "informer", kubeconfig);
    informer.env("KUBE_FEATURE_WatchListClient", "false");
    // client-go quotes what it logs.
    let informer = first_complaint(informer, "audit.k8s.io").await?.replace("\\\"", "\"");
    said.push(("failed to list audit.k8s.io/v1, Resource=namespacedevents: ".to_owned(), informer));
    let python = first_complaint(python(clients, "list", kubeconfig), "HTTP response body: ").await?;
    assert!(python.contains(&format!("Exception: {code}")), "{python}");
    said.push(("HTTP response body: ".to_owned(), status_message(&python)?));
    let (printed, _received) = mpsc::channel(1);
    let watching = watch_with_kube(api(kubeconfig).await?, watcher::Config::default(), &printed);
    let failure = timeout(ARRIVAL, watching).await?.expect_err("there is nothing to list");
    said.push(("failed to perform initial object list: ApiError: ".to_owned(), format!("{failure:#}")));

    for (words, said) in said {
        assert!(said.contains(&format!("{words}{message}")), "not {words}{message}: {said}");
        assert!(documented.contains(words.trim_end()), "docs/API.md lacks {words}");
    }
    assert!(documented.contains(message), "docs/API.md lacks {message}");
    Ok(())
}

/// The message alone of the Status in what Python printed, behind the words before it.
fn status_message(printed: &str) -> Result<String> {
    let words = "HTTP response body: ";
    let (_, body) = printed.split_once(words).context("no body")?;
    let status: Value = serde_json::from_str(body.trim())?;
    Ok(format!("{words}{}", status["message"].as_str().context("no message")?))
}

/// What a program writes to stderr up to the first line with this word; some of them would go on for ever.
async fn first_complaint(mut command: Command, word: &str) -> Result<String> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
    let mut text = String::new();
    let reading = async {
        while let Some(line) = lines.next_line().await? {
            text.push_str(&line);
            text.push('\n');
            if line.contains(word) {
                return Ok(());
            }
        }
        bail!("it ended without {word}")
    };
    let read = timeout(ARRIVAL, reading).await.unwrap_or_else(|_| bail!("no {word} within {ARRIVAL:?}"));
    read.with_context(|| format!("it wrote {text}"))?;
    Ok(text)
}
