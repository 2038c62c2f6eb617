//! The object that a watcher receives, and the ADDED frame around it.
//!
//! An audit event has no `ObjectMeta` and the items of a webhook's list have no `kind` and `apiVersion`; a watch client
//! needs all three. They come first, and the event's own fields follow as they are.

use std::fmt;

use serde::Serialize;

use crate::{GROUP, Resource, Sequence, Version};

/// Announces events that the reader was entitled to and did not get. Its value is a [`Gap`] as JSON.
pub const GAP_ANNOTATION: &str = "audit-stream.dev/gap";

/// Names the fields of the event that the reader may not see.
pub const WITHHELD_ANNOTATION: &str = "audit-stream.dev/withheld";

/// What a [`Name`] begins with.
const NAME_PREFIX: &str = "event-";

/// The metadata of one object.
#[derive(Debug, Clone, Copy)]
pub struct ObjectMeta<'a> {
    /// The attributed namespace, a DNS-1123 label; on `NamespacedEvent` only.
    pub namespace: Option<&'a str>,
    /// `resourceVersion`, and what `name` is made from.
    pub sequence: Sequence,
    /// The stage's time in whole seconds, RFC 3339 without the `Z`, and so without anything to escape.
    pub creation_timestamp: Option<&'a str>,
    /// Comma-separated names of withheld fields.
    pub withheld: Option<&'a str>,
    /// A [`Gap`] as JSON.
    pub gap: Option<&'a str>,
}

/// The object's `metadata.name`: unique, made by the server, a DNS-1123 subdomain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(pub Sequence);

impl Name {
    /// The name that is written so, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        let name = Self(text.strip_prefix(NAME_PREFIX)?.parse().ok()?);
        // One spelling each: `event-07` is nobody's.
        (!text[NAME_PREFIX.len()..].starts_with('0')).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME_PREFIX}{}", self.0)
    }
}

/// Appends one ADDED frame. `fields` appends the event's own, without braces, `kind`, `apiVersion` and `metadata`.
pub fn write_added(
    out: &mut Vec<u8>,
    resource: Resource,
    version: Version,
    meta: ObjectMeta<'_>,
    fields: impl FnOnce(&mut Vec<u8>),
) {
    write_all(
        out,
        [r#"{"type":"ADDED","object":{"kind":""#, resource.kind(), r#"","apiVersion":""#, GROUP, "/", version.as_str()],
    );
    out.extend_from_slice(br#"","metadata":"#);
    write_meta(out, meta);
    out.push(b',');
    fields(out);
    out.extend_from_slice(b"}}\n");
}

fn write_meta(out: &mut Vec<u8>, meta: ObjectMeta<'_>) {
    let ObjectMeta { namespace, sequence, creation_timestamp, withheld, gap } = meta;
    let mut digits = itoa::Buffer::new();
    let sequence = digits.format(sequence.get());
    write_all(out, [r#"{"name":""#, NAME_PREFIX, sequence, r#"","#]);
    if let Some(namespace) = namespace {
        // A DNS-1123 label: nothing in it needs escaping.
        write_all(out, [r#""namespace":""#, namespace, r#"","#]);
    }
    write_all(out, [r#""resourceVersion":""#, sequence, r#"""#]);
    if let Some(timestamp) = creation_timestamp {
        write_all(out, [r#","creationTimestamp":""#, timestamp, r#"Z""#]);
    }
    if withheld.is_some() || gap.is_some() {
        out.extend_from_slice(b",\"annotations\":{");
        let annotations = [(GAP_ANNOTATION, gap), (WITHHELD_ANNOTATION, withheld)];
        let present = annotations.into_iter().filter_map(|(key, value)| Some((key, value?)));
        for (index, (key, value)) in present.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_json(out, key);
            out.push(b':');
            write_json(out, value);
        }
        out.push(b'}');
    }
    out.push(b'}');
}

fn write_all<const N: usize>(out: &mut Vec<u8>, parts: [&str; N]) {
    parts.into_iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// Appends `text` as a JSON string.
pub fn write_json(out: &mut Vec<u8>, text: &str) {
    if needs_escapes(text) {
        serde_json::to_writer(out, text).expect("a string always serialises, and a Vec takes every byte");
    } else {
        write_all(out, ["\"", text, "\""]);
    }
}

/// What [`write_json`] appends at most.
pub fn max_json_bytes(text: &str) -> usize {
    // The longest escape of a byte is `\u00` and two digits.
    let most_of_a_byte = if needs_escapes(text) { 6 } else { 1 };
    text.len() * most_of_a_byte + 2
}

/// Appends `number` in decimal.
pub fn write_number(out: &mut Vec<u8>, number: i32) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Whether a JSON string cannot hold the text as it is. Nearly all can, and copying is many times faster than looking for
/// escapes one by one.
fn needs_escapes(text: &str) -> bool {
    // Looks at every byte: without an early end, several are compared at a time.
    text.bytes().fold(false, |found, byte| found | (byte < b' ') | (byte == b'"') | (byte == b'\\'))
}

/// Events that a reader was entitled to and did not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// How many events of the reader's own class; `None` when that cannot be known without telling what others do.
    pub count: Option<u64>,
    /// How many events arrived without their bodies.
    pub truncated: u64,
    /// Why.
    pub reason: GapReason,
    /// When the gap began, RFC 3339.
    pub since: String,
}

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// The reader fell out of the retained window.
    Lag,
    /// An event, or a whole batch, was over a size limit.
    Oversize,
    /// What a source sent could not be read.
    Malformed,
    /// A source's batches are refused in a way that no retry mends.
    Source,
}

impl GapReason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lag, Self::Oversize, Self::Malformed, Self::Source];

    /// The word on the wire, in metrics and in docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::Oversize => "oversize",
            Self::Malformed => "malformed",
            Self::Source => "source",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const META: ObjectMeta<'_> = ObjectMeta {
        namespace: None,
        sequence: Sequence::new(7),
        creation_timestamp: Some("2026-11-20T15:00:00"),
        withheld: None,
        gap: None,
    };

    fn added(resource: Resource, meta: ObjectMeta<'_>) -> String {
        let mut out = Vec::new();
        write_added(&mut out, resource, Version::V1, meta, |out| out.extend_from_slice(br#""level":"Metadata""#));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(Name::parse(&Name(Sequence::new(7)).to_string()), Some(Name(Sequence::new(7))));
        for no_name in ["", "event-", "event-07", "event-+7", "7", "event-7 "] {
            assert_eq!(Name::parse(no_name), None, "{no_name}");
        }
    }

    #[test]
    fn the_wire_and_the_metrics_say_the_same_word() {
        for reason in GapReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn bytes_of_an_event() {
        assert_eq!(
            added(Resource::Events, META),
            "{\"type\":\"ADDED\",\"object\":{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":\
             {\"name\":\"event-7\",\"resourceVersion\":\"7\",\"creationTimestamp\":\"2026-11-20T15:00:00Z\"},\
             \"level\":\"Metadata\"}}\n"
        );
    }

    #[test]
    fn bytes_of_a_namespaced_event_with_annotations() {
        let gap = Gap { count: None, truncated: 0, reason: GapReason::Lag, since: "2026-11-20T14:59:00Z".to_owned() };
        let gap = serde_json::to_string(&gap).unwrap();
        let meta = ObjectMeta { namespace: Some("shop"), withheld: Some("user.uid"), gap: Some(&gap), ..META };
        assert_eq!(
            added(Resource::NamespacedEvents, meta),
            "{\"type\":\"ADDED\",\"object\":{\"kind\":\"NamespacedEvent\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":\
             {\"name\":\"event-7\",\"namespace\":\"shop\",\"resourceVersion\":\"7\",\
             \"creationTimestamp\":\"2026-11-20T15:00:00Z\",\"annotations\":{\"audit-stream.dev/gap\":\
             \"{\\\"count\\\":null,\\\"truncated\\\":0,\\\"reason\\\":\\\"lag\\\",\\\"since\\\":\\\"2026-11-20T14:59:00Z\\\"}\",\
             \"audit-stream.dev/withheld\":\"user.uid\"}},\
             \"level\":\"Metadata\"}}\n"
        );
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, -1, 200, i32::MIN, i32::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        // What is copied as it is must be what would have been written.
        #[test]
        fn text_is_written_as_serde_json_writes_it(plain in ".{0,80}", at in any::<prop::sample::Index>(), special in special()) {
            let mut chars: Vec<char> = plain.chars().collect();
            chars.insert(at.index(chars.len() + 1), special);
            for text in [plain, String::from_iter(chars)] {
                let mut out = Vec::new();
                write_json(&mut out, &text);
                prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
            }
        }
    }

    fn special() -> impl Strategy<Value = char> {
        let controls = prop::char::range('\0', '\u{9f}');
        prop_oneof![controls, select(vec!['"', '\\', '/', '<', '\u{2028}', '\u{ffff}', '\u{1f600}'])]
    }
}
