//! Audit events as kube-apiserver writes them, and as an attacker makes it write them.
//!
//! A builder for JSON text, not a model of audit: what is not asked for is filled in consistently (`requestURI`,
//! `objectRef`, code, annotations), and each part can then be forged on its own. Imitates what
//! `k8s.io/apiserver/pkg/audit` records, as of Kubernetes 1.37.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::Value;
use serde_json::value::RawValue;

mod bodies;
mod build;
pub mod hostile;
#[cfg(test)]
mod tests;
mod uri;
mod wire;

use wire::{ObjectReference, User};

/// An event under construction. See [`event`].
#[derive(Clone)]
pub struct EventBuilder {
    level: String,
    stage: String,
    audit_id: String,
    verb: String,
    user: User,
    impersonated_user: Option<User>,
    source_ips: Vec<String>,
    user_agent: String,
    object: ObjectReference,
    non_resource_path: String,
    query: Option<String>,
    code: Option<u16>,
    received: SystemTime,
    annotations: BTreeMap<String, String>,
    request_object: Option<Box<RawValue>>,
    response_object: Option<Box<RawValue>>,
    unknown: BTreeMap<String, Value>,
    forged: Forged,
}

// What the event says instead of what would be consistent.
#[derive(Clone, Default)]
struct Forged {
    request_uri: Option<String>,
    object_ref_namespace: Option<String>,
    object_ref_name: Option<String>,
    no_object_ref: bool,
}

/// An event at level `Metadata`, stage `ResponseComplete`, of a user `alice` who gets `/api`; every part can be changed.
pub fn event() -> EventBuilder {
    EventBuilder {
        level: "Metadata".to_owned(),
        stage: "ResponseComplete".to_owned(),
        audit_id: fresh_audit_id(),
        verb: "get".to_owned(),
        user: User { username: "alice".to_owned(), groups: vec!["system:authenticated".to_owned()], ..User::default() },
        impersonated_user: None,
        source_ips: vec!["10.0.0.7".to_owned()],
        user_agent: "kubectl/v1.37.1 (linux/amd64) kubernetes/testplane".to_owned(),
        object: ObjectReference { api_version: "v1".to_owned(), ..ObjectReference::default() },
        non_resource_path: "/api".to_owned(),
        query: None,
        code: None,
        received: SystemTime::now(),
        annotations: BTreeMap::new(),
        request_object: None,
        response_object: None,
        unknown: BTreeMap::new(),
        forged: Forged::default(),
    }
}

/// An audit ID that this process has not used before.
pub fn fresh_audit_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The body of a batch: `items` are JSON texts and are not looked at, so that broken ones can be sent, too. Ends in the
/// newline that upstream's encoder writes.
pub fn event_list<S: AsRef<str>>(items: &[S]) -> String {
    let items = items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(",");
    format!("{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":[{items}]}}\n")
}

/// Who, where from and when.
impl EventBuilder {
    /// The user, in the groups they have so far.
    #[must_use]
    pub fn user(mut self, username: &str) -> Self {
        self.user.username = username.to_owned();
        self
    }

    /// The user's groups, in the place of `system:authenticated`.
    #[must_use]
    pub fn groups(mut self, groups: &[&str]) -> Self {
        self.user.groups = owned(groups);
        self
    }

    /// The user's uid.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.user.uid = uid.to_owned();
        self
    }

    /// An extra attribute of the user.
    #[must_use]
    pub fn extra(mut self, key: &str, values: &[&str]) -> Self {
        self.user.extra.insert(key.to_owned(), owned(values));
        self
    }

    /// Whom the user acted as.
    #[must_use]
    pub fn impersonating(mut self, username: &str, groups: &[&str]) -> Self {
        self.impersonated_user = Some(User { username: username.to_owned(), groups: owned(groups), ..User::default() });
        self
    }

    /// The source addresses, the client's own claims first.
    #[must_use]
    pub fn source_ips(mut self, addresses: &[&str]) -> Self {
        self.source_ips = owned(addresses);
        self
    }

    /// The user agent; empty means absent.
    #[must_use]
    pub fn user_agent(mut self, user_agent: &str) -> Self {
        self.user_agent = user_agent.to_owned();
        self
    }

    /// When the request was received; its stage came two milliseconds later.
    #[must_use]
    pub fn received_at(mut self, time: SystemTime) -> Self {
        self.received = time;
        self
    }

    /// The audit ID, which a client can choose.
    #[must_use]
    pub fn audit_id(mut self, audit_id: &str) -> Self {
        self.audit_id = audit_id.to_owned();
        self
    }
}

/// What was asked.
impl EventBuilder {
    /// The verb; the path, the usual query and the code follow it.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = verb.to_owned();
        self
    }

    /// The resource, in the core group unless [`Self::api_group`] says otherwise.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.object.resource = resource.to_owned();
        self
    }

    /// The resource's API group.
    #[must_use]
    pub fn api_group(mut self, group: &str) -> Self {
        self.object.api_group = group.to_owned();
        self
    }

    /// The API version; `v1` unless told.
    #[must_use]
    pub fn api_version(mut self, version: &str) -> Self {
        self.object.api_version = version.to_owned();
        self
    }

    /// The subresource.
    #[must_use]
    pub fn subresource(mut self, subresource: &str) -> Self {
        self.object.subresource = subresource.to_owned();
        self
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.object.namespace = namespace.to_owned();
        self
    }

    /// The object's name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.object.name = name.to_owned();
        self
    }

    /// The object's uid.
    #[must_use]
    pub fn object_uid(mut self, uid: &str) -> Self {
        self.object.uid = uid.to_owned();
        self
    }

    /// The query of the URI, in the place of the verb's usual one.
    #[must_use]
    pub fn query(mut self, query: &str) -> Self {
        self.query = Some(query.to_owned());
        self
    }

    /// A request for a non-resource URL.
    #[must_use]
    pub fn non_resource(mut self, path: &str) -> Self {
        self.object.resource.clear();
        path.clone_into(&mut self.non_resource_path);
        self
    }
}

/// How it was recorded, and what came of it.
impl EventBuilder {
    /// `Metadata`, `Request` or `RequestResponse`: the latter two with the bodies that fit the request.
    #[must_use]
    pub fn level(mut self, level: &str) -> Self {
        self.level = level.to_owned();
        self
    }

    /// `RequestReceived`, `ResponseStarted`, `ResponseComplete` or `Panic`.
    #[must_use]
    pub fn stage(mut self, stage: &str) -> Self {
        self.stage = stage.to_owned();
        self
    }

    /// The response's code; 401 and 403 bring the Status and annotations of such an answer.
    #[must_use]
    pub fn code(mut self, code: u16) -> Self {
        self.code = Some(code);
        self
    }

    /// An annotation, besides those of the authorizer.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The request's body, at any level.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    pub fn request_object(mut self, json: &str) -> Self {
        self.request_object = Some(bodies::raw(json));
        self
    }

    /// The response's body, at any level.
    ///
    /// # Panics
    /// If it is not JSON.
    #[must_use]
    pub fn response_object(mut self, json: &str) -> Self {
        self.response_object = Some(bodies::raw(json));
        self
    }

    /// A field that no version of audit-stream has heard of.
    #[must_use]
    pub fn unknown_field(mut self, name: &str, value: Value) -> Self {
        self.unknown.insert(name.to_owned(), value);
        self
    }
}

/// What an attacker makes kube-apiserver record.
impl EventBuilder {
    /// This `requestURI`, whatever the rest says.
    #[must_use]
    pub fn request_uri(mut self, uri: &str) -> Self {
        self.forged.request_uri = Some(uri.to_owned());
        self
    }

    /// This `objectRef.namespace`, whatever the rest says: kube-apiserver takes it from the body where the path has none.
    #[must_use]
    pub fn object_ref_namespace(mut self, namespace: &str) -> Self {
        self.forged.object_ref_namespace = Some(namespace.to_owned());
        self
    }

    /// This `objectRef.name`, whatever the rest says.
    #[must_use]
    pub fn object_ref_name(mut self, name: &str) -> Self {
        self.forged.object_ref_name = Some(name.to_owned());
        self
    }

    /// No `objectRef`.
    #[must_use]
    pub fn without_object_ref(mut self) -> Self {
        self.forged.no_object_ref = true;
        self
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
