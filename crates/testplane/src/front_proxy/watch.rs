//! An open watch, read frame by frame, that knows a clean end from a broken one.
//!
//! [`Watch`] parses each frame and keeps every byte, for tests that look at a few. [`Lines`] does neither, for recordings
//! of many.

use std::fmt;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::client::{Client, Protocol};

/// The body of a watch. Nothing is read from it except by its methods: a `Watch` left alone is a stalled reader.
/// Dropping it resets the stream, as kube-apiserver does when its own client is gone.
pub struct Watch {
    headers: HeaderMap,
    lines: Lines,
    raw: Vec<u8>,
}

/// The lines of a watch's body, as they are. Nothing is read except by its method, and dropping it resets the stream.
pub struct Lines {
    body: Incoming,
    protocol: Protocol,
    // Received and not yet handed out. The first `searched` bytes of it hold no end of a line.
    unread: BytesMut,
    searched: usize,
    end: Option<Result<(), WatchError>>,
    // The connection lives as long as somebody reads from it, also when the front proxy is dropped first.
    _client: Client,
}

/// Why [`Watch::next`] has no frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchError {
    /// Nothing came in time; the stream is still open and can be asked again.
    Quiet(Duration),
    /// The stream or its connection broke: a reset, a cut, a chunked body without its end.
    Reset(String),
    /// The stream ended cleanly, but in the middle of a frame.
    Truncated(String),
    /// A frame that is not JSON.
    Malformed(String),
}

impl Watch {
    pub(super) fn new(response: http::Response<Incoming>, client: Client) -> Self {
        let (head, body) = response.into_parts();
        let protocol = client.protocol();
        let (unread, searched, end) = (BytesMut::new(), 0, None);
        let lines = Lines { body, protocol, unread, searched, end, _client: client };
        Self { headers: head.headers, lines, raw: Vec::new() }
    }

    /// The same watch for somebody who wants its lines alone.
    pub fn into_lines(self) -> Lines {
        self.lines
    }

    /// The response's headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Every byte received so far, frames and what follows them.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The next frame, or `None` at the clean end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// See [`WatchError`]; after [`WatchError::Quiet`] the watch goes on.
    pub async fn next(&mut self, within: Duration) -> Result<Option<Value>, WatchError> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(line) = self.lines.take() {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| WatchError::Malformed(format!("{error}: {}", String::from_utf8_lossy(&line))));
            }
            if let Some(end) = &self.lines.end {
                return end.clone().map(|()| None);
            }
            let read = timeout_at(deadline, self.lines.read()).await.map_err(|_| WatchError::Quiet(within))?;
            self.raw.extend_from_slice(&read);
        }
    }

    /// The object of the next `ADDED` frame; bookmarks before it are skipped. `None` at the clean end.
    ///
    /// # Errors
    /// As [`Watch::next`], for the wait as a whole; an `ERROR` frame counts as [`WatchError::Malformed`], for it is never
    /// what a caller of this method waits for.
    pub async fn next_added(&mut self, within: Duration) -> Result<Option<Value>, WatchError> {
        let deadline = Instant::now() + within;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let next = self.next(rest).await.map_err(|error| match error {
                WatchError::Quiet(_) => WatchError::Quiet(within),
                other => other,
            })?;
            let Some(mut frame) = next else { return Ok(None) };
            match frame["type"].as_str() {
                Some("ADDED") => return Ok(Some(frame["object"].take())),
                Some("BOOKMARK") => {}
                _ => return Err(WatchError::Malformed(frame.to_string())),
            }
        }
    }

    /// All frames up to the clean end of the stream.
    ///
    /// # Errors
    /// As [`Watch::next`], for the wait as a whole.
    pub async fn rest(&mut self, within: Duration) -> Result<Vec<Value>, WatchError> {
        let deadline = Instant::now() + within;
        let mut frames = Vec::new();
        while let Some(frame) = self.next(deadline.saturating_duration_since(Instant::now())).await? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

impl Lines {
    /// The next line without its end, or `None` at the clean end of the stream. Waits as long as it takes. Cancel-safe.
    ///
    /// # Errors
    /// [`WatchError::Reset`] or [`WatchError::Truncated`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, WatchError> {
        loop {
            if let Some(line) = self.take() {
                return Ok(Some(line));
            }
            if let Some(end) = &self.end {
                return end.clone().map(|()| None);
            }
            self.read().await;
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let Some(more) = memchr::memchr(b'\n', &self.unread[self.searched..]) else {
            self.searched = self.unread.len();
            return None;
        };
        let line = self.unread.split_to(self.searched + more).freeze();
        self.unread.advance(1);
        self.searched = 0;
        Some(line)
    }

    // What was read is there to be taken; it is returned besides. Empty at the end.
    async fn read(&mut self) -> Bytes {
        match self.body.frame().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                self.unread.extend_from_slice(&data);
                return data;
            }
            Some(Err(error)) => self.end = Some(Err(WatchError::Reset(format!("{:#}", anyhow::Error::new(error))))),
            None => self.end = Some(self.ending()),
        }
        Bytes::new()
    }

    fn ending(&self) -> Result<(), WatchError> {
        // hyper ends a body silently on RST_STREAM(NO_ERROR). Go's client reports an error there, and so does this one.
        if self.protocol == Protocol::Http2 && !self.body.is_end_stream() {
            return Err(WatchError::Reset("the stream was reset without an error code".to_owned()));
        }
        match &self.unread[..] {
            [] => Ok(()),
            partial => Err(WatchError::Truncated(String::from_utf8_lossy(partial).into_owned())),
        }
    }
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quiet(within) => write!(f, "no frame within {within:?}"),
            Self::Reset(cause) => write!(f, "the watch broke: {cause}"),
            Self::Truncated(partial) => write!(f, "the watch ended inside a frame: {partial:?}"),
            Self::Malformed(frame) => write!(f, "not an expected frame: {frame}"),
        }
    }
}

impl std::error::Error for WatchError {}
