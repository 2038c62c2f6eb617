//! What the process takes at most, from the numbers that an operator sets: printed at start, and a metric for each term.
//!
//! It bounds nothing itself. Each term is kept by its room, and stands here as that room's own arithmetic. Not in it are the
//! headers of requests: up to 64 KiB each while it is answered, and of a watch what names its reader.

use tracing::info;

use crate::ingest::batch::MAX_EVENT_LISTS_BYTES;
use crate::ingest::duplicates;
use crate::listener;
use crate::serve::Config;
use crate::watch;

/// Program text that is in use, runtimes, discovery documents, caches of reviews (9 MiB at most, see `authz`) and of tokens
/// (8 MiB, see `authn::tokens`), and what the allocator keeps. An idle server takes less than half of it.
const BASE_BYTES: u64 = 48 << 20;

/// How many terms there are.
pub const TERMS: usize = 8;

/// One term of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Its word in the metric and in the log.
    pub name: &'static str,
    /// At most.
    pub bytes: u64,
}

/// The terms, for this configuration.
pub fn bound(config: &Config) -> [Term; TERMS] {
    let body = config.ingest.max_body_bytes;
    let batch = config.ingest.max_batch_bytes();
    let watches = config.watch.limits.watches as u64;
    let connections = config.all_connections() as u64;
    let term = |name, bytes| Term { name, bytes };
    [
        // Bodies that are being received or read.
        term("in_flight", config.ingest.max_inflight_bytes),
        // One at a time is made into a batch: as text, where it is none each byte becomes three, what of the batch is not in that,
        // the batch itself, and the lists of one event.
        term("processing", 3 * body + 2 * batch + MAX_EVENT_LISTS_BYTES as u64),
        // The newest batch stays even if it alone is over the bound.
        term("retained", (config.retain.retain_bytes as u64).max(batch)),
        // What classes keep, what connections send and what readers pin who take nothing.
        term("frames", config.watch.frame_bytes as u64),
        term("watches", watches * watch::WATCH_BYTES),
        term("connections", connections * listener::CONNECTION_BYTES),
        term("deduplication", duplicates::MAX_BYTES as u64),
        term("base", BASE_BYTES),
    ]
}

/// Logs the terms and their sum.
pub fn print(terms: &[Term]) {
    let sum: u64 = terms.iter().map(|term| term.bytes).sum();
    let formula: Vec<_> = terms.iter().map(|term| format!("{} {}", term.name, term.bytes)).collect();
    info!(bytes = sum, formula = formula.join(" + "), "memory is bounded");
}
