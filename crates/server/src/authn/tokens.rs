//! Bearer tokens: kube-apiserver is asked whose one is, by `TokenReview`.
//!
//! Answers are remembered, yes and no alike; errors never are; whoever shows the same token at the same time shares one
//! review. A token is kept nowhere: the cache knows it by a hash under a key that only this process has. Source:
//! `k8s.io/apiserver/pkg/authentication/request/bearertoken`, `…/authentication/token/cache`,
//! `k8s.io/apiserver/plugin/pkg/authenticator/token/webhook`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use quick_cache::Weighter;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{Opinion, Refused, User};
use crate::metrics::{AccessMetrics, Outcome};
use crate::review_budget::{Asker, ReviewBudget};
use crate::review_cache::{Answer, Key, REVIEW_TIMEOUT, ReviewCache};

/// A service account's token has some 1 KiB, and one of an identity provider that lists a hundred groups a few. A quarter of
/// what all headers of a request may have.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Tokens whose answer is remembered, if no user takes more than [`ENTRY_BYTES`].
const CACHED_TOKENS: usize = 8192;

/// What an entry counts at least: a ServiceAccount with its groups and extras has half of that. 8192 × 1 KiB is 8 MiB, and
/// users with more leave room for fewer.
const ENTRY_BYTES: u64 = 1024;

/// Asks kube-apiserver whose a token is.
#[derive(Debug)]
pub struct Tokens {
    reviews: Api<TokenReview>,
    cache: ReviewCache<Owner, ByBytes>,
    /// The cache knows a token by its HMAC-SHA256 under this.
    key: hmac::Key,
    ttl: Duration,
    budget: Arc<ReviewBudget>,
    metrics: AccessMetrics,
}

/// `None`: nobody's.
type Owner = Option<Arc<User>>;

type Review = Answer<Owner>;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Review> for ByBytes {
    fn weight(&self, _key: &Key, review: &Review) -> u64 {
        review.value.as_deref().map_or(0, User::bytes).max(ENTRY_BYTES)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoAnswer {
    /// There is no room to ask.
    Exhausted,
    /// kube-apiserver did not say.
    Unknown,
}

// === impl Tokens ===

impl Tokens {
    /// Asks through `client`, as far as `budget` goes, and remembers an answer for `ttl`.
    ///
    /// # Panics
    /// If the system's random source fails.
    pub fn new(client: Client, ttl: Duration, budget: Arc<ReviewBudget>, metrics: AccessMetrics) -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the system has randomness");
        let cache = ReviewCache::new(CACHED_TOKENS, CACHED_TOKENS as u64 * ENTRY_BYTES, ByBytes);
        Self { reviews: Api::all(client), cache, key, ttl, budget, metrics }
    }

    /// Whose token the request shows, if it shows one. Dropping the future abandons the question.
    ///
    /// # Errors
    /// If it is not known and there is no room to ask.
    pub async fn identify(&self, headers: &HeaderMap, from: IpAddr) -> Result<Opinion, Refused> {
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let token = match (shown.next(), shown.next()) {
            (None, _) => return Ok(Opinion::None),
            (Some(one), None) => one.to_str().ok().and_then(bearer),
            (Some(_), Some(_)) => None,
        };
        let Some(token) = token else { return Ok(Opinion::Bad) };
        match self.review(token, from).await {
            Ok(Some(user)) => Ok(Opinion::User(User::clone(&user))),
            Ok(None) | Err(NoAnswer::Unknown) => Ok(Opinion::Bad),
            Err(NoAnswer::Exhausted) => Err(Refused::Exhausted),
        }
    }

    async fn review(&self, token: &str, from: IpAddr) -> Result<Owner, NoAnswer> {
        let key = hmac::sign(&self.key, token.as_bytes());
        let key: Key = key.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes");
        let deadline = Instant::now() + REVIEW_TIMEOUT;
        let fresh = |review: &Review| review.started.elapsed() < self.ttl;
        let ask = self.ask(token, from, deadline);
        let review = self.cache.answer(&key, fresh, deadline, NoAnswer::Unknown, ask).await?;
        Ok(review.value)
    }

    async fn ask(&self, token: &str, from: IpAddr, deadline: Instant) -> Result<Review, NoAnswer> {
        let _turn = self.budget.question(Asker::Address(from)).map_err(|_| NoAnswer::Exhausted)?;
        let started = Instant::now();
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = timeout_at(deadline, self.reviews.create(&PostParams::default(), &review)).await;
        let user = match answer {
            Ok(Ok(review)) => review.status.ok_or(NoAnswer::Unknown).and_then(whose),
            // Not its text: kube-apiserver may quote what it was sent.
            Ok(Err(kube::Error::Api(status))) => {
                warn!(code = status.code, "a TokenReview failed, the token is refused");
                Err(NoAnswer::Unknown)
            }
            Ok(Err(_)) => {
                warn!("a TokenReview failed without an answer, the token is refused");
                Err(NoAnswer::Unknown)
            }
            Err(_) => {
                warn!(seconds = REVIEW_TIMEOUT.as_secs(), "a TokenReview was not answered in time");
                Err(NoAnswer::Unknown)
            }
        };
        let outcome = match &user {
            Ok(Some(_)) => "allowed",
            Ok(None) => "denied",
            Err(_) => "error",
        };
        self.metrics.token_reviews.get_or_create(&Outcome { outcome }).inc();
        Ok(Answer { value: user?.map(Arc::new), started })
    }
}

/// The token of `Bearer TOKEN`, in upstream's reading of it, but for what upstream passes over: another scheme, no token or
/// two are not a bearer token, and nobody vouches for them.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let one = !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && !token.contains([' ', '\t']);
    (scheme.eq_ignore_ascii_case("bearer") && one).then_some(token)
}

fn whose(status: TokenReviewStatus) -> Result<Option<User>, NoAnswer> {
    if status.authenticated != Some(true) {
        return Ok(None);
    }
    let UserInfo { username, uid, groups, extra } = status.user.unwrap_or_default();
    // An answer that names nobody is none.
    let name = username.filter(|name| !name.is_empty()).ok_or(NoAnswer::Unknown)?;
    let uid = uid.filter(|uid| !uid.is_empty());
    let extra = extra.unwrap_or_default().into_iter().map(|(key, values)| (key.to_ascii_lowercase(), values));
    Ok(Some(User { name, uid, groups: groups.unwrap_or_default(), extra: extra.collect() }))
}

#[cfg(test)]
mod tests;
