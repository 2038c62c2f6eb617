//! The server as a process: what it does when it is told to end, and when its flags are wrong.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, timeout};

use crate::real_cluster::{ARRIVAL, Cluster};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_watches_cleanly_and_the_process_with_0() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.namespace("shop").await?;
    let alice = cluster.person("alice")?;
    cluster.let_watch(&alice, "shop").await?;
    let mut reading = alice.watch("shop")?;
    reading.until_own_watch(&alice).await?;

    let from = Instant::now();
    let server = cluster.server.take().context("it was started")?;
    let status = server.terminate().await?;
    assert!(status.success(), "{status}");
    assert!(from.elapsed() < Duration::from_secs(30), "it took {:?}", from.elapsed());
    // kubectl ends with success where the stream ended, and with an error where the connection broke.
    let (status, complaint) = timeout(ARRIVAL, reading.finish()).await??;
    assert!(status.success(), "{status}: {complaint}");
    Ok(())
}
