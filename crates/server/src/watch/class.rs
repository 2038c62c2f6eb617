//! Watch classes: all watches that want the same bytes share them.
//!
//! The first watch of a class to reach a batch filters it and writes its frames; the others take those, and the last to
//! take them is the last to hold them. What waits for readers is charged to one budget; where that is spent, a reader
//! writes its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use audit_stream_api::object::{self, ObjectMeta};
use audit_stream_api::selector::{Field, FieldSelector};
use audit_stream_api::{Resource, Route, Sequence};
use audit_stream_bus::Entry;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ingest::batch::{Batch, StoredEvent};

/// How many recent batches a class keeps frames of for those of its readers who are not there yet. Eight batches are two
/// seconds of kube-apiserver's default rate; who is further behind writes its own.
const RECENT_BATCHES: usize = 8;

/// Frames that wait for readers, of all classes together.
const CLASS_BYTES: usize = 64 << 20;

/// What makes two watches want the same bytes. The resource also decides the view.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClassKey {
    /// Whose events, and in which dress.
    pub route: Route,
    /// Which of them.
    pub selector: FieldSelector,
}

/// A class with at least one watch, each of which holds it by an `Arc` of its own.
#[derive(Debug)]
pub struct Class {
    key: ClassKey,
    recent: Mutex<VecDeque<Frames>>,
    budget: Arc<Semaphore>,
}

/// A batch's frames, waiting for the rest of the class.
#[derive(Debug)]
struct Frames {
    /// Of the batch.
    first: Sequence,
    bytes: Bytes,
    /// How many watches have taken them.
    taken: usize,
    _charge: OwnedSemaphorePermit,
}

/// The classes that have watches.
#[derive(Debug)]
pub struct Classes {
    live: Mutex<HashMap<ClassKey, Weak<Class>>>,
    /// One permit for each byte of [`CLASS_BYTES`].
    budget: Arc<Semaphore>,
}

// === impl Classes ===

impl Classes {
    /// The class of a new watch. It lives as long as its watches, whose number is bounded, and so is the number of classes.
    pub fn join(&self, key: ClassKey) -> Arc<Class> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(class) = live.get(&key).and_then(Weak::upgrade) {
            return class;
        }
        // Swept where a class is added, so that the map holds no more than the classes that are alive and this one.
        live.retain(|_, class| class.strong_count() > 0);
        let budget = Arc::clone(&self.budget);
        let class = Arc::new(Class { key: key.clone(), recent: Mutex::default(), budget });
        live.insert(key, Arc::downgrade(&class));
        class
    }
}

impl Default for Classes {
    fn default() -> Self {
        Self { live: Mutex::default(), budget: Arc::new(Semaphore::new(CLASS_BYTES)) }
    }
}

// === impl Class ===

impl Class {
    /// Which watches these are.
    pub fn key(&self) -> &ClassKey {
        &self.key
    }

    /// The frames of a batch's events that the class selects, shared with every other watch of the class. Each watch calls
    /// this once for each batch.
    pub fn frames(self: &Arc<Self>, entry: &Entry<Batch>) -> Bytes {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Watches that have joined since the batch was published are counted too and will not come: what waits for them
        // is pushed out by the batches that follow.
        let readers = Arc::strong_count(self);
        if let Some(index) = recent.iter().position(|frames| frames.first == entry.first()) {
            let frames = &mut recent[index];
            frames.taken += 1;
            let (bytes, last) = (frames.bytes.clone(), frames.taken >= readers);
            if last {
                recent.remove(index);
            }
            return bytes;
        }
        // Under the lock, so that watches that come at the same time wait for the frames and do not make them again.
        let bytes = self.frames_for_one(entry, 0, None);
        if readers > 1
            && let Some(charge) = self.charge(bytes.len())
        {
            recent.truncate(RECENT_BATCHES - 1);
            recent.push_front(Frames { first: entry.first(), bytes: bytes.clone(), taken: 1, _charge: charge });
        }
        bytes
    }

    fn charge(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.budget).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// The same for one reader alone: from the event at index `skip` on, with a gap told on the first frame.
    pub fn frames_for_one(&self, entry: &Entry<Batch>, skip: u64, mut gap: Option<&str>) -> Bytes {
        let Route { resource, version, .. } = self.key.route;
        let mut out = Vec::new();
        for (index, event) in (0..).zip(entry.payload().events()).skip_while(|(index, _)| *index < skip) {
            let sequence = entry.first().plus(index);
            if event.dropped().is_some() || !self.selects(event, sequence) {
                continue;
            }
            let (fields, withheld) = match resource {
                Resource::Events => (event.full(), None),
                Resource::NamespacedEvents => (event.shown(), event.withheld_names()),
            };
            let meta = ObjectMeta {
                namespace: event.namespace().filter(|_| resource.namespaced()),
                sequence,
                creation_timestamp: event.creation_timestamp(),
                withheld,
                gap: gap.take(),
            };
            object::write_added(&mut out, resource, version, meta, fields);
        }
        out.into()
    }

    fn selects(&self, event: StoredEvent<'_>, sequence: Sequence) -> bool {
        let ClassKey { route: Route { resource, namespace, .. }, selector } = &self.key;
        let in_scope = match (resource, namespace) {
            (Resource::Events, _) => true,
            (Resource::NamespacedEvents, None) => event.namespace().is_some(),
            (Resource::NamespacedEvents, Some(namespace)) => event.namespace() == Some(namespace),
        };
        in_scope
            && selector.matches(|field, value| match field {
                Field::MetadataName => object::Name::parse(value) == Some(object::Name(sequence)),
                Field::RequestUri if resource.namespaced() => event.holds_masked_uri(value),
                _ => event.holds(field, value),
            })
    }
}

#[cfg(test)]
mod tests;
