use http::{HeaderName, HeaderValue};

use super::*;
use crate::testing::{FrontProxy, peer, stranger};

fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap()));
    pairs.collect()
}

fn alice() -> HeaderMap {
    headers(&[("X-Remote-User", b"alice")])
}

fn trusting(trust: FrontProxyTrust) -> Authenticator {
    let authenticator = Authenticator::default();
    authenticator.trust_front_proxy(trust);
    authenticator
}

#[test]
fn the_front_proxy_names_the_user_with_all_values() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[("requestheader-uid-headers", r#"["X-Remote-Uid"]"#)]));
    let sent = headers(&[
        ("x-remote-user", b"alice"),
        ("x-remote-uid", b"u-1"),
        ("x-remote-group", b"dev"),
        ("x-remote-group", b""),
        ("x-remote-group", b"ops"),
        ("x-remote-extra-example.com%2Fscopes", b"a"),
        ("x-remote-extra-example.com%2fscopes", b"b"),
    ]);
    let user = authenticator.authenticate(&front_proxy.peer(), &sent).unwrap();
    let extra = [("example.com/scopes".to_owned(), vec!["a".to_owned(), "b".to_owned()])];
    assert_eq!(
        user,
        User {
            name: "alice".to_owned(),
            uid: Some("u-1".to_owned()),
            groups: ["dev", "ops", "system:authenticated"].map(str::to_owned).to_vec(),
            extra: BTreeMap::from(extra),
        }
    );
}

#[test]
fn only_the_header_names_of_the_config_map_count() {
    let front_proxy = FrontProxy::new();
    let authenticator =
        trusting(front_proxy.trust(&[("requestheader-username-headers", r#"["X-Who","X-Remote-User"]"#)]));
    let mut sent = alice();
    sent.extend(headers(&[("x-remote-uid", b"smuggled"), ("x_remote_user", b"root"), ("x-forwarded-user", b"root")]));
    let user = authenticator.authenticate(&front_proxy.peer(), &sent).unwrap();
    assert_eq!((user.name.as_str(), user.uid), ("alice", None));
    sent.extend(headers(&[("x-who", b"bob")]));
    assert_eq!(authenticator.authenticate(&front_proxy.peer(), &sent).unwrap().name, "bob");
}

#[test]
fn headers_without_the_front_proxys_certificate_are_nobodys() {
    let authenticator = trusting(FrontProxy::new().trust(&[]));
    assert_eq!(authenticator.authenticate(&stranger(), &alice()), Ok(User::anonymous()));
}

#[test]
fn before_the_trust_is_loaded_nobody_is_believed() {
    let authenticator = Authenticator::default();
    assert!(!authenticator.ready());
    assert_eq!(authenticator.authenticate(&FrontProxy::new().peer(), &alice()), Ok(User::anonymous()));
}

#[test]
fn a_certificate_that_is_not_the_front_proxys_is_refused() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let peers = [
        ("another CA", FrontProxy::new().peer()),
        ("a name that is not allowed", peer(&front_proxy.ca.client("alice", &["system:masters"]))),
        ("a serving certificate", peer(&front_proxy.ca.server("front-proxy-client", &["front-proxy-client"]))),
        ("no name", peer(&front_proxy.ca.client("", &[]))),
    ];
    for (what, peer) in peers {
        assert_eq!(authenticator.authenticate(&peer, &alice()), Err(Unauthorized), "{what}");
    }
    let any_name = trusting(front_proxy.trust(&[("requestheader-allowed-names", "[]")]));
    assert!(any_name.authenticate(&peer(&front_proxy.ca.client("anybody", &[])), &alice()).is_ok());
}

#[test]
fn headers_that_name_nobody_or_two_are_refused() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let wrong: [&[(&str, &[u8])]; 6] = [
        &[],
        &[("x-remote-user", b"")],
        &[("x-remote-user", b"alice"), ("x-remote-user", b"bob")],
        &[("x-remote-user", b"al\xffice")],
        &[("x-remote-user", b"alice"), ("x-remote-group", b"\xff")],
        &[("x-remote-user", b"alice"), ("x-remote-extra-a", b"\xff")],
    ];
    for sent in wrong {
        assert_eq!(authenticator.authenticate(&front_proxy.peer(), &headers(sent)), Err(Unauthorized), "{sent:?}");
    }
}

#[test]
fn a_bearer_token_is_never_ignored() {
    let authenticator = trusting(FrontProxy::new().trust(&[]));
    let token = headers(&[("authorization", b"Bearer x")]);
    assert_eq!(authenticator.authenticate(&stranger(), &token), Err(Unauthorized));
}

#[test]
fn implied_groups() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let groups =
        |sent: &[(&str, &[u8])]| authenticator.authenticate(&front_proxy.peer(), &headers(sent)).unwrap().groups;
    assert_eq!(groups(&[("x-remote-user", b"system:kube-aggregator")]), ["system:authenticated"]);
    assert_eq!(groups(&[("x-remote-user", b"system:anonymous")]), [""; 0]);
    let unauthenticated: &[(&str, &[u8])] = &[("x-remote-user", b"x"), ("x-remote-group", b"system:unauthenticated")];
    assert_eq!(groups(unauthenticated), ["system:unauthenticated"]);
}

#[test]
fn a_config_map_that_is_not_usable_says_which_key() {
    let front_proxy = FrontProxy::new();
    let wrong = [
        ("requestheader-client-ca-file", "not PEM", "requestheader-client-ca-file"),
        ("requestheader-client-ca-file", "", "requestheader-client-ca-file"),
        ("requestheader-allowed-names", "front-proxy-client", "requestheader-allowed-names"),
        ("requestheader-group-headers", "{}", "requestheader-group-headers"),
    ];
    for (key, value, expected) in wrong {
        let error = FrontProxyTrust::from_config_map(&front_proxy.config_map(&[(key, value)])).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
    assert!(FrontProxyTrust::from_config_map(&Default::default()).is_err());
}
