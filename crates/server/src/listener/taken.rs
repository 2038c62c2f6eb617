//! A body that is over when the connection has taken all of it, and not when the last of it was handed over.
//!
//! hyper is done with an HTTP/2 stream as soon as its last piece waits in h2's queue. From then on nobody could end the stream
//! any more, and a reader who takes nothing would keep the piece for as long as it likes. So the end is told late.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::wire::Body;

/// Yields what `body` yields, and ends when all of that has gone to the socket or was thrown away. Holds `body` until then.
pub(super) struct Taken {
    body: Body,
    /// Has a token for each piece that was yielded and still exists.
    untaken: TaskTracker,
    /// Set when `body` has said that it is over: waits for the last of those.
    last: Option<BoxFuture<'static, ()>>,
    _under_way: TaskTrackerToken,
}

struct Piece {
    bytes: Bytes,
    _token: TaskTrackerToken,
}

// === impl Taken ===

impl Taken {
    /// As long as it lives, its connection has a request under way.
    pub(super) fn new(body: Body, under_way: TaskTrackerToken) -> Self {
        Self { body, untaken: TaskTracker::new(), last: None, _under_way: under_way }
    }

    fn piece(&self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Piece { bytes, _token: self.untaken.token() })
    }

    /// Waits for the last piece, once all have been yielded.
    fn end(&mut self) -> BoxFuture<'static, ()> {
        self.untaken.close();
        let untaken = self.untaken.clone();
        async move { untaken.wait().await }.boxed()
    }
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.last.is_none() {
            if let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                return Poll::Ready(Some(frame.map(|frame| frame.map_data(|bytes| this.piece(bytes)))));
            }
            this.last = Some(this.end());
        }
        // Looked at first, because a future that has ended must not be polled again.
        if let Some(last) = this.last.as_mut().filter(|_| !this.untaken.is_empty()) {
            ready!(last.poll_unpin(cx));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.untaken.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Piece ===

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
