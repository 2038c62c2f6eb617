//! Every number that the server exports: names, units, labels.
//!
//! One struct per room, which the room alone writes to. Labels are words of this program, never text that a peer chose.

use audit_stream_api::object::GapReason;
use audit_stream_bus::Bus;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::attribution::Dispute;
use crate::ingest::truncate::Excess;
use crate::listener::{REFUSALS, Retirement};
use crate::memory::Term;
use crate::rejection::IngestRejection;
use crate::reload::RELOADED;
use crate::watch::ENDS;

/// Content type of [`Metrics::scrape`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    memory_bound: Family<Part, Gauge>,
    /// Of both listeners.
    pub listener: ListenerMetrics,
    /// Of what is read again when it changes.
    pub reload: ReloadMetrics,
    /// Of ingest.
    pub ingest: IngestMetrics,
    /// Of the bus.
    pub bus: BusMetrics,
    /// Of the watches.
    pub watch: WatchMetrics,
    /// Of authentication and authorization.
    pub access: AccessMetrics,
}

/// What became of connections.
#[derive(Debug, Clone, Default)]
pub struct ListenerMetrics {
    /// Connections that never became requests, and guests who made room for newcomers, by listener (`api`, `webhook`) and reason.
    pub refused_connections: Family<ListenerReason, Counter>,
    /// Connections that were told to take no more requests, by listener and reason.
    pub retired_connections: Family<ListenerReason, Counter>,
}

/// What became of files that changed.
#[derive(Debug, Clone, Default)]
pub struct ReloadMetrics {
    /// Times that files were read again, by which (see [`RELOADED`]) and outcome: `success`, `failure`.
    pub reloads: Family<FileOutcome, Counter>,
    /// When the certificate that is served expires, in seconds since 1970, by listener.
    pub expiration: Family<ListenerLabel, Gauge>,
}

/// What arrived from kube-apiserver.
#[derive(Debug, Clone, Default)]
pub struct IngestMetrics {
    /// Batches published.
    pub batches: Counter,
    /// Events published.
    pub events: Counter,
    /// Requests refused, by reason.
    pub rejected_requests: Family<Reason, Counter>,
    /// Bytes of bodies that are being received, as reserved for them.
    pub inflight_bytes: Gauge,
    /// Sources that have sent something.
    pub sources: Gauge,
    /// Bodies that were there already and were accepted without effect.
    pub duplicate_batches: Counter,
    /// Digests of bodies by which duplicates are known.
    pub digests: Gauge,
    /// Digests that made room for others before their time was over: a duplicate of theirs would be published.
    pub evicted_digests: Counter,
    /// Bodies that were accepted and held no list of events.
    pub malformed_batches: Counter,
    /// Events that were dropped alone, by reason.
    pub dropped_events: Family<Reason, Counter>,
    /// Events that were delivered without a part of them, by what was too much: `depth`, `size`.
    pub truncated_events: Family<Reason, Counter>,
    /// Events whose path and objectRef do not agree on a namespace, by reason.
    pub disputed_events: Family<Reason, Counter>,
}

/// What is retained, as of the scrape.
#[derive(Debug, Clone, Default)]
pub struct BusMetrics {
    /// Bytes of retained batches.
    pub retained_bytes: Gauge,
    /// Age of the oldest retained batch.
    pub retained_seconds: Gauge,
}

/// What readers get.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    /// Watches open now.
    pub open: Gauge,
    /// Watches that ended, by reason.
    pub ended: Family<Reason, Counter>,
    /// Bytes of frames handed to readers' connections.
    pub sent_bytes: Counter,
    /// Bytes of frames that are written and not yet taken by a connection, as of the scrape.
    pub frame_bytes: Gauge,
    /// Gaps announced to readers, by reason.
    pub gaps: Family<Reason, Counter>,
}

/// Who was let in.
#[derive(Debug, Clone, Default)]
pub struct AccessMetrics {
    /// `SubjectAccessReview`s sent, by outcome: `allowed`, `denied`, `error`.
    pub reviews: Family<Outcome, Counter>,
    /// Reviews that there was no room for, by what they were for.
    pub turned_away: Family<Purpose, Counter>,
    /// `TokenReview`s sent, by outcome: `allowed`, `denied`, `error`.
    pub token_reviews: Family<Outcome, Counter>,
    /// Requests answered with a refusal, by HTTP status code.
    pub refused_requests: Family<Code, Counter>,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// A word of this program.
    pub reason: &'static str,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Part {
    /// A word of this program.
    pub part: &'static str,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// A word of this program.
    pub outcome: &'static str,
}

/// A label: what a review is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Purpose {
    purpose: &'static str,
}

impl Purpose {
    /// To keep a watch open.
    pub const LEASE: Self = Self { purpose: "lease" };
    /// To answer a request.
    pub const QUESTION: Self = Self { purpose: "question" };
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Code {
    /// An HTTP status code.
    pub code: u16,
}

/// A label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// Which.
    pub listener: &'static str,
}

/// Labels of a file that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FileOutcome {
    /// Which.
    pub file: &'static str,
    /// A word of this program.
    pub outcome: &'static str,
}

/// Labels of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerReason {
    /// Which listener.
    pub listener: &'static str,
    /// A word of this program.
    pub reason: &'static str,
}

/// Counts one in a family labelled by reason.
pub fn count(family: &Family<Reason, Counter>, reason: &'static str) {
    family.get_or_create(&Reason { reason }).inc();
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("audit_stream");
        let (listener, ingest, bus) = (ListenerMetrics::default(), IngestMetrics::default(), BusMetrics::default());
        let (watch, access) = (WatchMetrics::default(), AccessMetrics::default());
        let reload = ReloadMetrics::default();
        exist_from_the_start(&listener, &ingest, &watch, &access, &reload);
        register_input(&mut registry, &listener, &ingest);
        register_reload(&mut registry, &reload);
        register_bus(&mut registry, &bus);
        register_output(&mut registry, &watch, &access);
        let memory_bound = Family::default();
        let help = "What the process takes at most, by part; the sum is printed at start";
        registry.register_with_unit("memory_bound", help, Unit::Bytes, memory_bound.clone());
        Self { registry, memory_bound, listener, reload, ingest, bus, watch, access }
    }

    /// Says what the process takes at most.
    pub fn set_memory_bound(&self, terms: &[Term]) {
        for Term { name, bytes } in terms {
            let gauge = self.memory_bound.get_or_create(&Part { part: name });
            gauge.set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        }
    }

    /// The text of a scrape. What is retained is counted now; `frame_bytes` is what is on its way to readers now.
    pub fn scrape<T>(&self, bus: &Bus<T>, frame_bytes: usize) -> String {
        self.watch.frame_bytes.set(i64::try_from(frame_bytes).unwrap_or(i64::MAX));
        let (bytes, age) = bus.retained();
        self.bus.retained_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.bus.retained_seconds.set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a String takes every character");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A series that is born with its first count is one that no alert on an increase sees.
fn exist_from_the_start(
    listeners: &ListenerMetrics,
    ingest: &IngestMetrics,
    watch: &WatchMetrics,
    access: &AccessMetrics,
    reload: &ReloadMetrics,
) {
    for listener in ["api", "webhook"] {
        for retirement in Retirement::ALL {
            let labels = ListenerReason { listener, reason: retirement.as_str() };
            drop(listeners.retired_connections.get_or_create(&labels));
        }
        for reason in REFUSALS {
            drop(listeners.refused_connections.get_or_create(&ListenerReason { listener, reason }));
        }
    }
    for reason in IngestRejection::REASONS {
        drop(ingest.rejected_requests.get_or_create(&Reason { reason }));
    }
    for reason in ["malformed", "oversize", "own_review"] {
        drop(ingest.dropped_events.get_or_create(&Reason { reason }));
    }
    for excess in Excess::ALL {
        drop(ingest.truncated_events.get_or_create(&Reason { reason: excess.as_str() }));
    }
    for dispute in Dispute::ALL {
        drop(ingest.disputed_events.get_or_create(&Reason { reason: dispute.as_str() }));
    }
    for reason in ENDS {
        drop(watch.ended.get_or_create(&Reason { reason }));
    }
    for gap in GapReason::ALL {
        drop(watch.gaps.get_or_create(&Reason { reason: gap.as_str() }));
    }
    for outcome in ["allowed", "denied", "error"] {
        drop(access.reviews.get_or_create(&Outcome { outcome }));
        drop(access.token_reviews.get_or_create(&Outcome { outcome }));
    }
    for purpose in [Purpose::LEASE, Purpose::QUESTION] {
        drop(access.turned_away.get_or_create(&purpose));
    }
    for file in RELOADED {
        for outcome in ["failure", "success"] {
            drop(reload.reloads.get_or_create(&FileOutcome { file, outcome }));
        }
    }
}

impl ReloadMetrics {
    /// Of a listener's serving certificate.
    pub fn expiration_of(&self, listener: &'static str) -> Gauge {
        self.expiration.get_or_create(&ListenerLabel { listener }).clone()
    }
}

fn register_reload(registry: &mut Registry, reload: &ReloadMetrics) {
    registry.register(
        "certificate_reloads",
        "Times that certificates, keys or CAs were read again because they had changed, by file and outcome",
        reload.reloads.clone(),
    );
    registry.register_with_unit(
        "certificate_expiration_timestamp",
        "When the certificate that is served expires, since 1970, by listener",
        Unit::Seconds,
        reload.expiration.clone(),
    );
}

fn register_input(registry: &mut Registry, listener: &ListenerMetrics, ingest: &IngestMetrics) {
    registry.register(
        "refused_connections",
        "Connections that ended before a request, or made room for newcomers before they were known, by listener and reason",
        listener.refused_connections.clone(),
    );
    registry.register(
        "retired_connections",
        "Connections that were told to take no more requests, by listener and reason",
        listener.retired_connections.clone(),
    );
    let registry = registry.sub_registry_with_prefix("ingest");
    registry.register("batches", "Batches published", ingest.batches.clone());
    registry.register("events", "Events published", ingest.events.clone());
    registry.register("rejected_requests", "Webhook requests refused, by reason", ingest.rejected_requests.clone());
    registry.register_with_unit(
        "inflight",
        "Bytes of bodies that are being received",
        Unit::Bytes,
        ingest.inflight_bytes.clone(),
    );
    registry.register("sources", "Sources that have sent something", ingest.sources.clone());
    register_duplicates(registry, ingest);
    registry.register(
        "malformed_batches",
        "Bodies that were accepted and held no list of events",
        ingest.malformed_batches.clone(),
    );
    registry.register("dropped_events", "Events dropped alone, by reason", ingest.dropped_events.clone());
    registry.register(
        "truncated_events",
        "Events delivered without a part of them, by what was too much",
        ingest.truncated_events.clone(),
    );
    registry.register(
        "disputed_events",
        "Events whose path and objectRef do not agree on a namespace, by reason",
        ingest.disputed_events.clone(),
    );
}

fn register_duplicates(registry: &mut Registry, ingest: &IngestMetrics) {
    registry.register(
        "duplicate_batches",
        "Bodies that were there already and were accepted without effect",
        ingest.duplicate_batches.clone(),
    );
    registry.register("digests", "Digests by which duplicate bodies are known", ingest.digests.clone());
    registry.register(
        "evicted_digests",
        "Digests that made room for others before their time was over",
        ingest.evicted_digests.clone(),
    );
}

fn register_bus(registry: &mut Registry, bus: &BusMetrics) {
    let registry = registry.sub_registry_with_prefix("bus");
    registry.register_with_unit("retained", "Bytes of retained batches", Unit::Bytes, bus.retained_bytes.clone());
    registry.register_with_unit(
        "retained",
        "Age of the oldest retained batch",
        Unit::Seconds,
        bus.retained_seconds.clone(),
    );
}

fn register_output(registry: &mut Registry, watch: &WatchMetrics, access: &AccessMetrics) {
    registry.register("reviews", "SubjectAccessReviews sent, by outcome", access.reviews.clone());
    registry.register("token_reviews", "TokenReviews sent, by outcome", access.token_reviews.clone());
    registry.register(
        "reviews_turned_away",
        "Reviews that the budget had no room for, by what they were for",
        access.turned_away.clone(),
    );
    registry.register(
        "refused_requests",
        "Requests answered with a refusal, by HTTP status code",
        access.refused_requests.clone(),
    );
    let registry = registry.sub_registry_with_prefix("watch");
    registry.register("open", "Watches open now", watch.open.clone());
    registry.register("ended", "Watches that ended, by reason", watch.ended.clone());
    registry.register_with_unit(
        "sent",
        "Bytes of frames handed to readers' connections",
        Unit::Bytes,
        watch.sent_bytes.clone(),
    );
    registry.register_with_unit(
        "frame",
        "Bytes of frames that are written and not yet taken by a connection",
        Unit::Bytes,
        watch.frame_bytes.clone(),
    );
    registry.register("gaps", "Gaps announced to readers, by reason", watch.gaps.clone());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use audit_stream_bus::Config;

    use super::*;

    #[tokio::test]
    async fn what_ingest_counts_is_there_before_it_happens() {
        let bus = Arc::new(Bus::<()>::new(Config { retain_bytes: 1, retain_age: Duration::MAX }, 0));
        let scrape = Metrics::new().scrape(&bus, 0);
        let dropped = ["malformed", "oversize", "own_review"].map(|reason| ("dropped_events_total", reason));
        let truncated = ["depth", "size"].map(|reason| ("truncated_events_total", reason));
        let rejected = IngestRejection::REASONS.map(|reason| ("rejected_requests_total", reason));
        for (name, reason) in dropped.into_iter().chain(truncated).chain(rejected) {
            let series = format!("\naudit_stream_ingest_{name}{{reason=\"{reason}\"}} 0\n");
            assert!(scrape.contains(&series), "{series}");
        }
        for name in ["duplicate_batches_total", "evicted_digests_total", "digests", "sources", "inflight_bytes"] {
            assert!(scrape.contains(&format!("\naudit_stream_ingest_{name} 0\n")), "{name}");
        }
        assert!(scrape.contains("\naudit_stream_watch_gaps_total{reason=\"source\"} 0\n"));
        for purpose in ["lease", "question"] {
            let series = format!("\naudit_stream_reviews_turned_away_total{{purpose=\"{purpose}\"}} 0\n");
            assert!(scrape.contains(&series), "{series}");
        }
    }
}
