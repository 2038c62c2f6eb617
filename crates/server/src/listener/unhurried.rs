//! A connection that is read no faster than its streams are begun and ended.
//!
//! A stream that its peer has reset counts no longer against what may be open at a time, but its task is there until it has had
//! its turn. A peer that opens and resets as fast as it can write would make tens of thousands of those, one after the other. So
//! a connection lets others have their turn when it has read a little, and where there are more tasks than there may be streams,
//! the socket waits: a storm on one connection, even on the one that all users share, delays that connection and ends nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::exchange::Shared;

/// Read at a time: a thousand of the shortest requests that are opened and reset.
const TURN_BYTES: usize = 64 * 1024;

/// The same of a guest: what is read in a turn is decoded before any of it is answered, and a header can take eighty times what it
/// takes on the wire. A token of 16 KiB has eight turns.
const GUESTS_TURN_BYTES: usize = 2 * 1024;

/// Reads from `io` while its connection has fewer than `max` tasks, and not more than [`TURN_BYTES`] in one turn,
/// or [`GUESTS_TURN_BYTES`].
pub(super) struct Unhurried<S> {
    io: S,
    connection: Arc<Shared>,
    max: usize,
    read: usize,
}

impl<S> Unhurried<S> {
    pub(super) fn new(io: S, connection: Arc<Shared>, max: usize) -> Self {
        Self { io, connection, max, read: 0 }
    }

    /// The stream, for writing to it.
    pub(super) fn get_ref(&self) -> &S {
        &self.io
    }

    /// The same.
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unhurried<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let is_known = this.connection.is_known();
        if this.read >= if is_known { TURN_BYTES } else { GUESTS_TURN_BYTES } {
            this.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.connection.poll_fewer_tasks(this.max, cx));
        let before = buf.filled().len();
        let result = if is_known {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))
        } else {
            ready!(poll_read_little(&mut this.io, cx, buf))
        };
        this.read += buf.filled().len() - before;
        Poll::Ready(result)
    }
}

fn poll_read_little(
    io: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let mut little = [0; GUESTS_TURN_BYTES];
    let length = little.len().min(buf.remaining());
    let mut little = ReadBuf::new(&mut little[..length]);
    ready!(Pin::new(io).poll_read(cx, &mut little))?;
    buf.put_slice(little.filled());
    Poll::Ready(Ok(()))
}
