//! The `requestURI` that fits a verb and an object.

use super::EventBuilder;

impl EventBuilder {
    pub(super) fn consistent_uri(&self) -> String {
        if self.object.resource.is_empty() {
            return self.non_resource_path.clone();
        }
        let query = self.query.clone().unwrap_or_else(|| usual_query(&self.verb).to_owned());
        let path = self.path();
        if query.is_empty() { path } else { format!("{path}?{query}") }
    }

    fn path(&self) -> String {
        let object = &self.object;
        let mut path = match object.api_group.as_str() {
            "" => format!("/api/{}", object.api_version),
            group => format!("/apis/{group}/{}", object.api_version),
        };
        if !object.namespace.is_empty() && object.resource != "namespaces" {
            path = format!("{path}/namespaces/{}", object.namespace);
        }
        path = format!("{path}/{}", object.resource);
        // A create names its object in the body; with a subresource, the parent is in the path.
        if !object.name.is_empty() && (!self.is_plain_create() || !object.subresource.is_empty()) {
            path = format!("{path}/{}", object.name);
        }
        if !object.subresource.is_empty() {
            path = format!("{path}/{}", object.subresource);
        }
        path
    }

    pub(super) fn is_plain_create(&self) -> bool {
        self.verb == "create" && self.object.subresource.is_empty()
    }
}

fn usual_query(verb: &str) -> &'static str {
    match verb {
        "create" => "fieldManager=kubectl-create&fieldValidation=Strict",
        "update" => "fieldManager=kubectl-edit",
        "patch" => "fieldManager=kubectl-patch",
        "list" => "limit=500",
        "watch" => "allowWatchBookmarks=true&watch=true",
        _ => "",
    }
}
