//! kube-apiserver and audit-stream end and begin again under readers: they recover by themselves, and every loss is told.
//!
//! The truth is kube-apiserver's own audit log, which it writes before it answers.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::audit_stream::AuditStream;
use serde_json::Value;
use tokio::time::{Duration, sleep};

use crate::real_cluster::{Cluster, watch_path};
use crate::real_readers::{End, Follower, Record, WRITER, Writer, written};

/// For readers to find their way back, and for batches to be sent again: kube-apiserver looks for a server that was away every 30 s at last, and tries a batch again after 10 s, then 15.
const RECOVERY: Duration = Duration::from_secs(90);

/// How long the server is away: longer than a batch is under way, so that one has to be sent again.
const AWAY: Duration = Duration::from_secs(3);

/// How the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Terminated,
    Killed,
}

/// A writer who makes one object after the other, and readers of all kinds.
pub struct Story {
    pub cluster: Cluster,
    writer: Writer,
    readers: Vec<Follower>,
}

impl Story {
    /// Begins, and waits until everybody reads what is written.
    pub async fn begin() -> Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.namespace("shop").await?;
        let admin = cluster.client("root", &["system:masters"]).await?;
        cluster.let_group_watch_all("auditors").await?;
        let of_writer = format!("fieldSelector=user.username%3D{WRITER},verb%3Dcreate");
        let namespace = format!("{}&{of_writer}", watch_path("shop"));
        let everywhere =
            format!("/apis/audit.k8s.io/v1/namespacedevents?watch=true&allowWatchBookmarks=true&{of_writer}");
        let events = format!("/apis/audit.k8s.io/v1/events?watch=true&{of_writer}");
        let kinds =
            [("alice", &namespace, None), ("bob", &everywhere, Some("auditors")), ("carol", &events, Some("auditors"))];
        cluster.allow(&admin, "alice", "shop").await?;
        let mut readers = Vec::new();
        for (name, path, group) in kinds {
            let client = cluster.client(name, group.as_slice()).await?;
            let mut reader = Follower::start(name, client, path);
            reader.until_open().await?;
            readers.push(reader);
        }
        let writer = Writer::start(cluster.client(WRITER, &["system:masters"]).await?, "shop");
        for reader in &mut readers {
            reader.until_more().await?;
        }
        Ok(Self { cluster, writer, readers })
    }

    /// Waits until so many more have been tried, which takes until kube-apiserver answers.
    pub async fn write(&self, more: u64) -> Result<()> {
        let end = self.writer.tried() + more;
        let written = async {
            while self.writer.tried() < end {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(RECOVERY, written).await.context("the writer is not answered")
    }

    /// Ends the writer, waits until the readers have received all that `must` be, and returns what was written and what each
    /// of them received.
    pub async fn end(self, must: impl Fn(u64) -> bool) -> Result<(Vec<u64>, Vec<(String, Record)>)> {
        let tried = self.writer.finish().await;
        let last = format!("item-{}", tried - 1);
        let ledger = self.cluster.ledger(|ledger| ledger.iter().any(|event| is_made(event, &last))).await?;
        let written = written(&ledger);
        let wanted: BTreeSet<_> = written.iter().copied().filter(|number| must(*number)).collect();
        let mut records = Vec::new();
        for mut reader in self.readers {
            let has_all = |record: &Record| {
                record.counts().is_ok_and(|counts| wanted.iter().all(|number| counts.contains_key(number)))
            };
            if let Err(error) = reader.until_within(RECOVERY, "all that was written", has_all).await {
                let counts = reader.record().counts()?;
                let missing: Vec<_> = wanted.iter().filter(|number| !counts.contains_key(number)).collect();
                bail!("{error:#}; missing: {missing:?} of {}", wanted.len());
            }
            records.push((reader.name.clone(), reader.finish().await?));
        }
        Ok((written, records))
    }

    /// The end of a story in which our server loses nothing: each reader went on exactly where it was.
    pub async fn end_whole(self) -> Result<Vec<(String, Record)>> {
        let (written, records) = self.end(|_| true).await?;
        for (name, record) in &records {
            println!("{name}: {} of {} in {} watches", record.received.len(), written.len(), record.sessions.len());
            ensure!(missing(&written, record)?.is_empty(), "{name}: missing: {:?}", missing(&written, record)?);
            ensure!(record.gaps.is_empty() && !record.ends().contains(&End::Error(410)), "{name}: a loss was told");
            record.ensure_ordered_and_unique().with_context(|| name.clone())?;
        }
        Ok(records)
    }
}

fn is_made(event: &Value, name: &str) -> bool {
    event["objectRef"]["name"] == name && event["verb"] == "create" && event["stage"] == "ResponseComplete"
}

/// What was written and not received, since the reader's first event.
fn missing(written: &[u64], record: &Record) -> Result<Vec<u64>> {
    let counts = record.counts()?;
    let first = *counts.keys().next().context("nothing was received")?;
    Ok(written.iter().copied().filter(|number| *number >= first && !counts.contains_key(number)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_apiserver_that_is_restarted_costs_no_reader_an_event() -> Result<()> {
    let story = Story::begin().await?;
    for _ in 0..2 {
        story.write(20).await?;
        story.cluster.plane.stop_apiserver().await?;
        story.cluster.plane.start_apiserver().await?;
    }
    story.write(20).await?;
    for (name, record) in story.end_whole().await? {
        ensure!(record.sessions.len() > 2, "{name}: its watch outlived kube-apiserver");
    }
    Ok(())
}

/// What kube-apiserver had not sent yet is lost with it, and nobody can tell readers. The rest is there, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_kube_apiserver_that_is_killed_costs_no_more_than_what_it_had_not_sent() -> Result<()> {
    let story = Story::begin().await?;
    story.write(60).await?;
    story.cluster.plane.kill_apiserver()?;
    let killed = story.writer.tried();
    story.cluster.plane.start_apiserver().await?;
    story.write(20).await?;
    let (written, records) = story.end(|number| number >= killed).await?;
    for (name, record) in records {
        let missing = missing(&written, &record)?;
        println!("{name}: {} of {}, lost: {missing:?}", record.received.len(), written.len());
        // The last batch, which was not sent: `--audit-webhook-batch-max-wait` is 1 s, in which 20 are made.
        ensure!(missing.iter().all(|number| number + 60 > killed), "{name}: {missing:?} are missing, of {killed}");
        ensure!(record.gaps.is_empty() && !record.ends().contains(&End::Error(410)), "{name}: a loss was told");
        record.ensure_ordered_and_unique().context(name)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_terminated_and_started_anew_tells_who_comes_back() -> Result<()> {
    the_server_begins_anew_after(Ending::Terminated).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_started_anew_tells_who_comes_back() -> Result<()> {
    the_server_begins_anew_after(Ending::Killed).await
}

/// The bus is in memory: who comes back to a place of the old one is told that it is gone, and finds with the new one all
/// that kube-apiserver could not deliver meanwhile.
async fn the_server_begins_anew_after(ending: Ending) -> Result<()> {
    let mut story = Story::begin().await?;
    story.write(40).await?;
    let server = story.cluster.server.take().context("it was started")?;
    let ended_from = story.writer.tried();
    match ending {
        Ending::Terminated => ensure!(server.terminate().await?.success(), "it did not end with 0"),
        Ending::Killed => server.kill(),
    }
    // What is asked for from now on cannot have been accepted by it.
    let away_from = story.writer.tried();
    sleep(AWAY).await;
    let server = AuditStream::start(&story.cluster.plane, &[]).await?;
    story.cluster.server = Some(server);
    for reader in &mut story.readers {
        let is_told = |record: &Record| record.ends().contains(&End::Error(410));
        reader.until_within(RECOVERY, "410", is_told).await?;
    }
    story.write(20).await?;
    let (written, records) = story.end(|number| number >= away_from).await?;
    for (name, record) in records {
        let missing = missing(&written, &record)?;
        let ends = record.ends();
        println!("{ending:?}: {name}: {} of {}, lost: {missing:?}, {ends:?}", record.received.len(), written.len());
        // One place that is gone, told once, and before it the end of the watch that the old server served.
        let (first, told) = (ends.first(), ends.iter().filter(|end| **end == End::Error(410)).count());
        ensure!(told == 1, "{name}: a place that is gone was told {told} times: {ends:?}");
        match ending {
            Ending::Terminated => ensure!(first == Some(&End::Clean), "{name}: {ends:?}"),
            Ending::Killed => ensure!(first == Some(&End::Broken), "{name}: {ends:?}"),
        }
        ensure!(record.gaps.is_empty(), "{name}: {:?}", record.gaps);
        // One that is terminated has served all that it accepted. Of a killed one, what it had accepted last may be lost.
        ensure!(
            ending == Ending::Killed || missing.is_empty(),
            "{name}: {missing:?} are missing, and the server ended from {ended_from} to {away_from}"
        );
        ensure!(
            missing.iter().all(|number| (ended_from.saturating_sub(40)..away_from).contains(number)),
            "{name}: {missing:?} are missing, and the server was killed between {ended_from} and {away_from}"
        );
        ensure_doubles_are_retries(&record, ending, ended_from).context(name)?;
    }
    Ok(())
}

/// A batch whose answer died with the old server comes again, and the new one cannot know it: who has read it from both was
/// told in between that their place is gone. Nothing else is received twice.
fn ensure_doubles_are_retries(record: &Record, ending: Ending, ended_from: u64) -> Result<()> {
    let doubled: Vec<_> = record.counts()?.into_iter().filter(|(_, count)| *count > 1).collect();
    ensure!(ending == Ending::Killed || doubled.is_empty(), "received more than once: {doubled:?}");
    ensure!(
        doubled.iter().all(|(number, count)| *count == 2 && number + 40 > ended_from),
        "received more than once: {doubled:?}, and the server ended from {ended_from} on"
    );
    for session in 0..record.sessions.len() {
        let received = record.received.iter().filter(|received| received.session == session).cloned().collect();
        Record { received, gaps: Vec::new(), ..record.clone() }.ensure_ordered_and_unique()?;
    }
    Ok(())
}
