//! OpenAPI: what `kubectl explain` prints and client generators read.
//!
//! One description, written in two dialects: swagger 2.0 for all versions together, OpenAPI 3.0 for each. The schemas of
//! v1 stand in `v1.schemas.json`, where `"$ref"` holds a bare name; the versions before it are served without conversion
//! and promise no fields. Only watches are listed, because nothing else is served.
//! Sources: k8s.io/apiserver `pkg/endpoints/installer.go`, kubectl `pkg/explain/v2`, kube-openapi `pkg/spec3`.

use audit_stream_api::{GROUP, Resource, Version};
use serde_json::{Map, Value, json};

use super::parameters::{self, Parameter, Shape};

/// The two ways to write the description down.
#[derive(Clone, Copy)]
enum Dialect {
    V2,
    V3,
}

/// `/openapi/v2`. kube-apiserver merges it into its own, which is why names are unique in the cluster and why nothing is
/// shared by way of top-level `parameters`: older aggregators drop those.
pub(super) fn v2() -> Value {
    sorted(json!({
        "swagger": "2.0",
        "info": info(Version::V1),
        "paths": Version::ALL.into_iter().flat_map(|version| paths(version, Dialect::V2)).collect::<Map<_, _>>(),
        "definitions": Version::ALL.into_iter().flat_map(|version| schemas(version, Dialect::V2)).collect::<Map<_, _>>(),
    }))
}

/// `/openapi/v3/apis/audit.k8s.io/{version}`.
pub(super) fn v3(version: Version) -> Value {
    sorted(json!({
        "openapi": "3.0.0",
        "info": info(version),
        "paths": paths(version, Dialect::V3).collect::<Map<_, _>>(),
        "components": { "schemas": schemas(version, Dialect::V3).collect::<Map<_, _>>() },
    }))
}

/// `/openapi/v3`: the documents by path (which has no leading slash) and hash.
pub(super) fn v3_root<'a>(documents: impl Iterator<Item = (&'a str, String)>) -> Value {
    let paths = documents.map(|(path, hash)| {
        (path.to_owned(), json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") }))
    });
    sorted(json!({ "paths": paths.collect::<Map<_, _>>() }))
}

/// The documents change when the API does, so they carry its version and not the program's.
fn info(version: Version) -> Value {
    json!({ "title": "audit-stream: audit events as a watch", "version": version.as_str() })
}

/// `serde_json` keeps keys in order of insertion if anything in the build enables `preserve_order`. The bytes, and with
/// them the hashes, must not depend on that.
fn sorted(mut document: Value) -> Value {
    document.sort_all_objects();
    document
}

// === Paths ===

/// A path under which a resource is watched.
struct Watch {
    version: Version,
    resource: Resource,
    /// Of one namespace, which is then part of the path.
    in_namespace: bool,
    /// By the prefix `/watch/`, deprecated since 1.11, rather than by `?watch=true`.
    by_prefix: bool,
}

fn paths(version: Version, dialect: Dialect) -> impl Iterator<Item = (String, Value)> {
    let scopes = Resource::ALL.into_iter().flat_map(|resource| {
        let scopes: &[bool] = if resource.namespaced() { &[false, true] } else { &[false] };
        scopes.iter().map(move |in_namespace| (resource, *in_namespace))
    });
    scopes.flat_map(move |(resource, in_namespace)| {
        [false, true].map(|by_prefix| {
            let watch = Watch { version, resource, in_namespace, by_prefix };
            (watch.path(), watch.item(dialect))
        })
    })
}

impl Watch {
    fn path(&self) -> String {
        let Self { version, resource, in_namespace, by_prefix } = self;
        let prefix = if *by_prefix { "/watch" } else { "" };
        let namespace = if *in_namespace { "/namespaces/{namespace}" } else { "" };
        format!("/apis/{GROUP}/{}{prefix}{namespace}/{}", version.as_str(), resource.name())
    }

    /// Unique in the cluster, and for the paths by prefix as upstream's installer composes it.
    fn operation_id(&self) -> String {
        let Self { version, resource, in_namespace, by_prefix } = self;
        let (_, version) = version.as_str().split_at(1);
        let namespaced = if *in_namespace { "Namespaced" } else { "" };
        let list = if *by_prefix { "List" } else { "" };
        let everywhere = if resource.namespaced() && !in_namespace { "ForAllNamespaces" } else { "" };
        format!("watchAuditV{version}{namespaced}{}{list}{everywhere}", resource.kind())
    }

    fn description(&self) -> String {
        let Self { version: _, resource, in_namespace, by_prefix } = self;
        let scope = match (resource.namespaced(), in_namespace) {
            (false, _) => "of the whole cluster",
            (true, false) => "of all namespaces",
            (true, true) => "that belong to one namespace",
        };
        let advice = if *by_prefix { " Deprecated: use the parameter watch instead of this path." } else { "" };
        format!("Watch the audit events {scope} as they happen. This is not an audit log of record.{advice}")
    }

    fn item(&self, dialect: Dialect) -> Value {
        // Where there is no list to begin with, the flag is what makes the request one that is served.
        let flag = (!self.by_prefix).then(|| query_parameter(&parameters::WATCH, true, dialect));
        let scope = (!self.resource.namespaced()).then_some(&parameters::NAMESPACE);
        let query =
            parameters::EVERY_WATCH.iter().chain(scope).map(|parameter| query_parameter(parameter, false, dialect));
        let path = self.in_namespace.then(|| namespace_parameter(dialect));
        json!({
            "get": self.operation(dialect),
            "parameters": path.into_iter().chain(flag).chain(query).collect::<Vec<_>>(),
        })
    }

    fn operation(&self, dialect: Dialect) -> Value {
        let frame = json!({ "$ref": dialect.reference(&schema_name(self.version, "WatchEvent")) });
        let mut operation = json!({
            "description": self.description(),
            "operationId": self.operation_id(),
            "tags": [format!("audit_{}", self.version.as_str())],
            // Upstream has `watchlist` for watches of a collection by prefix. What it has for the collection itself is
            // `list`, which here would be untrue.
            "x-kubernetes-action": "watchlist",
            // One object: kubectl explain takes the kind from here. On schemas it is a list.
            "x-kubernetes-group-version-kind": kind(self.version, self.resource.kind()),
        });
        if self.by_prefix {
            operation["deprecated"] = true.into();
        }
        let ok = match dialect {
            Dialect::V2 => {
                operation["schemes"] = json!(["https"]);
                operation["produces"] = json!(["application/json"]);
                json!({ "description": "OK", "schema": frame })
            }
            Dialect::V3 => json!({ "description": "OK", "content": { "application/json": { "schema": frame } } }),
        };
        operation["responses"] = json!({ "200": ok, "401": { "description": "Unauthorized" } });
        operation
    }
}

fn query_parameter(parameter: &Parameter, required: bool, dialect: Dialect) -> Value {
    let Parameter { name, shape, text } = parameter;
    let mut described = json!({ "name": name, "in": "query", "description": text });
    if required {
        described["required"] = true.into();
    }
    typed(described, *shape, dialect)
}

fn namespace_parameter(dialect: Dialect) -> Value {
    let text = "The namespace whose audit events to watch.";
    let described = json!({ "name": "namespace", "in": "path", "required": true, "description": text });
    typed(described, Shape::Text, dialect)
}

/// Adds the type: to the parameter itself in 2.0, in a schema of its own in 3.0.
fn typed(mut described: Value, shape: Shape, dialect: Dialect) -> Value {
    let kind = match shape {
        Shape::Boolean => "boolean",
        Shape::Integer => "integer",
        Shape::Text => "string",
        Shape::Texts => "array",
    };
    let schema = match dialect {
        Dialect::V2 => &mut described,
        Dialect::V3 => &mut described["schema"],
    };
    schema["type"] = kind.into();
    if let Shape::Texts = shape {
        schema["items"] = json!({ "type": "string" });
    }
    if let (Shape::Texts, Dialect::V2) = (shape, dialect) {
        // As in 3.0 without saying so: the parameter is repeated.
        described["collectionFormat"] = "multi".into();
    }
    described
}

// === Schemas ===

impl Dialect {
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

/// Unique in the cluster, so that no aggregator has to rename. `*.k8s.io` is not ours to name things in.
fn schema_name(version: Version, name: &str) -> String {
    format!("dev.audit-stream.audit.{}.{name}", version.as_str())
}

fn kind(version: Version, kind: &str) -> Value {
    json!({ "group": GROUP, "version": version.as_str(), "kind": kind })
}

fn schemas(version: Version, dialect: Dialect) -> impl Iterator<Item = (String, Value)> {
    let Value::Object(mut schemas) =
        serde_json::from_str(include_str!("v1.schemas.json")).expect("the file is part of the program, and tested")
    else {
        unreachable!("the file holds one object, and is tested")
    };
    if version != Version::V1 {
        schemas.retain(|name, _| name == "WatchEvent");
        schemas.extend(Resource::ALL.map(|resource| (resource.kind().to_owned(), any_object(version))));
    }
    for resource in Resource::ALL {
        schemas[resource.kind()]["x-kubernetes-group-version-kind"] = json!([kind(version, resource.kind())]);
    }
    schemas.into_iter().map(move |(name, mut schema)| {
        resolve(&mut schema, version, dialect);
        (schema_name(version, &name), schema)
    })
}

/// The kinds of the old versions: the fields of v1 under another `apiVersion`, never those of upstream's old types.
fn any_object(version: Version) -> Value {
    let text = format!(
        "An audit event under the apiVersion {GROUP}/{}. Nothing is converted: the fields are those of {GROUP}/{}, \
         which describes them.",
        version.as_str(),
        Version::V1.as_str()
    );
    json!({ "description": text, "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Turns bare names after `$ref` into references.
fn resolve(schema: &mut Value, version: Version, dialect: Dialect) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(name)) = fields.get_mut("$ref") {
                *name = dialect.reference(&schema_name(version, name));
                // In 3.0 nothing beside a `$ref` counts, so what stands there, a description, goes around it.
                if let (Dialect::V3, true) = (dialect, fields.len() > 1)
                    && let Some(reference) = fields.remove("$ref")
                {
                    fields.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
                }
            } else {
                fields.values_mut().for_each(|schema| resolve(schema, version, dialect));
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(|schema| resolve(schema, version, dialect)),
        _ => {}
    }
}
