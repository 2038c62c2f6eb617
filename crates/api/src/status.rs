//! `meta/v1` `Status`: how Kubernetes says no.
//!
//! The shape only. Which refusal gets which words is decided in one room of the server, `rejection`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The outcome of a request that failed, in upstream's order of fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    kind: Cow<'static, str>,
    #[serde(rename = "apiVersion")]
    api_version: Cow<'static, str>,
    metadata: Empty,
    status: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// For machines: one word of upstream's `StatusReason`.
    pub reason: Cow<'static, str>,
    /// What the refusal is about. Upstream tells absent details from empty ones, and so does this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub details: Option<Details>,
    /// The HTTP status code.
    pub code: u16,
}

/// What a refusal is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// The name of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The API group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The resource, which upstream writes under this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// One word of upstream's `CauseType`.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// The field's path.
    pub field: Cow<'static, str>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Empty {}

impl Status {
    /// A failure without details.
    pub fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Empty {},
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(self, details: Details) -> Self {
        Self { details: Some(details), ..self }
    }

    /// As JSON, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }
}
