//! What the server takes before anybody asks it for anything.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::Effort;
use super::memory::MEGABYTE;
use crate::figure::{Figure, Goal};
use crate::stand::{Stand, sibling};

/// Until everything that happens at start has happened.
const SETTLED: Duration = Duration::from_secs(2);

pub(super) async fn idle(effort: Effort) -> Result<Vec<Figure>> {
    let mut resident = Vec::new();
    for _ in 0..effort.rounds {
        let stand = Stand::start().await?;
        sleep(SETTLED).await;
        resident.push(stand.resident_bytes()? as f64 / MEGABYTE);
    }
    let binary = sibling("audit-stream")?.metadata()?.len() as f64 / MEGABYTE;
    Ok(vec![
        Figure::absolute("resident memory of the idle server, MB", &resident, Some(Goal::AtMost(20.0))),
        Figure::absolute("stripped release binary, MB", &[binary], Some(Goal::AtMost(20.0))),
    ])
}
