//! How long an event takes from the first byte of its POST to the last of its frame at each of ten readers.
//!
//! What is sent is written as it is, and read so where it is HTTP/1.1: a client's own time would be half of the figure.

use std::time::Duration;

use crate::corpus;
use anyhow::{Result, ensure};
use audit_stream_testplane::front_proxy::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::client::TlsStream;

use super::Effort;
use crate::figure::{Figure, Goal, Pair, percentile};
use crate::readers::{self, Chunks, Readers};
use crate::reference::Reference;
use crate::stand::{READERS, SERVER_NAME, Stand, watch};

const WATCHES: usize = 10;
const NAMESPACE: &str = "shop";
const PATH: &str = "/apis/audit.k8s.io/v1/namespaces/shop/namespacedevents?watch=true";

/// Of a round.
const EVENTS: u64 = 200;

/// Between two events, so that none waits for the one before it.
const PAUSE: Duration = Duration::from_millis(1);

/// Microseconds of one round, of all readers.
type Delays = Vec<f64>;

pub(super) async fn of_single_events(effort: Effort) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (protocol, word, [most_p50, most_p99]) in
        [(Protocol::Http1, "HTTP/1.1", [1.5, 2.0]), (Protocol::Http2, "HTTP/2", [2.0, 2.5])]
    {
        let mut rounds = over(protocol, effort).await?;
        for (share, word_of_share, most) in [(0.5, "p50", most_p50), (0.99, "p99", most_p99)] {
            let pair = |(ours, reference): &mut (Delays, Delays)| Pair {
                ours: percentile(ours, share),
                reference: percentile(reference, share),
            };
            let pairs: Vec<Pair> = rounds.iter_mut().map(pair).collect();
            let name = format!("latency of single events, 10 watches, {word}, {word_of_share}, µs");
            figures.push(Figure::ratio(name, &pairs, Some(Goal::AtMost(most))));
        }
    }
    Ok(figures)
}

async fn over(protocol: Protocol, effort: Effort) -> Result<Vec<(Delays, Delays)>> {
    let stand = Stand::start().await?;
    let proxy = stand.proxy(protocol).await?;
    let mut first = watch(&proxy, "first", PATH).await?;
    let trigger = corpus::namespaced(0, 1, NAMESPACE);
    stand.post(trigger.clone()).await?;
    let payload = readers::frames(&mut first, 1).await?;
    drop(first);
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(match protocol {
            Protocol::Http1 => raw_watch(&stand).await?,
            Protocol::Http2 => watch(&proxy, "alice", PATH).await?,
        });
    }
    let (mut ours, mut sender) = (Readers::start(watches), Sender(stand.webhook().connect().await?));
    // A raw reader sees the event's chunk too: a line before the frame, and one behind it.
    let lines = WATCHES as u64 * if protocol == Protocol::Http1 { 3 } else { 1 };
    let (mut reference, connections) = Reference::writing(&payload, WATCHES, trigger.len()).await?;
    let mut theirs = Readers::start(connections);

    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let (mut of_ours, mut of_reference) = (Delays::new(), Delays::new());
        for event in 0..EVENTS * effort.scale {
            // One by one, so that both meet the same machine.
            let body = corpus::namespaced(event + 10_000 * (round as u64 + 1), 1, NAMESPACE);
            sleep(PAUSE).await;
            let request = post(&body);
            let since = Instant::now();
            sender.send(&request).await?;
            ours.wait_for(lines).await?;
            of_ours.extend(ours.delays(since));
            sender.answer().await?;

            sleep(PAUSE).await;
            let since = Instant::now();
            reference.trigger(&trigger).await?;
            theirs.wait_for(WATCHES as u64).await?;
            of_reference.extend(theirs.delays(since));
        }
        rounds.push((of_ours, of_reference));
    }
    Ok(rounds)
}

/// A connection to the webhook.
struct Sender(TlsStream<TcpStream>);

impl Sender {
    async fn send(&mut self, request: &[u8]) -> Result<()> {
        self.0.write_all(request).await?;
        Ok(self.0.flush().await?)
    }

    /// Reads the answer, which has no body.
    async fn answer(&mut self) -> Result<()> {
        let head = head(&mut self.0).await?;
        ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 0\r\n"), "not as expected: {head}");
        Ok(())
    }
}

fn post(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: {SERVER_NAME}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A watch over HTTP/1.1 whose chunks are not taken apart.
async fn raw_watch(stand: &Stand) -> Result<Chunks> {
    let mut connection = stand.api(Protocol::Http1).connect().await?;
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: {SERVER_NAME}\r\nx-remote-user: alice\r\nx-remote-group: {READERS}\r\n\
         x-remote-group: system:authenticated\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let head = head(&mut connection).await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "refused: {head}");
    Ok(readers::of_connection(connection))
}

/// The head of an answer.
async fn head(connection: &mut TlsStream<TcpStream>) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
