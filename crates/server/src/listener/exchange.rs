//! One request and its answer, as its connection sees it: how it is ended at any time, and when its connection takes no more.
//!
//! kube-apiserver sends the requests of all its users over one HTTP/2 connection, and grants that connection 1 GiB that it
//! has not passed on yet, each stream of it 4 MiB. What a user does not read fills its stream's part, and that is not given
//! back when we end or reset the stream, only when the user leaves. So 256 streams that nobody reads, open or long over,
//! would leave nothing for anybody else's requests, discovery and with it the deletion of namespaces among them. A
//! connection therefore takes a number of watches that cannot fill it, and is then *retired*: a GOAWAY without an error
//! makes kube-apiserver open another for new requests, and what runs on this one goes on until it ends.
//!
//! hyper polls a body only while its stream can take something, so a body cannot end itself when its reader takes nothing.
//! Whoever holds the [`Exchange`] can.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::{Notify, SetOnce};
use tokio::task_local;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::guests::{KnownAs, Place};

/// Watches that an HTTP/2 connection takes in its whole life: 200 × 4 MiB = 800 MiB of the 1 GiB that kube-apiserver grants.
pub const WATCHES_PER_CONNECTION: usize = 200;

/// Streams at a time on such a connection.
///
/// Watches that meet the retirement are served here too, so 40 more at the worst: 240 × 4 MiB = 960 MiB. Go's clients open
/// another connection instead of waiting for a stream.
pub const STREAMS_PER_CONNECTION: u32 = 240;

/// An answer that is no watch is small, and its connection takes it at once. One that has not after this long found no room.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// Requests of a guest on one HTTP/2 connection that wait for their answer, before more of it is read.
///
/// Until then each holds its headers: 64 KiB as HTTP/2 counts them, and up to 150 KiB as they are kept. What is read in one turn
/// (`unhurried`) may hold one or two of those in compressed form: 256 guests × 4 × 150 KiB are 150 MiB, in an attack with all of them.
const UNANSWERED_OF_A_GUEST: usize = 2;

/// kube-apiserver waits no longer for anything but a watch (`--request-timeout`), so there is nobody left to take it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One request and its answer. Clones are the same one; each request carries it among its extensions.
#[derive(Debug, Clone)]
pub struct Exchange {
    scope: Arc<Scope>,
    /// Which of its scope's, from 1.
    number: usize,
}

/// Why a connection takes no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retirement {
    /// It has had [`WATCHES_PER_CONNECTION`].
    Watches,
    /// It had no room for an answer.
    Stuck,
    /// It had no request under way for a while.
    Idle,
    /// Nobody vouches for its peer any longer.
    Untrusted,
}

/// What the exchanges of one connection share.
#[derive(Debug)]
pub(super) struct Shared {
    place: Arc<Place>,
    watches: AtomicUsize,
    retirement: SetOnce<Retirement>,
    /// Has a token for each request that is not answered to its end. Closed, so that its emptiness can be waited for.
    under_way: TaskTracker,
    /// That a request came.
    begun: Notify,
    /// Tasks of HTTP/2 streams, those that were reset and have not had their turn yet included.
    tasks: AtomicUsize,
    /// Those of them whose request is not answered.
    unanswered: AtomicUsize,
    /// Who waits for there to be fewer: the connection.
    waiting: AtomicWaker,
}

/// One of the tasks.
struct Task(Arc<Scope>);

/// Runs the streams of one HTTP/2 connection, each in a task of its listener.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) tasks: TaskTracker,
    pub(super) connection: Arc<Shared>,
}

/// What is dropped when an exchange is cut: its HTTP/2 stream, or its HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct Scope {
    cut: CancellationToken,
    /// Exchanges begun: one on a stream; on a connection one after the other, so that the last is the one that goes on.
    begun: AtomicUsize,
    connection: Arc<Shared>,
    /// `None` for a connection.
    stream: Option<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    is_watch: AtomicBool,
    is_answered: AtomicBool,
}

task_local! {
    /// Whose requests the running task answers.
    static SCOPE: Arc<Scope>;
}

// === impl Exchange ===

impl Exchange {
    /// The one of a request that is being answered in a [`Scope`].
    pub(super) fn begin() -> Self {
        let scope = SCOPE.with(Arc::clone);
        let number = scope.begun.fetch_add(1, Ordering::Relaxed) + 1;
        Self { scope, number }
    }

    /// Its connection has a request under way until this is dropped.
    pub(super) fn under_way(&self) -> TaskTrackerToken {
        let token = self.scope.connection.under_way.token();
        // Behind the token: who is told looks whether there is one.
        self.scope.connection.begun.notify_one();
        token
    }

    /// Says that it is somebody's who is known, and so is its connection from now on: no stranger takes its place. Whether
    /// there was room for one more that is known.
    pub fn becomes_known(&self, known_as: KnownAs<'_>) -> bool {
        self.scope.connection.place.becomes_known(known_as)
    }

    /// Says that nobody vouches for its connection's peer any longer: once what is under way has been answered, it is ended.
    pub fn becomes_untrusted(&self) {
        self.scope.connection.retire(Retirement::Untrusted);
    }

    /// Ends it at once, however little its peer takes: over HTTP/2 its stream is reset (`CANCEL`) and no other is touched,
    /// over HTTP/1.1 its connection is closed. What was queued for it is freed; on an HTTP/2 connection that takes nothing at
    /// all, not even frames without data, as late as that is given up, within 45 s. Does nothing to one that is over.
    pub fn cut(&self) {
        if self.scope.begun.load(Ordering::Relaxed) == self.number {
            self.scope.cut.cancel();
        }
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.scope.cut.is_cancelled()
    }

    /// One that belongs to no connection, for tests of those who hold it.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let place = Arc::new(super::guests::Guests::new(1, 1).enter(std::net::Ipv4Addr::LOCALHOST.into()));
        let scope = Scope::of_connection(Arc::new(Shared::new(place)));
        scope.begun.store(1, Ordering::Relaxed);
        Self { scope: Arc::new(scope), number: 1 }
    }

    /// Says that its answer is a watch: that may take forever, and is counted against its HTTP/2 connection.
    pub fn becomes_watch(&self) {
        let Some(stream) = &self.scope.stream else { return };
        if !stream.is_watch.swap(true, Ordering::Relaxed) {
            self.scope.connection.count_watch();
        }
    }

    /// Does something for it, such as reading its request's body, until it is cut. A stream that somebody still reads from
    /// is not reset.
    pub async fn unless_cut(&self, work: impl Future<Output = ()>) {
        self.scope.cut.run_until_cancelled(work).await;
    }

    /// Says that its answer is complete but for the body.
    pub(super) fn answered(&self) {
        self.scope.no_longer_waits();
    }
}

// === impl Retirement ===

impl Retirement {
    /// All.
    pub const ALL: [Self; 4] = [Self::Watches, Self::Stuck, Self::Idle, Self::Untrusted];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Watches => "watches",
            Self::Stuck => "stuck",
            Self::Idle => "idle",
            Self::Untrusted => "untrusted",
        }
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(place: Arc<Place>) -> Self {
        let under_way = TaskTracker::new();
        under_way.close();
        Self {
            place,
            watches: AtomicUsize::new(0),
            retirement: SetOnce::new(),
            under_way,
            begun: Notify::new(),
            tasks: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            waiting: AtomicWaker::new(),
        }
    }

    /// Ready as long as there are fewer tasks than this, and a guest has few requests that wait for their answer.
    pub(super) fn poll_fewer_tasks(&self, max: usize, cx: &Context<'_>) -> Poll<()> {
        if !self.is_crowded(max) {
            return Poll::Ready(());
        }
        self.waiting.register(cx.waker());
        // Again, for the last of them may have ended in between.
        if self.is_crowded(max) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Whether it is no guest's.
    pub(super) fn is_known(&self) -> bool {
        self.place.is_known()
    }

    fn is_crowded(&self, max: usize) -> bool {
        let asks_much = self.unanswered.load(Ordering::SeqCst) >= UNANSWERED_OF_A_GUEST && !self.is_known();
        asks_much || self.tasks.load(Ordering::SeqCst) >= max
    }

    /// Returns when no request has been under way for so long. For one caller at a time.
    pub(super) async fn idle(&self, time: Duration) {
        loop {
            self.under_way.wait().await;
            // One that came before that is over too, and costs a turn of the loop.
            if timeout(time, self.begun.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Returns when the connection should take no more requests.
    pub(super) async fn retirement(&self) -> Retirement {
        *self.retirement.wait().await
    }

    fn count_watch(&self) {
        if self.watches.fetch_add(1, Ordering::Relaxed) + 1 == WATCHES_PER_CONNECTION {
            self.retire(Retirement::Watches);
        }
    }

    pub(super) fn retire(&self, reason: Retirement) {
        // The first reason is the one that counts.
        let _ = self.retirement.set(reason);
    }
}

// === impl Task ===

impl Task {
    fn of(scope: &Arc<Scope>) -> Self {
        scope.connection.tasks.fetch_add(1, Ordering::SeqCst);
        scope.connection.unanswered.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(scope))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.no_longer_waits();
        self.0.connection.tasks.fetch_sub(1, Ordering::SeqCst);
        self.0.connection.waiting.wake();
    }
}

// === impl Streams ===

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // In a box, because each of the futures around it would have room for it twice: before its first turn and after.
        let stream = Box::pin(stream);
        let scope = Arc::new(Scope::of_stream(Arc::clone(&self.connection)));
        let task = Task::of(&scope);
        self.tasks.spawn(async move {
            let _task = task;
            let whole = see_through(&scope, stream);
            Arc::clone(&scope).run(whole).await;
        });
    }
}

/// Runs a stream until its connection has taken its answer.
async fn see_through(scope: &Scope, mut stream: impl Future<Output = ()> + Unpin) {
    // It is this stream's own turn in which it is answered.
    let taken_or_answered = poll_fn(|cx| match Pin::new(&mut stream).poll(cx) {
        Poll::Pending if !scope.is_answered_with_an_end() => Poll::Pending,
        taken => Poll::Ready(taken),
    });
    if taken_or_answered.await.is_ready() {
        return;
    }
    // In a box, because a watch never comes here, and there are most of them.
    Box::pin(soon_taken(scope, stream)).await;
}

/// Runs a stream that has an answer and is no watch. An answer that is not taken retires the connection, and is dropped in the
/// end, so that a retired connection lives no longer than its last watch.
async fn soon_taken(scope: &Scope, mut stream: impl Future<Output = ()> + Unpin) {
    if timeout(TAKEN_WITHIN, &mut stream).await.is_ok() {
        return;
    }
    scope.connection.retire(Retirement::Stuck);
    let _ = timeout(ANSWER_TIMEOUT - TAKEN_WITHIN, stream).await;
}

// === impl Scope ===

impl Scope {
    pub(super) fn of_connection(connection: Arc<Shared>) -> Self {
        Self { cut: CancellationToken::new(), begun: AtomicUsize::new(0), connection, stream: None }
    }

    fn of_stream(connection: Arc<Shared>) -> Self {
        Self { stream: Some(Stream::default()), ..Self::of_connection(connection) }
    }

    /// Whether it is a stream's that has its answer, and that is no watch.
    fn is_answered_with_an_end(&self) -> bool {
        let answered =
            |stream: &Stream| stream.is_answered.load(Ordering::SeqCst) && !stream.is_watch.load(Ordering::Relaxed);
        self.stream.as_ref().is_some_and(answered)
    }

    fn no_longer_waits(&self) {
        let Some(stream) = &self.stream else { return };
        if !stream.is_answered.swap(true, Ordering::SeqCst) {
            self.connection.unanswered.fetch_sub(1, Ordering::SeqCst);
            self.connection.waiting.wake();
        }
    }

    /// Runs what the exchanges that begin meanwhile are dropped with; `None` if one was cut.
    pub(super) async fn run<F: Future>(self: Arc<Self>, work: F) -> Option<F::Output> {
        let cut = self.cut.clone();
        cut.run_until_cancelled(SCOPE.scope(self, work)).await
    }
}
