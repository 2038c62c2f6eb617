//! Confinement: of a million events, many of them made to mislead, none reaches a namespace that it does not belong to.
//!
//! Which namespace an event belongs to is known from how it was made, and written into its user agent, so that a reader's lines
//! are judged by looking for that mark alone.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::event_list;
use audit_stream_testplane::events::hostile::{Form, Generated, Hostile, mark};
use audit_stream_testplane::front_proxy::{Protocol, Watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ALONE;
use crate::stage::{ARRIVAL, Stage, in_namespace, many_reviews, many_watches, namespaced};

/// Any other is as good; it is told where a run fails.
const SEED: u64 = 20_261_120;

const NAMESPACES: usize = 200;

/// As many as kube-apiserver puts into one.
const BATCH: usize = 400;

/// The audit ID of the last event of each namespace.
const END: &str = "the-end";

/// What the readers of all namespaces received.
#[derive(Debug, Default)]
struct Received {
    events: usize,
    /// Lines of events that do not bear their reader's namespace.
    leaks: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_million_events_none_reaches_another_namespace() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (received, sent) = send_and_receive(1_000_000, |_| {}).await?;
    println!("seed {SEED}: {} deliveries of {} events", received.events, sent.values().sum::<usize>());
    ensure!(received.leaks.is_empty(), "seed {SEED}: {} leaks, the first {}", received.leaks.len(), received.leaks[0]);
    for form in Form::ATTACKS {
        let share = sent.get(&form).copied().unwrap_or_default();
        ensure!(share >= 10_000, "only {share} events are {form:?}: nothing is shown of that");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_would_be_noticed() -> Result<()> {
    let mut is_seeded = false;
    let mislabel = |event: &mut Generated| {
        let own = event.namespace.clone().filter(|_| !is_seeded);
        if let Some(own) = own.filter(|own| own != "ns-000") {
            is_seeded = true;
            event.json = event.json.replace(&mark(Some(&own)), &mark(Some("ns-000")));
        }
    };
    let (received, _) = send_and_receive(10_000, mislabel).await?;
    ensure!(received.leaks.len() == 1, "one leak was seeded, and {} were noticed", received.leaks.len());
    Ok(())
}

/// Sends so many events to a server with a reader in each namespace. Returns what those received, which is as much as was
/// theirs, and how many events of each form there were.
async fn send_and_receive(
    events: usize,
    mut change: impl FnMut(&mut Generated),
) -> Result<(Received, HashMap<Form, usize>)> {
    let stage = Stage::with(|config| {
        many_watches(config);
        many_reviews(config);
    })
    .await?;
    let mut reading = JoinSet::new();
    let mut hostile = Hostile::new(SEED, NAMESPACES);
    let namespaces = hostile.namespaces().to_vec();
    let proxy = stage.proxy(Protocol::Http2).await?;
    for namespace in &namespaces {
        stage.let_read(namespace, namespace);
        let watch = proxy.user(namespace).watch(&namespaced(namespace)).await?;
        reading.spawn(receive(watch, namespace.clone()));
    }
    let sender = stage.sender().await?;
    let (mut forms, mut theirs) = (HashMap::new(), 0);
    for _ in 0..events / BATCH {
        let mut batch: Vec<_> = hostile.by_ref().take(BATCH).collect();
        batch.iter_mut().for_each(&mut change);
        theirs += batch.iter().filter(|event| event.namespace.is_some()).count();
        batch.iter().for_each(|event| *forms.entry(event.form).or_default() += 1);
        let body = event_list(&batch.iter().map(|event| event.json.as_str()).collect::<Vec<_>>());
        let answer = sender.post(body).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    }
    let ends =
        namespaces.iter().map(|namespace| in_namespace(namespace, END).user_agent(&format!("{namespace}/end")).build());
    sender.post(event_list(&ends.collect::<Vec<_>>())).await?;
    let mut received = Received::default();
    while let Some(one) = reading.join_next().await {
        let one = one??;
        received.events += one.events;
        received.leaks.extend(one.leaks);
    }
    ensure!(received.events == theirs, "{theirs} events were the readers', and {} came", received.events);
    Ok((received, forms))
}

/// Reads a namespace's events to their end.
async fn receive(watch: Watch, namespace: String) -> Result<Received> {
    let (mut lines, mark) = (watch.into_lines(), mark(Some(&namespace)));
    let mut received = Received::default();
    loop {
        let line = timeout(ARRIVAL, lines.next()).await.with_context(|| format!("{namespace}: nothing came"))??;
        let line = line.with_context(|| format!("{namespace}: it ended"))?;
        let line = std::str::from_utf8(&line)?;
        ensure!(line.starts_with(r#"{"type":"ADDED""#), "{namespace}: {line}");
        ensure!(!line.contains("audit-stream.dev/gap"), "{namespace} was told of a gap: {line}");
        if !line.contains(&mark) {
            received.leaks.push(line.to_owned());
        }
        if line.contains(END) {
            return Ok(received);
        }
        received.events += 1;
    }
}
