//! What is withheld: by hand, and by properties against an oracle that removes it from the parsed JSON.

use std::collections::BTreeSet;

use audit_stream_api::Resource;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::Value;

use super::*;
use crate::ingest::batch::{BatchBuilder, StoredEvent, compact};

/// What readers with a view see, and the names of what they do not.
fn read(event: StoredEvent<'_>, view: View) -> (Value, Vec<String>) {
    let mut fields = b"{,".to_vec();
    event.write_fields(view, &mut fields);
    assert!(fields.len() - 2 <= event.max_fields_bytes(view));
    fields.push(b'}');
    // The comma is the frame's own, behind the metadata.
    fields.remove(1);
    (serde_json::from_slice(&fields).unwrap(), event.withheld_names(view).map(Cow::into_owned).collect())
}

/// The same for a reader of the event's namespace.
fn withhold(json: &str) -> (Value, String) {
    let json = compact(json);
    let mut builder = BatchBuilder::default();
    builder.push(&Event::parse(&json).unwrap(), &json, Some("shop"));
    let (seen, names) = read(builder.build().event(0), View::new(Resource::NamespacedEvents, Revealed::default()));
    (seen, names.join(","))
}

#[test]
fn everything_hidden_is_gone_and_named() {
    let (seen, withheld) = withhold(
        r#"{"level":"RequestResponse","auditID":"a","stage":"ResponseComplete","requestURI":"/x?command=SECRET","verb":"create",
        "user":{"username":"alice","uid":"SECRET","groups":["dev","ops"],"extra":{"k":["SECRET"]}},
        "impersonatedUser":{"username":"bob","uid":"SECRET","extra":{"SECRET":[]}},
        "sourceIPs":["SECRET"],"userAgent":"kubectl",
        "objectRef":{"resource":"pods","namespace":"shop","name":"p","uid":"u","apiGroup":"g","apiVersion":"v1",
          "resourceVersion":"7","subresource":"exec"},
        "responseStatus":{"metadata":{},"status":"Failure","message":"SECRET","reason":"Forbidden","details":{"name":"SECRET"},"code":403},
        "requestObject":{"a":"SECRET"},"responseObject":{"a":"SECRET"},
        "requestReceivedTimestamp":"2026-11-20T15:00:00.000000Z","stageTimestamp":"2026-11-20T15:00:01.000000Z",
        "annotations":{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":"SECRET",
          "patch.webhook.admission.k8s.io/round_0_index_0":"SECRET"},
        "authenticationMetadata":{"x":"SECRET"},"added-upstream-next-year":"SECRET"}"#,
    );
    assert!(!seen.to_string().contains("SECRET"), "{seen}");
    assert_eq!(
        seen,
        serde_json::json!({
            "level": "RequestResponse", "auditID": "a", "stage": "ResponseComplete", "requestURI": "/x?command=***", "verb": "create",
            "user": {"username": "alice", "groups": ["dev", "ops"]},
            "impersonatedUser": {"username": "bob"},
            "userAgent": "kubectl",
            "objectRef": {"resource": "pods", "namespace": "shop", "name": "p", "uid": "u", "apiGroup": "g", "apiVersion": "v1",
                "resourceVersion": "7", "subresource": "exec"},
            "responseStatus": {"metadata": {}, "status": "Failure", "reason": "Forbidden", "code": 403},
            "requestReceivedTimestamp": "2026-11-20T15:00:00.000000Z", "stageTimestamp": "2026-11-20T15:00:01.000000Z",
            "annotations": {"authorization.k8s.io/decision": "forbid"},
        })
    );
    assert_eq!(
        withheld,
        "requestURI,user.uid,user.extra,impersonatedUser.uid,impersonatedUser.extra,sourceIPs,responseStatus.message,\
         responseStatus.details,requestObject,responseObject,annotations,authenticationMetadata,added-upstream-next-year"
    );
}

#[test]
fn an_event_with_nothing_to_hide_is_whole() {
    let event = r#"{"level":"Metadata","auditID":"a\nb","stage":"RequestReceived","requestURI":"/api","verb":"get","user":{"username":"\u0001"}}"#;
    let (seen, withheld) = withhold(event);
    assert_eq!(seen, serde_json::from_str::<serde_json::Value>(event).unwrap());
    assert_eq!(withheld, "");
}

#[test]
fn uris_are_masked() {
    let masked = [
        (
            "/a/pods/p/exec?command=ls&command=-la&container=c&stdin=true",
            "/a/pods/p/exec?command=***&command=***&container=c&stdin=true",
        ),
        ("/a?c%6Fntainer=c&w%61tch=1&t%6Fken=x", "/a?c%6Fntainer=c&w%61tch=1&t%6Fken=***"),
        ("/a?Watch=1", "/a?Watch=***"),
        ("/a?watch=1;command=secret&limit=5", "/a?watch=***&limit=5"),
        ("/a?watch=1&=x&x==y", "/a?watch=1&=***&x=***"),
        ("/a/services/s/proxy/admin/key?watch=1", "/a/services/s/proxy/***"),
        ("/a/pods/p/proxy?container=secret", "/a/pods/p/proxy?***"),
        ("/a/services/s/pr%6Fxy/admin", "/a/services/s/pr%6Fxy/***"),
        ("/a/services/s%2Fproxy%2fadmin", "/a/services/s%2Fproxy/***"),
        ("/ä/proxy/ö", "/ä/proxy/***"),
        ("/api/v1/proxy/namespaces/x/pods/p/secret", "/api/v1/proxy/***"),
        ("/proxy/proxy/x", "/proxy/***"),
    ];
    for (uri, expected) in masked {
        assert_eq!(mask_uri(uri).as_deref(), Some(expected), "{uri}");
    }
    for plain in [
        "/a/pods?watch=1&fieldSelector=a%3Db",
        "/a/pods/proxy",
        "/a/proxyx/y",
        "/",
        "",
        "?",
        "/a?",
        "/a?&",
        "/%",
        "/proxy",
    ] {
        assert_eq!(mask_uri(plain), None, "{plain}");
    }
}

#[test]
fn a_long_query_is_masked_as_one() {
    let query = |length: usize| format!("command=secret&limit={}", "5".repeat(length - "command=secret&limit=".len()));
    let longest = mask_uri(&format!("/a?{}", query(MAX_QUERY_BYTES))).unwrap();
    assert!(longest.starts_with("/a?command=***&limit=555"), "{longest}");
    assert_eq!(mask_uri(&format!("/a?{}", query(MAX_QUERY_BYTES + 1))).as_deref(), Some("/a?***"));
    assert_eq!(mask_uri(&format!("/a?{}", "&".repeat(1 << 20))).as_deref(), Some("/a?***"), "unmasked or not");
    assert_eq!(mask_uri(&format!("/a/proxy/b?{}", "&".repeat(1 << 20))).as_deref(), Some("/a/proxy/***"));
}

// === Any event ===

/// JSON as it may be written: members in any order, keys with escapes, white space between tokens.
#[derive(Debug, Clone)]
enum Json {
    Plain(&'static str),
    Object(Vec<(&'static str, Json)>),
}

/// How much of that.
#[derive(Debug, Clone, Copy)]
struct Style {
    blanks: bool,
    escapes: bool,
}

impl Json {
    fn write(&self, style: Style, out: &mut String) {
        let blank = |out: &mut String| out.push_str(if style.blanks { " \t" } else { "" });
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Object(members) => {
                out.push('{');
                blank(out);
                for (index, (name, value)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    blank(out);
                    let escaped = name.replacen('a', r"\u0061", usize::from(style.escapes));
                    out.push_str(&format!("\"{escaped}\""));
                    blank(out);
                    out.push(':');
                    blank(out);
                    value.write(style, out);
                    blank(out);
                }
                out.push('}');
            }
        }
    }
}

/// Some of these members, in any order, with one of its values each.
fn members(
    known: &'static [(&'static str, &'static [&'static str])],
) -> impl Strategy<Value = Vec<(&'static str, Json)>> {
    let each = known.iter().map(|(name, values)| select(*values).prop_map(move |value| (*name, Json::Plain(value))));
    let all: Vec<_> = each.collect();
    (0..=known.len()).prop_flat_map(move |count| {
        subsequence((0..all.len()).collect::<Vec<_>>(), count).prop_shuffle().prop_flat_map({
            let all = all.clone();
            move |indices| indices.into_iter().map(|index| all[index].clone()).collect::<Vec<_>>()
        })
    })
}

const STRINGS: &[&str] = &[r#""shown""#, r#""""#, r#""sho\u0077n \"{,}\\""#];
const OPTIONAL_STRINGS: &[&str] = &[r#""shown""#, "null"];
const HIDDEN_STRINGS: &[&str] = &[r#""SECRET""#, r#""\"SECRET\",{\\""#];
const HIDDEN: &[&str] =
    &[r#""SECRET""#, r#"{"SECRET":["SECRET",{"level":"SECRET"}]}"#, r#"["SECRET"]"#, "null", "{}", "7"];
const LISTS: &[&str] = &[r#"["shown"]"#, r#"["a","b,c"]"#, "[]", "null"];

const USER: &[(&str, &[&str])] =
    &[("username", STRINGS), ("groups", LISTS), ("uid", HIDDEN_STRINGS), ("extra", HIDDEN), ("later", HIDDEN)];
const REFERENCE: &[(&str, &[&str])] = &[
    ("resource", OPTIONAL_STRINGS),
    ("namespace", OPTIONAL_STRINGS),
    ("name", OPTIONAL_STRINGS),
    ("uid", OPTIONAL_STRINGS),
    ("apiGroup", OPTIONAL_STRINGS),
    ("apiVersion", OPTIONAL_STRINGS),
    ("resourceVersion", OPTIONAL_STRINGS),
    ("subresource", &[r#""token""#, r#""exec""#, "null"]),
    ("later", HIDDEN),
];
const STATUS: &[(&str, &[&str])] = &[
    ("metadata", &["{}", r#"{"continue":"SECRET"}"#]),
    ("status", OPTIONAL_STRINGS),
    ("message", HIDDEN_STRINGS),
    ("reason", OPTIONAL_STRINGS),
    ("details", HIDDEN),
    ("code", &["200", "null", "-1"]),
    ("later", HIDDEN),
];
const ANNOTATIONS: &[(&str, &[&str])] = &[
    ("authorization.k8s.io/reason", HIDDEN_STRINGS),
    ("authorization.k8s.io/decision", STRINGS),
    ("audit.k8s.io/truncated", STRINGS),
    ("patch.webhook.admission.k8s.io/round_0_index_0", HIDDEN_STRINGS),
    ("k8s.io/deprecated", STRINGS),
    ("k8s.io/removed-release", STRINGS),
    ("level", HIDDEN_STRINGS),
];
const REQUIRED: &[(&str, &[&str])] = &[
    ("level", STRINGS),
    ("auditID", STRINGS),
    ("stage", STRINGS),
    (
        "requestURI",
        &[r#""/a""#, r#""/a?x=SECRET\u0026y=SECRET""#, r#""/a?watch=1\u0026x=SECRET;watch=1""#, r#""/proxy/SECRET""#],
    ),
    ("verb", STRINGS),
];
const OPTIONAL: &[(&str, &[&str])] = &[
    ("kind", HIDDEN),
    ("apiVersion", HIDDEN),
    ("metadata", HIDDEN),
    ("sourceIPs", &[r#"["SECRET"]"#, "[]", "null"]),
    ("userAgent", OPTIONAL_STRINGS),
    ("requestObject", HIDDEN),
    ("responseObject", HIDDEN),
    ("requestReceivedTimestamp", OPTIONAL_STRINGS),
    ("stageTimestamp", OPTIONAL_STRINGS),
    ("later", HIDDEN),
    ("level2", HIDDEN),
    ("User", HIDDEN),
];

fn any_event() -> impl Strategy<Value = Json> {
    let required: Vec<_> = REQUIRED
        .iter()
        .map(|(name, values)| select(*values).prop_map(move |value| (*name, Json::Plain(value))))
        .collect();
    let object = |name, known| prop::option::of(members(known).prop_map(move |members| (name, Json::Object(members))));
    let objects = (
        members(USER).prop_map(|members| ("user", Json::Object(members))),
        object("impersonatedUser", USER),
        object("objectRef", REFERENCE),
        object("responseStatus", STATUS),
        object("annotations", ANNOTATIONS),
    );
    (required, members(OPTIONAL), objects)
        .prop_map(|(required, optional, (user, impersonated, reference, status, annotations))| {
            let nested = [Some(user), impersonated, reference, status, annotations].into_iter().flatten();
            required.into_iter().chain(optional).chain(nested).collect::<Vec<_>>()
        })
        .prop_shuffle()
        .prop_map(Json::Object)
}

/// What is left of parsed JSON, and the names of what is not.
struct Oracle {
    revealed: Revealed,
    withheld: BTreeSet<String>,
}

impl Oracle {
    fn keep(&mut self, object: &mut Value, kept: &[&str], named: impl Fn(&str) -> Option<String>) {
        let Some(members) = object.as_object_mut() else { return };
        members.retain(|name, _| {
            let is_kept = kept.contains(&name.as_str());
            if !is_kept {
                self.withheld.extend(named(name));
            }
            is_kept
        });
    }

    /// What a reader of the namespace sees of it.
    fn namespaced(&mut self, event: &mut Value) {
        let user =
            |user: &'static str| move |name: &str| ["uid", "extra"].contains(&name).then(|| format!("{user}.{name}"));
        let of_user = |word: &'static str, is_shown: bool| if is_shown { word } else { "username" };
        let Revealed { user_uid, user_extra, source_ips, authorization_reason } = self.revealed;
        let of_user = ["username", "groups", of_user("uid", user_uid), of_user("extra", user_extra)];
        self.keep(&mut event["user"], &of_user, user("user"));
        let shown = "level auditID stage requestURI verb user impersonatedUser userAgent objectRef responseStatus \
            requestReceivedTimestamp stageTimestamp annotations";
        let source_ips = source_ips.then_some("sourceIPs");
        let shown: Vec<_> = shown.split_whitespace().chain(source_ips).collect();
        self.keep(event, &shown, |name| (!["kind", "apiVersion", "metadata"].contains(&name)).then(|| name.to_owned()));
        let event = event.as_object_mut().unwrap();
        if let Some(impersonated) = event.get_mut("impersonatedUser") {
            self.keep(impersonated, &of_user, user("impersonatedUser"));
        }
        if let Some(reference) = event.get_mut("objectRef") {
            let known = "resource namespace name uid apiGroup apiVersion resourceVersion subresource";
            self.keep(reference, &known.split_whitespace().collect::<Vec<_>>(), |_| None);
        }
        if let Some(status) = event.get_mut("responseStatus") {
            let named = |name: &str| ["message", "details"].contains(&name).then(|| format!("responseStatus.{name}"));
            let metadata = if status["metadata"] == serde_json::json!({}) { "metadata" } else { "status" };
            self.keep(status, &[metadata, "status", "reason", "code"], named);
        }
        if let Some(annotations) = event.get_mut("annotations") {
            let plain = "authorization.k8s.io/decision audit.k8s.io/truncated k8s.io/deprecated k8s.io/removed-release";
            let reason = authorization_reason.then_some("authorization.k8s.io/reason");
            self.keep(annotations, &plain.split_whitespace().chain(reason).collect::<Vec<_>>(), |_| {
                Some("annotations".to_owned())
            });
        }
        let masked = match event["requestURI"].as_str().unwrap() {
            "/a" => return,
            "/a?x=SECRET&y=SECRET" => "/a?x=***&y=***",
            "/a?watch=1&x=SECRET;watch=1" => "/a?watch=1&x=***",
            "/proxy/SECRET" => "/proxy/***",
            other => panic!("{other} has no mask here"),
        };
        event.insert("requestURI".to_owned(), masked.into());
        self.withheld.insert("requestURI".to_owned());
    }

    /// What a reader of the cluster sees of it.
    fn whole(&mut self, event: &mut Value) {
        let is_token = event["objectRef"]["subresource"] == "token";
        event.as_object_mut().unwrap().retain(|name, _| {
            let is_body = ["requestObject", "responseObject"].contains(&name.as_str());
            if is_body && is_token {
                self.withheld.insert(name.clone());
            }
            !(["kind", "apiVersion", "metadata"].contains(&name.as_str()) || is_body && is_token)
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn readers_get_what_an_oracle_leaves(
        json in any_event(),
        (blanks, escapes, of_cluster) in any::<(bool, bool, bool)>(),
        (user_uid, user_extra, source_ips, authorization_reason) in any::<(bool, bool, bool, bool)>(),
    ) {
        let revealed = Revealed { user_uid, user_extra, source_ips, authorization_reason };
        let nothing_revealed = !(user_uid || user_extra || source_ips || authorization_reason);
        let mut text = String::new();
        json.write(Style { blanks, escapes }, &mut text);
        let (resource, namespace) =
            if of_cluster { (Resource::Events, None) } else { (Resource::NamespacedEvents, Some("shop")) };
        let mut builder = BatchBuilder::default();
        builder.push(&Event::parse(&text).unwrap(), &text, namespace);
        let (seen, names) = read(builder.build().event(0), View::new(resource, revealed));
        let mut expected: Value = serde_json::from_str(&text).unwrap();
        let mut oracle = Oracle { revealed, withheld: BTreeSet::new() };
        if of_cluster { oracle.whole(&mut expected) } else { oracle.namespaced(&mut expected) }
        prop_assert_eq!(&seen, &expected, "{}", text);
        prop_assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), oracle.withheld, "{}", text);
        let hides_all = !of_cluster && nothing_revealed;
        prop_assert!(!hides_all || !(seen.to_string() + &names.concat()).contains("SECRET"), "{seen} of {text}");
    }
}
