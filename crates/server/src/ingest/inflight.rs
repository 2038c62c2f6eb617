//! The bytes of bodies that are being received: a budget, and how much of it is taken.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What all bodies together may take.
#[derive(Debug)]
pub(super) struct InFlight {
    /// One permit for each byte.
    budget: Arc<Semaphore>,
    taken: Gauge,
}

/// A part of the budget. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Reservation {
    permit: OwnedSemaphorePermit,
    taken: Gauge,
}

impl InFlight {
    /// A budget of `max_bytes`; `taken` says how many of them are taken.
    pub(super) fn new(max_bytes: u64, taken: Gauge) -> Self {
        let permits = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { budget: Arc::new(Semaphore::new(permits)), taken }
    }

    /// Takes `bytes` of the budget, or nothing where they are not there. Never waits.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let permits = u32::try_from(bytes).ok()?;
        let permit = Arc::clone(&self.budget).try_acquire_many_owned(permits).ok()?;
        self.taken.inc_by(i64::from(permits));
        Some(Reservation { permit, taken: self.taken.clone() })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.taken.dec_by(i64::try_from(self.permit.num_permits()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_until_it_is_given_back() {
        let inflight = InFlight::new(100, Gauge::default());
        let (one, two) = (inflight.reserve(60).unwrap(), inflight.reserve(40).unwrap());
        assert_eq!(inflight.taken.get(), 100);
        assert!(inflight.reserve(1).is_none());
        assert_eq!(inflight.taken.get(), 100, "what was refused is not counted");
        drop(one);
        assert_eq!(inflight.taken.get(), 40);
        drop((two, inflight.reserve(100)));
        drop(inflight.reserve(100).unwrap());
        assert_eq!(inflight.taken.get(), 0);
        assert!(inflight.reserve(u64::MAX).is_none());
    }
}
