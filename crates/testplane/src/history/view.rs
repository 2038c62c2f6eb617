//! What a reader of `namespacedevents` sees of an event, by the table in `docs/privacy.md`.
//!
//! Two texts are made to be compared: what an event that was sent would look like, and what an event that was received
//! does look like. Of the second everything is kept, so that a field that should be hidden makes it an event that nobody
//! sent. Absent and empty are the same, as upstream's fields are `omitempty`; `requestURI` is compared on its own.

use serde_json::{Map, Value};

/// Stands for what is masked in a `requestURI`.
const MASK: &str = "***";

const PLAIN: [&str; 7] =
    ["level", "stage", "verb", "auditID", "userAgent", "requestReceivedTimestamp", "stageTimestamp"];

/// The members of which only some members are shown.
const PARTIAL: [(&str, &[&str]); 5] = [
    ("user", &["username", "groups"]),
    ("impersonatedUser", &["username", "groups"]),
    (
        "objectRef",
        &["resource", "namespace", "name", "uid", "apiGroup", "apiVersion", "resourceVersion", "subresource"],
    ),
    ("responseStatus", &["status", "reason", "code"]),
    (
        "annotations",
        &["authorization.k8s.io/decision", "audit.k8s.io/truncated", "k8s.io/deprecated", "k8s.io/removed-release"],
    ),
];

/// An event without its `requestURI`, as far as it is shown, and that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) shown: String,
    pub(super) uri: String,
}

/// What should be seen of an event that was sent.
pub(super) fn expected(json: &str) -> serde_json::Result<View> {
    let mut event: Map<String, Value> = serde_json::from_str(json)?;
    let uri = take_uri(&mut event);
    event.retain(|key, value| {
        let partial = PARTIAL.iter().find(|(name, _)| name == key);
        if let (Some((_, shown)), Value::Object(members)) = (partial, value) {
            members.retain(|member, _| shown.contains(&member.as_str()));
        }
        partial.is_some() || PLAIN.contains(&key.as_str())
    });
    Ok(View { shown: text(event), uri })
}

/// What is seen of an event that was received. `body` are its own members, without braces.
pub(super) fn seen(body: &[u8]) -> serde_json::Result<View> {
    let mut event: Map<String, Value> = serde_json::from_slice(&[b"{", body, b"}"].concat())?;
    let uri = take_uri(&mut event);
    Ok(View { shown: text(event), uri })
}

/// Whether a URI with masks in it may stand for the one that was sent.
pub(super) fn uri_stands_for(shown: &str, sent: &str) -> bool {
    let mut pieces = shown.split(MASK);
    let Some(mut rest) = sent.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
        last = Some(piece);
    }
    // A mask at the end stands for all that is left.
    rest.is_empty() || last == Some("")
}

fn take_uri(event: &mut Map<String, Value>) -> String {
    event.remove("requestURI").and_then(|uri| Some(uri.as_str()?.to_owned())).unwrap_or_default()
}

fn text(mut event: Map<String, Value>) -> String {
    without_empty(&mut event);
    Value::Object(event).to_string()
}

fn without_empty(members: &mut Map<String, Value>) {
    members.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => {
            without_empty(members);
            !members.is_empty()
        }
        Value::Bool(_) | Value::Number(_) => true,
    });
}
