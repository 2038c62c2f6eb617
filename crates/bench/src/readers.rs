//! Readers that count frames: of audit-stream and of the references alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use audit_stream_testplane::front_proxy::Client;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use tokio::io::AsyncRead;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::io::ReaderStream;

/// What arrives, as it arrives.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// As much as is read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// Frames that do not come within this long will not.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Readers, each of which reads whatever comes until this is dropped.
pub struct Readers {
    shared: Arc<Shared>,
    /// When the last frame of each came, in nanoseconds after `began`.
    arrivals: Vec<Arc<AtomicU64>>,
    began: Instant,
    /// Of all readers, those that were waited for so far.
    awaited: u64,
    tasks: JoinSet<Result<()>>,
}

#[derive(Default)]
struct Shared {
    frames: AtomicU64,
    /// That there are more.
    more: Notify,
}

/// The body of an answer to `client`, whose connection ends with the last of those who hold it.
pub fn of_body<B>(body: B, client: Client) -> Chunks
where
    B: BodyExt<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let chunks = body.into_data_stream().map_err(anyhow::Error::new);
    stream::unfold((chunks, client), async |(mut chunks, client)| Some((chunks.next().await?, (chunks, client))))
        .boxed()
}

/// All that comes over a connection.
pub fn of_connection(connection: impl AsyncRead + Send + 'static) -> Chunks {
    ReaderStream::with_capacity(connection, READ_BYTES).map_err(anyhow::Error::new).boxed()
}

/// Everything up to and including so many frames.
pub async fn frames(chunks: &mut Chunks, count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while lines(&bytes) < count as u64 {
        let chunk = timeout(ARRIVAL, chunks.next()).await.context("frames are missing")?;
        bytes.extend_from_slice(&chunk.context("the watch ended")??);
    }
    ensure!(lines(&bytes) == count as u64 && bytes.ends_with(b"\n"), "more than was sent");
    Ok(bytes)
}

impl Readers {
    /// Reads from now on.
    pub fn start(sources: impl IntoIterator<Item = Chunks>) -> Self {
        let shared = Arc::<Shared>::default();
        let (mut tasks, mut arrivals, began) = (JoinSet::new(), Vec::new(), Instant::now());
        for chunks in sources {
            let arrival = Arc::new(AtomicU64::new(0));
            arrivals.push(Arc::clone(&arrival));
            tasks.spawn(read(chunks, Arc::clone(&shared), arrival, began));
        }
        Self { shared, arrivals, began, awaited: 0, tasks }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.arrivals.len()
    }

    /// Waits until the readers have so many frames more, all together.
    pub async fn wait_for(&mut self, frames: u64) -> Result<()> {
        self.awaited += frames;
        loop {
            let more = self.shared.more.notified();
            let read = self.shared.frames.load(Ordering::Acquire);
            if read >= self.awaited {
                ensure!(read == self.awaited, "{} frames more than were sent", read - self.awaited);
                return Ok(());
            }
            tokio::select! {
                more = timeout(ARRIVAL, more) => {
                    more.with_context(|| format!("{} of {} frames are missing", self.awaited - read, self.awaited))?;
                }
                Some(ended) = self.tasks.join_next() => {
                    ended.context("a reader failed")??;
                    bail!("a watch ended");
                }
            }
        }
    }

    /// How many microseconds after `since` each reader had its last frame.
    pub fn delays(&self, since: Instant) -> Vec<f64> {
        let since = since.duration_since(self.began);
        let last = |arrival: &Arc<AtomicU64>| Duration::from_nanos(arrival.load(Ordering::Acquire));
        self.arrivals.iter().map(|arrival| last(arrival).saturating_sub(since).as_secs_f64() * 1e6).collect()
    }
}

async fn read(mut chunks: Chunks, shared: Arc<Shared>, arrival: Arc<AtomicU64>, began: Instant) -> Result<()> {
    while let Some(chunk) = chunks.next().await {
        let frames = lines(&chunk?);
        if frames == 0 {
            continue;
        }
        arrival.store(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
        shared.frames.fetch_add(frames, Ordering::AcqRel);
        shared.more.notify_one();
    }
    Ok(())
}

/// A frame is one line.
fn lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}
