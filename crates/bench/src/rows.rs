//! The rows: one file for each kind of question.

mod control_plane;
mod delivery;
mod footprint;
mod ingest;
mod latency;
mod memory;
mod split;
mod wakeup;

use anyhow::Result;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::figure::Figure;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Of ours and the reference, alternating.
    pub rounds: usize,
    /// How many times as much a round does as it has to.
    pub scale: u64,
}

/// Something to measure.
pub struct Row {
    /// A word for it.
    pub name: &'static str,
    /// Measures it.
    pub measure: fn(Effort) -> LocalBoxFuture<'static, Result<Vec<Figure>>>,
}

impl Effort {
    /// What a figure in the documentation takes.
    pub const FULL: Self = Self { rounds: 7, scale: 3 };
    /// What a look takes.
    pub const QUICK: Self = Self { rounds: 3, scale: 1 };
}

/// All of them, in the order of the documentation.
pub const ROWS: &[Row] = &[
    Row { name: "split", measure: |effort| split::against_a_walk(effort).boxed_local() },
    Row { name: "post", measure: |effort| ingest::posts(effort).boxed_local() },
    Row { name: "delivery-http1", measure: |effort| delivery::over_http1(effort).boxed_local() },
    Row { name: "delivery-http2", measure: |effort| delivery::over_http2(effort).boxed_local() },
    Row { name: "selectors", measure: |effort| delivery::of_many_classes(effort).boxed_local() },
    Row { name: "sleeping", measure: |effort| wakeup::sleeping(effort).boxed_local() },
    Row { name: "uninterested", measure: |effort| wakeup::uninterested(effort).boxed_local() },
    Row { name: "idle-watches", measure: |effort| memory::idle(effort).boxed_local() },
    Row { name: "stalled-watches", measure: |effort| memory::stalled(effort).boxed_local() },
    Row { name: "stalled-ingest", measure: |effort| ingest::beside_stalled(effort).boxed_local() },
    Row { name: "latency", measure: |effort| latency::of_single_events(effort).boxed_local() },
    Row { name: "control-plane", measure: |effort| control_plane::through_kube_apiserver(effort).boxed_local() },
    Row { name: "footprint", measure: |effort| footprint::idle(effort).boxed_local() },
];
