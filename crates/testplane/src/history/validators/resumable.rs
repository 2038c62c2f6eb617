//! Who comes back goes on: exactly what follows a place, or an error that says that it is gone.

use std::collections::HashSet;

use super::reliable::{Missing, Stretch};
use super::{Rule, Violation};
use crate::history::{End, Examined, Frame, Start};

/// Each session that began after a place went on from there.
///
/// It received everything of the reader's behind that place and nothing before it; or one
/// error 410, and the end. It asked for everything or an error, so that having fallen behind is no excuse; other gaps are.
///
/// # Errors
/// The first session that is not so.
pub fn resumable(run: &Examined<'_>) -> Result<(), Violation> {
    for reader in run.readers() {
        for (number, session, deliveries) in reader.sessions() {
            let Start::After(asked) = session.start else { continue };
            let violation = |place, expected: String| reader.violation(Rule::Resumable, number, place, expected);
            if let Some(early) = deliveries.iter().find(|delivery| delivery.added.place <= asked) {
                return Err(violation(Some(early.added.place), format!("nothing up to {asked}")));
            }
            let gone = Frame::is_gone;
            if session.frames.iter().any(gone)
                && (session.end != End::Clean || !session.frames.last().is_some_and(gone))
            {
                return Err(violation(None, "the clean end behind an error 410".to_owned()));
            }
            let received: HashSet<_> = deliveries.iter().filter_map(|delivery| delivery.event).collect();
            let missing = Missing::new(run, reader, |event| !received.contains(&event));
            if let Some(stretch) = Stretch::of(run, (number, session, deliveries)) {
                missing.check(Rule::Resumable, reader, &stretch, |gap| !gap.is_lag)?;
            }
        }
    }
    Ok(())
}
