//! An HTTP client on one connection, with any certificate or none: what the fakes send with, and what attack tests use.
//!
//! It adds nothing to a request but the authority. Imitates Go's transport where the server can tell the difference:
//! HTTP/2 windows, no resumed TLS sessions, a new connection once the peer has said GOAWAY, and another try for a
//! request that the peer says it has not touched.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::watch::Watch;
use crate::pki::Identity;
use crate::tasks::Tasks;
use crate::tls;
use crate::webhook_sender::raw::read_answer;

const MAX_HEADER_LIST: u32 = 10 << 20;
// Above every deadline that the server promises, so that a server that hangs fails its test and not the test run.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
const MAX_RESENDS: usize = 6;

/// The HTTP version that a client offers in ALPN; it accepts no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: each request dials its own connection.
    Http1,
    /// HTTP/2: one connection for everything.
    Http2,
}

/// A server, and how to speak to it.
#[derive(Clone)]
pub struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) serving_ca_pem: String,
    pub(crate) server_name: String,
    pub(crate) identity: Option<Identity>,
    protocol: Protocol,
    resume_sessions: bool,
    windows: Windows,
}

/// How much an HTTP/2 server may send that nobody has read: in all, and of one answer.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Bytes of the connection.
    pub connection: u32,
    /// Bytes of a stream.
    pub stream: u32,
}

/// An HTTP client over TLS. Clones share the connection, which closes with the last of them and of their watches.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    target: Target,
    tls: TlsConnector,
    // Held while dialing, so that requests that start together share the connection.
    http2: Mutex<Option<Http2>>,
    dialed: AtomicUsize,
    tasks: Tasks,
}

#[derive(Clone)]
struct Http2 {
    // Which of the client's connections it is.
    number: usize,
    sender: http2::SendRequest<Full<Bytes>>,
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// The response's headers.
    pub headers: HeaderMap,
    /// The body, invalid UTF-8 replaced.
    pub body: String,
}

impl Target {
    /// The server at `address`, whose certificate must be for `server_name` and from `serving_ca_pem`; without a client
    /// certificate, over HTTP/2.
    pub fn new(address: SocketAddr, serving_ca_pem: &str, server_name: &str) -> Self {
        Self {
            address,
            serving_ca_pem: serving_ca_pem.to_owned(),
            server_name: server_name.to_owned(),
            identity: None,
            protocol: Protocol::Http2,
            resume_sessions: false,
            windows: Windows::GO,
        }
    }

    /// Shows this client certificate.
    #[must_use]
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// Speaks this version of HTTP.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Resumes TLS sessions on later connections. kube-apiserver's clients do not; an attacker might.
    #[must_use]
    pub fn resume_sessions(mut self) -> Self {
        self.resume_sessions = true;
        self
    }

    /// Grants other windows than Go's.
    #[must_use]
    pub fn windows(mut self, windows: Windows) -> Self {
        self.windows = windows;
        self
    }

    /// Writes a request byte by byte, over HTTP/1.1 on a connection of its own, for what no HTTP client sends.
    ///
    /// # Errors
    /// If the handshake or the connection fails, or no answer came within a minute.
    pub async fn exchange(&self, request: &[u8]) -> Result<Response> {
        let answer = async {
            let target = self.clone().protocol(Protocol::Http1);
            let mut stream = target.connect().await?;
            stream.write_all(request).await.context("the request could not be sent")?;
            read_answer(&mut stream).await
        };
        timeout(ANSWER_WITHIN, answer).await.with_context(|| format!("no answer within {ANSWER_WITHIN:?}"))?
    }

    /// A connection over which nothing has been said.
    ///
    /// # Errors
    /// If nobody listens or the handshake fails.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        self.dial(&self.tls()?).await
    }

    /// The certificate that the server shows now, in DER.
    ///
    /// # Errors
    /// If nobody listens or the handshake fails.
    pub async fn served_certificate(&self) -> Result<Vec<u8>> {
        let stream = self.connect().await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(certificates.first().context("the server has no certificate")?.to_vec())
    }

    pub(crate) fn tls(&self) -> Result<TlsConnector> {
        let alpn: &[&[u8]] = match self.protocol {
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
        };
        let config = tls::client_config(&self.serving_ca_pem, self.identity.as_ref(), alpn, self.resume_sessions)?;
        Ok(TlsConnector::from(Arc::new(config)))
    }

    pub(crate) async fn dial(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>> {
        let address = self.address;
        let tcp = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        let name = ServerName::try_from(self.server_name.clone()).context("not a server name")?;
        tls.connect(name, tcp).await.with_context(|| format!("TLS handshake with {address} failed"))
    }
}

impl Windows {
    /// What Go's HTTP/2 transport grants its peer: kube-apiserver buffers this much for readers that do not read.
    pub const GO: Self = Self { connection: 1 << 30, stream: 4 << 20 };
}

impl Client {
    /// Connects. With TLS 1.3 a server refuses a client certificate only after the handshake, so that a bad certificate
    /// may show as an error of the first request instead.
    ///
    /// # Errors
    /// If the certificates are unusable, nobody listens, or the handshake fails.
    pub async fn connect(target: Target) -> Result<Self> {
        let tls = target.tls()?;
        let client = Self {
            inner: Arc::new(Inner {
                target,
                tls,
                http2: Mutex::new(None),
                dialed: AtomicUsize::new(0),
                tasks: Tasks::new(),
            }),
        };
        match client.protocol() {
            Protocol::Http2 => drop(client.http2().await?),
            Protocol::Http1 => drop(client.http1_sender().await?),
        }
        Ok(client)
    }

    /// The version of HTTP that this client speaks.
    pub fn protocol(&self) -> Protocol {
        self.inner.target.protocol
    }

    /// Where this client connects to.
    pub fn address(&self) -> SocketAddr {
        self.inner.target.address
    }

    /// How many connections have been made so far.
    pub fn connections(&self) -> usize {
        self.inner.dialed.load(Ordering::Relaxed)
    }

    /// GETs `path_and_query` exactly as written.
    ///
    /// # Errors
    /// If no complete answer came within a minute.
    pub async fn get(&self, path_and_query: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.send(request("GET", path_and_query, headers, Bytes::new())?).await
    }

    /// Sends a request whose URI is a path and query, and reads the whole answer.
    ///
    /// # Errors
    /// If no complete answer came within a minute.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response> {
        let line = format!("{} {}", request.method(), request.uri());
        let answer = async { Response::read(self.open(request).await?).await };
        timeout(ANSWER_WITHIN, answer).await.with_context(|| format!("{line}: no answer within {ANSWER_WITHIN:?}"))?
    }

    /// Opens a watch, or returns the refusal: any answer but 200.
    ///
    /// # Errors
    /// If no answer came within a minute.
    pub async fn watch(&self, request: Request<Full<Bytes>>) -> Result<Result<Watch, Response>> {
        let answer = async {
            let response = self.open(request).await?;
            Ok(match response.status().as_u16() {
                200 => Ok(Watch::new(response, self.clone())),
                _ => Err(Response::read(response).await?),
            })
        };
        timeout(ANSWER_WITHIN, answer).await.with_context(|| format!("no answer within {ANSWER_WITHIN:?}"))?
    }

    /// Sends a request whose URI is a path and query, and returns as soon as the headers of the answer are there.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn open(&self, mut request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
        let authority = self.address().to_string();
        match self.protocol() {
            Protocol::Http1 => {
                let host = HeaderValue::from_str(&authority).context("not an authority")?;
                request.headers_mut().entry(header::HOST).or_insert(host);
                self.http1_sender().await?.send_request(request).await.context("the request failed")
            }
            Protocol::Http2 => {
                let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
                *request.uri_mut() =
                    Uri::builder().scheme("https").authority(authority).path_and_query(path).build()?;
                self.open_http2(request).await
            }
        }
    }

    async fn open_http2(&self, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
        let mut resends = 0;
        loop {
            let Http2 { number, mut sender } = self.http2().await?;
            let mut failure = match sender.try_send_request(request.clone()).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let untouched = failure.take_message().is_some() || says_untouched(failure.error());
            if !untouched || resends == MAX_RESENDS {
                return Err(failure.into_error()).context("the request failed");
            }
            resends += 1;
            self.inner.http2.lock().await.take_if(|current| current.number == number);
        }
    }

    async fn http2(&self) -> Result<Http2> {
        let mut slot = self.inner.http2.lock().await;
        if let Some(current) = slot.as_ref().filter(|current| !current.sender.is_closed()) {
            return Ok(current.clone());
        }
        let executor = self.inner.tasks.executor();
        let windows = self.inner.target.windows;
        let (sender, connection) = http2::Builder::new(executor.clone())
            .initial_connection_window_size(windows.connection)
            .initial_stream_window_size(windows.stream)
            .max_header_list_size(MAX_HEADER_LIST)
            .handshake(TokioIo::new(self.dial(b"h2").await?))
            .await
            .context("HTTP/2 handshake failed")?;
        executor.spawn(connection);
        let number = self.connections();
        Ok(slot.insert(Http2 { number, sender }).clone())
    }

    async fn http1_sender(&self) -> Result<http1::SendRequest<Full<Bytes>>> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(self.dial(b"http/1.1").await?)).await.context("HTTP/1.1 handshake failed")?;
        self.inner.tasks.executor().spawn(connection);
        Ok(sender)
    }

    async fn dial(&self, expected: &[u8]) -> Result<TlsStream<TcpStream>> {
        self.inner.dialed.fetch_add(1, Ordering::Relaxed);
        let stream = self.inner.target.dial(&self.inner.tls).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(negotiated) if negotiated == expected => Ok(stream),
            other => bail!("the server negotiated {:?} in ALPN", other.map(String::from_utf8_lossy)),
        }
    }
}

impl Response {
    pub(super) async fn read(response: http::Response<Incoming>) -> Result<Self> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the answer broke off")?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Self { status: head.status.as_u16(), headers: head.headers, body })
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// If it is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{}: not JSON: {}", self.status, self.body))
    }

    /// The first value of a header, if there is one and it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A request for [`Client::send`]: `path_and_query` and headers exactly as written, `Host` aside.
///
/// # Errors
/// If a part of it cannot be written in HTTP at all.
pub fn request(
    method: &str,
    path_and_query: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Request<Full<Bytes>>> {
    let mut builder = Request::builder().method(method).uri(path_and_query);
    for (name, value) in headers {
        builder = builder.header(*name, value.as_bytes());
    }
    builder.body(Full::new(body.into())).with_context(|| format!("{method} {path_and_query} is not a request"))
}

// Go's transport sends a request again when the peer refused its stream or said GOAWAY below it. hyper keeps these two
// facts in the text of its cause, h2's error type being private to it. Where all of the peer's streams are taken, Go's
// transport opens another connection; hyper waits for one, and drops who waits when a GOAWAY comes.
fn says_untouched(error: &hyper::Error) -> bool {
    let text = format!("{error:?}");
    text.contains("DispatchGone")
        || text.contains("REFUSED_STREAM")
        || (text.contains("GoAway") && text.contains("NO_ERROR"))
}
