//! Who there is and what they do: the same on every plane.

use serde_json::Value;

/// May watch what happens in [`SHOP`], and nothing else.
pub(crate) const ALICE: &str = "alice";
/// May edit ConfigMaps and Deployments in both namespaces.
pub(crate) const BOB: &str = "bob";
/// May do nothing.
pub(crate) const MALLORY: &str = "mallory";
/// May do everything.
pub(crate) const ADMIN: &str = "admin";
/// The namespace that this is about.
pub(crate) const SHOP: &str = "shop";
/// The namespace that Alice must not see.
pub(crate) const BANK: &str = "bank";
/// Everything that happens in the cluster.
pub(crate) const CLUSTER_PATH: &str = "/apis/audit.k8s.io/v1/events?watch=true";

/// Something that somebody does to an object.
pub(crate) struct Deed {
    pub(crate) who: &'static str,
    pub(crate) namespace: &'static str,
    /// What they type behind `kubectl -n NAMESPACE`.
    pub(crate) command: &'static str,
    /// What it is in the API, and so in an audit event.
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) name: &'static str,
    pub(crate) allowed: bool,
}

/// Ends as it began, so that it can be played again.
pub(crate) const ROUND: [Deed; 8] = [
    bob(SHOP, "create configmap prices --from-literal=apple=1", "create", "configmaps", "prices"),
    bob(BANK, "create configmap accounts", "create", "configmaps", "accounts"),
    bob(SHOP, "label configmap prices sale=yes", "patch", "configmaps", "prices"),
    bob(SHOP, "create deployment web --image=web", "create", "deployments", "web"),
    Deed { who: MALLORY, allowed: false, ..bob(SHOP, "delete configmap prices", "delete", "configmaps", "prices") },
    bob(BANK, "delete configmap accounts --wait=false", "delete", "configmaps", "accounts"),
    bob(SHOP, "delete deployment web --wait=false", "delete", "deployments", "web"),
    bob(SHOP, "delete configmap prices --wait=false", "delete", "configmaps", "prices"),
];

/// What a check does last.
pub(crate) const END: Deed = bob(SHOP, "create configmap end", "create", "configmaps", "end");

const fn bob(
    namespace: &'static str,
    command: &'static str,
    verb: &'static str,
    resource: &'static str,
    name: &'static str,
) -> Deed {
    Deed { who: BOB, namespace, command, verb, resource, name, allowed: true }
}

/// Everything that happens in a namespace.
pub(crate) fn namespace_path(namespace: &str) -> String {
    format!("/apis/audit.k8s.io/v1/namespaces/{namespace}/namespacedevents?watch=true")
}

/// What the story says about a watch.
pub(crate) fn watch_line(who: &str, path: &str) -> String {
    format!("# {who}: kubectl get --raw '{path}'")
}

impl Deed {
    /// What the story says about it.
    pub(crate) fn line(&self) -> String {
        let Self { who, namespace, command, .. } = self;
        let remark = match (*namespace, self.allowed) {
            (BANK, _) => "  (not Alice's to see)",
            (_, false) => "  (403, and Alice sees that it was tried)",
            _ => "",
        };
        format!("# {who}: kubectl -n {namespace} {command}{remark}")
    }

    /// Whether `event` is what an audit log says about it.
    pub(crate) fn is(&self, event: &Value) -> bool {
        let object = &event["objectRef"];
        event["stage"] == "ResponseComplete"
            && event["user"]["username"] == self.who
            && event["verb"] == self.verb
            && object["namespace"] == self.namespace
            && object["resource"] == self.resource
            && object["name"] == self.name
            && (event["responseStatus"]["code"] != 403) == self.allowed
    }
}

/// An event in a few words, for a message.
pub(crate) fn in_short(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let (user, verb, object) = (text(&event["user"]["username"]), text(&event["verb"]), &event["objectRef"]);
    let (namespace, resource, name) = (text(&object["namespace"]), text(&object["resource"]), text(&object["name"]));
    format!("{user} {verb} {namespace}/{resource}/{name} {}", event["responseStatus"]["code"])
}
