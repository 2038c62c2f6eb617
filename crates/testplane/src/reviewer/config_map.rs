//! The `ConfigMap` `kube-system/extension-apiserver-authentication` and its history, as a watch cache keeps it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

/// The object's name.
pub(super) const NAME: &str = "extension-apiserver-authentication";

/// What kube-apiserver tells extension servers: whom to believe, and in which headers.
#[derive(Debug, Clone)]
pub struct AuthenticationConfig {
    data: BTreeMap<String, String>,
}

/// The object now, and every change to it.
pub(super) struct ConfigMapStore {
    history: Mutex<History>,
    latest: watch::Sender<u64>,
}

#[derive(Default)]
struct History {
    current: Option<Value>,
    changes: Vec<Change>,
    // New watches from before this revision are told that it expired; open ones go on, as upstream's do.
    compacted: u64,
}

/// One change, as a watch frame will say it.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) frame: Value,
}

/// The resourceVersion before the first change; a cluster is never younger.
const FIRST_REVISION: u64 = 1000;

impl AuthenticationConfig {
    /// Trusts front proxies of this CA with the name `front-proxy-client`, with the header names that kube-apiserver
    /// itself sends.
    pub fn trusting(requestheader_ca_pem: &str) -> Self {
        Self { data: BTreeMap::new() }
            .with("requestheader-client-ca-file", requestheader_ca_pem)
            .names("requestheader-allowed-names", &["front-proxy-client"])
            .names("requestheader-username-headers", &["X-Remote-User"])
            .names("requestheader-uid-headers", &["X-Remote-Uid"])
            .names("requestheader-group-headers", &["X-Remote-Group"])
            .names("requestheader-extra-headers-prefix", &["X-Remote-Extra-"])
    }

    /// Accepts client certificates of this CA.
    #[must_use]
    pub fn client_ca(self, pem: &str) -> Self {
        self.with("client-ca-file", pem)
    }

    /// The common names of front proxies; none means any.
    #[must_use]
    pub fn allowed_names(self, names: &[&str]) -> Self {
        self.names("requestheader-allowed-names", names)
    }

    /// A key with a list for its value, written as kube-apiserver does: `requestheader-username-headers` and its like.
    #[must_use]
    pub fn names(self, key: &str, names: &[&str]) -> Self {
        self.with(key, &json!(names).to_string())
    }

    /// Any key with any value, also a malformed one.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.data.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Without a key, as old kube-apiservers leave out `requestheader-uid-headers`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.data.remove(key);
        self
    }
}

impl Default for ConfigMapStore {
    fn default() -> Self {
        Self { history: Mutex::default(), latest: watch::Sender::new(FIRST_REVISION) }
    }
}

impl ConfigMapStore {
    pub(super) fn set(&self, config: &AuthenticationConfig) {
        let mut history = self.lock();
        let revision = self.revision() + 1;
        let object = object(config, revision);
        let kind = if history.current.is_some() { "MODIFIED" } else { "ADDED" };
        history.changes.push(Change { revision, frame: json!({"type": kind, "object": object}) });
        history.current = Some(object);
        // While the lock is held, so that nobody reads a revision whose change is not there yet.
        self.latest.send_replace(revision);
    }

    pub(super) fn delete(&self) {
        let mut history = self.lock();
        let Some(mut object) = history.current.take() else { return };
        let revision = self.revision() + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        history.changes.push(Change { revision, frame: json!({"type": "DELETED", "object": object}) });
        self.latest.send_replace(revision);
    }

    pub(super) fn compact(&self) {
        let mut history = self.lock();
        let revision = self.revision() + 1;
        history.compacted = revision;
        self.latest.send_replace(revision);
    }

    pub(super) fn current(&self) -> (u64, Option<Value>) {
        let history = self.lock();
        (self.revision(), history.current.clone())
    }

    /// The first change after `revision`.
    pub(super) fn after(&self, revision: u64) -> Option<Change> {
        self.lock().changes.iter().find(|change| change.revision > revision).cloned()
    }

    /// Whether a new watch from `revision` comes too late.
    pub(super) fn is_expired(&self, revision: u64) -> bool {
        revision < self.lock().compacted
    }

    pub(super) fn revision(&self) -> u64 {
        *self.latest.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn object(config: &AuthenticationConfig, revision: u64) -> Value {
    json!({
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {
            "name": NAME,
            "namespace": "kube-system",
            "uid": "0d1c7a52-4c3a-4c52-8e61-5a0c0f8f6a11",
            "resourceVersion": revision.to_string(),
            "creationTimestamp": "2026-11-20T15:00:00Z"
        },
        "data": config.data
    })
}
