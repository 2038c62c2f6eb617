//! A watch client that remembers what it received, and where it was.

use anyhow::{Context as _, Result, ensure};
use tokio_util::sync::CancellationToken;

use crate::front_proxy::{Lines, ProxiedUser, WatchError};
use crate::history::{Bookmarks, Clock, End, Frame, Scope, Selector, Session, Start, Transcript};

/// One reader: a watch at a time, and the transcript of all of them.
///
/// Nothing is read but by its methods, whose futures may be dropped: a frame is either written down or still to come.
pub struct RecordingReader {
    user: ProxiedUser,
    clock: Clock,
    transcript: Transcript,
    open: Option<Lines>,
}

/// Why a reader does not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It has received what it waited for.
    Reached,
    /// It was told to stop.
    Told,
    /// The watch has ended, or broken; the transcript says how.
    Ended,
}

impl RecordingReader {
    /// A reader who has no watch yet.
    pub fn new(clock: &Clock, user: ProxiedUser, reader: &str, scope: Scope) -> Self {
        let bookmarks = Bookmarks::No;
        let (reader, sessions) = (reader.to_owned(), Vec::new());
        let transcript = Transcript { reader, scope, selector: None, bookmarks, sessions };
        Self { user, clock: clock.clone(), transcript, open: None }
    }

    /// Reads these events alone.
    #[must_use]
    pub fn selecting(mut self, selector: Selector) -> Self {
        self.transcript.selector = Some(selector);
        self
    }

    /// Asks for bookmarks.
    #[must_use]
    pub fn with_bookmarks(mut self, bookmarks: Bookmarks) -> Self {
        self.transcript.bookmarks = bookmarks;
        self
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.transcript.reader
    }

    /// Opens a watch that begins now.
    ///
    /// # Errors
    /// If it is refused, or does not answer.
    pub async fn begin(&mut self) -> Result<()> {
        self.open(Start::Now).await
    }

    /// Opens a watch that goes on from the last place.
    ///
    /// # Errors
    /// If this reader has been at no place yet, or if the watch is refused or does not answer.
    pub async fn resume(&mut self) -> Result<()> {
        let place = self.last_place().with_context(|| format!("{} has been nowhere", self.name()))?;
        self.open(Start::After(place)).await
    }

    /// The place of the last event or bookmark, over all watches.
    pub fn last_place(&self) -> Option<u64> {
        self.transcript.sessions.iter().rev().find_map(Session::last_place)
    }

    /// Reads until a frame is the last one wanted, which is received too, or until told to stop.
    ///
    /// # Errors
    /// If there is no watch, or it sends what is no frame.
    pub async fn read_until(
        &mut self,
        mut is_last: impl FnMut(&Frame) -> bool,
        stop: &CancellationToken,
    ) -> Result<Stopped> {
        loop {
            let lines = self.open.as_mut().with_context(|| format!("{} has no watch", self.transcript.reader))?;
            let Some(next) = stop.run_until_cancelled(lines.next()).await else { return Ok(Stopped::Told) };
            let line = match next {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(self.close(End::Clean)),
                Err(error @ (WatchError::Reset(_) | WatchError::Truncated(_))) => {
                    return Ok(self.close(End::Broken(error.to_string())));
                }
                Err(error) => return Err(error.into()),
            };
            let frame = Frame::read(line).with_context(|| self.transcript.reader.clone())?;
            let is_last = is_last(&frame);
            self.session().frames.push(frame);
            if is_last {
                return Ok(Stopped::Reached);
            }
        }
    }

    /// Leaves, in the middle of whatever is on its way.
    pub fn cut(&mut self) {
        if self.open.is_some() {
            self.close(End::Cut);
        }
    }

    /// What was received, for a history. A watch that is open is cut.
    pub fn finish(mut self) -> Transcript {
        self.cut();
        self.transcript
    }

    async fn open(&mut self, start: Start) -> Result<()> {
        ensure!(self.open.is_none(), "{} has a watch", self.name());
        let watch = self.user.watch(&self.path(start)).await?;
        self.open = Some(watch.into_lines());
        // A session whose end is not known yet ends with its reader.
        self.transcript.sessions.push(Session { start, opened: self.clock.now(), frames: Vec::new(), end: End::Cut });
        Ok(())
    }

    pub(super) fn path(&self, start: Start) -> String {
        let Transcript { scope, selector, bookmarks, .. } = &self.transcript;
        let mut path = scope.path();
        if let Some(selector) = selector {
            path.push_str("&fieldSelector=");
            path.extend(selector.to_string().bytes().map(|byte| format!("%{byte:02X}")));
        }
        path.push_str(match (bookmarks, start) {
            (Bookmarks::No, _) => "",
            (Bookmarks::WithInitialEvents, Start::Now) => {
                "&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
            }
            (Bookmarks::Allowed | Bookmarks::WithInitialEvents, _) => "&allowWatchBookmarks=true",
        });
        if let Start::After(place) = start {
            path.push_str(&format!("&resourceVersion={place}"));
        }
        path
    }

    fn close(&mut self, end: End) -> Stopped {
        self.open = None;
        self.session().end = end;
        Stopped::Ended
    }

    fn session(&mut self) -> &mut Session {
        self.transcript.sessions.last_mut().expect("a watch that is open has a session")
    }
}
