//! What a reviewer knows, has been asked, and is made to do wrong.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config_map::ConfigMapStore;
use super::rules::Rules;

pub(super) struct State {
    pub(super) rules: Rules,
    pub(super) config_map: ConfigMapStore,
    /// Bearer tokens of end users, and their `UserInfo`.
    pub(super) tokens: Mutex<HashMap<String, Value>>,
    pub(super) health: watch::Sender<Health>,
    pub(super) latency: Mutex<Duration>,
    /// Cancelled and replaced to cut every connection.
    pub(super) connections: Mutex<CancellationToken>,
    record: watch::Sender<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Serving,
    Failing(u16),
    Hanging,
}

/// What was asked so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    /// Method, path and query.
    pub(super) requests: Vec<String>,
    /// The `spec` of each `SubjectAccessReview`.
    pub(super) access_reviews: Vec<Value>,
    /// When each of them came.
    pub(super) access_review_times: Vec<Instant>,
    pub(super) token_reviews: usize,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            rules: Rules::default(),
            config_map: ConfigMapStore::default(),
            tokens: Mutex::default(),
            health: watch::Sender::new(Health::Serving),
            latency: Mutex::default(),
            connections: Mutex::default(),
            record: watch::Sender::new(Record::default()),
        }
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) {
        self.record.send_modify(change);
    }

    pub(super) fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    pub(super) fn watch_record(&self) -> watch::Receiver<Record> {
        self.record.subscribe()
    }

    /// Takes as long as the test wants, also forever; says what is wrong afterwards.
    pub(super) async fn suffer(&self) -> Health {
        let latency = *lock(&self.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut health = self.health.subscribe();
        let health = health.wait_for(|health| *health != Health::Hanging).await;
        health.map_or(Health::Failing(503), |health| *health)
    }
}

/// A panic in another test thread must not hide its own message behind a poisoned lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
