//! One accepted batch: what the bus stores and every watch class reads.
//!
//! All text of a batch lies in one buffer, and everything else is places in it: the events' own bytes, what
//! `namespacedevents` shows of them, and the values that selectors compare. A value that the event's own bytes spell out
//! is not stored twice.

use std::borrow::Cow;

use audit_stream_api::audit::{Event, Members, Text};
use audit_stream_api::object::{GapReason, write_json};
use audit_stream_api::selector::Field;
use serde_json::value::RawValue;

use crate::view;

/// The events of one batch, immutable.
#[derive(Debug)]
pub struct Batch {
    text: Box<[u8]>,
    events: Box<[Stored]>,
    /// Groups and source IPs of all events, which have any number of them.
    lists: Box<[Span]>,
    lost: Option<GapReason>,
}

/// Makes a [`Batch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    text: Vec<u8>,
    events: Vec<Stored>,
    lists: Vec<Span>,
    lost: Option<GapReason>,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'a> {
    batch: &'a Batch,
    stored: &'a Stored,
}

/// The largest body whose batch's text is sure to be addressed by 32 bits: twenty-four times as much.
///
/// Bytes that are no text become three. Of that, the events' own bytes are as much at most, decoded values and what is shown
/// are no more, and masks make a URI (of nothing but `=&`) two and a half times as long, which is stored twice.
pub const MAX_BODY_BYTES: u64 = u32::MAX as u64 / 24;

#[derive(Debug)]
struct Stored {
    /// Attributed.
    namespace: Option<Span>,
    creation_timestamp: Option<Span>,
    /// The event's own fields, without braces.
    full: Span,
    /// What `namespacedevents` shows of them.
    shown: Span,
    /// Which it does not show, for the annotation.
    withheld_names: Span,
    /// By ordinal of [`Field`]. Empty for fields that are absent, have many values or are made by the server.
    values: [Span; Field::ALL.len()],
    /// `requestURI` as `namespacedevents` shows it.
    masked_uri: Span,
    /// In [`Batch::lists`].
    groups: Span,
    /// In [`Batch::lists`].
    source_ips: Span,
}

/// A place in a batch's text or lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

// === impl BatchBuilder ===

impl BatchBuilder {
    /// A builder with room for the events of a body of `body_bytes`.
    pub fn with_capacity(body_bytes: usize) -> Self {
        // Events at level Metadata are there twice, whole and as shown, and the latter is the shorter.
        Self { text: Vec::with_capacity(body_bytes * 2), ..Self::default() }
    }

    /// Appends an event. `json` are its bytes, which `event` borrows from; `namespace` is the attributed one.
    pub fn push(&mut self, event: &Event<'_>, json: &str, namespace: Option<&str>) {
        let mut texts = Texts::new(&mut self.text, event, json);
        let full = texts.full;
        let mut values = single_values(event).map(|value| texts.span(value));
        if let Some(code) = event.response_status.as_ref().and_then(|status| status.code) {
            values[Field::ResponseCode as usize] = texts.append(&code.to_string());
        }
        let namespace = namespace.map(|namespace| texts.append(namespace));
        values[Field::MetadataNamespace as usize] = namespace.unwrap_or_default();
        let groups = texts.list(&mut self.lists, event.user.groups.as_deref().unwrap_or_default());
        let source_ips = texts.list(&mut self.lists, &event.source_ips);
        let creation_timestamp = event.stage_timestamp.as_deref().and_then(whole_seconds);
        let creation_timestamp = creation_timestamp.map(|time| texts.append(&time));
        let mut masked_uri = values[Field::RequestUri as usize];
        let (mut shown, mut withheld_names) = (Span::default(), Span::default());
        if namespace.is_some() {
            // What has no namespace is never seen by a reader of one.
            let masked = view::mask_uri(&event.request_uri);
            if let Some(masked) = &masked {
                masked_uri = texts.append(masked);
            }
            (shown, withheld_names) = texts.view(event, masked.as_deref().unwrap_or(&event.request_uri));
        }
        self.events.push(Stored {
            namespace,
            creation_timestamp,
            full,
            shown,
            withheld_names,
            values,
            masked_uri,
            groups,
            source_ips,
        });
    }

    /// Notes that there was more than could be used.
    pub fn note_lost(&mut self, reason: GapReason) {
        self.lost = Some(reason);
    }

    /// Whether there is nothing for a reader to learn from it.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost.is_none()
    }

    /// The batch.
    pub fn build(self) -> Batch {
        let Self { text, events, lists, lost } = self;
        Batch { text: text.into(), events: events.into(), lists: lists.into(), lost }
    }
}

/// The values of the fields with one value, by ordinal; empty where absent.
fn single_values<'e>(event: &'e Event<'_>) -> [&'e str; Field::ALL.len()] {
    let reference = event.object_ref.as_ref();
    let of = |field: Option<&'e Option<Text<'_>>>| field.and_then(Option::as_deref).unwrap_or_default();
    let decision = event.annotations.iter().find(|(key, _)| &**key == "authorization.k8s.io/decision");
    Field::ALL.map(|field| match field {
        Field::AuditId => &*event.audit_id,
        Field::Level => &event.level,
        Field::Stage => &event.stage,
        Field::Verb => &event.verb,
        Field::Username => &event.user.username,
        Field::ImpersonatedUsername => event.impersonated_user.as_ref().map_or("", |user| &user.username),
        Field::UserAgent => event.user_agent.as_deref().unwrap_or_default(),
        Field::ObjectResource => of(reference.map(|reference| &reference.resource)),
        Field::ObjectApiGroup => of(reference.map(|reference| &reference.api_group)),
        Field::ObjectApiVersion => of(reference.map(|reference| &reference.api_version)),
        Field::ObjectNamespace => of(reference.map(|reference| &reference.namespace)),
        Field::ObjectName => of(reference.map(|reference| &reference.name)),
        Field::ObjectSubresource => of(reference.map(|reference| &reference.subresource)),
        Field::ObjectUid => of(reference.map(|reference| &reference.uid)),
        Field::Decision => decision.map_or("", |(_, value)| value),
        Field::RequestUri => &event.request_uri,
        // Made by the server, not text, or with many values.
        Field::MetadataName | Field::MetadataNamespace | Field::ResponseCode | Field::Groups | Field::SourceIps => "",
    })
}

/// Appends one event's texts to the batch's buffer.
struct Texts<'a> {
    buffer: &'a mut Vec<u8>,
    full: Span,
    /// The address of the event's bytes in the body, if `full` is a copy of them without the braces.
    copied_from: Option<usize>,
}

impl<'a> Texts<'a> {
    fn new(buffer: &'a mut Vec<u8>, event: &Event<'_>, json: &str) -> Self {
        let members = own_members(event, json);
        let copied_from = matches!(members, Cow::Borrowed(_)).then_some(json.as_ptr() as usize + 1);
        let mut texts = Self { buffer, full: Span::default(), copied_from };
        texts.full = texts.append(&members);
        texts
    }

    fn append(&mut self, text: &str) -> Span {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(text.as_bytes());
        Span::new(start, text.len())
    }

    /// The place of a value: inside `full` where the value borrows from the bytes that were copied there.
    fn span(&mut self, value: &str) -> Span {
        if value.is_empty() {
            return Span::default();
        }
        let offset = self.copied_from.and_then(|from| (value.as_ptr() as usize).checked_sub(from));
        match offset.filter(|offset| offset + value.len() <= self.full.len as usize) {
            Some(offset) => Span::new(self.full.start as usize + offset, value.len()),
            None => self.append(value),
        }
    }

    fn list(&mut self, lists: &mut Vec<Span>, values: &[Text<'_>]) -> Span {
        let start = lists.len();
        lists.extend(values.iter().map(|value| self.span(value)));
        Span::new(start, values.len())
    }

    /// What a reader of the namespace sees, and the names of what they do not.
    fn view(&mut self, event: &Event<'_>, shown_uri: &str) -> (Span, Span) {
        let start = self.buffer.len();
        view::write_shown(event, shown_uri, self.buffer);
        let middle = self.buffer.len();
        view::write_withheld_names(event, shown_uri, self.buffer);
        (Span::new(start, middle - start), Span::new(middle, self.buffer.len() - middle))
    }
}

impl Span {
    fn new(start: usize, len: usize) -> Self {
        let bounded = "a body is at most MAX_BODY_BYTES, so its batch's text stays below 4 GiB";
        Self { start: u32::try_from(start).expect(bounded), len: u32::try_from(len).expect(bounded) }
    }

    fn of<T>(self, all: &[T]) -> &[T] {
        &all[self.start as usize..][..self.len as usize]
    }
}

/// The event's members without braces, verbatim where they may be: without what the object replaces, without live
/// credentials, and on one line.
fn own_members<'a>(event: &Event<'_>, json: &'a str) -> Cow<'a, str> {
    let mut dropped: Vec<&str> = Vec::new();
    if event.carries_object_fields {
        dropped.extend(["kind", "apiVersion", "metadata"]);
    }
    if view::bodies_are_credentials(event) {
        dropped.extend(["requestObject", "responseObject"]);
    }
    // JSON strings hold no raw line break, so one here is a pretty-printing sender's, and would break the frame in two.
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_some() {
        let compact = compact(json);
        return Cow::Owned(members_without(&compact, &dropped));
    }
    if dropped.is_empty() {
        Cow::Borrowed(&json[1..json.len() - 1])
    } else {
        Cow::Owned(members_without(json, &dropped))
    }
}

/// The members of an event's object but for some, without braces.
pub(super) fn members_without(json: &str, dropped: &[&str]) -> String {
    let members: Members<'_, &RawValue> = serde_json::from_str(json).expect("it was read as an event before");
    let mut out = Vec::with_capacity(json.len());
    for (key, value) in members.0.iter().filter(|(key, _)| !dropped.contains(&&**key)) {
        if !out.is_empty() {
            out.push(b',');
        }
        write_json(&mut out, key);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    String::from_utf8(out).expect("made of strings")
}

/// Well-formed JSON without white space between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&char| {
            match char {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = !in_string,
                _ => {}
            }
            in_string || !matches!(char, ' ' | '\n' | '\r' | '\t')
        })
        .collect()
}

/// `2026-11-20T15:00:00.123456Z` cut to whole seconds, which is all that `meta/v1` `Time` can carry. `None` for any other
/// shape: kube-apiserver writes no other.
fn whole_seconds(micro_time: &str) -> Option<String> {
    let (seconds, fraction) = (micro_time.get(..19)?, micro_time.get(19..)?);
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let shaped = seconds.bytes().zip(shape).all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        other => byte == *other,
    });
    let fraction = fraction.strip_suffix('Z')?;
    let whole = fraction.is_empty() || fraction.strip_prefix('.')?.bytes().all(|byte| byte.is_ascii_digit());
    (shaped && whole).then(|| format!("{seconds}Z"))
}

// === impl Batch ===

impl Batch {
    /// How many events.
    #[expect(clippy::len_without_is_empty, reason = "a batch without events still says that something was lost")]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Its events, in the order of the list that they came in.
    pub fn events(&self) -> impl Iterator<Item = StoredEvent<'_>> {
        self.events.iter().map(|stored| StoredEvent { batch: self, stored })
    }

    /// The event at an index.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn event(&self, index: u32) -> StoredEvent<'_> {
        StoredEvent { batch: self, stored: &self.events[index as usize] }
    }

    /// The indices of its events.
    pub fn indices(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.events.len()).expect("a batch's text is addressed by 32 bits, and an event has some")
    }

    /// How many places it takes: one for each event, and the first for what was lost.
    pub fn places(&self) -> usize {
        self.events.len() + usize::from(self.lost.is_some())
    }

    /// Which of its places is an event's.
    pub fn place_of(&self, index: u32) -> u64 {
        u64::from(index) + u64::from(self.lost.is_some())
    }

    /// Why some of what was sent is not among the events. That has the batch's first place.
    pub fn lost(&self) -> Option<GapReason> {
        self.lost
    }

    /// The namespaces that were created, and the index of the event that says so.
    pub fn created_namespaces(&self) -> impl Iterator<Item = (u32, &str)> {
        std::iter::empty()
    }

    /// What it costs to retain.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.text.len() + size_of_val(&*self.events) + size_of_val(&*self.lists)
    }
}

impl<'a> StoredEvent<'a> {
    /// The attributed namespace.
    pub fn namespace(self) -> Option<&'a str> {
        self.stored.namespace.map(|span| self.str(span))
    }

    /// The stage's time in whole seconds.
    pub fn creation_timestamp(self) -> Option<&'a str> {
        self.stored.creation_timestamp.map(|span| self.str(span))
    }

    /// Why the event is not there itself, but only its place and what selects it.
    pub fn dropped(self) -> Option<GapReason> {
        None
    }

    /// Every field that was recorded, as JSON members.
    pub fn full(self) -> &'a [u8] {
        self.stored.full.of(&self.batch.text)
    }

    /// The fields that `namespacedevents` shows, as JSON members; empty where there is no namespace.
    pub fn shown(self) -> &'a [u8] {
        self.stored.shown.of(&self.batch.text)
    }

    /// The names of those it does not show, separated by commas.
    pub fn withheld_names(self) -> Option<&'a str> {
        Some(self.str(self.stored.withheld_names)).filter(|names| !names.is_empty())
    }

    /// Whether one of a field's values is `value`, as `events` shows it. An absent field is empty.
    pub fn holds(self, field: Field, value: &str) -> bool {
        match field {
            Field::Groups => self.list_holds(self.stored.groups, value),
            Field::SourceIps => self.list_holds(self.stored.source_ips, value),
            _ => self.is(self.stored.values[field as usize], value),
        }
    }

    /// Whether `requestURI` is `value`, as `namespacedevents` shows it.
    pub fn holds_masked_uri(self, value: &str) -> bool {
        self.is(self.stored.masked_uri, value)
    }

    fn list_holds(self, list: Span, value: &str) -> bool {
        let list = list.of(&self.batch.lists);
        list.iter().any(|span| self.is(*span, value)) || (list.is_empty() && value.is_empty())
    }

    fn is(self, span: Span, value: &str) -> bool {
        span.of(&self.batch.text) == value.as_bytes()
    }

    fn str(self, span: Span) -> &'a str {
        std::str::from_utf8(span.of(&self.batch.text)).expect("a span covers whole strings")
    }
}

#[cfg(test)]
mod tests;
