use std::net::Ipv4Addr;

use futures::future::join_all;
use http::HeaderValue;

use super::*;
use crate::testing::{TokenReviewer, Verdict};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn showing(value: impl AsRef<[u8]>) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_bytes(value.as_ref()).unwrap())])
}

async fn name(tokens: &Tokens, value: impl AsRef<[u8]>) -> Result<Option<String>, Refused> {
    Ok(match tokens.identify(&showing(value), HERE).await? {
        Opinion::User(user) => Some(user.name),
        Opinion::Bad => None,
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn exactly_one_bearer_token_is_one() {
    let reviewer = TokenReviewer::new(&[("good", "alice")]);
    let tokens = reviewer.tokens();
    for value in ["Bearer good", "bearer good", "BEARER good", " Bearer good ", "\tBearer good"] {
        assert_eq!(name(&tokens, value).await, Ok(Some("alice".to_owned())), "{value:?}");
    }
    let asked = reviewer.asked();
    let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
    let wrong: [&[u8]; 11] = [
        b"",
        b"Bearer",
        b"Bearer ",
        b"good",
        b"Bearergood",
        b"Bearer  good",
        b"Bearer good good",
        b"Bearer\tgood",
        b"Basic good",
        b"Bearer g\xc3\xb6od",
        long.as_bytes(),
    ];
    for value in wrong {
        assert_eq!(name(&tokens, value).await, Ok(None), "{:?}", String::from_utf8_lossy(value));
    }
    let mut two = showing("Bearer good");
    two.append(AUTHORIZATION, HeaderValue::from_static("Bearer good"));
    assert_eq!(tokens.identify(&two, HERE).await, Ok(Opinion::Bad));
    assert_eq!(tokens.identify(&HeaderMap::new(), HERE).await, Ok(Opinion::None));
    assert_eq!(reviewer.asked(), asked, "nobody was asked about those");
    assert_eq!(name(&tokens, format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES))).await, Ok(None));
    assert_eq!(reviewer.asked(), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn answers_are_remembered_for_a_while_and_failures_are_not() {
    let reviewer = TokenReviewer::new(&[("good", "alice")]);
    let tokens = reviewer.tokens();
    for _ in 0..10 {
        assert_eq!(name(&tokens, "Bearer good").await, Ok(Some("alice".to_owned())));
        assert_eq!(name(&tokens, "Bearer bad").await, Ok(None));
    }
    assert_eq!(reviewer.asked(), 2);
    tokio::time::advance(TokenReviewer::TTL).await;
    // A token that is revoked is nobody's when the answer is too old.
    reviewer.now(Verdict::Deny(""));
    assert_eq!(name(&tokens, "Bearer good").await, Ok(None));
    assert_eq!(reviewer.asked(), 3);

    tokio::time::advance(TokenReviewer::TTL).await;
    for (failure, seconds) in [(Verdict::Fail, 0), (Verdict::Hang, 3)] {
        reviewer.now(failure);
        let (asked, began) = (reviewer.asked(), Instant::now());
        assert_eq!(name(&tokens, "Bearer good").await, Ok(None));
        assert_eq!((reviewer.asked(), began.elapsed().as_secs()), (asked + 1, seconds));
    }
    reviewer.now(Verdict::Allow);
    assert_eq!(name(&tokens, "Bearer good").await, Ok(Some("alice".to_owned())));
    let count = |outcome| tokens.metrics.token_reviews.get_or_create(&Outcome { outcome }).get();
    assert_eq!([count("allowed"), count("denied"), count("error")], [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn many_who_show_the_same_token_are_one_question() {
    let reviewer = TokenReviewer::new(&[("good", "alice")]);
    let tokens = reviewer.tokens();
    let found = join_all((0..500).map(|_| name(&tokens, "Bearer good"))).await;
    assert!(found.iter().all(|found| *found == Ok(Some("alice".to_owned()))));
    assert_eq!(reviewer.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn made_up_tokens_use_up_their_askers_share_and_nobody_elses() {
    let reviewer = TokenReviewer::new(&[("good", "alice")]);
    let tokens = reviewer.tokens();
    let mut refused = 0;
    for number in 0..100 {
        match name(&tokens, format!("Bearer {number}")).await {
            Ok(None) => {}
            Err(Refused::Exhausted) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    // A tenth of 200 a second, for two seconds.
    assert_eq!((reviewer.asked(), refused), (40, 60));
    assert_eq!(name(&tokens, "Bearer good").await, Err(Refused::Exhausted));
    let elsewhere = IpAddr::from([10, 0, 0, 1]);
    assert!(matches!(tokens.identify(&showing("Bearer good"), elsewhere).await, Ok(Opinion::User(_))));
    // What is known needs no room.
    assert_eq!(name(&tokens, "Bearer good").await, Ok(Some("alice".to_owned())));
}

#[tokio::test]
async fn the_cache_is_bounded_by_entries_and_by_bytes() {
    let tokens = TokenReviewer::new(&[]).tokens();
    let review = |groups: usize| {
        let groups = (0..groups).map(|_| "g".repeat(1000)).collect();
        let user = User { groups, ..User::anonymous() };
        Review { value: Some(Arc::new(user)), started: Instant::now() }
    };
    let key = |number: usize| {
        let mut key = Key::default();
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    };
    for number in 0..2 * CACHED_TOKENS {
        tokens.cache.answers.insert(key(number), review(0));
    }
    assert!(tokens.cache.answers.len() <= CACHED_TOKENS, "{}", tokens.cache.answers.len());
    for number in 0..CACHED_TOKENS {
        tokens.cache.answers.insert(key(number), review(10));
    }
    assert!(tokens.cache.answers.weight() <= CACHED_TOKENS as u64 * ENTRY_BYTES);
    assert!(tokens.cache.answers.len() < CACHED_TOKENS / 8, "{}", tokens.cache.answers.len());
}

#[test]
fn an_answer_that_names_nobody_is_none() {
    let status = |authenticated, username: &str| {
        let user = UserInfo { username: Some(username.to_owned()), ..UserInfo::default() };
        TokenReviewStatus { authenticated, user: Some(user), ..TokenReviewStatus::default() }
    };
    assert_eq!(whose(status(Some(true), "")), Err(NoAnswer::Unknown));
    assert_eq!(whose(status(Some(false), "alice")), Ok(None));
    assert_eq!(whose(status(None, "alice")), Ok(None));
    assert_eq!(whose(status(Some(true), "alice")).unwrap().unwrap().name, "alice");
}
