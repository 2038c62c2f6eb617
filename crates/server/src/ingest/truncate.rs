//! An event without its bodies: what is left when a body is more than readers can take.
//!
//! Who did what, to what and with which outcome is never what is given up. Upstream truncates in the same way and with the
//! same annotation: `k8s.io/apiserver/plugin/pkg/audit/truncate/truncate.go`.

use audit_stream_api::audit::{Event, Text};
use audit_stream_api::object::write_json;

use super::batch::members_without;

/// Upstream's mark on an event whose bodies were removed.
const TRUNCATED: (&str, &str) = ("audit.k8s.io/truncated", "true");

/// Removes the bodies from an event and from its bytes, and marks both. The event still borrows from the bytes it came in.
pub(super) fn truncate(event: &mut Event<'_>, json: &str) -> String {
    event.request_object = None;
    event.response_object = None;
    event.annotations.push((Text::from(TRUNCATED.0), Text::from(TRUNCATED.1)));
    // Never empty: an event has members that are required.
    let members = members_without(json, &["requestObject", "responseObject", "annotations"]);
    let mut out = format!("{{{members},\"annotations\":{{").into_bytes();
    for (index, (key, value)) in event.annotations.iter().enumerate() {
        out.extend_from_slice(if index > 0 { b"," } else { b"" });
        write_json(&mut out, key);
        out.push(b':');
        write_json(&mut out, value);
    }
    out.extend_from_slice(b"}}");
    String::from_utf8(out).expect("made of strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truncated(annotations: &str) -> (serde_json::Value, usize) {
        let json = format!(
            r#"{{"level":"Request","requestObject":{{"a":1}},"auditID":"a","stage":"s","requestURI":"/","verb":"get","user":{{}},"responseObject":[]{annotations},"later":[1, 2]}}"#
        );
        let mut event: Event<'_> = serde_json::from_str(&json).unwrap();
        let shorter = truncate(&mut event, &json);
        assert!(event.request_object.is_none() && event.response_object.is_none());
        (serde_json::from_str(&shorter).unwrap(), event.annotations.len())
    }

    #[test]
    fn bodies_go_and_everything_else_stays() {
        let (event, annotations) = truncated(r#","annotations":{"x":"y\n"}"#);
        let expected = serde_json::json!({
            "level": "Request", "auditID": "a", "stage": "s", "requestURI": "/", "verb": "get", "user": {}, "later": [1, 2],
            "annotations": {"x": "y\n", "audit.k8s.io/truncated": "true"},
        });
        assert_eq!((event, annotations), (expected, 2));
        let (event, _) = truncated("");
        assert_eq!(event["annotations"], serde_json::json!({"audit.k8s.io/truncated": "true"}));
    }
}
