//! Reads JSON from front to back, as whoever knows what to expect asks for it, and borrows what it can from the text.
//!
//! Ingest spends most of its time here. What is skipped nests no calls, so no depth can end the process. Whatever is accepted is
//! JSON (RFC 8259), but for the halves of surrogate pairs in strings that nobody wants.

use std::borrow::Cow;

use wide::{u8x32, u8x64};

/// A place in a text.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Where the member begins whose name was read last.
    member: usize,
    /// How the objects and lists end that the place is in while a value is skipped, the innermost last. At most one for each byte of
    /// the text; if that is JSON, for every second.
    closing: Vec<u8>,
    /// The part of the text that was looked at last.
    block: Block,
    line_breaks: usize,
}

/// What comes is not JSON, or not what was asked for. The reader's place is unspecified then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected {
    /// Roughly where.
    pub near_byte: usize,
}

/// The name of an object's member, and what stands for it.
#[derive(Debug)]
pub struct Known<F> {
    /// The name.
    name: &'static str,
    /// How it is mostly written: `"name":`, and zeros.
    written: [u8; KNOWN_BYTES],
    /// Which of those bytes are not zero: a bit for each, the lowest for the first.
    mask: u32,
    field: F,
}

type Result<T> = std::result::Result<T, Unexpected>;

impl<'a> Reader<'a> {
    /// A reader at the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, member: 0, closing: Vec::new(), block: Block::of(text.as_bytes(), 0), line_breaks: 0 }
    }

    /// Where the value, the comma or the closing bracket begins that comes next.
    pub fn start_of_token(&mut self) -> usize {
        self.skip_whitespace();
        self.at
    }

    /// Where the member begins whose name was read last: with the comma before it, or behind its object's brace.
    pub fn start_of_member(&self) -> usize {
        self.member
    }

    /// Goes back to a place that it has been at.
    pub fn go_back_to(&mut self, place: usize) {
        self.at = place;
    }

    /// What it has read since a place.
    pub fn read_since(&self, place: usize) -> &'a str {
        &self.text[place..self.at]
    }

    /// Reads an object. `member` is called with each key, and has to read the value.
    ///
    /// # Errors
    /// If it is none, or `member` says so.
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.members(|reader| {
            let key = reader.string()?;
            reader.expect(b':')?;
            member(reader, key)
        })
    }

    /// Reads an object whose members have names that are known: `known` are those, mostly in the order in which they come. `member` is
    /// called for each member, with `None` for one whose name is not known, and has to read the value. Returns which of the known
    /// ones there have been: a bit for each, the lowest for the first.
    ///
    /// # Errors
    /// If it is none, if a known name is there twice, or `member` says so.
    pub fn fields<F: Copy, const N: usize>(
        &mut self,
        known: &[Known<F>; N],
        mut member: impl FnMut(&mut Self, Option<F>) -> Result<()>,
    ) -> Result<u32> {
        const { assert!(N <= u32::BITS as usize, "a bit for each") };
        let (mut seen, mut expected) = (0, 0);
        self.members(|reader| {
            let Some(number) = reader.known_name(known, expected)? else { return member(reader, None) };
            if seen & (1 << number) != 0 {
                return Err(reader.unexpected());
            }
            seen |= 1 << number;
            expected = number + 1;
            member(reader, Some(known[number].field))
        })?;
        Ok(seen)
    }

    #[inline]
    fn members(&mut self, mut member: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'{')?;
        self.member = self.at;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            member(self)?;
            let comma = self.start_of_token();
            if !self.take(b',') {
                return self.expect(b'}');
            }
            self.member = comma;
        }
    }

    /// Reads a list. `item` is called before each of its items, and has to read it.
    ///
    /// # Errors
    /// If it is none, or `item` says so.
    pub fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'[')?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            item(self)?;
            if !self.take(b',') {
                return self.expect(b']');
            }
        }
    }

    /// Reads a string.
    ///
    /// # Errors
    /// If it is none.
    #[inline(always)]
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.skip_whitespace();
        match self.plain_string() {
            Some(text) => Ok(Cow::Borrowed(text)),
            None => self.escaped_string(),
        }
    }

    // Out of line, as `look_at` is: what every string takes is to be short.
    #[inline(never)]
    fn escaped_string(&mut self) -> Result<Cow<'a, str>> {
        let start = self.at;
        self.skip_string()?;
        let escaped = &self.text[start + 1..self.at - 1];
        decoded(escaped).map(Cow::Owned).ok_or(self.unexpected())
    }

    /// Reads past a string.
    ///
    /// # Errors
    /// If it is none.
    pub fn skip_string(&mut self) -> Result<()> {
        self.expect(b'"')?;
        loop {
            self.at = self.plain_until(self.at);
            match self.next() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.skip_escape()?,
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn skip_escape(&mut self) -> Result<()> {
        let len = match &self.text.as_bytes()[self.at..] {
            [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [_, b'u', a, b, c, d, ..] if [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit) => 6,
            _ => return Err(self.unexpected()),
        };
        self.at += len;
        Ok(())
    }

    /// How many line breaks it has gone past, and again if it went back: to be compared with what it was before. There are none in strings.
    pub fn line_breaks(&self) -> usize {
        self.line_breaks
    }

    /// Reads past any value, however deep.
    ///
    /// # Errors
    /// If there is none.
    pub fn skip(&mut self) -> Result<()> {
        self.closing.clear();
        loop {
            self.skip_whitespace();
            match self.next() {
                Some(b'{') if self.open(b'}') => {
                    self.skip_key()?;
                    continue;
                }
                Some(b'[') if self.open(b']') => continue,
                // They were empty.
                Some(b'{' | b'[') => {}
                Some(b'"') => self.skip_string()?,
                Some(b'-' | b'0'..=b'9') => self.skip_number()?,
                _ => self.skip_literal()?,
            }
            if !self.goes_on()? {
                return Ok(());
            }
        }
    }

    /// Goes into an object or a list, if there is anything in it, or else past it.
    fn open(&mut self, closing: u8) -> bool {
        self.at += 1;
        let is_empty = self.take(closing);
        if !is_empty {
            self.closing.push(closing);
        }
        !is_empty
    }

    /// Behind a value, goes out of all objects and lists that end there, and to the next value if one is left to be skipped.
    fn goes_on(&mut self) -> Result<bool> {
        while let Some(&closing) = self.closing.last() {
            if self.take(b',') {
                if closing == b'}' {
                    self.skip_key()?;
                }
                return Ok(true);
            }
            self.expect(closing)?;
            self.closing.pop();
        }
        Ok(false)
    }

    fn skip_key(&mut self) -> Result<()> {
        self.skip_string()?;
        self.expect(b':')
    }

    fn skip_number(&mut self) -> Result<()> {
        self.skip_byte(|byte| byte == b'-');
        // No digit follows a zero, so whatever does is unexpected to whoever reads on.
        if !self.skip_byte(|byte| byte == b'0') {
            self.skip_digits()?;
        }
        if self.skip_byte(|byte| byte == b'.') {
            self.skip_digits()?;
        }
        if self.skip_byte(|byte| matches!(byte, b'e' | b'E')) {
            self.skip_byte(|byte| matches!(byte, b'+' | b'-'));
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<()> {
        let is_digit = |byte: u8| byte.is_ascii_digit();
        if !self.skip_byte(is_digit) {
            return Err(self.unexpected());
        }
        while self.skip_byte(is_digit) {}
        Ok(())
    }

    fn skip_byte(&mut self, wanted: impl Fn(u8) -> bool) -> bool {
        let found = self.next().is_some_and(wanted);
        self.at += usize::from(found);
        found
    }

    fn skip_literal(&mut self) -> Result<()> {
        let rest = &self.text.as_bytes()[self.at..];
        let literal = ["true", "false", "null"].into_iter().find(|literal| rest.starts_with(literal.as_bytes()));
        self.at += literal.ok_or(self.unexpected())?.len();
        Ok(())
    }

    /// Reads past `null`, if that comes next.
    fn take_null(&mut self) -> bool {
        self.skip_whitespace();
        let is_null = self.text.as_bytes()[self.at..].starts_with(b"null");
        self.at += if is_null { b"null".len() } else { 0 };
        is_null
    }

    /// `None` for `null`, or else what `read` reads.
    ///
    /// # Errors
    /// What `read` says.
    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.take_null() { Ok(None) } else { read(self).map(Some) }
    }

    /// Reads a whole number.
    ///
    /// # Errors
    /// If it is none, or too large.
    pub fn integer(&mut self) -> Result<i32> {
        let start = self.start_of_token();
        self.skip_number()?;
        self.read_since(start).parse().map_err(|_| self.unexpected())
    }

    /// Whether nothing but white space follows.
    ///
    /// # Errors
    /// If something does.
    pub fn end(&mut self) -> Result<()> {
        self.skip_whitespace();
        if self.at == self.text.len() { Ok(()) } else { Err(self.unexpected()) }
    }

    /// What was found here is unexpected.
    pub fn unexpected(&self) -> Unexpected {
        Unexpected { near_byte: self.at }
    }

    /// The byte that comes next.
    fn next(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Reads a name and its colon, and says which of those that are known it is.
    #[inline]
    fn known_name<F>(&mut self, known: &[Known<F>], expected: usize) -> Result<Option<usize>> {
        self.skip_whitespace();
        // What mostly comes is only compared.
        if let Some(known) = known.get(expected)
            && let Some(text) = self.text.as_bytes()[self.at..].first_chunk()
            && known.begins(text)
        {
            self.at += known.name.len() + QUOTES_AND_COLON;
            return Ok(Some(expected));
        }
        let name = self.string()?;
        self.expect(b':')?;
        Ok(known.iter().position(|known| known.name == name))
    }

    /// The string that begins here, if it is one without escapes.
    #[inline]
    fn plain_string(&mut self) -> Option<&'a str> {
        if self.next() != Some(b'"') {
            return None;
        }
        let start = self.at + 1;
        let end = self.plain_until(start);
        if self.text.as_bytes().get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        Some(&self.text[start..end])
    }

    /// Where the first byte from `at` on is that a string cannot hold as it is; at the latest the text's end.
    #[inline]
    fn plain_until(&mut self, mut at: usize) -> usize {
        loop {
            let number = at / Block::BYTES;
            if number != self.block.number {
                self.look_at(number);
            }
            let special = self.block.special >> (at % Block::BYTES);
            if special != 0 {
                return at + special.trailing_zeros() as usize;
            }
            at = (number + 1) * Block::BYTES;
        }
    }

    #[inline(never)]
    fn look_at(&mut self, number: usize) {
        self.block = Block::of(self.text.as_bytes(), number);
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected()) }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        self.skip_byte(|next| next == byte)
    }

    #[inline]
    fn skip_whitespace(&mut self) {
        while let Some(byte @ (b' ' | b'\n' | b'\r' | b'\t')) = self.next() {
            self.at += 1;
            self.line_breaks += usize::from(matches!(byte, b'\n' | b'\r'));
        }
    }
}

/// What a name has around it.
const QUOTES_AND_COLON: usize = 3;

/// How long a known name may be with that.
const KNOWN_BYTES: usize = 32;

impl<F> Known<F> {
    /// Of a name that needs no escapes.
    ///
    /// # Panics
    /// If the name is longer than 29 bytes. Meant for constants.
    pub const fn new(name: &'static str, field: F) -> Self {
        let (bytes, mut written, mut at) = (name.as_bytes(), [0; KNOWN_BYTES], 0);
        written[0] = b'"';
        while at < bytes.len() {
            written[at + 1] = bytes[at];
            at += 1;
        }
        written[at + 1] = b'"';
        written[at + 2] = b':';
        Self { name, written, mask: u32::MAX >> (KNOWN_BYTES - bytes.len() - QUOTES_AND_COLON), field }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether a text begins with the name as it is mostly written. All bytes are compared at once.
    #[inline]
    fn begins(&self, text: &[u8; KNOWN_BYTES]) -> bool {
        u8x32::new(*text).simd_eq(u8x32::new(self.written)).to_bitmask() & self.mask == self.mask
    }
}

/// The members of an object: their names, and their values as they are written.
///
/// # Errors
/// If the text is none.
pub fn members(text: &str) -> Result<Vec<(Cow<'_, str>, &str)>> {
    let (mut reader, mut members) = (Reader::new(text), Vec::new());
    reader.object(|reader, name| {
        let start = reader.start_of_token();
        reader.skip()?;
        members.push((name, reader.read_since(start)));
        Ok(())
    })?;
    reader.end()?;
    Ok(members)
}

/// What stands between the quotes of a string that was read past, decoded; `None` if it has half a surrogate pair.
fn decoded(escaped: &str) -> Option<String> {
    // No escape is shorter than what it stands for.
    let mut decoded = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        decoded.push_str(&rest[..at]);
        let (char, len) = decoded_escape(&rest[at..])?;
        decoded.push(char);
        rest = &rest[at + len..];
    }
    decoded.push_str(rest);
    Some(decoded)
}

/// What the escape stands for that a text begins with, and its length.
fn decoded_escape(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| u16::from_str_radix(text.get(at..at + 4)?, 16).ok();
    Some(match text.as_bytes().get(1)? {
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'u' => match char::from_u32(unit(2)?.into()) {
            Some(char) => (char, 6),
            None if text.get(6..8)? == "\\u" => (char::decode_utf16([unit(2)?, unit(8)?]).next()?.ok()?, 12),
            None => return None,
        },
        itself => (char::from(*itself), 2),
    })
}

/// Sixty-four bytes of a text, and which of them a string cannot hold as they are.
///
/// All of them are compared at once, and the ends of the strings that begin here are found in the result without looking again.
#[derive(Debug)]
struct Block {
    number: usize,
    /// A bit for each byte, the lowest for the first, set for a quote, a backslash and a control character, and behind the text's end.
    special: u64,
}

impl Block {
    const BYTES: usize = 64;

    fn of(text: &[u8], number: usize) -> Self {
        let rest = text.get(number * Self::BYTES..).unwrap_or_default();
        let bytes = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut bytes = [0; Self::BYTES];
            bytes[..rest.len()].copy_from_slice(rest);
            bytes
        });
        let bytes = u8x64::new(bytes);
        let special = bytes.simd_eq(b'"') | bytes.simd_eq(b'\\') | bytes.simd_lt(b' ');
        Self { number, special: special.to_bitmask() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// Reads a whole text as one value, whatever it is, by the reader's own means.
    fn read(text: &str) -> Result<()> {
        fn value(reader: &mut Reader<'_>) -> Result<()> {
            let start = reader.start_of_token();
            match reader.text.as_bytes().get(start) {
                Some(b'{') => reader.object(|reader, _| value(reader)),
                Some(b'[') => reader.list(value),
                Some(b'"') => reader.skip_string(),
                _ => reader.skip(),
            }
        }
        let mut reader = Reader::new(text);
        value(&mut reader)?;
        reader.end()
    }

    fn skip(text: &str) -> Result<()> {
        let mut reader = Reader::new(text);
        reader.skip()?;
        reader.end()
    }

    #[test]
    fn what_nests_deep_is_skipped_however_deep() {
        for depth in [1, 2, 1_000_000] {
            for (open, close) in [("[", "]"), (r#"{"":"#, "}")] {
                let text = format!("{}0{}", open.repeat(depth), close.repeat(depth));
                assert!(skip(&text).is_ok(), "{depth}");
                assert!(skip(&text[..text.len() - 1]).is_err() && skip(&format!("{text}{close}")).is_err(), "{depth}");
            }
        }
    }

    #[test]
    fn what_ends_a_string_is_found_wherever_it_is() {
        for special in ['"', '\\', '\0', '\u{1f}', '\n'] {
            for before in 0..200 {
                // Bytes above 127, whose highest bit is set, and neighbours of those that are looked for.
                let text = format!("{}{special}\"\\", "ü!#[] \u{7f}x".chars().cycle().take(before).collect::<String>());
                let at = text.find(special).unwrap();
                assert_eq!(Reader::new(&text).plain_until(0), at, "{text:?}");
                assert_eq!(Reader::new(&text[..at]).plain_until(0), at, "its end");
            }
        }
    }

    #[test]
    fn a_place_that_it_goes_back_to_is_read_as_before() {
        let text = format!("[{}]", vec![format!("{:?}", "x".repeat(30)); 20].join(","));
        let mut reader = Reader::new(&text);
        for _ in 0..2 {
            reader.skip().unwrap();
            assert_eq!(reader.read_since(0), text);
            reader.go_back_to(0);
        }
    }

    #[test]
    fn strings_are_what_stands_between_quotes() {
        let mut reader = Reader::new(r#" "plain" "dec\u006fded" "#);
        assert_eq!((&*reader.string().unwrap(), &*reader.string().unwrap()), ("plain", "decoded"));
        reader.end().unwrap();
        for no_string in ["", "\"", "\"open", "\"new\nline\"", "\"\\x\"", "7", "null"] {
            assert!(Reader::new(no_string).string().is_err(), "{no_string:?}");
        }
        for half in ["\\ud800", "\\ud83dxxde00", "\\ud83d\\nde00", "\\ude00\\ud83d", "\\ud83d\\u"] {
            assert!(Reader::new(&format!("\"{half}\"")).string().is_err(), "{half}");
        }
        for no_string in ["", "\"", "\"new\nline\"", "\"\\x\"", "7", "null", "{}"] {
            assert!(Reader::new(no_string).skip_string().is_err(), "{no_string:?}");
        }
    }

    #[test]
    fn a_number_is_whole_and_fits() {
        for (text, number) in [("0", 0), (" 200 ", 200), ("-1", -1), ("2147483647", i32::MAX)] {
            let mut reader = Reader::new(text);
            assert_eq!((reader.integer(), reader.end()), (Ok(number), Ok(())));
        }
        for text in ["", "2147483648", "1.0", "1e3", "+1", "\"1\"", "null"] {
            assert!(Reader::new(text).integer().is_err(), "{text}");
        }
    }

    #[test]
    fn members_are_names_and_values_as_they_are_written() {
        let read = members(r#" {"a" : {"b":[1, 2]}, "\u0063":"\n"} "#).unwrap();
        let read: Vec<_> = read.iter().map(|(name, value)| (&**name, *value)).collect();
        assert_eq!(read, [("a", r#"{"b":[1, 2]}"#), ("c", r#""\n""#)]);
        assert!(members("null").is_err() && members("{} 1").is_err());
    }

    #[test]
    fn line_breaks_are_counted_between_values_alone() {
        for (text, line_breaks) in [(r#"{"a":["b\n"]}"#, 0), ("{\"a\":\n1,\"b\": [\r\n2] }", 3)] {
            let mut reader = Reader::new(text);
            reader.object(|reader, _| reader.skip()).unwrap();
            assert_eq!(reader.line_breaks(), line_breaks, "{text:?}");
        }
    }

    /// Pieces of JSON, good and bad, in any order.
    const PIECES: &str = r#"([\[\]{}:, \n\x01]|"([a-zü]|\\["\\/bfnrtu x]|\\u[0-9a-cA-C][0-9a-fA-F]{3}){0,12}"|null|true|false|tru|[-+]?[0-9]{0,2}(\.[0-9]{0,2})?([eE][-+]?[0-9]{0,2})?|"k":){0,12}"#;

    /// Well-formed JSON.
    fn json() -> impl Strategy<Value = String> {
        let string = r#""([a-zü]|\\["\\/bfnrt]|\\u00[0-9a-fA-F]{2}){0,20}""#;
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("[ ]".to_owned()),
            "true|false|-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][-+]?[0-9])?",
            string,
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let members = prop::collection::vec((string, inner.clone()), 0..4);
            let object = members.prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{{}}}", members.join(" ,"))
            });
            prop_oneof![object, prop::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(",\n")))]
        })
    }

    /// That the reader takes this as JSON, read and skipped, exactly if `serde_json` does.
    fn agrees(text: &str) -> std::result::Result<(), TestCaseError> {
        let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
        prop_assert_eq!((read(text).is_ok(), skip(text).is_ok()), (is_json, is_json), "{}", text);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn what_serde_json_takes_is_taken_of_pieces(text in PIECES) {
            agrees(&text)?;
        }

        #[test]
        fn what_serde_json_takes_is_taken_with_a_mistake(json in json(), at in any::<prop::sample::Index>(), mistake in "[\\[\\]{}:,\"\\\\ \n0a.e-]?") {
            prop_assert!(skip(&json).is_ok(), "{}", json);
            let (at, _) = json.char_indices().nth(at.index(json.chars().count())).expect("it is below the count");
            for from in [at, at + json[at..].chars().next().map_or(0, char::len_utf8)] {
                agrees(&format!("{}{mistake}{}", &json[..at], &json[from..]))?;
            }
        }

        #[test]
        fn an_escape_is_what_serde_json_says(json in r#""([a-zü]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}|\\u[dD][89ab][0-9]{2}\\u[dD][c-f][0-9]{2}){0,12}""#) {
            let text = Reader::new(&json).string();
            prop_assert_eq!(text.ok().map(|text| text.to_string()), serde_json::from_str::<String>(&json).ok());
        }

        #[test]
        fn a_string_is_what_serde_json_says(text in any::<String>(), before in "[ \n]{0,2}") {
            let json = format!("{before}{}", serde_json::to_string(&text).unwrap());
            let mut reader = Reader::new(&json);
            prop_assert_eq!(&*reader.string().unwrap(), text.as_str());
            prop_assert!(reader.end().is_ok() && skip(&json).is_ok());
        }
    }
}
