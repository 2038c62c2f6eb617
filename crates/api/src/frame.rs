//! The frames of a watch that carry no event: BOOKMARK and ERROR. A frame is one line of JSON.
//!
//! Source: `k8s.io/apimachinery/pkg/apis/meta/v1` `WatchEvent`.

use serde::Serialize;

use crate::object::GAP_ANNOTATION;
use crate::status::Status;
use crate::{GROUP, Resource, Sequence, Version};

/// What a bookmark may say beside the position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// Set on the bookmark that closes the (always empty) initial state of a watch with `sendInitialEvents`.
    pub initial_events_end: bool,
    /// An announced gap, as JSON text.
    pub gap: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkObject<'a> {
    kind: &'static str,
    api_version: String,
    metadata: BookmarkMeta<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta<'a> {
    resource_version: String,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    annotations: &'a serde_json::Map<String, serde_json::Value>,
}

/// A BOOKMARK frame: everything up to `position` has been served.
pub fn bookmark(resource: Resource, version: Version, position: Sequence, bookmark: Bookmark) -> String {
    let mut annotations = serde_json::Map::new();
    if bookmark.initial_events_end {
        annotations.insert("k8s.io/initial-events-end".to_owned(), "true".into());
    }
    if let Some(gap) = bookmark.gap {
        annotations.insert(GAP_ANNOTATION.to_owned(), gap.into());
    }
    let object = BookmarkObject {
        kind: resource.kind(),
        api_version: format!("{GROUP}/{}", version.as_str()),
        metadata: BookmarkMeta { resource_version: position.to_string(), annotations: &annotations },
    };
    frame("BOOKMARK", &object)
}

/// An ERROR frame, the last of its watch.
pub fn error(status: &Status) -> String {
    frame("ERROR", status)
}

fn frame(kind: &str, object: &impl Serialize) -> String {
    let object = serde_json::to_string(object).expect("strings, numbers and maps of them always serialise");
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_bookmark() {
        assert_eq!(
            bookmark(Resource::NamespacedEvents, Version::V1, Sequence::new(12), Bookmark::default()),
            "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"NamespacedEvent\",\"apiVersion\":\"audit.k8s.io/v1\",\
             \"metadata\":{\"resourceVersion\":\"12\"}}}\n"
        );
        let with_both = Bookmark { initial_events_end: true, gap: Some(r#"{"count":null}"#.to_owned()) };
        assert_eq!(
            bookmark(Resource::Events, Version::V1beta1, Sequence::new(1), with_both),
            "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1beta1\",\"metadata\":\
             {\"resourceVersion\":\"1\",\"annotations\":{\"audit-stream.dev/gap\":\"{\\\"count\\\":null}\",\
             \"k8s.io/initial-events-end\":\"true\"}}}}\n"
        );
    }

    #[test]
    fn bytes_of_an_error() {
        assert_eq!(
            error(&Status::failure(410, "Expired", "too old resource version: 5 (100)")),
            "{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"too old resource version: 5 (100)\",\"reason\":\"Expired\",\"code\":410}}\n"
        );
    }
}
