//! Connections of people whom nobody knows, and what they can do to those whom somebody does: nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::frames::{self, END_HEADERS, END_STREAM, Kind, Writer, frame, get};
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol, ProxiedUser, Target, Watch};
use audit_stream_testplane::pki::Authority;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ALONE;
use crate::stage::{ARRIVAL, EVENTS, Feed, SERVER_NAME, Shipped, Stage, eventually};

/// As many as may be guests at a time.
const GUESTS: usize = 256;

/// Eight times as many.
const SILENT: usize = 8 * GUESTS;

/// More than a flood may make the server hold.
const MEMORY: u64 = 64 << 20;

const CROWDED_OUT: &str = "audit_stream_refused_connections_total";

/// What every flood must leave alone: a watch, discovery on another connection, and a stranger's probe.
struct Bystanders {
    aggregator: ProxiedUser,
    _watch: Watch,
}

impl Bystanders {
    async fn arrive(target: Target) -> Result<Self> {
        let proxy = FrontProxy::through(target).await?;
        let admin = proxy.user("admin").groups(["system:masters"]);
        let watch = admin.watch(EVENTS).await?;
        let aggregator = proxy.component("system:kube-aggregator").groups(["system:masters"]);
        Ok(Self { aggregator, _watch: watch })
    }

    async fn are_served(&self) -> Result<()> {
        let answer = timeout(ARRIVAL, self.aggregator.get("/apis/audit.k8s.io/v1")).await.context("no discovery")??;
        ensure!(answer.status == 200, "discovery: {} {}", answer.status, answer.body);
        let metrics = self.aggregator.get("/metrics").await?.body;
        ensure!(metrics.contains("\naudit_stream_watch_open 1\n"), "the watch ended");
        Ok(())
    }
}

async fn probe(target: Target) -> Result<()> {
    let probing = async { Client::connect(target).await?.get("/livez", &[]).await };
    let answer = timeout(ARRIVAL, probing).await.context("no probe is answered")??;
    ensure!(answer.status == 200, "{}", answer.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_stay_silent_take_no_place_from_anybody() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let [api, webhook] = feed.stage.addresses();
    let probes = Client::connect(feed.stage.api().protocol(Protocol::Http1)).await?;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        silent.push(TcpStream::connect(api).await?);
        silent.push(TcpStream::connect(webhook).await?);
        if number % 256 == 255 {
            // Of those who are known, both keep their connections; the kubelet has a new one each time.
            feed.goes_on_without_a_gap().await?;
            ensure!(probes.get("/readyz", &[]).await?.status == 200, "the probe failed");
        }
    }
    for listener in ["api", "webhook"] {
        let many = async || {
            let labels = [("listener", listener), ("reason", "crowded_out")];
            Ok((feed.stage.metric(CROWDED_OUT, &labels).await? >= (SILENT - GUESTS) as f64).then_some(()))
        };
        eventually("strangers to have crowded each other out", many).await?;
    }
    // New ones get in.
    let admin = feed.stage.admin().await?;
    ensure!(admin.get("/apis/audit.k8s.io/v1").await?.status == 200, "nobody new gets in");
    let empty = event_list::<&str>(&[]);
    ensure!(feed.stage.sender().await?.post(empty).await?.status == 200, "no new sender gets in");
    feed.goes_on_without_a_gap().await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_ask_and_stay_take_no_place_from_anybody() -> Result<()> {
    let mut feed = Feed::start(Stage::start().await?).await?;
    let mut guests = Vec::new();
    for _ in 0..24 {
        let opening = (0..50).map(|_| async {
            let guest = Client::connect(feed.stage.api()).await?;
            guest.get("/livez", &[]).await?;
            anyhow::Ok(guest)
        });
        guests.extend(join_all(opening).await);
        feed.goes_on_without_a_gap().await?;
    }
    let labels = [("listener", "api"), ("reason", "crowded_out")];
    let many = async || Ok((feed.stage.metric(CROWDED_OUT, &labels).await? >= 100.0).then_some(()));
    eventually("strangers to have crowded each other out", many).await
}

/// What a client says first, word for word: a stranger need know no more to make a server sign.
async fn client_hello() -> Result<Vec<u8>> {
    let recorder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let target = Target::new(recorder.local_addr()?, Authority::new("anybody").certificate_pem(), SERVER_NAME);
    let (stream, hello) = (recorder.accept(), frames::connect(&target, 0));
    let mut recorded = vec![0; 16 * 1024];
    let reading = async {
        let length = stream.await?.0.read(&mut recorded).await?;
        anyhow::Ok(length)
    };
    // It is never answered.
    let length = tokio::select! {
        length = reading => length?,
        _ = hello => bail!("nobody was to answer"),
    };
    recorded.truncate(length);
    Ok(recorded)
}

/// Shakes hands with `server` as far as its answer, from another address than everybody else, without end.
async fn shake_hands(server: SocketAddr, hello: Arc<Vec<u8>>) -> Result<()> {
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
        let Ok(mut stream) = socket.connect(server).await else { continue };
        if stream.write_all(&hello).await.is_ok() {
            let _ = timeout(Duration::from_secs(2), stream.readable()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_shake_hands_without_end_keep_nobody_else_out() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut feed = Feed::start(Stage::start().await?).await?;
    let hello = Arc::new(client_hello().await?);
    for (listener, address) in ["api", "webhook"].into_iter().zip(feed.stage.addresses()) {
        let labels = [("listener", listener), ("reason", "crowded_out")];
        let before = feed.stage.metric(CROWDED_OUT, &labels).await?;
        let mut flood = JoinSet::new();
        for _ in 0..600 {
            flood.spawn(shake_hands(address, Arc::clone(&hello)));
        }
        let bites = async || Ok((feed.stage.metric(CROWDED_OUT, &labels).await? > before + 100.0).then_some(()));
        eventually("the flood to bite", bites).await?;
        for number in 0..10 {
            let newcomer = async {
                let discovery = feed.stage.admin().await?.get("/apis/audit.k8s.io/v1").await?.status;
                let batch = feed.stage.sender().await?.post(event_list::<&str>(&[])).await?.status;
                anyhow::Ok((discovery, batch))
            };
            let answers =
                timeout(ARRIVAL, newcomer).await.with_context(|| format!("{listener}: {number} is kept out"))?;
            ensure!(answers? == (200, 200), "{listener}: {number}");
        }
        feed.goes_on_without_a_gap().await?;
        flood.shutdown().await;
    }
    Ok(())
}

/// Repeats frames in large pieces, until all are written or the server has had enough, or takes no more for a while.
async fn repeat(writer: &mut Writer, count: usize, mut frames: impl FnMut(u32) -> Vec<u8>) {
    const PIECE: usize = 500;
    for first in (0..count).step_by(PIECE) {
        let numbers = first..(first + PIECE).min(count);
        let piece: Vec<u8> = numbers.flat_map(|n| frames(u32::try_from(n).expect("few"))).collect();
        match timeout(Duration::from_secs(2), writer.write(&piece)).await {
            Ok(Ok(())) => {}
            // Ended, or out of patience with who reads none of the answers.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The odd numbers: a client's streams.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

fn open(number: u32, flags: u8, path: &str) -> Vec<u8> {
    frame(Kind::Headers, END_HEADERS | flags, stream(number), &get(path, &[]))
}

/// Every flood, by its name. Each has a connection of its own, and stops where the server ends that.
async fn flood(name: &str, writer: &mut Writer) {
    let reset = |number, code: u32| frame(Kind::RstStream, 0, stream(number), &code.to_be_bytes());
    match name {
        "rapid reset" => {
            repeat(writer, 100_000, |n| [open(n, END_STREAM, "/apis"), reset(n, 8)].concat()).await;
        }
        "rapid reset of watches" => {
            let path = EVENTS;
            repeat(writer, 20_000, |n| [open(n, END_STREAM, path), reset(n, 8)].concat()).await;
        }
        // The server is made to reset: a window that overflows, or grows by nothing.
        "made to reset" => {
            let overflow = |n, by: u32| frame(Kind::WindowUpdate, 0, stream(n), &by.to_be_bytes());
            repeat(writer, 20_000, |n| [open(n, 0, "/livez"), overflow(n, (1 << 31) - 1)].concat()).await;
        }
        "made to reset by nothing" => {
            let nothing = |n| frame(Kind::WindowUpdate, 0, stream(n), &[0; 4]);
            repeat(writer, 20_000, |n| [open(n, 0, "/livez"), nothing(n)].concat()).await;
        }
        "the connection's window overflows" => {
            repeat(writer, 10, |_| frame(Kind::WindowUpdate, 0, 0, &((1_u32 << 31) - 1).to_be_bytes())).await;
        }
        "empty data" => {
            let _ = writer.write(&open(0, 0, "/livez")).await;
            repeat(writer, 20_000, |_| frame(Kind::Data, 0, 1, &[])).await;
        }
        "continuation" => {
            let _ = writer.write(&frame(Kind::Headers, 0, 1, &get("/livez", &[]))).await;
            let block = [[0, 1, b'x', 100].as_slice(), &[b'y'; 100]].concat().repeat(100);
            repeat(writer, 20_000, |_| frame(Kind::Continuation, 0, 1, &block)).await;
        }
        "empty continuation" => {
            let _ = writer.write(&frame(Kind::Headers, 0, 1, &get("/livez", &[]))).await;
            repeat(writer, 100_000, |_| frame(Kind::Continuation, 0, 1, &[])).await;
        }
        "large headers" => {
            let large = "y".repeat(126);
            let headers: Vec<_> = std::iter::repeat_n(("x-remote-group", &*large), 100).collect();
            let block = get("/livez", &headers);
            repeat(writer, 10_000, |n| frame(Kind::Headers, END_HEADERS | END_STREAM, stream(n), &block)).await;
        }
        "settings" => repeat(writer, 10_000, |_| frame(Kind::Settings, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])).await,
        "ping" => repeat(writer, 10_000, |_| frame(Kind::Ping, 0, 0, b"pingpong")).await,
        // Beyond what may be open at a time, each with an answer that nobody has a window for.
        "no window" => repeat(writer, 1000, |n| open(n, END_STREAM, "/livez")).await,
        "unknown frames" => {
            let mut unknown = frame(Kind::Data, 0, 0, &[0; 100]);
            unknown[3] = 0xbe;
            repeat(writer, 20_000, |_| unknown.clone()).await;
        }
        other => unreachable!("{other}"),
    }
}

const FLOODS: [&str; 13] = [
    "rapid reset",
    "rapid reset of watches",
    "made to reset",
    "made to reset by nothing",
    "the connection's window overflows",
    "empty data",
    "continuation",
    "empty continuation",
    "large headers",
    "settings",
    "ping",
    "no window",
    "unknown frames",
];

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_cost_nobody_else_anything_and_little_memory() -> Result<()> {
    let mut shipped = Shipped::start().await?;
    let bystanders = Bystanders::arrive(shipped.front_proxy()).await?;
    bystanders.are_served().await?;
    for name in FLOODS {
        for target in [shipped.api(), shipped.front_proxy()] {
            // One that reads the answers, and one that does not.
            for reads in [true, false] {
                let before = shipped.resident_bytes()?;
                let (reader, mut writer) = frames::connect(&target, 0).await?;
                let mut reading = JoinSet::new();
                let kept = if reads {
                    reading.spawn(reader.drain());
                    None
                } else {
                    Some(reader)
                };
                let mut meanwhile = JoinSet::new();
                let api = shipped.api();
                meanwhile.spawn(async move {
                    for _ in 0..5 {
                        probe(api.clone()).await?;
                    }
                    anyhow::Ok(())
                });
                flood(name, &mut writer).await;
                while let Some(probed) = meanwhile.join_next().await {
                    probed?.with_context(|| name)?;
                }
                bystanders.are_served().await.context(name)?;
                // The process is still the one that was started: a signal reaches it.
                shipped.server.signal("CONT").context(name)?;
                let grown = shipped.resident_bytes()?.saturating_sub(before);
                ensure!(grown < MEMORY, "{name}: {} MiB more", grown >> 20);
                println!("{name}, reads: {reads}: {} KiB more", grown >> 10);
                drop((kept, writer));
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_requests_that_wait_take_little_memory() -> Result<()> {
    let _alone = ALONE.lock().await;
    let shipped = Shipped::start().await?;
    shipped.reviewer.hang();
    let before = shipped.resident_bytes()?;
    // The first makes HPACK's table remember `a: `. After that each byte is that header, and takes eighty in memory.
    let [first, more] =
        [&[0x40, 1, b'a', 0][..], &[]].map(|begin| [&get("/nowhere", &[]), begin, &[0xbe; 1900]].concat());
    let requests = (0..240).flat_map(|number| {
        let block = if number == 0 { &first } else { &more };
        frame(Kind::Headers, END_HEADERS | END_STREAM, stream(number), block)
    });
    let requests: Arc<Vec<u8>> = Arc::new(requests.collect());
    let mut guests = JoinSet::new();
    for _ in 0..2 * GUESTS {
        let (reader, mut writer) = frames::connect(&shipped.api(), 0xffff).await?;
        let requests = Arc::clone(&requests);
        guests.spawn(async move {
            let mut reading = JoinSet::new();
            reading.spawn(reader.drain());
            // Some are crowded out, and the others are read no further than they are answered.
            let _ = timeout(Duration::from_secs(3), writer.write(&requests)).await;
            (reading, writer)
        });
    }
    let _still_open = guests.join_all().await;
    let grown = shipped.resident_bytes()?.saturating_sub(before);
    println!("{} MiB more", grown >> 20);
    ensure!(grown < 4 * MEMORY, "{} MiB more", grown >> 20);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_slow_strangers_cost_nobody_else_anything_and_little_memory() -> Result<()> {
    let shipped = Shipped::start().await?;
    let bystanders = Bystanders::arrive(shipped.front_proxy()).await?;
    let before = shipped.resident_bytes()?;
    let mut slow = Vec::new();
    for number in 0..5000 {
        let (reader, mut writer) = match timeout(ARRIVAL, frames::connect(&shipped.api(), 0)).await? {
            Ok(connection) => connection,
            // Sent away in the middle of its handshake.
            Err(_) => continue,
        };
        // Half of a request.
        let _ = writer.write(&frame(Kind::Headers, 0, 1, &get("/livez", &[]))).await;
        slow.push((reader, writer));
        if number % 1000 == 999 {
            bystanders.are_served().await?;
            probe(shipped.api()).await?;
        }
    }
    let grown = shipped.resident_bytes()?.saturating_sub(before);
    println!("{} slow connections: {} KiB more", slow.len(), grown >> 10);
    ensure!(grown < MEMORY, "{} MiB more", grown >> 20);
    Ok(())
}
