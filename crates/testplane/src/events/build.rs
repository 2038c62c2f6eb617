//! From what was asked for to the event that kube-apiserver would have written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;

use super::bodies::Subject;
use super::wire::{self, ObjectReference, Status, User};
use super::{EventBuilder, Forged};

impl EventBuilder {
    /// The event as JSON text, without `kind` and `apiVersion`, as the items of a v1 list are.
    pub fn build(&self) -> String {
        let received = wire::micro_time(self.received);
        let staged = match self.is_received() {
            true => received.clone(),
            false => wire::micro_time(self.received + Duration::from_millis(2)),
        };
        let nobody = User::default();
        let user = if self.status_code() == 401 { &nobody } else { &self.user };
        wire::to_go_json(&wire::Event {
            level: &self.level,
            audit_id: &self.audit_id,
            stage: &self.stage,
            request_uri: &self.forged.request_uri.clone().unwrap_or_else(|| self.consistent_uri()),
            verb: &self.verb,
            user,
            impersonated_user: self.impersonated_user.as_ref(),
            source_ips: &self.source_ips,
            user_agent: &self.user_agent,
            object_ref: self.object_ref(),
            response_status: self.response_status(),
            request_object: self.recorded_request(),
            response_object: self.recorded_response(),
            request_received_timestamp: &received,
            stage_timestamp: &staged,
            annotations: &self.recorded_annotations(),
            unknown: &self.unknown,
        })
    }

    fn is_received(&self) -> bool {
        self.stage == "RequestReceived"
    }

    fn is_rejected(&self) -> bool {
        matches!(self.status_code(), 401 | 403)
    }

    fn status_code(&self) -> u16 {
        self.code.unwrap_or(match self.stage.as_str() {
            "Panic" => 500,
            _ if self.verb == "create" && !self.object.resource.is_empty() => 201,
            _ => 200,
        })
    }

    fn object_ref(&self) -> Option<ObjectReference> {
        let Forged { request_uri: _, object_ref_namespace, object_ref_name, no_object_ref } = &self.forged;
        if self.object.resource.is_empty() || *no_object_ref {
            return None;
        }
        let mut object = self.object.clone();
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            object.name.clear();
        }
        // The name in a create's body is known once the body was decoded, which comes after authorization.
        if self.is_plain_create() && (self.is_rejected() || self.is_received()) {
            object.name.clear();
        }
        // RequestInfo counts a Namespace object as lying in itself; the body of its create does not say so.
        if object.resource == "namespaces" {
            object.namespace = if self.is_plain_create() { String::new() } else { object.name.clone() };
        }
        if let Some(namespace) = object_ref_namespace {
            object.namespace.clone_from(namespace);
        }
        if let Some(name) = object_ref_name {
            object.name.clone_from(name);
        }
        Some(object)
    }

    fn response_status(&self) -> Option<Status> {
        if self.is_received() {
            return None;
        }
        let code = self.status_code();
        let failure = |reason: &str, message: String| Status {
            status: "Failure".to_owned(),
            message,
            reason: reason.to_owned(),
            code,
            ..Status::default()
        };
        Some(match code {
            401 => failure("Unauthorized", "Authentication failed, attempted: bearer".to_owned()),
            403 => Status {
                details: Some(match self.object.api_group.as_str() {
                    "" => json!({"kind": self.object.resource}),
                    group => json!({"group": group, "kind": self.object.resource}),
                }),
                ..failure("Forbidden", self.forbidden_message())
            },
            500 => failure("InternalError", "APIServer panic'd: the test plane said so".to_owned()),
            _ if self.verb == "delete" => Status {
                status: "Success".to_owned(),
                details: Some(json!({"name": self.object.name, "kind": self.object.resource})),
                code,
                ..Status::default()
            },
            _ => Status { code, ..Status::default() },
        })
    }

    fn forbidden_message(&self) -> String {
        let ObjectReference { resource, namespace, api_group, .. } = &self.object;
        let kind = if api_group.is_empty() { resource.clone() } else { format!("{resource}.{api_group}") };
        let scope = match namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let (user, verb) = (&self.user.username, &self.verb);
        format!(
            "{kind} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group {api_group:?} {scope}"
        )
    }

    fn recorded_annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = self.annotations.clone();
        let (decision, reason) = match self.status_code() {
            // The authorizer has not spoken yet, or never will.
            401 => return annotations,
            _ if self.is_received() => return annotations,
            403 => ("forbid", String::new()),
            _ => ("allow", self.allowed_reason()),
        };
        annotations.entry("authorization.k8s.io/decision".to_owned()).or_insert_with(|| decision.to_owned());
        annotations.entry("authorization.k8s.io/reason".to_owned()).or_insert(reason);
        annotations
    }

    fn allowed_reason(&self) -> String {
        let user = &self.user.username;
        format!(r#"RBAC: allowed by ClusterRoleBinding "testplane" of ClusterRole "edit" to User "{user}""#)
    }

    fn recorded_request(&self) -> Option<Box<RawValue>> {
        let is_recorded = matches!(self.level.as_str(), "Request" | "RequestResponse");
        let given = self.request_object.clone();
        given.or_else(|| self.subject().filter(|_| is_recorded)?.request(&self.verb))
    }

    fn recorded_response(&self) -> Option<Box<RawValue>> {
        let is_recorded = self.level == "RequestResponse";
        let given = self.response_object.clone();
        given.or_else(|| self.subject().filter(|_| is_recorded)?.response(&self.verb))
    }

    // What the bodies are about, where bodies were decoded at all.
    fn subject(&self) -> Option<Subject<'_>> {
        let ObjectReference { resource, namespace, name, api_group, api_version, .. } = &self.object;
        let is_decoded = !self.is_received() && !self.is_rejected() && !resource.is_empty();
        is_decoded.then_some(Subject { resource, api_group, api_version, namespace, name })
    }
}

impl From<EventBuilder> for String {
    fn from(event: EventBuilder) -> Self {
        event.build()
    }
}
