//! Events that are more than readers can take: how much that is, and what is left out of them, in which order.
//!
//! Who did what, to what and with which outcome is never left out: what a client could pad an event with, to be unseen, goes
//! first. Upstream takes the bodies out in the same way and marks the event with the same annotation:
//! `k8s.io/apiserver/plugin/pkg/audit/truncate/truncate.go`.

use std::borrow::Cow;

use audit_stream_api::audit::{DECISION_ANNOTATION, TRUNCATED_ANNOTATION, is_known_field};
use audit_stream_api::json::{self, Reader};
use audit_stream_api::object::write_json;

use super::batch::members_that;
use crate::request_info::split_uri;
use crate::view::MAX_QUERY_BYTES;

/// Bytes of one event, as JSON: what a reader of one event has to hold at a time.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// Go's `encoding/json` refuses what nests deeper than 10,000, so no Go watcher could read it. The frame is one level.
const MAX_DEPTH: usize = 9_999;

/// Client libraries say who they are in some 200 bytes, browsers in 500.
const MAX_USER_AGENT_BYTES: usize = 1024;

/// The last ones: the last of all is the peer that kube-apiserver saw, the ones before it are claims of whoever came before.
const MAX_SOURCE_IPS: usize = 16;

/// An IPv6 address is 45 bytes at most.
const MAX_SOURCE_IP_BYTES: usize = 64;

/// The one that kube-apiserver makes is a UUID of 36 bytes.
const MAX_AUDIT_ID_BYTES: usize = 256;

/// In which way an event is more than readers can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It nests deeper than [`MAX_DEPTH`].
    Depth,
    /// It is longer than [`MAX_EVENT_BYTES`].
    Size,
}

impl Excess {
    /// Both ways.
    pub(crate) const ALL: [Self; 2] = [Self::Depth, Self::Size];

    /// What is too much about an event, if anything is.
    pub(super) fn of(json: &str) -> Option<Self> {
        if too_deep(json) { Some(Self::Depth) } else { (json.len() > MAX_EVENT_BYTES).then_some(Self::Size) }
    }

    /// The word of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Depth => "depth",
            Self::Size => "size",
        }
    }
}

/// What is left out, in this order and only until the rest is short enough. The bodies go in any case: nothing else that a
/// client writes can nest too deep.
const STEPS: [fn(&mut Draft<'_>); 9] = [
    |draft| draft.keep(|name| !matches!(name, "requestObject" | "responseObject")),
    |draft| draft.cut_text("requestURI", with_longest_query),
    |draft| draft.cut_text("userAgent", |_| MAX_USER_AGENT_BYTES),
    |draft| draft.cut_source_ips(),
    |draft| draft.cut_text("auditID", |_| MAX_AUDIT_ID_BYTES),
    |draft| draft.keep_in("responseStatus", &["metadata", "status", "reason", "code"]),
    |draft| draft.keep_in("annotations", &[DECISION_ANNOTATION, TRUNCATED_ANNOTATION]),
    |draft| draft.keep(is_known_field),
    |draft| ["user", "impersonatedUser"].iter().for_each(|user| draft.keep_in(user, &["username", "uid", "groups"])),
];

/// An event without what makes it too much, and with upstream's mark. It may be too much still: no path, name or group is
/// cut, because they say who did what.
pub(super) fn truncate(json: &str) -> String {
    let mut draft = Draft::of(json);
    let mut shorter = String::new();
    for step in STEPS {
        step(&mut draft);
        shorter = draft.to_json();
        if shorter.len() <= MAX_EVENT_BYTES {
            break;
        }
    }
    shorter
}

/// An event that is being made shorter. What no step has touched is as it came.
struct Draft<'a> {
    /// Names, and values as JSON.
    members: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Draft<'a> {
    fn of(json: &'a str) -> Self {
        let members = json::members(json).unwrap_or_default().into_iter();
        let members = members.map(|(name, value)| (name, Cow::Borrowed(value)));
        let mut draft = Self { members: members.collect() };
        draft.mark();
        draft
    }

    fn mark(&mut self) {
        if self.value("annotations").is_none() {
            self.members.push((Cow::Borrowed("annotations"), Cow::Borrowed("{}")));
        }
        if let Some(annotations) = self.value("annotations") {
            // kube-apiserver may have marked it too, and no key may be there twice.
            let others = members_that(annotations, |key| key != TRUNCATED_ANNOTATION);
            let comma = if others.is_empty() { "" } else { "," };
            *annotations = Cow::Owned(format!("{{{others}{comma}\"{TRUNCATED_ANNOTATION}\":\"true\"}}"));
        }
    }

    fn value(&mut self, name: &str) -> Option<&mut Cow<'a, str>> {
        self.members.iter_mut().find(|(key, _)| &**key == name).map(|(_, value)| value)
    }

    fn keep(&mut self, kept: impl Fn(&str) -> bool) {
        self.members.retain(|(name, _)| kept(name));
    }

    fn keep_in(&mut self, name: &str, kept: &[&str]) {
        // `null` has no members to choose from.
        if let Some(object) = self.value(name).filter(|value| value.starts_with('{')) {
            *object = Cow::Owned(format!("{{{}}}", members_that(object, |key| kept.contains(&key))));
        }
    }

    /// Cuts a string to the bytes that `longest` allows it.
    fn cut_text(&mut self, name: &str, longest: impl Fn(&str) -> usize) {
        let Some(value) = self.value(name) else { return };
        let Ok(Some(text)) = Reader::new(value).optional(Reader::string) else { return };
        let longest = longest(&text);
        if text.len() > longest {
            let mut shorter = Vec::new();
            write_json(&mut shorter, cut(&text, longest));
            *value = Cow::Owned(string(shorter));
        }
    }

    fn cut_source_ips(&mut self) {
        let Some(value) = self.value("sourceIPs") else { return };
        let mut addresses = Vec::new();
        let read = Reader::new(value).list(|reader| reader.string().map(|address| addresses.push(address)));
        if read.is_err() {
            return;
        }
        let mut shorter = b"[".to_vec();
        let first = addresses.len().saturating_sub(MAX_SOURCE_IPS);
        for (index, address) in addresses[first..].iter().enumerate() {
            shorter.extend_from_slice(if index > 0 { b"," } else { b"" });
            write_json(&mut shorter, cut(address, MAX_SOURCE_IP_BYTES));
        }
        shorter.push(b']');
        *value = Cow::Owned(string(shorter));
    }

    fn to_json(&self) -> String {
        let mut json = b"{".to_vec();
        for (index, (name, value)) in self.members.iter().enumerate() {
            json.extend_from_slice(if index > 0 { b"," } else { b"" });
            write_json(&mut json, name);
            json.push(b':');
            json.extend_from_slice(value.as_bytes());
        }
        json.push(b'}');
        string(json)
    }
}

/// How long a URI is with as much of its query as may stay.
fn with_longest_query(uri: &str) -> usize {
    let (path, query) = split_uri(uri);
    path.len() + query.map_or(0, |_| "?".len() + MAX_QUERY_BYTES)
}

fn cut(text: &str, longest: usize) -> &str {
    &text[..text.floor_char_boundary(longest)]
}

fn string(json: Vec<u8>) -> String {
    String::from_utf8(json).expect("made of strings")
}

/// Whether a well-formed value nests deeper than [`MAX_DEPTH`].
fn too_deep(json: &str) -> bool {
    // A level has two brackets, so what is short has too few, and next to nothing that is long has so many.
    let opening = |bracket| memchr::memchr_iter(bracket, json.as_bytes()).count();
    if json.len() <= 2 * MAX_DEPTH || opening(b'{') + opening(b'[') <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    json.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

#[cfg(test)]
mod tests;
