//! Delivery as a whole: what was accepted reaches everybody whom it concerns, once, in one order, and nobody else.
//!
//! Each story is recorded and then judged by validators that know the promises of the API and nothing of the server.

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::events::hostile::Hostile;
use audit_stream_testplane::history::{
    Bookmarks, Clock, Field, Frame, History, Scope, Selector, Sent, Start, Transcript,
};
use audit_stream_testplane::recording::{RecordingReader, RecordingSender, Stopped};
use audit_stream_testplane::webhook_sender::{Outcome, Sending};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ALONE;
use crate::stage::{ARRIVAL, Stage, announce_end, in_namespace};

const NAMESPACES: usize = 4;
/// Ten thousand events.
const BATCHES: usize = 25;
/// As many as kube-apiserver puts into one.
const BATCH: usize = 400;
/// How often there is a reader of each kind: a hundred in all.
const READERS_OF_A_KIND: usize = 10;

/// The kind of reader that leaves in the middle of a batch, and comes back.
const CUT: &str = "cut";

/// Whom the readers with a selector select.
const SELECTED: &str = "user-3";

/// The audit ID of what ends the story in a namespace: the last event that a reader of it waits for.
fn end_of(namespace: &str) -> String {
    format!("the-end-of-{namespace}")
}

fn namespace(number: usize) -> String {
    format!("ns-{number:03}")
}

/// A hundred readers of ten kinds, each of them a user of its own, and each with a watch that is open; and what each of them
/// waits for.
async fn readers(stage: &Stage, clock: &Clock) -> Result<Vec<(RecordingReader, String)>> {
    let inside = |number| Scope::Namespace(namespace(number));
    let selector = Selector { field: Field::Username, value: SELECTED.to_owned() };
    let wanted = [
        (CUT, Scope::Cluster, Bookmarks::No),
        ("cluster-marked", Scope::Cluster, Bookmarks::WithInitialEvents),
        ("cluster-selected", Scope::Cluster, Bookmarks::No),
        ("everywhere", Scope::AllNamespaces, Bookmarks::Allowed),
        ("zero", inside(0), Bookmarks::No),
        ("zero-marked", inside(0), Bookmarks::WithInitialEvents),
        ("one", inside(1), Bookmarks::Allowed),
        ("one-selected", inside(1), Bookmarks::No),
        ("two", inside(2), Bookmarks::No),
        ("three", inside(3), Bookmarks::Allowed),
    ];
    let mut readers = Vec::new();
    let copies = wanted.iter().cycle().take(wanted.len() * READERS_OF_A_KIND);
    for (number, (kind, scope, bookmarks)) in copies.cloned().enumerate() {
        let name = &format!("{kind}-{number}");
        let may = stage.reviewer.allow(name).to("watch");
        let mut end = end_of(&namespace(NAMESPACES - 1));
        match &scope {
            Scope::Cluster => may.on("events").cluster_wide(),
            Scope::AllNamespaces => may.on("namespacedevents").cluster_wide(),
            Scope::Namespace(namespace) => {
                end = end_of(namespace);
                may.on("namespacedevents").in_namespace(namespace);
            }
        }
        let reader = RecordingReader::new(clock, stage.user(name).await?, name, scope).with_bookmarks(bookmarks);
        let is_selecting = kind.ends_with("selected");
        let mut reader = if is_selecting { reader.selecting(selector.clone()) } else { reader };
        reader.begin().await?;
        readers.push((reader, end));
    }
    Ok(readers)
}

/// Reads to the end of the story, or until it is enough.
async fn read(reader: &mut RecordingReader, is_last: impl FnMut(&Frame) -> bool) -> Result<()> {
    let stopped = timeout(ARRIVAL, reader.read_until(is_last, &CancellationToken::new())).await;
    ensure!(stopped.context("the end does not come")?? == Stopped::Reached, "the watch ended");
    Ok(())
}

async fn read_all(mut reader: RecordingReader, end: String) -> Result<Transcript> {
    if reader.name().starts_with(CUT) {
        let mut count = 0;
        let has_half_of_the_second_batch = |frame: &Frame| {
            count += usize::from(matches!(frame, Frame::Added(_)));
            count == BATCH * 3 / 2
        };
        read(&mut reader, has_half_of_the_second_batch).await?;
        reader.cut();
        reader.resume().await?;
    }
    read(&mut reader, |frame| frame.contains(&end)).await?;
    Ok(reader.finish())
}

/// Sends a batch, after an attempt that broke in the middle of it.
async fn send(sender: &RecordingSender, batch: Vec<Sent>) -> Result<()> {
    sender.break_off(&batch).await?;
    ensure!(sender.send(batch).await == Outcome::Delivered, "a batch was given up");
    Ok(())
}

/// Three sources, each with its own way to send a batch again.
async fn senders(stage: &Stage, clock: &Clock) -> Result<Vec<RecordingSender>> {
    let ways = [("a", true, false), ("b", false, true), ("c", true, true)];
    try_join_all(ways.map(|(source, answers_lost, doubled)| {
        let sending = Sending { answers_lost, doubled, ..Sending::default() };
        RecordingSender::start(clock, stage.webhook(), source, sending)
    }))
    .await
}

/// Tells the story: all batches at once, and if so wanted one among them that nobody can read; then an event in each
/// namespace that ends it.
async fn tell(with_unreadable: bool) -> Result<History> {
    let _alone = ALONE.lock().await;
    let stage = Stage::start().await?;
    let clock = Clock::default();
    let mut reading = JoinSet::new();
    for (reader, end) in readers(&stage, &clock).await? {
        reading.spawn(read_all(reader, end));
    }

    let senders = senders(&stage, &clock).await?;
    let hostile: Vec<_> = Hostile::new(53_455, NAMESPACES).take(BATCHES * BATCH).map(Sent::from).collect();
    let batches = hostile.chunks(BATCH).map(<[Sent]>::to_vec).zip(senders.iter().cycle());
    let sending = try_join_all(batches.map(|(batch, sender)| send(sender, batch)));
    let unreadable = async {
        match with_unreadable {
            true => announce_end(&stage.sender().await?).await,
            false => Ok(()),
        }
    };
    tokio::try_join!(sending, unreadable)?;
    let ends = (0..NAMESPACES).map(|number| {
        let namespace = namespace(number);
        let json = in_namespace(&namespace, &end_of(&namespace)).user(SELECTED).build();
        Sent { json, namespace: Some(namespace) }
    });
    send(&senders[0], ends.collect()).await?;

    let transcripts: Result<Vec<_>> = reading.join_all().await.into_iter().collect();
    let history = History::new(senders.into_iter().flat_map(RecordingSender::finish).collect(), transcripts?);
    history.worth_checking(BATCHES * BATCH + NAMESPACES, 200_000)?;
    Ok(history)
}

/// How many gaps a reader was told of.
fn gaps(transcript: &Transcript) -> usize {
    transcript.sessions.iter().flat_map(|session| &session.frames).filter_map(Frame::gap).count()
}

#[tokio::test]
async fn retries_duplicates_and_disorder_reach_each_reader_once_and_in_one_order() -> Result<()> {
    let history = tell(false).await?;
    history.validate()?;
    assert_eq!(history.transcripts.iter().map(gaps).sum::<usize>(), 0, "nothing was lost, and a gap was told");

    // The story was what it says that it is.
    assert!(history.batches.iter().all(|batch| batch.sends >= 2), "a batch was not sent again");
    for cut in history.transcripts.iter().filter(|transcript| transcript.reader.starts_with(CUT)) {
        let back = cut.sessions.last().context("it came back")?;
        assert!(matches!(back.start, Start::After(_)) && back.frames.len() > BATCH, "{} frames", back.frames.len());
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_is_told_to_everybody_and_hides_nothing_else() -> Result<()> {
    let history = tell(true).await?;
    history.validate()?;
    for transcript in &history.transcripts {
        assert!(gaps(transcript) > 0, "{} was told of no gap", transcript.reader);
    }
    Ok(())
}
