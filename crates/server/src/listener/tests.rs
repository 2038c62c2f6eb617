pub(super) mod peer;

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_rustls::client::TlsStream;

use super::*;
use peer::{ARRIVAL, CANCEL, Ca, DATA, GOAWAY, HEADERS, MAX_STREAM, NO_ERROR, PING, Peer as Http2, RST_STREAM};

/// What a stream may have at a time in these tests: more than the retirement, so that this is not what ends them.
const CONFIG: Config = Config {
    name: "test",
    max_connections: 2,
    known_by: KnownBy::Request,
    max_streams: 1000,
    max_resets: 1000,
    read_ahead_bytes: 100,
};

/// Between two looks at what another task brings about.
const GLANCE: Duration = Duration::from_millis(5);

/// How long the end of something may take. The kernel ends a connection that takes nothing later than that.
const SOON: Duration = Duration::from_secs(20);

/// More than any test gives out.
const WIDE: u32 = 1 << 20;

/// A listener whose handler answers as the path says.
struct Room {
    address: SocketAddr,
    ca: Ca,
    stop: CancellationToken,
    answers: Arc<Answers>,
    exchanges: mpsc::UnboundedReceiver<Exchange>,
    /// Of another listener with the same answers, which has no socket.
    tasks: TaskTracker,
    metrics: ListenerMetrics,
    served: JoinSet<()>,
}

/// What the answers of a [`Room`] are made with.
struct Answers {
    begun: mpsc::UnboundedSender<Exchange>,
    /// How many pieces each of the `/ticking` has sent; they end at [`LAST`].
    tick: watch::Sender<usize>,
    /// Pieces that were made, and those of them that still exist.
    made: AtomicUsize,
    pieces: AtomicUsize,
    bodies: TaskTracker,
}

const LAST: usize = usize::MAX;

/// What is written is there at once.
impl Gather for DuplexStream {
    fn waiting(&mut self) -> Option<&mut rustls::ServerConnection> {
        None
    }
}

impl Room {
    async fn open() -> Self {
        Self::with(CONFIG).await
    }

    async fn with(config: Config) -> Self {
        let (ca, metrics, stop) = (Ca::new(), ListenerMetrics::default(), CancellationToken::new());
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let tls = Arc::new(ArcSwap::from_pointee(ca.server_config()));
        let listener = Listener::bind(address, tls, config, metrics.clone()).unwrap();
        let address = listener.local_addr().unwrap();
        let (answers, exchanges) = Answers::new();
        let (tasks, mut served) = (TaskTracker::new(), JoinSet::new());
        served.spawn(listener.serve(handler(&answers), Handle::current(), stop.clone()));
        Self { address, ca, stop, answers, exchanges, tasks, metrics, served }
    }

    async fn http2(&self, window: u32) -> Http2 {
        Http2::greet(self.ca.connect(self.address, b"h2").await, window).await
    }

    async fn http1(&self) -> TlsStream<TcpStream> {
        self.ca.connect(self.address, b"http/1.1").await
    }

    /// A connection without a socket, for tests that pause the clock: that goes on where everything waits, for a socket too.
    async fn http2_in_memory(&self, window: u32) -> Http2 {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (config, handler, stop) = (CONFIG, handler(&self.answers), self.stop.clone());
        let server = Server {
            config,
            handler,
            handshakes: Handle::current(),
            stop,
            tasks: self.tasks.clone(),
            metrics: self.metrics.clone(),
        };
        let peer = Peer::new(self.address, vec![]);
        let place = Arc::new(Guests::new(1, 1).enter(std::net::Ipv4Addr::LOCALHOST.into()));
        self.tasks.spawn(server.serve_connection(theirs, Spoken::Either, peer, place));
        Http2::greet(ours, window).await
    }

    async fn exchange(&mut self) -> Exchange {
        timeout(ARRIVAL, self.exchanges.recv()).await.unwrap().unwrap()
    }

    fn retired(&self, retirement: Retirement) -> u64 {
        let labels = ListenerReason { listener: "test", reason: retirement.as_str() };
        self.metrics.retired_connections.get_or_create(&labels).get()
    }

    /// Waits until an endless answer has come to a stop, because nobody takes more of it.
    async fn until_stalled(&self) {
        let mut made = 0;
        while made == 0 || made < self.answers.made.load(Ordering::SeqCst) {
            made = self.answers.made.load(Ordering::SeqCst);
            sleep(20 * GLANCE).await;
        }
    }

    /// Waits until no piece exists that was handed to a connection.
    async fn until_freed(&self) {
        let pieces = &self.answers.pieces;
        let waiting = async {
            while pieces.load(Ordering::SeqCst) > 0 {
                sleep(GLANCE).await;
            }
        };
        timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{pieces:?} pieces"));
    }

    /// Asserts that nothing of its connections is left.
    async fn until_empty(&self) {
        let waiting = async {
            // One is ours, one the listener's; each connection and each stream has another.
            while Arc::strong_count(&self.answers) > 2 {
                sleep(GLANCE).await;
            }
        };
        timeout(SOON, waiting).await.expect("a task is left");
    }
}

fn handler(
    answers: &Arc<Answers>,
) -> impl Fn(Arc<Peer>, Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Clone + use<> {
    let answers = Arc::clone(answers);
    move |_, request| Arc::clone(&answers).answer(request).boxed()
}

impl Answers {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Exchange>) {
        let (begun, exchanges) = mpsc::unbounded_channel();
        let (tick, made, pieces, bodies) = Default::default();
        (Arc::new(Self { begun, tick, made, pieces, bodies }), exchanges)
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let exchange = head.extensions.get::<Exchange>().unwrap();
        self.begun.send(exchange.clone()).unwrap();
        if !body.is_end_stream() {
            let exchange = exchange.clone();
            self.bodies.spawn(async move { exchange.unless_cut(async { drop(body.collect().await) }).await });
        }
        let long = vec![b'x'; 1000];
        match head.uri.path() {
            "/plain" => Response::new(wire::whole("plain")),
            "/empty" => Response::new(wire::whole("")),
            "/known" => {
                let known = exchange.becomes_known(KnownAs::ApiServer);
                Response::new(wire::whole(if known { "known" } else { "full" }))
            }
            "/untrusted" => {
                exchange.becomes_untrusted();
                Response::new(wire::whole("untrusted"))
            }
            // An answer that does not come.
            "/never" => std::future::pending().await,
            "/long" => Response::new(wire::whole(self.piece(long))),
            "/long-watch" => {
                exchange.becomes_watch();
                Response::new(self.body(stream::iter([long])))
            }
            "/endless" => {
                exchange.becomes_watch();
                Response::new(self.body(stream::repeat(long)))
            }
            "/ticking" => {
                exchange.becomes_watch();
                let ticks = stream::unfold(self.tick.subscribe(), async |mut tick| {
                    tick.changed().await.unwrap();
                    let n = *tick.borrow_and_update();
                    (n != LAST).then_some((format!("tick {n}\n").into_bytes(), tick))
                });
                Response::new(self.body(ticks))
            }
            path => unreachable!("{path}"),
        }
    }

    fn body(self: Arc<Self>, pieces: impl Stream<Item = Vec<u8>> + Send + 'static) -> Body {
        let pieces = pieces.map(move |bytes| Ok::<_, Infallible>(Frame::data(self.piece(bytes))));
        StreamBody::new(pieces).boxed_unsync()
    }

    fn piece(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        self.made.fetch_add(1, Ordering::SeqCst);
        self.pieces.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Piece { bytes, answers: Arc::clone(self) })
    }
}

/// A piece that says when it is gone.
struct Piece {
    bytes: Vec<u8>,
    answers: Arc<Answers>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.answers.pieces.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads the data of a stream until so much has come.
async fn read_data(peer: &mut Http2, stream: u32, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        read += peer.until(DATA, stream).await.0.payload.len();
    }
    assert_eq!(read, bytes);
}

#[tokio::test]
async fn a_cut_resets_its_stream_alone_however_full_its_window_is() {
    // Nothing was taken; a part of a piece was; the connection's window is what is full.
    for (window, taken) in [(0, 0), (1500, 1500), (WIDE, 65_535)] {
        let mut room = Room::open().await;
        let mut peer = room.http2(window).await;
        let ticking = peer.get("/ticking").await;
        room.exchange().await;
        peer.until(HEADERS, ticking).await;
        let endless = peer.get("/endless").await;
        let exchange = room.exchange().await;
        peer.until(HEADERS, endless).await;
        read_data(&mut peer, endless, taken).await;
        room.until_stalled().await;

        exchange.cut();
        let (reset, before) = peer.until(RST_STREAM, endless).await;
        assert_eq!((reset.code(), before), (CANCEL, vec![]), "window {window}");
        room.until_freed().await;

        peer.widen(ticking, 100).await;
        peer.widen(0, 100).await;
        room.answers.tick.send_replace(1);
        let (data, before) = peer.until(DATA, ticking).await;
        assert_eq!((&*data.payload, before), (&b"tick 1\n"[..], vec![]), "window {window}");
    }
}

#[tokio::test]
async fn what_is_over_and_was_not_taken_can_still_be_cut() {
    let mut room = Room::open().await;
    let mut peer = room.http2(10).await;
    let stream = peer.get("/long-watch").await;
    let exchange = room.exchange().await;
    read_data(&mut peer, stream, 10).await;
    exchange.cut();
    assert_eq!(peer.until(RST_STREAM, stream).await.0.code(), CANCEL);
    room.until_freed().await;
}

#[tokio::test]
async fn a_request_can_be_cut_before_its_answer_and_before_its_end() {
    let mut room = Room::open().await;
    let mut peer = room.http2(0).await;
    let unanswered = peer.get("/never").await;
    room.exchange().await.cut();
    assert_eq!(peer.until(RST_STREAM, unanswered).await.0.code(), CANCEL);

    let unfinished = peer.get_with_body("/endless").await;
    let exchange = room.exchange().await;
    peer.until(HEADERS, unfinished).await;
    room.until_stalled().await;
    exchange.cut();
    assert_eq!(peer.until(RST_STREAM, unfinished).await.0.code(), CANCEL);
    room.until_freed().await;
}

#[tokio::test]
async fn a_cut_closes_a_connection_of_http_1() {
    let mut room = Room::open().await;
    let mut client = room.http1().await;
    client.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let exchange = room.exchange().await;
    room.until_stalled().await;
    exchange.cut();
    // The client has not read a byte.
    room.until_freed().await;
    room.until_empty().await;
    // Without a close_notify: nobody may take it for the end of the answer.
    assert!(timeout(ARRIVAL, client.read_to_end(&mut Vec::new())).await.unwrap().is_err());
}

#[tokio::test]
async fn a_cut_after_the_end_does_nothing() {
    let mut room = Room::open().await;
    let mut client = room.http1().await;
    let mut http2 = room.http2(WIDE).await;
    for path in ["/plain", "/ticking"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(if path == "/plain" { b"plain" } else { b"\r\n\r\n" }) {
            read.push(client.read_u8().await.unwrap());
        }
        let stream = http2.get(path).await;
        http2.until(HEADERS, stream).await;
    }
    // The first of each.
    for _ in 0..2 {
        room.exchange().await.cut();
    }
    // Whatever that does has been done when this is answered.
    let plain = http2.get("/plain").await;
    http2.until(DATA, plain).await;
    room.answers.tick.send_replace(1);
    let chunk = b"7\r\ntick 1\n\r\n";
    let mut read = [0; 12];
    timeout(ARRIVAL, client.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, chunk);
    assert_eq!(http2.until(DATA, 3).await.0.payload, b"tick 1\n");
}

/// Opens ticking watches, and waits until they are answered.
async fn open_watches(room: &mut Room, peer: &mut Http2, count: usize) -> Vec<u32> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(peer.get("/ticking").await);
        room.exchange().await;
    }
    streams
}

/// Reads the two frames that retire a connection, which may come amidst others, and returns the ping.
async fn read_retirement(peer: &mut Http2) -> peer::Frame {
    let (goaway, _) = peer.until(GOAWAY, 0).await;
    assert_eq!(goaway.last_and_code(), (MAX_STREAM, NO_ERROR));
    peer.until(PING, 0).await.0
}

/// Reads the next tick of each of these streams.
async fn read_ticks(peer: &mut Http2, streams: &[u32]) {
    let mut waiting = streams.to_vec();
    while !waiting.is_empty() {
        let frame = peer.next().await.expect("the connection is open");
        match (frame.kind, waiting.iter().position(|stream| *stream == frame.stream)) {
            (DATA, Some(index)) => drop(waiting.swap_remove(index)),
            (HEADERS, _) => {}
            _ => panic!("{frame:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_is_retired_with_its_200th_watch_and_goes_on_until_the_last_ends() {
    let mut room = Room::open().await;
    let mut peer = room.http2(WIDE).await;
    let mut streams = open_watches(&mut room, &mut peer, WATCHES_PER_CONNECTION - 1).await;
    let plain = peer.get("/plain").await;
    let (_, before) = peer.until(DATA, plain).await;
    assert!(before.iter().all(|frame| frame.kind == HEADERS), "{before:?}");
    assert_eq!(room.retired(Retirement::Watches), 0);

    streams.extend(open_watches(&mut room, &mut peer, 1).await);
    let ping = read_retirement(&mut peer).await;
    assert_eq!(room.retired(Retirement::Watches), 1);
    peer.pong(&ping).await;
    let (goaway, _) = peer.until(GOAWAY, 0).await;
    assert_eq!(goaway.last_and_code(), (*streams.last().unwrap(), NO_ERROR));

    for tick in 1..3 {
        room.answers.tick.send_replace(tick);
        read_ticks(&mut peer, &streams).await;
    }
    let mut fresh = room.http2(WIDE).await;
    let plain = fresh.get("/plain").await;
    assert_eq!(fresh.until(DATA, plain).await.0.payload, b"plain");

    room.answers.tick.send_replace(LAST);
    read_ticks(&mut peer, &streams).await;
    assert_eq!(peer.next().await, None);
    drop(fresh);
    room.until_empty().await;
    assert_eq!(room.retired(Retirement::Watches), 1);
}

#[tokio::test]
async fn requests_that_meet_the_retirement_are_answered() {
    let mut room = Room::open().await;
    let mut peer = room.http2(WIDE).await;
    let mut streams = open_watches(&mut room, &mut peer, WATCHES_PER_CONNECTION).await;
    let ping = read_retirement(&mut peer).await;
    // The peer has not seen it yet, as far as the listener can know.
    for _ in 0..100 {
        let plain = peer.get("/plain").await;
        assert_eq!(peer.until(DATA, plain).await.0.payload, b"plain");
    }
    streams.extend(open_watches(&mut room, &mut peer, 10).await);
    peer.pong(&ping).await;
    let (goaway, _) = peer.until(GOAWAY, 0).await;
    assert_eq!(goaway.last_and_code(), (*streams.last().unwrap(), NO_ERROR));
    room.answers.tick.send_replace(1);
    read_ticks(&mut peer, &streams).await;
    assert_eq!(room.retired(Retirement::Watches), 1);
}

#[tokio::test]
async fn watches_over_http_1_retire_nothing() {
    let room = Room::open().await;
    let mut client = room.http1().await;
    for _ in 0..=WATCHES_PER_CONNECTION {
        client.write_all(b"GET /long-watch HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n0\r\n\r\n") {
            read.push(timeout(ARRIVAL, client.read_u8()).await.unwrap().unwrap());
        }
        assert!(!String::from_utf8(read).unwrap().contains("connection: close"));
    }
    assert_eq!(room.retired(Retirement::Watches), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_which_there_is_no_room_retires_the_connection_and_is_cut_in_the_end() {
    let mut room = Room::open().await;
    let mut peer = room.http2_in_memory(10).await;
    let long = peer.get("/long").await;
    room.exchange().await;
    read_data(&mut peer, long, 10).await;
    assert_eq!(room.retired(Retirement::Stuck), 0);
    let ping = read_retirement(&mut peer).await;
    assert_eq!(room.retired(Retirement::Stuck), 1);
    peer.pong(&ping).await;
    peer.until(GOAWAY, 0).await;
    // A minute has one keep-alive, or two.
    let mut frame = peer.next().await.unwrap();
    for _ in 0..2 {
        if frame.kind == PING {
            peer.pong(&frame).await;
            frame = peer.next().await.unwrap();
        }
    }
    assert_eq!((frame.stream, frame.code()), (long, CANCEL));
    assert_eq!(peer.next().await, None);
    room.until_freed().await;
    room.until_empty().await;
}

#[tokio::test]
async fn an_answer_that_is_taken_late_arrives_whole() {
    let mut room = Room::open().await;
    let mut peer = room.http2(10).await;
    let long = peer.get("/long").await;
    room.exchange().await;
    read_data(&mut peer, long, 10).await;
    let ping = read_retirement(&mut peer).await;
    peer.pong(&ping).await;
    peer.widen(long, 990).await;
    read_data(&mut peer, long, 990).await;
    assert_eq!(peer.until(DATA, long).await.0.flags, 1, "END_STREAM");
    assert_eq!(peer.next().await, None);
    room.until_empty().await;
}

/// Waits, answering pings, until the connection is told something else, or ends: what, and how long that took.
async fn until_told(peer: &mut Http2) -> (Option<peer::Frame>, Duration) {
    let from = Instant::now();
    loop {
        assert!(from.elapsed() < 20 * IDLE_TIMEOUT, "it is told nothing");
        // A keep-alive comes every half a minute.
        match peer.next().await {
            Some(ping) if ping.kind == PING => peer.pong(&ping).await,
            // The end of an answer.
            Some(peer::Frame { kind: DATA, flags: 1, .. }) => {}
            other => return (other, from.elapsed()),
        }
    }
}

/// Answers pings for so long, and nothing else comes.
async fn stay(peer: &mut Http2, time: Duration) {
    let told = timeout(time, until_told(peer)).await;
    assert!(told.is_err(), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_is_ended_after_90_s() {
    let mut room = Room::open().await;
    let mut peer = room.http2_in_memory(WIDE).await;
    for _ in 0..2 {
        let plain = peer.get("/plain").await;
        peer.until(DATA, plain).await;
        // Each request puts it off.
        stay(&mut peer, IDLE_TIMEOUT - Duration::from_secs(1)).await;
    }
    let (goaway, took) = until_told(&mut peer).await;
    assert_eq!(goaway.unwrap().last_and_code(), (MAX_STREAM, NO_ERROR));
    assert_eq!(took.as_secs(), 1, "{took:?}");
    assert_eq!(room.retired(Retirement::Idle), 1);
    // It answers the ping behind it, so there is nothing to wait for.
    let (goaway, _) = until_told(&mut peer).await;
    assert_eq!(goaway.unwrap().last_and_code(), (3, NO_ERROR));
    assert_eq!(until_told(&mut peer).await.0, None);
    for _ in 0..2 {
        room.exchange().await;
    }
    room.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_request_under_way_is_not_idle_and_is_from_its_end_on() {
    let room = Room::open().await;
    let mut peer = room.http2_in_memory(WIDE).await;
    let ticking = peer.get("/ticking").await;
    peer.until(HEADERS, ticking).await;
    stay(&mut peer, 10 * IDLE_TIMEOUT).await;
    assert_eq!(room.retired(Retirement::Idle), 0);
    room.answers.tick.send_replace(LAST);
    let (goaway, took) = until_told(&mut peer).await;
    assert_eq!((goaway.unwrap().kind, took.as_secs()), (GOAWAY, 90));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_take_its_leave_is_cut() {
    let mut room = Room::open().await;
    let mut peer = room.http2_in_memory(WIDE).await;
    let streams = open_watches(&mut room, &mut peer, WATCHES_PER_CONNECTION).await;
    let ping = read_retirement(&mut peer).await;
    // It keeps quiet about that one, and answers others, for as long as it has watches.
    sleep(END_TIMEOUT * 2).await;
    room.answers.tick.send_replace(1);
    read_ticks(&mut peer, &streams).await;
    room.answers.tick.send_replace(LAST);
    read_ticks(&mut peer, &streams).await;
    let from = Instant::now();
    while let Some(frame) = peer.next().await {
        assert_eq!(frame.kind, PING);
        assert_ne!(frame, ping);
        peer.pong(&frame).await;
    }
    assert_eq!(from.elapsed().as_secs(), END_TIMEOUT.as_secs());
    room.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_asks_is_cut_after_10_s() {
    let room = Room::open().await;
    let mut peer = room.http2_in_memory(WIDE).await;
    let (end, took) = until_told(&mut peer).await;
    assert_eq!((end, took.as_secs()), (None, REQUEST_TIMEOUT.as_secs()));
}

#[tokio::test]
async fn a_connection_over_http_1_that_waits_between_requests_is_kept() {
    let room = Room::open().await;
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    let (handler, stop) = (handler(&room.answers), room.stop.clone());
    let server = Server {
        config: CONFIG,
        handler,
        handshakes: Handle::current(),
        stop,
        tasks: room.tasks.clone(),
        metrics: room.metrics.clone(),
    };
    let peer = Peer::new(room.address, vec![]);
    let place = Arc::new(Guests::new(1, 1).enter(std::net::Ipv4Addr::LOCALHOST.into()));
    tokio::time::pause();
    room.tasks.spawn(server.serve_connection(theirs, Spoken::Either, peer, place));
    for _ in 0..3 {
        ours.write_all(b"GET /plain HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"plain") {
            read.push(timeout(ARRIVAL, ours.read_u8()).await.unwrap().unwrap());
        }
        sleep(IDLE_TIMEOUT - Duration::from_secs(1)).await;
    }
    let from = Instant::now();
    assert_eq!(ours.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(from.elapsed().as_secs(), 1);
    assert_eq!(room.retired(Retirement::Idle), 1);
}

impl Room {
    fn refused(&self, reason: &'static str) -> u64 {
        self.metrics.refused_connections.get_or_create(&ListenerReason { listener: "test", reason }).get()
    }

    async fn until_refused(&self, reason: &'static str, count: u64) {
        let waiting = async {
            while self.refused(reason) < count {
                sleep(GLANCE).await;
            }
        };
        timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{} were refused: {reason}", self.refused(reason)));
    }
}

/// What a short answer says.
async fn ask(peer: &mut Http2, path: &str) -> String {
    let stream = peer.get(path).await;
    String::from_utf8(peer.until(DATA, stream).await.0.payload).unwrap()
}

#[tokio::test]
async fn strangers_take_each_others_places_and_nobody_elses() {
    let room = Room::open().await;
    let mut first = room.http2(WIDE).await;
    let mut known = room.http2(WIDE).await;
    assert_eq!(ask(&mut known, "/known").await, "known");
    assert_eq!(ask(&mut first, "/plain").await, "plain");
    // Some shake no hands, some say nothing behind that: with the first one guest too many.
    let mut strangers = Vec::new();
    for number in 0..MAX_GUESTS {
        strangers.push(TcpStream::connect(room.address).await.unwrap());
        if number % 64 == 0 {
            // In between others are answered, who come and go.
            let mut probe = room.http2(WIDE).await;
            assert_eq!(ask(&mut probe, "/plain").await, "plain");
            assert_eq!(ask(&mut known, "/plain").await, "plain");
        }
    }
    room.until_refused("crowded_out", 1).await;
    assert_eq!(until_told(&mut first).await.0, None, "the first of the guests is gone");
    assert_eq!(ask(&mut known, "/plain").await, "plain");
}

#[tokio::test]
async fn where_nobody_more_may_be_known_the_next_stays_a_guest() {
    let mut room = Room::open().await;
    let mut peers = Vec::new();
    for expected in ["known", "known", "full"] {
        let mut peer = room.http2(WIDE).await;
        assert_eq!(ask(&mut peer, "/known").await, expected);
        peers.push(peer);
    }
    // It is told so for as long as that is so, and goes on as a guest.
    let mut waiting = peers.pop().unwrap();
    assert_eq!(ask(&mut waiting, "/known").await, "full");
    drop(peers.pop());
    // Here alone they outlive their connections, and keep their places.
    for _ in 0..4 {
        room.exchange().await;
    }
    let becoming = async {
        while ask(&mut waiting, "/known").await == "full" {
            sleep(GLANCE).await;
        }
    };
    timeout(SOON, becoming).await.expect("a place is free again");
}

#[tokio::test]
async fn where_the_handshake_makes_known_nobody_is_crowded_out_behind_it() {
    let room = Room::with(Config { known_by: KnownBy::Handshake, ..CONFIG }).await;
    let mut peers = [room.http2(WIDE).await, room.http2(WIDE).await];
    for peer in &mut peers {
        assert_eq!(ask(peer, "/plain").await, "plain");
    }
    let mut third = room.http2(WIDE).await;
    assert_eq!(third.next().await, None);
    room.until_refused("too_many_connections", 1).await;
    let mut strangers = Vec::new();
    for _ in 0..=MAX_GUESTS {
        strangers.push(TcpStream::connect(room.address).await.unwrap());
    }
    room.until_refused("crowded_out", 1).await;
    for peer in &mut peers {
        assert_eq!(ask(peer, "/plain").await, "plain");
    }
}

#[tokio::test]
async fn a_connection_whose_peer_is_believed_no_longer_is_answered_and_ended() {
    let room = Room::open().await;
    let mut http2 = room.http2(WIDE).await;
    let stream = http2.get("/untrusted").await;
    let mut told = Vec::new();
    while let (Some(frame), _) = until_told(&mut http2).await {
        told.push((frame.kind, frame.stream, frame.payload));
    }
    told.retain(|(kind, ..)| *kind != HEADERS);
    told.sort_by_key(|(kind, ..)| *kind);
    assert_eq!(told[0], (DATA, stream, b"untrusted".to_vec()));
    assert_eq!(told[1..].iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [GOAWAY, GOAWAY]);
    let mut http1 = room.http1().await;
    http1.write_all(b"GET /untrusted HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(ARRIVAL, http1.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("untrusted"), "{answer}");
    assert_eq!(room.retired(Retirement::Untrusted), 2);
}

#[tokio::test(start_paused = true)]
async fn watches_that_nobody_reads_and_answers_that_are_taken_retire_nothing() {
    let mut room = Room::open().await;
    let mut peer = room.http2_in_memory(10).await;
    for path in ["/endless", "/long-watch", "/empty", "/plain", "/never"] {
        peer.get(path).await;
        room.exchange().await;
    }
    // Short of the first keep-alive.
    sleep(Duration::from_secs(20)).await;
    let plain = peer.get("/plain").await;
    let (_, before) = peer.until(DATA, plain).await;
    assert!(before.iter().all(|frame| [HEADERS, DATA].contains(&frame.kind)), "{before:?}");
    assert_eq!(room.retired(Retirement::Stuck), 0);
}

#[tokio::test]
async fn nothing_is_left_of_a_connection_that_breaks_off() {
    let mut room = Room::open().await;
    let mut http2 = room.http2(10).await;
    for path in ["/endless", "/long-watch", "/long", "/never", "/ticking"] {
        http2.get(path).await;
        room.exchange().await;
    }
    let mut http1 = room.http1().await;
    http1.write_all(b"GET /ticking HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    room.exchange().await;
    drop((http1, http2));
    room.until_freed().await;
    room.until_empty().await;
}

#[tokio::test]
async fn a_listener_that_stops_waits_for_its_retired_connections() {
    let mut room = Room::open().await;
    let mut peer = room.http2(WIDE).await;
    let streams = open_watches(&mut room, &mut peer, WATCHES_PER_CONNECTION).await;
    let ping = read_retirement(&mut peer).await;
    peer.pong(&ping).await;
    peer.until(GOAWAY, 0).await;
    room.stop.cancel();
    room.answers.tick.send_replace(1);
    read_ticks(&mut peer, &streams).await;
    assert!(room.served.try_join_next().is_none());
    room.answers.tick.send_replace(LAST);
    timeout(ARRIVAL, room.served.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_takes_nothing_at_all_holds_one_piece_when_its_peer_is_given_up() {
    let mut room = Room::open().await;
    let mut peer = room.http2_in_memory(WIDE).await;
    // It is not a window that is full.
    peer.widen(0, WIDE).await;
    peer.get("/endless").await;
    let exchange = room.exchange().await;
    room.until_stalled().await;
    exchange.cut();
    sleep(PING_INTERVAL + PING_TIMEOUT + GLANCE).await;
    assert!(room.answers.pieces.load(Ordering::SeqCst) <= 1, "{:?}", room.answers.pieces);
    // As the kernel does then.
    drop(peer);
    room.until_freed().await;
    room.until_empty().await;
}

#[test]
fn what_is_accepted_inherits_its_bounds_and_the_address_can_be_bound_again() {
    let listening = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listening.local_addr().unwrap();
    listening.set_nonblocking(false).unwrap();
    let client = std::net::TcpStream::connect(address).unwrap();
    let (accepted, _) = listening.accept().unwrap();
    let socket = socket2::SockRef::from(&accepted);
    // The kernel doubles it.
    assert_eq!(socket.send_buffer_size().unwrap(), 2 * SEND_BUFFER_BYTES);
    #[cfg(target_os = "linux")]
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(SEND_TIMEOUT));
    // Ours is the end that waits in TIME_WAIT.
    drop(accepted);
    drop(client);
    drop(listening);
    bind(address).unwrap();
}
