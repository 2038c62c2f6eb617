//! Attribution: deciding which namespace an audit event belongs to.
//!
//! `objectRef` alone proves nothing: kube-apiserver completes it from the request's body before it validates anything
//! (`LogRequestObject` in `k8s.io/apiserver/pkg/audit/request.go`), so whoever may create a `SelfSubjectAccessReview`
//! can write any namespace there. The path cannot be forged, because the request was authorized by it. So the path is
//! read as upstream's `RequestInfo` reads it (`request_info`), and `objectRef` has to agree.
//! This is not authorization: who may see the namespace's events is the business of `authz` and `view`.

use std::borrow::Cow;

use audit_stream_api::audit::Event;

use crate::request_info::{RequestPath, ResourcePath, decoded, has_whole_escapes, is_label, split_uri};

/// Where an event belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution<'a> {
    /// In this namespace, which is a DNS-1123 label. Its stream and the cluster's show the event.
    Namespace(&'a str),
    /// In none: a non-resource URL, a list across namespaces, a cluster-scoped object. The cluster's stream alone.
    ClusterScoped,
    /// It cannot be told, or somebody tried to mislead: the cluster's stream alone, and counted.
    Disputed(Dispute),
}

/// Why an event is kept from every namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dispute {
    /// `requestURI` does not start with a path. kube-apiserver writes that for a URI like `http:a/b`, which it serves
    /// to nobody, and never the absolute form.
    NotAPath,
    /// The path has a broken percent-escape.
    Undecodable,
    /// The path is in a namespace, and there is no `objectRef` to confirm it.
    ObjectRefAbsent,
    /// `objectRef` speaks of another resource or API group than the path.
    ResourceDiffers,
    /// `objectRef` has a namespace and the path has none. Either forged, or harmless: charts like to write a namespace
    /// into cluster-scoped objects too, and kube-apiserver clears it only later.
    NamespaceNotInPath,
    /// `objectRef` has another namespace than the path, or none.
    NamespaceDiffers,
    /// Path and `objectRef` agree on something that no namespace can be called.
    NotALabel,
}

impl Dispute {
    /// Every reason, so that each metric series exists from the start.
    pub const ALL: [Self; 7] = [
        Self::NotAPath,
        Self::Undecodable,
        Self::ObjectRefAbsent,
        Self::ResourceDiffers,
        Self::NamespaceNotInPath,
        Self::NamespaceDiffers,
        Self::NotALabel,
    ];

    /// The value of the metric's `reason` label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAPath => "not_a_path",
            Self::Undecodable => "undecodable",
            Self::ObjectRefAbsent => "objectref_absent",
            Self::ResourceDiffers => "resource_differs",
            Self::NamespaceNotInPath => "namespace_not_in_path",
            Self::NamespaceDiffers => "namespace_differs",
            Self::NotALabel => "not_a_label",
        }
    }
}

/// Decides where `event` belongs. Allocates only if the path has percent-escapes.
///
/// Rejected requests need no rule of their own. A 403 comes from inside the audit filter, and a 401 is audited by
/// `WithFailedAuthenticationAudit`; both fill `objectRef` from the path before any body is read, as do timeouts and
/// 429s. So a path without `objectRef` is nothing that kube-apiserver writes, whatever its code, and stays disputed.
#[must_use]
pub fn attribute<'a>(event: &'a Event<'_>) -> Attribution<'a> {
    decide(event).unwrap_or_else(Attribution::Disputed)
}

/// Whether the event says that its namespace has just been created.
///
/// By a CREATE, or by the PATCH of a server-side apply, which is the other verb that answers 201 there. Meant for events that
/// are attributed to a namespace. Older events of that name were another's, so in doubt the answer is yes: a dry run is what
/// kube-apiserver has surely taken for one.
#[must_use]
pub fn creates_namespace(event: &Event<'_>) -> bool {
    if event.stage != "ResponseComplete" || event.response_code != Some(201) {
        return false;
    }
    let Ok(path) = decoded_path(&event.request_uri) else { return false };
    let target = Target::of(&path);
    let on_itself = match target.kind {
        Kind::Namespaces => &*event.verb == "create",
        Kind::Namespace => &*event.verb == "patch",
        Kind::Namesake | Kind::Other => false,
    };
    on_itself && !is_dry_run(&event.request_uri)
}

/// Whether the query has a `dryRun` that is not empty, read as Go's `url.ParseQuery` reads it: what has a semicolon or a
/// broken escape in it is passed over, and so is a query of more parameters than newer versions of Go read at all.
fn is_dry_run(uri: &str) -> bool {
    let (_, Some(query)) = split_uri(uri) else { return false };
    let taken = |pair: &&str| !pair.contains(';') && has_whole_escapes(pair);
    query.split('&').count() <= MAX_PARAMETERS
        && query.split('&').filter(taken).any(|pair| {
            form_urlencoded::parse(pair.as_bytes()).any(|(key, value)| key == "dryRun" && !value.is_empty())
        })
}

/// Go's `urlmaxqueryparams`.
const MAX_PARAMETERS: usize = 10_000;

fn decide<'a>(event: &'a Event<'_>) -> Result<Attribution<'a>, Dispute> {
    let path = decoded_path(&event.request_uri)?;
    let target = Target::of(&path);
    let Some(reference) = &event.object_ref else {
        let unconfirmed = !target.namespace.is_empty();
        return if unconfirmed { Err(Dispute::ObjectRefAbsent) } else { Ok(Attribution::ClusterScoped) };
    };
    // Absent and empty are the same: upstream's fields are `omitempty`.
    let [resource, group, namespace, name] =
        [&reference.resource, &reference.api_group, &reference.namespace, &reference.name].map(text);
    // Always present beside a path that has them; where they are not, there is nothing to compare.
    if (!resource.is_empty() && resource != target.resource) || (!group.is_empty() && group != target.group) {
        return Err(Dispute::ResourceDiffers);
    }
    // A namespace in the body is ignored here, because kube-apiserver clears it
    // (`EnsureObjectNamespaceMatchesRequestNamespace`) and serves the request. Were it a dispute, it would hide the
    // CREATE, and with it the floor of the new owner's replay.
    if target.kind == Kind::Namespaces && &*event.verb == "create" && resource == "namespaces" && !name.is_empty() {
        return in_namespace(name);
    }
    match (target.namespace, namespace) {
        ("", "") => Ok(Attribution::ClusterScoped),
        ("", _) => Err(Dispute::NamespaceNotInPath),
        (path, claim) if path != claim => Err(Dispute::NamespaceDiffers),
        _ if target.kind == Kind::Namesake => Ok(Attribution::ClusterScoped),
        _ => in_namespace(namespace),
    }
}

fn text<'a>(field: &'a Option<Cow<'_, str>>) -> &'a str {
    field.as_deref().unwrap_or_default()
}

fn in_namespace(name: &str) -> Result<Attribution<'_>, Dispute> {
    if is_label(name) { Ok(Attribution::Namespace(name)) } else { Err(Dispute::NotALabel) }
}

/// The path of `uri`, percent-decoded exactly once: kube-apiserver writes `URL.RequestURI()` and decides by `URL.Path`, and the
/// one always decodes to the other.
fn decoded_path(uri: &str) -> Result<Cow<'_, str>, Dispute> {
    let (path, _query) = split_uri(uri);
    if !path.starts_with('/') && path != "*" {
        return Err(Dispute::NotAPath);
    }
    decoded(path).ok_or(Dispute::Undecodable)
}

/// What a path says about where its request belongs. Empty means none, as upstream.
#[derive(Default)]
struct Target<'p> {
    kind: Kind,
    group: &'p str,
    namespace: &'p str,
    resource: &'p str,
}

#[derive(Default, PartialEq, Eq)]
enum Kind {
    /// Exactly `/api/v1/namespaces`, the one path that does not say which namespace its CREATE is about; the body does.
    /// Nobody can claim a CREATE there that they do not attempt. `objectRef` has no name before the body is read
    /// (`RequestReceived`, 401, 403) nor with `generateName`, resolved later (`registry/generic/registry/store.go`).
    Namespaces,
    /// Exactly `/api/v1/namespaces/{name}`: a Namespace object itself.
    Namespace,
    /// `namespaces/{name}` of a group other than core: an object that is not a Namespace and lies in none, although
    /// upstream calls its name its namespace. Service buses in clouds are modelled like that.
    Namesake,
    #[default]
    Other,
}

impl<'p> Target<'p> {
    /// Behind `{resource}/{name}/{subresource}` upstream interprets nothing, so neither do we: there begins the path
    /// that `proxy` hands on, which must not take the request out of its namespace's sight.
    fn of(path: &'p str) -> Self {
        let RequestPath::Resource(path) = RequestPath::of(path) else { return Self::default() };
        let ResourcePath { namespace, resource, .. } = path;
        Self { kind: Kind::of(&path), group: path.group.unwrap_or_default(), namespace, resource }
    }
}

impl Kind {
    fn of(path: &ResourcePath<'_>) -> Self {
        if path.resource != "namespaces" || path.inside {
            return Self::Other;
        }
        match (path.group, path.version, path.prefix, path.depth) {
            (None, "v1", None, 1) => Self::Namespaces,
            (None, "v1", None, 2) => Self::Namespace,
            (None, ..) => Self::Other,
            (Some(_), ..) => Self::Namesake,
        }
    }
}

#[cfg(test)]
mod tests;
