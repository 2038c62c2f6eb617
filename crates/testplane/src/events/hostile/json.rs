//! The text of a generated event: kube-apiserver's fields in its order, at level `Metadata`, about 1.2 KB.

use std::time::{Duration, SystemTime};

use super::request::{Reference, Request};
use crate::events::wire::micro_time;

/// How many users there are.
pub(super) const USERS: u8 = 8;

/// What is put on record.
pub(super) struct Recorded<'a> {
    pub(super) request: &'a Request,
    pub(super) audit_id: &'a str,
    pub(super) user: u8,
    pub(super) agent: &'a str,
    pub(super) received: SystemTime,
}

pub(super) fn username(user: u8) -> String {
    format!("user-{user}")
}

pub(super) fn write(recorded: &Recorded<'_>) -> String {
    let Recorded { request, audit_id, user, agent, received } = *recorded;
    let user = username(user);
    // Room for most; audit IDs can be longer than everything else.
    let mut out = String::with_capacity(1536 + audit_id.len());
    out.push_str(r#"{"level":"Metadata","auditID":"#);
    text(&mut out, audit_id);
    out.push_str(r#","stage":"ResponseComplete","requestURI":"#);
    text(&mut out, &request.uri);
    out.push_str(r#","verb":""#);
    out.push_str(request.verb);
    out.push_str(r#"","user":{"username":""#);
    out.push_str(&user);
    out.push_str(USER);
    out.push_str(r#"},"sourceIPs":["203.0.113.9","10.0.0.7"],"userAgent":"#);
    text(&mut out, agent);
    if let Some(reference) = &request.reference {
        write_reference(&mut out, reference);
    }
    write_outcome(&mut out, request, &user);
    out.push_str(r#""requestReceivedTimestamp":""#);
    out.push_str(&micro_time(received));
    out.push_str(r#"","stageTimestamp":""#);
    out.push_str(&micro_time(received + Duration::from_millis(2)));
    out.push_str(r#"","annotations":{"authorization.k8s.io/decision":"#);
    write_decision(&mut out, request, &user);
    out.push_str("}}");
    out
}

/// What follows a user's name: a certificate, as kube-apiserver records it since 1.32.
const USER: &str = concat!(
    r#"","uid":"6f7c0b5e-3d0f-4f1c-9f43-0c1a2b3c4d5e","groups":["developers","on-call","system:authenticated"],"#,
    r#""extra":{"authentication.kubernetes.io/credential-id":["X509SHA256="#,
    r#"0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"]}"#,
);

fn write_reference(out: &mut String, reference: &Reference) {
    let Reference { resource, namespace, name, group, version, subresource } = reference;
    out.push_str(r#","objectRef":{"#);
    let start = out.len();
    for (key, value) in [
        ("\"resource\":", resource),
        ("\"namespace\":", namespace),
        ("\"name\":", name),
        ("\"apiGroup\":", group),
        ("\"apiVersion\":", version),
        ("\"subresource\":", subresource),
    ] {
        if value.is_empty() {
            continue;
        }
        if out.len() > start {
            out.push(',');
        }
        out.push_str(key);
        text(out, value);
    }
    out.push('}');
}

fn write_outcome(out: &mut String, request: &Request, user: &str) {
    out.push_str(r#","responseStatus":{"metadata":{},"#);
    if request.code == 403 {
        out.push_str(r#""status":"Failure","message":"it is forbidden: User \""#);
        out.push_str(user);
        out.push_str(r#"\" cannot do this here","reason":"Forbidden","details":{},"#);
    }
    out.push_str(r#""code":"#);
    out.push_str(&request.code.to_string());
    out.push_str("},");
}

fn write_decision(out: &mut String, request: &Request, user: &str) {
    if request.code == 403 {
        out.push_str(r#""forbid","authorization.k8s.io/reason":"""#);
        return;
    }
    out.push_str(r#""allow","authorization.k8s.io/reason":"RBAC: allowed by ClusterRoleBinding \"everybody-may-do-"#);
    out.push_str(r#"everything-here\" of ClusterRole \"edit-and-a-little-more\" to User \""#);
    out.push_str(user);
    out.push_str(r#"\"""#);
}

/// A JSON string as Go's encoder writes it.
fn text(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || matches!(c, '"' | '\\' | '<' | '>' | '&')) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let special = special.as_bytes()[0];
        match special {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            _ => out.push_str(&format!("\\u{special:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}
