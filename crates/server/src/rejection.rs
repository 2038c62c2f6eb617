//! Every way to say no: the one place that builds an error response.
//!
//! Each is a `meta/v1` `Status` in upstream's words, so that kubectl and client libraries print what they print for any
//! other API. Source: `k8s.io/apimachinery/pkg/api/errors/errors.go`, `k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`.

use std::fmt;

use audit_stream_api::object::GapReason;
use audit_stream_api::query::{QueryError, Violation};
use audit_stream_api::status::{Cause, Details, Status};
use audit_stream_api::{GROUP, Resource, Sequence};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};

use crate::authn::Refused;
use crate::authz::{Attributes, Refusal, ResourceAttributes};
use crate::ingest::sources::MAX_SOURCES;
use crate::watch::Full;
use crate::wire::{self, Body};

/// Why a request of the API is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A credential was presented and is not good.
    Unauthorized,
    /// A certificate was shown, and nothing is known yet to judge it by.
    TrustNotLoaded,
    /// The user may not do this.
    Forbidden {
        /// Who asked.
        user: String,
        /// For what.
        attributes: Attributes,
        /// What the authorizer said.
        reason: String,
    },
    /// Whether the user may do this could not be found out, and unknown means no.
    ReviewFailed,
    /// Who asks, or whether they may, cannot be asked now, because so much is asked already.
    TooManyReviews,
    /// The path cannot be decoded.
    BrokenEscape,
    /// Nothing lives at this path.
    NotFound,
    /// The path takes other methods.
    MethodNotAllowed,
    /// The resource does not have this verb.
    VerbNotSupported {
        /// The verb asked for.
        verb: &'static str,
        /// Of which resource.
        resource: Resource,
    },
    /// None of the media types that the client accepts is served here.
    NotAcceptable(&'static [&'static str]),
    /// The request's parameters make no sense.
    Query(QueryError),
    /// A selector on a field that the reader's view hides.
    WithheldField(&'static str),
    /// A replay was asked for, and this server gives none.
    ReplayOff,
    /// A watch over a websocket.
    Upgrade,
    /// As many connections as may be are known already.
    TooManyConnections,
    /// As many watches as may be are open.
    TooManyWatches(Full),
    /// Told in the stream: what comes after a place is not retained, or the place was never issued.
    Expired {
        /// The place asked for.
        asked: Sequence,
        /// The oldest place that a watch can begin after.
        oldest: Sequence,
    },
    /// Told in the stream: the watch took nothing for so long that it is over.
    Stalled,
    /// The server ends.
    ShuttingDown,
}

/// Why a webhook POST is refused. kube-apiserver tries again after any of these, five times, and then drops the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngestRejection {
    /// Nothing but `/webhook` and `/webhook/{source}` is served.
    Path,
    /// Only POST is.
    Method,
    /// The CAs of now do not vouch for the sender's certificate.
    Untrusted,
    /// The sender's certificate has none of the allowed names.
    Sender,
    /// The source belongs to a sender whose certificate has another name.
    SourceBound,
    /// It would be one source more than there may be.
    TooManySources,
    /// The body is compressed or otherwise encoded.
    ContentEncoding,
    /// The body is over the limit of this many bytes.
    BodyTooLarge(u64),
    /// The bodies in flight fill their budget.
    Busy,
    /// The body ended before its declared length.
    Incomplete,
    /// The body did not arrive in time.
    TooSlow,
    /// The batch could not be published in time.
    Late,
    /// The server ends.
    ShuttingDown,
}

const SHUTTING_DOWN: &str = "audit-stream is shutting down";

/// How long a client is told to stay away: long enough to matter, short enough not to hurt.
const RETRY_AFTER_SECONDS: u32 = 1;

impl Rejection {
    /// What the authorizer's refusal means to the one who asked.
    pub fn of(refusal: Refusal, user: &str, attributes: &Attributes) -> Self {
        match refusal {
            Refusal::Denied(reason) => {
                Self::Forbidden { user: user.to_owned(), attributes: attributes.clone(), reason }
            }
            Refusal::Unknown => Self::ReviewFailed,
            Refusal::Exhausted => Self::TooManyReviews,
        }
    }

    /// As an answer.
    pub fn into_response(self) -> Response<Body> {
        let allow = matches!(self, Self::MethodNotAllowed | Self::VerbNotSupported { .. });
        let mut response = respond(&self.status());
        if allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }

    /// As the object of an ERROR frame or the body of an answer.
    pub fn status(&self) -> Status {
        match self {
            Self::Unauthorized => Status::failure(401, "Unauthorized", "Unauthorized"),
            Self::TrustNotLoaded => {
                retry_later(503, "ServiceUnavailable", "the CAs that certificates are judged by are not loaded yet")
            }
            Self::Forbidden { user, attributes, reason } => forbidden(user, attributes, reason),
            Self::ReviewFailed => Status::failure(
                500,
                "InternalError",
                "Internal error occurred: the request could not be authorized, because kube-apiserver did not answer a \
                 SubjectAccessReview",
            ),
            Self::TooManyReviews => retry_later(429, "TooManyRequests", "too many requests, please try again later"),
            Self::BrokenEscape => {
                bad_request("the path has a percent sign without two hexadecimal digits behind it".to_owned())
            }
            Self::NotFound => Status::failure(404, "NotFound", "the server could not find the requested resource")
                .with_details(Details::default()),
            Self::MethodNotAllowed => Status::failure(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
            .with_details(Details::default()),
            Self::VerbNotSupported { verb, resource } => {
                let message = format!("{verb} is not supported on resources of kind \"{}.{GROUP}\"", resource.name());
                Status::failure(405, "MethodNotAllowed", message).with_details(resource_details(*resource))
            }
            Self::NotAcceptable(accepted) => {
                let message = format!("only the following media types are accepted: {}", accepted.join(", "));
                Status::failure(406, "NotAcceptable", message)
            }
            Self::Query(error) => query(error),
            Self::WithheldField(field) => {
                bad_request(format!("field label not supported: {field} is withheld from readers of namespacedevents"))
            }
            Self::ReplayOff => {
                bad_request("sinceSeconds and tailLines are turned off on this server (--replay=false)".to_owned())
            }
            Self::Upgrade => bad_request("watching over a websocket is not supported; use a plain GET".to_owned()),
            Self::TooManyConnections => {
                retry_later(503, "ServiceUnavailable", "too many connections, please try again later")
            }
            Self::TooManyWatches(full) => {
                let (whose, flag) = match full {
                    Full::Server => ("", "--max-watches"),
                    Full::User => (" of this user", "--max-watches-per-user"),
                    Full::Namespace => (" of this namespace", "--max-watches-per-namespace"),
                    Full::Classes => (" of this user with different parameters", "--max-classes-per-user"),
                };
                let message = format!("too many open watches{whose}, please try again later ({flag})");
                retry_later(429, "TooManyRequests", &message)
            }
            Self::Expired { asked, oldest } => {
                Status::failure(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
            }
            Self::Stalled => Status::failure(410, "Expired", "the watch took nothing for 30 seconds and is over"),
            Self::ShuttingDown => retry_later(503, "ServiceUnavailable", SHUTTING_DOWN),
        }
    }
}

impl IngestRejection {
    /// Every word of [`Self::reason`].
    pub const REASONS: [&str; 13] = [
        "path",
        "method",
        "untrusted",
        "sender",
        "source_bound",
        "too_many_sources",
        "content_encoding",
        "body_too_large",
        "busy",
        "incomplete",
        "too_slow",
        "late",
        "shutting_down",
    ];

    /// As an answer.
    pub fn into_response(self) -> Response<Body> {
        let mut response = respond(&self.status());
        if self == Self::Method {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }

    /// The word of the metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Method => "method",
            Self::Untrusted => "untrusted",
            Self::Sender => "sender",
            Self::SourceBound => "source_bound",
            Self::TooManySources => "too_many_sources",
            Self::ContentEncoding => "content_encoding",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::Busy => "busy",
            Self::Incomplete => "incomplete",
            Self::TooSlow => "too_slow",
            Self::Late => "late",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// What readers are to be told where no other try mends it: the batch is lost for sure. A stranger's is nobody's loss, and
    /// whoever knows neither path nor method is no kube-apiserver.
    pub fn gap(self) -> Option<GapReason> {
        match self {
            Self::SourceBound | Self::TooManySources | Self::ContentEncoding => Some(GapReason::Source),
            Self::BodyTooLarge(_) => Some(GapReason::Oversize),
            Self::Path
            | Self::Method
            | Self::Untrusted
            | Self::Sender
            | Self::Busy
            | Self::Incomplete
            | Self::TooSlow
            | Self::Late
            | Self::ShuttingDown => None,
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Path => Status::failure(404, "NotFound", "audit events are posted to /webhook or /webhook/{source}"),
            Self::Method => Status::failure(405, "MethodNotAllowed", "audit events are sent by POST"),
            Self::Untrusted => Status::failure(
                401,
                "Unauthorized",
                "no CA in --webhook-client-ca-file vouches for the client certificate any longer",
            ),
            Self::Sender => Status::failure(
                403,
                "Forbidden",
                "the client certificate has none of the names in --webhook-allowed-names",
            ),
            Self::SourceBound => Status::failure(
                403,
                "Forbidden",
                "the source belongs to a client certificate with another name: give each kube-apiserver a /webhook/{source} \
                 of its own",
            ),
            Self::TooManySources => {
                let message = format!("there are {MAX_SOURCES} sources already, and there may be no more");
                Status::failure(403, "Forbidden", message)
            }
            Self::ContentEncoding => Status::failure(
                415,
                "UnsupportedMediaType",
                "the body must not be compressed: remove the Content-Encoding header",
            ),
            Self::BodyTooLarge(limit) => {
                let message = format!("the body is larger than {limit} bytes (--webhook-max-body-bytes)");
                Status::failure(413, "RequestEntityTooLarge", message)
            }
            Self::Busy => retry_later(
                503,
                "ServiceUnavailable",
                "the batches in flight fill their budget (--webhook-max-inflight-bytes)",
            ),
            Self::Incomplete => bad_request("the body ended before its declared length".to_owned()),
            Self::TooSlow => retry_later(408, "Timeout", "the body did not arrive in time"),
            Self::Late => retry_later(503, "ServiceUnavailable", "the batch could not be published in time"),
            Self::ShuttingDown => retry_later(503, "ServiceUnavailable", SHUTTING_DOWN),
        }
    }
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unauthorized => Self::Unauthorized,
            Refused::TrustNotLoaded => Self::TrustNotLoaded,
            Refused::Exhausted => Self::TooManyReviews,
        }
    }
}

impl From<QueryError> for Rejection {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

fn respond(status: &Status) -> Response<Body> {
    let mut response = Response::new(wire::whole(status.to_json() + "\n"));
    *response.status_mut() = http::StatusCode::from_u16(status.code).expect("every code in this file is one of HTTP's");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, wire::JSON);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn bad_request(message: String) -> Status {
    Status::failure(400, "BadRequest", message)
}

fn retry_later(code: u16, reason: &'static str, message: &str) -> Status {
    let details = Details { retry_after_seconds: Some(RETRY_AFTER_SECONDS), ..Details::default() };
    Status::failure(code, reason, message).with_details(details)
}

fn resource_details(resource: Resource) -> Details {
    Details { group: Some(GROUP.to_owned()), kind: Some(resource.name().to_owned()), ..Details::default() }
}

fn forbidden(user: &str, attributes: &Attributes, reason: &str) -> Status {
    let user = Sanitized(user);
    let because = if reason.is_empty() { String::new() } else { format!(": {}", Sanitized(reason)) };
    match attributes {
        Attributes::Resource(asked) => {
            let slash = if asked.subresource.is_empty() { "" } else { "/" };
            let place = match &*asked.namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace \"{}\"", Sanitized(namespace)),
            };
            let message = format!(
                "{}forbidden: User \"{user}\" cannot {} resource \"{}{slash}{}\" in API group \"{}\" {place}{because}",
                about(asked),
                asked.verb,
                Sanitized(&asked.resource),
                Sanitized(&asked.subresource),
                Sanitized(&asked.group),
            );
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let [name, group, kind] = [&asked.name, &asked.group, &asked.resource].map(|text| given(text));
            Status::failure(403, "Forbidden", message).with_details(Details { name, group, kind, ..Details::default() })
        }
        Attributes::NonResource { verb, path } => {
            let message = format!("forbidden: User \"{user}\" cannot {verb} path \"{}\"{because}", Sanitized(path));
            Status::failure(403, "Forbidden", message).with_details(Details::default())
        }
    }
}

/// What a request was about, if it says: the resource with its group, and the name.
fn about(asked: &ResourceAttributes) -> String {
    let (resource, group) = (Sanitized(&asked.resource), Sanitized(&asked.group));
    let dot = if asked.group.is_empty() { "" } else { "." };
    match (&*asked.resource, &*asked.group, &*asked.name) {
        ("", "", _) => String::new(),
        (_, _, "") => format!("{resource}{dot}{group} is "),
        (_, _, name) => format!("{resource}{dot}{group} \"{}\" is ", Sanitized(name)),
    }
}

fn query(error: &QueryError) -> Status {
    match error {
        QueryError::Selector(error) => bad_request(error.to_string()),
        QueryError::LabelSelector(error) => bad_request(error.to_string()),
        QueryError::OtherName => bad_request("fieldSelector metadata.name doesn't match requested name".to_owned()),
        QueryError::BesideResourceVersion { parameter } => {
            bad_request(format!("at most one of `{parameter}` or `resourceVersion` may be specified"))
        }
        QueryError::Malformed { parameter, message } => bad_request(format!("{parameter}: {message}")),
        QueryError::Invalid(violations) => invalid(violations.iter().map(cause).collect()),
    }
}

fn cause(violation: &Violation) -> Cause {
    let (field, reason, message) = match violation {
        Violation::Forbidden { parameter, message } => {
            (*parameter, "FieldValueForbidden", format!("Forbidden: {message}"))
        }
        Violation::NotSupported { parameter, value, supported } => {
            let message = format!("Unsupported value: \"{}\": supported values: \"{supported}\"", Sanitized(value));
            (*parameter, "FieldValueNotSupported", message)
        }
        Violation::OutOfRange { parameter, value, message } => {
            (*parameter, "FieldValueInvalid", format!("Invalid value: {value}: {message}"))
        }
        Violation::ResourceVersion { value, problem } => {
            let value = Sanitized(value);
            let message = format!("Invalid value: \"{value}\": strconv.ParseUint: parsing \"{value}\": {problem}");
            ("resourceVersion", "FieldValueInvalid", message)
        }
    };
    Cause { reason: reason.into(), message, field: field.into() }
}

/// All causes in one, as upstream aggregates them. No two are the same: each parameter is looked at once for each rule.
fn invalid(causes: Vec<Cause>) -> Status {
    let told: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    let told = if let [one] = &*told { one.clone() } else { format!("[{}]", told.join(", ")) };
    let details = Details {
        group: Some("meta.k8s.io".to_owned()),
        kind: Some("ListOptions".to_owned()),
        causes,
        ..Details::default()
    };
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {told}");
    Status::failure(422, "Invalid", message).with_details(details)
}

/// Text that a peer chose, for a message that a browser might show: upstream escapes the same three.
struct Sanitized<'a>(&'a str);

impl fmt::Display for Sanitized<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(namespace: Option<&str>) -> Attributes {
        Attributes::Resource(Box::new(ResourceAttributes {
            verb: "watch",
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: "namespacedevents".to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            ..ResourceAttributes::default()
        }))
    }

    fn json(rejection: &Rejection) -> String {
        rejection.status().to_json()
    }

    #[test]
    fn bodies_are_upstreams() {
        let forbidden = |attributes, reason: &str| Rejection::Forbidden {
            user: "jane".to_owned(),
            attributes,
            reason: reason.to_owned(),
        };
        assert_eq!(
            json(&forbidden(watch(Some("team-a")), "")),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespacedevents.audit.k8s.io is forbidden: User \"jane\" cannot watch resource \"namespacedevents\" in API group \"audit.k8s.io\" in the namespace \"team-a\"","reason":"Forbidden","details":{"group":"audit.k8s.io","kind":"namespacedevents"},"code":403}"#
        );
        assert!(json(&forbidden(watch(None), "no <reason>")).contains("at the cluster scope: no &lt;reason&gt;\""));
        let path = Attributes::NonResource { verb: "get".to_owned(), path: "/metrics".to_owned() };
        assert!(
            json(&forbidden(path, "")).contains(
                r#""forbidden: User \"jane\" cannot get path \"/metrics\"","reason":"Forbidden","details":{}"#
            )
        );
        assert_eq!(
            json(&Rejection::VerbNotSupported { verb: "list", resource: Resource::Events }),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"list is not supported on resources of kind \"events.audit.k8s.io\"","reason":"MethodNotAllowed","details":{"group":"audit.k8s.io","kind":"events"},"code":405}"#
        );
        assert_eq!(
            json(&Rejection::Unauthorized),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#
        );
        let error = QueryError::Invalid(vec![Violation::Forbidden { parameter: "sendInitialEvents", message: "x" }]);
        assert_eq!(
            json(&Rejection::Query(error)),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: x","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: x","field":"sendInitialEvents"}]},"code":422}"#
        );
    }

    #[test]
    fn what_was_forbidden_is_named_as_upstream_names_it() {
        let asked = ResourceAttributes {
            verb: "get",
            resource: "pods".to_owned(),
            subresource: "<log>".to_owned(),
            name: "a&b".to_owned(),
            ..ResourceAttributes::default()
        };
        let user = "jane".to_owned();
        let rejection =
            Rejection::Forbidden { user, attributes: Attributes::Resource(Box::new(asked)), reason: String::new() };
        assert_eq!(
            json(&rejection),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"a&amp;b\" is forbidden: User \"jane\" cannot get resource \"pods/&lt;log&gt;\" in API group \"\" at the cluster scope","reason":"Forbidden","details":{"name":"a&b","kind":"pods"},"code":403}"#
        );
    }

    #[test]
    fn several_causes_are_told_together() {
        let violations = vec![
            Violation::Forbidden { parameter: "resourceVersionMatch", message: "x" },
            Violation::NotSupported {
                parameter: "resourceVersionMatch",
                value: "Exact".to_owned(),
                supported: "NotOlderThan",
            },
        ];
        assert_eq!(
            json(&Rejection::Query(QueryError::Invalid(violations))),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: x, resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"]","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: x","field":"resourceVersionMatch"},{"reason":"FieldValueNotSupported","message":"Unsupported value: \"Exact\": supported values: \"NotOlderThan\"","field":"resourceVersionMatch"}]},"code":422}"#
        );
    }

    #[test]
    fn a_number_that_is_out_of_range_is_told_in_upstreams_words() {
        let violation =
            Violation::OutOfRange { parameter: "sinceSeconds", value: 0, message: "must be greater than 0" };
        let error = QueryError::Invalid(vec![violation]);
        assert_eq!(
            json(&Rejection::Query(error)),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"ListOptions.meta.k8s.io \"\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: 0: must be greater than 0","field":"sinceSeconds"}]},"code":422}"#
        );
    }

    #[test]
    fn the_metrics_words_are_the_rejections() {
        use IngestRejection::{
            BodyTooLarge, Busy, ContentEncoding, Incomplete, Late, Method, Path, Sender, ShuttingDown, SourceBound,
            TooManySources, TooSlow, Untrusted,
        };
        let who = [Path, Method, Untrusted, Sender, SourceBound, TooManySources];
        let what = [ContentEncoding, BodyTooLarge(1), Busy, Incomplete, TooSlow, Late, ShuttingDown];
        let all: [_; IngestRejection::REASONS.len()] = [&who[..], &what].concat().try_into().unwrap();
        assert_eq!(all.map(IngestRejection::reason), IngestRejection::REASONS);
    }

    #[test]
    fn headers_tell_when_to_retry_and_what_is_allowed() {
        for later in [IngestRejection::Busy, IngestRejection::Late, IngestRejection::ShuttingDown] {
            let answer = later.into_response();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()[RETRY_AFTER]),
                (503, &HeaderValue::from_static("1"))
            );
        }
        let busy = Rejection::TooManyReviews.into_response();
        assert_eq!((busy.status().as_u16(), &busy.headers()[RETRY_AFTER]), (429, &HeaderValue::from_static("1")));
        let list = Rejection::VerbNotSupported { verb: "list", resource: Resource::Events }.into_response();
        assert_eq!((list.status().as_u16(), &list.headers()[ALLOW]), (405, &HeaderValue::from_static("GET")));
        assert!(!Rejection::NotFound.into_response().headers().contains_key(ALLOW));
    }
}
