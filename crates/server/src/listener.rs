//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, and the end of each connection.
//!
//! Used for both listeners. It knows who is at the other end only as the certificates that were shown, and nothing of what
//! is asked. Every wait that a peer could stretch has a deadline, but for a response that is being written.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::metrics::{ListenerMetrics, ListenerReason};
use crate::wire::{self, Body};

/// kube-apiserver gives a handshake 10 s and so do we; the headers of a request the same.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at a time on a listener; above it, new connections wait to be accepted. Each ends within
/// [`HANDSHAKE_TIMEOUT`], so a stranger has to open a hundred a second to keep others waiting.
const MAX_HANDSHAKES: usize = 1024;

/// An HTTP/2 peer that is gone is noticed after 45 s, as upstream's own clients notice us.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Identity headers may be many (a user in a thousand groups), but not endless: a peer can make us hold them for each stream.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What hyper may hold for a stream beyond what the connection has taken: small, because a piece is shared and stays whole.
const MAX_SEND_BUFFER_BYTES: usize = 32 * 1024;

/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The certificates that it showed, the leaf first; empty if none. Whether they are good is not decided here.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// What one listener has of its own.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The word in metrics and logs.
    pub name: &'static str,
    /// Connections at a time that have finished their handshake. Above it, new ones are closed.
    pub max_connections: usize,
    /// Requests at a time on one HTTP/2 connection. All of kube-apiserver's users share one connection, so this must
    /// not be what limits them.
    pub max_streams: u32,
}

/// A bound socket with its TLS configuration.
pub struct Listener {
    /// Not yet anybody's runtime's: the listeners are served on different ones.
    tcp: std::net::TcpListener,
    tls: TlsAcceptor,
    config: Config,
    metrics: ListenerMetrics,
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        tls: ServerConfig,
        config: Config,
        metrics: ListenerMetrics,
    ) -> std::io::Result<Self> {
        let tcp = std::net::TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { tcp, tls: TlsAcceptor::from(Arc::new(tls)), config, metrics })
    }

    /// The address bound, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Accepts until `stop`, then lets every connection finish the requests it has, and returns when the last is gone.
    /// How long that may take is the caller's to bound.
    pub async fn serve<H, F>(self, handler: H, stop: CancellationToken)
    where
        H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let Self { tcp, tls, config, metrics } = self;
        let tcp = TcpListener::from_std(tcp).expect("the socket was made non-blocking");
        let (handshakes, slots) = (semaphore(MAX_HANDSHAKES), semaphore(config.max_connections));
        let connections = TaskTracker::new();
        while let Some((stream, address, shaking_hands)) = accept(&tcp, &handshakes, &stop).await {
            let (tls, slots, metrics) = (tls.clone(), Arc::clone(&slots), metrics.clone());
            let (handler, stop) = (handler.clone(), stop.clone());
            connections.spawn(async move {
                let connection = async {
                    let stream = handshake(stream, tls).await?;
                    let _slot = slots.try_acquire_owned().map_err(|_| "too_many_connections")?;
                    drop(shaking_hands);
                    serve_connection(stream, address, config, handler, stop).await
                };
                if let Err(reason) = connection.await {
                    debug!(listener = config.name, %address, reason, "connection refused");
                    let labels = ListenerReason { listener: config.name, reason };
                    metrics.refused_connections.get_or_create(&labels).inc();
                }
            });
        }
        drop(tcp);
        connections.close();
        connections.wait().await;
    }
}

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits))
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

/// The next connection and its place among the handshakes, or `None` at the end.
async fn accept(tcp: &TcpListener, handshakes: &Arc<Semaphore>, stop: &CancellationToken) -> Option<Accepted> {
    let next = async {
        let place = Arc::clone(handshakes).acquire_owned().await.expect("this semaphore is never closed");
        loop {
            match tcp.accept().await {
                Ok((stream, address)) => return (stream, address, place),
                Err(error) => {
                    // Out of descriptors, or a peer that left at once: neither is a reason to stop serving.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(next).await
}

/// TLS, or the reason why not.
async fn handshake(mut stream: TcpStream, tls: TlsAcceptor) -> Result<TlsStream<TcpStream>, &'static str> {
    // Frames are written whole; waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let within_deadline = async {
        if speaks_plain_http(&stream).await {
            // What Go's servers answer, so that people recognise it.
            let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            return Err("plain_http");
        }
        tls.accept(stream).await.map_err(|error| handshake_error(&error))
    };
    timeout(HANDSHAKE_TIMEOUT, within_deadline).await.unwrap_or(Err("handshake_timeout"))
}

/// A TLS record of a handshake begins with byte 22, an HTTP method with a letter.
async fn speaks_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0_u8];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

fn handshake_error(error: &std::io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => "client_certificate",
        _ => "handshake",
    }
}

/// Answers a peer's requests until one of both has enough. An error is the reason why there was no request.
async fn serve_connection<H, F>(
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    config: Config,
    handler: H,
    stop: CancellationToken,
) -> Result<(), &'static str>
where
    H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let peer = Arc::new(Peer { address, certificates });
    let asked = CancellationToken::new();
    let first_request = asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        first_request.cancel();
        let headers_only = request.method() == Method::HEAD;
        let answer = handler(Arc::clone(&peer), request);
        async move {
            let answer = answer.await;
            Ok::<_, Infallible>(if headers_only { without_body(answer) } else { answer })
        }
    });
    let protocols = protocols(config);
    let mut connection = pin!(protocols.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = overdue(&asked) => return Err("no_request"),
        () = stop.cancelled() => {
            // GOAWAY, or `Connection: close`: what is being answered is finished first.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(listener = config.name, %address, %error, "connection ended");
    }
    Ok(())
}

/// Returns when the first request should have come and has not. hyper looks at the first bytes without a deadline.
async fn overdue(asked: &CancellationToken) {
    if timeout(HEADER_TIMEOUT, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// The answer to a HEAD. hyper leaves the body out over HTTP/1.1 alone; over HTTP/2, DATA behind a HEAD is a protocol error.
fn without_body(answer: Response<Body>) -> Response<Body> {
    let length = answer.body().size_hint().exact().filter(|length| *length > 0);
    let mut answer = answer.map(|_| wire::whole(Bytes::new()));
    if let Some(length) = length {
        answer.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    answer
}

fn protocols(config: Config) -> auto::Builder<TokioExecutor> {
    let mut protocols = auto::Builder::new(TokioExecutor::new());
    protocols
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES as usize);
    protocols
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(config.max_streams)
        // The default of 20 ends the connection, which is everybody's, if one user's storm of opening and breaking off meets
        // a moment in which we do not read. A reset stream costs no more than one that is open.
        .max_pending_accept_reset_streams(config.max_streams as usize)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buf_size(MAX_SEND_BUFFER_BYTES);
    protocols
}
