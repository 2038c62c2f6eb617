use futures::future::join_all;
use tokio::time::{advance, sleep};

use audit_stream_api::{Resource, Version};

use super::*;
use crate::testing::{Reviewer, Verdict};

fn alice() -> User {
    User { name: "alice".to_owned(), groups: vec!["dev".to_owned()], ..User::anonymous() }
}

fn watch(namespace: Option<&str>) -> Attributes {
    Attributes::Resource {
        verb: "watch",
        route: Route {
            version: Version::V1,
            resource: Resource::NamespacedEvents,
            namespace: namespace.map(str::to_owned),
        },
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_the_route_is_asked_about() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer();
    let mut user = alice();
    user.uid = Some("u".to_owned());
    user.extra.insert("scopes".to_owned(), vec!["a".to_owned()]);
    authorizer.authorize(&user, &watch(Some("shop"))).await.unwrap();
    assert_eq!(
        serde_json::to_value(reviewer.last()).unwrap(),
        serde_json::json!({
            "user": "alice", "uid": "u", "groups": ["dev"], "extra": {"scopes": ["a"]},
            "resourceAttributes": {"verb": "watch", "group": "audit.k8s.io", "version": "v1", "resource": "namespacedevents", "namespace": "shop"},
        })
    );
    let path = Attributes::NonResource { verb: "get".to_owned(), path: "/metrics".to_owned() };
    authorizer.authorize(&alice(), &path).await.unwrap();
    let asked = reviewer.last().non_resource_attributes.unwrap();
    assert_eq!((asked.verb.as_deref(), asked.path.as_deref()), (Some("get"), Some("/metrics")));
}

#[tokio::test(start_paused = true)]
async fn answers_are_remembered_by_user_and_attributes_until_they_are_old() {
    let reviewer = Reviewer::new(Verdict::Deny("no"));
    let authorizer = reviewer.authorizer();
    for _ in 0..3 {
        let denied = authorizer.authorize(&alice(), &watch(Some("shop"))).await.unwrap_err();
        assert_eq!(denied, Refusal::Denied("no".to_owned()));
    }
    assert_eq!(reviewer.asked(), 1);
    // A binding made just after the first denial.
    reviewer.now(Verdict::Allow);
    advance(Duration::from_secs(9)).await;
    assert!(authorizer.authorize(&alice(), &watch(Some("shop"))).await.is_err());
    advance(Duration::from_secs(1)).await;
    assert!(authorizer.authorize(&alice(), &watch(Some("shop"))).await.is_ok());
    assert_eq!(reviewer.asked(), 2);

    authorizer.authorize(&alice(), &watch(Some("other"))).await.unwrap();
    authorizer.authorize(&alice(), &watch(None)).await.unwrap();
    let groupless = User { groups: Vec::new(), ..alice() };
    authorizer.authorize(&groupless, &watch(Some("shop"))).await.unwrap();
    assert_eq!(reviewer.asked(), 5);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_at_the_same_time_shares_one_review() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer();
    let (user, attributes) = (alice(), watch(Some("shop")));
    let answers = join_all((0..100).map(|_| authorizer.authorize(&user, &attributes))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(reviewer.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_answer_is_no_and_is_not_remembered() {
    let reviewer = Reviewer::new(Verdict::Fail);
    let authorizer = reviewer.authorizer();
    assert_eq!(authorizer.authorize(&alice(), &watch(None)).await.unwrap_err(), Refusal::Unknown);
    reviewer.now(Verdict::Hang);
    let asked_at = Instant::now();
    assert_eq!(authorizer.authorize(&alice(), &watch(None)).await.unwrap_err(), Refusal::Unknown);
    assert_eq!(asked_at.elapsed(), REVIEW_TIMEOUT);
    reviewer.now(Verdict::Allow);
    assert!(authorizer.authorize(&alice(), &watch(None)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_denial_beats_an_allowance() {
    let authorizer = Reviewer::new(Verdict::Both).authorizer();
    let refused = authorizer.authorize(&alice(), &watch(None)).await.unwrap_err();
    assert_eq!(refused, Refusal::Denied(String::new()));
}

#[tokio::test(start_paused = true)]
async fn superusers_are_not_asked_about() {
    let reviewer = Reviewer::new(Verdict::Fail);
    let authorizer = reviewer.authorizer();
    let root = User { groups: vec!["system:masters".to_owned()], ..alice() };
    let grant = authorizer.authorize(&root, &watch(None)).await.unwrap();
    let mut lease = Lease::new(Arc::clone(&authorizer), grant);
    advance(Duration::from_secs(3600)).await;
    assert_eq!(lease.confirm().await, Ok(()));
    assert_eq!(reviewer.asked(), 0);
}

async fn lease(reviewer: &Arc<Reviewer>) -> Lease {
    let authorizer = reviewer.authorizer();
    let grant = authorizer.authorize(&alice(), &watch(Some("shop"))).await.unwrap();
    Lease::new(authorizer, grant)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_permission_lasts() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let mut lease = lease(&reviewer).await;
    let ended = timeout(Duration::from_secs(100), lease.end()).await;
    assert!(ended.is_err(), "it ended: {ended:?}");
    // One at the opening, and one every eight seconds.
    assert_eq!(reviewer.asked(), 13);
}

#[tokio::test(start_paused = true)]
async fn withdrawn_permission_ends_a_lease() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let mut lease = lease(&reviewer).await;
    reviewer.now(Verdict::Deny("gone"));
    let from = Instant::now();
    assert_eq!(lease.end().await, Refusal::Denied("gone".to_owned()));
    assert_eq!(from.elapsed(), Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn a_reviewer_that_does_not_answer_ends_a_lease_when_its_term_is_over() {
    for verdict in [Verdict::Fail, Verdict::Hang] {
        let reviewer = Reviewer::new(Verdict::Allow);
        let mut lease = lease(&reviewer).await;
        reviewer.now(verdict);
        let from = Instant::now();
        assert_eq!(lease.end().await, Refusal::Unknown);
        assert_eq!(from.elapsed(), Duration::from_secs(20));
        assert_eq!(lease.confirm().await, Err(Refusal::Unknown));
    }
}

#[tokio::test(start_paused = true)]
async fn a_reviewer_that_comes_back_in_time_saves_a_lease() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let mut lease = lease(&reviewer).await;
    reviewer.now(Verdict::Fail);
    let comes_back = async {
        sleep(Duration::from_secs(15)).await;
        reviewer.now(Verdict::Allow);
    };
    let until = timeout(Duration::from_secs(60), lease.end());
    let (ended, ()) = tokio::join!(until, comes_back);
    assert!(ended.is_err(), "it ended: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_does_not_drop_the_review_under_way() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let mut lease = lease(&reviewer).await;
    // As a watch does to which events come faster than the reviewer answers.
    for _ in 0..300 {
        let _ = timeout(Duration::from_millis(100), lease.end()).await;
        assert_eq!(lease.confirm().await, Ok(()));
    }
    assert_eq!(reviewer.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_looked_after_asks_anew_before_it_holds_again() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let mut stalled = lease(&reviewer).await;
    advance(Duration::from_secs(300)).await;
    assert_eq!(stalled.confirm().await, Ok(()));
    assert_eq!(reviewer.asked(), 2);

    let mut withdrawn = lease(&reviewer).await;
    advance(Duration::from_secs(300)).await;
    reviewer.now(Verdict::Deny("gone"));
    assert_eq!(withdrawn.confirm().await, Err(Refusal::Denied("gone".to_owned())));

    reviewer.now(Verdict::Allow);
    let mut unanswered = lease(&reviewer).await;
    advance(Duration::from_secs(300)).await;
    reviewer.now(Verdict::Hang);
    let from = Instant::now();
    assert_eq!(unanswered.confirm().await, Err(Refusal::Unknown));
    assert_eq!(from.elapsed(), REVIEW_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_not_read_does_not_keep_a_review_from_others() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer();
    let grant = authorizer.authorize(&alice(), &watch(Some("shop"))).await.unwrap();
    let [mut paused, mut read] = [(); 2].map(|()| Lease::new(Arc::clone(&authorizer), grant.clone()));
    reviewer.now(Verdict::Hang);
    // Its renewal is under way when its reader stops.
    assert!(timeout(Duration::from_millis(8500), paused.end()).await.is_err());
    reviewer.now(Verdict::Allow);
    assert!(timeout(Duration::from_secs(60), read.end()).await.is_err(), "the other watch ended");
    assert!(authorizer.authorize(&alice(), &watch(Some("shop"))).await.is_ok());
    assert_eq!(paused.confirm().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn reviews_under_way_are_bounded() {
    let reviewer = Reviewer::new(Verdict::Hang);
    let authorizer = reviewer.authorizer();
    let namespaces: Vec<_> = (0..MAX_REVIEWS_UNDER_WAY * 3).map(|index| watch(Some(&index.to_string()))).collect();
    let user = alice();
    let answers = join_all(namespaces.iter().map(|attributes| authorizer.authorize(&user, attributes))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(Refusal::Unknown))));
    assert_eq!(reviewer.asked(), MAX_REVIEWS_UNDER_WAY);
}
