//! The bodies of a request and its answer, as recorded at level `RequestResponse`.

use serde_json::value::RawValue;

/// What a request is about, for writing the objects in its bodies.
pub(super) struct Subject<'a> {
    pub(super) resource: &'a str,
    pub(super) api_group: &'a str,
    pub(super) api_version: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl Subject<'_> {
    /// What the client sends with `verb`, if it sends anything.
    pub(super) fn request(&self, verb: &str) -> Option<Box<RawValue>> {
        match verb {
            "create" | "update" => Some(raw(&self.object(false))),
            "patch" => Some(raw(r#"{"metadata":{"labels":{"patched":"yes"}}}"#)),
            "delete" | "deletecollection" => {
                Some(raw(r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#))
            }
            _ => None,
        }
    }

    /// What kube-apiserver answers to `verb`. The objects of a watch are not recorded.
    pub(super) fn response(&self, verb: &str) -> Option<Box<RawValue>> {
        match verb {
            "create" | "update" | "patch" | "get" => Some(raw(&self.object(true))),
            "delete" => Some(raw(&format!(
                r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Success","details":{{"name":{},"kind":{}}}}}"#,
                quoted(self.name),
                quoted(self.resource)
            ))),
            "list" => Some(raw(&format!(
                r#"{{"kind":{},"apiVersion":{},"metadata":{{"resourceVersion":"1000"}},"items":[{}]}}"#,
                quoted(&format!("{}List", kind(self.resource))),
                quoted(&self.group_version()),
                self.object(true)
            ))),
            _ => None,
        }
    }

    fn object(&self, stored: bool) -> String {
        let namespace = match self.namespace {
            "" => String::new(),
            namespace => format!(r#","namespace":{}"#, quoted(namespace)),
        };
        let server_made = match stored {
            true => {
                r#","uid":"6f7c0b5e-3d0f-4f1c-9f43-0c1a2b3c4d5e","resourceVersion":"1000","creationTimestamp":"2026-11-20T15:00:00Z""#
            }
            false => "",
        };
        let content = match self.resource {
            // base64 of "secret": what a leak test looks for.
            "secrets" => r#","data":{"password":"c2VjcmV0"},"type":"Opaque""#,
            "configmaps" => r#","data":{"key":"value"}"#,
            _ => "",
        };
        let (kind, version, name) =
            (quoted(kind(self.resource).as_str()), quoted(&self.group_version()), quoted(self.name));
        format!(
            r#"{{"kind":{kind},"apiVersion":{version},"metadata":{{"name":{name}{namespace}{server_made}}}{content}}}"#
        )
    }

    fn group_version(&self) -> String {
        match self.api_group {
            "" => self.api_version.to_owned(),
            group => format!("{group}/{}", self.api_version),
        }
    }
}

/// The kind of a resource, for the resources that tests speak of; a guess for others.
fn kind(resource: &str) -> String {
    let known = match resource {
        "configmaps" => "ConfigMap",
        "daemonsets" => "DaemonSet",
        "networkpolicies" => "NetworkPolicy",
        "replicasets" => "ReplicaSet",
        "rolebindings" => "RoleBinding",
        "serviceaccounts" => "ServiceAccount",
        "statefulsets" => "StatefulSet",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let singular = resource.strip_suffix('s').unwrap_or(resource);
    let mut characters = singular.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

/// # Panics
/// If `json` is not JSON: the text of a test is wrong then.
pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("a body is JSON")
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string serializes")
}
