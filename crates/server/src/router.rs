//! One request: who, may they, and which room answers.
//!
//! A path is decoded once and parsed once, and what was authorized is what is served. Source of the parsing:
//! `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use std::sync::Arc;

use audit_stream_api::query::{WatchOptions, asks_to_watch};
use audit_stream_api::{GROUP, Resource, Route, Version};
use audit_stream_bus::Bus;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, UPGRADE, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use percent_encoding::percent_decode_str;
use tracing::debug;
use uuid::Uuid;

use crate::authn::{Authenticator, User};
use crate::authz::{Attributes, Authorizer, Grant, Lease};
use crate::discovery::{Answer, Documents};
use crate::health::Health;
use crate::ingest::batch::Batch;
use crate::listener::{Exchange, Peer};
use crate::metrics::{self, Code, Metrics};
use crate::negotiation::{JSON_WATCH, accepts_json};
use crate::rejection::Rejection;
use crate::watch::{ClassKey, Reader, Watches};
use crate::wire::{self, Body};

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Upstream bounds the identifiers that it logs; a client may send one of any length.
const MAX_AUDIT_ID_BYTES: usize = 64;

/// How many unknown query parameters one answer warns about.
const MAX_WARNINGS: usize = 5;

/// The rooms behind the API's listener.
pub struct Router {
    /// Who is asking.
    pub authenticator: Arc<Authenticator>,
    /// What they may do.
    pub authorizer: Arc<Authorizer>,
    /// Discovery and OpenAPI.
    pub documents: Documents,
    /// Health.
    pub health: Arc<Health>,
    /// Watches.
    pub watches: Watches,
    /// For the numbers of a scrape.
    pub bus: Arc<Bus<Batch>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// A collection of ours, or an object in it.
    Resource {
        route: Route,
        /// What of the collection.
        part: Part,
        /// Whether it was reached by the deprecated `/watch/` prefix, which is a watch whatever the method.
        watch_prefix: bool,
    },
    /// Below one of our versions, and nothing.
    UnknownResource,
    /// Anything else.
    Path,
}

/// What a path names of a collection.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it.
    All,
    /// One object, whether or not there is one of this name.
    Object(String),
    /// Something of an object.
    Below,
}

impl Router {
    /// Answers one request.
    pub async fn handle<B>(&self, peer: &Peer, request: Request<B>) -> Response<Body> {
        let audit_id = audit_id(request.headers());
        let mut response = match self.answer(peer, &request, &audit_id).await {
            Ok(response) => response,
            Err(rejection) => {
                let response = rejection.into_response();
                let code = response.status().as_u16();
                debug!(audit_id, code, "request refused");
                self.metrics.access.refused_requests.get_or_create(&Code { code }).inc();
                response
            }
        };
        if let Ok(value) = HeaderValue::from_str(&audit_id) {
            response.headers_mut().insert(AUDIT_ID, value);
        }
        response
    }

    async fn answer<B>(&self, peer: &Peer, request: &Request<B>, audit_id: &str) -> Result<Response<Body>, Rejection> {
        let path = percent_decode_str(request.uri().path()).decode_utf8().map_err(|_| Rejection::NotFound)?;
        let query = request.uri().query().unwrap_or_default();
        if let Some(response) = self.health.answer(&path, query) {
            return Ok(response);
        }
        let user = self.authenticator.authenticate(peer, request.headers()).map_err(|_| Rejection::Unauthorized)?;
        let exchange = request.extensions().get::<Exchange>().expect("each request of a listener has one");
        if user != User::anonymous() && !exchange.becomes_known() {
            return Err(Rejection::TooManyConnections);
        }
        match Target::parse(&path) {
            Target::UnknownResource => Err(Rejection::NotFound),
            Target::Path => self.serve_path(&user, request, &path).await,
            Target::Resource { route, part, watch_prefix } => {
                let verb = if watch_prefix { "watch" } else { verb(request.method(), &part, query) };
                // Without name and selectors, so that grants that are narrower than the route do not match.
                let attributes = Attributes::Resource { verb, route: route.clone() };
                let grant = self.authorize(&user, &attributes).await?;
                check_verb(request.method(), verb, route.resource, &part)?;
                let options = watch_options(request.headers(), query, route.resource, &part)?;
                let (username, audit_id) = (user.name, audit_id.to_owned());
                let reader = Reader { username, attributes, audit_id, exchange: exchange.clone() };
                self.watch(reader, grant, route, &options).await
            }
        }
    }

    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Grant, Rejection> {
        let granted = self.authorizer.authorize(user, attributes).await;
        granted.map_err(|refusal| Rejection::of(refusal, &user.name, attributes))
    }

    async fn serve_path<B>(&self, user: &User, request: &Request<B>, path: &str) -> Result<Response<Body>, Rejection> {
        let verb = request.method().as_str().to_ascii_lowercase();
        self.authorize(user, &Attributes::NonResource { verb, path: path.to_owned() }).await?;
        let read_only = matches!(*request.method(), Method::GET | Method::HEAD);
        let response = if path == "/metrics" {
            Some(self.scrape())
        } else {
            match self.documents.answer(path, request.uri().query(), request.headers()) {
                Some(Answer::Response(response)) => Some(response.map(wire::whole)),
                Some(Answer::NotAcceptable(accepted)) if read_only => return Err(Rejection::NotAcceptable(accepted)),
                Some(Answer::NotAcceptable(_)) => return Err(Rejection::MethodNotAllowed),
                None => None,
            }
        };
        match response {
            None => Err(Rejection::NotFound),
            Some(_) if !read_only => Err(Rejection::MethodNotAllowed),
            Some(response) => Ok(response),
        }
    }

    fn scrape(&self) -> Response<Body> {
        let mut response = Response::new(wire::whole(self.metrics.scrape(&self.bus, self.watches.frame_bytes())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        response
    }

    async fn watch(
        &self,
        reader: Reader,
        grant: Grant,
        route: Route,
        options: &WatchOptions,
    ) -> Result<Response<Body>, Rejection> {
        let key = ClassKey { route, selector: options.selector.clone() };
        let lease = Lease::new(Arc::clone(&self.authorizer), grant);
        let watch = self.watches.open(key, options, lease, reader).await?;
        let mut response = wire::watching(watch);
        for parameter in options.unknown.iter().take(MAX_WARNINGS) {
            response.headers_mut().append(WARNING, warning(parameter));
        }
        Ok(response)
    }
}

/// What a request asks of a watch, if it is one that can be served.
fn watch_options(headers: &HeaderMap, query: &str, resource: Resource, part: &Part) -> Result<WatchOptions, Rejection> {
    if headers.contains_key(UPGRADE) {
        return Err(Rejection::Upgrade);
    }
    if !accepts_json(headers) {
        return Err(Rejection::NotAcceptable(JSON_WATCH));
    }
    Ok(match part {
        Part::Object(name) => WatchOptions::parse_named(query, resource, name)?,
        Part::All | Part::Below => WatchOptions::parse(query, resource)?,
    })
}

impl Target {
    fn parse(path: &str) -> Self {
        let Some(below) = path.strip_prefix("/apis/").and_then(|path| path.strip_prefix(GROUP)) else {
            return Self::Path;
        };
        let mut segments = below.strip_prefix('/').unwrap_or_default().trim_end_matches('/').split('/');
        let version = segments.next().and_then(Version::named);
        let segments: Vec<&str> = segments.collect();
        let Some(version) = version.filter(|_| !segments.is_empty()) else { return Self::Path };
        let (watch_prefix, segments) = match &*segments {
            ["watch", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let (namespace, segments) = match segments {
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            all => (None, all),
        };
        let [resource, rest @ ..] = segments else { return Self::UnknownResource };
        match Resource::named(resource) {
            // A namespaced role on `events` must not open the cluster's stream.
            Some(resource) if namespace.is_some() && !resource.namespaced() => Self::UnknownResource,
            Some(_) if namespace == Some("") => Self::UnknownResource,
            Some(resource) => Self::Resource {
                route: Route { version, resource, namespace: namespace.map(str::to_owned) },
                part: match rest {
                    [] => Part::All,
                    [name] => Part::Object((*name).to_owned()),
                    _ => Part::Below,
                },
                watch_prefix,
            },
            None => Self::UnknownResource,
        }
    }
}

/// Upstream's request verb. A name in the path wins over `?watch`.
fn verb(method: &Method, part: &Part, query: &str) -> &'static str {
    let named = *part != Part::All;
    match *method {
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD if asks_to_watch(query) => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

/// Only a GET is a watch: of a collection, or, by the deprecated prefix, of one object in it.
fn check_verb(method: &Method, verb: &'static str, resource: Resource, part: &Part) -> Result<(), Rejection> {
    match (verb, method) {
        ("watch", &Method::GET) if *part == Part::Below => Err(Rejection::NotFound),
        ("watch", &Method::GET) => Ok(()),
        ("get" | "list", &Method::GET) => Err(Rejection::VerbNotSupported { verb, resource }),
        _ => Err(Rejection::MethodNotAllowed),
    }
}

fn audit_id(headers: &HeaderMap) -> String {
    let sent = headers.get(AUDIT_ID).and_then(|value| value.to_str().ok()).filter(|id| !id.is_empty());
    match sent {
        Some(id) => id[..id.floor_char_boundary(MAX_AUDIT_ID_BYTES)].to_owned(),
        None => Uuid::new_v4().to_string(),
    }
}

/// RFC 7234, 5.5, in the form that Kubernetes' clients parse: a misspelt filter would otherwise silently widen the watch.
fn warning(parameter: &str) -> HeaderValue {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    let text = if parameter.len() <= 64 && parameter.chars().all(plain) {
        format!("299 - \"unknown query parameter {parameter} was ignored\"")
    } else {
        "299 - \"an unknown query parameter was ignored\"".to_owned()
    };
    HeaderValue::try_from(text).expect("made of plain ASCII")
}

#[cfg(test)]
mod tests;
