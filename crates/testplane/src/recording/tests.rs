use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::events::event;
use crate::events::hostile::Hostile;
use crate::front_proxy::tests::server::Server;
use crate::front_proxy::{FrontProxy, Protocol};
use crate::history::{Bookmarks, Clock, End, Field, Frame, Scope, Selector, Sent, Start, Transcript};
use crate::webhook_sender::tests::sink::{Reply, Sink};
use crate::webhook_sender::{Outcome, Sending};

fn quick() -> Sending {
    Sending { initial_backoff: Duration::from_millis(1), retry_after_scale: 0.001, ..Sending::default() }
}

fn events(count: usize) -> Vec<Sent> {
    Hostile::new(1, 3).take(count).map(Sent::from).collect()
}

#[tokio::test]
async fn a_batch_is_in_the_ledger_once_however_often_it_was_sent() {
    let sink = Sink::start(&[Reply::status(500), Reply::Cut]).await;
    let clock = Clock::default();
    let sender = RecordingSender::start(&clock, sink.target(), "a", quick()).await.unwrap();
    assert_eq!(sender.send(events(2)).await, Outcome::Delivered);
    assert_eq!(sender.send(vec![event().build()].into_iter().map(sent).collect()).await, Outcome::Delivered);
    let batches = sender.finish();
    let [first, second] = &batches[..] else { panic!("{batches:?}") };
    assert_eq!((&*first.source, first.sends, second.sends), ("a", 3, 1));
    assert_eq!(first.events, events(2));
    assert!(first.first_sent < first.accepted.unwrap() && first.accepted.unwrap() < second.first_sent);

    let posts = sink.posts();
    assert!(posts.iter().all(|post| post.line == "POST /webhook/a HTTP/2.0"));
    assert!(posts[..3].iter().all(|post| post.body == posts[0].body));
    assert!(first.events.iter().all(|sent| posts[0].body.contains(&sent.json)));
}

fn sent(json: String) -> Sent {
    Sent { json, namespace: None }
}

#[tokio::test]
async fn a_batch_that_was_given_up_was_not_accepted() {
    let sink = Sink::start(&[Reply::status(400); 5]).await;
    let sender = RecordingSender::start(&Clock::default(), sink.target(), "a", quick()).await.unwrap();
    assert_eq!(sender.send(events(1)).await, Outcome::GivenUp);
    let batches = sender.finish();
    assert_eq!((batches.len(), batches[0].sends, batches[0].accepted), (1, 5, None));
}

#[tokio::test]
async fn what_is_accepted_twice_was_accepted_the_first_time() {
    // The second copy is answered later than a batch that is sent when the first has been.
    let sink = Sink::start(&[Reply::status(200), Reply::Slow]).await;
    let clock = Clock::default();
    let doubled = RecordingSender::start(&clock, sink.target(), "a", Sending { doubled: true, ..quick() });
    let (doubled, other) = (doubled.await.unwrap(), RecordingSender::start(&clock, sink.target(), "b", quick()));
    let other = other.await.unwrap();
    let both = async {
        while sink.accepted().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.send(vec![sent(event().build())]).await
    };
    tokio::join!(doubled.send(events(1)), both);
    let (doubled, other) = (doubled.finish(), other.finish());
    assert_eq!((doubled.len(), doubled[0].sends), (1, 2));
    assert!(doubled[0].accepted.unwrap() < other[0].first_sent);
}

#[tokio::test]
async fn a_batch_that_is_broken_off_is_not_in_the_ledger() {
    let sink = Sink::start(&[]).await;
    let sender = RecordingSender::start(&Clock::default(), sink.target(), "a", quick()).await.unwrap();
    sender.break_off(&events(2)).await.unwrap();
    assert!(sink.accepted().is_empty() && sender.finish().is_empty());
}

async fn reader(server: &Server) -> RecordingReader {
    let identity = server.authority.client("front-proxy-client", &[]);
    let (address, ca) = (server.address, server.authority.certificate_pem());
    let proxy = FrontProxy::connect(address, ca, "sink.audit.svc", &identity, Protocol::Http2).await.unwrap();
    RecordingReader::new(&Clock::default(), proxy.user("alice"), "alice", Scope::Cluster)
}

#[tokio::test]
async fn a_reader_who_is_cut_goes_on_where_it_was() {
    let server = Server::start().await;
    let mut alice = reader(&server).await;
    let never = CancellationToken::new();
    assert!(alice.resume().await.is_err(), "it has been nowhere");
    assert!(alice.read_until(|_| true, &never).await.is_err(), "it has no watch");

    alice.begin().await.unwrap();
    assert!(alice.begin().await.is_err(), "it has a watch");
    assert_eq!(alice.read_until(|frame| frame.place() == Some(12), &never).await.unwrap(), Stopped::Reached);
    alice.cut();
    assert_eq!(alice.last_place(), Some(12));
    for _ in 0..2 {
        alice.resume().await.unwrap();
        assert_eq!(alice.read_until(|_| false, &never).await.unwrap(), Stopped::Ended);
    }
    assert_eq!(alice.last_place(), Some(13));

    let Transcript { sessions, .. } = alice.finish();
    let starts: Vec<_> = sessions.iter().map(|session| (session.start, session.end.clone())).collect();
    assert_eq!(starts, [(Start::Now, End::Cut), (Start::After(12), End::Clean), (Start::After(13), End::Clean)]);
    let places: Vec<Vec<_>> =
        sessions.iter().map(|session| session.frames.iter().map(Frame::place).collect()).collect();
    assert_eq!(places, [vec![Some(11), Some(12)], vec![Some(13)], vec![None]]);
    assert_eq!(sessions[2].error(), Some(410));
    assert!(sessions.is_sorted_by_key(|session| session.opened));
}

#[tokio::test]
async fn a_reader_stops_when_it_is_told() {
    let server = Server::start().await;
    let mut alice = reader(&server).await;
    alice.begin().await.unwrap();
    let stop = CancellationToken::new();
    let told = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
    };
    let (stopped, ()) = tokio::join!(alice.read_until(|_| false, &stop), told);
    assert_eq!(stopped.unwrap(), Stopped::Told);
    // The watch is open still: who finishes cuts it.
    let Transcript { sessions, .. } = alice.finish();
    assert_eq!((sessions[0].frames.len(), &sessions[0].end), (2, &End::Cut));
}

#[tokio::test]
async fn a_watch_that_breaks_says_so() {
    let server = Server::start().await;
    let mut alice = reader(&server).await;
    alice.begin().await.unwrap();
    let never = CancellationToken::new();
    alice.read_until(|frame| frame.place() == Some(11), &never).await.unwrap();
    alice.cut();
    // The server breaks off what begins after any other place.
    alice.resume().await.unwrap();
    assert_eq!(alice.read_until(|_| false, &never).await.unwrap(), Stopped::Ended);
    let Transcript { sessions, .. } = alice.finish();
    assert!(
        matches!(&sessions[1].end, End::Broken(cause) if cause.contains("the watch broke")),
        "{:?}",
        sessions[1].end
    );
    assert_eq!(sessions[1].last_place(), Some(14));
}

#[tokio::test]
async fn a_reader_asks_for_what_its_transcript_says() {
    let server = Server::start().await;
    let cluster = reader(&server).await;
    let events = "/apis/audit.k8s.io/v1/events?watch=true";
    assert_eq!(cluster.path(Start::Now), events);
    assert_eq!(cluster.path(Start::After(7)), format!("{events}&resourceVersion=7"));
    let marked = cluster.with_bookmarks(Bookmarks::Allowed);
    assert_eq!(marked.path(Start::Now), format!("{events}&allowWatchBookmarks=true"));
    let initial = marked.with_bookmarks(Bookmarks::WithInitialEvents);
    assert_eq!(
        initial.path(Start::Now),
        format!("{events}&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
    );
    // Who comes back has had the initial state.
    assert_eq!(initial.path(Start::After(7)), format!("{events}&allowWatchBookmarks=true&resourceVersion=7"));
    let selecting = reader(&server).await.selecting(Selector { field: Field::Verb, value: "get".to_owned() });
    assert_eq!(selecting.path(Start::Now), format!("{events}&fieldSelector=%76%65%72%62%3D%67%65%74"));
}
