use audit_stream_testplane::pki::Authority;
use http::{HeaderName, HeaderValue};

use super::*;
use crate::metrics::ReloadMetrics;
use crate::testing::{FrontProxy, TokenReviewer, peer, stranger};

impl Default for Authenticator {
    /// Nobody has a token.
    fn default() -> Self {
        Self::new(TokenReviewer::new(&[]).tokens())
    }
}

impl Authenticator {
    /// Replaces what the front proxy is known by, as the one thing that is to be known.
    pub(crate) fn trust_front_proxy(&self, front_proxy: FrontProxyTrust) {
        self.change(|trust| {
            trust.loaded = true;
            trust.front_proxy = Some(Arc::new(front_proxy));
        });
    }

    fn trust_clients(&self, ca: &Authority) {
        let clients = CaBundle::parse(ca.certificate_pem().as_bytes()).unwrap();
        self.change(|trust| trust.clients = Some(Arc::new(clients)));
    }

    async fn name(&self, peer: &Peer, headers: &HeaderMap) -> Result<String, Refused> {
        self.authenticate(peer, headers).await.map(|caller| caller.user.name)
    }
}

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

/// What it is, who shows what, and whom that makes them.
type Row<'a> = (&'a str, &'a Peer, &'a [(&'a str, &'a [u8])], Result<&'a str, Refused>);

const ANYBODY: Result<&str, Refused> = Ok(ANONYMOUS);
const REFUSED: Result<&str, Refused> = Err(Refused::Unauthorized);

#[tokio::test]
async fn the_first_who_knows_somebody_wins_and_what_nobody_vouches_for_is_refused() {
    let (front_proxy, clients, strangers) = (FrontProxy::new(), Authority::new("clients"), Authority::new("clients"));
    let reviewer = TokenReviewer::new(&[("good", "tokens-owner")]);
    let authenticator = Authenticator::new(reviewer.tokens());
    authenticator.trust_front_proxy(front_proxy.trust(&[]));
    authenticator.trust_clients(&clients);

    let proxy = front_proxy.peer();
    // A proxy whose certificate the clients' CA has signed too would be a user; this one has the right name only.
    let look_alike = peer(&clients.client("front-proxy-client", &[]));
    let carol = peer(&clients.client("carol", &[]));
    let nameless = peer(&clients.client("", &["dev"]));
    let unknown = peer(&strangers.client("carol", &[]));
    let good: (&str, &[u8]) = ("authorization", b"bearer good");
    let bad: (&str, &[u8]) = ("authorization", b"Bearer bad");
    let user: (&str, &[u8]) = ("x-remote-user", b"alice");
    let second: (&str, &[u8]) = ("x-remote-user", b"root");
    let garbled: (&str, &[u8]) = ("x-remote-group", b"\xff");
    let table: [Row<'_>; 21] = [
        ("nothing", &stranger(), &[], ANYBODY),
        ("headers alone", &stranger(), &[user], ANYBODY),
        ("a token", &stranger(), &[good], Ok("tokens-owner")),
        ("a token and headers", &stranger(), &[good, user], Ok("tokens-owner")),
        ("a bad token", &stranger(), &[bad], REFUSED),
        ("two tokens", &stranger(), &[good, good], REFUSED),
        ("the proxy", &proxy, &[user], Ok("alice")),
        ("the proxy, and a bad token", &proxy, &[user, bad], Ok("alice")),
        ("the proxy names nobody", &proxy, &[], REFUSED),
        ("the proxy names nobody, but a token does", &proxy, &[good], Ok("tokens-owner")),
        ("the proxy names two", &proxy, &[user, second], REFUSED),
        ("the proxy names two, and a token", &proxy, &[user, second, good], REFUSED),
        ("the proxy names no text, and a token", &proxy, &[user, garbled, good], REFUSED),
        ("the proxy's name by another CA", &look_alike, &[user], Ok("front-proxy-client")),
        ("a client", &carol, &[], Ok("carol")),
        ("a client, and headers", &carol, &[user], Ok("carol")),
        ("a client, and a bad token", &carol, &[bad], Ok("carol")),
        // The front proxy's authenticator was shown a certificate that is not its own, and so it stays, as upstream.
        ("a client without a name", &nameless, &[], REFUSED),
        ("an unknown CA", &unknown, &[user], REFUSED),
        ("an unknown CA, and a good token", &unknown, &[user, good], Ok("tokens-owner")),
        ("an unknown CA, and a bad token", &unknown, &[user, bad], REFUSED),
    ];
    for (what, peer, sent, expected) in table {
        let found = authenticator.name(peer, &headers(sent)).await;
        assert_eq!(found.as_deref(), expected.as_ref().map(|name| *name), "{what}");
    }
}

#[tokio::test]
async fn a_client_certificate_names_a_user_by_its_subject() {
    let clients = Authority::new("clients");
    let authenticator = Authenticator::default();
    authenticator.change(|trust| trust.loaded = true);
    let carol = peer(&clients.client_named(&["first", "carol"], &["dev", "ops"]));
    // No CA is known, so that it is no credential at all.
    assert_eq!(authenticator.name(&carol, &alice()).await.as_deref(), Ok(ANONYMOUS));

    authenticator.trust_clients(&clients);
    let user = authenticator.authenticate(&carol, &alice()).await.unwrap().user;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &carol.certificates[0]);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = ("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={hex}")]);
    assert_eq!(
        user,
        User {
            name: "carol".to_owned(),
            uid: None,
            groups: ["dev", "ops", "system:authenticated"].map(str::to_owned).to_vec(),
            extra: BTreeMap::from([extra]),
        }
    );
    let none: &[&str] = &[];
    for nameless in [none, &[""], &["carol", ""]] {
        let peer = peer(&clients.client_named(nameless, &["dev"]));
        assert_eq!(authenticator.name(&peer, &alice()).await.as_deref(), Ok(ANONYMOUS), "{nameless:?}");
    }
    let serving = peer(&clients.server("carol", &["carol"]));
    let (over, early) = (peer(&clients.client_during("carol", 2000, 2001)), clients.client_during("carol", 2090, 2091));
    for bad in [serving, over, peer(&early), peer(&clients.itself())] {
        assert_eq!(authenticator.authenticate(&bad, &alice()).await.err(), Some(Refused::Unauthorized));
    }
}

#[tokio::test]
async fn a_chain_is_followed_four_certificates_far() {
    let root = Authority::new("clients");
    let authenticator = Authenticator::default();
    authenticator.change(|trust| trust.loaded = true);
    authenticator.trust_clients(&root);
    let mut above = vec![root];
    for length in 1..=5 {
        above.push(above.last().unwrap().intermediate(&format!("intermediate-{length}")));
        let peer = peer(&above.last().unwrap().client("carol", &[]));
        assert_eq!(peer.certificates.len(), length + 1);
        assert_eq!(authenticator.authenticate(&peer, &HeaderMap::new()).await.is_ok(), length <= 4, "{length}");
    }
}

#[tokio::test]
async fn the_front_proxy_names_the_user_with_all_values() {
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
        ("x-remote-extra-a%zz%41", b"c"),
        ("x-remote-extra-%ff", b"d"),
    ]);
    let user = authenticator.authenticate(&front_proxy.peer(), &sent).await.unwrap().user;
    let extra = [("example.com/scopes", &["a", "b"][..]), ("a%zz%41", &["c"]), ("%ff", &["d"])];
    let extra = extra.map(|(key, values)| (key.to_owned(), values.iter().map(ToString::to_string).collect()));
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

#[tokio::test]
async fn only_the_header_names_of_the_config_map_count() {
    let front_proxy = FrontProxy::new();
    let authenticator =
        trusting(front_proxy.trust(&[("requestheader-username-headers", r#"["X-Who","X-Remote-User"]"#)]));
    let mut sent = alice();
    sent.extend(headers(&[("x-remote-uid", b"smuggled"), ("x_remote_user", b"root"), ("x-forwarded-user", b"root")]));
    let user = authenticator.authenticate(&front_proxy.peer(), &sent).await.unwrap().user;
    assert_eq!((user.name.as_str(), user.uid), ("alice", None));
    sent.extend(headers(&[("x-who", b"bob")]));
    assert_eq!(authenticator.name(&front_proxy.peer(), &sent).await.as_deref(), Ok("bob"));
}

#[tokio::test]
async fn a_certificate_that_is_not_the_front_proxys_is_refused() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let peers = [
        ("another CA", FrontProxy::new().peer()),
        ("a name that is not allowed", peer(&front_proxy.ca.client("alice", &["system:masters"]))),
        ("an allowed name that is not the last", peer(&front_proxy.ca.client_named(&["front-proxy-client", "x"], &[]))),
        ("a serving certificate", peer(&front_proxy.ca.server("front-proxy-client", &["front-proxy-client"]))),
        ("no name", peer(&front_proxy.ca.client("", &[]))),
    ];
    for (what, peer) in peers {
        assert_eq!(authenticator.authenticate(&peer, &alice()).await.err(), Some(Refused::Unauthorized), "{what}");
    }
    let any_name = trusting(front_proxy.trust(&[("requestheader-allowed-names", "[]")]));
    assert!(any_name.authenticate(&peer(&front_proxy.ca.client("anybody", &[])), &alice()).await.is_ok());
}

#[tokio::test]
async fn headers_that_name_two_or_are_no_text_are_refused() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let wrong: [&[(&str, &[u8])]; 5] = [
        &[("x-remote-user", b"alice"), ("x-remote-user", b"bob")],
        &[("x-remote-user", b""), ("x-remote-user", b"bob")],
        &[("x-remote-user", b"al\xffice")],
        &[("x-remote-user", b"alice"), ("x-remote-group", b"\xff")],
        &[("x-remote-user", b"alice"), ("x-remote-extra-a", b"\xff")],
    ];
    for sent in wrong {
        let found = authenticator.authenticate(&front_proxy.peer(), &headers(sent)).await;
        assert_eq!(found.err(), Some(Refused::Unauthorized), "{sent:?}");
    }
    // Nobody is named, and no CA of clients says who else it could be.
    for sent in [&[][..], &[("x-remote-user", &b""[..])]] {
        let found = authenticator.name(&front_proxy.peer(), &headers(sent)).await;
        assert_eq!(found.as_deref(), Ok(ANONYMOUS), "{sent:?}");
    }
}

#[tokio::test]
async fn implied_groups() {
    let front_proxy = FrontProxy::new();
    let authenticator = trusting(front_proxy.trust(&[]));
    let peer = front_proxy.peer();
    let groups =
        async |sent: &[(&str, &[u8])]| authenticator.authenticate(&peer, &headers(sent)).await.unwrap().user.groups;
    assert_eq!(groups(&[("x-remote-user", b"system:kube-aggregator")]).await, ["system:authenticated"]);
    assert_eq!(groups(&[("x-remote-user", b"system:anonymous")]).await, [""; 0]);
    let unauthenticated: &[(&str, &[u8])] = &[("x-remote-user", b"x"), ("x-remote-group", b"system:unauthenticated")];
    assert_eq!(groups(unauthenticated).await, ["system:unauthenticated"]);
}

#[tokio::test]
async fn a_front_proxy_that_every_client_could_pass_for_is_not_trusted() {
    let shared = FrontProxy::new();
    let authenticator = Authenticator::default();
    let any_name = || shared.trust(&[("requestheader-allowed-names", "[]")]);
    authenticator.trust_front_proxy(any_name());
    assert_eq!(authenticator.name(&shared.peer(), &alice()).await.as_deref(), Ok("alice"));
    authenticator.trust_clients(&shared.ca);
    assert_eq!(authenticator.name(&shared.peer(), &alice()).await.as_deref(), Ok("front-proxy-client"));
    // With a name to tell it by, or a CA of its own, it is the front proxy.
    authenticator.trust_front_proxy(shared.trust(&[]));
    assert_eq!(authenticator.name(&shared.peer(), &alice()).await.as_deref(), Ok("alice"));
    authenticator.trust_front_proxy(any_name());
    authenticator.trust_clients(&Authority::new("clients"));
    assert_eq!(authenticator.name(&shared.peer(), &alice()).await.as_deref(), Ok("alice"));
    // Also where it is one of several.
    let both = format!("{}{}", Authority::new("other").certificate_pem(), shared.ca.certificate_pem());
    let both = CaBundle::parse(both.as_bytes()).unwrap();
    authenticator.change(|trust| trust.clients = Some(Arc::new(both)));
    assert_eq!(authenticator.name(&shared.peer(), &alice()).await.as_deref(), Ok("front-proxy-client"));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_waits_for_what_it_is_judged_by() {
    let front_proxy = FrontProxy::new();
    let authenticator = Authenticator::default();
    assert!(!authenticator.ready());
    let peer = front_proxy.peer();
    assert_eq!(authenticator.authenticate(&peer, &alice()).await.err(), Some(Refused::TrustNotLoaded));
    // Who shows none does not wait.
    let began = tokio::time::Instant::now();
    assert_eq!(
        authenticator.authenticate(&stranger(), &alice()).await.map(|caller| (caller.user, caller.way)),
        Ok((User::anonymous(), Way::None))
    );
    assert_eq!(began.elapsed(), Duration::ZERO);
    let soon = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        authenticator.trust_front_proxy(front_proxy.trust(&[]));
    };
    let (headers, ((), found)) =
        (alice(), futures::future::join(soon, authenticator.authenticate(&peer, &alice())).await);
    let again = authenticator.authenticate(&peer, &headers).await;
    let (found, again) = (found.unwrap().user, again.unwrap().user);
    assert!(authenticator.ready() && found == again);
}

#[tokio::test]
async fn each_part_of_the_config_map_is_judged_alone() {
    let (first, second) = (FrontProxy::new(), FrontProxy::new());
    let (clients, successors) = (Authority::new("clients"), Authority::new("clients"));
    let authenticator = Authenticator::default();
    let adopt = |front_proxy: &FrontProxy, more: &[(&str, &str)], without: &[&str]| {
        let mut data = front_proxy.config_map(more);
        without.iter().for_each(|key| drop(data.remove(*key)));
        config_map::adopt(&data, &authenticator, &TrustFiles::default());
    };
    let believed = async |peer: Peer| authenticator.authenticate(&peer, &alice()).await.is_ok();
    const CA: &str = "client-ca-file";

    adopt(&first, &[(CA, clients.certificate_pem())], &[]);
    assert!(believed(first.peer()).await && believed(peer(&clients.client("carol", &[]))).await);
    // A broken front proxy, and a good new CA of clients.
    adopt(&second, &[(CA, successors.certificate_pem()), ("requestheader-allowed-names", "{")], &[]);
    assert!(believed(first.peer()).await && !believed(second.peer()).await);
    assert!(believed(peer(&successors.client("carol", &[]))).await);
    assert!(!believed(peer(&clients.client("carol", &[]))).await);
    // The other way round.
    adopt(&second, &[(CA, "not PEM")], &[]);
    assert!(!believed(first.peer()).await && believed(second.peer()).await);
    assert!(believed(peer(&successors.client("carol", &[]))).await);
    // What is missing is no news.
    adopt(&first, &[], &["requestheader-client-ca-file"]);
    assert!(!believed(first.peer()).await && believed(second.peer()).await);
    assert!(believed(peer(&successors.client("carol", &[]))).await);
}

#[tokio::test]
async fn a_ca_of_clients_is_the_front_proxys_under_whatever_certificate() {
    let front_proxy = FrontProxy::new();
    let (below, other) = (front_proxy.ca.intermediate("clients"), Authority::new("front-proxy-ca"));
    let cases = [
        // Renewed under its key, signed by it, and another of its name.
        (front_proxy.ca.reissued("front-proxy-ca"), front_proxy.ca.client("carol", &[]), "carol"),
        (below.certificate_pem().to_owned(), below.client("carol", &[]), "carol"),
        (other.certificate_pem().to_owned(), front_proxy.ca.client("carol", &[]), "alice"),
    ];
    for (client_ca, carol, expected) in cases {
        let mut data = front_proxy.config_map(&[("requestheader-allowed-names", "[]")]);
        data.insert("client-ca-file".to_owned(), client_ca);
        let authenticator = Authenticator::default();
        config_map::adopt(&data, &authenticator, &TrustFiles::default());
        assert_eq!(authenticator.name(&peer(&carol), &alice()).await.as_deref(), Ok(expected));
    }
}

#[tokio::test]
async fn a_bounded_number_waits_of_whom_no_certificate_says_who_they_are() {
    let front_proxy = FrontProxy::new();
    let authenticator = Authenticator::default();
    config_map::adopt(&front_proxy.config_map(&[]), &authenticator, &TrustFiles::default());
    let (stranger, nothing) = (stranger(), HeaderMap::new());
    let mut waiting = Vec::new();
    for _ in 0..MAX_WAITING {
        waiting.push(authenticator.authenticate(&stranger, &nothing).await.unwrap());
    }
    assert_eq!(authenticator.authenticate(&stranger, &nothing).await.err(), Some(Refused::Exhausted));
    assert!(authenticator.authenticate(&front_proxy.peer(), &alice()).await.is_ok(), "whom a certificate vouches for");
    waiting.pop();
    assert!(authenticator.authenticate(&stranger, &nothing).await.is_ok());
}

#[tokio::test]
async fn a_config_map_that_cannot_be_used_makes_nobody_ready() {
    let front_proxy = FrontProxy::new();
    let authenticator = Authenticator::default();
    for broken in [("requestheader-group-headers", "{"), ("client-ca-file", "not PEM")] {
        config_map::adopt(&front_proxy.config_map(&[broken]), &authenticator, &TrustFiles::default());
        assert!(!authenticator.ready(), "{broken:?}");
    }
    config_map::adopt(&front_proxy.config_map(&[]), &authenticator, &TrustFiles::default());
    assert!(authenticator.ready());
}

#[tokio::test]
async fn a_config_map_without_a_front_proxy_is_read_all_the_same() {
    let authenticator = Authenticator::default();
    config_map::adopt(&BTreeMap::new(), &authenticator, &TrustFiles::default());
    assert!(authenticator.ready());
    assert_eq!(
        authenticator.authenticate(&FrontProxy::new().peer(), &alice()).await.map(|caller| (caller.user, caller.way)),
        Ok((User::anonymous(), Way::None))
    );
}

#[test]
fn a_config_map_that_is_not_usable_says_which_key() {
    let front_proxy = FrontProxy::new();
    let wrong = [
        ("requestheader-client-ca-file", "not PEM", "requestheader-client-ca-file"),
        ("requestheader-client-ca-file", "", "requestheader-client-ca-file"),
        ("requestheader-allowed-names", "front-proxy-client", "requestheader-allowed-names"),
        ("requestheader-group-headers", "{}", "requestheader-group-headers"),
        ("requestheader-extra-headers-prefix", r#"[""]"#, "requestheader-extra-headers-prefix"),
    ];
    for (key, value, expected) in wrong {
        let error = FrontProxyTrust::from_config_map(&front_proxy.config_map(&[(key, value)])).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
    assert!(FrontProxyTrust::from_config_map(&BTreeMap::new()).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn files_are_in_the_place_of_the_config_map_and_followed() {
    let directory = tempfile::tempdir().unwrap();
    let [client_ca, proxy_ca] = ["clients", "proxy"].map(|name| directory.path().join(name));
    let (front_proxy, others, clients, successors) =
        (FrontProxy::new(), FrontProxy::new(), Authority::new("clients"), Authority::new("clients"));
    let names = front_proxy::Names { username_headers: vec!["x-remote-user".to_owned()], ..Default::default() };
    let files = TrustFiles { client_ca: Some(client_ca.clone()), front_proxy: Some((proxy_ca.clone(), names)) };
    let authenticator = Arc::new(Authenticator::default());
    let error = format!("{:#}", files.load(&authenticator).await.err().unwrap());
    assert!(error.starts_with("--client-ca-file: cannot read ") && error.contains("clients"), "{error}");
    std::fs::write(&client_ca, clients.certificate_pem()).unwrap();
    std::fs::write(&proxy_ca, "not PEM").unwrap();
    let error = format!("{:#}", files.load(&authenticator).await.err().unwrap());
    assert!(error.starts_with("--requestheader-client-ca-file: in "), "{error}");
    assert!(!authenticator.ready());
    std::fs::write(&proxy_ca, front_proxy.ca.certificate_pem()).unwrap();
    let reloads = files.load(&authenticator).await.unwrap();
    assert!(authenticator.ready());

    // The ConfigMap says something else, and is not asked.
    let said = others.config_map(&[("client-ca-file", successors.certificate_pem())]);
    config_map::adopt(&said, &authenticator, &files);
    let believed = async |peer: Peer| authenticator.authenticate(&peer, &alice()).await.is_ok();
    assert!(believed(front_proxy.peer()).await && !believed(others.peer()).await);
    let [carol, dave] = [&clients, &successors].map(|ca| ca.client("carol", &[]));
    assert!(believed(peer(&carol)).await && !believed(peer(&dave)).await);

    let following = futures::future::join_all(reloads.into_iter().map(|reload| reload.run(ReloadMetrics::default())));
    let story = async {
        std::fs::write(&client_ca, "not PEM").unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(believed(peer(&carol)).await, "the last good one stays");
        std::fs::write(&client_ca, successors.certificate_pem()).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !believed(peer(&dave)).await {
            assert!(tokio::time::Instant::now() < deadline, "a new file is read");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(!believed(peer(&carol)).await);
    };
    tokio::select! {
        _ = following => panic!("it never ends"),
        () = story => {}
    }
}
