//! The clock of the server's machine is stepped: permissions, order and places do not depend on what time it is.
//!
//! Only the server's clock is: it runs with `stepped_clock.c` preloaded, and the machine's own clock is left alone.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::Client;
use jiff::Timestamp;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::sleep;

use crate::real_cluster::Cluster;
use crate::real_readers::{End, Follower, Load, Received, Record};
use crate::real_revocation::{LEASE, ON_THE_WAY, is_last, load_path, lose_permission};

const HOUR: i64 = 60 * 60;
/// How far the clock may be from what it was set to, for a machine that is busy.
const CLOSE: i64 = 120;

/// A clock that a test sets.
struct Clock {
    library: String,
    path: String,
    file: File,
}

impl Clock {
    /// Compiles the shim. A C compiler is there: the TLS library needs one too.
    async fn build(directory: &Path) -> Result<Self> {
        let (library, path) = (directory.join("stepped_clock.so"), directory.join("offset"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stepped_clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
        let output = compiler.output().await.context("there is no C compiler: install one as `cc`")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        let mut file = File::create(&path)?;
        file.write_all(offset(0).as_bytes())?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("the directory's name is no text");
        Ok(Self { library: text(&library)?, path: text(&path)?, file })
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", &self.library), ("STEPPED_CLOCK", &self.path)]
    }

    /// From now on the server's clock is so many seconds ahead. Written over what was there in one call, so that nobody reads
    /// half of it.
    fn set(&mut self, seconds: i64) -> Result<()> {
        self.file.rewind()?;
        Ok(self.file.write_all(offset(seconds).as_bytes())?)
    }
}

fn offset(seconds: i64) -> String {
    format!("{seconds:+011}\n")
}

/// Whether a place is about so many seconds ahead of the machine's clock: it is the microseconds since 1970, or the one behind
/// its predecessor.
fn is_about(place: u64, ahead: i64) -> bool {
    let seconds = i64::try_from(place / 1_000_000).unwrap_or(i64::MAX);
    (seconds - now() - ahead).abs() < CLOSE
}

/// The machine's own clock, in seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_stepped_changes_nothing_but_the_places() -> Result<()> {
    let mut cluster = Cluster::without_server().await?;
    let mut clock = Clock::build(cluster.plane.directory()).await?;
    cluster.serve(&["--logging-format=json"], &clock.environment()).await?;
    cluster.namespace("shop").await?;
    let admin = cluster.client("root", &["system:masters"]).await?;
    let load = Load::start(cluster.webhook().await?, "shop");
    cluster.allow(&admin, "keeper", "shop").await?;
    let mut keeper = Follower::start("keeper", cluster.client("keeper", &[]).await?, &load_path("shop"));
    keeper.until_more().await?;
    ensure!(is_about(last_place(&keeper)?, 0), "the clock is not right to begin with");

    for (phase, seconds) in [("ahead", HOUR), ("back", -HOUR), ("right", 0)] {
        clock.set(seconds)?;
        ensure_it_bites(&cluster, &admin, seconds).await.context(phase)?;
        // Places go ahead with the first step, and cannot go back.
        let is_far = |record: &Record| record.received.last().is_some_and(|last| is_about(last.place, HOUR));
        keeper.until("a place an hour ahead", is_far).await.context(phase)?;
        keeper.until_more().await?;
        ensure!(is_about(last_place(&keeper)?, HOUR), "{phase}: {} is no place an hour ahead", last_place(&keeper)?);
        let lasted = lose_permission(&cluster, &admin, &load, format!("loser-{phase}"), Duration::from_secs(1)).await?;
        println!("{phase}: the watch ended {lasted:?} after permission was withdrawn");
        // The lease that was there before the step is over by now, had it not been renewed.
        sleep(LEASE + ON_THE_WAY - lasted.min(LEASE)).await;
        ensure!(keeper.record().ends().is_empty(), "{phase}: {:?}", keeper.record().ends());
        resume_in_the_middle(&cluster, &keeper).await.context(phase)?;
    }

    let sent = load.finish().await?;
    keeper.until("the end of the load", |record| is_last(record, sent)).await?;
    let from_before = last_place(&keeper)?;
    keeper.finish().await?.ensure_whole(sent)?;
    begins_anew_below(cluster, clock, from_before).await
}

fn last_place(follower: &Follower) -> Result<u64> {
    Ok(follower.record().received.last().context("nothing was received")?.place)
}

/// What the server logs has its own time.
async fn ensure_it_bites(cluster: &Cluster, admin: &Client, seconds: i64) -> Result<()> {
    // A watch that opens is logged.
    let mut visitor = Follower::start("root", admin.clone(), &load_path("shop"));
    visitor.until_open().await?;
    visitor.finish().await?;
    let log = cluster.server.as_ref().context("it runs")?.log();
    let line = log.lines().rfind(|line| line.contains("watch opened")).context("no watch was logged")?;
    let line: Value = serde_json::from_str(line)?;
    let logged = line["timestamp"].as_str().context("a log line has a time")?;
    let ahead = logged.parse::<Timestamp>()?.as_second() - now();
    ensure!((ahead - seconds).abs() < CLOSE, "its log is {ahead} s ahead: the clock was not stepped");
    Ok(())
}

/// Somebody who goes on from a place of before the step receives exactly what followed it.
async fn resume_in_the_middle(cluster: &Cluster, keeper: &Follower) -> Result<()> {
    let received = keeper.record().received.clone();
    let middle = received.len() / 2;
    let path = format!("{}&resourceVersion={}", load_path("shop"), received[middle].place);
    let mut back = Follower::start("keeper-back", cluster.client("keeper", &[]).await?, &path);
    let rest = &received[middle + 1..];
    back.until("all that followed", |record| record.received.len() >= rest.len()).await?;
    let record = back.finish().await?;
    let what = |received: &Received| (received.place, received.what.clone());
    let (there, here): (Vec<_>, Vec<_>) =
        (rest.iter().map(what).collect(), record.received.iter().take(rest.len()).map(what).collect());
    ensure!(record.ends().is_empty() && there == here, "it is not what the other one received");
    Ok(())
}

/// The server starts anew while its clock is behind the places that it once issued: who comes back with one is told.
async fn begins_anew_below(mut cluster: Cluster, mut clock: Clock, place: u64) -> Result<()> {
    clock.set(-HOUR)?;
    let server = cluster.server.take().context("it runs")?;
    ensure!(server.terminate().await?.success(), "it did not end with 0");
    cluster.serve(&[], &clock.environment()).await?;
    let load = Load::start(cluster.webhook().await?, "shop");
    let path = load_path("shop");
    let mut keeper = Follower::start("keeper", cluster.client("keeper", &[]).await?, &path);
    keeper.until_more().await?;
    ensure!(is_about(last_place(&keeper)?, -HOUR), "places do not begin an hour behind");
    let old = format!("{path}&resourceVersion={place}");
    let mut back = Follower::start("keeper-back", cluster.client("keeper", &[]).await?, &old);
    back.until("410", |record: &Record| !record.ends().is_empty()).await?;
    let record = back.finish().await?;
    ensure!(record.ends().iter().all(|end| *end == End::Error(410)), "{:?}", record.ends());
    let sent = load.finish().await?;
    keeper.until("the end of the load", |record| is_last(record, sent)).await?;
    keeper.finish().await?.ensure_whole(sent)
}
