//! A peer that speaks HTTP/2 frame by frame, so that it can take as little as it likes and answers a ping when it likes;
//! and the TLS below it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use audit_stream_testplane::pki::{Authority, Identity};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An answer without an error.
pub(super) const NO_ERROR: u32 = 0;
/// A stream is no longer wanted.
pub(super) const CANCEL: u32 = 8;
/// GOAWAY before the last request is known.
pub(super) const MAX_STREAM: u32 = (1 << 31) - 1;

const SERVER_NAME: &str = "listener";

/// Things arrive in the end: this long is the end, beyond every deadline of the listener.
pub(super) const ARRIVAL: Duration = Duration::from_secs(100);

/// Who signs the listener's certificate.
pub(in crate::listener) struct Ca(Authority);

/// One HTTP/2 connection.
pub(super) struct Peer {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// What was read and is no whole frame yet.
    read: Vec<u8>,
    next_stream: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

// === impl Ca ===

impl Ca {
    pub(in crate::listener) fn new() -> Self {
        Self(Authority::new("ca"))
    }

    pub(in crate::listener) fn server_config(&self) -> ServerConfig {
        let Identity { certificate_pem, key_pem } = self.0.server(SERVER_NAME, &[SERVER_NAME]);
        let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    pub(in crate::listener) async fn connect(&self, address: SocketAddr, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.certificate_pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }
}

// === impl Peer ===

impl Peer {
    /// Begins a connection whose streams have this window. The connection's own is what HTTP/2 gives it, 65,535.
    pub(super) async fn greet(stream: impl AsyncRead + AsyncWrite + Send + 'static, window: u32) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let mut peer = Self { reader: Box::new(reader), writer: Box::new(writer), read: Vec::new(), next_stream: 1 };
        peer.writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let initial_window_size = [&[0, 4][..], &window.to_be_bytes()].concat();
        peer.write(SETTINGS, 0, 0, &initial_window_size).await;
        peer
    }

    /// Sends a GET and says no more: which stream it has.
    pub(super) async fn get(&mut self, path: &str) -> u32 {
        self.request(path, END_HEADERS | END_STREAM).await
    }

    /// Sends the headers of a GET whose body never comes: which stream it has.
    pub(super) async fn get_with_body(&mut self, path: &str) -> u32 {
        self.request(path, END_HEADERS).await
    }

    async fn request(&mut self, path: &str, flags: u8) -> u32 {
        // HPACK: `:method: GET` and `:scheme: https` are in the static table; `:path` and `:authority` are names in it.
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let block = [&[0x82, 0x87, 4, length(path)], path.as_bytes(), &[1, length("a")], b"a"].concat();
        let stream = self.next_stream;
        self.next_stream += 2;
        self.write(HEADERS, flags, stream, &block).await;
        stream
    }

    /// Lets a stream, or with 0 the connection, send this much more.
    pub(super) async fn widen(&mut self, stream: u32, bytes: u32) {
        self.write(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
    }

    /// Answers a ping.
    pub(super) async fn pong(&mut self, ping: &Frame) {
        self.write(PING, ACK, 0, &ping.payload).await;
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        // If the other end takes no more, `next` will tell.
        let _ = self.writer.write_all(&frame).await;
        let _ = self.writer.flush().await;
    }

    /// The next frame that is no setting and no window; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        timeout(ARRIVAL, async {
            loop {
                match self.take_frame() {
                    Some(frame) if [SETTINGS, WINDOW_UPDATE].contains(&frame.kind) => {}
                    Some(frame) => return Some(frame),
                    None if matches!(self.reader.read_buf(&mut self.read).await, Err(_) | Ok(0)) => return None,
                    None => {}
                }
            }
        })
        .await
        .expect("a frame, or the end of the connection")
    }

    /// Reads on to a frame of this kind and stream, and returns it with those before it.
    pub(super) async fn until(&mut self, kind: u8, stream: u32) -> (Frame, Vec<Frame>) {
        let mut before = Vec::new();
        while let Some(frame) = self.next().await {
            if (frame.kind, frame.stream) == (kind, stream) {
                return (frame, before);
            }
            before.push(frame);
        }
        panic!("the connection ended before frame {kind} of stream {stream}, after {before:?}");
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let head = self.read.first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.read.get(9..9 + length)?.to_vec();
        self.read.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }
}

// === impl Frame ===

impl Frame {
    /// The error code of a reset.
    #[track_caller]
    pub(super) fn code(&self) -> u32 {
        assert_eq!(self.kind, RST_STREAM, "{self:?}");
        number(&self.payload)
    }

    /// The last stream and the error code of a GOAWAY.
    #[track_caller]
    pub(super) fn last_and_code(&self) -> (u32, u32) {
        assert_eq!(self.kind, GOAWAY, "{self:?}");
        (number(&self.payload[..4]), number(&self.payload[4..8]))
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}
