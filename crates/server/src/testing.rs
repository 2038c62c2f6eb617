//! What the tests of several rooms need: a reviewer behind `kube::Client`, a front proxy's certificate, batches.

use audit_stream_api::audit::Event;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_stream_testplane::pki::{Authority, Identity};
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec;
use kube::Client;
use kube::client::Body;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::authn::front_proxy::FrontProxyTrust;
use crate::authn::tokens::Tokens;
use crate::authz::{Authorizer, CacheTtl};
use crate::ingest::batch::{Batch, BatchBuilder};
use crate::listener::Peer;
use crate::metrics::AccessMetrics;
use crate::review_budget::ReviewBudget;

/// What a [`Reviewer`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    Deny(&'static str),
    /// An authorizer that allows and one that denies: upstream's rule is that the denial wins.
    Both,
    Fail,
    Hang,
}

/// Answers `SubjectAccessReview`s without a socket, and remembers them.
#[derive(Debug)]
pub(crate) struct Reviewer {
    verdict: Mutex<Verdict>,
    asked: AtomicUsize,
    last: Mutex<Option<SubjectAccessReviewSpec>>,
}

impl Reviewer {
    pub(crate) fn new(verdict: Verdict) -> Arc<Self> {
        Arc::new(Self { verdict: Mutex::new(verdict), asked: AtomicUsize::new(0), last: Mutex::default() })
    }

    pub(crate) fn now(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap() = verdict;
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn last(&self) -> SubjectAccessReviewSpec {
        self.last.lock().unwrap().clone().expect("nothing was asked yet")
    }

    /// An authorizer that asks as often as it likes.
    pub(crate) fn authorizer(self: &Arc<Self>) -> Arc<Authorizer> {
        self.authorizer_with(1_000_000)
    }

    /// An authorizer that asks so many times a second.
    pub(crate) fn authorizer_with(self: &Arc<Self>, review_qps: u32) -> Arc<Authorizer> {
        let metrics = AccessMetrics::default();
        let budget = Arc::new(ReviewBudget::new(NonZeroU32::new(review_qps).unwrap(), metrics.turned_away.clone()));
        let reviewer = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let reviewer = Arc::clone(&reviewer);
            async move { Ok::<_, Infallible>(reviewer.answer(request).await) }
        });
        let ttl = CacheTtl { authorized: Duration::from_secs(10), unauthorized: Duration::from_secs(10) };
        Arc::new(Authorizer::new(Client::new(service, "default"), ttl, budget, metrics))
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
        *self.last.lock().unwrap() = Some(serde_json::from_value(review["spec"].clone()).unwrap());
        let verdict = self.verdict.lock().unwrap().clone();
        let (code, status) = match verdict {
            Verdict::Allow => (201, serde_json::json!({"allowed": true})),
            Verdict::Deny(reason) => (201, serde_json::json!({"allowed": false, "reason": reason})),
            Verdict::Both => (201, serde_json::json!({"allowed": true, "denied": true})),
            Verdict::Fail => (503, serde_json::Value::Null),
            Verdict::Hang => std::future::pending().await,
        };
        review["status"] = status;
        Response::builder().status(code).body(Body::from(serde_json::to_vec(&review).unwrap())).unwrap()
    }
}

/// Answers `TokenReview`s without a socket: of some tokens, whose they are.
#[derive(Debug)]
pub(crate) struct TokenReviewer {
    owners: BTreeMap<String, String>,
    /// Of tokens that are somebody's.
    verdict: Mutex<Verdict>,
    asked: AtomicUsize,
}

impl TokenReviewer {
    pub(crate) const TTL: Duration = Duration::from_secs(10);

    pub(crate) fn new(owners: &[(&str, &str)]) -> Arc<Self> {
        let owners = owners.iter().map(|(token, name)| ((*token).to_owned(), (*name).to_owned())).collect();
        Arc::new(Self { owners, verdict: Mutex::new(Verdict::Allow), asked: AtomicUsize::new(0) })
    }

    pub(crate) fn now(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap() = verdict;
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn tokens(self: &Arc<Self>) -> Tokens {
        let reviewer = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let reviewer = Arc::clone(&reviewer);
            async move { Ok::<_, Infallible>(reviewer.answer(request).await) }
        });
        let budget = Arc::new(ReviewBudget::new(NonZeroU32::new(200).unwrap(), Default::default()));
        Tokens::new(Client::new(service, "default"), Self::TTL, budget, AccessMetrics::default())
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // As long as a network takes, so that others come meanwhile.
        tokio::task::yield_now().await;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let verdict = self.verdict.lock().unwrap().clone();
        let owner = self.owners.get(review["spec"]["token"].as_str().unwrap());
        let (code, status) = match (verdict, owner) {
            (Verdict::Fail, _) => (503, serde_json::Value::Null),
            (Verdict::Hang, _) => std::future::pending().await,
            (Verdict::Allow, Some(name)) => {
                (201, serde_json::json!({"authenticated": true, "user": {"username": name}}))
            }
            _ => (201, serde_json::json!({"user": {}, "error": "invalid bearer token"})),
        };
        review["status"] = status;
        Response::builder().status(code).body(Body::from(serde_json::to_vec(&review).unwrap())).unwrap()
    }
}

/// A front proxy as kube-apiserver describes it.
pub(crate) struct FrontProxy {
    pub(crate) ca: Authority,
}

impl FrontProxy {
    pub(crate) fn new() -> Self {
        Self { ca: Authority::new("front-proxy-ca") }
    }

    pub(crate) fn peer(&self) -> Peer {
        peer(&self.ca.client("front-proxy-client", &[]))
    }

    pub(crate) fn config_map(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let data = [
            ("requestheader-client-ca-file", self.ca.certificate_pem()),
            ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ];
        data.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    pub(crate) fn trust(&self, more: &[(&str, &str)]) -> FrontProxyTrust {
        FrontProxyTrust::from_config_map(&self.config_map(more)).unwrap().unwrap()
    }
}

pub(crate) fn peer(identity: &Identity) -> Peer {
    let certificates = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes());
    Peer::new(stranger().address, certificates.collect::<Result<_, _>>().unwrap())
}

/// A peer that showed no certificate.
pub(crate) fn stranger() -> Peer {
    Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), Vec::new())
}

/// A batch of configmap events: audit ID and attributed namespace of each.
pub(crate) fn batch(events: &[(&str, Option<&str>)]) -> Batch {
    let mut builder = BatchBuilder::default();
    for (id, namespace) in events {
        let json = format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"ResponseComplete","requestURI":"/x?a=secret","verb":"get","user":{{"username":"alice","uid":"u"}},"sourceIPs":["10.0.0.1"],"stageTimestamp":"2026-11-20T15:00:00.000000Z"}}"#
        );
        builder.push_made(&Event::parse(&json).unwrap(), &json, *namespace);
    }
    builder.build()
}
