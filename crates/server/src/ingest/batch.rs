//! One accepted batch: what the bus stores and every watch class reads.
//!
//! The text of a batch lies in one piece, and everything else is places in it: the events' own bytes, what of those is
//! withheld from whom, and the values that selectors compare. Nothing that the event's own bytes spell out is stored twice.

use std::borrow::Cow;

use audit_stream_api::audit::{self, Event, Part};
use audit_stream_api::json;
use audit_stream_api::object::{GapReason, max_json_bytes, write_json, write_number};
use audit_stream_api::selector::Field;

use crate::view::{self, Audience, View};

/// The events of one batch, immutable.
#[derive(Debug)]
pub struct Batch {
    /// Of each event its own bytes, and then what those do not spell out.
    text: Box<[u8]>,
    events: Box<[Stored]>,
    /// Groups and source IPs of all events, which have any number of them.
    lists: Box<[Span]>,
    /// What is withheld of all events.
    cuts: Box<[Cut]>,
    creations: Box<[Creation]>,
    lost: Option<GapReason>,
}

/// Makes a [`Batch`] of a body whose text it borrows from until it is built.
///
/// The text is put together in the end, when it is known how much there is, in one allocation. An ordinary batch takes, while it is
/// made, the body and one and a half times that. At worst it takes the body, three times that for one that is no text, what the batch
/// takes ([`MAX_BATCH_FACTOR`] times that), and as much again; and what one event's lists take while it is read: see
/// [`MAX_EVENT_LISTS_BYTES`].
#[derive(Debug, Default)]
pub struct BatchBuilder<'a> {
    texts: Vec<EventText<'a>>,
    /// All text that is not in the body as it is.
    beside: Vec<u8>,
    /// Of the text that the batch will have.
    text_bytes: usize,
    events: Vec<Stored>,
    lists: Vec<Span>,
    cuts: Vec<Cut>,
    creations: Vec<Creation>,
    lost: Option<GapReason>,
}

/// The text of one event: of the body, and then of [`BatchBuilder::beside`], as far as there.
#[derive(Debug)]
struct EventText<'a> {
    in_body: &'a str,
    beside_end: usize,
}

/// One event of a batch.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'a> {
    batch: &'a Batch,
    stored: &'a Stored,
}

/// The largest body whose batch is sure to be addressed by 32 bits: a batch takes less than ten times as much.
pub const MAX_BODY_BYTES: u64 = u32::MAX as u64 / (MAX_BATCH_FACTOR as u64 + 1);

/// A batch's bytes are at most so many times its body's, and a hundred besides: see [`max_bytes`].
///
/// Of a byte of an event come at most: itself; itself again as part of a decoded value; and if it is a part of a URI with something
/// to mask, itself once more in the masked URI. A byte that is no text counts three, which makes nine. Everything else stays
/// below that: masks make a query two and a half times as long (`=&`: 5 in all); an item of a list costs a place (`"",`: 4), and so
/// does a field that is unknown (`"":0,`: 4); an event costs its places and is never shorter than its 70 bytes of required names (5).
pub const MAX_BATCH_FACTOR: usize = 9;

/// The most that [`Batch::bytes`] says of what comes from a body of `body_bytes`.
pub const fn max_bytes(body_bytes: usize) -> usize {
    size_of::<Batch>() + MAX_BATCH_FACTOR * body_bytes
}

/// What the lists of the event that is being read take.
///
/// An item takes 24 bytes, and a name of one that is truncated 40; while a list grows it is there three times, and all of it twice where
/// the event is read again.
pub const MAX_EVENT_LISTS_BYTES: usize = 2 * 3 * 40 * audit::MAX_ITEMS;

/// Of a dropped event, a longer value is stored as if it were absent: nobody selects by a value that they have to page
/// through, and one like that is what the event was dropped for. Items of lists are kept however many there are, or a
/// reader who selects by group would not be told.
const MAX_DROPPED_VALUE_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct Stored {
    /// Attributed.
    namespace: Option<Span>,
    creation_timestamp: Option<Span>,
    /// The event's own bytes, without braces.
    members: Span,
    /// In [`Batch::cuts`], in the order of its bytes.
    cuts: Span,
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

/// A part of an event that is withheld. One of [`Part::RequestUri`] is not left out but replaced by the masked URI.
#[derive(Debug, Clone, Copy)]
struct Cut {
    part: Part,
    from: Audience,
    /// In the event's [`Stored::members`].
    bytes: Span,
}

/// A namespace was created by the event that is the first of those from `index` on, if that could be kept.
#[derive(Debug, Clone, Copy)]
struct Creation {
    index: u32,
    namespace: Span,
}

/// A place in the text, in an event or in one of the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

// === impl BatchBuilder ===

impl<'a> BatchBuilder<'a> {
    /// Appends an event of the body. `json` are its bytes, on one line, which `event` borrows from; `namespace` is the attributed one.
    pub fn push(&mut self, event: &Event<'_>, json: &'a str, namespace: Option<&str>) {
        let members = without_braces(json);
        let stored = self.places(members).whole(event, namespace);
        self.store(stored, members);
    }

    /// The same for an event that is not in the body as it is.
    pub fn push_made(&mut self, event: &Event<'_>, json: &str, namespace: Option<&str>) {
        let mut places = self.places("");
        places.append_members(without_braces(json));
        let stored = places.whole(event, namespace);
        self.store(stored, "");
    }

    /// Appends an event of which readers get nothing but the news that it is missing: its place in the batch, and what says
    /// whose it would have been. That takes at most four times what the event takes as JSON.
    pub fn push_dropped(&mut self, event: &Event<'_>, namespace: Option<&str>, reason: GapReason) {
        let stored = self.places("").selectable(event, namespace, MAX_DROPPED_VALUE_BYTES);
        self.store(Stored { dropped: Some(reason), ..stored }, "");
    }

    /// Notes that a namespace was created, by the event that is appended next if there is one.
    pub fn note_creation(&mut self, namespace: &str) {
        let namespace = self.places("").append(namespace);
        self.note_text("");
        let index = u32::try_from(self.events.len()).expect("an event takes more than a byte");
        self.creations.push(Creation { index, namespace });
    }

    /// Finds places for the texts of what comes next, of which `in_body` is in the body.
    fn places(&mut self, in_body: &str) -> Places<'_> {
        Places {
            beside_offset: self.text_bytes + in_body.len() - self.beside.len(),
            beside: &mut self.beside,
            lists: &mut self.lists,
            cuts: &mut self.cuts,
            members: Span::new(self.text_bytes, in_body.len()),
            copied_from: Some(in_body.as_ptr() as usize),
        }
    }

    fn store(&mut self, stored: Stored, in_body: &'a str) {
        self.note_text(in_body);
        self.events.push(stored);
    }

    fn note_text(&mut self, in_body: &'a str) {
        let beside_start = self.texts.last().map_or(0, |last| last.beside_end);
        let beside_end = self.beside.len();
        self.text_bytes += in_body.len() + beside_end - beside_start;
        self.texts.push(EventText { in_body, beside_end });
    }

    /// Notes that there was more than could be used.
    pub fn note_lost(&mut self, reason: GapReason) {
        self.lost = Some(reason);
    }

    /// What it takes so far.
    pub fn bytes(&self) -> usize {
        let lists = size_of_val(&*self.lists) + size_of_val(&*self.cuts) + size_of_val(&*self.creations);
        self.text_bytes + size_of_val(&*self.events) + lists
    }

    /// Whether there is nothing for a reader to learn from it.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.lost.is_none()
    }

    /// The batch.
    pub fn build(self) -> Batch {
        let text = self.text();
        let Self { events, lists, cuts, creations, lost, .. } = self;
        let (events, lists, cuts) = (events.into(), lists.into(), cuts.into());
        Batch { text, events, lists, cuts, creations: creations.into(), lost }
    }

    fn text(&self) -> Box<[u8]> {
        let (mut text, mut beside_start) = (Vec::with_capacity(self.text_bytes), 0);
        for EventText { in_body, beside_end } in &self.texts {
            text.extend_from_slice(in_body.as_bytes());
            text.extend_from_slice(&self.beside[beside_start..*beside_end]);
            beside_start = *beside_end;
        }
        text.into()
    }
}

/// The members of an object, as they are written.
fn without_braces(json: &str) -> &str {
    &json[1..json.len() - 1]
}

/// The value of a field that has one; empty where absent.
fn single_value<'e>(event: &'e Event<'_>, field: Field) -> &'e str {
    let reference = event.object_ref.as_ref();
    let text = |field: Option<&'e Option<Cow<'_, str>>>| field.and_then(Option::as_deref).unwrap_or_default();
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
        Field::Decision => text(Some(&event.decision)),
        Field::RequestUri => &event.request_uri,
        // Made by the server, not text, or with many values.
        Field::MetadataName | Field::MetadataNamespace | Field::ResponseCode | Field::Groups | Field::SourceIps => "",
    }
}

/// Where the texts of one event lie in its batch.
struct Places<'a> {
    /// What is not in the body, of all events.
    beside: &'a mut Vec<u8>,
    /// How much further behind this event's are in the batch's text.
    beside_offset: usize,
    lists: &'a mut Vec<Span>,
    cuts: &'a mut Vec<Cut>,
    /// The event's own bytes, without braces.
    members: Span,
    /// The address of the bytes that those are a copy of.
    copied_from: Option<usize>,
}

impl Places<'_> {
    /// The event's own bytes, where they are not in the body.
    fn append_members(&mut self, members: &str) {
        self.copied_from = Some(members.as_ptr() as usize);
        self.members = self.append(members);
    }

    fn append(&mut self, text: &str) -> Span {
        self.append_written(|buffer| buffer.extend_from_slice(text.as_bytes()))
    }

    fn append_written(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let start = self.beside.len();
        write(self.beside);
        Span::new(self.beside_offset + start, self.beside.len() - start)
    }

    /// The place of a value: inside `members` where the value borrows from the bytes that were copied there.
    fn span(&mut self, value: &str) -> Span {
        if value.is_empty() {
            return Span::default();
        }
        let offset = self.copied_from.and_then(|from| (value.as_ptr() as usize).checked_sub(from));
        match offset.filter(|offset| offset + value.len() <= self.members.len as usize) {
            Some(offset) => Span::new(self.members.start as usize + offset, value.len()),
            None => self.append(value),
        }
    }

    fn whole(mut self, event: &Event<'_>, namespace: Option<&str>) -> Stored {
        debug_assert!(!event.has_line_breaks, "they would break the frame in two");
        let mut stored = self.selectable(event, namespace, usize::MAX);
        let seconds = event.stage_timestamp.as_deref().and_then(whole_seconds);
        stored.creation_timestamp = seconds.map(|seconds| self.span(seconds));
        let is_masked = stored.masked_uri != stored.values[Field::RequestUri as usize];
        stored.cuts = self.cut(event, is_masked);
        stored
    }

    /// What selectors compare, and the event's own bytes. A value of more than `longest` bytes counts as absent.
    fn selectable(&mut self, event: &Event<'_>, namespace: Option<&str>, longest: usize) -> Stored {
        let kept = |value: &str| value.len() <= longest;
        let mut values = [Span::default(); Field::ALL.len()];
        for field in Field::ALL {
            let value = single_value(event, field);
            values[field as usize] = self.span(if kept(value) { value } else { "" });
        }
        if let Some(code) = event.response_code {
            values[Field::ResponseCode as usize] = self.append_written(|buffer| write_number(buffer, code));
        }
        let namespace = namespace.map(|namespace| self.span(namespace));
        values[Field::MetadataNamespace as usize] = namespace.unwrap_or_default();
        let mut list = |values: &[Cow<'_, str>]| {
            let start = self.lists.len();
            for value in values {
                let place = self.span(if kept(value) { value } else { "" });
                self.lists.push(place);
            }
            Span::new(start, values.len())
        };
        let groups = list(&event.user.groups);
        let source_ips = list(&event.source_ips);
        let masked_uri = match view::mask_uri(&event.request_uri) {
            Some(masked) => self.append(if kept(&masked) { &masked } else { "" }),
            None => values[Field::RequestUri as usize],
        };
        Stored { namespace, members: self.members, values, masked_uri, groups, source_ips, ..Stored::default() }
    }

    /// What is withheld, and from whom.
    fn cut(&mut self, event: &Event<'_>, is_masked: bool) -> Span {
        let start = self.cuts.len();
        let cuts = event.parts.iter().map(|placed| Cut {
            part: placed.part,
            from: view::withheld_from(placed.part, event),
            // Less the brace.
            bytes: Span::new(placed.bytes.start - 1, placed.bytes.len()),
        });
        self.cuts.extend(cuts.filter(|cut| is_masked || cut.part != Part::RequestUri));
        Span::new(start, self.cuts.len() - start)
    }
}

impl Span {
    fn new(start: usize, len: usize) -> Self {
        let bounded = "a body is at most MAX_BODY_BYTES, so no batch reaches 4 GiB";
        Self { start: u32::try_from(start).expect(bounded), len: u32::try_from(len).expect(bounded) }
    }

    fn end(self) -> usize {
        self.start as usize + self.len as usize
    }

    fn of<T>(self, all: &[T]) -> &[T] {
        &all[self.start as usize..][..self.len as usize]
    }
}

/// Appends members of objects, where what came before them may have been left out: then the comma between is not needed.
fn append_members(out: &mut Vec<u8>, members: &[u8]) {
    let members = match out.last() {
        Some(b'{' | b',') => members.strip_prefix(b",").unwrap_or(members),
        _ => members,
    };
    out.extend_from_slice(members);
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
pub(crate) fn compact(json: &str) -> String {
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

    /// The namespaces that were created, each with the index of the event that says so, or, if that could not be kept, of the
    /// one that would have come next.
    pub fn created_namespaces(&self) -> impl Iterator<Item = (u32, &str)> {
        self.creations.iter().map(|creation| (creation.index, self.str(creation.namespace)))
    }

    /// What it costs to retain.
    pub fn bytes(&self) -> usize {
        let lists = size_of_val(&*self.lists) + size_of_val(&*self.cuts) + size_of_val(&*self.creations);
        size_of::<Self>() + self.text.len() + size_of_val(&*self.events) + lists
    }

    fn str(&self, span: Span) -> &str {
        std::str::from_utf8(span.of(&self.text)).expect("a span covers whole strings")
    }
}

impl<'a> StoredEvent<'a> {
    /// The attributed namespace.
    pub fn namespace(self) -> Option<&'a str> {
        self.stored.namespace.map(|span| self.str(span))
    }

    /// The stage's time in whole seconds, without the `Z`.
    pub fn creation_timestamp(self) -> Option<&'a str> {
        self.stored.creation_timestamp.map(|span| self.str(span))
    }

    /// Why readers do not get it, if they do not. Then there are its place, its namespace and the values that selectors
    /// compare, and no text: who would have seen it is to be told of a gap.
    pub fn dropped(self) -> Option<GapReason> {
        self.stored.dropped
    }

    /// Appends what readers with a view get of the event, as JSON members behind a comma that is there. They are the bytes that
    /// kube-apiserver sent, but for what is withheld.
    pub fn write_fields(self, view: View, out: &mut Vec<u8>) {
        let members = self.stored.members.of(&self.batch.text);
        let mut at = 0;
        for cut in self.cuts(view) {
            append_members(out, &members[at..cut.bytes.start as usize]);
            if let Some(instead) = self.instead_of(cut) {
                write_json(out, instead);
            }
            at = cut.bytes.end();
        }
        append_members(out, &members[at..]);
    }

    /// How many bytes [`StoredEvent::write_fields`] appends at most.
    pub fn max_fields_bytes(self, view: View) -> usize {
        let members = self.stored.members.len as usize;
        self.cuts(view).fold(members, |sum, cut| {
            let instead = self.instead_of(cut).map_or(0, max_json_bytes);
            sum - cut.bytes.len as usize + instead
        })
    }

    /// The names of what [`StoredEvent::write_fields`] withholds.
    pub fn withheld_names(self, view: View) -> impl Iterator<Item = Cow<'a, str>> {
        let mut names_annotations = false;
        self.cuts(view).filter_map(move |cut| match cut.part {
            // There may be several.
            Part::Annotation | Part::AuthorizationReason if std::mem::replace(&mut names_annotations, true) => None,
            Part::Unknown => {
                let member = Span { start: self.stored.members.start + cut.bytes.start, ..cut.bytes };
                view::name_of_member(self.str(member))
            }
            known => view::withheld_name(known).map(Cow::Borrowed),
        })
    }

    /// What stands where something was cut.
    fn instead_of(self, cut: &Cut) -> Option<&'a str> {
        (cut.part == Part::RequestUri).then(|| self.str(self.stored.masked_uri))
    }

    fn cuts(self, view: View) -> impl Iterator<Item = &'a Cut> {
        let cuts = self.stored.cuts.of(&self.batch.cuts).iter();
        cuts.filter(move |cut| !view.has(cut.part, cut.from))
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
        self.batch.str(span)
    }
}

#[cfg(test)]
mod tests;
