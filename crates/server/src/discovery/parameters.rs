//! The parameters of a watch, as OpenAPI describes them.
//!
//! Only their names, types and meaning: they are parsed in `audit_stream_api::query`, and a test sees to it that nothing is
//! described here that is unknown there.

/// A parameter of the query.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) text: &'static str,
}

/// What a parameter's value looks like.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Boolean,
    Integer,
    Text,
    /// Texts, each as a parameter of its own.
    Texts,
}

/// What makes a `GET` of a collection a watch. The paths below `/watch/` are one without it.
pub(super) const WATCH: Parameter = Parameter {
    name: "watch",
    shape: Shape::Boolean,
    text: "Must be true: the stream of events is all there is. A list is answered with 405.",
};

/// The parameters of both resources.
pub(super) const EVERY_WATCH: [Parameter; 15] = [
    Parameter {
        name: "allowWatchBookmarks",
        shape: Shape::Boolean,
        text: "Send a BOOKMARK now and then, with the position served so far. Gaps are announced there.",
    },
    Parameter {
        name: "apiGroup",
        shape: Shape::Texts,
        text: "Only requests for resources of one of these API groups. The core group is <core>.",
    },
    Parameter {
        name: "fieldSelector",
        shape: Shape::Text,
        text: "Conditions that must all hold, such as verb=delete,objectRef.resource!=leases. A field that the reader may \
               not see cannot be selected on.",
    },
    Parameter { name: "group", shape: Shape::Texts, text: "Only requests of users who are in all of these groups." },
    Parameter {
        name: "labelSelector",
        shape: Shape::Text,
        text: "Audit events have no labels: a selector that asks for one selects nothing, and one that excludes some \
               selects everything.",
    },
    Parameter {
        name: "resource",
        shape: Shape::Texts,
        text: "Only requests for one of these resources, by their plural names, such as pods.",
    },
    Parameter {
        name: "resourceVersion",
        shape: Shape::Text,
        text: "Start just after this position, as found in an event or a bookmark. Absent or 0: start now. A position that \
               is no longer retained ends the watch with an ERROR of code 410.",
    },
    Parameter {
        name: "resourceVersionMatch",
        shape: Shape::Text,
        text: "NotOlderThan, together with sendInitialEvents and not otherwise.",
    },
    Parameter {
        name: "sendInitialEvents",
        shape: Shape::Boolean,
        text: "Begin with the bookmark that ends the initial state. There is no such state, so it comes first.",
    },
    Parameter {
        name: "sinceSeconds",
        shape: Shape::Integer,
        text: "Begin with the selected events of this many last seconds that are still retained. Not together with \
               resourceVersion.",
    },
    Parameter {
        name: "stage",
        shape: Shape::Texts,
        text: "Only events of one of these stages, such as ResponseComplete.",
    },
    Parameter {
        name: "tailLines",
        shape: Shape::Integer,
        text: "Begin with this many of the last selected events, as far as they are still retained. Not together with \
               resourceVersion.",
    },
    Parameter {
        name: "timeoutSeconds",
        shape: Shape::Integer,
        text: "End the watch after this time. At most an hour; by default between 30 and 60 minutes.",
    },
    Parameter { name: "username", shape: Shape::Texts, text: "Only requests of one of these users." },
    Parameter {
        name: "verbs",
        shape: Shape::Texts,
        text: "Only requests with one of these verbs, such as create. May also be spelt verb.",
    },
];

/// The parameter that only `events` has. In the paths of `namespacedevents` the namespace stands where there is one.
pub(super) const NAMESPACE: Parameter = Parameter {
    name: "namespace",
    shape: Shape::Texts,
    text: "Only events that belong to one of these namespaces. What belongs to none is <none>.",
};
