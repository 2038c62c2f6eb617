//! kube-apiserver's audit webhook backend: batches, sends, retries, gives up, and keeps a ledger of what it did.
//!
//! Imitates `k8s.io/apiserver/plugin/pkg/audit/{buffered,webhook}` with clocks that run faster. It has no policy and
//! makes no events (see [`crate::events`]), and it looks into none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::front_proxy::{Client, Response, Target, request};
use crate::tasks::Tasks;

mod delivery;
mod ledger;
pub(crate) mod raw;
#[cfg(test)]
pub(crate) mod tests;

use delivery::Delivery;
pub use ledger::{Answer, Batch, Ledger, Outcome};
pub use raw::RawPost;

/// How a [`WebhookSender`] sends. The default is upstream's, with every wait scaled down.
#[derive(Debug, Clone)]
pub struct Sending {
    /// The path of the webhook's URL.
    pub path: String,
    /// `--audit-webhook-batch-max-size`.
    pub max_batch_size: usize,
    /// `--audit-webhook-batch-max-wait`; upstream's default is 30 s.
    pub max_batch_wait: Duration,
    /// `--audit-webhook-batch-buffer-size`; events beyond it are lost before they are sent.
    pub buffer_size: usize,
    /// Upstream knows no other number than 5.
    pub attempts: u32,
    /// `--audit-webhook-initial-backoff`; upstream's default is 10 s. Grows by half with each attempt.
    pub initial_backoff: Duration,
    /// How long an attempt may take with all its inner retries.
    pub attempt_timeout: Duration,
    /// What a second of `Retry-After` lasts, in seconds.
    pub retry_after_scale: f64,
    /// Sends each batch once more after it was accepted, as if the answer had been lost.
    pub answers_lost: bool,
    /// Sends each batch twice at the same time, each with its own retries, as if an attempt that timed out were still
    /// under way.
    pub doubled: bool,
    /// Sends batches side by side, so that they arrive in any order. Upstream does; in order is easier to test with.
    pub concurrent: bool,
}

/// A running webhook backend. Dropping it loses what was not sent, like a killed kube-apiserver.
pub struct WebhookSender {
    target: Target,
    delivery: Delivery,
    queue: mpsc::Sender<Order>,
    _tasks: Tasks,
}

enum Order {
    Send(String),
    Flush(oneshot::Sender<()>),
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            path: "/webhook".to_owned(),
            max_batch_size: 400,
            max_batch_wait: Duration::from_millis(50),
            buffer_size: 10_000,
            attempts: 5,
            initial_backoff: Duration::from_millis(20),
            attempt_timeout: Duration::from_secs(30),
            retry_after_scale: 0.02,
            answers_lost: false,
            doubled: false,
            concurrent: false,
        }
    }
}

impl WebhookSender {
    /// Connects to `target` (whose identity should be of `kube-apiserver-audit`) and starts batching.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn start(target: Target, sending: Sending) -> Result<Self> {
        let client = Client::connect(target.clone()).await?;
        let (queue, orders) = mpsc::channel(sending.buffer_size);
        let delivery = Delivery { client, sending: Arc::new(sending), ledger: Arc::default() };
        let tasks = Tasks::new();
        tasks.executor().spawn(Batching::new(delivery.clone()).run(orders));
        Ok(Self { target, delivery, queue, _tasks: tasks })
    }

    /// Hands an event to the backend, which never blocks: a full buffer loses it, and the ledger says so.
    pub fn send(&self, event: impl Into<String>) {
        if let Err(error) = self.queue.try_send(Order::Send(event.into())) {
            let (mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order)) = error;
            if let Order::Send(event) = order {
                lock(&self.delivery.ledger).overflowed.push(event);
            }
        }
    }

    /// Sends what is buffered without waiting for more, and waits until every batch was accepted or given up.
    ///
    /// # Errors
    /// If the backend has stopped.
    pub async fn flush(&self) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        self.queue.send(Order::Flush(done)).await.ok().context("the sender has stopped")?;
        is_done.await.context("the sender has stopped")
    }

    /// What became of everything so far.
    pub fn ledger(&self) -> Ledger {
        lock(&self.delivery.ledger).clone()
    }

    /// The connection that batches go over, for requests that the backend would not send.
    pub fn client(&self) -> &Client {
        &self.delivery.client
    }

    /// Sends a body now, past the buffer and the ledger, as the backend sends a batch: with its retries and duplicates.
    /// Each answer is told when it comes.
    pub async fn deliver(&self, body: impl Into<Bytes>, on_answer: &(dyn Fn(Answer) + Sync)) -> Outcome {
        self.delivery.send(&body.into(), on_answer).await
    }

    /// POSTs a body once over the backend's connection, without retries and without an entry in the ledger.
    ///
    /// # Errors
    /// If there is no complete answer.
    pub async fn post(&self, body: impl Into<Bytes>) -> Result<Response> {
        self.delivery.post(&body.into()).await
    }

    /// As [`Self::post`], with headers besides, or in the place of, the usual ones.
    ///
    /// # Errors
    /// If there is no complete answer.
    pub async fn post_with(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Response> {
        let is_given = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        let usual = delivery::HEADERS.iter().filter(|(name, _)| !is_given(name));
        let all = usual.chain(headers).copied().collect::<Vec<_>>();
        self.client().send(request("POST", &self.delivery.sending.path, &all, body)?).await
    }

    /// POSTs any bytes with any headers over a connection of its own.
    ///
    /// # Errors
    /// If the handshake or the connection fails, or no answer comes.
    pub async fn post_raw(&self, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Result<Response> {
        let post = self.raw().body(body);
        headers.iter().fold(post, |post, (name, value)| post.header(name, value)).send().await
    }

    /// Begins a POST with faults of its own: a wrong length, plain http, no certificate or another one.
    pub fn raw(&self) -> RawPost {
        RawPost::new(self.target.clone(), &self.delivery.sending.path)
    }
}

// The loop of upstream's `buffered.go`: a batch goes when it is full or when its time is over.
struct Batching {
    delivery: Delivery,
    batch: Vec<String>,
    ends_at: Instant,
    under_way: JoinSet<()>,
}

impl Batching {
    fn new(delivery: Delivery) -> Self {
        let ends_at = Instant::now() + delivery.sending.max_batch_wait;
        Self { delivery, batch: Vec::new(), ends_at, under_way: JoinSet::new() }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = sleep_until(self.ends_at) => {
                    self.dispatch().await;
                    continue;
                }
            };
            match order {
                Some(Order::Send(event)) => {
                    self.batch.push(event);
                    if self.batch.len() >= self.delivery.sending.max_batch_size {
                        self.dispatch().await;
                    }
                }
                Some(Order::Flush(done)) => {
                    self.dispatch().await;
                    while self.under_way.join_next().await.is_some() {}
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                None => return,
            }
        }
    }

    async fn dispatch(&mut self) {
        while self.under_way.try_join_next().is_some() {}
        if !self.batch.is_empty() {
            let batch = self.delivery.enter(std::mem::take(&mut self.batch));
            let delivered = self.delivery.clone().deliver(batch);
            if self.delivery.sending.concurrent {
                self.under_way.spawn(delivered);
            } else {
                delivered.await;
            }
        }
        self.ends_at = Instant::now() + self.delivery.sending.max_batch_wait;
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}
