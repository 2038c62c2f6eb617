//! One accepted batch: what the bus stores and every watch class reads.
//!
//! The text of a batch lies in a few long pieces, and everything else is places in them: the events' own bytes, what
//! `namespacedevents` shows of them, and the values that selectors compare. A value that the event's own bytes spell out
//! is not stored twice.

use std::borrow::Cow;

use audit_stream_api::audit::{DECISION_ANNOTATION, Event, Text};
use audit_stream_api::json;
use audit_stream_api::object::{GapReason, write_json, write_number};
use audit_stream_api::selector::Field;

use crate::view;

/// The events of one batch, immutable.
#[derive(Debug)]
pub struct Batch {
    /// All text, an event's never in two of them.
    segments: Box<[Box<[u8]>]>,
    events: Box<[Stored]>,
    /// Groups and source IPs of all events, which have any number of them.
    lists: Box<[Span]>,
    /// Indices of the events that created their namespace.
    creations: Box<[u32]>,
    lost: Option<GapReason>,
}

/// Makes a [`Batch`].
///
/// Text is written to segments of about a mebibyte, none of which grows or moves when the next one begins. So an ordinary
/// batch takes, while it is made, three and a half times its body and one segment: the body, at most twice as much of text (its
/// events whole and as shown), a quarter for places, and the segment that is written before it is copied. At worst it takes the
/// body, that segment, three times that for one that is no text,
/// [`MAX_BATCH_FACTOR`] times that for the batch, and for the event that is being read 24 bytes for each item of its lists,
/// which are three bytes of the body at least, and as much again while such a list grows.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    segments: Vec<Box<[u8]>>,
    /// Bytes of those.
    closed_bytes: usize,
    /// The segment that is being written.
    text: Vec<u8>,
    /// Of an ordinary one.
    segment_bytes: usize,
    events: Vec<Stored>,
    lists: Vec<Span>,
    creations: Vec<u32>,
    lost: Option<GapReason>,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'a> {
    batch: &'a Batch,
    stored: &'a Stored,
}

/// The largest body whose batch is sure to be addressed by 32 bits: a quarter of what they reach.
///
/// A segment holds an ordinary one's bytes, or one event's text. That of an event which is stored whole is some megabytes;
/// of a dropped one there are the values alone, which are no longer than the event, and bytes that are no text became
/// three. The items of all lists are fewer still, because each is three bytes of text at least.
pub const MAX_BODY_BYTES: u64 = u32::MAX as u64 / 4;

/// A batch's bytes are at most so many times its body's, and a hundred besides: see [`max_bytes`].
///
/// Of a byte of an event come at most: itself; itself again as part of a decoded value; itself as shown; and if it is a part
/// of a URI with something to mask, itself once more in the URI by itself. A byte that is no text counts three, which makes
/// twelve. Everything else stays below that: masks make a query two and a half times as long, and that twice (`=&`: 7 in
/// all); an item of a list costs a place (`"",`: 5); an event costs its places and the empty fields that the view writes,
/// and is never shorter than its 70 bytes of required names (6).
pub const MAX_BATCH_FACTOR: usize = 12;

/// The most that [`Batch::bytes`] says of what comes from a body of `body_bytes`.
pub const fn max_bytes(body_bytes: usize) -> usize {
    size_of::<Batch>() + MAX_BATCH_FACTOR * body_bytes
}

/// Room for one segment's text: as much as most batches have.
pub const SEGMENT_BYTES: usize = 1 << 20;

/// What an event's text may have beyond twice its bytes without being extraordinary: masks, a date, empty fields.
const EVENT_SLACK_BYTES: usize = 1024;

/// Of a dropped event, a longer value is stored as if it were absent: nobody selects by a value that they have to page
/// through, and one like that is what the event was dropped for. Items of lists are kept however many there are, or a
/// reader who selects by group would not be told.
const MAX_DROPPED_VALUE_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct Stored {
    /// Index of the segment that the places of text lie in.
    segment: u32,
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
    /// Why there is no text of it.
    dropped: Option<GapReason>,
}

/// A place in a segment or in the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

// === impl BatchBuilder ===

impl BatchBuilder {
    /// A builder for the events of a body of `body_bytes`.
    pub fn with_capacity(body_bytes: usize) -> Self {
        Self { segment_bytes: SEGMENT_BYTES.min(body_bytes * 2), ..Self::default() }
    }

    /// Appends an event. `json` are its bytes, which `event` borrows from; `namespace` is the attributed one.
    pub fn push(&mut self, event: &Event<'_>, json: &str, namespace: Option<&str>) {
        self.make_room(json.len());
        let mut texts = Texts::new(&mut self.text, event, json);
        // What has no namespace is never seen by a reader of one.
        let masked_uri = namespace.and_then(|_| view::mask_uri(&event.request_uri));
        let mut stored = texts.selectable(event, namespace, masked_uri.as_deref(), usize::MAX, &mut self.lists);
        let seconds = event.stage_timestamp.as_deref().and_then(whole_seconds);
        stored.creation_timestamp = seconds.map(|seconds| {
            texts.append_written(|buffer| {
                buffer.extend_from_slice(seconds.as_bytes());
                buffer.push(b'Z');
            })
        });
        if namespace.is_some() {
            let shown_uri = masked_uri.as_deref().unwrap_or(&event.request_uri);
            (stored.shown, stored.withheld_names) = texts.view(event, shown_uri);
        }
        self.store(stored);
    }

    /// Appends an event of which readers get nothing but the news that it is missing: its place in the batch, and what says
    /// whose it would have been.
    pub fn push_dropped(&mut self, event: &Event<'_>, namespace: Option<&str>, reason: GapReason) {
        self.make_room(0);
        let mut texts = Texts { buffer: &mut self.text, full: Span::default(), copied_from: None };
        let masked_uri = namespace.and_then(|_| view::mask_uri(&event.request_uri));
        let masked_uri = masked_uri.as_deref();
        let stored = texts.selectable(event, namespace, masked_uri, MAX_DROPPED_VALUE_BYTES, &mut self.lists);
        self.store(Stored { dropped: Some(reason), ..stored });
    }

    /// Notes that the event appended last says that its namespace was created.
    pub fn note_creation(&mut self) {
        let last = self.events.len().checked_sub(1);
        self.creations.extend(last.and_then(|last| u32::try_from(last).ok()));
    }

    /// Notes that there was more than could be used.
    pub fn note_lost(&mut self, reason: GapReason) {
        self.lost = Some(reason);
    }

    /// What it takes so far.
    pub fn bytes(&self) -> usize {
        self.closed_bytes + self.text.len() + size_of_val(&*self.events) + size_of_val(&*self.lists)
    }

    /// Whether there is nothing for a reader to learn from it.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost.is_none()
    }

    /// The batch.
    pub fn build(mut self) -> Batch {
        self.close_segment();
        let Self { segments, events, lists, creations, lost, .. } = self;
        let (segments, events) = (segments.into(), events.into());
        Batch { segments, events, lists: lists.into(), creations: creations.into(), lost }
    }

    /// Begins a segment where this one may be too short for an event of `event_bytes`. The text of an extraordinary event
    /// makes its segment grow.
    fn make_room(&mut self, event_bytes: usize) {
        let wanted = event_bytes * 2 + EVENT_SLACK_BYTES;
        if self.text.capacity() - self.text.len() < wanted {
            self.close_segment();
            self.text.reserve(wanted.max(self.segment_bytes));
        }
    }

    /// Text of an ordinary segment is copied out, and its room used again. Cut to its length, it would be given back as less
    /// than was asked for: then the C library takes all of the next one fresh from the system, and each page of it costs more
    /// than writing it full.
    fn close_segment(&mut self) {
        if self.text.is_empty() {
            return;
        }
        self.closed_bytes += self.text.len();
        if self.text.capacity() <= SEGMENT_BYTES {
            self.segments.push(Box::from(&*self.text));
            self.text.clear();
        } else {
            self.segments.push(std::mem::take(&mut self.text).into());
        }
    }

    fn store(&mut self, stored: Stored) {
        let segment = u32::try_from(self.segments.len()).expect("each segment is a kilobyte of the body at least");
        self.events.push(Stored { segment, ..stored });
    }
}

/// The value of a field that has one; empty where absent.
fn single_value<'e>(event: &'e Event<'_>, field: Field) -> &'e str {
    let reference = event.object_ref.as_ref();
    let text = |field: Option<&'e Option<Text<'_>>>| field.and_then(Option::as_deref).unwrap_or_default();
    match field {
        Field::AuditId => &event.audit_id,
        Field::Level => &event.level,
        Field::Stage => &event.stage,
        Field::Verb => &event.verb,
        Field::Username => &event.user.username,
        Field::ImpersonatedUsername => event.impersonated_user.as_ref().map_or("", |user| &user.username),
        Field::UserAgent => text(Some(&event.user_agent)),
        Field::ObjectResource => text(reference.map(|reference| &reference.resource)),
        Field::ObjectApiGroup => text(reference.map(|reference| &reference.api_group)),
        Field::ObjectApiVersion => text(reference.map(|reference| &reference.api_version)),
        Field::ObjectNamespace => text(reference.map(|reference| &reference.namespace)),
        Field::ObjectName => text(reference.map(|reference| &reference.name)),
        Field::ObjectSubresource => text(reference.map(|reference| &reference.subresource)),
        Field::ObjectUid => text(reference.map(|reference| &reference.uid)),
        Field::Decision => {
            let decision = event.annotations.iter().find(|(key, _)| **key == *DECISION_ANNOTATION);
            decision.map_or("", |(_, value)| value)
        }
        Field::RequestUri => &event.request_uri,
        // Made by the server, not text, or with many values.
        Field::MetadataName | Field::MetadataNamespace | Field::ResponseCode | Field::Groups | Field::SourceIps => "",
    }
}

/// Appends one event's texts to a segment.
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

    fn append_written(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let start = self.buffer.len();
        write(self.buffer);
        Span::new(start, self.buffer.len() - start)
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

    /// What selectors compare, and the event's own bytes. A value of more than `longest` bytes counts as absent.
    fn selectable(
        &mut self,
        event: &Event<'_>,
        namespace: Option<&str>,
        masked_uri: Option<&str>,
        longest: usize,
        lists: &mut Vec<Span>,
    ) -> Stored {
        let kept = |value: &str| value.len() <= longest;
        let mut values = [Span::default(); Field::ALL.len()];
        for field in Field::ALL {
            let value = single_value(event, field);
            values[field as usize] = self.span(if kept(value) { value } else { "" });
        }
        if let Some(code) = event.response_status.as_ref().and_then(|status| status.code) {
            values[Field::ResponseCode as usize] = self.append_written(|buffer| write_number(buffer, code));
        }
        let namespace = namespace.map(|namespace| self.span(namespace));
        values[Field::MetadataNamespace as usize] = namespace.unwrap_or_default();
        let mut list = |values: &[Text<'_>]| {
            let start = lists.len();
            lists.extend(values.iter().map(|value| self.span(if kept(value) { value } else { "" })));
            Span::new(start, values.len())
        };
        let groups = list(&event.user.groups);
        let source_ips = list(&event.source_ips);
        let masked_uri = match masked_uri {
            Some(masked) => self.append(if kept(masked) { masked } else { "" }),
            None => values[Field::RequestUri as usize],
        };
        Stored { namespace, full: self.full, values, masked_uri, groups, source_ips, ..Stored::default() }
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
        let bounded = "a body is at most MAX_BODY_BYTES, so no segment reaches 4 GiB";
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
    // A pretty-printing sender's. They would break the frame in two.
    if event.has_line_breaks {
        let compact = compact(json);
        return Cow::Owned(members_that(&compact, |name| !dropped.contains(&name)));
    }
    if dropped.is_empty() {
        Cow::Borrowed(&json[1..json.len() - 1])
    } else {
        Cow::Owned(members_that(json, |name| !dropped.contains(&name)))
    }
}

/// The members of an object whose names are kept, without braces. What is no object, `null` for one, has no members.
pub(super) fn members_that(json: &str, kept: impl Fn(&str) -> bool) -> String {
    let members = json::members(json).unwrap_or_default();
    let mut out = Vec::with_capacity(json.len());
    for (key, value) in members.iter().filter(|(key, _)| kept(key)) {
        if !out.is_empty() {
            out.push(b',');
        }
        write_json(&mut out, key);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
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

/// `2026-11-20T15:00:00.123456Z` cut to whole seconds, which is all that `meta/v1` `Time` can carry, without the `Z`. `None`
/// for any other shape: kube-apiserver writes no other.
fn whole_seconds(micro_time: &str) -> Option<&str> {
    let (seconds, fraction) = (micro_time.get(..19)?, micro_time.get(19..)?);
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let shaped = seconds.bytes().zip(shape).all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        other => byte == *other,
    });
    let fraction = fraction.strip_suffix('Z')?;
    let whole = fraction.is_empty() || fraction.strip_prefix('.')?.bytes().all(|byte| byte.is_ascii_digit());
    (shaped && whole).then_some(seconds)
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

    /// The attributed events that say that their namespace was created: index in the batch, and the namespace.
    pub fn created_namespaces(&self) -> impl Iterator<Item = (u32, &str)> {
        self.creations.iter().filter_map(|&index| Some((index, self.event(index).namespace()?)))
    }

    /// Of each segment.
    #[cfg(test)]
    pub(super) fn segment_bytes(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.len())
    }

    /// What it costs to retain.
    pub fn bytes(&self) -> usize {
        let text: usize = self.segments.iter().map(|segment| segment.len()).sum();
        let places = size_of_val(&*self.segments) + size_of_val(&*self.events) + size_of_val(&*self.lists);
        size_of::<Self>() + text + places + size_of_val(&*self.creations)
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

    /// Why readers do not get it, if they do not. Then there are its place, its namespace and the values that selectors
    /// compare, and no text: who would have seen it is to be told of a gap.
    pub fn dropped(self) -> Option<GapReason> {
        self.stored.dropped
    }

    /// Every field that was recorded, as JSON members.
    pub fn full(self) -> &'a [u8] {
        self.stored.full.of(self.segment())
    }

    /// The fields that `namespacedevents` shows, as JSON members; empty where there is no namespace.
    pub fn shown(self) -> &'a [u8] {
        self.stored.shown.of(self.segment())
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
        span.of(self.segment()) == value.as_bytes()
    }

    fn str(self, span: Span) -> &'a str {
        std::str::from_utf8(span.of(self.segment())).expect("a span covers whole strings")
    }

    fn segment(self) -> &'a [u8] {
        &self.batch.segments[self.stored.segment as usize]
    }
}

#[cfg(test)]
mod tests;
