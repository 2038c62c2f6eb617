use audit_stream_api::Resource;

use super::*;
use crate::view::Revealed;

const EVENT: &str = r#"{"level":"Metadata","auditID":"id-1","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/pods/p/exec?command=ls","verb":"create","user":{"username":"al\u0069ce","groups":["dev","o\"ps"]},"sourceIPs":["10.0.0.1"],"userAgent":"kubectl","objectRef":{"resource":"pods","namespace":"shop","name":"p","subresource":"exec","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":101},"stageTimestamp":"2026-11-20T15:00:00.123456Z","annotations":{"authorization.k8s.io/decision":"allow"},"later":{"x":{"y":[1]}}}"#;

fn batch(json: &str, namespace: Option<&str>) -> Batch {
    let event = Event::parse(json).unwrap();
    let mut builder = BatchBuilder::default();
    builder.push(&event, json, namespace);
    builder.build()
}

fn fields(event: StoredEvent<'_>, resource: Resource) -> String {
    let view = View::new(resource, Revealed::default());
    let mut fields = b",".to_vec();
    event.write_fields(view, &mut fields);
    let fields = String::from_utf8(fields).unwrap().split_off(1);
    assert!(fields.len() <= event.max_fields_bytes(view));
    fields
}

fn names(event: StoredEvent<'_>, resource: Resource) -> String {
    event.withheld_names(View::new(resource, Revealed::default())).collect::<Vec<_>>().join(",")
}

fn full(json: &str) -> String {
    fields(batch(json, None).event(0), Resource::Events)
}

#[test]
fn own_bytes_are_verbatim() {
    assert_eq!(format!("{{{}}}", full(EVENT)), EVENT);
}

#[test]
fn what_the_object_replaces_is_never_doubled() {
    let carrying =
        EVENT.replacen('{', r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","metadata":{"name":"x"},"#, 1);
    assert_eq!(format!("{{{}}}", full(&carrying)), EVENT);
}

#[test]
fn a_pretty_printed_event_becomes_one_line() {
    let pretty = EVENT.replace(",\"", ",\n\t\"").replace(":{", " : { ");
    let with_spaced_string = pretty.replace("kubectl", "kube ctl\\\\ \\\" x");
    assert_eq!(compact(&with_spaced_string), EVENT.replace("kubectl", "kube ctl\\\\ \\\" x"));
}

#[test]
fn live_credentials_are_dropped_for_everybody() {
    let bodies = r#","requestObject":{"spec":{"token":"SECRET"}},"responseObject":"SECRET"}"#;
    let with_bodies = |reference: (&str, &str)| {
        EVENT.replacen(reference.0, reference.1, 1).replacen(r#"]}}}"#, &format!("]}}}}{bodies}"), 1)
    };
    assert!(full(&with_bodies(("", ""))).contains("SECRET"));
    for reference in [("\"exec\"", "\"token\""), ("\"pods\"", "\"tokenreviews\"")] {
        let full = full(&with_bodies(reference));
        assert!(!full.contains("SECRET") && full.contains("\"later\""), "{full}");
    }
}

#[test]
fn selectors_find_every_field() {
    let batch = batch(EVENT, Some("shop"));
    let event = batch.events().next().unwrap();
    let expected = [
        (Field::MetadataNamespace, "shop"),
        (Field::AuditId, "id-1"),
        (Field::Level, "Metadata"),
        (Field::Stage, "ResponseComplete"),
        (Field::Verb, "create"),
        (Field::Username, "alice"),
        (Field::Groups, "dev"),
        (Field::Groups, "o\"ps"),
        (Field::ImpersonatedUsername, ""),
        (Field::UserAgent, "kubectl"),
        (Field::SourceIps, "10.0.0.1"),
        (Field::ObjectResource, "pods"),
        (Field::ObjectApiGroup, ""),
        (Field::ObjectApiVersion, "v1"),
        (Field::ObjectNamespace, "shop"),
        (Field::ObjectName, "p"),
        (Field::ObjectSubresource, "exec"),
        (Field::ObjectUid, ""),
        (Field::ResponseCode, "101"),
        (Field::Decision, "allow"),
        (Field::RequestUri, "/api/v1/namespaces/shop/pods/p/exec?command=ls"),
    ];
    for (field, value) in expected {
        assert!(event.holds(field, value), "{}={value}", field.name());
        assert!(!event.holds(field, "other"), "{}", field.name());
    }
    let covered = |field: &Field| *field == Field::MetadataName || expected.iter().any(|(seen, _)| seen == field);
    assert!(Field::ALL.iter().all(covered), "a new field needs a row");
    assert!(event.holds_masked_uri("/api/v1/namespaces/shop/pods/p/exec?command=***"));
    assert!(!event.holds_masked_uri("/api/v1/namespaces/shop/pods/p/exec?command=ls"));
}

#[test]
fn values_that_borrow_are_not_stored_twice() {
    let ascii = EVENT.replace("al\\u0069ce", "alice").replace("o\\\"ps", "ops");
    let stored = batch(&ascii, None);
    let own = full(&ascii).len();
    // Beside the event's own bytes: the code, and the URI as it is masked.
    let masked = "/api/v1/namespaces/shop/pods/p/exec?command=***";
    assert_eq!(stored.text.len(), own + "101".len() + masked.len());
}

#[test]
fn the_view_is_there_for_every_event() {
    let attributed = batch(EVENT, Some("shop"));
    let event = attributed.events().next().unwrap();
    assert_eq!(event.namespace(), Some("shop"));
    assert_eq!(event.creation_timestamp(), Some("2026-11-20T15:00:00"));
    assert_eq!(names(event, Resource::NamespacedEvents), "requestURI,sourceIPs,later");
    assert!(fields(event, Resource::NamespacedEvents).contains("command=***"));
    assert_eq!(
        (names(event, Resource::Events), fields(event, Resource::Events)),
        (String::new(), EVENT[1..EVENT.len() - 1].to_owned())
    );
    let cluster = batch(EVENT, None);
    assert_eq!(cluster.event(0).namespace(), None);
    assert_eq!(
        fields(cluster.event(0), Resource::NamespacedEvents),
        fields(event, Resource::NamespacedEvents),
        "it fails closed"
    );
}

#[test]
fn only_the_one_shape_of_time_is_cut() {
    assert_eq!(whole_seconds("2026-11-20T15:00:00Z"), Some("2026-11-20T15:00:00"));
    for other in [
        "",
        "2026-11-20",
        "2026-11-20T15:00:00+01:00",
        "2026-11-20T15:00:00.1x3Z",
        "2026-11-20 15:00:00Z",
        "ääääääääää2026-11Z",
    ] {
        assert_eq!(whole_seconds(other), None, "{other}");
    }
}
