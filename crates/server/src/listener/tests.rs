mod peer;

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::client::TlsStream;

use super::*;
use peer::{ARRIVAL, CANCEL, Ca, DATA, GOAWAY, HEADERS, MAX_STREAM, NO_ERROR, PING, Peer as Http2, RST_STREAM};

/// What a stream may have at a time in these tests: more than the retirement, so that this is not what ends them.
const CONFIG: Config = Config { name: "test", max_connections: 10, max_streams: 1000, max_resets: 1000 };

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

impl Room {
    async fn open() -> Self {
        let (ca, metrics, stop) = (Ca::new(), ListenerMetrics::default(), CancellationToken::new());
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(address, ca.server_config(), CONFIG, metrics.clone()).unwrap();
        let address = listener.local_addr().unwrap();
        let (answers, exchanges) = Answers::new();
        let (tasks, mut served) = (TaskTracker::new(), JoinSet::new());
        served.spawn(listener.serve(handler(&answers), stop.clone()));
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
        let server = Server { config, handler, stop, tasks: self.tasks.clone(), metrics: self.metrics.clone() };
        let peer = Peer { address: self.address, certificates: vec![] };
        self.tasks.spawn(server.serve_connection(theirs, peer));
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
