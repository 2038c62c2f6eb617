//! One order: places grow for every reader, and an event has one place for all of them.

use std::collections::HashMap;

use super::{Rule, Violation};
use crate::history::examined::{EventId, Reading};
use crate::history::{Examined, Frame, Session, Start};

/// All readers see one order.
///
/// Places grow within a reader, over its sessions: behind the place that a session was asked to begin after, and behind
/// all that the reader had before. All readers see an event in the same place, and in one place the same event, so that
/// what two of them see they see in the same order. Events of a batch keep their order, and what was sent after something
/// was accepted comes behind it. An error is the last frame of its session.
///
/// # Errors
/// The first place where that is not so.
pub fn ordered(run: &Examined<'_>) -> Result<(), Violation> {
    let mut order = Order::default();
    for reader in run.readers() {
        check_growth(reader)?;
        for (session, delivery) in reader.deliveries() {
            let Some(event) = delivery.event else { continue };
            order.enter(event, delivery.added.place).map_err(|expected| {
                let expected = format!("{expected}; this is {}", run.event(event).name());
                reader.violation(Rule::Ordered, session, Some(delivery.added.place), expected)
            })?;
        }
    }
    match (run.overtaken(), run.readers().first()) {
        (Some((place, behind)), Some(reader)) => {
            let expected = format!("a place above {behind}, whose event was sent before this one");
            Err(reader.violation(Rule::Ordered, 0, Some(place), expected))
        }
        _ => Ok(()),
    }
}

fn check_growth(reader: &Reading<'_>) -> Result<(), Violation> {
    let mut last = 0;
    for (number, session, deliveries) in reader.sessions() {
        let violation = |place, expected| reader.violation(Rule::Ordered, number, place, expected);
        if let Start::After(asked) = session.start {
            last = last.max(asked);
        }
        for delivery in deliveries {
            let place = delivery.added.place;
            if place <= last {
                return Err(violation(Some(place), format!("a place above {last}")));
            }
            last = place;
        }
        // A bookmark is a place that the reader has been at, too.
        last = last.max(session.last_place().unwrap_or(0));
        if !errors_end(session) {
            return Err(violation(None, "nothing behind an error".to_owned()));
        }
    }
    Ok(())
}

fn errors_end(session: &Session) -> bool {
    let before_the_last = session.frames.split_last().map_or(&[][..], |(_, before)| before);
    before_the_last.iter().all(|frame| !matches!(frame, Frame::Error { .. }))
}

#[derive(Default)]
struct Order {
    places: HashMap<EventId, u64>,
    events: HashMap<u64, EventId>,
}

impl Order {
    /// What is expected instead, where the place is another one than before.
    fn enter(&mut self, event: EventId, place: u64) -> Result<(), String> {
        let known = *self.places.entry(event).or_insert(place);
        if known != place {
            return Err(format!("the place {known}, in which this event was seen before"));
        }
        if *self.events.entry(place).or_insert(event) != event {
            return Err("the event that was seen in this place before".to_owned());
        }
        Ok(())
    }
}
