//! What a connection writes, gathered: the frames of many streams leave together.
//!
//! h2 flushes after each DATA frame, and each stream that has something wakes its connection. Sent so, an event for two hundred
//! watches is two hundred writes to one socket, each of which costs more than all else that is done for the watch. So a flush
//! waits for the connection's next turn, and that waits for the streams that are to have theirs before. What waits is encrypted
//! and lies in rustls, which takes up to 64 KiB; beyond that it is the socket that is waited for, as it would be anyway.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::unhurried::Unhurried;

/// A stream whose writes may be gathered.
pub(super) trait Gather: AsyncRead + AsyncWrite + Unpin {
    /// Where what is written may wait until the stream is flushed; `None` where every write is to be sent at once.
    fn waiting(&mut self) -> Option<&mut ServerConnection>;
}

/// Reads as `Unhurried` does, and sends at the beginning of a turn what was flushed in the one before. A turn of h2's begins with a
/// read, or where it cannot read because a frame of its own waits, with the write that sends what waits.
pub(super) struct Gathered<S> {
    io: Unhurried<S>,
    /// Whether something waits that was flushed. Then there will be another turn: by itself, or when the socket takes more.
    is_due: bool,
}

// === impl Gather ===

impl<S: AsyncRead + AsyncWrite + Unpin> Gather for TlsStream<S> {
    /// Not over HTTP/1.1, where one answer at a time is written, and flushed when there is no more of it.
    fn waiting(&mut self) -> Option<&mut ServerConnection> {
        Some(self.get_mut().1).filter(|session| session.alpn_protocol() == Some(b"h2"))
    }
}

impl<S: Gather> Gather for Box<S> {
    fn waiting(&mut self) -> Option<&mut ServerConnection> {
        (**self).waiting()
    }
}

// === impl Gathered ===

impl<S: Gather> Gathered<S> {
    pub(super) fn new(io: Unhurried<S>) -> Self {
        Self { io, is_due: false }
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(self.io.get_mut())
    }

    /// Sends all that waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream().poll_flush(cx))?;
        self.is_due = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: Gather> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_due {
            // Before anything keeps the connection from being read, and whether or not the socket takes it.
            let _ = this.poll_send(cx)?;
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<S: Gather> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let Some(waiting) = this.stream().get_mut().waiting() else {
                return this.stream().poll_write_vectored(cx, bytes);
            };
            let taken = waiting.writer().write_vectored(bytes)?;
            if taken > 0 || !waiting.wants_write() {
                return Poll::Ready(Ok(taken));
            }
            ready!(this.poll_send(cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.stream().get_mut().waiting() {
            None => this.stream().poll_flush(cx),
            Some(waiting) => {
                if waiting.wants_write() && !this.is_due {
                    this.is_due = true;
                    // A task that is woken in its own turn has the next one behind all who wait for theirs.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
