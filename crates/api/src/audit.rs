//! `audit.k8s.io` events as kube-apiserver sends them, borrowed from the bytes they came in.
//!
//! Only the fields that decide something are named here: attribution, selection, the view. The event's own bytes travel
//! beside this struct and keep every field, also those that no version of this program has heard of.
//! Source of the shape: `k8s.io/apiserver/pkg/apis/audit/v1/types.go`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One audit event.
///
/// A field that occurs twice is an error: two readers of the same bytes must never disagree on what they say. `null` is
/// what Go writes for an absent pointer, slice or map, and is tolerated there.
#[derive(Debug, Default)]
pub struct Event<'a> {
    /// How much of the request was recorded: `Metadata`, `Request`, `RequestResponse`.
    pub level: Text<'a>,
    /// Chosen by the client if it sends an `Audit-ID` header, so never a key for anything.
    pub audit_id: Text<'a>,
    /// `RequestReceived`, `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: Text<'a>,
    /// The URI as the client wrote it: percent-encoded, query included.
    pub request_uri: Text<'a>,
    /// The verb of upstream's `RequestInfo`, or the lower-case method of a non-resource request.
    pub verb: Text<'a>,
    /// Who asked; empty where nobody could be authenticated.
    pub user: User<'a>,
    /// Who they acted as.
    pub impersonated_user: Option<User<'a>>,
    /// Where from. All but the last are the client's own claim.
    pub source_ips: Vec<Text<'a>>,
    /// The client's own claim.
    pub user_agent: Option<Text<'a>>,
    /// What the request was about. Parts come from the request body, so a client can write there what it likes.
    pub object_ref: Option<ObjectReference<'a>>,
    /// The outcome. Absent at stage `RequestReceived`.
    pub response_status: Option<ResponseStatus<'a>>,
    /// The request's body, at level `Request` and above.
    pub request_object: Option<&'a RawValue>,
    /// The response's body, at level `RequestResponse`.
    pub response_object: Option<&'a RawValue>,
    /// RFC 3339 with microseconds.
    pub request_received_timestamp: Option<Text<'a>>,
    /// RFC 3339 with microseconds.
    pub stage_timestamp: Option<Text<'a>>,
    /// Set by the authorizer, admission plugins and others inside kube-apiserver. Only those of [`READ_ANNOTATIONS`].
    pub annotations: Vec<(Text<'a>, Text<'a>)>,
    /// Whether there are others.
    pub has_other_annotations: bool,
    /// Whether the item carries `kind`, `apiVersion` or `metadata`, as items of v1beta1 lists do and those of v1 do not.
    pub carries_object_fields: bool,
    /// The names of the fields that this struct does not know.
    pub unknown_fields: Vec<Text<'a>>,
}

/// Whether an event's field of this name is one that this program reads, and so is not among
/// [`Event::unknown_fields`].
pub fn is_known_field(name: &str) -> bool {
    Field::named(name).is_some()
}

/// The annotations whose values decide something, and so are decoded. Others can be long and full of escapes: the one that
/// says why the authorizer agreed is the longest string of most events.
pub const READ_ANNOTATIONS: [&str; 4] =
    ["audit.k8s.io/truncated", "authorization.k8s.io/decision", "k8s.io/deprecated", "k8s.io/removed-release"];

/// The user of a request: `authentication.k8s.io/v1` `UserInfo`.
#[derive(Debug, Default, Deserialize)]
pub struct User<'a> {
    /// Empty where nobody could be authenticated.
    #[serde(borrow, default)]
    pub username: Text<'a>,
    /// Unique over time where the authenticator has such a thing.
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    /// In the authenticator's order.
    #[serde(borrow)]
    pub groups: Option<Vec<Text<'a>>>,
    /// Free for the authenticator's use, credential identifiers among it.
    #[serde(borrow)]
    pub extra: Option<&'a RawValue>,
}

/// What a request was about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are Kubernetes' own")]
pub struct ObjectReference<'a> {
    #[serde(borrow)]
    pub resource: Option<Text<'a>>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    #[serde(borrow)]
    pub api_group: Option<Text<'a>>,
    #[serde(borrow)]
    pub api_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub subresource: Option<Text<'a>>,
}

/// The outcome of a request: the parts of `meta/v1` `Status` that occur in audit events.
#[derive(Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own")]
pub struct ResponseStatus<'a> {
    #[serde(borrow)]
    pub status: Option<Text<'a>>,
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    #[serde(borrow)]
    pub details: Option<&'a RawValue>,
    pub code: Option<i32>,
}

/// A string that borrows from the input unless an escape sequence in it had to be decoded.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

// serde borrows a bare `Cow<str>` field on request, but not one inside an `Option` or a `Vec`; this type always does.
impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// The fields of an event that this program reads; the discriminant is the field's bit in [`read_into`]'s `seen`.
#[derive(Clone, Copy)]
enum Field {
    Level,
    AuditId,
    Stage,
    RequestUri,
    Verb,
    User,
    ImpersonatedUser,
    SourceIps,
    UserAgent,
    ObjectRef,
    ResponseStatus,
    RequestObject,
    ResponseObject,
    RequestReceivedTimestamp,
    StageTimestamp,
    Annotations,
    Kind,
    ApiVersion,
    Metadata,
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "level" => Self::Level,
            "auditID" => Self::AuditId,
            "stage" => Self::Stage,
            "requestURI" => Self::RequestUri,
            "verb" => Self::Verb,
            "user" => Self::User,
            "impersonatedUser" => Self::ImpersonatedUser,
            "sourceIPs" => Self::SourceIps,
            "userAgent" => Self::UserAgent,
            "objectRef" => Self::ObjectRef,
            "responseStatus" => Self::ResponseStatus,
            "requestObject" => Self::RequestObject,
            "responseObject" => Self::ResponseObject,
            "requestReceivedTimestamp" => Self::RequestReceivedTimestamp,
            "stageTimestamp" => Self::StageTimestamp,
            "annotations" => Self::Annotations,
            "kind" => Self::Kind,
            "apiVersion" => Self::ApiVersion,
            "metadata" => Self::Metadata,
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Event<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut event = Event::default();
        Replace(&mut event).deserialize(deserializer)?;
        Ok(event)
    }
}

/// Reads an event into the place of another one, of which nothing remains. An event is too large to be handed from function
/// to function cheaply, and whoever reads many needs one at a time.
///
/// After an error the event is some of both.
pub struct Replace<'e, 'a>(pub &'e mut Event<'a>);

// By hand rather than derived, because a derived struct cannot name the fields that it does not know.
impl<'de> DeserializeSeed<'de> for Replace<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Replace<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an audit event")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        read_into(self.0, map)
    }
}

fn read_into<'de, A: MapAccess<'de>>(event: &mut Event<'de>, mut map: A) -> Result<(), A::Error> {
    let mut seen = 0_u32;
    *event = Event::default();
    while let Some(name) = map.next_key::<Text<'de>>()? {
        let Some(field) = Field::named(&name) else {
            map.next_value::<IgnoredAny>()?;
            event.unknown_fields.push(name);
            continue;
        };
        if seen & (1 << field as u32) != 0 {
            return Err(A::Error::custom("a field occurs twice"));
        }
        seen |= 1 << field as u32;
        match field {
            Field::Level => event.level = map.next_value()?,
            Field::AuditId => event.audit_id = map.next_value()?,
            Field::Stage => event.stage = map.next_value()?,
            Field::RequestUri => event.request_uri = map.next_value()?,
            Field::Verb => event.verb = map.next_value()?,
            Field::User => event.user = map.next_value()?,
            Field::ImpersonatedUser => event.impersonated_user = map.next_value()?,
            Field::SourceIps => event.source_ips = map.next_value::<Option<_>>()?.unwrap_or_default(),
            Field::UserAgent => event.user_agent = map.next_value()?,
            Field::ObjectRef => event.object_ref = map.next_value()?,
            Field::ResponseStatus => event.response_status = map.next_value()?,
            Field::RequestObject => event.request_object = map.next_value()?,
            Field::ResponseObject => event.response_object = map.next_value()?,
            Field::RequestReceivedTimestamp => event.request_received_timestamp = map.next_value()?,
            Field::StageTimestamp => event.stage_timestamp = map.next_value()?,
            Field::Annotations => {
                let annotations = map.next_value::<Option<Annotations<'de>>>()?.unwrap_or_default();
                event.annotations = annotations.read;
                event.has_other_annotations = annotations.others;
            }
            Field::Kind | Field::ApiVersion | Field::Metadata => {
                map.next_value::<IgnoredAny>()?;
                event.carries_object_fields = true;
            }
        }
    }
    for (field, name) in REQUIRED {
        if seen & (1 << field as u32) == 0 {
            return Err(A::Error::missing_field(name));
        }
    }
    Ok(())
}

/// Upstream writes these always: they have no `omitempty`.
const REQUIRED: [(Field, &str); 6] = [
    (Field::Level, "level"),
    (Field::AuditId, "auditID"),
    (Field::Stage, "stage"),
    (Field::RequestUri, "requestURI"),
    (Field::Verb, "verb"),
    (Field::User, "user"),
];

#[derive(Default)]
struct Annotations<'a> {
    read: Vec<(Text<'a>, Text<'a>)>,
    others: bool,
}

impl<'de> Deserialize<'de> for Annotations<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Annotations<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some(name) = map.next_key::<Text<'de>>()? {
            if READ_ANNOTATIONS.contains(&&*name) {
                self.read.push((name, map.next_value()?));
                continue;
            }
            if !map.next_value::<&RawValue>()?.get().starts_with('"') {
                return Err(A::Error::custom("an annotation is not a string"));
            }
            self.others = true;
        }
        Ok(self)
    }
}

/// The members of a JSON object in the order of the input.
#[derive(Debug)]
pub struct Members<'a, V>(pub Vec<(Text<'a>, V)>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Members<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for MembersVisitor<V> {
            type Value = Members<'de, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        r#""level":"Metadata","auditID":"a","stage":"ResponseComplete","requestURI":"/x","verb":"get","user":{}"#;

    fn parse(extra: &str) -> Result<Event<'static>, serde_json::Error> {
        // Tests only: the text must outlive the event that borrows from it.
        let text: &'static str = Box::leak(format!("{{{MINIMAL}{extra}}}").into_boxed_str());
        serde_json::from_str(text)
    }

    #[test]
    fn null_is_absence() {
        let event = parse(
            r#","impersonatedUser":null,"sourceIPs":null,"userAgent":null,"objectRef":null,"annotations":null,
               "responseStatus":{"metadata":{},"code":null},"requestObject":null"#,
        )
        .unwrap();
        assert!(event.source_ips.is_empty());
        assert!(event.object_ref.is_none());
        assert!(event.request_object.is_none());
    }

    #[test]
    fn a_field_that_occurs_twice_is_refused_also_in_escaped_spelling() {
        for twice in [r#","verb":"list""#, r#","v\u0065rb":"list""#, r#","objectRef":{},"objectRef":{}"#] {
            assert!(parse(twice).unwrap_err().to_string().contains("twice"), "{twice}");
        }
        assert!(parse(r#","objectRef":{"namespace":"a","n\u0061mespace":"b"}"#).is_err());
    }

    #[test]
    fn a_missing_or_mistyped_field_is_refused() {
        assert!(serde_json::from_str::<Event<'_>>("{}").is_err());
        assert!(parse(r#","stageTimestamp":7"#).is_err());
        assert!(parse(r#","objectRef":"pods""#).is_err());
    }

    #[test]
    fn annotations_are_strings_and_few_are_read() {
        let event = parse(r#","annotations":{"a":"\"","authorization.k8s.io/decision":"all\u006fw"}"#).unwrap();
        assert_eq!(event.annotations, [(Text::from("authorization.k8s.io/decision"), Text::from("allow"))]);
        assert!(event.has_other_annotations);
        assert!(!parse(r#","annotations":{"k8s.io/deprecated":"true"}"#).unwrap().has_other_annotations);
        for other in ["7", "null", "{}", r#"[""]"#] {
            assert!(parse(&format!(r#","annotations":{{"a":{other}}}"#)).is_err(), "{other}");
            assert!(parse(&format!(r#","annotations":{{"k8s.io/deprecated":{other}}}"#)).is_err(), "{other}");
        }
    }

    #[test]
    fn strings_borrow_unless_escaped() {
        let event = parse(r#","userAgent":"kube\u0063tl","stageTimestamp":"t""#).unwrap();
        assert_eq!(&*event.user_agent.unwrap(), "kubectl");
        assert!(matches!(event.stage_timestamp, Some(Text(Cow::Borrowed("t")))));
    }

    #[test]
    fn unknown_fields_are_named_and_object_fields_noticed() {
        let event = parse(r#","authenticationMetadata":{"a":1},"metadata":{}"#).unwrap();
        assert_eq!(event.unknown_fields, [Text::from("authenticationMetadata")]);
        assert!(event.carries_object_fields);
        assert!(!parse("").unwrap().carries_object_fields);
    }
}
