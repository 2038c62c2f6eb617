//! What is served: the group, its versions, its resources, and where they are.

/// The API group.
pub const GROUP: &str = "audit.k8s.io";

/// A collection: what a path names, what is authorized and what is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Decides `apiVersion`.
    pub version: Version,
    /// Decides the kind.
    pub resource: Resource,
    /// `None`: of the cluster, or of all namespaces.
    pub namespace: Option<String>,
}

/// The versions of the group. They differ in `apiVersion` only, nothing is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Preferred.
    V1,
    /// The proposal's version of `events`.
    V1beta1,
    /// The proposal's version of `namespacedevents`.
    V1alpha1,
}

impl Version {
    /// In order of preference, which is also the order of discovery.
    pub const ALL: [Self; 3] = [Self::V1, Self::V1beta1, Self::V1alpha1];

    /// As it stands in a path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1beta1 => "v1beta1",
            Self::V1alpha1 => "v1alpha1",
        }
    }

    /// The version of a path segment.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == name)
    }
}

/// The pseudo-resources: WATCH only, nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Every audit event of the cluster, at cluster scope.
    Events,
    /// The audit events of a namespace.
    NamespacedEvents,
}

impl Resource {
    /// In the order of discovery.
    pub const ALL: [Self; 2] = [Self::Events, Self::NamespacedEvents];

    /// The plural name, as it stands in a path and in RBAC rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::NamespacedEvents => "namespacedevents",
        }
    }

    /// The singular name.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Events => "event",
            Self::NamespacedEvents => "namespacedevent",
        }
    }

    /// The kind of its objects and bookmarks.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Events => "Event",
            Self::NamespacedEvents => "NamespacedEvent",
        }
    }

    /// Whether its collections lie below `/namespaces/{namespace}/`.
    pub fn namespaced(self) -> bool {
        self == Self::NamespacedEvents
    }

    /// The resource of a path segment.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }
}
