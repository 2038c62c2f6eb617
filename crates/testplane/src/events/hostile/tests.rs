use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::events::event;

const MANY: usize = 100_000;

#[test]
fn the_same_seed_makes_the_same_events_and_another_seed_others() {
    let some = |seed| Hostile::new(seed, 8).take(500).collect::<Vec<_>>();
    assert_eq!(some(7), some(7));
    assert_ne!(some(7), some(8));
}

#[test]
fn every_form_is_at_least_one_in_a_hundred_and_events_are_about_1200_bytes_long() {
    let mut forms = BTreeMap::new();
    let mut bytes = 0;
    for Generated { json, form, .. } in Hostile::new(1, 20).take(MANY) {
        *forms.entry(form).or_insert(0) += 1;
        bytes += json.len();
    }
    for form in Form::ATTACKS.into_iter().chain([Form::Plain, Form::ClusterScoped]) {
        let count = forms.remove(&form).unwrap_or(0);
        assert!(count >= MANY / 100, "{form:?}: {count}");
    }
    assert!(forms.is_empty(), "not in the list of attacks: {forms:?}");
    assert!((1_100..1_500).contains(&(bytes / MANY)), "{} bytes on average", bytes / MANY);
}

#[test]
fn events_have_upstreams_fields_in_upstreams_order() {
    let upstream = event().resource("pods").namespace("a").name("p").uid("u").extra("k", &["v"]).build();
    let upstream = keys(&upstream);
    for Generated { json, form, audit_id, .. } in Hostile::new(2, 3).take(2_000) {
        let value: Value = serde_json::from_str(&json).unwrap();
        let expected: Vec<_> =
            upstream.iter().filter(|key| **key != "objectRef" || value.get("objectRef").is_some()).collect();
        assert_eq!(keys(&json).iter().collect::<Vec<_>>(), expected, "{form:?}: {json}");
        assert_eq!(value["auditID"], *audit_id);
        assert!(!json.contains(['<', '>', '&']), "Go escapes these: {json}");
    }
}

/// The members of an object, in the order of its text.
fn keys(json: &str) -> Vec<String> {
    let value: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap();
    let mut keys: Vec<_> = value.keys().map(|key| (json.find(&format!("\"{key}\":")).unwrap(), key.clone())).collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key).collect()
}

#[test]
fn an_event_has_the_mark_of_its_namespace_and_no_other() {
    let mut hostile = Hostile::new(3, 12);
    let mut marks: Vec<_> = hostile.namespaces().iter().map(|name| (Some(name.clone()), mark(Some(name)))).collect();
    marks.push((None, mark(None)));
    for Generated { json, form, namespace, .. } in hostile.by_ref().take(2_000) {
        let found: Vec<_> = marks.iter().filter(|(_, mark)| json.contains(mark)).map(|(of, _)| of.clone()).collect();
        assert_eq!(found, [namespace], "{form:?}: {json}");
    }
}

#[test]
fn no_two_events_are_equal_and_equal_audit_ids_are() {
    let events: Vec<_> = Hostile::new(4, 4).take(5_000).collect();
    let count = |part: fn(&Generated) -> &str| events.iter().map(part).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(count(|event| &event.json), events.len());
    let equal = events.iter().filter(|event| event.form == Form::EqualAuditIds).count();
    assert_eq!(count(|event| &event.audit_id), events.len() - equal + 1);
    let huge = events.iter().filter(|event| event.form == Form::HugeAuditId);
    assert!(huge.clone().count() > 0 && huge.clone().all(|event| event.audit_id.len() >= 2_048));
}

/// One event of each way that a form has, for eyes: `requestURI`, what `objectRef` claims, and the truth.
fn first_of(form: Form, fits: impl Fn(&Value) -> bool) -> (Value, Option<String>) {
    let found = Hostile::new(5, 2).take(MANY).filter(|event| event.form == form).find_map(|event| {
        let value: Value = serde_json::from_str(&event.json).unwrap();
        fits(&value).then_some((value, event.namespace))
    });
    found.unwrap_or_else(|| panic!("no such event of {form:?}"))
}

fn uri(event: &Value) -> &str {
    event["requestURI"].as_str().unwrap()
}

#[test]
fn the_truth_is_what_kube_apiserver_served() {
    // Two namespaces: whoever is not the victim is the attacker.
    let other = |of: &str| if of == "ns-000" { "ns-001" } else { "ns-000" };

    let (event, truth) = first_of(Form::ForgedNamespace, |event| event["objectRef"]["namespace"] == "ns-000");
    assert!(uri(&event).contains("/namespaces/ns-001/"), "{event}");
    assert_eq!(truth, None);

    let (event, truth) = first_of(Form::ForgedReview, |_| true);
    assert!(uri(&event).starts_with("/apis/authorization.k8s.io/v1/selfsubject"), "{event}");
    assert!(event["objectRef"]["namespace"].as_str().unwrap().starts_with("ns-"), "{event}");
    assert_eq!(truth, None);

    for form in [Form::EncodedLetters, Form::EncodedSlashes] {
        let (event, truth) = first_of(form, |_| true);
        assert!(uri(&event).starts_with('/') && uri(&event).contains('%'), "{event}");
        assert_eq!(event["objectRef"]["namespace"], truth.unwrap());
    }
    assert!(uri(&first_of(Form::EncodedSlashes, |_| true).0).to_lowercase().contains("%2f"));

    let (event, truth) = first_of(Form::EncodedTwice, |event| event["objectRef"]["namespace"] == "ns-000");
    assert!(uri(&event).contains("%25"), "{event}");
    assert_eq!(truth, None);

    let (event, truth) = first_of(Form::DotSegments, |event| uri(event).contains("ns-000/../ns-001"));
    assert_eq!((&event["objectRef"]["resource"], truth.as_deref()), (&"..".into(), Some("ns-000")));

    let (event, truth) = first_of(Form::ProxyTail, |event| uri(event).starts_with("/api/v1/namespaces/ns-001/pods"));
    assert!(uri(&event).ends_with("/namespaces/ns-000/secrets/s"), "{event}");
    assert_eq!(truth.as_deref(), Some("ns-001"));

    let (event, truth) = first_of(Form::Namesake, |_| true);
    assert!(uri(&event).starts_with("/apis/example.com/v1/namespaces/ns-"), "{event}");
    assert_eq!((&event["objectRef"]["resource"], truth), (&"namespaces".into(), None));

    let (event, truth) = first_of(Form::NamespaceObject, |event| uri(event).ends_with("/finalize"));
    assert_eq!(event["objectRef"]["namespace"], truth.unwrap());
    let (event, truth) = first_of(Form::NamespaceObject, |event| {
        event["verb"] == "create" && event["objectRef"].get("namespace").is_some()
    });
    assert_eq!(event["objectRef"]["namespace"], other(truth.as_deref().unwrap()));
    assert_eq!(event["objectRef"]["name"], truth.unwrap());
}
