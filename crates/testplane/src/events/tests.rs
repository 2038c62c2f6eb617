use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;

fn built(event: &EventBuilder) -> Value {
    serde_json::from_str(&event.build()).unwrap()
}

#[test]
fn a_create_at_metadata_level_is_written_as_upstream_writes_it() {
    let text = event()
        .user("alice")
        .verb("create")
        .resource("configmaps")
        .namespace("shop")
        .name("a")
        .audit_id("id-1")
        .received_at(UNIX_EPOCH + Duration::from_micros(1_795_186_800_123_456))
        .build();
    assert_eq!(
        text,
        concat!(
            r#"{"level":"Metadata","auditID":"id-1","stage":"ResponseComplete","#,
            r#""requestURI":"/api/v1/namespaces/shop/configmaps?fieldManager=kubectl-create\u0026fieldValidation=Strict","#,
            r#""verb":"create","user":{"username":"alice","groups":["system:authenticated"]},"#,
            r#""sourceIPs":["10.0.0.7"],"userAgent":"kubectl/v1.37.1 (linux/amd64) kubernetes/testplane","#,
            r#""objectRef":{"resource":"configmaps","namespace":"shop","name":"a","apiVersion":"v1"},"#,
            r#""responseStatus":{"metadata":{},"code":201},"#,
            r#""requestReceivedTimestamp":"2026-11-20T15:00:00.123456Z","#,
            r#""stageTimestamp":"2026-11-20T15:00:00.125456Z","#,
            r#""annotations":{"authorization.k8s.io/decision":"allow","#,
            r#""authorization.k8s.io/reason":"RBAC: allowed by ClusterRoleBinding \"testplane\" of ClusterRole \"edit\" to User \"alice\""}}"#,
        )
    );
}

#[test]
fn paths_fit_verbs_and_objects() {
    let pods = event().resource("pods").namespace("shop").name("p");
    let scale = event().api_group("apps").resource("deployments").subresource("scale").namespace("shop").name("d");
    for (event, uri) in [
        (pods.clone().verb("get"), "/api/v1/namespaces/shop/pods/p"),
        (
            pods.clone().verb("create").subresource("exec").query("command=ls"),
            "/api/v1/namespaces/shop/pods/p/exec?command=ls",
        ),
        (scale.verb("update").query(""), "/apis/apps/v1/namespaces/shop/deployments/d/scale"),
        (event().verb("list").resource("pods"), "/api/v1/pods?limit=500"),
        (
            event().verb("watch").resource("pods").namespace("a"),
            "/api/v1/namespaces/a/pods?allowWatchBookmarks=true&watch=true",
        ),
        (event().verb("delete").resource("namespaces").name("shop"), "/api/v1/namespaces/shop"),
        (event().non_resource("/healthz"), "/healthz"),
        (pods.request_uri("/elsewhere"), "/elsewhere"),
    ] {
        assert_eq!(built(&event)["requestURI"], uri);
    }
}

#[test]
fn object_references_follow_request_info() {
    let namespace = event().resource("namespaces").name("shop");
    let reference = |event: EventBuilder| built(&event)["objectRef"].clone();
    assert_eq!(reference(namespace.clone().verb("delete"))["namespace"], "shop");
    assert_eq!(
        reference(namespace.clone().verb("create")),
        json!({"resource":"namespaces","name":"shop","apiVersion":"v1"})
    );
    // A create that was refused, or not yet decoded, has no name.
    assert_eq!(reference(namespace.clone().verb("create").code(403))["name"], Value::Null);
    assert_eq!(reference(namespace.verb("create").stage("RequestReceived"))["name"], Value::Null);
    assert_eq!(reference(event().non_resource("/healthz")), Value::Null);
    let forged = event().resource("pods").namespace("mine").name("p").object_ref_namespace("victim");
    assert_eq!(reference(forged.clone())["namespace"], "victim");
    assert_eq!(built(&forged)["requestURI"], "/api/v1/namespaces/mine/pods/p");
}

#[test]
fn refusals_carry_their_status_and_no_bodies() {
    let create = event().verb("create").resource("secrets").namespace("shop").name("s").level("RequestResponse");
    let forbidden = built(&create.clone().code(403));
    assert_eq!(forbidden["responseStatus"]["reason"], "Forbidden");
    assert_eq!(forbidden["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(forbidden["requestObject"], Value::Null);
    let unauthorized = built(&create.clone().code(401));
    assert_eq!(unauthorized["user"], json!({}));
    assert_eq!(unauthorized["annotations"], Value::Null);
    let received = built(&create.stage("RequestReceived"));
    assert_eq!(received["responseStatus"], Value::Null);
    assert_eq!(received["stageTimestamp"], received["requestReceivedTimestamp"]);
}

#[test]
fn bodies_are_recorded_by_level_and_verb() {
    let secret = event().resource("secrets").namespace("shop").name("s");
    let at = |level: &str, verb: &str| built(&secret.clone().level(level).verb(verb));
    assert_eq!(at("RequestResponse", "create")["requestObject"]["data"]["password"], "c2VjcmV0");
    assert_eq!(at("RequestResponse", "create")["responseObject"]["metadata"]["resourceVersion"], "1000");
    assert_eq!(at("RequestResponse", "list")["responseObject"]["kind"], "SecretList");
    assert_eq!(at("RequestResponse", "delete")["responseObject"]["kind"], "Status");
    assert_eq!(at("RequestResponse", "watch")["responseObject"], Value::Null);
    assert_eq!(at("Request", "create")["responseObject"], Value::Null);
    assert_eq!(at("Metadata", "create")["requestObject"], Value::Null);
}

#[test]
fn html_is_escaped_in_bodies_and_unknown_fields_are_kept() {
    let text = event()
        .resource("pods")
        .request_object(r#"{"a":"<b>"}"#)
        .unknown_field("authenticationMetadata", json!({"x": 1}))
        .build();
    assert!(text.contains(r#""requestObject":{"a":"\u003cb\u003e"}"#), "{text}");
    assert!(text.ends_with(r#","authenticationMetadata":{"x":1}}"#), "{text}");
}

#[test]
fn dates_of_leap_years_are_right() {
    let at = |seconds| wire::micro_time(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
    assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.000000Z");
}

#[test]
fn audit_ids_are_unique_and_lists_end_in_a_newline() {
    assert_ne!(fresh_audit_id(), fresh_audit_id());
    assert_eq!(
        event_list(&["{}", "1"]),
        "{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\"items\":[{},1]}\n"
    );
}
