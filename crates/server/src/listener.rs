//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, and the end of each connection.
//!
//! Used for both listeners. Of the other end it knows the certificates that were shown, and nothing of what is asked; whoever does
//! says so ([`Exchange::becomes_known`]), because strangers must not take the places of others.
//!
//! Every wait that a peer could stretch has a deadline, but for two: a watch that takes its time, which is cut by who gave it
//! ([`Exchange::cut`]), and an answer over HTTP/1.1 that is taken slowly.

mod exchange;
mod gathered;
mod guests;
mod taken;
mod unhurried;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, warn};

use crate::certs::{self, ClientCa, Vouched};
use crate::metrics::{ListenerMetrics, ListenerReason};
use crate::wire::{self, Body};
pub use exchange::{Exchange, Retirement, STREAMS_PER_CONNECTION, WATCHES_PER_CONNECTION};
use exchange::{Scope, Shared, Streams};
use gathered::{Gather, Gathered};
use guests::{Guests, Place};
pub use guests::{KnownAs, MAX_GUESTS, MAX_USERS_CONNECTIONS};
use taken::Taken;
use unhurried::Unhurried;

/// kube-apiserver gives a handshake 10 s and so do we; the first request that follows it the same.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection without a request under way is ended after this long, as upstream's servers end it. kube-aggregator asks every
/// 30 s, so its own never is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A connection that is told to end and has nothing under way ends within this long, or is cut: its peer need do no more than
/// answer a ping.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP/2 peer that is gone is noticed after 45 s, as upstream's own clients notice us.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Identity headers may be many (a user in a thousand groups), but not endless: a peer can make us hold them for each stream.
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What hyper may hold for a stream beyond what the connection has taken: small, because a piece is shared and stays whole.
const MAX_SEND_BUFFER_BYTES: usize = 32 * 1024;

/// What the kernel may hold of a connection that takes nothing. It doubles this, so 96 KiB, where by default it holds up to
/// 4 MiB (`net.ipv4.tcp_wmem`). Some 75 KB of it are payload, so a connection over a network of 1 ms carries 75 KB a
/// millisecond, 0.6 Gbit/s, which over HTTP/1.1 is one watch's; a faster network has a shorter round trip.
const SEND_BUFFER_BYTES: usize = 48 * 1024;

/// The same over HTTP/2, where 200 watches share it: 256 KiB, of which 220 KB are payload.
const SHARED_SEND_BUFFER_BYTES: usize = 128 * 1024;

/// How long a peer may take nothing at all of what was sent to it (`TCP_USER_TIMEOUT`). h2 writes no frame, and so can end
/// nothing, while the one before it waits for the socket; this is what ends such a connection, as late as one whose peer is gone.
#[cfg(target_os = "linux")]
const SEND_TIMEOUT: Duration = Duration::from_secs(45);

/// Connections that the kernel completes for us before they are accepted, as Go's servers have it.
const BACKLOG: i32 = 1024;

/// Tasks that an HTTP/2 connection may have for each stream that may be open at a time: that one, and one that was reset and has not
/// had its turn yet. With more, the connection is not read.
const TASKS_PER_STREAM: usize = 2;

/// What one connection takes, beside what the kernel holds.
///
/// Some 25 KB while it is idle, 20 KB of them buffers of hyper and rustls for a few bytes each; and while its peer takes nothing
/// up to 64 KiB that rustls holds, and 64 KiB of a request's headers or an answer.
pub const CONNECTION_BYTES: u64 = 160 * 1024;

/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of a listener have in common.
#[derive(Clone)]
struct Server<H> {
    config: Config,
    handler: H,
    handshakes: Handle,
    stop: CancellationToken,
    /// Connections, and the streams of those that speak HTTP/2.
    tasks: TaskTracker,
    metrics: ListenerMetrics,
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The certificates that it showed, the leaf first; empty if none. Whether they are good is not decided here.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What is remembered of whether they are.
    vouched: Vouched,
    /// Of the leaf, once somebody has asked for them.
    names: OnceLock<Vec<String>>,
}

/// Which HTTP a connection speaks, as far as its handshake says.
///
/// Where it does, hyper need not look at the first bytes. Those that it has looked at double what it holds to read a request of
/// HTTP/1.1, and it holds that for as long as the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    Either,
}

/// What one listener has of its own.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The word in metrics and logs.
    pub name: &'static str,
    /// Connections at a time that are known as kube-apiserver's. Beside them there are [`MAX_USERS_CONNECTIONS`], and
    /// [`MAX_GUESTS`] that are not known.
    pub max_connections: usize,
    /// When one becomes known.
    pub known_by: KnownBy,
    /// Requests at a time on one HTTP/2 connection.
    pub max_streams: u32,
    /// Requests on one HTTP/2 connection that were broken off before we came to read them. Above it the connection, which is
    /// everybody's, is ended; such a request costs no more than one that is open.
    pub max_resets: usize,
    /// How much is read from a socket at once, ahead of TLS, which asks for 4 KiB at a time: a system call each. It is held for as
    /// long as the connection is open; with 0 nothing is.
    pub read_ahead_bytes: usize,
}

/// By what a listener's connections become known. Those that are not are guests, who make room for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// The handshake, which lets nobody else pass.
    Handshake,
    /// A request of somebody who is known ([`Exchange::becomes_known`]).
    Request,
}

/// Every word for why a connection never became a request.
pub const REFUSALS: [&str; 7] = [
    "client_certificate",
    "crowded_out",
    "handshake",
    "handshake_timeout",
    "no_request",
    "plain_http",
    "too_many_connections",
];

/// A bound socket with its TLS configuration.
pub struct Listener {
    /// Not yet anybody's runtime's: the listeners are served on different ones.
    tcp: std::net::TcpListener,
    /// Replaced when certificates are. A handshake takes what is there when it begins.
    tls: Arc<ArcSwap<ServerConfig>>,
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
        tls: Arc<ArcSwap<ServerConfig>>,
        config: Config,
        metrics: ListenerMetrics,
    ) -> std::io::Result<Self> {
        Ok(Self { tcp: bind(address)?, tls, config, metrics })
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
    ///
    /// Hands are shaken on the runtime of `handshakes`: strangers can cause as many as they like.
    pub async fn serve<H, F>(self, handler: H, handshakes: Handle, stop: CancellationToken)
    where
        H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let Self { tcp, tls, config, metrics } = self;
        let tcp = TcpListener::from_std(tcp).expect("the socket was made non-blocking");
        let guests = Guests::new(MAX_GUESTS, config.max_connections);
        let tasks = TaskTracker::new();
        let server = Server { config, handler, handshakes, stop, tasks, metrics };
        while let Some((stream, address)) = accept(&tcp, &guests, &server.stop).await {
            let (place, acceptor) = (Arc::new(guests.enter(address.ip())), TlsAcceptor::from(tls.load_full()));
            let connection = server.clone().welcome(stream, address, acceptor, place);
            server.tasks.spawn(connection);
        }
        drop(tcp);
        server.tasks.close();
        server.tasks.wait().await;
    }
}

/// As `std` binds, but for what is set before, so that accepted sockets inherit it.
fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(SEND_TIMEOUT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The next connection, or `None` at the end.
async fn accept(tcp: &TcpListener, guests: &Guests, stop: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    let next = async {
        loop {
            match tcp.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    // A peer that left at once, or we are out of descriptors: neither is a reason to stop serving.
                    warn!(%error, "cannot accept a connection");
                    if error.kind() != std::io::ErrorKind::ConnectionAborted {
                        guests.send_one_away();
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(next).await
}

/// TLS, or the reason why not.
///
/// In a box, because it is handed on, and each of those futures would have room for it twice: before its first turn and after.
async fn handshake(
    mut stream: TcpStream,
    tls: TlsAcceptor,
    read_ahead_bytes: usize,
) -> Result<Box<TlsStream<BufReader<TcpStream>>>, &'static str> {
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
        // One byte is never read into, because whoever asks for more has it from the socket; none is not allowed.
        let stream = BufReader::with_capacity(read_ahead_bytes.max(1), stream);
        tls.accept(stream).await.map(Box::new).map_err(|error| handshake_error(&error))
    };
    timeout(HANDSHAKE_TIMEOUT, within_deadline).await.unwrap_or(Err("handshake_timeout"))
}

/// A TLS record of a handshake begins with byte 22, an HTTP method with a letter.
async fn speaks_plain_http(stream: &TcpStream) -> bool {
    let mut first = [0_u8];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_uppercase()
}

fn certificates(stream: &TlsStream<BufReader<TcpStream>>) -> Vec<CertificateDer<'static>> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    certificates.iter().map(|certificate| certificate.clone().into_owned()).collect()
}

fn handshake_error(error: &std::io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => "client_certificate",
        _ => "handshake",
    }
}

// === impl Peer ===

impl Peer {
    /// One that showed these certificates, the leaf first.
    pub fn new(address: SocketAddr, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { address, certificates, vouched: Vouched::default(), names: OnceLock::new() }
    }

    /// Whether a CA vouches now for its certificates.
    pub fn is_vouched_for_by(&self, ca: &ClientCa) -> bool {
        ca.vouches_for(&self.certificates, &self.vouched)
    }

    /// The common name and the DNS names that its certificate stands for, whoever vouches for it.
    pub fn names(&self) -> &[String] {
        self.names.get_or_init(|| self.certificates.first().map(certs::names).unwrap_or_default())
    }
}

// === impl Spoken ===

impl Spoken {
    /// By ALPN, which a client need not know.
    fn agreed(stream: &TlsStream<BufReader<TcpStream>>) -> Self {
        match stream.get_ref().1.alpn_protocol() {
            Some(b"http/1.1") => Self::Http1,
            Some(b"h2") => Self::Http2,
            _ => Self::Either,
        }
    }
}

// === impl Server ===

impl<H, F> Server<H>
where
    H: Fn(Arc<Peer>, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    /// All of one connection, which a newcomer may end for as long as it is a guest.
    async fn welcome(self, stream: TcpStream, address: SocketAddr, acceptor: TlsAcceptor, place: Arc<Place>) {
        let (metrics, Config { name: listener, known_by, read_ahead_bytes, .. }) = (self.metrics.clone(), self.config);
        // In a box, for the same reason as the stream: three futures follow around it.
        let connection = Box::pin(async {
            let shaking_hands = self.tasks.spawn_on(handshake(stream, acceptor, read_ahead_bytes), &self.handshakes);
            // Sent away, it is dropped, and so is the task. One that panicked shook no hands.
            let stream = AbortOnDropHandle::new(shaking_hands).await.unwrap_or(Err("handshake"))?;
            if known_by == KnownBy::Handshake && !place.becomes_known(KnownAs::ApiServer) {
                return Err("too_many_connections");
            }
            let peer = Peer::new(address, certificates(&stream));
            let spoken = Spoken::agreed(&stream);
            if spoken == Spoken::Http2 {
                // Without, it is only slower.
                let _ = SockRef::from(stream.get_ref().0.get_ref()).set_send_buffer_size(SHARED_SEND_BUFFER_BYTES);
            }
            self.serve_connection(stream, spoken, peer, Arc::clone(&place)).await
        });
        if let Err(reason) = place.unless_sent_away(connection).await.unwrap_or(Err("crowded_out")) {
            debug!(listener, %address, reason, "connection refused");
            metrics.refused_connections.get_or_create(&ListenerReason { listener, reason }).inc();
        }
    }

    /// Answers a peer's requests until one of both has enough. An error is the reason why there was no request.
    async fn serve_connection<S>(
        self,
        stream: S,
        spoken: Spoken,
        peer: Peer,
        place: Arc<Place>,
    ) -> Result<(), &'static str>
    where
        S: Gather + 'static,
    {
        let Self { config, handler, stop, tasks, metrics, .. } = self;
        let (address, peer) = (peer.address, Arc::new(peer));
        let asked = CancellationToken::new();
        let first_request = asked.clone();
        let service = service_fn(move |request| {
            first_request.cancel();
            let (handler, peer) = (handler.clone(), Arc::clone(&peer));
            // hyper polls this, and nothing before it, in the scope that the exchange belongs to. It is some 20 KB, which are not
            // taken before its turn has come: that of a stream that was reset may never.
            async move { Ok::<_, Infallible>(Box::pin(answer(handler, peer, request)).await) }
        });
        let shared = Arc::new(Shared::new(place));
        let protocols = protocols(config, spoken, Streams { tasks, connection: Arc::clone(&shared) });
        let max = TASKS_PER_STREAM * config.max_streams as usize;
        let stream = Gathered::new(Unhurried::new(stream, Arc::clone(&shared), max));
        let serving = Box::pin(async {
            let mut connection = pin!(protocols.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                result = connection.as_mut() => return Ok(result),
                () = overdue(&asked) => return Err("no_request"),
                () = stop.cancelled() => {}
                retirement = retirement(&shared) => {
                    let reason = retirement.as_str();
                    debug!(listener = config.name, %address, reason, "connection retired");
                    metrics.retired_connections.get_or_create(&ListenerReason { listener: config.name, reason }).inc();
                }
            }
            // GOAWAY, or `Connection: close`: what is being answered is finished first. The GOAWAY names no last request before
            // the peer has seen it, so one that it meets on the way is answered too.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => Ok(result),
                // Dropped: it has nothing to answer, and its peer does not end it.
                () = shared.idle(END_TIMEOUT) => Ok(Ok(())),
            }
        });
        let scope = Arc::new(Scope::of_connection(Arc::clone(&shared)));
        if let Some(Err(error)) = scope.run(serving).await.transpose()? {
            debug!(listener = config.name, %address, %error, "connection ended");
        }
        Ok(())
    }
}

async fn answer<H, F>(handler: H, peer: Arc<Peer>, mut request: Request<Incoming>) -> Response<Taken>
where
    H: Fn(Arc<Peer>, Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let exchange = Exchange::begin();
    let under_way = exchange.under_way();
    let headers_only = request.method() == Method::HEAD;
    request.extensions_mut().insert(exchange.clone());
    let answer = handler(peer, request).await;
    exchange.answered();
    let answer = if headers_only { without_body(answer) } else { answer };
    answer.map(|body| Taken::new(body, under_way))
}

/// Returns when the first request should have come and has not. hyper looks at the first bytes without a deadline.
async fn overdue(asked: &CancellationToken) {
    if timeout(REQUEST_TIMEOUT, asked.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Returns when the connection should take no more requests.
async fn retirement(shared: &Shared) -> Retirement {
    tokio::select! {
        retirement = shared.retirement() => retirement,
        () = shared.idle(IDLE_TIMEOUT) => Retirement::Idle,
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

fn protocols(config: Config, spoken: Spoken, streams: Streams) -> auto::Builder<Streams> {
    let mut protocols = auto::Builder::new(streams);
    protocols
        .http1()
        .timer(TokioTimer::new())
        // hyper begins to count when the request before has been answered, so this is a deadline for idle connections: ours.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEADER_BYTES as usize);
    protocols
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(config.max_streams)
        // The default of 20 ends the connection, which is everybody's, if one user's storm of opening and breaking off meets
        // a moment in which we do not read.
        .max_pending_accept_reset_streams(config.max_resets)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buf_size(MAX_SEND_BUFFER_BYTES);
    match spoken {
        Spoken::Http1 => protocols.http1_only(),
        Spoken::Http2 => protocols.http2_only(),
        Spoken::Either => protocols,
    }
}

#[cfg(test)]
mod tests;
