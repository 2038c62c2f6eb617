//! Nothing is lost in silence: what a reader selects it receives, or a gap is announced where it is missing.

use std::collections::HashSet;

use super::{Rule, Violation};
use crate::history::examined::{Delivery, EventId, Known, Reading, Whereabouts};
use crate::history::{Examined, Frame, Moment, Session, Start};

/// Each reader receives what it selects, or is told.
///
/// Each event of the ledger that a reader selects, and that was published while the reader was there, was received, or
/// lies in an announced gap. A reader was there from the place that its session was asked to begin after, or from what it
/// knows of where it began, up to the last place that it saw. What is behind a cut and was never resumed is its own loss;
/// so is what is behind an error. A gap with a count has exactly as many missing events of the reader's.
///
/// # Errors
/// The first event that is missing, or the first count that is wrong.
pub fn reliable_or_gap(run: &Examined<'_>) -> Result<(), Violation> {
    for reader in run.readers() {
        let received: HashSet<_> = reader.deliveries().filter_map(|(_, delivery)| delivery.event).collect();
        let missing = Missing::new(run, reader, |event| !received.contains(&event));
        for stretch in &stretches(run, reader) {
            missing.check_counts(reader, stretch)?;
            missing.check(Rule::ReliableOrGap, reader, stretch, |_| true)?;
        }
    }
    Ok(())
}

/// A part of the stream that a reader has read without a break: one session, and those that resumed where it ended.
pub(super) struct Stretch {
    /// Of the first session.
    session: usize,
    /// It begins here at the latest: what is behind this place is in it.
    after: u64,
    /// What was sent after this moment is in it, too.
    opened: Option<Moment>,
    /// The last place in it.
    to: u64,
    gaps: Vec<Region>,
}

/// Where events may be missing: behind the frame before the announcement, and not behind the announcement.
pub(super) struct Region {
    session: usize,
    after: u64,
    to: u64,
    /// What ingest could not use is announced before its batch: it may be anywhere up to the end of that.
    reach: u64,
    count: Option<u64>,
    pub(super) is_lag: bool,
}

impl Stretch {
    /// One session alone; `None` if nothing is known of where it was.
    pub(super) fn of(
        run: &Examined<'_>,
        (number, session, deliveries): (usize, &Session, &[Delivery<'_>]),
    ) -> Option<Self> {
        let after = match session.start {
            Start::After(asked) => asked,
            Start::Now => session.frames.iter().find_map(Frame::place)?,
        };
        let opened = (session.start == Start::Now).then_some(session.opened);
        let to = session.last_place().unwrap_or(after);
        Some(Self { session: number, after, opened, to, gaps: regions(run, number, session, deliveries) })
    }

    fn holds(&self, event: &Known<'_>, place: Whereabouts) -> bool {
        let began = self.opened.is_some_and(|opened| opened < event.batch.first_sent)
            || match place {
                Whereabouts::At(place) => self.after < place,
                Whereabouts::Between(behind, _) => self.after <= behind,
            };
        let lasted = match place {
            Whereabouts::At(place) => place <= self.to,
            Whereabouts::Between(_, until) => until <= self.to,
        };
        began && lasted
    }
}

impl Region {
    /// Whether an event is in it: for sure, or perhaps.
    fn may_hold(&self, place: Whereabouts) -> bool {
        match place {
            Whereabouts::At(place) => self.after < place && place <= self.to,
            Whereabouts::Between(behind, until) => behind <= self.reach && self.after <= until,
        }
    }
}

/// The stretches of a reader: sessions that resumed where the stretch before had come to, or before that, prolong it.
fn stretches(run: &Examined<'_>, reader: &Reading<'_>) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for session in reader.sessions() {
        let Some(next) = Stretch::of(run, session) else { continue };
        match (stretches.last_mut(), session.1.start) {
            (Some(last), Start::After(asked)) if asked <= last.to && last.after <= asked => {
                last.to = last.to.max(next.to);
                last.gaps.extend(next.gaps);
            }
            _ => stretches.push(next),
        }
    }
    stretches
}

fn regions(run: &Examined<'_>, number: usize, session: &Session, deliveries: &[Delivery<'_>]) -> Vec<Region> {
    let mut after = match session.start {
        Start::After(asked) => asked,
        Start::Now => 0,
    };
    let mut regions = Vec::new();
    for frame in &session.frames {
        let Some(to) = frame.place() else { continue };
        if let Some(gap) = frame.gap() {
            let is_added = matches!(frame, Frame::Added(_));
            let next = deliveries.iter().find(|delivery| delivery.added.place >= to + u64::from(!is_added));
            let of_ingest = matches!(&*gap.reason, "malformed" | "oversize" | "source");
            let batch_end = next.filter(|_| of_ingest).and_then(|next| run.end_of_batch(next.event?));
            let (reach, is_lag) = (batch_end.unwrap_or(to).max(to), &*gap.reason == "lag");
            regions.push(Region { session: number, after, to, reach, count: gap.count, is_lag });
        }
        after = to;
    }
    regions
}

/// The events that a reader selects and did not receive, and where they are.
pub(super) struct Missing<'r, 'h> {
    events: Vec<(&'r Known<'h>, Whereabouts)>,
}

impl<'r, 'h> Missing<'r, 'h> {
    pub(super) fn new(run: &'r Examined<'h>, reader: &Reading<'h>, is_missing: impl Fn(EventId) -> bool) -> Self {
        let wanted = run.wanted_by(reader.transcript).filter(|(id, _)| is_missing(*id));
        Self { events: wanted.map(|(id, event)| (event, run.whereabouts(id))).collect() }
    }

    /// That none of them is in a stretch and outside the gaps that count.
    pub(super) fn check(
        &self,
        rule: Rule,
        reader: &Reading<'_>,
        stretch: &Stretch,
        counts: impl Fn(&Region) -> bool,
    ) -> Result<(), Violation> {
        // What was not accepted may have been published or not; but it was, if anybody has it.
        let was_published =
            |event: &Known<'_>, place| event.batch.accepted.is_some() || matches!(place, Whereabouts::At(_));
        let owed = self.events.iter().filter(|(event, place)| was_published(event, *place));
        for (event, place) in owed.filter(|(event, place)| stretch.holds(event, *place)) {
            if stretch.gaps.iter().filter(|gap| counts(gap)).any(|gap| gap.may_hold(*place)) {
                continue;
            }
            let at = if let Whereabouts::At(place) = place { Some(*place) } else { None };
            let expected = format!("{}, sent by {}, or a gap", event.name(), event.batch.source);
            return Err(reader.violation(rule, stretch.session, at, expected));
        }
        Ok(())
    }

    fn check_counts(&self, reader: &Reading<'_>, stretch: &Stretch) -> Result<(), Violation> {
        for gap in &stretch.gaps {
            let Some(count) = gap.count else { continue };
            let may_be_in = || self.events.iter().filter(|(_, place)| gap.may_hold(*place));
            // Of an event that nobody saw, and of one from before a start that is not known, nobody can say.
            let is_sure = |event: &Known<'_>, place| matches!(place, Whereabouts::At(_)) && stretch.holds(event, place);
            let least = may_be_in().filter(|(event, place)| is_sure(event, *place)).count() as u64;
            let most = may_be_in().count() as u64;
            if !(least..=most).contains(&count) {
                let expected = format!("a gap that counts {least} missing events ({most} at most), not {count}");
                return Err(reader.violation(Rule::ReliableOrGap, gap.session, Some(gap.to), expected));
            }
        }
        Ok(())
    }
}
