//! The place of one who reads everything.

use std::sync::Arc;

use audit_stream_api::Sequence;
use tokio::sync::watch;

use crate::ring::{Bus, Entry, NotRetained};

/// The place of one who reads every batch from some time on. Dropping it is all the clean-up there is.
#[derive(Debug)]
pub struct Cursor<T> {
    bus: Arc<Bus<T>>,
    published: watch::Receiver<()>,
    position: Sequence,
}

/// The reader fell behind the retained window. It goes on with the oldest batch that is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged {
    /// The last place that it was served.
    pub from: Sequence,
    /// The last place that it missed.
    pub to: Sequence,
}

impl<T> Cursor<T> {
    pub(crate) fn new(bus: Arc<Bus<T>>, published: watch::Receiver<()>, position: Sequence) -> Self {
        Self { bus, published, position }
    }

    /// The last place served, or passed over by [`Lagged`].
    pub fn position(&self) -> Sequence {
        self.position
    }

    /// The next batch; waits for one to be published if the reader is at the head. Cancel-safe.
    ///
    /// # Errors
    /// If the reader fell behind. The next call goes on from there.
    pub async fn next(&mut self) -> Result<Arc<Entry<T>>, Lagged> {
        loop {
            match self.bus.after(self.position) {
                Ok(Some(entry)) => {
                    self.position = entry.last();
                    return Ok(entry);
                }
                Ok(None) => {}
                Err(NotRetained { oldest }) => {
                    let from = std::mem::replace(&mut self.position, oldest);
                    return Err(Lagged { from, to: oldest });
                }
            }
            // Returns at once for whatever was published since the last wait, so nothing is slept through.
            // The sender lives in the bus, which this cursor holds, so the channel cannot close.
            let _ = self.published.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ring::Config;

    const START: u64 = 1_000;
    const ROOMY: Config = Config { retain_bytes: 1_000, retain_age: Duration::from_secs(60) };

    fn bus(config: Config) -> Arc<Bus<&'static str>> {
        Arc::new(Bus::new(config, START))
    }

    fn place(number: u64) -> Sequence {
        Sequence::new(number)
    }

    async fn read(cursor: &mut Cursor<&'static str>) -> &'static str {
        cursor.next().await.unwrap().payload()
    }

    /// What a reader that has everything up to a place reads next.
    fn after(bus: &Bus<&'static str>, number: u64) -> Result<Option<&'static str>, NotRetained> {
        Ok(bus.after(place(number))?.map(|entry| *entry.payload()))
    }

    #[tokio::test]
    async fn batches_arrive_in_order_at_every_cursor() {
        let bus = bus(ROOMY);
        let mut early = bus.subscribe();
        bus.publish(2_000, 3, 10, "a");
        let mut late = bus.subscribe();
        bus.publish(2_001, 1, 10, "b");
        assert_eq!(read(&mut early).await, "a");
        assert_eq!(read(&mut early).await, "b");
        assert_eq!(read(&mut late).await, "b");
        assert_eq!((early.position(), late.position()), (bus.head(), bus.head()));
    }

    #[tokio::test]
    async fn a_sleeping_cursor_is_woken() {
        let bus = bus(ROOMY);
        let mut cursor = bus.subscribe();
        let publish_later = async {
            // By now the other half has been polled and sleeps.
            tokio::task::yield_now().await;
            bus.publish(2_000, 1, 10, "a");
        };
        let (got, ()) = tokio::join!(read(&mut cursor), publish_later);
        assert_eq!(got, "a");
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_loses_nothing() {
        let bus = bus(ROOMY);
        let mut cursor = bus.subscribe();
        assert!(tokio::time::timeout(Duration::ZERO, cursor.next()).await.is_err());
        bus.publish(2_000, 1, 10, "a");
        assert_eq!(read(&mut cursor).await, "a");
    }

    #[tokio::test]
    async fn places_grow_whatever_the_clock_does() {
        let bus = bus(ROOMY);
        let first = bus.publish(5_000, 4, 1, "a");
        let stood_still = bus.publish(5_000, 1, 1, "b");
        let stepped_back = bus.publish(3_000, 1, 1, "c");
        let went_on = bus.publish(9_000, 1, 1, "d");
        assert_eq!((first.first().get(), first.last().get()), (5_000, 5_003));
        assert_eq!(stood_still.first().get(), 5_004);
        assert_eq!(stepped_back.first().get(), 5_005);
        assert_eq!(went_on.first().get(), 9_000);
    }

    #[tokio::test]
    async fn a_reader_goes_on_after_any_place_that_was_issued() {
        let bus = bus(ROOMY);
        bus.publish(5_000, 3, 10, "a");
        bus.publish(6_000, 2, 10, "b");
        for (from, next) in
            [(START, Some("a")), (5_001, Some("a")), (5_002, Some("b")), (6_000, Some("b")), (6_001, None)]
        {
            assert_eq!(bus.check(place(from)), Ok(()), "{from}");
            assert_eq!(after(&bus, from), Ok(next), "{from}");
        }
        let up_to = |position| bus.up_to(place(position)).map(|entry| *entry.payload());
        assert_eq!([6_001, 6_000, 5_002, 5_001].map(up_to), [Some("b"), Some("a"), Some("a"), None]);
        let before = |position| bus.issued_before(place(position)).get();
        assert_eq!([5_000, 5_001, 5_500, 6_000, 6_001, 7_000].map(before), [START, 5_000, 5_002, 5_002, 6_000, 6_001]);
    }

    #[tokio::test]
    async fn a_place_that_was_not_issued_is_refused() {
        let bus = bus(ROOMY);
        bus.publish(5_000, 3, 10, "a");
        for never in [0, START - 1, START + 1, 4_999, 5_003, u64::MAX] {
            assert_eq!(bus.check(place(never)), Err(NotRetained { oldest: place(START) }), "{never}");
        }
    }

    #[tokio::test]
    async fn a_place_of_an_earlier_bus_is_refused_whether_or_not_the_clock_stepped_back_since() {
        let last_of_the_one_before = place(9_007);
        for start in [9_500, 3_000] {
            let bus = Arc::new(Bus::<&str>::new(ROOMY, start));
            assert!(bus.check(last_of_the_one_before).is_err());
            bus.publish(start + 1_000, 3, 10, "a");
            assert!(bus.check(last_of_the_one_before).is_err());
        }
    }

    #[tokio::test]
    async fn bytes_bound_what_is_retained_and_a_slow_cursor_is_told() {
        let bus = bus(Config { retain_bytes: 25, ..ROOMY });
        let mut slow = bus.subscribe();
        bus.publish(5_000, 3, 10, "a");
        bus.publish(6_000, 1, 10, "b");
        bus.publish(7_000, 1, 10, "c");
        assert_eq!(bus.retained().0, 20);
        let not_retained = NotRetained { oldest: place(5_002) };
        assert_eq!((bus.check(place(5_001)), after(&bus, 5_001)), (Err(not_retained), Err(not_retained)));
        assert_eq!((bus.check(place(5_002)), after(&bus, 5_002)), (Ok(()), Ok(Some("b"))));
        let lagged = slow.next().await.unwrap_err();
        assert_eq!(lagged, Lagged { from: place(START), to: place(5_002) });
        assert_eq!(read(&mut slow).await, "b");
    }

    #[tokio::test]
    async fn the_newest_batch_stays_even_if_it_is_over_the_bound() {
        let bus = bus(Config { retain_bytes: 25, ..ROOMY });
        bus.publish(5_000, 1, 10, "a");
        bus.publish(6_000, 1, 100, "b");
        assert_eq!(bus.retained().0, 100);
        bus.publish(7_000, 1, 10, "c");
        assert_eq!(bus.retained().0, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn age_bounds_what_is_retained() {
        let bus = bus(ROOMY);
        let first = bus.publish(5_000, 1, 10, "a");
        tokio::time::advance(Duration::from_secs(40)).await;
        bus.publish(6_000, 1, 10, "b");
        assert_eq!(bus.retained(), (20, Duration::from_secs(40)));
        assert_eq!(first.age(), Duration::from_secs(40));
        tokio::time::advance(Duration::from_secs(21)).await;
        assert_eq!(bus.retained(), (10, Duration::from_secs(21)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(bus.retained(), (0, Duration::ZERO));
        assert!(bus.up_to(bus.head()).is_none());
        assert_eq!(bus.check(place(6_000)), Ok(()), "everything after the head is still to come");
    }
}
