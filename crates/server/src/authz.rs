//! What they may do: a `SubjectAccessReview` for every request, and the lease of a watch that stays open.
//!
//! An unknown answer is no. Answers are cached by user and attributes, allow and deny alike; errors never are; whoever
//! asks the same at the same time shares one review, and only a review that is really sent takes room of the budget. Names and
//! selectors are never sent, so that narrower grants do not match. Source: `k8s.io/apiserver/plugin/pkg/authorizer/webhook/webhook.go`.

mod lease;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use k8s_openapi::api::authorization::v1 as upstream;
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{PostParams, Request};
use kube::{Client, Resource as _};
use quick_cache::UnitWeighter;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::authn::User;
use crate::metrics::{AccessMetrics, Outcome};
use crate::review_budget::{Asker, Exhausted, ReviewBudget, Turn};
use crate::review_cache::{Answer, Key, REVIEW_TIMEOUT, ReviewCache};
pub use lease::Lease;

/// Members of this group may do everything, without being asked about, as upstream.
const SUPERUSERS: &str = "system:masters";

/// Upstream's size. An entry is a 32-byte key, a time and, of a denial, its reason: 8192 × (1 KiB + some) is 9 MiB at most.
const CACHED_ANSWERS: usize = 8192;

/// The longest reason of a denial that is kept and told: RBAC's are a sentence.
const MAX_REASON_BYTES: usize = 1024;

/// What opens a watch was asked for no longer ago, so that its lease is not to be renewed at once: reviews of leases are not charged to
/// their user, and who opens and leaves without end would have as many as they like. So a user's twenty watches have five a second.
const OPENING_AGE: Duration = Duration::from_secs(4);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attributes {
    /// Something of an API, ours or another. In a box, because every refusal may have one in it.
    Resource(Box<ResourceAttributes>),
    /// Any other path.
    NonResource {
        /// The method in lower case.
        verb: String,
        /// Decoded.
        path: String,
    },
}

/// What is asked for of an API, as upstream's `RequestInfo` says it; empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceAttributes {
    /// Upstream's request verb.
    pub verb: &'static str,
    /// The API group; the core group is empty.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The plural name.
    pub resource: String,
    /// What of it.
    pub subresource: String,
    /// Where it is.
    pub namespace: String,
    /// Which one, for people alone: the reviewer is never told.
    pub name: String,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The reviewer said no, for this reason or none.
    Denied(String),
    /// The reviewer did not say.
    Unknown,
    /// The reviewer cannot be asked now, because so much is asked already. Never said of a lease, which is tried again.
    Exhausted,
}

/// What a review is for, which decides what room it finds.
#[derive(Debug, Clone, Copy)]
enum For<'a> {
    /// Something new, of this user's.
    Question(&'a str),
    /// A watch that is open.
    Lease,
}

/// Leave to do what was asked for. For a request that is answered at once it is enough to have it; a watch makes it a
/// [`Lease`].
#[derive(Debug, Clone)]
pub struct Grant {
    /// `None`: nobody has to be asked again.
    reviewed: Option<(Arc<ReviewRequest>, Instant)>,
}

/// How long answers are remembered.
#[derive(Debug, Clone, Copy)]
pub struct CacheTtl {
    /// Of an allowed request.
    pub authorized: Duration,
    /// Of a denied one.
    pub unauthorized: Duration,
}

/// Asks kube-apiserver.
pub struct Authorizer {
    client: Client,
    reviews: Request,
    cache: ReviewCache<Denial, UnitWeighter>,
    ttl: CacheTtl,
    budget: Arc<ReviewBudget>,
    /// Of leases. Each ends by itself, with its review.
    renewals: TaskTracker,
    metrics: AccessMetrics,
}

/// A question as it is sent. A watch keeps it for as long as it is open, and as text it takes a third of what its parts take.
#[derive(Debug)]
struct ReviewRequest {
    body: Box<[u8]>,
    /// SHA-256 of it.
    key: Key,
}

/// `None`: allowed. Else why not.
type Denial = Option<Arc<str>>;

type Review = Answer<Denial>;

// === impl Attributes ===

impl Attributes {
    fn is_watch(&self) -> bool {
        matches!(self, Self::Resource(asked) if asked.verb == "watch")
    }
}

// === impl Authorizer ===

impl Authorizer {
    /// An authorizer that asks through `client`, as often as `budget` says.
    pub fn new(client: Client, ttl: CacheTtl, budget: Arc<ReviewBudget>, metrics: AccessMetrics) -> Self {
        Self {
            client,
            reviews: Request::new(SubjectAccessReview::url_path(&(), None)),
            cache: ReviewCache::new(CACHED_ANSWERS, CACHED_ANSWERS as u64, UnitWeighter),
            ttl,
            budget,
            renewals: TaskTracker::new(),
            metrics,
        }
    }

    /// Whether `user` may do what `attributes` say, by an answer that the cache still takes for good, and that is no older than
    /// `OPENING_AGE` if it is a watch. Dropping the future abandons the question.
    ///
    /// # Errors
    /// If not, or if it cannot be found out.
    pub async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Grant, Refusal> {
        if user.groups.iter().any(|group| group == SUPERUSERS) {
            return Ok(Grant { reviewed: None });
        }
        let request = Arc::new(ReviewRequest::new(user, attributes));
        let max_age = if attributes.is_watch() { OPENING_AGE } else { Duration::MAX };
        let review = self.review(&request, max_age, For::Question(&user.name)).await?;
        let started = allowed(review)?;
        Ok(Grant { reviewed: Some((request, started)) })
    }

    /// An answer that is younger than the cache's limit for its kind and, if it is a yes, than `max_age`.
    ///
    /// Who finds no room leaves the review to the next who waits for it: a lease is not refused with a question.
    async fn review(&self, request: &ReviewRequest, max_age: Duration, purpose: For<'_>) -> Result<Review, Refusal> {
        let deadline = Instant::now() + REVIEW_TIMEOUT;
        let ask = async {
            let _turn = self.turn(purpose, deadline).await?;
            // In a box: many wait for their turn, and few are asking.
            Box::pin(self.ask(request, deadline)).await
        };
        let fresh = |review: &Review| self.fresh(review, max_age);
        self.cache.answer(&request.key, fresh, deadline, Refusal::Unknown, ask).await
    }

    fn fresh(&self, review: &Review, max_age: Duration) -> bool {
        let is_allowed = review.value.is_none();
        let ttl = if is_allowed { self.ttl.authorized.min(max_age) } else { self.ttl.unauthorized };
        review.started.elapsed() < ttl
    }

    /// Room for a review. A lease that finds none in time is one whose review is not answered.
    async fn turn(&self, purpose: For<'_>, deadline: Instant) -> Result<Turn<'_>, Refusal> {
        match purpose {
            For::Question(user) => self.budget.question(Asker::User(user)).map_err(|Exhausted| Refusal::Exhausted),
            For::Lease => self.budget.lease(deadline).await.map_err(|Exhausted| Refusal::Unknown),
        }
    }

    async fn ask(&self, request: &ReviewRequest, deadline: Instant) -> Result<Review, Refusal> {
        let started = Instant::now();
        let status = match timeout_at(deadline, self.send(request)).await {
            Ok(Ok(review)) => review.status,
            // Not its text: kube-apiserver may quote what it was sent.
            Ok(Err(kube::Error::Api(status))) => {
                warn!(code = status.code, "a SubjectAccessReview failed, the request is refused");
                None
            }
            Ok(Err(_)) => {
                warn!("a SubjectAccessReview failed without an answer, the request is refused");
                None
            }
            Err(_) => {
                warn!(seconds = REVIEW_TIMEOUT.as_secs(), "a SubjectAccessReview was not answered in time");
                None
            }
        };
        let outcome = match &status {
            Some(status) if status.allowed && status.denied != Some(true) => "allowed",
            Some(_) => "denied",
            None => "error",
        };
        self.metrics.reviews.get_or_create(&Outcome { outcome }).inc();
        let status = status.ok_or(Refusal::Unknown)?;
        let reason = status.reason.as_deref().unwrap_or_default();
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
        Ok(Answer { value: (outcome == "denied").then(|| reason.into()), started })
    }

    async fn send(&self, request: &ReviewRequest) -> kube::Result<SubjectAccessReview> {
        let body = request.body.to_vec();
        let request = self.reviews.create(&PostParams::default(), body).map_err(kube::Error::BuildRequest)?;
        self.client.request(request).await
    }
}

/// When it was asked for, if the answer was yes.
fn allowed(review: Review) -> Result<Instant, Refusal> {
    review.value.map_or(Ok(review.started), |reason| Err(Refusal::Denied(reason.to_string())))
}

impl ReviewRequest {
    fn new(user: &User, attributes: &Attributes) -> Self {
        let mut spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        match attributes {
            Attributes::Resource(asked) => {
                let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
                spec.resource_attributes = Some(upstream::ResourceAttributes {
                    verb: given(asked.verb),
                    group: given(&asked.group),
                    version: given(&asked.version),
                    resource: given(&asked.resource),
                    subresource: given(&asked.subresource),
                    namespace: given(&asked.namespace),
                    ..upstream::ResourceAttributes::default()
                });
            }
            Attributes::NonResource { verb, path } => {
                let (verb, path) = (Some(verb.clone()), Some(path.clone()));
                spec.non_resource_attributes = Some(upstream::NonResourceAttributes { path, verb });
            }
        }
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let body = serde_json::to_vec(&review).expect("strings and maps of strings always serialise");
        let key = digest::digest(&digest::SHA256, &body);
        Self { body: body.into(), key: key.as_ref().try_into().expect("SHA-256 has 32 bytes") }
    }
}

#[cfg(test)]
mod tests;
