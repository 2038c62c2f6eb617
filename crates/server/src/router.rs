//! One request: who, may they, and which room answers.
//!
//! A path is decoded once and parsed once (`request_info`), and what was authorized is what is served. The order is upstream's:
//! whoever may not ask for something is told so, whether or not it exists.

use std::sync::Arc;

use audit_stream_api::query::{WatchOptions, asks_to_watch};
use audit_stream_api::{GROUP, Resource, Route, Version};
use audit_stream_bus::Bus;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, UPGRADE, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use tracing::debug;
use uuid::Uuid;

use crate::authn::{Authenticator, Caller, User, Way};
use crate::authz::{Attributes, Authorizer, Grant, Lease, ResourceAttributes};
use crate::discovery::{Answer, Documents};
use crate::health::{self, Health};
use crate::ingest::batch::Batch;
use crate::listener::{Exchange, KnownAs, Peer};
use crate::metrics::{self, Code, Metrics};
use crate::negotiation::{JSON_WATCH, accepts_json};
use crate::rejection::Rejection;
use crate::request_info::{Prefix, RequestPath, ResourcePath, decoded, is_label};
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

/// What is served of a collection.
#[derive(Debug, PartialEq, Eq)]
enum Part<'p> {
    /// All of it.
    All,
    /// One object, whether or not there is one of this name.
    Object(&'p str),
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
        let headers = response.headers_mut();
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if let Ok(value) = HeaderValue::from_str(&audit_id) {
            headers.insert(AUDIT_ID, value);
        }
        response
    }

    async fn answer<B>(&self, peer: &Peer, request: &Request<B>, audit_id: &str) -> Result<Response<Body>, Rejection> {
        let path = decoded(request.uri().path()).ok_or(Rejection::BrokenEscape)?;
        if health::OPEN.contains(&&*path) && self.nobody_to_judge(peer, request.headers()) {
            return self.serve_path(&User::anonymous(), request, &path).await;
        }
        let Caller { user, way, waiting: _until_answered } =
            self.authenticator.authenticate(peer, request.headers()).await?;
        let has_room = match way {
            Way::FrontProxy => exchange(request).becomes_known(KnownAs::ApiServer),
            Way::Credential => exchange(request).becomes_known(KnownAs::User(&user.name)),
            Way::None => true,
        };
        if !has_room {
            return Err(Rejection::TooManyConnections);
        }
        match RequestPath::of(&path) {
            RequestPath::Resource(asked) => self.serve_resource(user, request, &path, &asked, audit_id).await,
            // Upstream's 500 to a bare prefix helps nobody: it is a path like any other.
            RequestPath::NonResource | RequestPath::BarePrefix => self.serve_path(&user, request, &path).await,
        }
    }

    /// Whether there is no credential, or nothing yet to judge one by. Then what is told to everybody waits for nothing.
    fn nobody_to_judge(&self, peer: &Peer, headers: &HeaderMap) -> bool {
        let shows_nothing = peer.certificates.is_empty() && !headers.contains_key(AUTHORIZATION);
        shows_nothing || !self.authenticator.ready()
    }

    async fn serve_resource<B>(
        &self,
        user: User,
        request: &Request<B>,
        path: &str,
        asked: &ResourcePath<'_>,
        audit_id: &str,
    ) -> Result<Response<Body>, Rejection> {
        let query = request.uri().query().unwrap_or_default();
        let verb = asked.verb(request.method(), asks_to_watch(query));
        let attributes = attributes(verb, asked);
        let grant = self.authorize(&user, &attributes).await?;
        let (route, part) = served(path, asked).ok_or(Rejection::NotFound)?;
        check_verb(request.method(), verb, route.resource)?;
        let options = watch_options(request.headers(), query, route.resource, &part)?;
        let (username, audit_id) = (user.name, audit_id.to_owned());
        let reader = Reader { username, attributes, audit_id, exchange: exchange(request).clone() };
        self.watch(reader, grant, route, &options).await
    }

    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Grant, Rejection> {
        let granted = self.authorizer.authorize(user, attributes).await;
        granted.map_err(|refusal| Rejection::of(refusal, &user.name, attributes))
    }

    async fn serve_path<B>(&self, user: &User, request: &Request<B>, path: &str) -> Result<Response<Body>, Rejection> {
        if !health::OPEN.contains(&path) {
            let verb = request.method().as_str().to_ascii_lowercase();
            self.authorize(user, &Attributes::NonResource { verb, path: path.to_owned() }).await?;
        }
        if let Some(response) = self.health.answer(path, request.uri().query().unwrap_or_default()) {
            return Ok(response);
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if path == "/metrics" {
            return if reads { Ok(self.scrape()) } else { Err(Rejection::MethodNotAllowed) };
        }
        match self.documents.answer(path, request.uri().query(), request.headers()) {
            None => Err(Rejection::NotFound),
            Some(_) if !reads => Err(Rejection::MethodNotAllowed),
            Some(Answer::NotAcceptable(accepted)) => Err(Rejection::NotAcceptable(accepted)),
            Some(Answer::Response(response)) => Ok(response.map(wire::whole)),
        }
    }

    fn scrape(&self) -> Response<Body> {
        let mut response = Response::new(wire::whole(self.metrics.scrape(&self.bus, self.watches.frame_bytes())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
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

fn exchange<B>(request: &Request<B>) -> &Exchange {
    request.extensions().get().expect("each request of a listener has one")
}

/// What the reviewer is asked about: the path as it was read. Selectors stay out, so that grants that are narrower than the route
/// do not match.
fn attributes(verb: &'static str, asked: &ResourcePath<'_>) -> Attributes {
    Attributes::Resource(Box::new(ResourceAttributes {
        verb,
        group: asked.group.unwrap_or_default().to_owned(),
        version: asked.version.to_owned(),
        resource: asked.resource.to_owned(),
        subresource: asked.subresource.to_owned(),
        namespace: asked.namespace.to_owned(),
        name: asked.name.to_owned(),
    }))
}

/// What lives at a path, if anything does. Upstream's reading forgives slashes, and takes an empty namespace for none and what is
/// not namespaced into a namespace; here only what was meant is found.
fn served<'p>(path: &str, asked: &ResourcePath<'p>) -> Option<(Route, Part<'p>)> {
    let ResourcePath { group: Some(GROUP), prefix: None | Some(Prefix::Watch), .. } = asked else { return None };
    let (version, resource) = (Version::named(asked.version)?, Resource::named(asked.resource)?);
    let namespace = match (asked.inside, asked.namespace) {
        (false, "") => None,
        // A namespaced role on `events` must not open the cluster's stream.
        (true, namespace) if resource.namespaced() && is_label(namespace) => Some(namespace.to_owned()),
        _ => return None,
    };
    let part = match asked.depth {
        1 => Part::All,
        2 => Part::Object(asked.name),
        _ => return None,
    };
    (!path.starts_with("//")).then_some((Route { version, resource, namespace }, part))
}

/// Only a GET is a watch: of a collection, or, by the deprecated prefix, of one object in it.
fn check_verb(method: &Method, verb: &'static str, resource: Resource) -> Result<(), Rejection> {
    match (verb, method) {
        ("watch", &Method::GET) => Ok(()),
        ("get" | "list", &Method::GET) => Err(Rejection::VerbNotSupported { verb, resource }),
        _ => Err(Rejection::MethodNotAllowed),
    }
}

/// What a request asks of a watch, if it is one that can be served.
fn watch_options(
    headers: &HeaderMap,
    query: &str,
    resource: Resource,
    part: &Part<'_>,
) -> Result<WatchOptions, Rejection> {
    if headers.contains_key(UPGRADE) {
        return Err(Rejection::Upgrade);
    }
    if !accepts_json(headers) {
        return Err(Rejection::NotAcceptable(JSON_WATCH));
    }
    Ok(match part {
        Part::All => WatchOptions::parse(query, resource)?,
        Part::Object(name) => WatchOptions::parse_named(query, resource, name)?,
    })
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
