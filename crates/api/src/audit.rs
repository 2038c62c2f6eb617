//! `audit.k8s.io` events as kube-apiserver sends them, borrowed from the bytes they came in.
//!
//! Only the fields that decide something are named here: attribution, selection, the view. The event's own bytes travel
//! beside this struct and keep every field, also those that no version of this program has heard of.
//! Source of the shape: `k8s.io/apiserver/pkg/apis/audit/v1/types.go`.

use std::borrow::Cow;
use std::ops::Deref;

use crate::json::{Reader, Unexpected};
use crate::object::{needs_escapes, write_json, write_plain};

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
    /// Whether there is the request's body, at level `Request` and above.
    pub has_request_object: bool,
    /// Whether there is the response's body, at level `RequestResponse`.
    pub has_response_object: bool,
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
    /// Whether its bytes are on several lines.
    pub has_line_breaks: bool,
}

/// Whether an event's field of this name is one that this program reads, and so is not among
/// [`Event::unknown_fields`].
pub fn is_known_field(name: &str) -> bool {
    Field::named(name).is_some()
}

/// The annotations whose values decide something, and so are decoded. Others can be long and full of escapes: the one that
/// says why the authorizer agreed is the longest string of most events.
pub const READ_ANNOTATIONS: [&str; 4] =
    [TRUNCATED_ANNOTATION, DECISION_ANNOTATION, "k8s.io/deprecated", "k8s.io/removed-release"];

/// Upstream's mark on an event that something was taken out of.
pub const TRUNCATED_ANNOTATION: &str = "audit.k8s.io/truncated";

/// Whether the request was allowed. The one annotation that can be selected on.
pub const DECISION_ANNOTATION: &str = "authorization.k8s.io/decision";

/// Room for so many items is kept from one event to the next: more than most have in a list.
const KEPT_ITEMS: usize = 64;

/// The user of a request: `authentication.k8s.io/v1` `UserInfo`.
#[derive(Debug, Default)]
pub struct User<'a> {
    /// Empty where nobody could be authenticated.
    pub username: Text<'a>,
    /// Unique over time where the authenticator has such a thing.
    pub uid: Option<Text<'a>>,
    /// In the authenticator's order.
    pub groups: Vec<Text<'a>>,
    /// Whether there is anything for the authenticator's free use, credential identifiers among it.
    pub has_extra: bool,
}

/// What a request was about.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own")]
pub struct ObjectReference<'a> {
    pub resource: Option<Text<'a>>,
    pub namespace: Option<Text<'a>>,
    pub name: Option<Text<'a>>,
    pub uid: Option<Text<'a>>,
    pub api_group: Option<Text<'a>>,
    pub api_version: Option<Text<'a>>,
    pub resource_version: Option<Text<'a>>,
    pub subresource: Option<Text<'a>>,
}

/// The outcome of a request: the parts of `meta/v1` `Status` that occur in audit events.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own")]
pub struct ResponseStatus<'a> {
    pub status: Option<Text<'a>>,
    pub reason: Option<Text<'a>>,
    pub code: Option<i32>,
    /// Whether it has a message.
    pub has_message: bool,
    /// Whether it has details.
    pub has_details: bool,
}

/// A string that borrows from the input unless an escape sequence in it had to be decoded. What it borrows can be written into JSON
/// as it is.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Text<'a>(Cow<'a, str>);

impl<'a> Text<'a> {
    /// What stood between the quotes of a JSON string and has no escapes.
    pub(crate) fn plain(text: &'a str) -> Self {
        debug_assert!(!needs_escapes(text), "{text:?}");
        Self(Cow::Borrowed(text))
    }

    /// Appends it as a JSON string.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Cow::Borrowed(plain) => write_plain(out, plain),
            Cow::Owned(text) => write_json(out, text),
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        if needs_escapes(text) { text.to_owned().into() } else { Self::plain(text) }
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

/// The fields of an event that this program reads.
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

/// Upstream writes these always: they have no `omitempty`.
const REQUIRED: [Field; 6] = [Field::Level, Field::AuditId, Field::Stage, Field::RequestUri, Field::Verb, Field::User];

/// Which fields of an object there have been.
#[derive(Default)]
struct Seen(u32);

impl Seen {
    /// Notes a field by its number, below 32; an error if it was there before.
    fn note(&mut self, field: u32, reader: &Reader<'_>) -> Result<(), Unexpected> {
        if self.has(field) {
            return Err(reader.unexpected());
        }
        self.0 |= 1 << field;
        Ok(())
    }

    fn has(&self, field: u32) -> bool {
        self.0 & (1 << field) != 0
    }
}

impl<'a> Event<'a> {
    /// The event that is the whole of a text.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &'a str) -> Result<Self, Unexpected> {
        let (mut reader, mut event) = (Reader::new(text), Self::default());
        event.replace(&mut reader)?;
        reader.end()?;
        Ok(event)
    }

    /// Reads an event into the place of this one, of which nothing remains but room. An event is too large to be handed from
    /// function to function cheaply, and whoever reads many needs one at a time.
    ///
    /// # Errors
    /// If it is none. This one is some of both then.
    pub fn replace(&mut self, reader: &mut Reader<'a>) -> Result<(), Unexpected> {
        self.clear();
        let (mut seen, line_breaks) = (Seen::default(), reader.line_breaks());
        reader.object(|reader, name| {
            let Some(field) = Field::named(&name) else {
                self.unknown_fields.push(name);
                return reader.skip();
            };
            seen.note(field as u32, reader)?;
            self.read_field(field, reader)
        })?;
        self.has_line_breaks = reader.line_breaks() > line_breaks;
        if REQUIRED.into_iter().all(|field| seen.has(field as u32)) { Ok(()) } else { Err(reader.unexpected()) }
    }

    /// Makes it the default, but keeps the room that its lists have.
    fn clear(&mut self) {
        let mut kept = (
            std::mem::take(&mut self.source_ips),
            std::mem::take(&mut self.user.groups),
            std::mem::take(&mut self.annotations),
        );
        // Of one that had far more than others nothing is left.
        kept.0.clear();
        kept.0.shrink_to(KEPT_ITEMS);
        kept.1.clear();
        kept.1.shrink_to(KEPT_ITEMS);
        kept.2.clear();
        kept.2.shrink_to(KEPT_ITEMS);
        *self = Self::default();
        (self.source_ips, self.user.groups, self.annotations) = kept;
    }

    fn read_field(&mut self, field: Field, reader: &mut Reader<'a>) -> Result<(), Unexpected> {
        match field {
            Field::Level => self.level = reader.string()?,
            Field::AuditId => self.audit_id = reader.string()?,
            Field::Stage => self.stage = reader.string()?,
            Field::RequestUri => self.request_uri = reader.string()?,
            Field::Verb => self.verb = reader.string()?,
            Field::User => self.user.read(reader)?,
            Field::ImpersonatedUser => {
                self.impersonated_user = reader.optional(|reader| {
                    let mut user = User::default();
                    user.read(reader).map(|()| user)
                })?;
            }
            Field::SourceIps => read_texts(&mut self.source_ips, reader)?,
            Field::UserAgent => self.user_agent = reader.optional(Reader::string)?,
            Field::ObjectRef => self.object_ref = reader.optional(ObjectReference::read)?,
            Field::ResponseStatus => self.response_status = reader.optional(ResponseStatus::read)?,
            Field::RequestObject => self.has_request_object = reader.optional(Reader::skip)?.is_some(),
            Field::ResponseObject => self.has_response_object = reader.optional(Reader::skip)?.is_some(),
            Field::RequestReceivedTimestamp => self.request_received_timestamp = reader.optional(Reader::string)?,
            Field::StageTimestamp => self.stage_timestamp = reader.optional(Reader::string)?,
            Field::Annotations => drop(reader.optional(|reader| self.read_annotations(reader))?),
            Field::Kind | Field::ApiVersion | Field::Metadata => {
                self.carries_object_fields = true;
                reader.skip()?;
            }
        }
        Ok(())
    }

    fn read_annotations(&mut self, reader: &mut Reader<'a>) -> Result<(), Unexpected> {
        reader.object(|reader, name| {
            if READ_ANNOTATIONS.contains(&&*name) {
                self.annotations.push((name, reader.string()?));
                return Ok(());
            }
            self.has_other_annotations = true;
            reader.skip_string()
        })
    }
}

impl<'a> User<'a> {
    fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), Unexpected> {
        let mut seen = Seen::default();
        reader.object(|reader, name| {
            match &*name {
                "username" => {
                    seen.note(0, reader)?;
                    self.username = reader.string()?;
                }
                "uid" => {
                    seen.note(1, reader)?;
                    self.uid = reader.optional(Reader::string)?;
                }
                "groups" => {
                    seen.note(2, reader)?;
                    read_texts(&mut self.groups, reader)?;
                }
                "extra" => {
                    seen.note(3, reader)?;
                    self.has_extra = reader.optional(Reader::skip)?.is_some();
                }
                _ => reader.skip()?,
            }
            Ok(())
        })
    }
}

impl<'a> ObjectReference<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Unexpected> {
        let (mut reference, mut seen) = (Self::default(), Seen::default());
        reader.object(|reader, name| {
            let (number, field) = match &*name {
                "resource" => (0, &mut reference.resource),
                "namespace" => (1, &mut reference.namespace),
                "name" => (2, &mut reference.name),
                "uid" => (3, &mut reference.uid),
                "apiGroup" => (4, &mut reference.api_group),
                "apiVersion" => (5, &mut reference.api_version),
                "resourceVersion" => (6, &mut reference.resource_version),
                "subresource" => (7, &mut reference.subresource),
                _ => return reader.skip(),
            };
            seen.note(number, reader)?;
            *field = reader.optional(Reader::string)?;
            Ok(())
        })?;
        Ok(reference)
    }
}

impl<'a> ResponseStatus<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Unexpected> {
        let (mut status, mut seen) = (Self::default(), Seen::default());
        reader.object(|reader, name| {
            match &*name {
                "status" => {
                    seen.note(0, reader)?;
                    status.status = reader.optional(Reader::string)?;
                }
                "reason" => {
                    seen.note(1, reader)?;
                    status.reason = reader.optional(Reader::string)?;
                }
                "code" => {
                    seen.note(2, reader)?;
                    status.code = reader.optional(Reader::integer)?;
                }
                "message" => {
                    seen.note(3, reader)?;
                    status.has_message = reader.optional(Reader::skip_string)?.is_some();
                }
                "details" => {
                    seen.note(4, reader)?;
                    status.has_details = reader.optional(Reader::skip)?.is_some();
                }
                // `metadata`, which is empty.
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(status)
    }
}

/// Reads a list of strings, or `null`, into one that is empty.
fn read_texts<'a>(texts: &mut Vec<Text<'a>>, reader: &mut Reader<'a>) -> Result<(), Unexpected> {
    let read = |reader: &mut Reader<'a>| {
        reader.list(|reader| {
            texts.push(reader.string()?);
            Ok(())
        })
    };
    reader.optional(read).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        r#""level":"Metadata","auditID":"a","stage":"ResponseComplete","requestURI":"/x","verb":"get","user":{}"#;

    fn parse(extra: &str) -> Result<Event<'static>, Unexpected> {
        // Tests only: the text must outlive the event that borrows from it.
        let text: &'static str = Box::leak(format!("{{{MINIMAL}{extra}}}").into_boxed_str());
        Event::parse(text)
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
        assert!(!event.has_request_object);
    }

    #[test]
    fn a_field_that_occurs_twice_is_refused_also_in_escaped_spelling() {
        for twice in [r#","verb":"list""#, r#","v\u0065rb":"list""#, r#","objectRef":{},"objectRef":{}"#] {
            assert!(parse(twice).is_err(), "{twice}");
        }
        let nested = [
            r#","objectRef":{"namespace":"a","n\u0061mespace":"b"}"#,
            r#","objectRef":{"namespace":null,"namespace":"b"}"#,
            r#","impersonatedUser":{"username":"a","username":"a"}"#,
            r#","impersonatedUser":{"groups":[],"groups":[]}"#,
            r#","responseStatus":{"code":200,"code":403}"#,
        ];
        for twice in nested {
            assert!(parse(twice).is_err(), "{twice}");
        }
    }

    #[test]
    fn a_missing_or_mistyped_field_is_refused() {
        assert!(Event::parse("{}").is_err());
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
