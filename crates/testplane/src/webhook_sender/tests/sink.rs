//! The webhook that the tests of the senders post to: it answers as it is told, in order, and with 200 afterwards.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::front_proxy::Target;
use crate::pki::Authority;
use crate::tasks::Tasks;
use crate::tls::mutual_server_config;

pub(crate) struct Sink {
    address: SocketAddr,
    authority: Authority,
    state: Arc<State>,
    _tasks: Tasks,
}

struct State {
    replies: Mutex<VecDeque<Reply>>,
    posts: Mutex<Vec<Post>>,
    accepted: Mutex<Vec<String>>,
}

#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Status {
        code: u16,
        retry_after: Option<&'static str>,
    },
    /// Resets the stream.
    Cut,
    /// Never answers.
    Never,
    /// Answers 200 later than the posts that follow.
    Slow,
}

#[derive(Clone)]
pub(crate) struct Post {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn status(code: u16) -> Self {
        Self::Status { code, retry_after: None }
    }
}

impl Sink {
    pub(crate) async fn start(replies: &[Reply]) -> Self {
        let authority = Authority::new("ca");
        let acceptor = TlsAcceptor::from(mutual_server_config(&authority, true));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            replies: Mutex::new(replies.iter().copied().collect()),
            posts: Mutex::default(),
            accepted: Mutex::default(),
        });
        let tasks = Tasks::new();
        let (executor, shared) = (tasks.executor(), state.clone());
        tasks.executor().spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                let (acceptor, state, streams) = (acceptor.clone(), shared.clone(), executor.clone());
                executor.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let mut builder = auto::Builder::new(streams);
                    // Otherwise hyper takes a closed sending side for a client that is gone.
                    builder.http1().half_close(true);
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, authority, state, _tasks: tasks }
    }

    pub(crate) fn target(&self) -> Target {
        let identity = self.authority.client("kube-apiserver-audit", &[]);
        Target::new(self.address, self.authority.certificate_pem(), "sink.audit.svc").identity(&identity)
    }

    /// What was posted, in the order of arrival.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.state.posts.lock().unwrap().clone()
    }

    /// The audit IDs in the order in which their batches were accepted.
    pub(crate) fn accepted(&self) -> Vec<String> {
        self.state.accepted.lock().unwrap().clone()
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(Response::builder().status(499).body(Full::default()).unwrap());
    };
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let line = format!("{} {} {:?}", head.method, head.uri.path(), head.version);
    state.posts.lock().unwrap().push(Post { line, headers: head.headers, body: body.clone() });
    let reply = state.replies.lock().unwrap().pop_front().unwrap_or(Reply::status(200));
    let (code, retry_after) = match reply {
        Reply::Status { code, retry_after } => (code, retry_after),
        Reply::Cut => return Err(io::Error::other("on purpose")),
        Reply::Never => std::future::pending().await,
        Reply::Slow => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            (200, None)
        }
    };
    if code == 200 {
        let list = serde_json::from_str::<Value>(&body).unwrap_or_default();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let ids = items.iter().map(|item| item["auditID"].as_str().unwrap().to_owned());
        state.accepted.lock().unwrap().extend(ids);
    }
    let mut response = Response::builder().status(code);
    if let Some(retry_after) = retry_after {
        response = response.header("Retry-After", retry_after);
    }
    Ok(response.body(Full::from("{}")).unwrap())
}
