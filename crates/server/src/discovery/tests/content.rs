//! What the documents say: their golden bytes, and that they agree with each other and with their readers.

use std::fmt::Write as _;
use std::path::Path;

use audit_stream_api::Resource;
use audit_stream_api::query::WatchOptions;
use serde_json::{Map, json as value};

use super::*;

/// The document one token to a line, so that a diff shows what changed. Nothing is parsed, so that nothing is hidden: two
/// bodies look alike only if they are the same bytes.
fn laid_out(body: &[u8]) -> String {
    let (mut out, mut depth, mut in_string, mut escaped) = (String::new(), 0_usize, false, false);
    for c in std::str::from_utf8(body).unwrap().chars() {
        assert!(in_string || !c.is_whitespace(), "the document is not compact");
        if !in_string && matches!(c, '}' | ']') {
            depth -= 1;
            write!(out, "\n{:1$}", "", depth * 2).unwrap();
        }
        out.push(c);
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            '{' | '[' | ',' if !in_string => {
                depth += usize::from(c != ',');
                write!(out, "\n{:1$}", "", depth * 2).unwrap();
            }
            _ => {}
        }
    }
    out + "\n"
}

#[test]
fn documents_are_the_golden_ones() {
    let plain = [(ACCEPT, "application/json")];
    let files = [
        ("apis.json", "/apis", plain.clone()),
        ("apis.v2.json", "/apis", [(ACCEPT, V2)]),
        ("apis.v2beta1.json", "/apis", [(ACCEPT, V2BETA1)]),
        ("group.json", "/apis/audit.k8s.io", plain.clone()),
        ("resources.v1.json", "/apis/audit.k8s.io/v1", plain.clone()),
        ("resources.v1beta1.json", "/apis/audit.k8s.io/v1beta1", plain.clone()),
        ("resources.v1alpha1.json", "/apis/audit.k8s.io/v1alpha1", plain.clone()),
        ("openapi.v2.json", "/openapi/v2", plain.clone()),
        ("openapi.v3.json", "/openapi/v3", plain.clone()),
        ("openapi.v3.v1.json", "/openapi/v3/apis/audit.k8s.io/v1", plain.clone()),
        ("openapi.v3.v1beta1.json", "/openapi/v3/apis/audit.k8s.io/v1beta1", plain.clone()),
        ("openapi.v3.v1alpha1.json", "/openapi/v3/apis/audit.k8s.io/v1alpha1", plain.clone()),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/discovery/golden");
    let mut differ = Vec::new();
    for (file, url, accept) in files {
        let body = laid_out(get(url, &accept).body());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(folder.join(file), body).unwrap();
        } else if std::fs::read_to_string(folder.join(file)).ok() != Some(body) {
            differ.push(file);
        }
    }
    assert!(differ.is_empty(), "{differ:?} differ: run with UPDATE_GOLDEN=1 and read the diff");
}

#[test]
fn the_layout_of_golden_files_hides_nothing() {
    assert_eq!(laid_out(br#"{"a":["b,{\"",1]}"#), "{\n  \"a\":[\n    \"b,{\\\"\",\n    1\n  ]\n}\n");
    assert_ne!(laid_out(br#"{"a":1,"b":2}"#), laid_out(br#"{"b":2,"a":1}"#));
}

#[test]
fn every_discovery_says_the_same() {
    let aggregated: Value = serde_json::from_slice(get("/apis", &[(ACCEPT, V2)]).body()).unwrap();
    let group = &aggregated["items"][0];
    assert_eq!(group["metadata"]["name"], GROUP);
    for (index, version) in Version::ALL.map(Version::as_str).iter().enumerate() {
        let entry = &group["versions"][index];
        assert_eq!((&entry["version"], &entry["freshness"]), (&(*version).into(), &"Current".into()));
        let legacy = json(&format!("/apis/{GROUP}/{version}"));
        assert_eq!(legacy["groupVersion"], format!("{GROUP}/{version}"));
        let paired = entry["resources"].as_array().unwrap().iter().zip(legacy["resources"].as_array().unwrap());
        assert_eq!(paired.len(), Resource::ALL.len());
        for (new, old) in paired {
            assert_eq!(new["resource"], old["name"]);
            assert_eq!(new["singularResource"], old["singularName"]);
            assert_eq!(new["scope"] == "Namespaced", old["namespaced"] == true);
            assert_eq!(new["responseKind"]["kind"], old["kind"]);
            assert_eq!(new["responseKind"]["version"], *version);
            assert_eq!((&new["verbs"], &old["verbs"]), (&value!(["watch"]), &value!(["watch"])));
        }
    }
    let listed = json("/apis")["groups"][0].clone();
    let mut alone = json("/apis/audit.k8s.io");
    for (field, value) in [("kind", "APIGroup"), ("apiVersion", "v1")] {
        assert_eq!(alone.as_object_mut().unwrap().remove(field).unwrap(), value);
    }
    assert_eq!(listed, alone);
    assert_eq!(listed["preferredVersion"], listed["versions"][0]);
}

/// Calls `visit` on every object in the document.
fn walk(value: &Value, visit: &mut impl FnMut(&Map<String, Value>)) {
    if let Value::Object(fields) = value {
        visit(fields);
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| walk(value, visit)),
        Value::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

fn openapi_documents() -> Vec<Value> {
    let v3 = Version::ALL.map(Version::as_str).map(|version| json(&format!("/openapi/v3/apis/{GROUP}/{version}")));
    v3.into_iter().chain([json("/openapi/v2")]).collect()
}

#[test]
fn every_reference_in_openapi_leads_somewhere() {
    for document in openapi_documents() {
        let mut references = 0;
        walk(&document, &mut |fields| {
            if let Some(reference) = fields.get("$ref") {
                references += 1;
                let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
                assert!(
                    document.get("openapi").is_none() || fields.len() == 1,
                    "3.0 ignores what is beside {reference}"
                );
            }
        });
        assert!(references > 0);
    }
}

#[test]
fn operation_ids_are_unique() {
    let mut ids = Vec::new();
    walk(&json("/openapi/v2"), &mut |fields| ids.extend(fields.get("operationId").cloned()));
    let count = ids.len();
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!((count, ids.len()), (Version::ALL.len() * 6, count));
}

/// The way of `kubectl explain`: path, `get`, kind as an object; then the schema whose list of kinds contains it.
#[test]
fn kubectl_explain_finds_the_schema_of_every_resource() {
    for version in Version::ALL.map(Version::as_str) {
        let document = json(&format!("/openapi/v3/apis/{GROUP}/{version}"));
        for resource in Resource::ALL {
            let path = format!("/apis/{GROUP}/{version}/{}", resource.name());
            let kind = &document["paths"][path]["get"]["x-kubernetes-group-version-kind"];
            assert_eq!(kind["kind"], resource.kind());
            let mut found = document["components"]["schemas"].as_object().unwrap().values().filter(|schema| {
                let kinds = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
                kinds.is_some_and(|kinds| kinds.contains(kind))
            });
            let schema = found.next().unwrap();
            assert!(found.next().is_none());
            assert_eq!(schema["type"], "object");
            if version == "v1" {
                assert_eq!(schema["properties"]["auditID"]["type"], "string");
            } else {
                assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true);
                assert_eq!(schema.get("properties"), None);
            }
        }
    }
}

#[test]
fn every_field_parameter_and_operation_is_described_and_only_watches_are_there() {
    for document in openapi_documents() {
        for (path, item) in document["paths"].as_object().unwrap() {
            assert_eq!(item.as_object().unwrap().keys().collect::<Vec<_>>(), ["get", "parameters"], "{path}");
            assert_eq!(item["get"]["x-kubernetes-action"], "watchlist", "{path}");
            assert_eq!(item["get"].get("deprecated").is_some(), path.contains("/watch/"), "{path}");
            let parameters = item["parameters"].as_array().unwrap();
            let named = |name: &str| parameters.iter().find(|parameter| parameter["name"] == name);
            assert_eq!(named("watch").is_some(), !path.contains("/watch/"), "{path}");
            let namespaces: Vec<_> = parameters.iter().filter(|parameter| parameter["name"] == "namespace").collect();
            let places: Vec<_> = namespaces.iter().map(|parameter| parameter["in"].as_str().unwrap()).collect();
            let place = match path {
                path if path.contains("{namespace}") => vec!["path"],
                path if path.ends_with("/events") => vec!["query"],
                _ => vec![],
            };
            assert_eq!(places, place, "{path}");
            assert!(parameters.iter().all(|parameter| parameter["description"].as_str().is_some()), "{path}");
        }
        walk(&document, &mut |fields| {
            if let Some(properties) = fields.get("properties") {
                for (name, property) in properties.as_object().unwrap() {
                    assert!(property["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}");
                }
            }
        });
    }
}

#[test]
fn the_parameters_of_a_watch_that_are_described_are_those_that_it_knows() {
    let document = json("/openapi/v3/apis/audit.k8s.io/v1");
    for (path, resource) in [("events", Resource::Events), ("namespacedevents", Resource::NamespacedEvents)] {
        let parameters = document["paths"][format!("/apis/audit.k8s.io/v1/{path}")]["parameters"].as_array().unwrap();
        let described = |name: &str| parameters.iter().any(|parameter| parameter["name"] == name);
        let known = |name: &str| {
            let options = WatchOptions::parse(&format!("{name}="), resource);
            !options.is_ok_and(|options| options.unknown.iter().any(|unknown| unknown == name))
        };
        for parameter in parameters {
            let name = parameter["name"].as_str().unwrap();
            assert!(known(name), "{path} {name}");
        }
        assert_eq!((described("namespace"), known("namespace")), (!resource.namespaced(), !resource.namespaced()));
        for name in ["verbs", "username", "group", "apiGroup", "resource", "stage", "labelSelector", "tailLines"] {
            assert!(described(name), "{path} {name}");
        }
    }
}

#[test]
fn a_namespaced_event_promises_no_field_that_an_event_has_not() {
    let document = json("/openapi/v3/apis/audit.k8s.io/v1");
    let schema = |name: &str| document["components"]["schemas"][format!("dev.audit-stream.audit.v1.{name}")].clone();
    let (event, namespaced) = (schema("Event"), schema("NamespacedEvent"));
    assert_eq!(event["required"], namespaced["required"]);
    for name in namespaced["properties"].as_object().unwrap().keys() {
        assert!(event["properties"].get(name).is_some(), "{name}");
    }
    for name in event["required"].as_array().unwrap() {
        assert!(event["properties"].get(name.as_str().unwrap()).is_some(), "{name}");
    }
    let annotations = schema("ObjectMeta")["properties"]["annotations"]["description"].to_string();
    assert!(annotations.contains("audit-stream.dev/gap") && annotations.contains("audit-stream.dev/withheld"));
}

#[test]
fn version_has_upstreams_keys_all_of_them_strings() {
    let response = get("/version", &[]);
    let info: Value = serde_json::from_slice(response.body()).unwrap();
    let keys =
        ["buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "major", "minor", "platform"];
    let mut found: Vec<_> = info.as_object().unwrap().keys().collect();
    found.sort();
    assert_eq!(found, keys);
    assert!(info.as_object().unwrap().values().all(Value::is_string));
    assert_eq!(info["gitVersion"], concat!("v", env!("CARGO_PKG_VERSION")));
    assert!(info["platform"].as_str().unwrap().contains('/'));
    assert!(response.body().contains(&b'\n'), "upstream indents it");
}
