//! Watch classes: all watches that want the same bytes share them.
//!
//! Every batch is shown to the classes that it may concern, once, by one task (`dispatch`). A class notes what it selects and wakes
//! its watches; those of a class that selects nothing sleep on. Frames are written by the first watch that comes for them,
//! and the others are handed the same bytes. Who is too far behind for that reads the bus by itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use audit_stream_api::object::{self, GapReason};
use audit_stream_api::selection::Selector;
use audit_stream_api::selector::Field;
use audit_stream_api::{Resource, Route, Sequence};
use audit_stream_bus::{Bus, Entry, NotRetained};
use tokio::sync::watch;

use super::frames::{self, Budget, Charge, PIECE_BYTES, Piece, Selected, frame_bytes, gap_bytes, place};
use crate::ingest::batch::{Batch, StoredEvent};
use crate::view::{Revealed, View};

/// What a class remembers for those of its watches that have not come yet. All of it is charged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Of how many batches it remembers the selection, at four bytes an event.
    pub(super) batches: usize,
    /// How many written pieces it keeps.
    pub(super) pieces: usize,
}

/// Sixty-four batches are two seconds of three kube-apiservers at their default rate, and sixty-four pieces are 4 MiB.
pub(super) const MEMORY: Memory = Memory { batches: 64, pieces: 64 };

/// How many retained batches are looked through for one watch before others have their turn.
pub(super) const BATCHES_AT_ONCE: usize = 32;

/// What makes two watches want the same bytes. The resource also decides the view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClassKey {
    /// Whose events, and in which dress.
    pub route: Route,
    /// Which of them.
    pub selector: Selector,
}

/// A class with at least one watch.
#[derive(Debug)]
pub(super) struct Class {
    /// Never used again, unlike its address.
    id: u64,
    key: ClassKey,
    hub: Mutex<Hub>,
    /// Sent after the hub has changed, so that who is woken finds it.
    changed: watch::Sender<()>,
}

/// What is new for the watches of a class.
#[derive(Debug)]
struct Hub {
    memory: Memory,
    watches: usize,
    /// All that the class selects after this place is in `batches`. A watch that is not there yet reads the bus.
    since: Sequence,
    batches: VecDeque<Selection>,
    /// Written, by the place of their first event.
    pieces: BTreeMap<Sequence, Shared>,
    /// How many events the class has selected, counted from an arbitrary start.
    selected: u64,
    /// Grows when batches were not counted.
    epoch: u64,
}

/// What a class selects of a batch: something, or the batch at least says that something was lost.
#[derive(Debug)]
struct Selection {
    /// The place of the batch's last event.
    batch: Sequence,
    events: Box<[u32]>,
    /// The place of the last of `events`, or of what was lost.
    last: Sequence,
    _charge: Charge,
}

/// A piece, and how many watches have been handed it.
#[derive(Debug)]
struct Shared {
    piece: Piece,
    taken: usize,
}

/// What a watch meets on its way.
enum Item {
    Event(Selected),
    Loss(Loss),
}

/// The events of a piece, of which there is one at least.
struct Fill {
    events: Vec<Selected>,
    /// What their frames take at most, and a gap on the first.
    bytes: usize,
}

/// What nobody gets: an event, or an unknown number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    /// Where it would have been.
    pub(super) place: Sequence,
    /// Why.
    pub(super) reason: GapReason,
    /// How many of the class's.
    pub(super) count: Option<u64>,
}

/// What comes next for a watch.
#[derive(Debug)]
pub(super) enum Next {
    /// Frames.
    Piece(Piece),
    /// Something that is told of as a gap.
    Loss(Loss),
    /// Frames that are still to be written, for which so many bytes have to be charged first.
    Charge(usize),
    /// Nothing up to this place, and more to look through.
    Passed(Sequence),
    /// Nothing more for now.
    UpToDate,
    /// What comes next is no longer retained: the watch can go on after this place.
    Lagged(Sequence),
}

/// How many of its class's events a watch has had, so that it can be told how many it missed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    /// On the scale of [`Hub::selected`], where sums may wrap.
    had: u64,
    /// `None`: nobody could count.
    epoch: Option<u64>,
}

/// The classes that have watches.
#[derive(Debug)]
pub(super) struct Classes {
    bus: Arc<Bus<Batch>>,
    budget: Budget,
    memory: Memory,
    revealed: Revealed,
    /// Held while a batch is shown to the classes and while one is joined or left. Taken before a class's own lock.
    index: Mutex<Index>,
}

#[derive(Debug)]
struct Index {
    /// Everything up to here has been shown to the classes.
    dispatched: Sequence,
    classes: HashMap<ClassKey, Arc<Class>>,
    /// Those of one namespace.
    by_namespace: HashMap<String, Vec<Arc<Class>>>,
    /// Those of the cluster and of all namespaces.
    across: Vec<Arc<Class>>,
    next_id: u64,
}

/// A watch's part in a class, until it is dropped.
#[derive(Debug)]
pub(super) struct Member {
    classes: Arc<Classes>,
    class: Arc<Class>,
    changed: watch::Receiver<()>,
}

// === impl ClassKey ===

impl ClassKey {
    /// Which of a batch's events the class selects, out of those at `candidates`.
    fn select(&self, entry: &Entry<Batch>, candidates: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
        candidates.filter(|&index| self.selects(entry.payload().event(index), place(entry, index)))
    }

    fn selects(&self, event: StoredEvent<'_>, place: Sequence) -> bool {
        let Self { route: Route { resource, namespace, .. }, selector } = self;
        let in_scope = match (resource, namespace) {
            (Resource::Events, _) => true,
            (Resource::NamespacedEvents, None) => event.namespace().is_some(),
            (Resource::NamespacedEvents, Some(namespace)) => event.namespace() == Some(namespace),
        };
        in_scope
            && selector.matches(|field, value| match field {
                Field::MetadataName => object::Name::parse(value) == Some(object::Name(place)),
                Field::RequestUri if resource.namespaced() => event.holds_masked_uri(value),
                _ => event.holds(field, value),
            })
    }

    /// The places of the batch's events that the class selects, but for those that were dropped.
    pub(super) fn places(&self, entry: &Entry<Batch>) -> Vec<Sequence> {
        let there = |index: &u32| entry.payload().event(*index).dropped().is_none();
        self.select(entry, entry.payload().indices()).filter(there).map(|index| place(entry, index)).collect()
    }
}

// === impl Classes ===

impl Classes {
    /// No classes yet. `budget` bounds what is written and not yet taken; everything up to `dispatched` is not for them.
    pub(super) fn new(
        bus: Arc<Bus<Batch>>,
        budget: Budget,
        memory: Memory,
        revealed: Revealed,
        dispatched: Sequence,
    ) -> Self {
        let index =
            Index { dispatched, classes: HashMap::new(), by_namespace: HashMap::new(), across: Vec::new(), next_id: 0 };
        Self { bus, budget, memory, revealed, index: Mutex::new(index) }
    }

    /// Takes part in a class. It lives as long as its watches, whose number is bounded, and so is the number of classes.
    pub(super) fn join(self: &Arc<Self>, key: ClassKey) -> Member {
        let mut index = self.lock();
        let class = match index.classes.get(&key) {
            Some(class) => Arc::clone(class),
            None => index.add(key, self.memory),
        };
        class.lock().watches += 1;
        let changed = class.changed.subscribe();
        Member { classes: Arc::clone(self), class, changed }
    }

    /// Shows a batch to the classes that it may concern, and wakes the watches of those that select something of it.
    pub(super) fn dispatch(&self, entry: &Entry<Batch>) {
        let mut index = self.lock();
        index.dispatched = entry.last();
        let batch = entry.payload();
        for class in &index.across {
            class.show(entry, batch.indices(), &self.budget);
        }
        if index.by_namespace.is_empty() {
            return;
        }
        let events = by_namespace(batch);
        let show = |classes: &[Arc<Class>], events: &[u32]| {
            classes.iter().for_each(|class| class.show(entry, events.iter().copied(), &self.budget));
        };
        if batch.lost().is_some() {
            // Nobody knows whose it was, so those are told too of whom there is nothing in it.
            for (namespace, classes) in &index.by_namespace {
                show(classes, events.get(&**namespace).map(Vec::as_slice).unwrap_or_default());
            }
        } else {
            for (namespace, events) in &events {
                show(index.by_namespace.get(*namespace).map(Vec::as_slice).unwrap_or_default(), events);
            }
        }
    }

    /// Batches were evicted before they could be shown: who has not read them yet is told.
    pub(super) fn skip_to(&self, place: Sequence) {
        let mut index = self.lock();
        index.dispatched = place;
        for class in index.classes.values() {
            let mut hub = class.lock();
            hub.forget_until(place);
            hub.epoch += 1;
            drop(hub);
            class.changed.send_replace(());
        }
    }

    /// Wakes all watches, though there is nothing new for them.
    pub(super) fn wake_all(&self) {
        for class in self.lock().classes.values() {
            class.changed.send_replace(());
        }
    }

    /// Lets go of all pieces that are only kept for watches that may come for them. They can be written again.
    pub(super) fn shed(&self) {
        self.lock().classes.values().for_each(|class| class.lock().pieces.clear());
    }

    /// What the readers of a class see.
    pub(super) fn view(&self, key: &ClassKey) -> View {
        View::new(key.route.resource, self.revealed)
    }

    /// What pieces are charged to.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The indices of a batch's events by namespace.
fn by_namespace(batch: &Batch) -> HashMap<&str, Vec<u32>> {
    let mut indices: HashMap<&str, Vec<u32>> = HashMap::new();
    for (index, event) in (0..).zip(batch.events()) {
        if let Some(namespace) = event.namespace() {
            indices.entry(namespace).or_default().push(index);
        }
    }
    indices
}

// === impl Index ===

impl Index {
    fn add(&mut self, key: ClassKey, memory: Memory) -> Arc<Class> {
        let class = Arc::new(Class::new(self.next_id, key.clone(), memory, self.dispatched));
        self.next_id += 1;
        self.siblings(&key).push(Arc::clone(&class));
        self.classes.insert(key, Arc::clone(&class));
        class
    }

    fn remove(&mut self, class: &Class) {
        self.classes.remove(&class.key);
        let siblings = self.siblings(&class.key);
        siblings.retain(|sibling| sibling.id != class.id);
        if let Some(namespace) = &class.key.route.namespace
            && siblings.is_empty()
        {
            self.by_namespace.remove(namespace);
        }
    }

    /// The classes that are shown the same batches.
    fn siblings(&mut self, key: &ClassKey) -> &mut Vec<Arc<Class>> {
        match &key.route.namespace {
            Some(namespace) => self.by_namespace.entry(namespace.clone()).or_default(),
            None => &mut self.across,
        }
    }
}

// === impl Member ===

impl Member {
    /// Which watches these are.
    pub(super) fn key(&self) -> &ClassKey {
        &self.class.key
    }

    fn view(&self) -> View {
        self.classes.view(self.key())
    }

    /// The same for the watches of a class, and for them alone.
    pub(super) fn class_id(&self) -> u64 {
        self.class.id
    }

    /// Returns when there may be something new. Cancel-safe: what came since [`Member::next`] was asked is not slept through.
    pub(super) async fn changed(&mut self) {
        // The sender lives in the class, which this member holds, so the channel cannot close.
        let _ = self.changed.changed().await;
    }

    /// What comes after `at`, where everything before was handed over or told. Frames that have to be written for that take
    /// `charge`. With a gap it is one frame for this watch alone, which tells it.
    pub(super) fn next(&self, at: Sequence, gap: Option<&str>, charge: &mut Option<Charge>) -> Next {
        let mut hub = self.class.lock();
        if at < hub.since {
            drop(hub);
            return self.next_on_bus(at, gap, charge);
        }
        let Some(mut items) = hub.items(at, &self.classes.bus) else { return self.lagged(at) };
        let first = match items.next() {
            None => return Next::UpToDate,
            Some(Item::Loss(loss)) => return Next::Loss(loss),
            Some(Item::Event(first)) => first,
        };
        if let Some(gap) = gap {
            drop(items);
            return self.write(self.alone(first, gap), Some(gap), charge);
        }
        let place = first.place();
        if hub.pieces.contains_key(&place) {
            drop(items);
            return Next::Piece(hub.hand_over(place));
        }
        let selected = fill(first, items, self.view());
        let next = self.write(selected, None, charge);
        if let Next::Piece(piece) = &next {
            hub.keep(place, piece.clone());
        }
        next
    }

    /// The same for a watch that is behind what its class remembers.
    fn next_on_bus(&self, at: Sequence, gap: Option<&str>, charge: &mut Option<Charge>) -> Next {
        let (bus, key) = (&self.classes.bus, self.key());
        let mut passed = at;
        let mut batches = 0;
        let entries = std::iter::from_fn(|| {
            batches += 1;
            let entry = bus.after(passed).ok()?.filter(|_| batches <= BATCHES_AT_ONCE)?;
            passed = entry.last();
            Some(entry)
        });
        let mut items = entries.flat_map(|entry| {
            // Only as far as it is asked for: a batch may hold many pieces.
            let (batch, candidates) = (Arc::clone(&entry), frames::indices_after(&entry, at));
            items(
                entry,
                at,
                candidates.filter(move |&index| key.selects(batch.payload().event(index), place(&batch, index))),
            )
        });
        let selected = match (items.next(), gap) {
            (Some(Item::Event(first)), Some(gap)) => self.alone(first, gap),
            (Some(Item::Event(first)), None) => fill(first, items, self.view()),
            (Some(Item::Loss(loss)), _) => return Next::Loss(loss),
            (None, _) => {
                drop(items);
                return if passed > at { Next::Passed(passed) } else { self.lagged(at) };
            }
        };
        self.write(selected, gap, charge)
    }

    /// The events of a piece that has one, with a gap on it.
    fn alone(&self, event: Selected, gap: &str) -> Fill {
        let bytes = frame_bytes(self.view(), event.event()) + gap_bytes(gap);
        Fill { bytes, events: vec![event] }
    }

    fn write(&self, Fill { events, bytes }: Fill, gap: Option<&str>, charge: &mut Option<Charge>) -> Next {
        match charge.take_if(|charge| self.classes.budget.covers(charge, bytes)) {
            Some(charge) => {
                Next::Piece(frames::write(self.view(), self.key().route.version, &events, bytes, charge, gap))
            }
            None => Next::Charge(bytes),
        }
    }

    fn lagged(&self, at: Sequence) -> Next {
        match self.classes.bus.after(at) {
            Err(NotRetained { oldest }) => Next::Lagged(oldest),
            Ok(_) => Next::UpToDate,
        }
    }

    /// How far the watch has come if there is nothing for it after `at`.
    pub(super) fn caught_up(&self, at: Sequence) -> Option<Sequence> {
        let index = self.classes.lock();
        let hub = self.class.lock();
        let newest = hub.batches.back().map_or(hub.since, |selection| selection.last);
        (newest <= at).then(|| at.max(index.dispatched))
    }

    /// What a watch that begins after `at` has had. Looks through all that is retained after that. Cancel-safe.
    pub(super) async fn tally(&self, at: Sequence) -> Tally {
        let (selected, epoch, dispatched) = self.counted();
        let (from, to) = (at.min(dispatched), at.max(dispatched));
        let Some(between) = self.count(from, to).await else { return Tally { had: 0, epoch: None } };
        let had = if at < dispatched { selected.wrapping_sub(between) } else { selected.wrapping_add(between) };
        // What the dispatcher has not come to yet and is no longer retained will never be counted.
        Tally { had, epoch: Some(epoch) }
    }

    fn counted(&self) -> (u64, u64, Sequence) {
        let index = self.classes.lock();
        let hub = self.class.lock();
        (hub.selected, hub.epoch, index.dispatched)
    }

    /// How many of the class's events lie in `(from, to]`; `None` if not all of that is retained any more.
    async fn count(&self, from: Sequence, to: Sequence) -> Option<u64> {
        let (mut at, mut count) = (from, 0);
        for looked_through in 1.. {
            if at >= to {
                break;
            }
            // Not held while others have their turn: it may be evicted meanwhile.
            at = self.classes.bus.after(at).ok()?.map(|entry| {
                let inside = |index: &u32| place(&entry, *index) > from && place(&entry, *index) <= to;
                count += self.key().select(&entry, entry.payload().indices()).filter(inside).count() as u64;
                entry.last()
            })?;
            if looked_through % BATCHES_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        Some(count)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut index = self.classes.lock();
        let mut hub = self.class.lock();
        hub.watches -= 1;
        let last = hub.watches == 0;
        drop(hub);
        if last {
            index.remove(&self.class);
        }
    }
}

/// What a watch meets in a batch after `at`, if of the batch's events after that those at `selected` are its class's.
fn items(entry: Arc<Entry<Batch>>, at: Sequence, selected: impl Iterator<Item = u32>) -> impl Iterator<Item = Item> {
    let lost = entry.payload().lost().filter(|_| at < entry.first());
    let lost = lost.map(|reason| Item::Loss(Loss { place: entry.first(), reason, count: None }));
    let events = selected.map(move |index| Selected { entry: Arc::clone(&entry), index });
    lost.into_iter().chain(events.map(Item::from))
}

impl From<Selected> for Item {
    fn from(selected: Selected) -> Self {
        match selected.event().dropped() {
            None => Self::Event(selected),
            Some(reason) => Self::Loss(Loss { place: selected.place(), reason, count: Some(1) }),
        }
    }
}

/// The events of a piece: `first` and as many more as fit.
fn fill(first: Selected, more: impl Iterator<Item = Item>, view: View) -> Fill {
    let mut bytes = frame_bytes(view, first.event());
    let mut events = vec![first];
    for item in more {
        let Item::Event(event) = item else { break };
        let sum = bytes + frame_bytes(view, event.event());
        if sum > PIECE_BYTES {
            break;
        }
        bytes = sum;
        events.push(event);
    }
    Fill { events, bytes }
}

// === impl Tally ===

impl Tally {
    /// After so many events more.
    pub(super) fn plus(self, events: u64) -> Self {
        Self { had: self.had.wrapping_add(events), ..self }
    }

    /// How many events lie between this and a later one of the same watch; `None` if some were not counted.
    pub(super) fn missed_until(self, later: Self) -> Option<u64> {
        (self.epoch.is_some() && self.epoch == later.epoch).then(|| later.had.wrapping_sub(self.had))
    }
}

// === impl Class ===

impl Class {
    fn new(id: u64, key: ClassKey, memory: Memory, since: Sequence) -> Self {
        let hub =
            Hub { memory, watches: 0, since, batches: VecDeque::new(), pieces: BTreeMap::new(), selected: 0, epoch: 0 };
        Self { id, key, hub: Mutex::new(hub), changed: watch::Sender::new(()) }
    }

    /// Notes what the class selects of a batch, and wakes its watches if that is something.
    fn show(&self, entry: &Entry<Batch>, candidates: impl Iterator<Item = u32>, budget: &Budget) {
        let events: Box<[u32]> = self.key.select(entry, candidates).collect();
        if events.is_empty() && entry.payload().lost().is_none() {
            return;
        }
        let last = events.last().map_or(entry.first(), |index| place(entry, *index));
        let mut hub = self.lock();
        hub.selected = hub.selected.wrapping_add(events.len() as u64);
        match budget.try_charge(size_of_val(&*events)) {
            Some(charge) => hub.add(Selection { batch: entry.last(), events, last, _charge: charge }),
            None => hub.forget_until(last),
        }
        drop(hub);
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        // No code under the lock panics between two writes that belong together, so a poisoned hub is still whole.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Hub ===

impl Hub {
    fn add(&mut self, selection: Selection) {
        self.batches.push_back(selection);
        if self.batches.len() > self.memory.batches {
            self.drop_oldest();
        }
    }

    /// What comes after `at`, which is not before `since`; `None` if it is no longer retained.
    fn items<'a>(&'a self, at: Sequence, bus: &'a Bus<Batch>) -> Option<impl Iterator<Item = Item> + 'a> {
        let newer = self.batches.partition_point(|selection| selection.last <= at);
        let entry = |selection: &Selection| bus.up_to(selection.batch).filter(|entry| entry.last() == selection.batch);
        let batches = self.batches.range(newer..);
        let mut retained = batches.map_while(move |selection| Some((entry(selection)?, selection))).peekable();
        if retained.peek().is_none() && newer < self.batches.len() {
            return None;
        }
        Some(retained.flat_map(move |(entry, selection)| {
            let passed = frames::indices_after(&entry, at).start;
            let newer = selection.events.partition_point(|index| *index < passed);
            items(entry, at, selection.events[newer..].iter().copied())
        }))
    }

    /// Hands over a piece that is there, and lets go of it with the last watch that came for it.
    fn hand_over(&mut self, first: Sequence) -> Piece {
        let watches = self.watches;
        let shared = self.pieces.get_mut(&first).expect("the caller has seen it");
        shared.taken += 1;
        let piece = shared.piece.clone();
        // Watches that joined after the batch was shown are counted too and will not come: what waits for them is pushed out
        // by the pieces that follow.
        if shared.taken >= watches {
            self.pieces.remove(&first);
            self.all_have(piece.last);
        }
        piece
    }

    /// Keeps a piece that was handed to the first of the watches.
    fn keep(&mut self, first: Sequence, piece: Piece) {
        if self.watches == 1 {
            self.all_have(piece.last);
            return;
        }
        self.pieces.insert(first, Shared { piece, taken: 1 });
        if self.pieces.len() > self.memory.pieces {
            self.pieces.pop_first();
        }
    }

    fn all_have(&mut self, place: Sequence) {
        while self.batches.front().is_some_and(|oldest| oldest.last <= place) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.batches.pop_front() {
            self.since = self.since.max(oldest.last);
        }
    }

    fn forget_until(&mut self, place: Sequence) {
        self.batches.clear();
        self.pieces.clear();
        self.since = place;
    }
}

#[cfg(test)]
mod tests;
