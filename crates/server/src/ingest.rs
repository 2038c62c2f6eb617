//! From kube-apiserver's webhook to the bus: bounds, splitting, attribution, one publication per batch.
//!
//! Every answer but 200 makes kube-apiserver send the whole batch again, five times, and then drop it. So what is wrong
//! with an event costs that event alone, and a refusal is kept for what another try can mend or an operator has to see.
//! Nothing here waits for a reader. Source: `k8s.io/apiserver/plugin/pkg/audit/webhook/webhook.go`.

pub mod batch;
mod split;
mod truncate;

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::attribution::{Attribution, attribute};
use crate::certs;
use crate::listener::Peer;
use crate::metrics::{IngestMetrics, count};
use crate::rejection::IngestRejection;
use crate::wire::{self, Body};
use batch::{Batch, BatchBuilder};
use split::{Item, split, too_deep};
use truncate::truncate;

/// kube-apiserver gives a POST 30 s; a body that takes longer than this has no time left to be answered.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

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

/// Takes batches.
#[derive(Debug)]
pub struct Ingest {
    config: Config,
    bus: Arc<Bus<Batch>>,
    /// One permit for each byte.
    inflight: Arc<Semaphore>,
    /// The user name under which this server asks for reviews, once it is known.
    own_username: Arc<OnceLock<String>>,
    metrics: IngestMetrics,
}

impl Ingest {
    /// An ingest that publishes to `bus` and leaves out the reviews that `own_username` asks for.
    pub fn new(
        config: Config,
        bus: Arc<Bus<Batch>>,
        own_username: Arc<OnceLock<String>>,
        metrics: IngestMetrics,
    ) -> Self {
        let permits = usize::try_from(config.max_inflight_bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { config, bus, inflight: Arc::new(Semaphore::new(permits)), own_username, metrics }
    }

    /// Answers one request of the webhook's listener.
    pub async fn handle(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        match self.receive(peer, request).await {
            Ok((body, _budget)) => {
                self.publish(&body);
                Response::new(wire::whole(Bytes::new()))
            }
            Err(rejection) => {
                let reason = rejection.reason();
                warn!(address = %peer.address, reason, "webhook request refused");
                count(&self.metrics.rejected_requests, reason);
                rejection.into_response()
            }
        }
    }

    /// The body, and its part of the budget.
    async fn receive(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), IngestRejection> {
        check_path(request.uri().path())?;
        if request.method() != Method::POST {
            return Err(IngestRejection::Method);
        }
        self.check_sender(peer)?;
        if request.headers().contains_key(CONTENT_ENCODING) {
            return Err(IngestRejection::ContentEncoding);
        }
        let limit = self.config.max_body_bytes;
        // hyper has checked the header; it is absent from chunked and from some HTTP/2 bodies, which may then be of any size.
        let declared = request.headers().get(CONTENT_LENGTH).and(request.body().size_hint().exact());
        if declared.is_some_and(|length| length > limit) {
            return Err(self.too_large());
        }
        let reserved = u32::try_from(declared.unwrap_or(limit)).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.inflight).try_acquire_many_owned(reserved).map_err(|_| IngestRejection::Busy)?;
        let body = timeout(BODY_TIMEOUT, self.read(request.into_body(), declared));
        let body = body.await.unwrap_or(Err(IngestRejection::TooSlow))?;
        Ok((body, budget))
    }

    fn check_sender(&self, peer: &Peer) -> Result<(), IngestRejection> {
        let names = peer.certificates.first().map(certs::names).unwrap_or_default();
        let allowed = names.iter().any(|name| self.config.allowed_names.contains(name));
        if allowed { Ok(()) } else { Err(IngestRejection::Sender) }
    }

    async fn read(&self, mut body: Incoming, declared: Option<u64>) -> Result<Vec<u8>, IngestRejection> {
        let limit = usize::try_from(self.config.max_body_bytes).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
        while let Some(frame) = body.frame().await {
            // hyper reports an error where a body ends before its declared length.
            let frame = frame.map_err(|_| IngestRejection::Incomplete)?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(self.too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    /// kube-apiserver will give this batch up: readers are told that there was one.
    fn too_large(&self) -> IngestRejection {
        let mut batch = BatchBuilder::default();
        batch.note_lost(GapReason::Oversize);
        self.append(batch);
        IngestRejection::BodyTooLarge(self.config.max_body_bytes)
    }

    fn publish(&self, body: &[u8]) {
        let text = split::text(body);
        let mut batch = BatchBuilder::with_capacity(text.len());
        if let Err(error) = split(&text, |item| self.take(item, &mut batch)) {
            warn!(%error, body_bytes = body.len(), "a batch is malformed, none of it is delivered");
            self.metrics.malformed_batches.inc();
            batch = BatchBuilder::default();
            batch.note_lost(GapReason::Malformed);
        }
        self.append(batch);
    }

    fn take(&self, item: Item<'_>, batch: &mut BatchBuilder) {
        match item {
            Item::Event(event, json) => self.append_event(&event, json, batch),
            Item::TooDeep(mut event, json) => {
                let shorter = truncate(&mut event, json);
                if too_deep(&shorter) {
                    self.drop_malformed(batch);
                } else {
                    self.metrics.truncated_events.inc();
                    self.append_event(&event, &shorter, batch);
                }
            }
            Item::Malformed => self.drop_malformed(batch),
        }
    }

    fn drop_malformed(&self, batch: &mut BatchBuilder) {
        count(&self.metrics.dropped_events, "malformed");
        batch.note_lost(GapReason::Malformed);
    }

    fn append_event(&self, event: &Event<'_>, json: &str, batch: &mut BatchBuilder) {
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
        batch.push(event, json, namespace);
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

    fn append(&self, batch: BatchBuilder) {
        if batch.is_empty() {
            return;
        }
        let batch = batch.build();
        let (events, bytes) = (batch.len(), batch.bytes());
        self.bus.publish(unix_micros(), batch.places(), bytes, batch);
        self.metrics.batches.inc();
        self.metrics.events.inc_by(events as u64);
        debug!(events, bytes, "batch published");
    }
}

/// Microseconds since 1970, by the wall clock.
pub(crate) fn unix_micros() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

fn check_path(path: &str) -> Result<(), IngestRejection> {
    let served = match path.strip_prefix("/webhook") {
        Some("") => true,
        Some(source) => source.strip_prefix('/').is_some_and(|source| {
            (1..=MAX_SOURCE_BYTES).contains(&source.len())
                && source.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }),
        None => false,
    };
    if served { Ok(()) } else { Err(IngestRejection::Path) }
}
