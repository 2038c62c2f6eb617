//! Reads JSON from front to back, as whoever knows what to expect asks for it, and borrows what it can from the text.
//!
//! Ingest spends most of its time here, so objects, lists and plain strings, of which an event is made, are read without a
//! detour. All else is left to `serde_json`: what needs decoding, numbers, and values that nobody wants, which it walks
//! without recursion. Whatever is accepted is JSON (RFC 8259), but for the halves of surrogate pairs in strings that nobody wants.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::audit::Text;

/// What nests less can be walked by calls inside each other; what nests more is, by `serde_json`, which takes no stack for it.
const SHALLOW: usize = 16;

/// A place in a text.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// What comes is not JSON, or not what was asked for. The reader's place is unspecified then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unexpected {
    /// Roughly where.
    pub near_byte: usize,
}

type Result<T> = std::result::Result<T, Unexpected>;

impl<'a> Reader<'a> {
    /// A reader at the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Where the next value begins.
    pub fn start_of_value(&mut self) -> usize {
        self.skip_whitespace();
        self.at
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
    pub fn object(&mut self, member: impl FnMut(&mut Self, Text<'a>) -> Result<()>) -> Result<()> {
        self.object_of(Self::string, member)
    }

    fn object_of<K>(
        &mut self,
        read_key: impl Fn(&mut Self) -> Result<K>,
        mut member: impl FnMut(&mut Self, K) -> Result<()>,
    ) -> Result<()> {
        self.expect(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = read_key(self)?;
            self.expect(b':')?;
            member(self, key)?;
            if !self.take(b',') {
                return self.expect(b'}');
            }
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
    pub fn string(&mut self) -> Result<Text<'a>> {
        self.skip_whitespace();
        match self.plain_string() {
            Some(text) => Ok(text.into()),
            None => self.value(),
        }
    }

    /// Reads past a string.
    ///
    /// # Errors
    /// If it is none.
    pub fn skip_string(&mut self) -> Result<()> {
        self.skip_whitespace();
        if self.plain_string().is_some() {
            return Ok(());
        }
        let is_string = self.text.as_bytes().get(self.at) == Some(&b'"');
        if is_string { self.skip() } else { Err(self.unexpected()) }
    }

    /// Reads past any value, however long and deep: `serde_json` is the faster the longer it is.
    ///
    /// # Errors
    /// If there is none.
    pub fn skip(&mut self) -> Result<()> {
        self.value::<IgnoredAny>().map(drop)
    }

    /// Reads past any value, of which little is expected: it is the faster the shorter the value is, because nothing is allocated.
    ///
    /// # Errors
    /// If there is none.
    pub fn skip_little(&mut self) -> Result<()> {
        self.skip_within(SHALLOW)
    }

    /// The same, with so many calls inside each other at most.
    fn skip_within(&mut self, calls: usize) -> Result<()> {
        let start = self.start_of_value();
        match self.text.as_bytes().get(start) {
            Some(b'"') => self.skip_string(),
            Some(b'{') if calls > 0 => self.object_of(Self::skip_string, |reader, ()| reader.skip_within(calls - 1)),
            Some(b'[') if calls > 0 => self.list(|reader| reader.skip_within(calls - 1)),
            _ => self.skip(),
        }
    }

    /// Reads past `null`, if that comes next.
    pub fn take_null(&mut self) -> bool {
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

    /// Reads a value as `serde_json` reads it.
    ///
    /// # Errors
    /// If it is none of that type.
    pub fn value<T: Deserialize<'a>>(&mut self) -> Result<T> {
        let mut reader = serde_json::Deserializer::from_str(&self.text[self.at..]);
        let value = T::deserialize(&mut reader).map_err(|_| self.unexpected())?;
        // A stream of the values that follow begins where this one ended.
        self.at += reader.into_iter::<IgnoredAny>().byte_offset();
        Ok(value)
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

    /// The string that begins here, if it is one without escapes.
    #[inline]
    fn plain_string(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.at) != Some(&b'"') {
            return None;
        }
        let start = self.at + 1;
        let end = plain_until(bytes, start);
        if bytes.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        Some(&self.text[start..end])
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected()) }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        let found = self.text.as_bytes().get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn skip_whitespace(&mut self) {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

/// Where the first byte from `at` on is that a string cannot hold as it is: a quote, a backslash, a control character.
fn plain_until(bytes: &[u8], mut at: usize) -> usize {
    // Eight at a time; see `found`.
    while let Some(eight) = bytes.get(at..at + 8) {
        let found = found(u64::from_le_bytes(eight.try_into().expect("there are eight")));
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let is_plain = |byte: &u8| *byte >= b' ' && !matches!(byte, b'"' | b'\\');
    at + bytes[at..].iter().take_while(|byte| is_plain(byte)).count()
}

/// Has the highest bit set of the first of eight bytes that is a quote, a backslash or a control character; no bit if none is. The
/// bytes behind the first may be wrong, because what is subtracted from one is borrowed from the next.
///
/// "Determine if a word has a byte less than n", in Anderson, Bit Twiddling Hacks.
fn found(eight: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let less_than = |word: u64, least: u8| word.wrapping_sub(ONES * u64::from(least)) & !word;
    let equal = |byte: u8| less_than(eight ^ (ONES * u64::from(byte)), 1);
    (less_than(eight, b' ') | equal(b'"') | equal(b'\\')) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a whole text as one value, whatever it is, by the reader's own means.
    fn read(text: &str) -> Result<()> {
        fn value(reader: &mut Reader<'_>) -> Result<()> {
            let start = reader.start_of_value();
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
        reader.skip_little()?;
        reader.end()
    }

    #[test]
    fn what_nests_deep_is_skipped_however_deep() {
        for depth in [SHALLOW - 1, SHALLOW, SHALLOW + 1, 1_000_000] {
            for (open, close) in [("[", "]"), (r#"{"":"#, "}")] {
                let text = format!("{}0{}", open.repeat(depth), close.repeat(depth));
                assert!(skip(&text).is_ok(), "{depth}");
                assert!(skip(&text[..text.len() - 1]).is_err() && skip(&format!("{text}{close}")).is_err(), "{depth}");
            }
        }
    }

    #[test]
    fn what_comes_first_is_found_wherever_it_is() {
        for special in ['"', '\\', '\0', '\u{1f}', '\n'] {
            for before in 0..40 {
                // Bytes above 127, whose highest bit is set, and neighbours of those that are looked for.
                let text = format!("{}{special}\"\\", "ü!#[] \u{7f}x".chars().cycle().take(before).collect::<String>());
                let at = text.find(special).unwrap();
                assert_eq!(plain_until(text.as_bytes(), 0), at, "{text:?}");
            }
        }
        assert_eq!(plain_until(b"plain to its end", 0), 16);
    }

    #[test]
    fn strings_are_borrowed_unless_something_in_them_is_escaped() {
        let mut reader = Reader::new(r#" "plain" "dec\u006fded" "#);
        assert!(matches!(reader.string().unwrap().0, std::borrow::Cow::Borrowed("plain")));
        assert_eq!(&*reader.string().unwrap(), "decoded");
        reader.end().unwrap();
        for no_string in ["", "\"", "\"open", "\"new\nline\"", "\"\\x\"", "\"half \\ud800\"", "7", "null"] {
            assert!(Reader::new(no_string).string().is_err(), "{no_string:?}");
        }
        for no_string in ["", "\"", "\"new\nline\"", "\"\\x\"", "7", "null", "{}"] {
            assert!(Reader::new(no_string).skip_string().is_err(), "{no_string:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        // Every text is JSON to the one exactly if it is to the other.
        #[test]
        fn what_serde_json_takes_is_taken(text in r#"([\[\]{}:,"\\ \n\x01]|"[a-zü\\"]{0,12}"|null|tru?e|-?0?[0-9]{1,3}|"k":|\\u00[0-9a]{2}){0,12}"#) {
            let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
            prop_assert_eq!((read(&text).is_ok() && skip(&text).is_ok(), read(&text).is_ok() || skip(&text).is_ok()), (is_json, is_json), "{}", text);
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
