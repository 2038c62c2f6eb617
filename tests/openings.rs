//! Many who want to open watches, and kube-apiserver, which is asked about each of them: never more often than the budget says, and
//! first for those who read already.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::front_proxy::{Client, FrontProxy, Protocol, Response, Watch};
use futures::future::{try_join, try_join_all};
use tokio::time::{Instant, sleep};

use crate::ALONE;
use crate::stage::{
    Stage, assert_refused, eventually, ids, in_namespace, many_watches, namespaced, read_until, status,
};

/// So small that a flood is a hundred times as much.
const REVIEW_QPS: u32 = 20;

/// Each renews every eight seconds: a quarter of the budget.
const READERS: usize = 40;

const IDENTITIES: usize = 100;

const OPENINGS: usize = 10_000;

/// Longer than any lease lasts that is not renewed.
const FLOOD: Duration = Duration::from_secs(25);

/// What a busy machine may take from a review's turn to its arrival.
const ON_THE_WAY: Duration = Duration::from_secs(2);

fn assert_turned_away(answer: &Response) -> Result<()> {
    let message = "too many requests, please try again later";
    assert_refused(answer, 429, &status(429, "TooManyRequests", message, r#"{"retryAfterSeconds":1}"#))?;
    ensure!(answer.header("retry-after") == Some("1"), "{:?}", answer.headers);
    Ok(())
}

/// Opens a watch, however often it takes.
async fn open_in_the_end(proxy: &FrontProxy, name: &str, path: &str) -> Result<Watch> {
    let user = proxy.user(name);
    eventually(name, async || match user.try_watch(path).await? {
        Ok(watch) => Ok(Some(watch)),
        Err(refusal) => assert_turned_away(&refusal).map(|()| None),
    })
    .await
}

/// One of those who open watches of namespaces that nobody has asked for yet, and close them: how many were opened, and how
/// many were turned away.
async fn open_and_close(proxy: &FrontProxy, identity: usize, until: Instant) -> Result<[usize; 2]> {
    let user = proxy.user(&format!("caller-{identity}"));
    let mut counts = [0, 0];
    for number in 0.. {
        let path = namespaced(&format!("ns-{identity}-{number}"));
        match user.try_watch(&path).await? {
            Ok(_) => counts[0] += 1,
            Err(refusal) => {
                assert_turned_away(&refusal)?;
                counts[1] += 1;
            }
        }
        if number * IDENTITIES >= OPENINGS {
            if Instant::now() > until {
                break;
            }
            // There were enough as fast as they go. What follows is to last.
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(counts)
}

/// The most reviews by which any stretch of time exceeds the budget's rate.
fn worst_excess(times: &[Instant], rate: f64) -> f64 {
    let Some(first) = times.first() else { return 0.0 };
    // The largest rise of (reviews so far - rate × time) from any point to a later one.
    let (mut lowest, mut worst) = (f64::MAX, 0.0_f64);
    for (before, time) in times.iter().enumerate() {
        let allowed = rate * time.duration_since(*first).as_secs_f64();
        lowest = lowest.min(before as f64 - allowed);
        worst = worst.max(before as f64 + 1.0 - allowed - lowest);
    }
    worst
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_openings_cost_no_more_than_the_budget_and_no_reader_their_watch() -> Result<()> {
    let _alone = ALONE.lock().await;
    let stage = Stage::with(|config| {
        many_watches(config);
        config.review_qps = NonZeroU32::new(REVIEW_QPS).expect("it is not zero");
    });
    let stage = stage.await?;
    let sender = stage.sender().await?;
    let proxy = stage.proxy(Protocol::Http2).await?;
    let readers: Vec<_> = (0..READERS).map(|index| format!("reader-{index}")).collect();
    readers.iter().for_each(|reader| stage.let_read(reader, "shop"));
    let path = namespaced("shop");
    let opening = readers.iter().map(|reader| open_in_the_end(&proxy, reader, &path));
    let mut watches = try_join_all(opening).await?;

    for identity in 0..IDENTITIES {
        stage.reviewer.allow(&format!("caller-{identity}")).to("watch").on("namespacedevents").cluster_wide();
    }
    let (from, flood) = (Instant::now(), stage.proxy(Protocol::Http2).await?);
    let callers = (0..IDENTITIES).map(|identity| open_and_close(&flood, identity, from + FLOOD));
    let counts = try_join_all(callers).await?;
    let [opened, turned_away] = [0, 1].map(|index| counts.iter().map(|count| count[index]).sum::<usize>());

    // Whoever read before reads on.
    ensure!(sender.post(event_list(&[in_namespace("shop", "after").build()])).await?.status == 200);
    for (reader, watch) in readers.iter().zip(&mut watches) {
        let read = read_until(watch, "after").await.with_context(|| reader.clone())?;
        ensure!(ids(&read) == ["after"]);
    }
    let times = stage.reviewer.review_times();
    let rate = f64::from(REVIEW_QPS);
    let excess = worst_excess(&times, rate);
    let lease = stage.metric("audit_stream_reviews_turned_away_total", &[("purpose", "lease")]).await?;
    println!(
        "{opened} opened, {turned_away} turned away in {:?}; {} reviews, {excess:.1} at most above {rate} a second; {lease} leases \
         turned away",
        from.elapsed(),
        times.len()
    );
    ensure!(opened + turned_away >= OPENINGS && turned_away > 5 * opened, "the budget did not bite");
    // The burst is a second's worth.
    ensure!(excess <= rate + rate * ON_THE_WAY.as_secs_f64(), "{excess} reviews more than {rate} a second");
    Ok(())
}

#[test]
fn an_excess_would_be_noticed() {
    let from = Instant::now();
    let at = |millis: u64| from + Duration::from_millis(millis);
    let steady: Vec<_> = (0..100).map(|number| at(number * 100)).collect();
    assert!(worst_excess(&steady, 10.0) < 1.1);
    let burst: Vec<_> = steady.iter().copied().chain((0..50).map(|_| at(9950))).collect();
    assert!(worst_excess(&burst, 10.0) > 50.0);
}

/// Everything that one user can ask for, and they ask for it all.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_asks_leaves_room_for_the_others() -> Result<()> {
    let stage = Stage::start().await?;
    let anybody = Client::connect(stage.api()).await?;
    let proxy = stage.proxy(Protocol::Http2).await?;
    let until = Instant::now() + Duration::from_secs(5);
    let flood = async {
        let mut codes = BTreeMap::<u16, usize>::new();
        let mut number = 0;
        while Instant::now() < until {
            let paths: Vec<_> = (0..20).map(|more| namespaced(&format!("ns-{}", number + more))).collect();
            number += paths.len();
            for answer in try_join_all(paths.iter().map(|path| anybody.get(path, &[]))).await? {
                *codes.entry(answer.status).or_default() += 1;
                ensure!(
                    answer.status == 403 || assert_turned_away(&answer).is_ok(),
                    "{} {}",
                    answer.status,
                    answer.body
                );
            }
        }
        Ok(codes)
    };
    let others = async {
        let mut opened = Vec::new();
        while Instant::now() < until {
            let name = format!("reader-{}", opened.len());
            stage.let_read(&name, "shop");
            opened.push(proxy.user(&name).watch(&namespaced("shop")).await?);
            sleep(Duration::from_millis(100)).await;
        }
        Ok(opened.len())
    };
    let (codes, opened) = try_join(flood, others).await?;
    println!("{opened} opened beside {codes:?}");
    let count = |code| codes.get(&code).copied().unwrap_or_default();
    ensure!(opened > 5 && count(429) > count(403), "{opened} opened beside {codes:?}");
    // A tenth of 200 a second, and two seconds of it at once.
    ensure!(count(403) <= 20 * 5 + 40 + 20, "{codes:?}");
    Ok(())
}
