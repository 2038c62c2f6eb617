//! A POST written byte by byte over HTTP/1.1, for what no honest client sends.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::front_proxy::{Protocol, Response, Target};
use crate::pki::Identity;

const MAX_HEAD: usize = 64 * 1024;

/// A POST under construction. It states nothing but the request line, `Host`, `Content-Length` and what it is told.
#[must_use = "nothing is sent before send()"]
pub struct RawPost {
    target: Target,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    declared_length: Option<usize>,
    is_plaintext: bool,
    ends_early: bool,
    within: Duration,
}

impl RawPost {
    pub(super) fn new(target: Target, path: &str) -> Self {
        Self {
            target: target.protocol(Protocol::Http1),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            declared_length: None,
            is_plaintext: false,
            ends_early: false,
            within: Duration::from_secs(60),
        }
    }

    /// POSTs to this path.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends this body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Declares this length instead of the body's own. What is missing is never sent: the server has to wait for it.
    pub fn declared_length(mut self, length: usize) -> Self {
        self.declared_length = Some(length);
        self
    }

    /// Ends the stream after the body, so that a server that waits for more sees that nothing will come.
    pub fn then_close(mut self) -> Self {
        self.ends_early = true;
        self
    }

    /// Speaks plain http.
    pub fn plaintext(mut self) -> Self {
        self.is_plaintext = true;
        self
    }

    /// Shows no client certificate.
    pub fn without_certificate(mut self) -> Self {
        self.target.identity = None;
        self
    }

    /// Shows another client certificate.
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.target = self.target.identity(identity);
        self
    }

    /// Waits this long for the answer; a minute unless told.
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Sends it on a connection of its own and reads the answer.
    ///
    /// # Errors
    /// If the handshake or the connection fails, or no answer comes in time.
    pub async fn send(self) -> Result<Response> {
        let within = self.within;
        timeout(within, self.exchange()).await.with_context(|| format!("no answer within {within:?}"))?
    }

    async fn exchange(self) -> Result<Response> {
        if self.is_plaintext {
            let stream = TcpStream::connect(self.target.address).await.context("cannot connect")?;
            return self.converse(stream).await;
        }
        let stream = self.target.dial(&self.target.tls()?).await?;
        self.converse(stream).await
    }

    async fn converse(&self, stream: impl AsyncRead + AsyncWrite) -> Result<Response> {
        let (mut receiving, mut sending) = split(stream);
        let answer = read_answer(&mut receiving);
        let question = async {
            sending.write_all(&self.bytes()).await?;
            sending.flush().await?;
            if self.ends_early { sending.shutdown().await } else { Ok(()) }
        };
        tokio::pin!(answer, question);
        // A server may answer before it has read everything, and then close: its answer counts, not the broken pipe.
        tokio::select! {
            answer = &mut answer => answer,
            sent = &mut question => answer.await.map_err(|error| match sent {
                Err(broken) => error.context(format!("the request could not be sent: {broken}")),
                Ok(()) => error,
            }),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = self.declared_length.unwrap_or(self.body.len());
        let mut bytes = format!("POST {} HTTP/1.1\r\nHost: {}\r\n", self.path, self.target.address);
        // A declaration of one's own, or none at all, as with chunks.
        if !self.headers.iter().any(|(name, _)| is_framing(name)) {
            bytes.push_str(&format!("Content-Length: {length}\r\n"));
        }
        for (name, value) in &self.headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        [bytes.into_bytes(), self.body.clone()].concat()
    }
}

fn is_framing(header: &str) -> bool {
    ["content-length", "transfer-encoding"].iter().any(|name| header.eq_ignore_ascii_case(name))
}

pub(crate) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<Response> {
    let mut received = Vec::new();
    let head_length = loop {
        if let Some(end) = find(&received, b"\r\n\r\n") {
            break end + 4;
        }
        if received.len() > MAX_HEAD {
            bail!("the head of the answer does not end");
        }
        read_some(stream, &mut received).await?;
    };
    let head = String::from_utf8_lossy(&received[..head_length]).into_owned();
    let (status, headers) = parse_head(&head)?;
    let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(length) = length.or((status == 204).then_some(0_usize)) else {
        bail!("an answer without Content-Length: {head}");
    };
    while received.len() < head_length + length {
        read_some(stream, &mut received).await?;
    }
    let body = String::from_utf8_lossy(&received[head_length..head_length + length]).into_owned();
    Ok(Response { status, headers, body })
}

async fn read_some(stream: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> Result<()> {
    match stream.read_buf(into).await.context("the connection broke")? {
        0 => bail!("the connection was closed after {} bytes of an answer", into.len()),
        _ => Ok(()),
    }
}

fn parse_head(head: &str) -> Result<(u16, HeaderMap)> {
    let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
    let status_line = lines.next().context("an empty answer")?;
    let mut words = status_line.split(' ');
    let status = match (words.next(), words.next().map(str::parse)) {
        (Some("HTTP/1.1"), Some(Ok(status))) => status,
        _ => bail!("not an HTTP/1.1 status line: {status_line:?}"),
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value.trim())?);
    }
    Ok((status, headers))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
