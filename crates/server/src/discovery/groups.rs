//! Discovery: which group, versions, resources and verbs are here.
//!
//! The types are ours rather than k8s-openapi's or kube's, because those leave out `kind` and `apiVersion` of aggregated
//! discovery, and because golden bytes must not change with a dependency.
//! Sources: k8s.io/apimachinery `pkg/apis/meta/v1/types.go`, k8s.io/api `apidiscovery/v2/types.go`.

use audit_stream_api::{GROUP, Resource, Version};
use serde::Serialize;

use crate::negotiation::Target;

/// The group and kind of an aggregated discovery document.
const DISCOVERY: &str = "apidiscovery.k8s.io";
const DISCOVERY_KIND: &str = "APIGroupDiscoveryList";

/// The whole point of this API: nothing can be listed, read or written. kubectl hides resources without verbs; garbage
/// collector, quota and namespace deletion pass by resources without `list` and `delete`.
const VERBS: [&str; 1] = ["watch"];

/// What a clause of `Accept` names to get aggregated discovery.
pub(super) fn discovery_target(version: &str) -> Target<'_> {
    Target { group: DISCOVERY, version, kind: DISCOVERY_KIND }
}

/// The content type by which kube-aggregator and client-go recognise aggregated discovery.
pub(super) fn discovery_content_type(version: &str) -> String {
    format!("application/json;g={DISCOVERY};v={version};as={DISCOVERY_KIND}")
}

#[derive(Serialize)]
pub(super) struct APIGroupList {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    groups: [Group; 1],
}

/// The answer to `/apis` for those who do not ask for aggregated discovery.
pub(super) fn list() -> APIGroupList {
    APIGroupList { kind: "APIGroupList", api_version: "v1", groups: [group_without_kind()] }
}

#[derive(Serialize)]
pub(super) struct APIGroup {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    #[serde(flatten)]
    group: Group,
}

/// The answer to `/apis/audit.k8s.io`.
pub(super) fn group() -> APIGroup {
    APIGroup { kind: "APIGroup", api_version: "v1", group: group_without_kind() }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: &'static str,
    versions: [GroupVersion; 3],
    preferred_version: GroupVersion,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
    version: &'static str,
}

fn group_without_kind() -> Group {
    let group_version = |version: Version| GroupVersion {
        group_version: format!("{GROUP}/{}", version.as_str()),
        version: version.as_str(),
    };
    let [preferred, ..] = Version::ALL;
    Group { name: GROUP, versions: Version::ALL.map(group_version), preferred_version: group_version(preferred) }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct APIResourceList {
    kind: &'static str,
    api_version: &'static str,
    group_version: String,
    resources: [APIResource; 2],
}

/// Every field is mandatory in upstream's type.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct APIResource {
    name: &'static str,
    singular_name: &'static str,
    namespaced: bool,
    kind: &'static str,
    verbs: [&'static str; 1],
}

/// The answer to `/apis/audit.k8s.io/{version}`.
pub(super) fn resources(version: Version) -> APIResourceList {
    let resources = Resource::ALL.map(|resource| APIResource {
        name: resource.name(),
        singular_name: resource.singular(),
        namespaced: resource.namespaced(),
        kind: resource.kind(),
        verbs: VERBS,
    });
    APIResourceList {
        kind: "APIResourceList",
        api_version: "v1",
        group_version: format!("{GROUP}/{}", version.as_str()),
        resources,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct APIGroupDiscoveryList {
    kind: &'static str,
    api_version: String,
    metadata: Empty,
    items: [APIGroupDiscovery; 1],
}

#[derive(Serialize)]
struct APIGroupDiscovery {
    metadata: Name,
    versions: [APIVersionDiscovery; 3],
}

#[derive(Serialize)]
struct APIVersionDiscovery {
    version: &'static str,
    resources: [APIResourceDiscovery; 2],
    freshness: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct APIResourceDiscovery {
    resource: &'static str,
    /// Optional upstream, but client-go 0.26.0 to 0.26.3 panics without it.
    response_kind: Kind,
    scope: &'static str,
    singular_resource: &'static str,
    verbs: [&'static str; 1],
}

#[derive(Serialize)]
struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
}

#[derive(Serialize)]
struct Name {
    name: &'static str,
}

#[derive(Serialize)]
struct Empty {}

/// Aggregated discovery in a version of its own group; `v2` and `v2beta1` differ in nothing else.
pub(super) fn discovery(version: &str) -> APIGroupDiscoveryList {
    APIGroupDiscoveryList {
        kind: DISCOVERY_KIND,
        api_version: format!("{DISCOVERY}/{version}"),
        metadata: Empty {},
        items: [APIGroupDiscovery { metadata: Name { name: GROUP }, versions: Version::ALL.map(version_discovery) }],
    }
}

fn version_discovery(version: Version) -> APIVersionDiscovery {
    let resources = Resource::ALL.map(|resource| APIResourceDiscovery {
        resource: resource.name(),
        response_kind: Kind { group: GROUP, version: version.as_str(), kind: resource.kind() },
        scope: if resource.namespaced() { "Namespaced" } else { "Cluster" },
        singular_resource: resource.singular(),
        verbs: VERBS,
    });
    APIVersionDiscovery { version: version.as_str(), resources, freshness: "Current" }
}
