//! What users may do: a small RBAC that denies by default, and the sentences that tests state it in.

use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The rules of one reviewer.
#[derive(Default)]
pub(super) struct Rules {
    allowed: Mutex<Vec<Rule>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Rule {
    subject: Subject,
    verb: String,
    on: On,
}

#[derive(Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Clone, PartialEq, Eq)]
enum On {
    // No namespace stands for a ClusterRoleBinding: every namespace, and the cluster scope.
    Resource { group: String, resource: String, subresource: String, namespace: Option<String> },
    // A trailing asterisk matches every path that begins so.
    Path(String),
}

// The paths of upstream's ClusterRoles `system:discovery` and `system:public-info-viewer`.
const DISCOVERY: &[&str] = &[
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const PUBLIC_INFO: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// A sentence being said: whom it is about.
#[must_use = "the sentence has to end in a namespace, cluster_wide() or on_path()"]
pub struct Grant<'a> {
    rules: &'a Rules,
    subject: Subject,
    action: Action,
}

#[derive(Clone, Copy)]
enum Action {
    Allow,
    Revoke,
}

/// A sentence being said: whom it is about, and the verb.
#[must_use = "the sentence has to end in a namespace, cluster_wide() or on_path()"]
pub struct GrantVerb<'a> {
    grant: Grant<'a>,
    verb: String,
}

/// A sentence being said: only where is missing.
#[must_use = "the sentence has to end in a namespace or cluster_wide()"]
pub struct GrantOn<'a> {
    verb: GrantVerb<'a>,
    group: String,
    resource: String,
    subresource: String,
}

impl Rules {
    pub(super) fn allow_user(&self, name: &str) -> Grant<'_> {
        Grant { rules: self, subject: Subject::User(name.to_owned()), action: Action::Allow }
    }

    pub(super) fn allow_group(&self, name: &str) -> Grant<'_> {
        Grant { rules: self, subject: Subject::Group(name.to_owned()), action: Action::Allow }
    }

    pub(super) fn revoke_user(&self, name: &str) -> Grant<'_> {
        Grant { action: Action::Revoke, ..self.allow_user(name) }
    }

    pub(super) fn revoke_group(&self, name: &str) -> Grant<'_> {
        Grant { action: Action::Revoke, ..self.allow_group(name) }
    }

    /// Whether a `SubjectAccessReview` with this `spec` is to be answered with yes.
    pub(super) fn allow(&self, spec: &Value) -> bool {
        let user = spec["user"].as_str().unwrap_or_default();
        let groups = spec["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
        let groups = groups.iter().filter_map(Value::as_str).collect::<Vec<_>>();
        if groups.contains(&"system:masters") || is_public(spec, &groups) {
            return true;
        }
        self.lock().iter().any(|rule| rule.is_about(user, &groups) && rule.covers(spec))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Grant<'a> {
    /// The verb, or `*`.
    pub fn to(self, verb: &str) -> GrantVerb<'a> {
        GrantVerb { grant: self, verb: verb.to_owned() }
    }

    fn conclude(self, verb: String, on: On) {
        let Self { rules, subject, action } = self;
        let rule = Rule { subject, verb, on };
        let mut allowed = rules.lock();
        match action {
            Action::Allow => allowed.push(rule),
            Action::Revoke => allowed.retain(|existing| *existing != rule),
        }
    }
}

impl<'a> GrantVerb<'a> {
    /// The resource as `RESOURCE[.GROUP][/SUBRESOURCE]`, or `*` for every resource of every group. `events` and
    /// `namespacedevents` without a group are those of `audit.k8s.io`; of other resources, no group is the core group.
    pub fn on(self, resource: &str) -> GrantOn<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (resource, group) = match (resource, resource.split_once('.')) {
            (_, Some((resource, group))) => (resource, group),
            ("events" | "namespacedevents", None) => (resource, "audit.k8s.io"),
            ("*", None) => ("*", "*"),
            (_, None) => (resource, ""),
        };
        let (group, resource, subresource) = (group.to_owned(), resource.to_owned(), subresource.to_owned());
        GrantOn { verb: self, group, resource, subresource }
    }

    /// A non-resource path; with `*` at its end, all that begin so.
    pub fn on_path(self, path: &str) {
        self.grant.conclude(self.verb, On::Path(path.to_owned()));
    }
}

impl GrantOn<'_> {
    /// The resource is of this API group; the empty one is the core group.
    pub fn in_group(mut self, group: &str) -> Self {
        group.clone_into(&mut self.group);
        self
    }

    /// In one namespace, as a `RoleBinding`.
    pub fn in_namespace(self, namespace: &str) {
        self.conclude(Some(namespace.to_owned()));
    }

    /// In every namespace and at the cluster scope, as a `ClusterRoleBinding`.
    pub fn cluster_wide(self) {
        self.conclude(None);
    }

    fn conclude(self, namespace: Option<String>) {
        let Self { verb: GrantVerb { grant, verb }, group, resource, subresource } = self;
        grant.conclude(verb, On::Resource { group, resource, subresource, namespace });
    }
}

impl Rule {
    fn is_about(&self, user: &str, groups: &[&str]) -> bool {
        match &self.subject {
            Subject::User(name) => name == user,
            Subject::Group(name) => groups.contains(&name.as_str()),
        }
    }

    fn covers(&self, spec: &Value) -> bool {
        let (resource_attributes, path_attributes) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let text = |attributes: &Value, field: &str| attributes[field].as_str().unwrap_or_default().to_owned();
        let fits = |rule: &str, asked: &str| rule == "*" || rule == asked;
        match &self.on {
            On::Path(path) => {
                !path_attributes.is_null()
                    && fits(&self.verb, &text(path_attributes, "verb"))
                    && path_matches(path, &text(path_attributes, "path"))
            }
            On::Resource { group, resource, subresource, namespace } => {
                let asked = |field| text(resource_attributes, field);
                !resource_attributes.is_null()
                    && fits(&self.verb, &asked("verb"))
                    && fits(group, &asked("group"))
                    && (resource == "*" || (*resource == asked("resource") && *subresource == asked("subresource")))
                    && namespace.as_ref().is_none_or(|namespace| *namespace == asked("namespace"))
            }
        }
    }
}

fn is_public(spec: &Value, groups: &[&str]) -> bool {
    let attributes = &spec["nonResourceAttributes"];
    let (Some(path), Some("get")) = (attributes["path"].as_str(), attributes["verb"].as_str()) else { return false };
    let paths = match groups {
        groups if groups.contains(&"system:authenticated") => DISCOVERY,
        groups if groups.contains(&"system:unauthenticated") => PUBLIC_INFO,
        _ => return false,
    };
    paths.iter().any(|pattern| path_matches(pattern, path))
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == pattern,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watch(user: &str, resource: &str, namespace: &str) -> Value {
        json!({"user": user, "groups": ["system:authenticated"], "resourceAttributes":
            {"verb": "watch", "group": "audit.k8s.io", "version": "v1", "resource": resource, "namespace": namespace}})
    }

    #[test]
    fn nothing_is_allowed_that_was_not_stated() {
        let rules = Rules::default();
        assert!(!rules.allow(&watch("alice", "namespacedevents", "shop")));
        rules.allow_user("alice").to("watch").on("namespacedevents").in_namespace("shop");
        assert!(rules.allow(&watch("alice", "namespacedevents", "shop")));
        assert!(!rules.allow(&watch("bob", "namespacedevents", "shop")));
        assert!(!rules.allow(&watch("alice", "namespacedevents", "bank")));
        assert!(!rules.allow(&watch("alice", "namespacedevents", "")));
        assert!(!rules.allow(&watch("alice", "events", "shop")));
        rules.revoke_user("alice").to("watch").on("namespacedevents").in_namespace("shop");
        assert!(!rules.allow(&watch("alice", "namespacedevents", "shop")));
    }

    #[test]
    fn cluster_wide_covers_every_namespace_and_none() {
        let rules = Rules::default();
        rules.allow_group("auditors").to("watch").on("*").cluster_wide();
        let mut spec = watch("carol", "events", "");
        assert!(!rules.allow(&spec));
        spec["groups"] = json!(["auditors"]);
        assert!(rules.allow(&spec));
        spec["resourceAttributes"]["namespace"] = json!("shop");
        assert!(rules.allow(&spec));
        spec["resourceAttributes"]["verb"] = json!("get");
        assert!(!rules.allow(&spec));
        rules.revoke_group("auditors").to("watch").on("*").cluster_wide();
        spec["resourceAttributes"]["verb"] = json!("watch");
        assert!(!rules.allow(&spec));
    }

    #[test]
    fn resources_are_told_apart_by_group_and_subresource() {
        let rules = Rules::default();
        rules.allow_user("alice").to("get").on("deployments.apps/scale").in_namespace("shop");
        rules.allow_user("alice").to("get").on("events").in_group("").in_namespace("shop");
        let get = |group: &str, resource: &str, subresource: &str| {
            rules.allow(&json!({"user": "alice", "resourceAttributes": {"verb": "get", "group": group,
                "resource": resource, "subresource": subresource, "namespace": "shop"}}))
        };
        assert!(get("apps", "deployments", "scale"));
        assert!(!get("apps", "deployments", ""));
        assert!(!get("extensions", "deployments", "scale"));
        assert!(get("", "events", ""));
        assert!(!get("audit.k8s.io", "events", ""));
    }

    #[test]
    fn discovery_is_for_the_authenticated_and_health_for_all() {
        let rules = Rules::default();
        let get = |group: &str, path: &str| {
            rules
                .allow(&json!({"user": "u", "groups": [group], "nonResourceAttributes": {"verb": "get", "path": path}}))
        };
        assert!(get("system:authenticated", "/apis/audit.k8s.io/v1"));
        assert!(get("system:unauthenticated", "/readyz"));
        assert!(!get("system:unauthenticated", "/apis"));
        assert!(!get("other", "/apis"));
        assert!(!get("system:authenticated", "/metrics"));
        assert!(get("system:masters", "/metrics"));
        rules.allow_user("u").to("get").on_path("/metrics");
        assert!(get("system:authenticated", "/metrics"));
    }
}
