//! A body that is over when the connection has taken all of it, and not when the last of it was handed over.
//!
//! hyper is done with an HTTP/2 stream as soon as its last piece waits in h2's queue. From then on nobody could end the stream
//! any more, and a reader who takes nothing would keep the piece for as long as it likes. So the end is told late.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Frame, SizeHint};

use crate::wire::Body;

/// Yields what `body` yields, and ends when all of that has gone to the socket or was thrown away. Holds `body` until then.
pub(super) struct Taken {
    body: Body,
    /// Whether `body` has said that it is over.
    ended: bool,
    untaken: Arc<Untaken>,
}

/// Pieces that were yielded and still exist.
#[derive(Default)]
struct Untaken {
    pieces: AtomicUsize,
    /// Who waits for the last.
    last: AtomicWaker,
}

struct Piece {
    bytes: Bytes,
    untaken: Arc<Untaken>,
}

// === impl Taken ===

impl Taken {
    pub(super) fn new(body: Body) -> Self {
        Self { body, ended: false, untaken: Arc::default() }
    }

    fn all_taken(&self) -> bool {
        self.untaken.pieces.load(Ordering::Acquire) == 0
    }
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.ended {
            if let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                let frame = frame.map(|frame| frame.map_data(|bytes| this.untaken.piece(bytes)));
                return Poll::Ready(Some(frame));
            }
            this.ended = true;
        }
        // Before looking, so that the last one's end in between is not missed.
        this.untaken.last.register(cx.waker());
        if this.all_taken() { Poll::Ready(None) } else { Poll::Pending }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.all_taken()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Untaken ===

impl Untaken {
    fn piece(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Piece { bytes, untaken: Arc::clone(self) })
    }
}

// === impl Piece ===

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.untaken.pieces.fetch_sub(1, Ordering::Release) == 1 {
            self.untaken.last.wake();
        }
    }
}
