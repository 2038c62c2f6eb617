use futures::future::join_all;
use tokio::time::{advance, sleep, timeout};

use super::lease::SHARED_AGE;
use super::*;
use crate::metrics::Purpose;
use crate::testing::{Reviewer, Verdict};

fn alice() -> User {
    User { name: "alice".to_owned(), groups: vec!["dev".to_owned()], ..User::anonymous() }
}

fn watch(namespace: Option<&str>) -> Attributes {
    Attributes::Resource(Box::new(ResourceAttributes {
        verb: "watch",
        group: "audit.k8s.io".to_owned(),
        version: "v1".to_owned(),
        resource: "namespacedevents".to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        ..ResourceAttributes::default()
    }))
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
    let log = ResourceAttributes {
        verb: "get",
        version: "v1".to_owned(),
        resource: "pods".to_owned(),
        subresource: "log".to_owned(),
        namespace: "shop".to_owned(),
        name: "never told".to_owned(),
        ..ResourceAttributes::default()
    };
    authorizer.authorize(&alice(), &Attributes::Resource(Box::new(log))).await.unwrap();
    assert_eq!(
        serde_json::to_value(reviewer.last().resource_attributes).unwrap(),
        serde_json::json!({"verb": "get", "version": "v1", "resource": "pods", "subresource": "log", "namespace": "shop"})
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
async fn a_watch_is_opened_by_an_answer_that_its_lease_need_not_renew_at_once() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer();
    let scrape = Attributes::NonResource { verb: "get".to_owned(), path: "/metrics".to_owned() };
    let opening = watch(Some("shop"));
    let ask = async || {
        authorizer.authorize(&alice(), &opening).await.unwrap();
        authorizer.authorize(&alice(), &scrape).await.unwrap();
        reviewer.asked()
    };
    assert_eq!(ask().await, 2);
    advance(Duration::from_millis(3900)).await;
    assert_eq!(ask().await, 2);
    advance(Duration::from_millis(200)).await;
    assert_eq!(ask().await, 3, "the opening alone");
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

/// Watches of so many namespaces, each another question.
fn namespaces(count: usize) -> Vec<Attributes> {
    (0..count).map(|index| watch(Some(&index.to_string()))).collect()
}

#[tokio::test(start_paused = true)]
async fn who_is_turned_away_is_told_at_once_and_only_what_is_new_costs() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer_with(200);
    let namespaces = namespaces(100);
    let user = alice();
    let from = Instant::now();
    let answers = join_all(namespaces.iter().map(|attributes| authorizer.authorize(&user, attributes))).await;
    // Two seconds of one asker's tenth.
    assert_eq!((answers.iter().filter(|answer| answer.is_ok()).count(), reviewer.asked()), (40, 40));
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(Refusal::Exhausted))));
    assert_eq!(from.elapsed(), Duration::ZERO);
    assert_eq!(authorizer.metrics.turned_away.get_or_create(&Purpose::QUESTION).get(), 60);

    // What is known is told, to superusers everything, and others have their own part.
    assert!(authorizer.authorize(&user, &namespaces[0]).await.is_ok());
    let bert = User { name: "bert".to_owned(), ..alice() };
    assert!(authorizer.authorize(&bert, &namespaces[99]).await.is_ok());
    let root = User { groups: vec![SUPERUSERS.to_owned()], ..alice() };
    assert!(authorizer.authorize(&root, &namespaces[99]).await.is_ok());
    assert_eq!(reviewer.asked(), 41);
    advance(Duration::from_secs(1)).await;
    assert!(authorizer.authorize(&user, &namespaces[99]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lease_gets_its_review_where_the_question_before_it_is_turned_away() {
    let reviewer = Reviewer::new(Verdict::Hang);
    let authorizer = reviewer.authorizer_with(20);
    let request = Arc::new(ReviewRequest::new(&alice(), &watch(Some("shop"))));
    // It holds the guard until its review is given up.
    let first = authorizer.review(&request, Duration::MAX, For::Question("alice"));
    // All wait for the same, the lease last. Alice's part is two a second, which the first and others use up.
    let others = join_all((0..10).map(|_| authorizer.review(&request, Duration::MAX, For::Question("alice"))));
    let lease = async {
        sleep(Duration::from_secs(2)).await;
        authorizer.review(&request, SHARED_AGE, For::Lease).await
    };
    let exhaust = async {
        while authorizer.budget.question(Asker::User("alice")).is_ok() {}
        sleep(Duration::from_millis(2999)).await;
        while authorizer.budget.question(Asker::User("alice")).is_ok() {}
        reviewer.now(Verdict::Allow);
    };
    let (first, others, lease, ()) = tokio::join!(first, others, lease, exhaust);
    assert!(matches!(first, Err(Refusal::Unknown)) && others.iter().all(Result::is_err));
    assert!(lease.is_ok(), "{lease:?}");
    assert_eq!(reviewer.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_question_shares_the_review_of_a_lease_and_costs_nothing() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer_with(1);
    let request = Arc::new(ReviewRequest::new(&alice(), &watch(Some("shop"))));
    while authorizer.budget.question(Asker::User("alice")).is_ok() {}
    // It has to wait for its turn, and the question with it.
    let lease = authorizer.review(&request, SHARED_AGE, For::Lease);
    let question = authorizer.review(&request, Duration::MAX, For::Question("alice"));
    let (lease, question) = tokio::join!(lease, question);
    assert!(lease.is_ok() && question.is_ok(), "{lease:?} {question:?}");
    assert_eq!(reviewer.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_without_room_is_tried_again_and_its_term_stays() {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer_with(1);
    let grant = authorizer.authorize(&alice(), &watch(Some("shop"))).await.unwrap();
    let mut starved = Lease::new(Arc::clone(&authorizer), grant);
    // Others take every turn, far into the future.
    let others_turned_away = std::cell::Cell::new(0);
    let others = async {
        loop {
            let turn = timeout(Duration::ZERO, authorizer.budget.lease(Instant::now() + REVIEW_TIMEOUT)).await;
            others_turned_away.set(others_turned_away.get() + u64::from(matches!(turn, Ok(Err(_)))));
            sleep(Duration::from_millis(100)).await;
        }
    };
    let from = Instant::now();
    let refusal = tokio::select! {
        refusal = timeout(Duration::from_secs(60), starved.end()) => refusal.expect("it has room"),
        () = others => unreachable!("it never ends"),
    };
    assert_eq!((refusal, from.elapsed()), (Refusal::Unknown, Duration::from_secs(20)));
    let tried = authorizer.metrics.turned_away.get_or_create(&Purpose::LEASE).get() - others_turned_away.get();
    assert!((8..=12).contains(&tried), "{tried} times");
}

/// How many of so many leases, of different people, are there after two minutes, while somebody asks all the time.
async fn leases_that_last(count: usize, review_qps: u32) -> usize {
    let reviewer = Reviewer::new(Verdict::Allow);
    let authorizer = reviewer.authorizer_with(review_qps);
    let request = |index: usize| {
        let user = User { name: format!("reader-{index}"), ..alice() };
        Arc::new(ReviewRequest::new(&user, &watch(Some("shop"))))
    };
    // All come up for renewal at once, as after a restart.
    let started = Instant::now();
    let leases = (0..count).map(|index| {
        let grant = Grant { reviewed: Some((request(index), started)) };
        let mut lease = Lease::new(Arc::clone(&authorizer), grant);
        async move { timeout(Duration::from_secs(120), lease.end()).await.is_err() }
    });
    let flood = async {
        for index in 0.. {
            let user = User { name: format!("stranger-{}", index % 100), ..alice() };
            drop(authorizer.authorize(&user, &watch(Some(&index.to_string()))).await);
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        lasted = join_all(leases) => lasted.into_iter().filter(|lasts| *lasts).count(),
        () = flood => unreachable!("it never ends"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_carries_ten_leases_for_each_review_a_second() {
    assert_eq!(leases_that_last(100, 10).await, 100);
    // What is too many ends, and not the others.
    assert!((100..120).contains(&leases_that_last(120, 10).await));
}

#[tokio::test(start_paused = true)]
async fn reviews_under_way_are_bounded() {
    let reviewer = Reviewer::new(Verdict::Hang);
    let authorizer = reviewer.authorizer();
    let namespaces = namespaces(300);
    let user = alice();
    let answers = join_all(namespaces.iter().map(|attributes| authorizer.authorize(&user, attributes))).await;
    let unknown = answers.iter().filter(|answer| matches!(answer, Err(Refusal::Unknown))).count();
    let busy = answers.iter().filter(|answer| matches!(answer, Err(Refusal::Exhausted))).count();
    assert_eq!((unknown, busy, reviewer.asked()), (100, 200, 100));
}
