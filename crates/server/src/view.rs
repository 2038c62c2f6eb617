//! Which fields of an event a reader of `namespacedevents` may see.
//!
//! An allow-list: what `api::audit` does not know by name is a part that is hidden, fields that upstream adds later too. What a
//! body, a message or a credential could carry is withheld from every reader; what was withheld from an event is named on it.
//! It does not decide who may read (`authz`) or which events (`attribution`).

use std::borrow::Cow;
use std::iter;

use audit_stream_api::Resource;
use audit_stream_api::audit::{Event, Part};
use audit_stream_api::json::Reader;
use audit_stream_api::selector::Field;
use percent_encoding::{percent_decode, percent_decode_str};

use crate::request_info::{cut, split_uri};

/// Stands for text that the reader may not see.
const MASK: &str = "***";

/// A longer query is masked as one.
///
/// Masks can make a query two and a half times as long (`=&` becomes `=***&`), so what is shown of an event is longer than
/// the event itself by three halves of this at most. Who reads a URI by eye has long given up here:
/// kubectl's own queries, command lines of `exec` included, are some hundred bytes.
pub const MAX_QUERY_BYTES: usize = 4096;

/// What readers of a resource see of an event.
#[derive(Debug, Clone, Copy)]
pub struct View {
    resource: Resource,
    revealed: Revealed,
}

/// What readers of `namespacedevents` see that they do not by default: what an operator has flags for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Revealed {
    /// The UIDs of users.
    pub user_uid: bool,
    /// What the authenticator says of users, identifiers of credentials among it.
    pub user_extra: bool,
    /// Where requests come from.
    pub source_ips: bool,
    /// By which binding and role a request was allowed.
    pub authorization_reason: bool,
}

impl View {
    /// The view of a resource's readers.
    pub fn new(resource: Resource, revealed: Revealed) -> Self {
        Self { resource, revealed }
    }

    /// Which resource it is of.
    pub fn resource(self) -> Resource {
        self.resource
    }

    /// Whether its readers get a part that is withheld from some.
    pub fn has(self, part: Part, withheld_from: Audience) -> bool {
        match (withheld_from, self.resource) {
            (Audience::Everybody, _) => false,
            (Audience::NamespaceReaders, Resource::Events) => true,
            (Audience::NamespaceReaders, Resource::NamespacedEvents) => self.revealed.has(part),
        }
    }

    /// Whether its readers may select on a field: whether they see it.
    pub fn shows(self, field: Field) -> bool {
        match self.resource {
            Resource::Events => true,
            Resource::NamespacedEvents => is_shown(field) || self.revealed.source_ips && field == Field::SourceIps,
        }
    }
}

impl Revealed {
    fn has(self, part: Part) -> bool {
        match part {
            Part::UserUid | Part::ImpersonatedUserUid => self.user_uid,
            Part::UserExtra | Part::ImpersonatedUserExtra => self.user_extra,
            Part::SourceIps => self.source_ips,
            Part::AuthorizationReason => self.authorization_reason,
            Part::Meta
            | Part::RequestUri
            | Part::ResponseMessage
            | Part::ResponseDetails
            | Part::RequestObject
            | Part::ResponseObject
            | Part::Annotation
            | Part::Unknown
            | Part::UnknownNested => false,
        }
    }
}

/// Whether readers of `namespacedevents` always see a field.
fn is_shown(field: Field) -> bool {
    match field {
        Field::SourceIps => false,
        Field::MetadataName
        | Field::MetadataNamespace
        | Field::AuditId
        | Field::Level
        | Field::Stage
        | Field::Verb
        | Field::Username
        | Field::Groups
        | Field::ImpersonatedUsername
        | Field::UserAgent
        | Field::ObjectResource
        | Field::ObjectApiGroup
        | Field::ObjectApiVersion
        | Field::ObjectNamespace
        | Field::ObjectName
        | Field::ObjectSubresource
        | Field::ObjectUid
        | Field::ResponseCode
        | Field::Decision
        | Field::RequestUri => true,
    }
}

/// Who a part of an event is withheld from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Readers of `events` too.
    Everybody,
    /// Readers of `namespacedevents`.
    NamespaceReaders,
}

/// Who does not get a part of this event. The URI is not left out but masked, where [`mask_uri`] finds something to mask.
pub fn withheld_from(part: Part, event: &Event<'_>) -> Audience {
    match part {
        Part::Meta => Audience::Everybody,
        Part::RequestObject | Part::ResponseObject if bodies_are_credentials(event) => Audience::Everybody,
        Part::RequestUri
        | Part::UserUid
        | Part::UserExtra
        | Part::ImpersonatedUserUid
        | Part::ImpersonatedUserExtra
        | Part::SourceIps
        | Part::ResponseMessage
        | Part::ResponseDetails
        | Part::RequestObject
        | Part::ResponseObject
        | Part::AuthorizationReason
        | Part::Annotation
        | Part::Unknown
        | Part::UnknownNested => Audience::NamespaceReaders,
    }
}

/// By which name a part is said to have been withheld; `None` for those that are not mentioned. One that is not known has the name
/// that the event gives it: [`name_of_member`].
pub fn withheld_name(part: Part) -> Option<&'static str> {
    Some(match part {
        // The object has its own.
        Part::Meta => return None,
        Part::RequestUri => "requestURI",
        Part::UserUid => "user.uid",
        Part::UserExtra => "user.extra",
        Part::ImpersonatedUserUid => "impersonatedUser.uid",
        Part::ImpersonatedUserExtra => "impersonatedUser.extra",
        Part::SourceIps => "sourceIPs",
        Part::ResponseMessage => "responseStatus.message",
        Part::ResponseDetails => "responseStatus.details",
        Part::RequestObject => "requestObject",
        Part::ResponseObject => "responseObject",
        Part::AuthorizationReason | Part::Annotation => "annotations",
        Part::Unknown | Part::UnknownNested => return None,
    })
}

/// The name of a part that is a member of the event, from its bytes.
pub fn name_of_member(member: &str) -> Option<Cow<'_, str>> {
    Reader::new(member.strip_prefix(',').unwrap_or(member)).string().ok()
}

/// A request URI without what a client may have carried in it; `None` where nothing had to be masked.
///
/// Masked are the values of query parameters that are not known to be harmless, a query that is longer than
/// [`MAX_QUERY_BYTES`], and all that follows a `proxy` segment, the query included: it is for whatever is proxied to.
pub fn mask_uri(uri: &str) -> Option<String> {
    let (path, query) = split_uri(uri);
    if let Some(proxied) = after_proxy_segment(path) {
        let (kept, rest) = uri.split_at(proxied);
        let separator = if rest.starts_with('?') { '?' } else { '/' };
        return (!rest.is_empty()).then(|| format!("{kept}{separator}{MASK}"));
    }
    let query = query?;
    if query.len() > MAX_QUERY_BYTES {
        return Some(format!("{path}?{MASK}"));
    }
    // Go takes a semicolon for a mistake, so what follows one is not the parameter's value.
    let shown = |pair: &str| match cut(pair, b'=') {
        (key, Some(value)) => shows_parameter(key) && memchr::memchr(b';', value.as_bytes()).is_none(),
        (_, None) => true,
    };
    if pairs(query).all(shown) {
        return None;
    }
    let mut masked = format!("{path}?");
    for (index, pair) in pairs(query).enumerate() {
        masked.push_str(if index > 0 { "&" } else { "" });
        match cut(pair, b'=') {
            (key, Some(_)) if !shown(pair) => masked.extend([key, "=", MASK]),
            _ => masked.push_str(pair),
        }
    }
    Some(masked)
}

/// What ampersands separate; at least one, which may be empty.
fn pairs(query: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(query);
    iter::from_fn(move || {
        let (pair, behind) = cut(rest?, b'&');
        rest = behind;
        Some(pair)
    })
}

/// Where the path's first `proxy` segment ends.
fn after_proxy_segment(path: &str) -> Option<usize> {
    let bytes = path.as_bytes();
    // Nearly every path ends here.
    if !bytes.contains(&b'%') && !path.contains("proxy") {
        return None;
    }
    let mut start = 0;
    for at in 0..=bytes.len() {
        // kube-apiserver splits what it has decoded, so an encoded slash separates as well as a plain one.
        let separator = match &bytes[at..] {
            [b'/', ..] => 1,
            [b'%', b'2', b'F' | b'f', ..] => 3,
            [] => 0,
            _ => continue,
        };
        if percent_decode(&bytes[start..at]).eq(b"proxy".iter().copied()) {
            return Some(at);
        }
        start = at + separator;
    }
    None
}

/// Whether a query parameter's value says how a request was made and not what it carries. All other values are masked:
/// `exec` has its command line there, and a proxied request whatever its server understands.
fn is_shown_parameter(name: &str) -> bool {
    matches!(
        name,
        "allowWatchBookmarks"
            | "container"
            | "dryRun"
            | "fieldManager"
            | "fieldSelector"
            | "fieldValidation"
            | "follow"
            | "force"
            | "gracePeriodSeconds"
            | "labelSelector"
            | "limit"
            | "limitBytes"
            | "orphanDependents"
            | "pretty"
            | "previous"
            | "propagationPolicy"
            | "resourceVersion"
            | "resourceVersionMatch"
            | "sendInitialEvents"
            | "sinceSeconds"
            | "stderr"
            | "stdin"
            | "stdout"
            | "tailLines"
            | "timeout"
            | "timeoutSeconds"
            | "timestamps"
            | "tty"
            | "watch"
    )
}

fn shows_parameter(key: &str) -> bool {
    is_shown_parameter(key) || (key.contains('%') && is_shown_parameter(&percent_decode_str(key).decode_utf8_lossy()))
}

/// Whether the event's bodies are live credentials: a token request's or a token review's. No reader gets those, readers
/// of `events` neither.
fn bodies_are_credentials(event: &Event<'_>) -> bool {
    event.object_ref.as_ref().is_some_and(|reference| {
        reference.subresource.as_deref() == Some("token") || reference.resource.as_deref() == Some("tokenreviews")
    })
}

#[cfg(test)]
mod tests;
