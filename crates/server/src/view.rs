//! Which fields of an event a reader of `namespacedevents` may see.
//!
//! An allow-list: what is not named here is hidden, fields that upstream adds later too. What a body, a message or a
//! credential could carry is withheld from every reader; what was withheld from an event is named on it.
//! It does not decide who may read (`authz`) or which events (`attribution`).

use std::iter;

use audit_stream_api::audit::{
    DECISION_ANNOTATION, Event, ObjectReference, ResponseStatus, TRUNCATED_ANNOTATION, Text, User,
};
use audit_stream_api::object::{write_json, write_number};
use audit_stream_api::selector::Field;
use percent_encoding::{percent_decode, percent_decode_str};

use crate::request_info::{cut, split_uri};

/// Stands for text that the reader may not see.
const MASK: &str = "***";

/// A longer query is masked as one.
///
/// Masks can make a query two and a half times as long (`=&` becomes `=***&`), so what is shown of an event is longer than
/// the event itself by three halves of this and a few empty fields at most. Who reads a URI by eye has long given up here:
/// kubectl's own queries, command lines of `exec` included, are some hundred bytes.
pub const MAX_QUERY_BYTES: usize = 4096;

/// Annotations that name a decision and not a content. Each has to be read at all: `audit::READ_ANNOTATIONS`.
const SHOWN_ANNOTATIONS: [&str; 4] =
    [TRUNCATED_ANNOTATION, DECISION_ANNOTATION, "k8s.io/deprecated", "k8s.io/removed-release"];

/// Whether a reader of `namespacedevents` may select on a field, which is whether it is shown.
pub fn shows(field: Field) -> bool {
    match field {
        Field::SourceIps => false,
        Field::MetadataName
        | Field::MetadataNamespace
        | Field::AuditId
        | Field::Level
        | Field::Stage
        | Field::Verb
        | Field::Username
        | Field::Groups
        | Field::ImpersonatedUsername
        | Field::UserAgent
        | Field::ObjectResource
        | Field::ObjectApiGroup
        | Field::ObjectApiVersion
        | Field::ObjectNamespace
        | Field::ObjectName
        | Field::ObjectSubresource
        | Field::ObjectUid
        | Field::ResponseCode
        | Field::Decision
        | Field::RequestUri => true,
    }
}

/// Appends the fields that a reader of `namespacedevents` sees, as JSON members without braces. `request_uri` is the
/// event's, masked by [`mask_uri`].
pub fn write_shown(event: &Event<'_>, request_uri: &str, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    object.text(r#","level":"#, &event.level);
    object.text(r#","auditID":"#, &event.audit_id);
    object.text(r#","stage":"#, &event.stage);
    object.str(r#","requestURI":"#, request_uri);
    object.text(r#","verb":"#, &event.verb);
    object.nested(r#","user":"#, |user| write_user(user, &event.user));
    if let Some(impersonated) = &event.impersonated_user {
        object.nested(r#","impersonatedUser":"#, |user| write_user(user, impersonated));
    }
    object.optional_text(r#","userAgent":"#, event.user_agent.as_ref());
    if let Some(reference) = &event.object_ref {
        object.nested(r#","objectRef":"#, |object| write_reference(object, reference));
    }
    if let Some(status) = &event.response_status {
        object.nested(r#","responseStatus":"#, |object| write_status(object, status));
    }
    object.optional_text(r#","requestReceivedTimestamp":"#, event.request_received_timestamp.as_ref());
    object.optional_text(r#","stageTimestamp":"#, event.stage_timestamp.as_ref());
    let shown = event.annotations.iter().filter(|(key, _)| SHOWN_ANNOTATIONS.contains(&&**key));
    if shown.clone().next().is_some() {
        object.nested(r#","annotations":"#, |object| shown.for_each(|(key, value)| object.annotation(key, value)));
    }
}

fn write_user(object: &mut Object<'_>, user: &User<'_>) {
    object.text(r#","username":"#, &user.username);
    if !user.groups.is_empty() {
        object.texts(r#","groups":"#, &user.groups);
    }
}

fn write_reference(object: &mut Object<'_>, reference: &ObjectReference<'_>) {
    object.optional_text(r#","resource":"#, reference.resource.as_ref());
    object.optional_text(r#","namespace":"#, reference.namespace.as_ref());
    object.optional_text(r#","name":"#, reference.name.as_ref());
    object.optional_text(r#","uid":"#, reference.uid.as_ref());
    object.optional_text(r#","apiGroup":"#, reference.api_group.as_ref());
    object.optional_text(r#","apiVersion":"#, reference.api_version.as_ref());
    object.optional_text(r#","resourceVersion":"#, reference.resource_version.as_ref());
    object.optional_text(r#","subresource":"#, reference.subresource.as_ref());
}

fn write_status(object: &mut Object<'_>, status: &ResponseStatus<'_>) {
    object.nested(r#","metadata":"#, |_| {});
    object.optional_text(r#","status":"#, status.status.as_ref());
    object.optional_text(r#","reason":"#, status.reason.as_ref());
    if let Some(code) = status.code {
        object.number(r#","code":"#, code);
    }
}

/// Appends the names of the fields that [`write_shown`] leaves out of this event, separated by commas. Fields that are
/// unknown inside a known one are left out without a name.
pub fn write_withheld_names(event: &Event<'_>, request_uri: &str, out: &mut Vec<u8>) {
    let user = |user: Option<&User<'_>>| {
        (user.is_some_and(|user| user.uid.is_some()), user.is_some_and(|user| user.has_extra))
    };
    let (user_uid, user_extra) = user(Some(&event.user));
    let (impersonated_uid, impersonated_extra) = user(event.impersonated_user.as_ref());
    let status = event.response_status.as_ref();
    let hides_annotations =
        event.has_other_annotations || event.annotations.iter().any(|(key, _)| !SHOWN_ANNOTATIONS.contains(&&**key));
    let known = [
        ("requestURI", request_uri != &*event.request_uri),
        ("user.uid", user_uid),
        ("user.extra", user_extra),
        ("impersonatedUser.uid", impersonated_uid),
        ("impersonatedUser.extra", impersonated_extra),
        ("sourceIPs", !event.source_ips.is_empty()),
        ("responseStatus.message", status.is_some_and(|status| status.has_message)),
        ("responseStatus.details", status.is_some_and(|status| status.has_details)),
        ("requestObject", event.has_request_object),
        ("responseObject", event.has_response_object),
        ("annotations", hides_annotations),
    ];
    let known = known.iter().filter(|(_, present)| *present).map(|(name, _)| *name);
    let start = out.len();
    for name in known.chain(event.unknown_fields.iter().map(|name| &**name)) {
        if out.len() > start {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
    }
}

/// A request URI without what a client may have carried in it; `None` where nothing had to be masked.
///
/// Masked are the values of query parameters that are not known to be harmless, a query that is longer than
/// [`MAX_QUERY_BYTES`], and all that follows a `proxy` segment, the query included: it is for whatever is proxied to.
pub fn mask_uri(uri: &str) -> Option<String> {
    let (path, query) = split_uri(uri);
    if let Some(proxied) = after_proxy_segment(path) {
        let (kept, rest) = uri.split_at(proxied);
        let separator = if rest.starts_with('?') { '?' } else { '/' };
        return (!rest.is_empty()).then(|| format!("{kept}{separator}{MASK}"));
    }
    let query = query?;
    if query.len() > MAX_QUERY_BYTES {
        return Some(format!("{path}?{MASK}"));
    }
    // Go takes a semicolon for a mistake, so what follows one is not the parameter's value.
    let shown = |pair: &str| match cut(pair, b'=') {
        (key, Some(value)) => shows_parameter(key) && memchr::memchr(b';', value.as_bytes()).is_none(),
        (_, None) => true,
    };
    if pairs(query).all(shown) {
        return None;
    }
    let mut masked = format!("{path}?");
    for (index, pair) in pairs(query).enumerate() {
        masked.push_str(if index > 0 { "&" } else { "" });
        match cut(pair, b'=') {
            (key, Some(_)) if !shown(pair) => masked.extend([key, "=", MASK]),
            _ => masked.push_str(pair),
        }
    }
    Some(masked)
}

/// What ampersands separate; at least one, which may be empty.
fn pairs(query: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(query);
    iter::from_fn(move || {
        let (pair, behind) = cut(rest?, b'&');
        rest = behind;
        Some(pair)
    })
}

/// Where the path's first `proxy` segment ends.
fn after_proxy_segment(path: &str) -> Option<usize> {
    let bytes = path.as_bytes();
    // Nearly every path ends here.
    if !bytes.contains(&b'%') && !path.contains("proxy") {
        return None;
    }
    let mut start = 0;
    for at in 0..=bytes.len() {
        // kube-apiserver splits what it has decoded, so an encoded slash separates as well as a plain one.
        let separator = match &bytes[at..] {
            [b'/', ..] => 1,
            [b'%', b'2', b'F' | b'f', ..] => 3,
            [] => 0,
            _ => continue,
        };
        if percent_decode(&bytes[start..at]).eq(b"proxy".iter().copied()) {
            return Some(at);
        }
        start = at + separator;
    }
    None
}

/// Whether a query parameter's value says how a request was made and not what it carries. All other values are masked:
/// `exec` has its command line there, and a proxied request whatever its server understands.
fn is_shown_parameter(name: &str) -> bool {
    matches!(
        name,
        "allowWatchBookmarks"
            | "container"
            | "dryRun"
            | "fieldManager"
            | "fieldSelector"
            | "fieldValidation"
            | "follow"
            | "force"
            | "gracePeriodSeconds"
            | "labelSelector"
            | "limit"
            | "limitBytes"
            | "orphanDependents"
            | "pretty"
            | "previous"
            | "propagationPolicy"
            | "resourceVersion"
            | "resourceVersionMatch"
            | "sendInitialEvents"
            | "sinceSeconds"
            | "stderr"
            | "stdin"
            | "stdout"
            | "tailLines"
            | "timeout"
            | "timeoutSeconds"
            | "timestamps"
            | "tty"
            | "watch"
    )
}

fn shows_parameter(key: &str) -> bool {
    is_shown_parameter(key) || (key.contains('%') && is_shown_parameter(&percent_decode_str(key).decode_utf8_lossy()))
}

/// Whether the event's bodies are live credentials: a token request's or a token review's. No reader gets those, readers
/// of `events` neither.
pub fn bodies_are_credentials(event: &Event<'_>) -> bool {
    let Some(reference) = &event.object_ref else { return false };
    let is = |field: &Option<Text<'_>>, value: &str| field.as_ref().is_some_and(|field| &**field == value);
    is(&reference.subresource, "token") || is(&reference.resource, "tokenreviews")
}

/// Writes the members of one JSON object.
///
/// A key is given as it is written behind another member: with a comma, quotes, and a colon.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    any: bool,
}

impl<'a> Object<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, any: false }
    }

    fn key(&mut self, key: &str) {
        let written = if std::mem::replace(&mut self.any, true) { key } else { &key[1..] };
        self.out.extend_from_slice(written.as_bytes());
    }

    fn annotation(&mut self, key: &Text<'_>, value: &Text<'_>) {
        self.key(",");
        key.write_json(self.out);
        self.out.push(b':');
        value.write_json(self.out);
    }

    fn text(&mut self, key: &str, value: &Text<'_>) {
        self.key(key);
        value.write_json(self.out);
    }

    fn str(&mut self, key: &str, value: &str) {
        self.key(key);
        write_json(self.out, value);
    }

    fn optional_text(&mut self, key: &str, value: Option<&Text<'_>>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn texts(&mut self, key: &str, values: &[Text<'_>]) {
        self.key(key);
        for (index, value) in values.iter().enumerate() {
            self.out.push(if index == 0 { b'[' } else { b',' });
            value.write_json(self.out);
        }
        self.out.push(b']');
    }

    fn number(&mut self, key: &str, value: i32) {
        self.key(key);
        write_number(self.out, value);
    }

    fn nested(&mut self, key: &str, write: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        self.out.push(b'{');
        write(&mut Object::new(self.out));
        self.out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use audit_stream_api::audit::READ_ANNOTATIONS;

    use super::*;

    fn withhold(event: &str) -> (serde_json::Value, String) {
        let event = Event::parse(event).unwrap();
        let masked = mask_uri(&event.request_uri);
        let uri = masked.as_deref().unwrap_or(&event.request_uri);
        let (mut shown, mut names) = (b"{".to_vec(), Vec::new());
        write_shown(&event, uri, &mut shown);
        write_withheld_names(&event, uri, &mut names);
        shown.push(b'}');
        (serde_json::from_slice(&shown).unwrap(), String::from_utf8(names).unwrap())
    }

    #[test]
    fn everything_hidden_is_gone_and_named() {
        let (seen, withheld) = withhold(
            r#"{"level":"RequestResponse","auditID":"a","stage":"ResponseComplete","requestURI":"/x?command=SECRET","verb":"create",
            "user":{"username":"alice","uid":"SECRET","groups":["dev","ops"],"extra":{"k":["SECRET"]}},
            "impersonatedUser":{"username":"bob","uid":"SECRET","extra":{"SECRET":[]}},
            "sourceIPs":["SECRET"],"userAgent":"kubectl",
            "objectRef":{"resource":"pods","namespace":"shop","name":"p","uid":"u","apiGroup":"g","apiVersion":"v1",
              "resourceVersion":"7","subresource":"exec"},
            "responseStatus":{"metadata":{},"status":"Failure","message":"SECRET","reason":"Forbidden","details":{"name":"SECRET"},"code":403},
            "requestObject":{"a":"SECRET"},"responseObject":{"a":"SECRET"},
            "requestReceivedTimestamp":"2026-11-20T15:00:00.000000Z","stageTimestamp":"2026-11-20T15:00:01.000000Z",
            "annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":"SECRET",
              "patch.webhook.admission.k8s.io/round_0_index_0":"SECRET"},
            "authenticationMetadata":{"x":"SECRET"},"added-upstream-next-year":"SECRET"}"#,
        );
        assert!(!seen.to_string().contains("SECRET"), "{seen}");
        assert_eq!(
            seen,
            serde_json::json!({
                "level": "RequestResponse", "auditID": "a", "stage": "ResponseComplete", "requestURI": "/x?command=***", "verb": "create",
                "user": {"username": "alice", "groups": ["dev", "ops"]},
                "impersonatedUser": {"username": "bob"},
                "userAgent": "kubectl",
                "objectRef": {"resource": "pods", "namespace": "shop", "name": "p", "uid": "u", "apiGroup": "g", "apiVersion": "v1",
                    "resourceVersion": "7", "subresource": "exec"},
                "responseStatus": {"metadata": {}, "status": "Failure", "reason": "Forbidden", "code": 403},
                "requestReceivedTimestamp": "2026-11-20T15:00:00.000000Z", "stageTimestamp": "2026-11-20T15:00:01.000000Z",
                "annotations": {"authorization.k8s.io/decision": "forbid"},
            })
        );
        assert_eq!(
            withheld,
            "requestURI,user.uid,user.extra,impersonatedUser.uid,impersonatedUser.extra,sourceIPs,responseStatus.message,\
             responseStatus.details,requestObject,responseObject,annotations,authenticationMetadata,added-upstream-next-year"
        );
    }

    #[test]
    fn an_event_with_nothing_to_hide_is_whole() {
        let event = r#"{"level":"Metadata","auditID":"a\nb","stage":"RequestReceived","requestURI":"/api","verb":"get","user":{"username":"\u0001"}}"#;
        let (seen, withheld) = withhold(event);
        assert_eq!(seen, serde_json::from_str::<serde_json::Value>(event).unwrap());
        assert_eq!(withheld, "");
    }

    #[test]
    fn uris_are_masked() {
        let masked = [
            (
                "/a/pods/p/exec?command=ls&command=-la&container=c&stdin=true",
                "/a/pods/p/exec?command=***&command=***&container=c&stdin=true",
            ),
            ("/a?c%6Fntainer=c&w%61tch=1&t%6Fken=x", "/a?c%6Fntainer=c&w%61tch=1&t%6Fken=***"),
            ("/a?Watch=1", "/a?Watch=***"),
            ("/a?watch=1;command=secret&limit=5", "/a?watch=***&limit=5"),
            ("/a?watch=1&=x&x==y", "/a?watch=1&=***&x=***"),
            ("/a/services/s/proxy/admin/key?watch=1", "/a/services/s/proxy/***"),
            ("/a/pods/p/proxy?container=secret", "/a/pods/p/proxy?***"),
            ("/a/services/s/pr%6Fxy/admin", "/a/services/s/pr%6Fxy/***"),
            ("/a/services/s%2Fproxy%2fadmin", "/a/services/s%2Fproxy/***"),
            ("/ä/proxy/ö", "/ä/proxy/***"),
            ("/api/v1/proxy/namespaces/x/pods/p/secret", "/api/v1/proxy/***"),
            ("/proxy/proxy/x", "/proxy/***"),
        ];
        for (uri, expected) in masked {
            assert_eq!(mask_uri(uri).as_deref(), Some(expected), "{uri}");
        }
        for plain in [
            "/a/pods?watch=1&fieldSelector=a%3Db",
            "/a/pods/proxy",
            "/a/proxyx/y",
            "/",
            "",
            "?",
            "/a?",
            "/a?&",
            "/%",
            "/proxy",
        ] {
            assert_eq!(mask_uri(plain), None, "{plain}");
        }
    }

    #[test]
    fn a_long_query_is_masked_as_one() {
        let query =
            |length: usize| format!("command=secret&limit={}", "5".repeat(length - "command=secret&limit=".len()));
        let longest = mask_uri(&format!("/a?{}", query(MAX_QUERY_BYTES))).unwrap();
        assert!(longest.starts_with("/a?command=***&limit=555"), "{longest}");
        assert_eq!(mask_uri(&format!("/a?{}", query(MAX_QUERY_BYTES + 1))).as_deref(), Some("/a?***"));
        assert_eq!(mask_uri(&format!("/a?{}", "&".repeat(1 << 20))).as_deref(), Some("/a?***"), "unmasked or not");
        assert_eq!(mask_uri(&format!("/a/proxy/b?{}", "&".repeat(1 << 20))).as_deref(), Some("/a/proxy/***"));
    }

    #[test]
    fn what_is_shown_is_read() {
        assert!(SHOWN_ANNOTATIONS.iter().all(|shown| READ_ANNOTATIONS.contains(shown)));
    }
}
