//! Watch classes: all watches that want the same bytes share them.
//!
//! The first watch of a class to reach a batch filters it and writes its frames; the others take those. The bytes live as
//! long as somebody holds them: a reader that is far behind its class pays for its own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use audit_stream_api::object::{self, ObjectMeta};
use audit_stream_api::selector::{Field, FieldSelector};
use audit_stream_api::{Resource, Sequence, Version};
use audit_stream_bus::Entry;
use bytes::Bytes;

use crate::ingest::batch::{Batch, StoredEvent};

/// How many recent batches' frames a class can find again: readers of one class are rarely further apart. An entry is a
/// number and a pointer, and holds no bytes.
const RECENT_BATCHES: usize = 8;

/// What makes two watches want the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClassKey {
    /// Also decides the view: `namespacedevents` shows the withheld form.
    pub resource: Resource,
    /// Decides `apiVersion`.
    pub version: Version,
    /// `None`: of all namespaces, or of the cluster.
    pub namespace: Option<String>,
    /// Which events.
    pub selector: FieldSelector,
}

/// A class with at least one watch.
#[derive(Debug)]
pub struct Class {
    key: ClassKey,
    recent: Mutex<VecDeque<(Sequence, Weak<Vec<u8>>)>>,
}

/// The classes that have watches.
#[derive(Debug, Default)]
pub struct Classes {
    live: Mutex<HashMap<ClassKey, Weak<Class>>>,
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
        let class = Arc::new(Class { key: key.clone(), recent: Mutex::default() });
        live.insert(key, Arc::downgrade(&class));
        class
    }
}

// === impl Class ===

impl Class {
    /// Which watches these are.
    pub fn key(&self) -> &ClassKey {
        &self.key
    }

    /// The frames of a batch's events that the class selects, shared with every other watch of the class.
    pub fn frames(&self, entry: &Entry<Batch>) -> Bytes {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recent.iter().find(|(first, _)| *first == entry.first());
        if let Some(frames) = known.and_then(|(_, frames)| frames.upgrade()) {
            return shared(frames);
        }
        // Under the lock, so that watches that come at the same time wait for the frames and do not make them again.
        let frames = Arc::new(self.write_frames(entry, 0, None));
        recent.retain(|(first, _)| *first != entry.first());
        recent.truncate(RECENT_BATCHES - 1);
        recent.push_front((entry.first(), Arc::downgrade(&frames)));
        shared(frames)
    }

    /// The same for one reader alone: from the event at index `skip` on, with a gap told on the first frame.
    pub fn frames_for_one(&self, entry: &Entry<Batch>, skip: u64, gap: Option<&str>) -> Bytes {
        self.write_frames(entry, skip, gap).into()
    }

    fn write_frames(&self, entry: &Entry<Batch>, skip: u64, mut gap: Option<&str>) -> Vec<u8> {
        let ClassKey { resource, version, .. } = self.key;
        let mut out = Vec::new();
        for (index, event) in (0..).zip(entry.payload().events()).skip_while(|(index, _)| *index < skip) {
            let sequence = entry.first().plus(index);
            if !self.selects(event, sequence) {
                continue;
            }
            let (fields, withheld) = match resource {
                Resource::Events => (event.full(), None),
                Resource::NamespacedEvents => (event.withheld(), event.withheld_names()),
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
        out
    }

    fn selects(&self, event: StoredEvent<'_>, sequence: Sequence) -> bool {
        let ClassKey { resource, namespace, selector, .. } = &self.key;
        let in_scope = match (resource, namespace) {
            (Resource::Events, _) => true,
            (Resource::NamespacedEvents, None) => event.namespace().is_some(),
            (Resource::NamespacedEvents, Some(namespace)) => event.namespace() == Some(namespace),
        };
        in_scope
            && selector.matches(|field, value| match field {
                Field::MetadataName => object::name(sequence) == value,
                Field::RequestUri if resource.namespaced() => event.holds_masked_uri(value),
                _ => event.holds(field, value),
            })
    }
}

/// Bytes that keep the frames alive until the last of them is written.
fn shared(frames: Arc<Vec<u8>>) -> Bytes {
    struct Shared(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    Bytes::from_owner(Shared(frames))
}

#[cfg(test)]
mod tests;
