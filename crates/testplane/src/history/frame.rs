//! One frame of a watch, read no further than it has to be.
//!
//! The front of an event, up to the end of its `metadata`, is the server's own and is parsed; what follows is compared
//! byte by byte with what was sent, and never parsed twice.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde::Deserialize;

/// A frame of a watch.
#[derive(Debug, Clone)]
pub enum Frame {
    /// An event.
    Added(Added),
    /// A bookmark.
    Bookmark(Bookmark),
    /// A Status, which ends the watch.
    Error {
        /// Its code.
        code: u16,
    },
}

/// An event as it was received.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its `resourceVersion`.
    pub place: u64,
    /// Whether its kind is `NamespacedEvent`.
    pub is_namespaced: bool,
    /// `metadata.namespace`.
    pub namespace: Option<Box<str>>,
    /// What it announces.
    pub gap: Option<Gap>,
    line: Bytes,
    body: Range<usize>,
}

/// A bookmark as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// Its `resourceVersion`.
    pub place: u64,
    /// Whether it says that the initial state ends here.
    pub initial_events_end: bool,
    /// What it announces.
    pub gap: Option<Gap>,
}

/// An announced gap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gap {
    /// How many events, if that is known.
    pub count: Option<u64>,
    /// Why.
    pub reason: Box<str>,
}

/// The parts of `metadata` that are looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Box<str>,
    namespace: Option<Box<str>>,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "audit-stream.dev/gap")]
    gap: Option<Box<str>>,
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Small {
    r#type: Box<str>,
    object: SmallObject,
}

/// The object of a bookmark or of an error.
#[derive(Deserialize)]
struct SmallObject {
    metadata: serde_json::Value,
    code: Option<u16>,
}

const ADDED: &[u8] = br#"{"type":"ADDED","object":"#;

impl Frame {
    /// Reads a line of a watch.
    ///
    /// # Errors
    /// If it is no frame as `docs/API.md` has them.
    pub fn read(line: Bytes) -> Result<Self> {
        let shown = || format!("not a frame: {}", String::from_utf8_lossy(&line[..line.len().min(500)]));
        let frame = if line.starts_with(ADDED) { added(line.clone()) } else { small(&line) };
        frame.with_context(shown)
    }

    /// Its place; an error has none.
    pub fn place(&self) -> Option<u64> {
        match self {
            Self::Added(added) => Some(added.place),
            Self::Bookmark(bookmark) => Some(bookmark.place),
            Self::Error { .. } => None,
        }
    }

    /// Whether it is an event with this text in it: a marker is found so, without parsing what it is in.
    pub fn contains(&self, text: &str) -> bool {
        matches!(self, Self::Added(added) if memchr::memmem::find(&added.line, text.as_bytes()).is_some())
    }

    /// Whether it says that a place is gone: error 410.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Error { code: 410 })
    }

    /// The gap that it announces.
    pub fn gap(&self) -> Option<&Gap> {
        match self {
            Self::Added(added) => added.gap.as_ref(),
            Self::Bookmark(bookmark) => bookmark.gap.as_ref(),
            Self::Error { .. } => None,
        }
    }
}

impl Added {
    /// The event's own members, without braces: what follows `kind`, `apiVersion` and `metadata`.
    pub fn body(&self) -> &[u8] {
        &self.line[self.body.clone()]
    }

    /// The whole frame, without the end of its line.
    pub fn line(&self) -> &Bytes {
        &self.line
    }
}

fn added(line: Bytes) -> Result<Frame> {
    let rest = line.strip_prefix(ADDED).context("no ADDED")?;
    let namespaced = rest.strip_prefix(br#"{"kind":"NamespacedEvent","apiVersion":"audit.k8s.io/v1"#);
    let is_namespaced = namespaced.is_some();
    let rest = namespaced.or_else(|| rest.strip_prefix(br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1"#));
    let rest = rest.context("another kind or group")?;
    let version = [&b""[..], b"beta1", b"alpha1"].iter().find_map(|version| rest.strip_prefix(*version));
    let rest = version.and_then(|rest| rest.strip_prefix(br#"","metadata":"#)).context("no metadata in front")?;
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Metadata>();
    let Metadata { resource_version, namespace, annotations } = values.next().context("no metadata")??;
    let rest = &rest[values.byte_offset()..];
    ensure!(rest.len() > 3 && rest.starts_with(b",") && rest.ends_with(b"}}"), "no event behind its metadata");
    let body = line.len() - rest.len() + 1..line.len() - 2;
    let (place, gap) = (resource_version.parse()?, gap(&annotations)?);
    Ok(Frame::Added(Added { place, is_namespaced, namespace, gap, line, body }))
}

fn small(line: &[u8]) -> Result<Frame> {
    let Small { r#type, object } = serde_json::from_slice(line)?;
    match &*r#type {
        "BOOKMARK" => {
            let metadata: Metadata = serde_json::from_value(object.metadata)?;
            let (place, gap) = (metadata.resource_version.parse()?, gap(&metadata.annotations)?);
            let initial_events_end = metadata.annotations.initial_events_end.as_deref() == Some("true");
            Ok(Frame::Bookmark(Bookmark { place, initial_events_end, gap }))
        }
        "ERROR" => Ok(Frame::Error { code: object.code.context("an error without a code")? }),
        other => bail!("type {other}"),
    }
}

fn gap(annotations: &Annotations) -> Result<Option<Gap>> {
    annotations.gap.as_deref().map(serde_json::from_str).transpose().context("not a gap")
}
