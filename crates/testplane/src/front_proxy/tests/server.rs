//! The server that the tests of the front proxy and of the recorder speak to: it echoes requests, and its watches end in
//! every way.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pki::Authority;
use crate::tasks::{Executor, Tasks};
use crate::tls::mutual_server_config;

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Signs the serving certificate, and the client certificates that are accepted.
    pub(crate) authority: Authority,
    shutdown: watch::Sender<bool>,
    _tasks: Tasks,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(serve).await
    }

    /// Answers the first request with one frame and a reset of this code, in hand-made HTTP/2 frames.
    pub(super) async fn resetting_with(code: u32) -> Self {
        Self::with(move |stream, _, _| reset(stream, code)).await
    }

    async fn with<F, T>(serve: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, watch::Receiver<bool>, Executor) -> T + Send + 'static,
        T: Future + Send + 'static,
    {
        let authority = Authority::new("ca");
        let acceptor = TlsAcceptor::from(mutual_server_config(&authority, false));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, is_shut_down) = watch::channel(false);
        let tasks = Tasks::new();
        let executor = tasks.executor();
        tasks.executor().spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                executor.spawn(serve(stream, is_shut_down.clone(), executor.clone()));
            }
        });
        Self { address, authority, shutdown, _tasks: tasks }
    }

    /// Sends GOAWAY on all connections that are open now.
    pub(super) fn go_away(&self) {
        self.shutdown.send_replace(true);
    }
}

async fn serve(stream: TlsStream<TcpStream>, mut shutdown: watch::Receiver<bool>, tasks: Executor) {
    let certificates = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
    let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(request, certificates).await) });
    let builder = auto::Builder::new(tasks);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // A connection made after the GOAWAY gets none.
    shutdown.mark_unchanged();
    tokio::select! {
        _ = connection.as_mut() => {}
        Ok(()) = shutdown.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(request: Request<Incoming>, certificates: usize) -> Response<Body> {
    let bookmark = r#"{"type":"BOOKMARK","object":{}}"#;
    let added = |n: u32| format!("{{\"type\":\"ADDED\",\"object\":{{\"n\":{n}}}}}\n");
    match request.uri().path() {
        path if path.starts_with("/echo") => echo(request, certificates).await,
        // In pieces that do not end where frames end.
        "/watch/clean" => {
            frames(vec![Ok(format!("{bookmark}\n{}", &added(1)[..9])), Ok(added(1)[9..].to_owned() + &added(2))])
        }
        "/watch/broken" => frames(vec![Ok(added(1)), Err(io::Error::other("on purpose"))]),
        "/watch/truncated" => frames(vec![Ok("{\"type\":".to_owned())]),
        "/watch/malformed" => frames(vec![Ok("not json\n".to_owned())]),
        "/watch/open" => open(format!("{bookmark}\n")),
        "/apis/audit.k8s.io/v1/events" => events(request.uri().query().unwrap_or_default()),
        "/watch/ticking" => {
            let ticks = stream::unfold((), async |()| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok(Frame::data(Bytes::from_static(b"{\"type\":\"BOOKMARK\",\"object\":{}}\n"))), ()))
            });
            Response::new(StreamBody::new(ticks).boxed_unsync())
        }
        _ => Response::builder().status(403).body(full("no".to_owned())).unwrap(),
    }
}

/// A watch of events at the places 11, 12, … that goes on where a reader was, until place 13 is gone.
fn events(query: &str) -> Response<Body> {
    let event = |place: u64| {
        let metadata = format!(r#"{{"name":"event-{place}","resourceVersion":"{place}"}}"#);
        let front = r#"{"type":"ADDED","object":{"kind":"Event","apiVersion":"audit.k8s.io/v1","metadata":"#;
        format!("{front}{metadata},\"auditID\":\"id-{place}\"}}}}\n")
    };
    let after = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    match after {
        // The end of a frame that never comes whole.
        None => open(event(11) + &event(12) + &event(13)[..20]),
        Some("12") => frames(vec![Ok(event(13))]),
        Some("13") => frames(vec![Ok("{\"type\":\"ERROR\",\"object\":{\"metadata\":{},\"code\":410}}\n".to_owned())]),
        Some(_) => frames(vec![Ok(event(14)), Err(io::Error::other("on purpose"))]),
    }
}

/// A watch that sends this and nothing else, and does not end.
fn open(text: String) -> Response<Body> {
    let open = stream::iter([Ok(Frame::data(Bytes::from(text)))]).chain(stream::pending());
    Response::new(StreamBody::new(open).boxed_unsync())
}

async fn echo(request: Request<Incoming>, certificates: usize) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut headers = head.headers.clone();
    // HTTP/1.1 says it in a header, HTTP/2 beside the headers.
    let host = headers.remove("host").map(|host| host.to_str().unwrap().to_owned());
    let headers = headers.iter().map(|(name, value)| json!([name.as_str(), value.to_str().unwrap()]));
    let echo = json!({
        "method": head.method.as_str(),
        "uri": head.uri.path_and_query().unwrap().as_str(),
        "authority": host.or_else(|| head.uri.authority().map(ToString::to_string)),
        "headers": headers.collect::<Vec<_>>(),
        "body": String::from_utf8_lossy(&body),
        "certificates": certificates,
    });
    Response::new(full(echo.to_string()))
}

fn full(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

fn frames(pieces: Vec<io::Result<String>>) -> Response<Body> {
    // Each piece is flushed before the next is asked for, so that an error does not overtake the data before it.
    let pieces = stream::iter(pieces).then(async |piece| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        piece.map(|text| Frame::data(Bytes::from(text)))
    });
    Response::new(StreamBody::new(pieces).boxed_unsync())
}

async fn reset(mut stream: TlsStream<TcpStream>, code: u32) -> io::Result<()> {
    const HEADERS: u8 = 1;
    const END_HEADERS: u8 = 4;
    // An HPACK literal is not needed: index 8 of the static table is `:status: 200`.
    const STATUS_200: u8 = 0x88;
    let frame = |kind: u8, flags: u8, stream_id: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream_id], payload].concat()
    };
    stream.write_all(&frame(4, 0, 0, &[])).await?;
    // The preface, then frames until the request's headers are there.
    stream.read_exact(&mut [0; 24]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await?;
        if head[3] == HEADERS {
            break;
        }
    }
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &[STATUS_200])).await?;
    stream.write_all(&frame(0, 0, 1, b"{\"type\":\"BOOKMARK\"}\n")).await?;
    stream.flush().await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(&frame(3, 0, 1, &code.to_be_bytes())).await?;
    stream.flush().await?;
    // Stays open: the reset, not the end of the connection, is what the client sees.
    stream.read_to_end(&mut Vec::new()).await.map(|_| ())
}
