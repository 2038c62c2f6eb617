//! What the story needs of the place where it is played.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::{Watch, WatchError};
use audit_stream_testplane::kubectl::Stream;
use tokio::time::Instant;

use crate::story::Deed;

/// Somewhere with audit-stream, the namespaces and the people of the story.
pub(crate) trait Plane {
    /// What kube-apiserver says that it is.
    async fn version(&self) -> Result<String>;

    /// What to type in another terminal to read a watch as Alice.
    fn command(&self, path: &str) -> String;

    /// Does it, and says when it was answered.
    async fn act(&self, deed: &Deed) -> Result<Instant>;

    /// Opens a watch.
    async fn watch(&self, who: &str, path: &str) -> Result<Lines>;

    /// What Alice is told who tries a watch that she may not have.
    async fn refusal(&self, path: &str) -> Result<String>;

    /// The directory with everybody's logs.
    fn logs(&self) -> PathBuf;
}

/// The lines of a watch, as they came.
pub(crate) enum Lines {
    /// What `kubectl get --raw` prints, until it has ended.
    Kubectl(Box<Option<Stream>>),
    /// What the front proxy reads; `taken` bytes of it have been handed out.
    FrontProxy { watch: Box<Watch>, taken: usize },
}

impl Lines {
    /// The next line, or `None` at the clean end.
    pub(crate) async fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Kubectl(stream) => kubectl_line(stream).await,
            Self::FrontProxy { watch, taken } => front_proxy_line(watch, taken).await,
        }
    }
}

async fn kubectl_line(stream: &mut Option<Stream>) -> Result<Option<String>> {
    let Some(open) = stream else { return Ok(None) };
    if let Some(line) = open.next_line().await? {
        return Ok(Some(line));
    }
    if let Some(ended) = stream.take() {
        let (status, complaint) = ended.finish().await?;
        ensure!(status.success(), "kubectl get --raw: {status}: {complaint}");
    }
    Ok(None)
}

async fn front_proxy_line(watch: &mut Watch, taken: &mut usize) -> Result<Option<String>> {
    let frame = loop {
        match watch.next(Duration::from_secs(60)).await {
            Err(WatchError::Quiet(_)) => {}
            other => break other?,
        }
    };
    if frame.is_none() {
        return Ok(None);
    }
    let rest = &watch.raw()[*taken..];
    let length = rest.iter().position(|byte| *byte == b'\n').context("a frame ends in a newline")?;
    *taken += length + 1;
    Ok(Some(String::from_utf8_lossy(&rest[..length]).into_owned()))
}
