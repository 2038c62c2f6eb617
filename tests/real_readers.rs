//! Load on a real control plane, and readers who go on reading whatever happens, as client-go's `RetryWatcher` does, and
//! write down what they received.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::events::{EventBuilder, event, event_list};
use audit_stream_testplane::front_proxy::{Client, Lines, request};
use audit_stream_testplane::history::{Frame, Gap};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::real_cluster::ARRIVAL;

/// 250 events a second: more than most clusters have.
const BATCH_EVENTS: u64 = 25;
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How long ingest may take before it says that it cannot.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Between two requests of the writer's.
const WRITE_INTERVAL: Duration = Duration::from_millis(50);

/// Before a reader who was refused or cut off tries again: a client in a hurry.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Who the events of [`Load`] are of.
pub const LOAD: &str = "load";

/// Who the events of [`Writer`] are of.
pub const WRITER: &str = "writer";

/// Events that a made-up kube-apiserver reports, numbered without a hole from 0.
pub struct Load {
    begin: Instant,
    stop: CancellationToken,
    posting: JoinSet<Result<u64>>,
}

/// Somebody who makes ConfigMaps, one after the other, and does not give up.
pub struct Writer {
    tried: Arc<AtomicU64>,
    stop: CancellationToken,
    writing: JoinSet<()>,
}

/// A reader who tries again when refused, and goes on from the last place when a watch ends; where that place is gone, with
/// all that is retained.
pub struct Follower {
    pub name: String,
    record: watch::Receiver<Record>,
    stop: CancellationToken,
    following: JoinSet<Result<()>>,
}

/// What a reader received.
#[derive(Debug, Clone, Default)]
pub struct Record {
    pub received: Vec<Received>,
    /// One for each watch that was opened.
    pub sessions: Vec<Session>,
    /// The status codes of watches that were not.
    pub refusals: Vec<(Instant, u16)>,
    pub gaps: Vec<Gap>,
}

#[derive(Debug, Clone)]
pub struct Received {
    /// The number of the session, from 0.
    pub session: usize,
    pub place: u64,
    /// The audit ID, or of a writer's event the name of the object.
    pub what: String,
}

#[derive(Debug, Clone)]
pub struct Session {
    /// The place after which it was asked to begin.
    pub after: Option<u64>,
    pub end: Option<(Instant, End)>,
}

/// How a watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Clean,
    Broken,
    /// With an error of this code, and then cleanly.
    Error(u16),
}

// === impl Load ===

impl Load {
    /// Begins, in a namespace.
    pub fn start(webhook: Client, namespace: &str) -> Self {
        let (begin, stop, mut posting) = (Instant::now(), CancellationToken::new(), JoinSet::new());
        let (namespace, stopped) = (namespace.to_owned(), stop.clone());
        posting.spawn(async move {
            let mut ticks = interval(BATCH_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut count = 0;
            while stopped.run_until_cancelled(ticks.tick()).await.is_some() {
                let made = begin.elapsed().as_millis();
                let build = |number| load_event(&namespace, number, made).build();
                let body = event_list(&(count..count + BATCH_EVENTS).map(build).collect::<Vec<_>>());
                let headers = [("content-type", "application/json")];
                let answer = webhook.send(request("POST", "/webhook/load", &headers, body)?);
                let answer = timeout(ANSWER_WITHIN, answer).await.context("ingest did not answer in time")??;
                ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
                count += BATCH_EVENTS;
            }
            Ok(count)
        });
        Self { begin, stop, posting }
    }

    /// When an event was made, which is before it was sent.
    pub fn made_at(&self, received: &Received) -> Result<Instant> {
        let millis = received.what.rsplit('-').next().and_then(|millis| millis.parse().ok());
        Ok(self.begin + Duration::from_millis(millis.with_context(|| format!("no load: {}", received.what))?))
    }

    /// Ends, and says how many events were accepted: all that were sent.
    pub async fn finish(mut self) -> Result<u64> {
        self.stop.cancel();
        self.posting.join_next().await.context("it was spawned")??
    }
}

fn load_event(namespace: &str, number: u64, made: u128) -> EventBuilder {
    event().user(LOAD).resource("pods").namespace(namespace).name("busy").audit_id(&format!("load-{number}-{made}"))
}

/// The number of an event of the load, or of the writer's.
pub fn number(received: &Received) -> Result<u64> {
    let number = received.what.split('-').nth(1).and_then(|number| number.parse().ok());
    number.with_context(|| format!("not numbered: {}", received.what))
}

// === impl Writer ===

impl Writer {
    /// Begins, in a namespace where the client may do so.
    pub fn start(client: Client, namespace: &str) -> Self {
        let (tried, stop, mut writing) = (Arc::new(AtomicU64::new(0)), CancellationToken::new(), JoinSet::new());
        let (path, stopped) = (format!("/api/v1/namespaces/{namespace}/configmaps"), stop.clone());
        let count = Arc::clone(&tried);
        writing.spawn(async move {
            let mut ticks = interval(WRITE_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stopped.run_until_cancelled(ticks.tick()).await.is_some() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let body = json!({ "metadata": { "name": format!("item-{number}") } }).to_string();
                let post = request("POST", &path, &[("content-type", "application/json")], body);
                // Whatever becomes of it: what happened is what kube-apiserver's own audit log says.
                let _ = client.send(post.expect("the path is a URL")).await;
            }
        });
        Self { tried, stop, writing }
    }

    /// How many it has tried to make. One with this number or above has not been asked for yet.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::SeqCst)
    }

    /// Ends, when its last request is answered.
    pub async fn finish(mut self) -> u64 {
        self.stop.cancel();
        while self.writing.join_next().await.is_some() {}
        self.tried()
    }
}

/// Of kube-apiserver's own audit log, the numbers of the ConfigMaps that the writer made, in order.
pub fn written(ledger: &[Value]) -> Vec<u64> {
    let made = ledger.iter().filter(|event| {
        event["user"]["username"] == WRITER && event["verb"] == "create" && event["stage"] == "ResponseComplete"
    });
    let number = |event: &Value| event["objectRef"]["name"].as_str()?.strip_prefix("item-")?.parse().ok();
    made.filter_map(number).collect()
}

// === impl Follower ===

impl Follower {
    /// Begins to read what `path` selects, from now on: a watch with parameters.
    pub fn start(name: &str, client: Client, path: &str) -> Self {
        let (sender, record) = watch::channel(Record::default());
        let (stop, mut following) = (CancellationToken::new(), JoinSet::new());
        let (path, stopped) = (path.to_owned(), stop.clone());
        following.spawn(async move {
            stopped.run_until_cancelled(Box::pin(follow(&client, &path, &sender))).await.unwrap_or(Ok(()))
        });
        Self { name: name.to_owned(), record, stop, following }
    }

    /// What was received so far.
    pub fn record(&self) -> watch::Ref<'_, Record> {
        self.record.borrow()
    }

    /// Waits until its first watch is open.
    pub async fn until_open(&mut self) -> Result<()> {
        self.until("a watch", |record| !record.sessions.is_empty()).await
    }

    /// Waits until something more is received than what was so far.
    pub async fn until_more(&mut self) -> Result<()> {
        let count = self.record().received.len();
        self.until("one more event", |record| record.received.len() > count).await
    }

    /// Waits until the record is as wanted, which it is in the end.
    pub async fn until(&mut self, what: &str, is_so: impl FnMut(&Record) -> bool) -> Result<()> {
        self.until_within(ARRIVAL, what, is_so).await
    }

    /// The same with another end.
    pub async fn until_within(
        &mut self,
        within: Duration,
        what: &str,
        is_so: impl FnMut(&Record) -> bool,
    ) -> Result<()> {
        let outcome = match timeout(within, self.record.wait_for(is_so)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => "it has stopped",
            Err(_) => "it does not come",
        };
        if let Some(ended) = self.following.try_join_next() {
            ended??;
        }
        let Record { received, sessions, refusals, .. } = &*self.record();
        let last = received.last();
        bail!(
            "{}: {what}: {outcome}; {} events, the last {last:?}; {sessions:?}; {refusals:?}",
            self.name,
            received.len()
        )
    }

    /// Stops reading.
    pub async fn finish(mut self) -> Result<Record> {
        self.stop.cancel();
        while let Some(ended) = self.following.join_next().await {
            ended?.with_context(|| self.name.clone())?;
        }
        Ok(self.record.borrow().clone())
    }
}

async fn follow(client: &Client, path: &str, record: &watch::Sender<Record>) -> Result<()> {
    let mut after = None;
    let mut has_lost_its_place = false;
    loop {
        let query = match after {
            Some(place) => format!("&resourceVersion={place}"),
            None if has_lost_its_place => "&sinceSeconds=600".to_owned(),
            None => String::new(),
        };
        match client.watch(request("GET", &format!("{path}{query}"), &[], "")?).await {
            Ok(Ok(watch)) => {
                let session = Session { after, end: None };
                record.send_modify(|record| record.sessions.push(session));
                let end = read(watch.into_lines(), &mut after, record).await?;
                if end == End::Error(410) {
                    (after, has_lost_its_place) = (None, true);
                }
                record.send_modify(|record| {
                    let session = record.sessions.last_mut().expect("just pushed");
                    session.end = Some((Instant::now(), end));
                });
            }
            Ok(Err(refusal)) => {
                record.send_modify(|record| record.refusals.push((Instant::now(), refusal.status)));
                sleep(TRY_AGAIN).await;
            }
            // Nobody is there.
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

/// Reads a watch to its end.
async fn read(mut lines: Lines, after: &mut Option<u64>, record: &watch::Sender<Record>) -> Result<End> {
    let session = record.borrow().sessions.len() - 1;
    let mut error = None;
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(error.map_or(End::Clean, End::Error)),
            Err(_) => return Ok(End::Broken),
        };
        let frame = Frame::read(line)?;
        *after = frame.place().or(*after);
        if let Some(gap) = frame.gap() {
            record.send_modify(|record| record.gaps.push(gap.clone()));
        }
        match frame {
            Frame::Added(added) => {
                let (place, what) = (added.place, name(added.body())?);
                record.send_modify(|record| record.received.push(Received { session, place, what }));
            }
            Frame::Bookmark(_) => {}
            Frame::Error { code } => error = Some(code),
        }
    }
}

/// What an event of the load or of the writer's is known by.
fn name(body: &[u8]) -> Result<String> {
    let event: Value = serde_json::from_slice(&[b"{", body, b"}"].concat())?;
    let name = if event["user"]["username"] == WRITER { &event["objectRef"]["name"] } else { &event["auditID"] };
    Ok(name.as_str().context("an event without a name")?.to_owned())
}

// === impl Record ===

impl Record {
    /// How each watch ended that did.
    pub fn ends(&self) -> Vec<End> {
        self.sessions.iter().filter_map(|session| Some(session.end.as_ref()?.1.clone())).collect()
    }

    /// How often each number was received.
    pub fn counts(&self) -> Result<BTreeMap<u64, usize>> {
        let mut counts = BTreeMap::new();
        for received in &self.received {
            *counts.entry(number(received)?).or_default() += 1;
        }
        Ok(counts)
    }

    /// Places grow in a session, and from one to the next where it goes on; and no number is received twice.
    pub fn ensure_ordered_and_unique(&self) -> Result<()> {
        for pair in self.received.windows(2) {
            let [before, next] = pair else { unreachable!("windows of two") };
            let goes_on = before.session == next.session || self.sessions[next.session].after.is_some();
            ensure!(!goes_on || before.place < next.place, "{next:?} came after {before:?}");
        }
        let doubled: BTreeSet<_> = self.counts()?.into_iter().filter(|(_, count)| *count > 1).collect();
        ensure!(doubled.is_empty(), "received more than once: {doubled:?}");
        Ok(())
    }

    /// All from the first that was received up to before `end`, each once and in the order of their numbers.
    pub fn ensure_whole(&self, end: u64) -> Result<()> {
        let first = self.received.first().map(number).context("nothing was received")??;
        ensure!(self.gaps.is_empty(), "gaps: {:?}", self.gaps);
        for (expected, received) in (first..).zip(&self.received) {
            ensure!(number(received)? == expected, "{received:?} instead of {expected}");
        }
        ensure!(
            first + self.received.len() as u64 == end,
            "{} received from {first} on, not up to {end}",
            self.received.len()
        );
        self.ensure_ordered_and_unique()
    }
}
