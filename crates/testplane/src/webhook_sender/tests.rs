use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::events::{event, event_list};
use crate::pki::Authority;
use sink::{Reply, Sink};

pub(crate) mod sink;

fn events(count: usize) -> Vec<String> {
    (0..count).map(|n| event().audit_id(&format!("id-{n}")).build()).collect()
}

fn quick() -> Sending {
    Sending { initial_backoff: Duration::from_millis(1), retry_after_scale: 0.001, ..Sending::default() }
}

async fn send_all(sink: &Sink, sending: Sending, events: &[String]) -> Ledger {
    let sender = WebhookSender::start(sink.target(), sending).await.unwrap();
    events.iter().for_each(|event| sender.send(event));
    sender.flush().await.unwrap();
    sender.ledger()
}

#[tokio::test]
async fn a_batch_arrives_as_upstream_writes_it() {
    let sink = Sink::start(&[]).await;
    let ledger = send_all(&sink, quick(), &events(2)).await;
    let posts = sink.posts();
    assert_eq!(posts.len(), 1);
    assert_eq!(posts[0].body, event_list(&events_of(&ledger)));
    assert!(
        posts[0].body.starts_with(r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[{"#)
    );
    assert_eq!(posts[0].line, "POST /webhook HTTP/2.0");
    assert_eq!(posts[0].headers["content-type"], "application/json");
    assert_eq!(posts[0].headers["accept"], "application/json, */*");
    assert_eq!(posts[0].headers["content-length"], posts[0].body.len().to_string());
    assert_eq!(ledger.delivered_audit_ids(), ["id-0", "id-1"]);
}

fn events_of(ledger: &Ledger) -> Vec<String> {
    ledger.batches.iter().flat_map(|batch| batch.events.clone()).collect()
}

#[tokio::test]
async fn batches_end_when_they_are_full_or_their_time_is_over() {
    let sink = Sink::start(&[]).await;
    let ledger = send_all(&sink, Sending { max_batch_size: 3, ..quick() }, &events(7)).await;
    assert_eq!(ledger.batches.iter().map(|batch| batch.events.len()).collect::<Vec<_>>(), [3, 3, 1]);

    let sender = WebhookSender::start(sink.target(), quick()).await.unwrap();
    sender.send(event());
    while sender.ledger().delivered().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn retries_are_byte_identical_and_end_with_success() {
    let sink = Sink::start(&[Reply::status(500), Reply::status(404), Reply::Cut, Reply::status(206)]).await;
    let ledger = send_all(&sink, quick(), &events(1)).await;
    let posts = sink.posts();
    assert_eq!(posts.len(), 4);
    assert!(posts.iter().all(|post| post.body == posts[0].body));
    assert_eq!(ledger.batches[0].outcome, Outcome::Delivered);
    let answers = &ledger.batches[0].answers;
    assert_eq!(
        (&answers[0], &answers[1], &answers[3]),
        (&Answer::Status(500), &Answer::Status(404), &Answer::Status(206))
    );
    assert!(matches!(answers[2], Answer::Failed(_)));
}

#[tokio::test]
async fn gives_up_after_five_attempts_and_goes_on_with_the_next_batch() {
    let sink = Sink::start(&[Reply::status(400); 5]).await;
    let ledger = send_all(&sink, Sending { max_batch_size: 1, ..quick() }, &events(2)).await;
    assert_eq!(ledger.batches[0].answers, vec![Answer::Status(400); 5]);
    assert_eq!(ledger.given_up_audit_ids(), ["id-0"]);
    assert_eq!(ledger.delivered_audit_ids(), ["id-1"]);
    assert_eq!(ledger.posts(), 6);
}

#[tokio::test]
async fn obeys_retry_after_up_to_ten_times_in_each_attempt() {
    let busy = Reply::Status { code: 503, retry_after: Some("1") };
    let sink = Sink::start(&[busy; 100]).await;
    assert_eq!(send_all(&sink, quick(), &events(1)).await.posts(), 55);
    // An HTTP date is no whole number, and 409 is not a code that says "later".
    for reply in [
        Reply::Status { code: 503, retry_after: Some("Fri, 20 Nov 2026 15:00:00 GMT") },
        Reply::Status { code: 409, retry_after: Some("1") },
    ] {
        let sink = Sink::start(&[reply; 100]).await;
        assert_eq!(send_all(&sink, quick(), &events(1)).await.posts(), 5);
    }
}

#[tokio::test]
async fn an_attempt_without_an_answer_times_out_and_is_repeated() {
    let sink = Sink::start(&[Reply::Never]).await;
    let sending = Sending { attempt_timeout: Duration::from_millis(200), ..quick() };
    let ledger = send_all(&sink, sending, &events(1)).await;
    assert!(matches!(ledger.batches[0].answers[..], [Answer::Failed(_), Answer::Status(200)]));
}

#[tokio::test]
async fn a_lost_answer_makes_a_duplicate() {
    let sink = Sink::start(&[]).await;
    let ledger = send_all(&sink, Sending { answers_lost: true, ..quick() }, &events(1)).await;
    let posts = sink.posts();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].body, posts[1].body);
    assert_eq!(ledger.delivered().len(), 1);
}

#[tokio::test]
async fn a_doubled_batch_is_under_way_twice_at_a_time() {
    // The first is held up, so that a second that waited for its end would not be the first to be accepted.
    let sink = Sink::start(&[Reply::Slow, Reply::status(503)]).await;
    let ledger = send_all(&sink, Sending { doubled: true, ..quick() }, &events(1)).await;
    let posts = sink.posts();
    assert!(posts.len() == 3 && posts.iter().all(|post| post.body == posts[0].body), "{}", posts.len());
    assert_eq!(ledger.batches[0].answers, [503, 200, 200].map(Answer::Status));
    assert_eq!(ledger.batches[0].outcome, Outcome::Delivered);

    // One of the two is enough.
    let refused = Reply::status(400);
    let sink = Sink::start(&[Reply::status(200), refused, refused, refused, refused, refused]).await;
    let ledger = send_all(&sink, Sending { doubled: true, ..quick() }, &events(1)).await;
    assert_eq!((ledger.posts(), ledger.batches[0].outcome), (6, Outcome::Delivered));
}

#[tokio::test]
async fn a_body_can_be_delivered_past_the_buffer_and_the_ledger() {
    let sink = Sink::start(&[Reply::status(500)]).await;
    let sender = WebhookSender::start(sink.target(), quick()).await.unwrap();
    let answers = Mutex::new(Vec::new());
    let note = |answer| answers.lock().unwrap().push(answer);
    let body = event_list(&events(2));
    assert_eq!(sender.deliver(body.clone(), &note).await, Outcome::Delivered);
    assert_eq!(*answers.lock().unwrap(), [500, 200].map(Answer::Status));
    assert!(sink.posts().iter().all(|post| post.body == body));
    assert_eq!(sender.ledger().posts(), 0);
}

#[tokio::test]
async fn concurrent_batches_overtake_a_slow_one_and_others_do_not() {
    for (concurrent, order) in [(true, ["id-1", "id-0"]), (false, ["id-0", "id-1"])] {
        let sink = Sink::start(&[Reply::Slow]).await;
        let sending = Sending { max_batch_size: 1, concurrent, ..quick() };
        let ledger = send_all(&sink, sending, &events(2)).await;
        assert_eq!(sink.accepted(), order, "concurrent: {concurrent}");
        assert_eq!(ledger.delivered().len(), 2);
    }
}

#[tokio::test]
async fn a_full_buffer_loses_events_and_says_so() {
    let sink = Sink::start(&[Reply::Never]).await;
    let sending = Sending { max_batch_size: 1, buffer_size: 2, ..quick() };
    let sender = WebhookSender::start(sink.target(), sending).await.unwrap();
    events(10).into_iter().for_each(|event| sender.send(event));
    assert!(sender.ledger().overflowed.len() >= 7);
}

#[tokio::test]
async fn the_certificate_is_shown() {
    let sink = Sink::start(&[]).await;
    let stranger = Authority::new("stranger").client("kube-apiserver-audit", &[]);
    let sender = WebhookSender::start(sink.target(), quick()).await.unwrap();
    assert_eq!(sender.post("{}").await.unwrap().status, 200);
    assert!(sender.raw().without_certificate().send().await.is_err());
    assert!(sender.raw().identity(&stranger).send().await.is_err());
    assert!(sender.raw().plaintext().send().await.is_err());
    assert_eq!(sender.raw().send().await.unwrap().status, 200);
}

#[tokio::test]
async fn raw_posts_say_what_they_are_told() {
    let sink = Sink::start(&[]).await;
    let sender = WebhookSender::start(sink.target(), quick()).await.unwrap();
    let gzip = [("Content-Encoding", "gzip"), ("Content-Type", "application/json")];
    assert_eq!(sender.post_raw(&gzip, [0x1f, 0x8b]).await.unwrap().status, 200);
    sender.post_with(&[("content-type", "text/plain")], "x").await.unwrap();
    let posts = sink.posts();
    assert_eq!(posts[0].line, "POST /webhook HTTP/1.1");
    assert_eq!(posts[0].headers["content-encoding"], "gzip");
    assert_eq!(posts[1].headers.get_all("content-type").iter().collect::<Vec<_>>(), ["text/plain"]);

    // The sink sees a body that ends too early; without the close it would wait for the rest.
    let short = sender.raw().header("Content-Type", "application/json").body("{}").declared_length(100);
    assert_eq!(short.then_close().send().await.unwrap().status, 499);
    let waiting = sender.raw().body("{}").declared_length(100).within(Duration::from_millis(200));
    assert!(waiting.send().await.unwrap_err().to_string().contains("no answer within"));
}

#[tokio::test]
async fn ledgers_know_ids_of_events_that_have_one() {
    let sink = Sink::start(&[]).await;
    let ledger = send_all(&sink, quick(), &["{broken".to_owned(), r#"{"auditID":"a"}"#.to_owned()]).await;
    assert_eq!(ledger.delivered().len(), 2);
    assert_eq!(ledger.delivered_audit_ids(), ["a"]);
    let ids = sink.accepted().into_iter().collect::<HashSet<_>>();
    assert!(ids.is_empty(), "the sink could read {ids:?} from a broken body");
    assert!(serde_json::from_str::<Value>(&sink.posts()[0].body).is_err());
}
