//! Nobody becomes somebody else: every kind of certificate, with every kind of identity header, with and without tokens.
//!
//! What is expected follows from three words for each case: what the certificate proves, whom its headers name if the front
//! proxy sends them, and whose the token is. It is checked by the answer, and by what the reviewer was asked.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use audit_stream_testplane::front_proxy::{Client, Response, request};
use audit_stream_testplane::pki::{Authority, Identity};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::stage::{Stage, many_reviews, status};

/// Cases under way at a time.
const TOGETHER: usize = 8;

/// What a certificate proves.
#[derive(Debug, Clone, Copy)]
enum Proof {
    /// There is none.
    Nothing,
    /// Nobody vouches for it.
    Bad,
    /// It is this user's.
    Client(&'static str),
    /// It is the front proxy's.
    Proxy,
}

/// Whom headers name, if the front proxy sends them.
#[derive(Debug, Clone)]
enum Named {
    Nobody,
    /// Name, groups as received, UID, extra.
    User(&'static str, &'static [&'static str], Option<&'static str>, Value),
    /// More than one, or what is no text.
    Ambiguous,
    /// It is no HTTP/1.1, and no header of HTTP/2.
    Malformed,
}

#[derive(Debug, Clone, Copy)]
enum Token {
    None,
    Good,
    Bad,
}

const TOKENS: [Token; 3] = [Token::None, Token::Good, Token::Bad];

/// Whom the server is to take somebody for.
#[derive(Debug)]
enum Expected {
    /// Asked about, and denied.
    Somebody(Value),
    /// Not asked about: a member of `system:masters`.
    Master,
    /// 401, and nobody is asked.
    Refused,
    /// 400, and nobody is asked.
    Malformed,
}

/// A header line as it is written: the name, the colon and all.
type Line = &'static [u8];

fn certificates(stage: &Stage) -> Vec<(&'static str, Option<Identity>, Proof)> {
    const PROXY: &str = "front-proxy-client";
    let (front_proxy, clients) = (&stage.front_proxy_ca, &stage.client_ca);
    let namesake = Authority::new("front-proxy");
    let mut deep = front_proxy.intermediate("intermediate-1");
    let shallow = deep.client(PROXY, &[]);
    for number in 2..=5 {
        deep = deep.intermediate(&format!("intermediate-{number}"));
    }
    let some = |what, identity, proof| (what, Some(identity), proof);
    vec![
        ("no certificate", None, Proof::Nothing),
        some("the front proxy's", front_proxy.client(PROXY, &[]), Proof::Proxy),
        some("the front proxy's, by an intermediate", shallow, Proof::Proxy),
        some("the front proxy's, of several names", front_proxy.client_named(&["x", PROXY], &[]), Proof::Proxy),
        some("self-signed", Authority::new(PROXY).itself(), Proof::Bad),
        some("another CA of that name", namesake.client(PROXY, &[]), Proof::Bad),
        some("the webhook's CA", stage.webhook_ca.client(PROXY, &[]), Proof::Bad),
        some("another name", front_proxy.client("alice", &[]), Proof::Bad),
        some("another name, of masters", front_proxy.client("alice", &["system:masters"]), Proof::Bad),
        some("the name in another case", front_proxy.client("Front-Proxy-Client", &[]), Proof::Bad),
        some("the name with a space", front_proxy.client("front-proxy-client ", &[]), Proof::Bad),
        some("the name with a NUL", front_proxy.client("front-proxy-client\0.evil", &[]), Proof::Bad),
        some("the name before another", front_proxy.client_named(&[PROXY, "x"], &[]), Proof::Bad),
        some("the name as an organization", front_proxy.client("x", &[PROXY]), Proof::Bad),
        some("no name", front_proxy.client_named(&[], &[]), Proof::Bad),
        some("a serving certificate", front_proxy.server(PROXY, &[PROXY]), Proof::Bad),
        some("expired", front_proxy.client_during(PROXY, 2000, 2001), Proof::Bad),
        some("not yet valid", front_proxy.client_during(PROXY, 2090, 2091), Proof::Bad),
        some("the front proxy's CA", front_proxy.itself(), Proof::Bad),
        some("a chain that is too long", deep.client(PROXY, &[]), Proof::Bad),
        some("the front proxy's name by the clients' CA", clients.client(PROXY, &[]), Proof::Client(PROXY)),
        some("a client", clients.client("carol", &[]), Proof::Client("carol")),
        some("a client without a name", clients.client("", &[]), Proof::Bad),
        some("an expired client", clients.client_during("carol", 2000, 2001), Proof::Bad),
        some("a client's serving certificate", clients.server("carol", &["carol"]), Proof::Bad),
        some("the clients' CA", clients.itself(), Proof::Bad),
    ]
}

fn headers() -> Vec<(&'static [Line], Named)> {
    let none = || json!({});
    let alice = || Named::User("alice", &["dev"], None, none());
    vec![
        (&[], Named::Nobody),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev"], alice()),
        (&[b"x-remote-user: alice", b"x-remote-group: dev"], alice()),
        (&[b"X-REMOTE-USER: alice", b"X-REMOTE-GROUP: dev"], alice()),
        (&[b"x-ReMoTe-uSeR: alice", b"X-rEmOtE-gRoUp: dev"], alice()),
        (&[b"X-Remote-User: alice  \t", b"X-Remote-Group: \t dev "], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"Connection: X-Remote-User"], alice()),
        (&[b"Connection: x-remote-user, x-remote-group", b"X-Remote-User: alice", b"X-Remote-Group: dev"], alice()),
        (&[b"X-Remote-User: alice", b"X_Remote_User: root", b"X-Remote_User: root", b"X-Remote-Group: dev"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"X_Remote_Group: system:masters"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"Impersonate-User: root"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"Impersonate-Group: system:masters"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"X-Forwarded-User: root"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Groups: system:masters", b"X-Remote-Group: dev"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group:", b"X-Remote-Group: dev"], alice()),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: dev", b"Forwarded: for=127.0.0.1;by=root"], alice()),
        (
            &[b"X-Remote-User: alice", b"X-Remote-Uid: u-1", b"X-Remote-Group: dev", b"X-Remote-Group: ops"],
            Named::User("alice", &["dev", "ops"], Some("u-1"), none()),
        ),
        (
            &[
                b"X-Remote-User: alice",
                b"X-Remote-Extra-Example.com%2FScopes: a",
                b"X-Remote-Extra-example.com%2fscopes: b",
            ],
            Named::User("alice", &[], None, json!({"example.com/scopes": ["a", "b"]})),
        ),
        (
            &[b"X-Remote-User: alice", b"X-Remote-Extra-%zz: a", b"X_Remote_Extra_b: c"],
            Named::User("alice", &[], None, json!({"%zz": ["a"]})),
        ),
        (&[b"X-Remote-User: al%69ce"], Named::User("al%69ce", &[], None, none())),
        (&[b"X-Remote-User: alice, root"], Named::User("alice, root", &[], None, none())),
        (&[b"X-Remote-User: \xc3\xa5lice"], Named::User("ålice", &[], None, none())),
        (&[b"X-Remote-User: system:masters"], Named::User("system:masters", &[], None, none())),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: system:masters"], Named::User("alice", &[MASTERS], None, none())),
        (
            &[b"X-Remote-User: alice", b"X-Remote-Group: dev, system:masters"],
            Named::User("alice", &["dev, system:masters"], None, none()),
        ),
        (&[b"X-Remote-User:"], Named::Nobody),
        (&[b"X-Remote-User:", b"X-Remote-Group: system:masters"], Named::Nobody),
        (&[b"X-Remote-Group: system:masters"], Named::Nobody),
        (&[b"X-Remote-Uid: 0", b"X-Remote-Extra-Scopes: all"], Named::Nobody),
        (&[b"X_Remote_User: root", b"X_REMOTE_GROUP: system:masters"], Named::Nobody),
        (&[b"X-Remote-Users: root", b"X-Remote-User-: root", b"-X-Remote-User: root"], Named::Nobody),
        (&[b"X-Forwarded-User: root", b"Remote-User: root", b"X-User: root", b"From: root"], Named::Nobody),
        (&[b"Impersonate-User: root", b"Impersonate-Group: system:masters", b"Impersonate-Uid: 0"], Named::Nobody),
        (&[b"X-Remote-User: alice", b"X-Remote-User: root"], Named::Ambiguous),
        (&[b"X-Remote-User: alice", b"x-remote-user: alice"], Named::Ambiguous),
        (&[b"X-Remote-User:", b"X-Remote-User: root"], Named::Ambiguous),
        (&[b"X-Remote-User: alice", b"X-Remote-Uid: 1", b"X-Remote-Uid: 0"], Named::Ambiguous),
        (&[b"X-Remote-User: \xff"], Named::Ambiguous),
        (&[b"X-Remote-User: alice", b"X-Remote-Group: \xc0\xaf"], Named::Ambiguous),
        (&[b"X-Remote-User: alice", b"X-Remote-Uid: \xed\xa0\x80"], Named::Ambiguous),
        (&[b"X-Remote-User: alice", b"X-Remote-Extra-A: \xfe"], Named::Ambiguous),
        (&[b"X-Remote-User : root"], Named::Malformed),
        (&[b"X-Remote-User: alice", b" root"], Named::Malformed),
        (&[b"X-Remote-User: al\0ice"], Named::Malformed),
        (&[b"X-Remote-User: alice\rX-Remote-Group: system:masters"], Named::Malformed),
        (&[b"X-Remote-User\0: root"], Named::Malformed),
    ]
}

const MASTERS: &str = "system:masters";

/// Whose the good token is.
const OWNER: &str = "system:serviceaccount:monitoring:prometheus";

fn expected(proof: Proof, named: &Named, token: Token) -> Expected {
    let somebody = |name: &str, groups: &[&str], uid: Option<&str>, extra: Value| {
        let groups: Vec<_> = groups.iter().copied().chain(["system:authenticated"]).collect();
        Expected::Somebody(json!([name, groups, uid, extra]))
    };
    let owner = || {
        let uid = format!("uid-of-{OWNER}");
        somebody(OWNER, &["system:serviceaccounts"], Some(&uid), json!({}))
    };
    match (proof, named, token) {
        (_, Named::Malformed, _) => Expected::Malformed,
        (Proof::Proxy, Named::User(_, [MASTERS], ..), _) => Expected::Master,
        (Proof::Proxy, Named::User(name, groups, uid, extra), _) => somebody(name, groups, *uid, extra.clone()),
        (Proof::Proxy, Named::Ambiguous, _) => Expected::Refused,
        // Its extra is compared apart from the others: it is the certificate's hash.
        (Proof::Client(name), ..) => somebody(name, &[], None, Value::Null),
        (_, _, Token::Good) => owner(),
        (Proof::Nothing, _, Token::None) => {
            Expected::Somebody(json!(["system:anonymous", ["system:unauthenticated"], null, {}]))
        }
        _ => Expected::Refused,
    }
}

/// Checks an answer to a GET of a path, which no other case has, and what was asked about it.
fn check(path: &str, answer: &Response, asked: &[Value], expected: &Expected) -> Result<()> {
    let (code, body) = (answer.status, &*answer.body);
    let what = || format!("{path}: {code} {body} {asked:?}, and not {expected:?}");
    match expected {
        Expected::Somebody(user) => {
            let [spec] = asked else { anyhow::bail!(what()) };
            let mut found = json!([spec["user"], spec["groups"], spec["uid"], spec["extra"]]);
            if user[3].is_null() {
                let id = found[3]["authentication.kubernetes.io/credential-id"][0].take();
                ensure!(id.as_str().is_some_and(|id| id.starts_with("X509SHA256=")), what());
                found[3].take();
            }
            ensure!(code == 403 && found == *user, what());
            let message = serde_json::from_str::<Value>(body).with_context(what)?["message"].take();
            let name = user[0].as_str().unwrap_or_default();
            ensure!(message == format!("forbidden: User \"{name}\" cannot get path \"{path}\""), what());
        }
        Expected::Master => ensure!(asked.is_empty() && code == 404, what()),
        Expected::Refused => {
            let refusal = status(401, "Unauthorized", "Unauthorized", "");
            ensure!(asked.is_empty() && code == 401 && body == refusal, what());
        }
        Expected::Malformed => ensure!(asked.is_empty() && code == 400, what()),
    }
    Ok(())
}

fn authorization(token: Token) -> Option<&'static str> {
    match token {
        Token::None => None,
        Token::Good => Some("Bearer good"),
        Token::Bad => Some("Bearer bad"),
    }
}

async fn stage() -> Result<Stage> {
    // So many that no case is turned away for the others.
    let stage = Stage::with(many_reviews).await?;
    stage.reviewer.accept_token("good", OWNER, &["system:serviceaccounts"]);
    Ok(stage)
}

/// A case that is over, and what it was.
struct Case {
    what: String,
    path: String,
    answer: Response,
    expected: Expected,
}

/// Checks all cases, in the end, when all is asked that was to be: how many of them are somebody.
fn judge(stage: &Stage, cases: &[Case]) -> Result<usize> {
    let mut asked: HashMap<String, Vec<Value>> = HashMap::new();
    for spec in stage.reviewer.reviews() {
        let path = spec["nonResourceAttributes"]["path"].as_str().unwrap_or_default().to_owned();
        asked.entry(path).or_default().push(spec);
    }
    for Case { what, path, answer, expected } in cases {
        let asked = asked.get(path).map_or(&[][..], Vec::as_slice);
        check(path, answer, asked, expected).with_context(|| what.clone())?;
    }
    let somebody = cases.iter().filter(|case| matches!(case.expected, Expected::Somebody(_) | Expected::Master));
    Ok(somebody.count())
}

/// The bytes of a GET with these lines.
fn written(path: &str, lines: &[Line], token: Token) -> Vec<u8> {
    let authorization = authorization(token).map(|value| format!("Authorization: {value}"));
    let first = format!("GET {path} HTTP/1.1\r\nHost: x");
    let lines = lines.iter().copied().chain(authorization.as_ref().map(String::as_bytes));
    let lines: Vec<_> = [first.as_bytes()].into_iter().chain(lines).chain([&b""[..], b""]).collect();
    lines.join(&b"\r\n"[..])
}

/// The same lines for HTTP/2.
fn header_map(lines: &[Line], token: Token) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').context("a line has a colon")?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon])?, line[colon + 1..].trim_ascii());
        // HTTP/2 forbids it, and a client would not send it.
        if name != "connection" {
            headers.append(name, HeaderValue::from_bytes(value)?);
        }
    }
    if let Some(value) = authorization(token) {
        headers.append("authorization", HeaderValue::from_static(value));
    }
    Ok(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_somebody_else_over_raw_tls() -> Result<()> {
    let (stage, headers) = (stage().await?, headers());
    let certificates = certificates(&stage);
    let mut cases = Vec::new();
    for (row, (certificate, identity, proof)) in certificates.iter().enumerate() {
        for (column, (lines, named)) in headers.iter().enumerate() {
            // Each kind of token with each kind of certificate and with each set of headers.
            let token = TOKENS[(row + column) % TOKENS.len()];
            let target = identity.iter().fold(stage.api(), |target, identity| target.identity(identity));
            let path = format!("/spoof/{}", cases.len());
            let (bytes, expected) = (written(&path, lines, token), expected(*proof, named, token));
            let what = format!("{certificate}: {:?}", String::from_utf8_lossy(&bytes));
            cases.push(async move {
                let answer = target.exchange(&bytes).await.with_context(|| what.clone())?;
                anyhow::Ok(Case { what, path, answer, expected })
            });
        }
    }
    let cases: Vec<_> = stream::iter(cases).buffer_unordered(TOGETHER).try_collect().await?;
    let somebody = judge(&stage, &cases)?;
    println!("{} cases over HTTP/1.1, {somebody} of which are somebody; 0 wrong", cases.len());
    assert!(cases.len() >= 200 && somebody >= 50);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_somebody_else_over_http2() -> Result<()> {
    let (stage, headers) = (stage().await?, headers());
    let mut cases = Vec::new();
    for (row, (certificate, identity, proof)) in certificates(&stage).iter().enumerate() {
        // All users of a kube-apiserver share a connection, and none is to be left with another's name.
        let target = identity.iter().fold(stage.api(), |target, identity| target.identity(identity));
        let client = Client::connect(target).await.context(*certificate)?;
        for (column, (lines, named)) in headers.iter().enumerate() {
            if matches!(named, Named::Malformed) {
                continue;
            }
            let token = TOKENS[(row + column + 1) % TOKENS.len()];
            let path = format!("/spoof/{}", cases.len());
            let mut request = request("GET", &path, &[], "")?;
            *request.headers_mut() = header_map(lines, token)?;
            let what = format!("{certificate}: {:?}", request.headers());
            let answer = client.send(request).await.with_context(|| what.clone())?;
            cases.push(Case { what, path, answer, expected: expected(*proof, named, token) });
        }
    }
    let somebody = judge(&stage, &cases)?;
    println!("{} cases over HTTP/2, {somebody} of which are somebody; 0 wrong", cases.len());
    assert!(cases.len() >= 200 && somebody >= 50);
    Ok(())
}
