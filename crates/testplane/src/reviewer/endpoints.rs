//! The endpoints: what kube-apiserver answers to an extension server's own requests, status codes and bodies.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::config_map::NAME;
use super::config_map_watch::{self, Asked};
use super::state::{Health, State, lock};
use super::{OWN_USER, TOKEN};

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const SELF_REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let (method, path, query) = (head.method, head.uri.path().to_owned(), head.uri.query().unwrap_or_default());
    let line = head.uri.path_and_query().map_or(path.clone(), ToString::to_string);
    state.note(|record| record.requests.push(format!("{method} {line}")));
    let Ok(body) = body.collect().await else { return status(400, "BadRequest", "the body broke off") };
    let body = serde_json::from_slice::<Value>(&body.to_bytes()).unwrap_or_default();
    // Noted before anything goes wrong on purpose: the test wants to see the attempt.
    note_review(&state, &path, &body);
    if head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) != Some(format!("Bearer {TOKEN}").as_bytes()) {
        return status(401, "Unauthorized", "Unauthorized");
    }
    if let Health::Failing(code) = state.suffer().await {
        return failure(code);
    }
    match (&method, path.as_str()) {
        (&Method::POST, ACCESS_REVIEWS) => access_review(&state, body),
        (&Method::POST, TOKEN_REVIEWS) => token_review(&state, body),
        (&Method::POST, SELF_REVIEWS) => self_review(body),
        (&Method::GET, CONFIG_MAPS) => config_maps(state, query),
        (&Method::GET, path) if path.strip_prefix(CONFIG_MAPS) == Some(&format!("/{NAME}")) => config_map(&state),
        _ => status(404, "NotFound", "the server could not find the requested resource"),
    }
}

fn note_review(state: &State, path: &str, body: &Value) {
    match path {
        ACCESS_REVIEWS => state.note(|record| {
            record.access_reviews.push(body["spec"].clone());
            record.access_review_times.push(Instant::now());
        }),
        TOKEN_REVIEWS => state.note(|record| record.token_reviews += 1),
        _ => {}
    }
}

fn access_review(state: &State, mut review: Value) -> Response<Body> {
    let spec = &review["spec"];
    if spec["resourceAttributes"].is_null() == spec["nonResourceAttributes"].is_null() {
        return invalid("exactly one of nonResourceAttributes or resourceAttributes must be specified");
    }
    if spec["user"].as_str().unwrap_or_default().is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty) {
        return invalid("at least one of user or group must be specified");
    }
    review["status"] = match state.rules.allow(spec) {
        true => json!({"allowed": true, "reason": "RBAC: allowed by the test"}),
        false => json!({"allowed": false}),
    };
    json_answer(201, &review)
}

fn token_review(state: &State, mut review: Value) -> Response<Body> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return invalid("token is required");
    }
    review["status"] = match lock(&state.tokens).get(token) {
        Some(user) => json!({"authenticated": true, "user": user,
            "audiences": ["https://kubernetes.default.svc.cluster.local"]}),
        None => json!({"user": {}, "error": "[invalid bearer token, token lookup failed]"}),
    };
    json_answer(201, &review)
}

fn self_review(mut review: Value) -> Response<Body> {
    review["status"] = json!({"userInfo": {"username": OWN_USER, "uid": "b0b5f4a2-8d5e-4a52-9d39-0d3f7d0a7e21",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:audit-stream", "system:authenticated"]}});
    json_answer(201, &review)
}

fn config_map(state: &State) -> Response<Body> {
    match state.config_map.current() {
        (_, Some(object)) => json_answer(200, &object),
        (_, None) => status(404, "NotFound", &format!("configmaps {NAME:?} not found")),
    }
}

fn config_maps(state: Arc<State>, query: &str) -> Response<Body> {
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let is_true = |name: &str| parameter(name).is_some_and(|value| matches!(value, "true" | "1"));
    let verb = if is_true("watch") { "watch" } else { "list" };
    // The Role that every cluster ships names this one object, and the name has to be said for it to match.
    let selector = parameter("fieldSelector").unwrap_or_default().replace("%3D", "=").replace("%3d", "=");
    if selector != format!("metadata.name={NAME}") && selector != format!("metadata.name=={NAME}") {
        let user = format!("User {OWN_USER:?} cannot {verb} resource \"configmaps\" in API group \"\"");
        return status(403, "Forbidden", &format!("configmaps is forbidden: {user} in the namespace \"kube-system\""));
    }
    if verb == "list" {
        let (revision, object) = state.config_map.current();
        let items = object.into_iter().collect::<Vec<_>>();
        let metadata = json!({"resourceVersion": revision.to_string()});
        return json_answer(
            200,
            &json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}),
        );
    }
    let number = |name: &str| parameter(name).and_then(|value| value.parse::<u64>().ok());
    let asked = Asked {
        revision: number("resourceVersion"),
        initial_events: is_true("sendInitialEvents"),
        bookmarks: is_true("allowWatchBookmarks"),
        timeout: number("timeoutSeconds").map(Duration::from_secs),
    };
    let frames = config_map_watch::lines(state, &asked).map(|line| Ok(Frame::data(line)));
    with_type(Response::new(StreamBody::new(frames).boxed_unsync()))
}

fn failure(code: u16) -> Response<Body> {
    let reason = match code {
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let mut response = status(code, reason, "the test said so");
    if code == 429 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn invalid(message: &str) -> Response<Body> {
    status(422, "Invalid", message)
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code});
    json_answer(code, &body)
}

fn json_answer(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(format!("{body}\n")).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    with_type(response)
}

fn with_type(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
