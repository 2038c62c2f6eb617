//! HTTP/2 frame by frame, for what no client library sends: floods, halves, contradictions.
//!
//! It writes what it is told and understands nothing of what comes back but the kind of each frame.

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::front_proxy::Target;

/// `END_STREAM` of DATA and HEADERS, and ACK of SETTINGS and PING.
pub const END_STREAM: u8 = 1;
/// `END_HEADERS` of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of RFC 9113, section 6")]
pub enum Kind {
    Data = 0,
    Headers = 1,
    RstStream = 3,
    Settings = 4,
    Ping = 6,
    GoAway = 7,
    WindowUpdate = 8,
    Continuation = 9,
}

/// The writing half of a connection.
pub struct Writer(WriteHalf<TlsStream<TcpStream>>);

/// The reading half. Nothing is read but by its methods: left alone, the peer's answers pile up.
pub struct Reader(ReadHalf<TlsStream<TcpStream>>);

/// Connects, and greets with settings that give each stream this window.
///
/// # Errors
/// If nobody listens or the handshake fails.
pub async fn connect(target: &Target, window: u32) -> Result<(Reader, Writer)> {
    let (reader, writer) = split(target.dial(&target.tls()?).await?);
    let mut writer = Writer(writer);
    let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
    let greeting = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(Kind::Settings, 0, 0, &settings)].concat();
    writer.write(&greeting).await?;
    Ok((Reader(reader), writer))
}

/// The bytes of a frame.
///
/// # Panics
/// If the payload is over 16 MiB.
pub fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a payload's length has 24 bits").to_be_bytes();
    assert_eq!(length[0], 0, "a payload's length has 24 bits");
    [&length[1..], &[kind as u8, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block: a GET of a path, and headers without compression.
///
/// # Panics
/// If the path has more than 126 bytes, or a header's name or value.
pub fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    // HPACK: `:method: GET` and `:scheme: https` are in the static table; `:path` and `:authority` are names in it.
    let mut block = vec![0x82, 0x87, 4];
    literal(&mut block, path);
    block.push(1);
    literal(&mut block, "a");
    for (name, value) in headers {
        // Not to be remembered.
        block.push(0);
        literal(&mut block, name);
        literal(&mut block, value);
    }
    block
}

fn literal(block: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
    block.push(length.expect("a length in seven bits, without a continuation"));
    block.extend(text.as_bytes());
}

impl Writer {
    /// Writes bytes.
    ///
    /// # Errors
    /// If the peer has ended the connection.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).await.context("the connection is over")?;
        self.0.flush().await.context("the connection is over")
    }
}

impl Reader {
    /// The next frame: its kind as a number, its flags and its stream; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((kind, flags, u32::from_be_bytes(stream)))
    }

    /// Reads on to the end of the connection: whether a GOAWAY came before it.
    pub async fn drain(mut self) -> bool {
        let mut told = false;
        while let Some((kind, ..)) = self.next().await {
            told |= kind == Kind::GoAway as u8;
        }
        told
    }
}
