//! `audit.k8s.io` events as kube-apiserver sends them, borrowed from the bytes they came in.
//!
//! Decoded are the fields that decide something: attribution, selection. The event's own bytes travel beside this struct and keep
//! every field, also those that no version of this program has heard of; what of them not every reader may see is known by its place
//! ([`Part`]).
//! Source of the shape: `k8s.io/apiserver/pkg/apis/audit/v1/types.go`.

use std::borrow::Cow;
use std::ops::Range;

use crate::json::{Known, Reader, Unexpected};

/// One audit event.
///
/// A field that occurs twice is an error: two readers of the same bytes must never disagree on what they say. `null` is
/// what Go writes for an absent pointer, slice or map, and is tolerated there.
#[derive(Debug, Default)]
pub struct Event<'a> {
    /// How much of the request was recorded: `Metadata`, `Request`, `RequestResponse`.
    pub level: Cow<'a, str>,
    /// Chosen by the client if it sends an `Audit-ID` header, so never a key for anything.
    pub audit_id: Cow<'a, str>,
    /// `RequestReceived`, `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: Cow<'a, str>,
    /// The URI as the client wrote it: percent-encoded, query included.
    pub request_uri: Cow<'a, str>,
    /// The verb of upstream's `RequestInfo`, or the lower-case method of a non-resource request.
    pub verb: Cow<'a, str>,
    /// Who asked; empty where nobody could be authenticated.
    pub user: User<'a>,
    /// Who they acted as.
    pub impersonated_user: Option<User<'a>>,
    /// Where from. All but the last are the client's own claim.
    pub source_ips: Vec<Cow<'a, str>>,
    /// The client's own claim.
    pub user_agent: Option<Cow<'a, str>>,
    /// What the request was about. Parts come from the request body, so a client can write there what it likes.
    pub object_ref: Option<ObjectReference<'a>>,
    /// The outcome's HTTP status. Absent at stage `RequestReceived`.
    pub response_code: Option<i32>,
    /// RFC 3339 with microseconds.
    pub stage_timestamp: Option<Cow<'a, str>>,
    /// [`DECISION_ANNOTATION`].
    pub decision: Option<Cow<'a, str>>,
    /// What of it not every reader may see, in the order of its bytes.
    pub parts: Vec<PlacedPart>,
    /// Whether its bytes are on several lines.
    pub has_line_breaks: bool,
}

/// What of an event not every reader may see. All else is named in this module, and is of the type that upstream gives it: a field
/// that upstream adds is [`Part::Unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `TypeMeta` or `ObjectMeta`: `kind`, `apiVersion`, `metadata`, which items of v1beta1 lists carry and those of v1 do not. A
    /// watch client needs others.
    Meta,
    /// The value of `requestURI`.
    RequestUri,
    /// `user.uid`.
    UserUid,
    /// `user.extra`: for the authenticator's free use, credential identifiers among it.
    UserExtra,
    /// `impersonatedUser.uid`.
    ImpersonatedUserUid,
    /// `impersonatedUser.extra`.
    ImpersonatedUserExtra,
    /// `sourceIPs`.
    SourceIps,
    /// `responseStatus.message`.
    ResponseMessage,
    /// `responseStatus.details`.
    ResponseDetails,
    /// `requestObject`: the request's body, at level `Request` and above.
    RequestObject,
    /// `responseObject`: the response's body, at level `RequestResponse`.
    ResponseObject,
    /// The annotation that says by which binding and role the request was allowed.
    AuthorizationReason,
    /// Another annotation, but for those that name a decision and not a content: [`DECISION_ANNOTATION`],
    /// [`TRUNCATED_ANNOTATION`], `k8s.io/deprecated` and `k8s.io/removed-release`.
    Annotation,
    /// A field of the event that is not known.
    Unknown,
    /// A field that is not known, of one that is.
    UnknownNested,
}

/// Where a [`Part`] lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedPart {
    /// Which it is.
    pub part: Part,
    /// Its bytes, counted from the event's first. They begin with the comma before its name, or behind the brace where it is its
    /// object's first member, and end where its object's next comma or brace is; but of [`Part::RequestUri`] they are the string.
    pub bytes: Range<usize>,
}

/// Whether an event's field of this name is one that this program knows, and so is no [`Part::Unknown`].
pub fn is_known_field(name: &str) -> bool {
    FIELDS.iter().any(|known| known.name() == name)
}

/// Upstream's mark on an event that something was taken out of.
pub const TRUNCATED_ANNOTATION: &str = "audit.k8s.io/truncated";

/// Whether the request was allowed. The one annotation that can be selected on.
pub const DECISION_ANNOTATION: &str = "authorization.k8s.io/decision";

/// An event has no more parts and items of lists together than this, or is malformed: while it is read each takes 24 bytes.
///
/// A client can make kube-apiserver write one for each three bytes of its headers (`X-Forwarded-For: ::,::,`), of which Go takes a
/// mebibyte and 4 KiB: 350,000. What they can make it write is to be read, or they could hide what they do.
pub const MAX_ITEMS: usize = 1 << 19;

/// Room for so many items is kept from one event to the next: more than most have in a list.
const KEPT_ITEMS: usize = 64;

/// The user of a request: `authentication.k8s.io/v1` `UserInfo`.
#[derive(Debug, Default)]
pub struct User<'a> {
    /// Empty where nobody could be authenticated.
    pub username: Cow<'a, str>,
    /// In the authenticator's order.
    pub groups: Vec<Cow<'a, str>>,
}

/// What a request was about.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the fields are Kubernetes' own")]
pub struct ObjectReference<'a> {
    pub resource: Option<Cow<'a, str>>,
    pub namespace: Option<Cow<'a, str>>,
    pub name: Option<Cow<'a, str>>,
    pub uid: Option<Cow<'a, str>>,
    pub api_group: Option<Cow<'a, str>>,
    pub api_version: Option<Cow<'a, str>>,
    pub subresource: Option<Cow<'a, str>>,
}

// A name in one of the lists below is shown to every reader, unless it is read as a `Part`. It has to be read as what upstream says it
// is, too: a string that may be an object may be anything.

/// The fields of an event that this program knows.
#[derive(Debug, Clone, Copy)]
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
    Meta,
}

/// In upstream's order.
static FIELDS: [Known<Field>; 19] = [
    Known::new("level", Field::Level),
    Known::new("auditID", Field::AuditId),
    Known::new("stage", Field::Stage),
    Known::new("requestURI", Field::RequestUri),
    Known::new("verb", Field::Verb),
    Known::new("user", Field::User),
    Known::new("impersonatedUser", Field::ImpersonatedUser),
    Known::new("sourceIPs", Field::SourceIps),
    Known::new("userAgent", Field::UserAgent),
    Known::new("objectRef", Field::ObjectRef),
    Known::new("responseStatus", Field::ResponseStatus),
    Known::new("requestObject", Field::RequestObject),
    Known::new("responseObject", Field::ResponseObject),
    Known::new("requestReceivedTimestamp", Field::RequestReceivedTimestamp),
    Known::new("stageTimestamp", Field::StageTimestamp),
    Known::new("annotations", Field::Annotations),
    Known::new("kind", Field::Meta),
    Known::new("apiVersion", Field::Meta),
    Known::new("metadata", Field::Meta),
];

/// The annotations whose names are known.
#[derive(Debug, Clone, Copy)]
enum Annotation {
    Decision,
    Reason,
    /// It names a decision and not a content.
    Plain,
}

/// The first two in the order in which Go writes them.
static ANNOTATIONS: [Known<Annotation>; 5] = [
    Known::new(DECISION_ANNOTATION, Annotation::Decision),
    Known::new("authorization.k8s.io/reason", Annotation::Reason),
    Known::new(TRUNCATED_ANNOTATION, Annotation::Plain),
    Known::new("k8s.io/deprecated", Annotation::Plain),
    Known::new("k8s.io/removed-release", Annotation::Plain),
];

#[derive(Debug, Clone, Copy)]
enum UserField {
    Username,
    Uid,
    Groups,
    Extra,
}

/// In upstream's order.
static USER_FIELDS: [Known<UserField>; 4] = [
    Known::new("username", UserField::Username),
    Known::new("uid", UserField::Uid),
    Known::new("groups", UserField::Groups),
    Known::new("extra", UserField::Extra),
];

#[derive(Debug, Clone, Copy)]
enum ReferenceField {
    Resource,
    Namespace,
    Name,
    Uid,
    ApiGroup,
    ApiVersion,
    ResourceVersion,
    Subresource,
}

/// In upstream's order.
static REFERENCE_FIELDS: [Known<ReferenceField>; 8] = [
    Known::new("resource", ReferenceField::Resource),
    Known::new("namespace", ReferenceField::Namespace),
    Known::new("name", ReferenceField::Name),
    Known::new("uid", ReferenceField::Uid),
    Known::new("apiGroup", ReferenceField::ApiGroup),
    Known::new("apiVersion", ReferenceField::ApiVersion),
    Known::new("resourceVersion", ReferenceField::ResourceVersion),
    Known::new("subresource", ReferenceField::Subresource),
];

#[derive(Debug, Clone, Copy)]
enum StatusField {
    Metadata,
    Status,
    Message,
    Reason,
    Details,
    Code,
}

/// In upstream's order.
static STATUS_FIELDS: [Known<StatusField>; 6] = [
    Known::new("metadata", StatusField::Metadata),
    Known::new("status", StatusField::Status),
    Known::new("message", StatusField::Message),
    Known::new("reason", StatusField::Reason),
    Known::new("details", StatusField::Details),
    Known::new("code", StatusField::Code),
];

/// The first six: upstream writes them always, for they have no `omitempty`.
const REQUIRED: u32 = 0b11_1111;

/// The parts of an event, as they are come upon.
struct Parts<'p> {
    placed: &'p mut Vec<PlacedPart>,
    /// Where the event begins.
    start: usize,
    /// How many there may still be, and items of lists.
    items_left: usize,
}

impl Parts<'_> {
    /// Reads the value of the member whose name was read last, and notes it as a part.
    fn member<'a, T>(
        &mut self,
        part: Part,
        reader: &mut Reader<'a>,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, Unexpected>,
    ) -> Result<T, Unexpected> {
        let start = reader.start_of_member();
        let value = read(reader)?;
        self.note(part, start, reader)?;
        Ok(value)
    }

    /// Notes a part that ends here.
    fn note(&mut self, part: Part, start: usize, reader: &mut Reader<'_>) -> Result<(), Unexpected> {
        self.count_item(reader)?;
        self.placed.push(PlacedPart { part, bytes: start - self.start..reader.start_of_token() - self.start });
        Ok(())
    }

    /// Counts one thing more of which the event may have any number.
    fn count_item(&mut self, reader: &Reader<'_>) -> Result<(), Unexpected> {
        self.items_left = self.items_left.checked_sub(1).ok_or(reader.unexpected())?;
        Ok(())
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
        let line_breaks = reader.line_breaks();
        let mut placed = std::mem::take(&mut self.parts);
        let mut parts = Parts { placed: &mut placed, start: reader.start_of_token(), items_left: MAX_ITEMS };
        let seen = reader.fields(&FIELDS, |reader, field| match field {
            Some(field) => self.read_field(field, reader, &mut parts),
            None => parts.member(Part::Unknown, reader, Reader::skip),
        })?;
        self.parts = placed;
        self.has_line_breaks = reader.line_breaks() > line_breaks;
        if seen & REQUIRED == REQUIRED { Ok(()) } else { Err(reader.unexpected()) }
    }

    /// Makes it the default, but keeps the room that its lists have.
    fn clear(&mut self) {
        let source_ips = emptied(&mut self.source_ips);
        let groups = emptied(&mut self.user.groups);
        let parts = emptied(&mut self.parts);
        *self = Self { source_ips, parts, user: User { groups, ..User::default() }, ..Self::default() };
    }

    fn read_field(&mut self, field: Field, reader: &mut Reader<'a>, parts: &mut Parts<'_>) -> Result<(), Unexpected> {
        match field {
            Field::Level => self.level = reader.string()?,
            Field::AuditId => self.audit_id = reader.string()?,
            Field::Stage => self.stage = reader.string()?,
            Field::RequestUri => {
                let start = reader.start_of_token();
                self.request_uri = reader.string()?;
                parts.note(Part::RequestUri, start, reader)?;
            }
            Field::Verb => self.verb = reader.string()?,
            Field::User => self.user.read(reader, parts, [Part::UserUid, Part::UserExtra])?,
            Field::ImpersonatedUser => {
                self.impersonated_user = reader.optional(|reader| {
                    let mut user = User::default();
                    user.read(reader, parts, [Part::ImpersonatedUserUid, Part::ImpersonatedUserExtra])?;
                    Ok(user)
                })?;
            }
            Field::SourceIps => {
                let start = reader.start_of_member();
                read_texts(&mut self.source_ips, reader, parts)?;
                parts.note(Part::SourceIps, start, reader)?;
            }
            Field::UserAgent => self.user_agent = reader.optional(Reader::string)?,
            Field::ObjectRef => {
                self.object_ref = reader.optional(|reader| ObjectReference::read(reader, parts))?;
            }
            Field::ResponseStatus => {
                self.response_code = reader.optional(|reader| read_response_status(reader, parts))?.flatten();
            }
            Field::RequestObject => parts.member(Part::RequestObject, reader, Reader::skip)?,
            Field::ResponseObject => parts.member(Part::ResponseObject, reader, Reader::skip)?,
            Field::RequestReceivedTimestamp => read_shown_string(reader)?,
            Field::StageTimestamp => self.stage_timestamp = reader.optional(Reader::string)?,
            Field::Annotations => drop(reader.optional(|reader| self.read_annotations(reader, parts))?),
            Field::Meta => parts.member(Part::Meta, reader, Reader::skip)?,
        }
        Ok(())
    }

    fn read_annotations(&mut self, reader: &mut Reader<'a>, parts: &mut Parts<'_>) -> Result<(), Unexpected> {
        reader.fields(&ANNOTATIONS, |reader, annotation| match annotation {
            Some(Annotation::Decision) => {
                self.decision = Some(reader.string()?);
                Ok(())
            }
            Some(Annotation::Reason) => parts.member(Part::AuthorizationReason, reader, Reader::skip_string),
            Some(Annotation::Plain) => reader.string().map(drop),
            None => parts.member(Part::Annotation, reader, Reader::skip_string),
        })?;
        Ok(())
    }
}

/// An empty list with the room of this one, or with little if that is far more than others need.
fn emptied<T>(list: &mut Vec<T>) -> Vec<T> {
    let mut emptied = std::mem::take(list);
    emptied.clear();
    emptied.shrink_to(KEPT_ITEMS);
    emptied
}

impl<'a> User<'a> {
    fn read(
        &mut self,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'_>,
        [uid, extra]: [Part; 2],
    ) -> Result<(), Unexpected> {
        reader.fields(&USER_FIELDS, |reader, field| {
            match field {
                Some(UserField::Username) => self.username = reader.string()?,
                Some(UserField::Uid) => parts.member(uid, reader, skip_optional_string)?,
                Some(UserField::Groups) => read_texts(&mut self.groups, reader, parts)?,
                Some(UserField::Extra) => parts.member(extra, reader, Reader::skip)?,
                None => parts.member(Part::UnknownNested, reader, Reader::skip)?,
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl<'a> ObjectReference<'a> {
    fn read(reader: &mut Reader<'a>, parts: &mut Parts<'_>) -> Result<Self, Unexpected> {
        let mut reference = Self::default();
        reader.fields(&REFERENCE_FIELDS, |reader, field| {
            let field = match field {
                Some(ReferenceField::Resource) => &mut reference.resource,
                Some(ReferenceField::Namespace) => &mut reference.namespace,
                Some(ReferenceField::Name) => &mut reference.name,
                Some(ReferenceField::Uid) => &mut reference.uid,
                Some(ReferenceField::ApiGroup) => &mut reference.api_group,
                Some(ReferenceField::ApiVersion) => &mut reference.api_version,
                Some(ReferenceField::ResourceVersion) => return read_shown_string(reader),
                Some(ReferenceField::Subresource) => &mut reference.subresource,
                None => return parts.member(Part::UnknownNested, reader, Reader::skip),
            };
            *field = reader.optional(Reader::string)?;
            Ok(())
        })?;
        Ok(reference)
    }
}

/// Reads the parts of a `meta/v1` `Status` that occur in audit events; of interest is the code.
fn read_response_status(reader: &mut Reader<'_>, parts: &mut Parts<'_>) -> Result<Option<i32>, Unexpected> {
    let mut code = None;
    reader.fields(&STATUS_FIELDS, |reader, field| {
        match field {
            Some(StatusField::Metadata) => read_empty_metadata(reader, parts)?,
            Some(StatusField::Status | StatusField::Reason) => read_shown_string(reader)?,
            Some(StatusField::Message) => parts.member(Part::ResponseMessage, reader, skip_optional_string)?,
            Some(StatusField::Details) => parts.member(Part::ResponseDetails, reader, Reader::skip)?,
            Some(StatusField::Code) => code = reader.optional(Reader::integer)?,
            None => parts.member(Part::UnknownNested, reader, Reader::skip)?,
        }
        Ok(())
    })?;
    Ok(code)
}

/// Reads past an object that is always there and empty, and is a part if it is not.
fn read_empty_metadata(reader: &mut Reader<'_>, parts: &mut Parts<'_>) -> Result<(), Unexpected> {
    let (member, value) = (reader.start_of_member(), reader.start_of_token());
    reader.skip()?;
    if reader.read_since(value) != "{}" {
        parts.note(Part::UnknownNested, member, reader)?;
    }
    Ok(())
}

/// Reads a string or `null` that decides nothing. Readers who see it have to be able to read it, so half of a surrogate pair is no
/// part of it.
fn read_shown_string(reader: &mut Reader<'_>) -> Result<(), Unexpected> {
    reader.optional(Reader::string).map(drop)
}

/// Reads past a string or `null`.
fn skip_optional_string(reader: &mut Reader<'_>) -> Result<(), Unexpected> {
    reader.optional(Reader::skip_string).map(drop)
}

/// Reads a list of strings, or `null`, into one that is empty.
fn read_texts<'a>(
    texts: &mut Vec<Cow<'a, str>>,
    reader: &mut Reader<'a>,
    parts: &mut Parts<'_>,
) -> Result<(), Unexpected> {
    let read = |reader: &mut Reader<'a>| {
        reader.list(|reader| {
            parts.count_item(reader)?;
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

    fn text(extra: &str) -> &'static str {
        // Tests only: the text must outlive the event that borrows from it.
        Box::leak(format!("{{{MINIMAL}{extra}}}").into_boxed_str())
    }

    fn parse(extra: &str) -> Result<Event<'static>, Unexpected> {
        Event::parse(text(extra))
    }

    /// The parts of a minimal event with more members, but for the URI.
    fn parts(extra: &str) -> Vec<(Part, &'static str)> {
        let text = text(extra);
        let parts = Event::parse(text).unwrap().parts;
        let parts: Vec<_> = parts.into_iter().map(|placed| (placed.part, &text[placed.bytes])).collect();
        assert_eq!(parts[0], (Part::RequestUri, r#""/x""#));
        parts[1..].to_vec()
    }

    #[test]
    fn null_is_absence() {
        let event = parse(
            r#","impersonatedUser":null,"sourceIPs":null,"userAgent":null,"objectRef":null,"annotations":null,
               "responseStatus":{"metadata":{},"code":null,"message":null},"requestObject":null"#,
        )
        .unwrap();
        assert!(event.source_ips.is_empty());
        assert!(event.object_ref.is_none());
        assert_eq!(event.response_code, None);
    }

    #[test]
    fn a_field_that_occurs_twice_is_refused_also_in_escaped_spelling() {
        for twice in [r#","verb":"list""#, r#","v\u0065rb":"list""#, r#","objectRef":{},"objectRef":{}"#] {
            assert!(parse(twice).is_err(), "{twice}");
        }
        let nested = [
            r#","objectRef":{"namespace":"a","n\u0061mespace":"b"}"#,
            r#","objectRef":{"namespace":null,"namespace":"b"}"#,
            r#","objectRef":{"resourceVersion":"1","resourceVersion":"1"}"#,
            r#","impersonatedUser":{"username":"a","username":"a"}"#,
            r#","impersonatedUser":{"groups":[],"groups":[]}"#,
            r#","responseStatus":{"code":200,"code":403}"#,
            r#","responseStatus":{"metadata":{},"metadata":{}}"#,
            r#","annotations":{"k8s.io/deprecated":"true","k8s.io/deprecat\u0065d":"true"}"#,
        ];
        for twice in nested {
            assert!(parse(twice).is_err(), "{twice}");
        }
    }

    /// What is no part is shown as it stands, so it has to be what it is said to be.
    #[test]
    fn a_missing_or_mistyped_field_is_refused() {
        assert!(Event::parse("{}").is_err());
        let mistyped = [
            r#","stageTimestamp":7"#,
            r#","requestReceivedTimestamp":{"a":"b"}"#,
            r#","userAgent":["a"]"#,
            r#","objectRef":"pods""#,
            r#","objectRef":{"resourceVersion":7}"#,
            r#","responseStatus":{"status":{}}"#,
            r#","responseStatus":{"reason":["a"]}"#,
            r#","responseStatus":{"code":"200"}"#,
            r#","impersonatedUser":{"groups":[{}]}"#,
            r#","impersonatedUser":{"groups":{}}"#,
        ];
        for mistyped in mistyped {
            assert!(parse(mistyped).is_err(), "{mistyped}");
        }
    }

    #[test]
    fn annotations_are_strings_and_the_plain_ones_are_no_parts() {
        let annotations = r#","annotations":{"a":"\"","authorization.k8s.io/decision":"all\u006fw","b":""}"#;
        assert_eq!(parse(annotations).unwrap().decision.as_deref(), Some("allow"));
        assert_eq!(parts(annotations), [(Part::Annotation, r#""a":"\"""#), (Part::Annotation, r#","b":"""#)]);
        for plain in [DECISION_ANNOTATION, TRUNCATED_ANNOTATION, "k8s.io/deprecated", "k8s.io/removed-release"] {
            assert_eq!(parts(&format!(r#","annotations":{{"{plain}":"x"}}"#)), []);
        }
        for other in ["7", "null", "{}", r#"[""]"#] {
            assert!(parse(&format!(r#","annotations":{{"a":{other}}}"#)).is_err(), "{other}");
            assert!(parse(&format!(r#","annotations":{{"k8s.io/deprecated":{other}}}"#)).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_by_all() {
        let half = r#""\ud800""#;
        for shown in
            ["objectRef\":{\"resourceVersion", "responseStatus\":{\"reason", "annotations\":{\"k8s.io/deprecated"]
        {
            assert!(parse(&format!(",\"{shown}\":{half}}}")).is_err(), "{shown}");
        }
        assert!(parse(&format!(",\"requestReceivedTimestamp\":{half}")).is_err());
        for hidden in ["impersonatedUser\":{\"uid", "responseStatus\":{\"message", "annotations\":{\"a"] {
            assert!(parse(&format!(",\"{hidden}\":{half}}}")).is_ok(), "{hidden}");
        }
    }

    #[test]
    fn the_number_of_things_in_an_event_is_bounded() {
        let addresses = |count: usize| format!(r#","sourceIPs":["::"{}]"#, r#","::""#.repeat(count - 1));
        // The URI and the list are parts.
        assert_eq!(parse(&addresses(MAX_ITEMS - 2)).unwrap().source_ips.len(), MAX_ITEMS - 2);
        assert!(parse(&addresses(MAX_ITEMS - 1)).is_err());
        assert!(parse(&r#","a":0"#.repeat(MAX_ITEMS - 1)).is_ok());
        assert!(parse(&r#","a":0"#.repeat(MAX_ITEMS)).is_err());
        let (groups, annotations) = (format!("\"\"{}", ",\"\"".repeat(MAX_ITEMS / 2)), r#""a":"""#);
        let annotations = format!("{annotations}{}", r#","a":"""#.repeat(MAX_ITEMS / 2));
        let both = format!(r#","impersonatedUser":{{"groups":[{groups}]}},"annotations":{{{annotations}}}"#);
        assert!(parse(&both).is_err());
    }

    #[test]
    fn strings_borrow_unless_escaped() {
        let event = parse(r#","userAgent":"kube\u0063tl","stageTimestamp":"t""#).unwrap();
        assert_eq!(event.user_agent.unwrap(), "kubectl");
        assert!(matches!(event.stage_timestamp, Some(Cow::Borrowed("t"))));
    }

    #[test]
    fn parts_are_placed_with_the_comma_before_them() {
        let user =
            |name: &str| format!(r#","{name}":{{"uid":"u" , "username":"n","extra":{{"k":["v"]}} , "later":1}}"#);
        assert_eq!(
            parts(&user("impersonatedUser")),
            [
                (Part::ImpersonatedUserUid, r#""uid":"u" "#),
                (Part::ImpersonatedUserExtra, r#","extra":{"k":["v"]} "#),
                (Part::UnknownNested, r#", "later":1"#)
            ]
        );
        let all = concat!(
            r#","sourceIPs":["a"],"objectRef":{"later":1},"responseStatus":{"metadata":{},"message":"m","details":{},"later":1}"#,
            r#","requestObject":1,"responseObject":{},"authenticationMetadata":{"a":1},"kind":"Event","metadata":{"name":"x"}"#
        );
        let expected = [
            (Part::SourceIps, r#","sourceIPs":["a"]"#),
            (Part::UnknownNested, r#""later":1"#),
            (Part::ResponseMessage, r#","message":"m""#),
            (Part::ResponseDetails, r#","details":{}"#),
            (Part::UnknownNested, r#","later":1"#),
            (Part::RequestObject, r#","requestObject":1"#),
            (Part::ResponseObject, r#","responseObject":{}"#),
            (Part::Unknown, r#","authenticationMetadata":{"a":1}"#),
            (Part::Meta, r#","kind":"Event""#),
            (Part::Meta, r#","metadata":{"name":"x"}"#),
        ];
        assert_eq!(parts(all), expected);
        assert_eq!(
            parts(r#","responseStatus":{"metadata":{"a":1}}"#),
            [(Part::UnknownNested, r#""metadata":{"a":1}"#)]
        );
        let first =
            Event::parse(r#"{"uid":1,"level":"","auditID":"","stage":"","requestURI":"","verb":"","user":{"uid":""}}"#);
        let first = first.unwrap().parts;
        assert_eq!(first[0], PlacedPart { part: Part::Unknown, bytes: 1..8 });
        assert_eq!(first[2].part, Part::UserUid);
    }

    #[test]
    fn places_are_counted_from_the_event() {
        let text = format!("[ 7,\n {{{MINIMAL},\"x\":1}} ]");
        let (mut reader, mut event) = (Reader::new(&text), Event::default());
        let mut items = 0;
        let list = reader.list(|reader| {
            items += 1;
            if items == 1 { reader.skip() } else { event.replace(reader) }
        });
        list.unwrap();
        let own = &text[text.find('{').unwrap()..];
        assert_eq!(&own[event.parts[1].bytes.clone()], ",\"x\":1");
    }
}
