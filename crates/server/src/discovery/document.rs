//! One document and the headers that go with it.
//!
//! Decides between 200 and 304 and nothing else: which document, and whether the client may have it, is decided before.
//! Sources: k8s.io/apiserver `pkg/endpoints/discovery/aggregated/etag.go`, kube-openapi `pkg/handler3/handler.go`, RFC 9110.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA512, digest};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822::DateTimePrinter;
use serde::Serialize;

/// How long upstream lets caches keep a document whose URL names its hash.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A body and what is said about it.
#[derive(Clone)]
pub(super) struct Document {
    body: Bytes,
    headers: HeaderMap,
}

impl Document {
    /// A document in compact JSON.
    pub(super) fn json(content: &impl Serialize) -> Self {
        Self::new(serde_json::to_vec(content).expect("the documents have string keys and no failing serializer"))
    }

    /// A document in indented JSON, as upstream writes what people read.
    pub(super) fn pretty(content: &impl Serialize) -> Self {
        Self::new(serde_json::to_vec_pretty(content).expect("the documents have string keys and no failing serializer"))
    }

    fn new(body: Vec<u8>) -> Self {
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            // Upstream's filter `cachecontrol.go` writes this wherever the handler says nothing else.
            (CACHE_CONTROL, HeaderValue::from_static("no-cache, private")),
        ]);
        Self { body: body.into(), headers }
    }

    /// Lets clients ask whether the document has changed. Upstream sends `Vary` wherever it sends an `ETag`.
    pub(super) fn with_etag(mut self) -> Self {
        let etag = format!("\"{}\"", self.hash());
        self.headers.insert(ETAG, HeaderValue::try_from(etag).expect("hexadecimal in quotes is a header value"));
        self.varying()
    }

    /// Says that another `Accept` may get another answer.
    pub(super) fn varying(mut self) -> Self {
        self.headers.insert(VARY, HeaderValue::from_static("Accept"));
        self
    }

    /// Names a more precise media type.
    pub(super) fn typed(mut self, content_type: String) -> Self {
        let content_type = HeaderValue::try_from(content_type).expect("our media types are header values");
        self.headers.insert(CONTENT_TYPE, content_type);
        self
    }

    /// Lets shared caches keep the document.
    pub(super) fn cacheable(mut self) -> Self {
        self.headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        self
    }

    /// The SHA-512 of the body in upper-case hexadecimal, as kube-openapi writes it.
    pub(super) fn hash(&self) -> String {
        digest(&SHA512, &self.body).as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// The document, or 304 to a client that names its `ETag`.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response<Bytes> {
        let Self { body, headers } = self;
        let mut response = Response::new(Bytes::new());
        *response.headers_mut() = headers.clone();
        if headers.get(ETAG).is_some_and(|etag| is_held(request, etag)) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            // It describes a body, and there is none.
            response.headers_mut().remove(CONTENT_TYPE);
        } else {
            *response.body_mut() = body.clone();
        }
        response
    }

    /// As [`Self::answer`], and for good under the right `?hash=`.
    ///
    /// kube-openapi answers any other hash with a redirect. kube-apiserver turns a redirect by an aggregated server into a
    /// 502, so here it gets the current document without the promise.
    pub(super) fn answer_hashed(&self, query: Option<&str>, request: &HeaderMap) -> Response<Bytes> {
        let mut response = self.answer(request);
        // The first counts, as in Go. Hexadecimal needs no decoding; a hash that was escaped only loses the promise.
        let hash = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("hash="));
        let etag = hash.map(|hash| format!("\"{hash}\""));
        if etag.is_some_and(|etag| self.headers.get(ETAG).is_some_and(|current| *current == *etag)) {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            response.headers_mut().extend(in_a_year().map(|date| (EXPIRES, date)));
        }
        response
    }
}

/// `None` where the clock stands before 1970 or past 9998: then nobody is told a date.
fn in_a_year() -> Option<HeaderValue> {
    let then = SystemTime::now().duration_since(UNIX_EPOCH).ok()? + YEAR;
    let date = Timestamp::from_second(then.as_secs().try_into().ok()?).ok()?;
    HeaderValue::try_from(DateTimePrinter::new().timestamp_to_rfc9110_string(&date).ok()?).ok()
}

/// RFC 9110, 13.1.2: a list of tags, perhaps over several lines, compared weakly, or `*`. No tag of ours has a comma in it.
fn is_held(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let lines = request.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
