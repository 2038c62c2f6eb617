//! Bookmarks are places that one can go on from, and come where they were asked for.

use super::{Rule, Violation};
use crate::history::{Bookmarks, Examined, Frame, Session, Start};

/// Each bookmark is where it says.
///
/// A bookmark's place is not below those of the events and bookmarks before it in its session, nor below where the session
/// was asked to begin, and it is below the places of the events after it. Where the initial state was asked for, its end
/// is the first frame, and nowhere else. Who did not allow bookmarks receives none.
///
/// # Errors
/// The first frame where that is not so.
pub fn bookmarkable(run: &Examined<'_>) -> Result<(), Violation> {
    for reader in run.readers() {
        let bookmarks = reader.transcript.bookmarks;
        for (number, session, _) in reader.sessions() {
            check(session, bookmarks)
                .map_err(|(place, expected)| reader.violation(Rule::Bookmarkable, number, Some(place), expected))?;
        }
    }
    Ok(())
}

fn check(session: &Session, bookmarks: Bookmarks) -> Result<(), (u64, String)> {
    let (mut reached, mut marked) = match session.start {
        Start::After(asked) => (asked, Some(asked)),
        Start::Now => (0, None),
    };
    let has_initial = bookmarks == Bookmarks::WithInitialEvents && session.start == Start::Now;
    for (index, frame) in session.frames.iter().enumerate() {
        let Some(place) = frame.place() else { continue };
        let is_initial = matches!(frame, Frame::Bookmark(bookmark) if bookmark.initial_events_end);
        if is_initial != (has_initial && index == 0) {
            let expected = if is_initial { "no end of the initial state here" } else { "the end of the initial state" };
            return Err((place, expected.to_owned()));
        }
        match frame {
            Frame::Bookmark(_) if bookmarks == Bookmarks::No => return Err((place, "no bookmark".to_owned())),
            Frame::Bookmark(_) if place < reached => return Err((place, format!("a bookmark not below {reached}"))),
            Frame::Bookmark(_) => marked = Some(place),
            _ if marked.is_some_and(|marked| place <= marked) => {
                return Err((place, "an event behind the bookmark before it".to_owned()));
            }
            _ => {}
        }
        reached = reached.max(place);
    }
    Ok(())
}
