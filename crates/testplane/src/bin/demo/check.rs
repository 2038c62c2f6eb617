//! The form for machines: the story once, and whether Alice saw what she should, and only that.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::plane::{Lines, Plane};
use crate::say;
use crate::story::{ADMIN, ALICE, BANK, CLUSTER_PATH, Deed, END, ROUND, SHOP, in_short, namespace_path, watch_line};

/// For what is done and for its events to arrive. Two seconds are usual.
const ARRIVAL: Duration = Duration::from_secs(15);
const REFUSAL: Duration = Duration::from_secs(10);

/// A watch, and what came from it.
struct Reading {
    who: &'static str,
    lines: Lines,
    events: Vec<(Instant, Value)>,
}

/// An event that has to be in a stream.
struct Wanted<'a> {
    what: String,
    is: Box<dyn Fn(&Value) -> bool + 'a>,
}

/// Plays once.
pub(crate) async fn check(plane: &impl Plane) -> Result<()> {
    say(&format!("# {}", plane.version().await?))?;
    say(
        "# Alice may watch namespacedevents in shop, and nothing else. Lines without a # are what her terminal shows.",
    )?;
    say(&watch_line(ALICE, &namespace_path(SHOP)))?;
    let mut alice = Reading::open(plane, ALICE, &namespace_path(SHOP)).await?;
    // The admin shows that there was something that Alice did not see.
    let mut admin = Reading::open(plane, ADMIN, CLUSTER_PATH).await?;
    tokio::try_join!(alice.until_own_watch(), admin.until_own_watch())?;

    let (answers, (), ()) =
        tokio::try_join!(act(plane, &ROUND), alice.until_seen(deeds_in(SHOP)), admin.until_seen(deeds_in(BANK)))?;
    // The stream has one order: what Alice has not seen before this event, she was not sent.
    tokio::try_join!(act(plane, &[END]), alice.until_seen(vec![&END]))?;
    alice.ensure_only(SHOP, BANK)?;
    let delay = alice.arrival_of(&ROUND[0])?.saturating_duration_since(answers[0]);

    let bank = refusal(plane, &namespace_path(BANK)).await?;
    let cluster = refusal(plane, CLUSTER_PATH).await?;

    say(&format!("# first event: {:.3} s after its action was answered", delay.as_secs_f64()))?;
    let others = alice.events.iter().filter(|(_, event)| event["user"]["username"] != ALICE).count();
    say(&format!("# ok: Alice saw what others did in shop: {others} events"))?;
    say("# ok: Alice saw nothing of bank, where others acted meanwhile, as the admin's stream shows")?;
    say(&format!("# ok: Alice is refused the namespace bank: {bank}"))?;
    say(&format!("# ok: Alice is refused the cluster: {cluster}"))
}

/// Does one after the other, and says when each was answered.
async fn act(plane: &impl Plane, deeds: &[Deed]) -> Result<Vec<Instant>> {
    let mut answers = Vec::new();
    for deed in deeds {
        say(&deed.line())?;
        answers.push(timeout(ARRIVAL, plane.act(deed)).await.with_context(|| format!("no answer: {}", deed.line()))??);
    }
    Ok(answers)
}

async fn refusal(plane: &impl Plane, path: &str) -> Result<String> {
    let refusal = timeout(REFUSAL, plane.refusal(path)).await;
    refusal.with_context(|| format!("expected: Alice is refused {path}; seen: nothing for {REFUSAL:?}"))?
}

fn deeds_in(namespace: &str) -> Vec<&'static Deed> {
    const { &ROUND }.iter().filter(|deed| deed.namespace == namespace).collect()
}

impl Reading {
    async fn open(plane: &impl Plane, who: &'static str, path: &str) -> Result<Self> {
        let lines = timeout(ARRIVAL, plane.watch(who, path)).await.context("no answer to a watch")??;
        Ok(Self { who, lines, events: Vec::new() })
    }

    /// Reads until the event that says that this very watch has begun.
    async fn until_own_watch(&mut self) -> Result<()> {
        let who = self.who;
        let is_own = move |event: &Value| {
            event["user"]["username"] == who
                && event["stage"] == "ResponseStarted"
                && event["objectRef"]["apiGroup"] == "audit.k8s.io"
        };
        self.until(&[Wanted { what: "the start of this very watch".to_owned(), is: Box::new(is_own) }]).await
    }

    /// Reads until all of this was in the stream.
    async fn until_seen(&mut self, deeds: Vec<&Deed>) -> Result<()> {
        let wanted = deeds.into_iter().map(|deed| Wanted {
            what: format!("{} {} {}/{}", deed.who, deed.verb, deed.resource, deed.name),
            is: Box::new(|event| deed.is(event)),
        });
        self.until(&wanted.collect::<Vec<_>>()).await
    }

    async fn until(&mut self, wanted: &[Wanted<'_>]) -> Result<()> {
        let reading = async {
            while !self.missing(wanted).is_empty() {
                self.read().await?;
            }
            Ok(())
        };
        if let Ok(read) = timeout(ARRIVAL, reading).await {
            return read;
        }
        let (who, missing) = (self.who, self.missing(wanted).join(", "));
        bail!("expected in {who}'s stream within {ARRIVAL:?}: {missing}; seen: {}", self.seen());
    }

    fn missing<'a>(&self, wanted: &'a [Wanted<'_>]) -> Vec<&'a str> {
        let is_missing = |wanted: &&Wanted<'_>| !self.events.iter().any(|(_, event)| (wanted.is)(event));
        wanted.iter().filter(is_missing).map(|wanted| wanted.what.as_str()).collect()
    }

    async fn read(&mut self) -> Result<()> {
        let who = self.who;
        let line = self.lines.next().await.with_context(|| format!("expected: {who}'s watch goes on; seen"))?;
        let line = line.with_context(|| format!("expected: {who}'s watch goes on; seen: its end"))?;
        let arrived = Instant::now();
        if who == ALICE {
            say(&line)?;
        }
        let mut frame: Value = serde_json::from_str(&line).with_context(|| format!("expected: JSON; seen: {line}"))?;
        ensure!(frame["type"] == "ADDED", "expected: a frame of type ADDED; seen: {line}");
        self.events.push((arrived, frame["object"].take()));
        Ok(())
    }

    fn ensure_only(&self, namespace: &str, other: &str) -> Result<()> {
        for (_, event) in &self.events {
            let is_here = event["kind"] == "NamespacedEvent" && event["metadata"]["namespace"] == namespace;
            let is_clean = event["objectRef"]["namespace"] == namespace && !event.to_string().contains(other);
            ensure!(is_here && is_clean, "expected: NamespacedEvents of {namespace} only; seen: {event}");
        }
        Ok(())
    }

    fn arrival_of(&self, deed: &Deed) -> Result<Instant> {
        let found = self.events.iter().find(|(_, event)| deed.is(event));
        Ok(found.with_context(|| format!("not in the stream: {}", deed.line()))?.0)
    }

    fn seen(&self) -> String {
        match self.events.is_empty() {
            true => "nothing".to_owned(),
            false => self.events.iter().map(|(_, event)| in_short(event)).collect::<Vec<_>>().join(", "),
        }
    }
}
