//! From kube-apiserver's webhook to the bus: bounds, splitting, attribution, one publication per batch.
//!
//! Every answer but 200 makes kube-apiserver send the whole batch again, five times, and then drop it. So what is wrong
//! with an event costs that event alone, and a refusal is kept for what another try can mend or an operator has to see.
//! Nothing here waits for a reader. Source: `k8s.io/apiserver/plugin/pkg/audit/webhook/webhook.go`.

mod announced;
pub mod batch;
pub mod duplicates;
mod inflight;
pub mod sources;
pub mod split;
pub mod truncate;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use audit_stream_api::audit::Event;
use audit_stream_api::object::GapReason;
use audit_stream_bus::Bus;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::attribution::{Attribution, attribute, creates_namespace};
use crate::certs::ClientCa;
use crate::listener::{Exchange, Peer};
use crate::metrics::{IngestMetrics, count};
use crate::rejection::IngestRejection;
use crate::wire::{self, Body};
use announced::Announced;
use batch::{Batch, BatchBuilder, compact};
use duplicates::Digests;
use inflight::InFlight;
use sources::{Source, Sources};
use split::{Item, split};
use truncate::{Excess, MAX_EVENT_BYTES, truncate};

/// kube-apiserver gives a POST 30 s; a body that takes longer than this has no time left to be answered.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// From a body's end to its publication. Together with [`BODY_TIMEOUT`] it leaves 5 of kube-apiserver's 30 s for the answer: one
/// that came too late would be taken for a failure, and the batch be sent again.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);

/// A source's name in the path, as long as a DNS label.
const MAX_SOURCE_BYTES: usize = 63;

/// What may be sent, and by whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// Common names or DNS names, of which a sender's certificate must have one.
    pub allowed_names: Vec<String>,
    /// Of one body. At most [`batch::MAX_BODY_BYTES`].
    pub max_body_bytes: u64,
    /// Of all bodies that are being received together.
    pub max_inflight_bytes: u64,
}

impl Config {
    /// Of one batch. An ordinary one takes one and a half times its body; what would make it take more than three times the
    /// largest body, and one event and the names of namespaces more, is lost. No kube-apiserver sends such: it takes bodies
    /// made of nothing but tiny events, or of bytes that are no text.
    pub fn max_batch_bytes(&self) -> u64 {
        // An event that creates a namespace has 190 bytes at least besides the name. Of those that came too late the name is
        // kept, and 12 bytes.
        self.enough_batch_bytes() + self.max_body_bytes / 2 + batch::max_bytes(MAX_EVENT_BYTES) as u64
    }

    /// A batch that has as much takes no more events. One that had less took one more, of [`MAX_EVENT_BYTES`] at most.
    fn enough_batch_bytes(&self) -> u64 {
        3 * self.max_body_bytes
    }
}

/// Takes batches.
#[derive(Debug)]
pub struct Ingest {
    config: Config,
    client_ca: Arc<ClientCa>,
    bus: Arc<Bus<Batch>>,
    /// Cancelled, nothing is taken any more.
    closed: CancellationToken,
    inflight: InFlight,
    sources: Sources,
    digests: Digests,
    announced: Announced,
    /// The user name under which this server asks for reviews, once it is known.
    own_username: Arc<OnceLock<String>>,
    metrics: IngestMetrics,
}

impl Ingest {
    /// An ingest that believes those for whom `client_ca` vouches, publishes to `bus` and leaves out the reviews that
    /// `own_username` asks for, until `closed` is cancelled.
    pub fn new(
        config: Config,
        client_ca: Arc<ClientCa>,
        bus: Arc<Bus<Batch>>,
        closed: CancellationToken,
        own_username: Arc<OnceLock<String>>,
        metrics: IngestMetrics,
    ) -> Self {
        Self {
            inflight: InFlight::new(config.max_inflight_bytes, metrics.inflight_bytes.clone()),
            sources: Sources::new(metrics.sources.clone()),
            digests: Digests::new(metrics.clone()),
            announced: Announced::default(),
            config,
            client_ca,
            bus,
            closed,
            own_username,
            metrics,
        }
    }

    /// Answers one request of the webhook's listener.
    pub async fn handle(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        let exchange = request.extensions().get::<Exchange>().expect("each request of a listener has one").clone();
        match self.receive(peer, request).await {
            Ok(()) => Response::new(wire::whole(Bytes::new())),
            Err(rejection @ IngestRejection::Untrusted) => {
                // On a fresh connection the sender can show what it has now.
                exchange.becomes_untrusted();
                self.refuse(peer.address, rejection)
            }
            Err(rejection) => self.refuse(peer.address, rejection),
        }
    }

    async fn receive(&self, peer: &Peer, request: Request<Incoming>) -> Result<(), IngestRejection> {
        let source = source_name(request.uri().path())?;
        if request.method() != Method::POST {
            return Err(IngestRejection::Method);
        }
        let source = self.sources.claim(source, self.sender(peer)?)?;
        if request.headers().contains_key(CONTENT_ENCODING) {
            return Err(IngestRejection::ContentEncoding);
        }
        let limit = self.config.max_body_bytes;
        // hyper has checked the header; it is absent from chunked and from some HTTP/2 bodies, which may then be of any size.
        let declared = request.headers().get(CONTENT_LENGTH).and(request.body().size_hint().exact());
        let expected = declared.unwrap_or(limit);
        if expected > limit {
            return Err(IngestRejection::BodyTooLarge(limit));
        }
        let _reservation = self.inflight.reserve(expected).ok_or(IngestRejection::Busy)?;
        let body = timeout(BODY_TIMEOUT, self.read(request.into_body(), expected));
        let body = body.await.unwrap_or(Err(IngestRejection::TooSlow))?;
        // Some of the watches are over already. The sender will find another server, and that one readers who go on.
        if self.closed.is_cancelled() {
            return Err(IngestRejection::ShuttingDown);
        }
        self.publish(source, body, Instant::now())
    }

    /// Who sends. The handshake has verified the certificate, but that may have been long ago, and by another CA.
    fn sender(&self, peer: &Peer) -> Result<&str, IngestRejection> {
        if !peer.is_vouched_for_by(&self.client_ca) {
            return Err(IngestRejection::Untrusted);
        }
        self.allowed_name(peer)
    }

    /// The allowed name that the sender's certificate has; of several the first that the flag lists, in whatever order the
    /// certificate has them.
    fn allowed_name(&self, peer: &Peer) -> Result<&str, IngestRejection> {
        let names = peer.names();
        let allowed = self.config.allowed_names.iter().find(|allowed| names.contains(allowed));
        allowed.map(String::as_str).ok_or(IngestRejection::Sender)
    }

    /// Reads a body that was expected, and is reserved, to be so long. What is not declared may take the limit, and room for
    /// that at once: the system gives memory as it is written to, and a buffer that grows would be there twice.
    async fn read(&self, mut body: Incoming, expected: u64) -> Result<Vec<u8>, IngestRejection> {
        let limit = self.config.max_body_bytes;
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(usize::MAX));
        while let Some(frame) = body.frame().await {
            // hyper reports an error where a body ends before its declared length.
            let frame = frame.map_err(|_| IngestRejection::Incomplete)?;
            let Ok(data) = frame.into_data() else { continue };
            if (bytes.len() + data.len()) as u64 > limit {
                return Err(IngestRejection::BodyTooLarge(limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    /// Where kube-apiserver will try again in vain, its batch is lost for sure, and readers are told.
    fn refuse(&self, address: SocketAddr, rejection: IngestRejection) -> Response<Body> {
        let reason = rejection.reason();
        warn!(%address, reason, "webhook request refused");
        count(&self.metrics.rejected_requests, reason);
        if let Some(gap) = rejection.gap().filter(|_| self.announced.is_due(reason)) {
            let mut batch = BatchBuilder::default();
            batch.note_lost(gap);
            self.append(batch.build());
        }
        rejection.into_response()
    }

    /// Publishes a body that has been whole since `ended`, unless it has been published already. Nothing of it is published
    /// too late: kube-apiserver may have stopped waiting for the answer.
    fn publish(&self, source: Source, body: Vec<u8>, ended: Instant) -> Result<(), IngestRejection> {
        self.digests.once(self.digests.digest(source, &body), || {
            let batch = self.batch(&body);
            drop(body);
            if ended.elapsed() > PUBLISH_DEADLINE {
                return Err(IngestRejection::Late);
            }
            if let Some(batch) = batch {
                self.append(batch);
            }
            Ok(())
        })
    }

    /// What is in a body, which is neither remembered nor published; `None` if that is nothing for a reader to learn.
    pub fn batch(&self, body: &[u8]) -> Option<Batch> {
        let text = split::text(body);
        let mut batch = BatchBuilder::default();
        if let Err(error) = split(&text, |item| self.take(item, &mut batch)) {
            warn!(%error, body_bytes = body.len(), "a batch is malformed, none of it is delivered");
            self.metrics.malformed_batches.inc();
            batch = BatchBuilder::default();
            batch.note_lost(GapReason::Malformed);
        }
        if batch.is_empty() {
            return None;
        }
        let batch = batch.build();
        debug_assert!(batch.bytes() <= batch::max_bytes(body.len()), "{} of {}", batch.bytes(), body.len());
        Some(batch)
    }

    fn take<'a>(&self, item: Item<'_, 'a>, batch: &mut BatchBuilder<'a>) {
        match item {
            Item::Event(event, _) if batch.bytes() as u64 >= self.config.enough_batch_bytes() => {
                count(&self.metrics.dropped_events, "oversize");
                batch.note_lost(GapReason::Oversize);
                if let Attribution::Namespace(namespace) = attribute(event) {
                    note_creation(event, namespace, batch);
                }
            }
            Item::Event(event, json) => self.append_event(event, json, batch),
            Item::Malformed => self.drop_malformed(batch),
        }
    }

    fn drop_malformed(&self, batch: &mut BatchBuilder<'_>) {
        count(&self.metrics.dropped_events, "malformed");
        batch.note_lost(GapReason::Malformed);
    }

    fn append_event<'a>(&self, event: &Event<'_>, json: &'a str, batch: &mut BatchBuilder<'a>) {
        if self.is_own_review(event) {
            count(&self.metrics.dropped_events, "own_review");
            return;
        }
        let namespace = match attribute(event) {
            Attribution::Namespace(namespace) => Some(namespace),
            Attribution::ClusterScoped => None,
            Attribution::Disputed(dispute) => {
                count(&self.metrics.disputed_events, dispute.as_str());
                None
            }
        };
        if let Some(namespace) = namespace {
            // Of the whole event: what is cut off the query of one that is too long could say that it was a dry run.
            note_creation(event, namespace, batch);
        }
        match Excess::of(json) {
            // A pretty-printing sender's.
            None if event.has_line_breaks => self.append_compact(json, namespace, batch),
            None => batch.push(event, json, namespace),
            Some(excess) => self.append_truncated(json, excess, namespace, batch),
        }
    }

    fn append_compact(&self, json: &str, namespace: Option<&str>, batch: &mut BatchBuilder<'_>) {
        let json = compact(json);
        match Event::parse(&json) {
            Ok(event) => batch.push_made(&event, &json, namespace),
            Err(_) => self.drop_malformed(batch),
        }
    }

    fn append_truncated(&self, json: &str, excess: Excess, namespace: Option<&str>, batch: &mut BatchBuilder<'_>) {
        let shorter = compact(&truncate(json));
        match (Event::parse(&shorter), Excess::of(&shorter)) {
            (Ok(event), None) => {
                count(&self.metrics.truncated_events, excess.as_str());
                batch.push_made(&event, &shorter, namespace);
            }
            (Ok(event), Some(Excess::Size)) => {
                count(&self.metrics.dropped_events, "oversize");
                if (batch.bytes() + 4 * shorter.len()) as u64 <= self.config.enough_batch_bytes() {
                    batch.push_dropped(&event, namespace, GapReason::Oversize);
                } else {
                    batch.note_lost(GapReason::Oversize);
                }
            }
            (Ok(_), Some(Excess::Depth)) | (Err(_), _) => self.drop_malformed(batch),
        }
    }

    /// Whether the event is this server's own review, which would come back as an event for as long as anybody watches.
    fn is_own_review(&self, event: &Event<'_>) -> bool {
        let (Some(own), Some(reference)) = (self.own_username.get(), &event.object_ref) else { return false };
        let group = reference.api_group.as_deref().unwrap_or_default();
        let resource = reference.resource.as_deref().unwrap_or_default();
        *event.user.username == **own
            && event.impersonated_user.is_none()
            && matches!(
                (group, resource),
                ("authorization.k8s.io", "subjectaccessreviews")
                    | ("authentication.k8s.io", "tokenreviews" | "selfsubjectreviews")
            )
    }

    fn append(&self, batch: Batch) {
        let bytes = batch.bytes();
        let events = batch.events().filter(|event| event.dropped().is_none()).count();
        self.bus.publish(unix_micros(), batch.places(), bytes, batch);
        self.metrics.batches.inc();
        self.metrics.events.inc_by(events as u64);
        debug!(events, bytes, "batch published");
    }
}

/// Notes where a namespace begins, if the event says that it was created: what came before is not for the new owner.
fn note_creation(event: &Event<'_>, namespace: &str, batch: &mut BatchBuilder<'_>) {
    if creates_namespace(event) {
        batch.note_creation(namespace);
    }
}

/// Microseconds since 1970, by the wall clock.
pub(crate) fn unix_micros() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

/// The source that the path of a request names, if it names one.
fn source_name(path: &str) -> Result<Option<&str>, IngestRejection> {
    let behind = path.strip_prefix("/webhook").ok_or(IngestRejection::Path)?;
    if behind.is_empty() {
        return Ok(None);
    }
    let is_name = |name: &&str| {
        (1..=MAX_SOURCE_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    behind.strip_prefix('/').filter(is_name).map(Some).ok_or(IngestRejection::Path)
}

#[cfg(test)]
mod tests;
