//! A history with each received event told apart: which event of the ledger it is.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use serde::Deserialize;

use super::validators::{Rule, Violation};
use super::{Added, Batch, Field, History, Moment, Sent, Session, Transcript, view};

/// A history, looked at once, for all validators.
pub struct Examined<'h> {
    events: Vec<Known<'h>>,
    batches: Vec<Published>,
    readers: Vec<Reading<'h>>,
    /// Where each event was first seen. One that no reader received is in no place that anybody knows.
    places: HashMap<EventId, u64>,
}

/// An event of the ledger, by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EventId(usize);

/// An event of the ledger.
pub(super) struct Known<'h> {
    pub(super) sent: &'h Sent,
    pub(super) batch: &'h Batch,
    /// The batch's number in the history.
    number: usize,
    facts: Facts<'h>,
}

/// What selectors compare.
#[derive(Deserialize)]
struct Facts<'h> {
    #[serde(borrow, rename = "auditID")]
    audit_id: Cow<'h, str>,
    #[serde(borrow)]
    verb: Cow<'h, str>,
    #[serde(borrow)]
    user: User<'h>,
}

#[derive(Deserialize)]
struct User<'h> {
    #[serde(borrow, default)]
    username: Cow<'h, str>,
}

/// A transcript with its events told apart.
pub(super) struct Reading<'h> {
    pub(super) transcript: &'h Transcript,
    /// For each session, in the order of its frames.
    deliveries: Vec<Vec<Delivery<'h>>>,
}

/// A received event. `None`: nothing of the ledger looks like it.
#[derive(Clone, Copy)]
pub(super) struct Delivery<'h> {
    pub(super) added: &'h Added,
    pub(super) event: Option<EventId>,
}

/// What is known of when and where a batch was published.
struct Published {
    first_sent: Moment,
    accepted: Option<Moment>,
    /// The numbers of its events.
    events: Range<usize>,
    /// The lowest and the highest place in which one of its events was seen.
    places: Option<(u64, u64)>,
}

/// Where an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In this place.
    At(u64),
    /// Behind the first place and before the second: between what was accepted before it was sent and what was sent after
    /// it was accepted, and between its neighbours in its batch.
    Between(u64, u64),
}

impl<'h> Examined<'h> {
    /// Looks at a history.
    ///
    /// # Errors
    /// If its ledger does not allow to tell events apart.
    pub fn new(history: &'h History) -> Result<Self, Violation> {
        let mut ledger = Ledger::new(history)?;
        let readers: Vec<_> = history.transcripts.iter().map(|transcript| ledger.read(transcript)).collect();
        let mut places = HashMap::new();
        for delivery in readers.iter().flat_map(|reader| reader.deliveries.iter().flatten()) {
            if let Some(event) = delivery.event {
                places.entry(event).or_insert(delivery.added.place);
            }
        }
        let mut run = Self { events: ledger.events, batches: Vec::new(), readers, places };
        run.batches = run.published(history);
        Ok(run)
    }

    pub(super) fn readers(&self) -> &[Reading<'h>] {
        &self.readers
    }

    pub(super) fn event(&self, id: EventId) -> &Known<'h> {
        &self.events[id.0]
    }

    /// The events of the ledger that a transcript's reader selects.
    pub(super) fn wanted_by(&self, transcript: &Transcript) -> impl Iterator<Item = (EventId, &Known<'h>)> {
        self.events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.is_wanted_by(transcript))
            .map(|(n, it)| (EventId(n), it))
    }

    pub(super) fn whereabouts(&self, id: EventId) -> Whereabouts {
        if let Some(place) = self.place(id.0) {
            return Whereabouts::At(place);
        }
        let Known { batch, number, .. } = self.event(id);
        let before = self.batches.iter().filter(|other| other.precedes(batch.first_sent));
        let after = self.batches.iter().filter(|other| batch.accepted.is_some_and(|moment| moment < other.first_sent));
        let Range { start, end } = self.batches[*number].events;
        let (mut earlier, mut later) = ((start..id.0).rev(), id.0..end);
        let behind =
            before.filter_map(|other| Some(other.places?.1)).chain(earlier.find_map(|id| self.place(id))).max();
        let until = after.filter_map(|other| Some(other.places?.0)).chain(later.find_map(|id| self.place(id))).min();
        Whereabouts::Between(behind.unwrap_or(0), until.unwrap_or(u64::MAX))
    }

    /// The highest place in which an event of this one's batch was seen.
    pub(super) fn end_of_batch(&self, id: EventId) -> Option<u64> {
        Some(self.batches[self.event(id).number].places?.1)
    }

    /// Two events that were seen in the wrong order, by their places: the first of them should be behind the second, being
    /// behind it in their batch, or being sent after the other's batch had been accepted.
    pub(super) fn overtaken(&self) -> Option<(u64, u64)> {
        self.batches.iter().find_map(|batch| {
            let (lowest, _) = batch.places?;
            let earlier = self.batches.iter().filter(|earlier| earlier.precedes(batch.first_sent));
            let highest = earlier.filter_map(|earlier| Some(earlier.places?.1)).max().unwrap_or(0);
            let places: Vec<_> = batch.events.clone().filter_map(|id| self.place(id)).collect();
            let disordered = places.windows(2).find(|pair| pair[0] > pair[1]).map(|pair| (pair[1], pair[0]));
            (highest > lowest).then_some((lowest, highest)).or(disordered)
        })
    }

    fn place(&self, number: usize) -> Option<u64> {
        self.places.get(&EventId(number)).copied()
    }

    fn published(&self, history: &History) -> Vec<Published> {
        let mut end = 0;
        let batches = history.batches.iter().map(|batch| {
            let events = end..end + batch.events.len();
            end = events.end;
            let places = || events.clone().filter_map(|number| self.place(number));
            let places = places().min().zip(places().max());
            Published { first_sent: batch.first_sent, accepted: batch.accepted, events, places }
        });
        batches.collect()
    }
}

impl Published {
    fn precedes(&self, moment: Moment) -> bool {
        self.accepted.is_some_and(|accepted| accepted < moment)
    }
}

impl Known<'_> {
    pub(super) fn is_wanted_by(&self, transcript: &Transcript) -> bool {
        let selected = transcript.selector.as_ref().is_none_or(|selector| {
            let value = match selector.field {
                Field::Username => &self.facts.user.username,
                Field::Verb => &self.facts.verb,
                Field::AuditId => &self.facts.audit_id,
            };
            *value == selector.value
        });
        selected && transcript.scope.includes(self.sent.namespace.as_deref())
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        let Facts { audit_id, verb, user } = &self.facts;
        let audit_id: String = audit_id.chars().take(40).collect();
        format!("the event {audit_id} ({verb} by {}, in {:?})", user.username, self.sent.namespace)
    }
}

impl<'h> Reading<'h> {
    /// Its sessions, by number, with their events.
    pub(super) fn sessions(&self) -> impl DoubleEndedIterator<Item = (usize, &'h Session, &[Delivery<'h>])> {
        let numbered = self.transcript.sessions.iter().enumerate().zip(&self.deliveries);
        numbered.map(|((number, session), deliveries)| (number, session, &**deliveries))
    }

    pub(super) fn deliveries(&self) -> impl Iterator<Item = (usize, Delivery<'h>)> {
        let numbered = self.deliveries.iter().enumerate();
        numbered.flat_map(|(session, deliveries)| deliveries.iter().map(move |delivery| (session, *delivery)))
    }

    pub(super) fn violation(&self, rule: Rule, session: usize, place: Option<u64>, expected: String) -> Violation {
        Violation { rule, reader: self.transcript.reader.clone(), session, place, expected }
    }
}

/// The events of a history, and the ways to find them by what was received.
struct Ledger<'h> {
    events: Vec<Known<'h>>,
    by_bytes: HashMap<&'h [u8], EventId>,
    by_view: HashMap<String, EventId>,
    /// What was found at a place before, by resource: all readers of a resource receive the same bytes there, so that only
    /// the first of them costs more than a comparison.
    found: HashMap<(bool, u64), Delivery<'h>>,
}

impl<'h> Ledger<'h> {
    fn new(history: &'h History) -> Result<Self, Violation> {
        let mut ledger =
            Self { events: Vec::new(), by_bytes: HashMap::new(), by_view: HashMap::new(), found: HashMap::new() };
        let is_viewed = history.transcripts.iter().any(|transcript| transcript.scope.is_namespaced());
        for (number, batch) in history.batches.iter().enumerate() {
            for sent in &batch.events {
                ledger.enter(number, batch, sent, is_viewed)?;
            }
        }
        Ok(ledger)
    }

    fn enter(&mut self, number: usize, batch: &'h Batch, sent: &'h Sent, is_viewed: bool) -> Result<(), Violation> {
        let id = EventId(self.events.len());
        let facts = serde_json::from_str(&sent.json).map_err(|_| unusable(sent, "an event"))?;
        let body = sent.json.strip_prefix('{').and_then(|json| json.strip_suffix('}'));
        let body = body.ok_or_else(|| unusable(sent, "an event without space around it"))?;
        let mut is_new = self.by_bytes.insert(body.as_bytes(), id).is_none();
        if is_viewed {
            let view = view::expected(&sent.json).map_err(|_| unusable(sent, "an event"))?;
            is_new &= self.by_view.insert(view.shown, id).is_none();
        }
        if !is_new {
            return Err(unusable(sent, "events that can be told apart"));
        }
        self.events.push(Known { sent, batch, number, facts });
        Ok(())
    }

    fn read(&mut self, transcript: &'h Transcript) -> Reading<'h> {
        let sessions = transcript.sessions.iter();
        let deliveries = sessions.map(|session| {
            let events = session.frames.iter().filter_map(|frame| match frame {
                super::Frame::Added(added) => Some(added),
                _ => None,
            });
            events.map(|added| Delivery { added, event: self.find(added) }).collect()
        });
        Reading { transcript, deliveries: deliveries.collect() }
    }

    fn find(&mut self, added: &'h Added) -> Option<EventId> {
        let key = (added.is_namespaced, added.place);
        if let Some(found) = self.found.get(&key).filter(|found| found.added.body() == added.body()) {
            return found.event;
        }
        let event =
            if added.is_namespaced { self.find_by_view(added) } else { self.by_bytes.get(added.body()).copied() };
        self.found.entry(key).or_insert(Delivery { added, event });
        event
    }

    fn find_by_view(&self, added: &Added) -> Option<EventId> {
        let seen = view::seen(added.body()).ok()?;
        let id = *self.by_view.get(&seen.shown)?;
        let sent = view::expected(&self.events[id.0].sent.json).ok()?;
        view::uri_stands_for(&seen.uri, &sent.uri).then_some(id)
    }
}

fn unusable(sent: &Sent, expected: &str) -> Violation {
    let start: String = sent.json.chars().take(200).collect();
    Violation {
        rule: Rule::Ledger,
        reader: "nobody".to_owned(),
        session: 0,
        place: None,
        expected: format!("{expected}, not {start}"),
    }
}
