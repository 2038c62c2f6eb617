//! Label selectors: upstream's grammar, and what is left of its meaning where nothing has labels.
//!
//! Source: `k8s.io/apimachinery/pkg/labels/selector.go`. Audit events have no labels, so a selector is read, checked and
//! forgotten: all that is kept is its verdict on an object without any.

use std::collections::BTreeSet;
use std::fmt;

/// Why a label selector was not understood, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelectorError(String);

/// Whether a selector selects an object without labels. The empty one does.
///
/// A requirement that asks for a label (`=`, `==`, `in`, a bare key, `>`, `<`) does not hold for such an object, one that
/// asks for none (`!=`, `notin`, `!key`) does, and all must hold.
///
/// # Errors
/// If the text is not the grammar, or has a key or a value that no label could have.
pub fn selects_unlabelled(text: &str) -> Result<bool, LabelSelectorError> {
    Parser::new(text).selector().map_err(LabelSelectorError)
}

/// Upstream tells everything that is wrong with a requirement. Each mistake's words are many times as long as the mistake.
const MAX_MISTAKES: usize = 8;

/// RFC 1123 has no longer names.
const MAX_PREFIX_BYTES: usize = 253;

/// Of a value, and of a key's name.
const MAX_NAME_BYTES: usize = 63;

const WANTED_PREFIX: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

const WANTED_NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

const WANTED_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// One of `=`, `==`, `!=`, `!`, `>`, `<`, `(`, `)` and `,`.
    Symbol(&'a str),
    /// Anything else between symbols and white space. `in` and `notin` are operators only where an operator stands.
    Word(&'a str),
    End,
}

/// Reads tokens from the left, one ahead.
struct Parser<'a> {
    next: Token<'a>,
    rest: &'a str,
}

// === impl Token ===

impl<'a> Token<'a> {
    /// The first token of a text, and what follows it.
    fn first(text: &'a str) -> (Self, &'a str) {
        let text = text.trim_start_matches(is_white);
        let Some(char) = text.chars().next() else { return (Self::End, text) };
        if is_symbol(char) {
            let double = text.starts_with("!=") || text.starts_with("==");
            let (symbol, rest) = text.split_at(if double { 2 } else { 1 });
            return (Self::Symbol(symbol), rest);
        }
        let end = text.find(|char| is_white(char) || is_symbol(char)).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        (Self::Word(word), rest)
    }
}

fn is_white(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\r' | '\n')
}

fn is_symbol(char: char) -> bool {
    matches!(char, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(text) | Self::Word(text) => write!(f, "found '{text}'"),
            Self::End => f.write_str("found ''"),
        }
    }
}

// === impl Parser ===

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let (next, rest) = Token::first(text);
        Self { next, rest }
    }

    fn take(&mut self) -> Token<'a> {
        let (next, rest) = Token::first(self.rest);
        self.rest = rest;
        std::mem::replace(&mut self.next, next)
    }

    fn selector(&mut self) -> Result<bool, String> {
        match self.next {
            Token::End => return Ok(true),
            Token::Word(_) | Token::Symbol("!") => {}
            other => return Err(format!("{other}, expected: !, identifier, or 'end of string'")),
        }
        let mut selected = true;
        loop {
            selected &= self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
            match self.take() {
                Token::End => return Ok(selected),
                Token::Symbol(",") => {}
                other => return Err(format!("{other}, expected: ',' or 'end of string'")),
            }
            match self.next {
                Token::Word(_) | Token::Symbol("!") => {}
                other => return Err(format!("{other}, expected: identifier after ','")),
            }
        }
    }

    fn requirement(&mut self) -> Result<bool, String> {
        let absent = self.next == Token::Symbol("!");
        if absent {
            self.take();
        }
        let key = self.word()?;
        check_key(key)?;
        if absent || matches!(self.next, Token::End | Token::Symbol(",")) {
            return Ok(absent);
        }
        let operator = self.take();
        match operator {
            Token::Word("in" | "notin") => check_values(key, &self.values()?)?,
            Token::Symbol("=" | "==" | "!=") => check_values(key, &[self.value()?].into())?,
            Token::Symbol(">" | "<") => check_number(key, self.value()?)?,
            other => return Err(format!("{other}, expected: in, notin, =, ==, !=, gt, lt")),
        }
        Ok(matches!(operator, Token::Word("notin") | Token::Symbol("!=")))
    }

    fn word(&mut self) -> Result<&'a str, String> {
        match self.take() {
            Token::Word(word) => Ok(word),
            other => Err(format!("{other}, expected: identifier")),
        }
    }

    /// What follows `=` and its kind; nothing is the empty value.
    fn value(&mut self) -> Result<&'a str, String> {
        match self.next {
            Token::End | Token::Symbol(",") => Ok(""),
            _ => self.word(),
        }
    }

    /// What follows `in` and `notin`. Where nothing stands between brackets and commas, the empty value does.
    fn values(&mut self) -> Result<BTreeSet<&'a str>, String> {
        match self.take() {
            Token::Symbol("(") => {}
            other => return Err(format!("{other} expected: '('")),
        }
        let mut values = BTreeSet::new();
        match self.next {
            Token::Symbol(")") => {
                self.take();
                return Ok([""].into());
            }
            Token::Symbol(",") => {
                values.insert("");
            }
            Token::Word(_) => {}
            other => return Err(format!("{other}, expected: ',', ')' or identifier")),
        }
        loop {
            match (self.take(), self.next) {
                (Token::Word(word), Token::Symbol("," | ")")) => {
                    values.insert(word);
                }
                (Token::Word(_), other) => return Err(format!("{other}, expected: ',' or ')'")),
                (Token::Symbol(","), Token::Symbol("," | ")")) => {
                    values.insert("");
                }
                (Token::Symbol(","), _) => {}
                (other, _) => return Err(format!("{other}, expected: ',', or identifier")),
            }
            if self.next == Token::Symbol(")") {
                self.take();
                return Ok(values);
            }
        }
    }
}

// === Validation ===

/// A name, or a DNS subdomain, a slash and a name.
fn check_key(key: &str) -> Result<(), String> {
    let mut mistakes = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            let wanted = format!(
                "a valid label key {WANTED_NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            );
            return Err(invalid("<nil>", key, &wanted));
        }
        Some((prefix, name)) => {
            mistakes.extend(mistakes_in_prefix(prefix));
            name
        }
    };
    if name.is_empty() {
        mistakes.push("name part must be non-empty".to_owned());
    }
    if name.len() > MAX_NAME_BYTES {
        mistakes.push(format!("name part must be no more than {MAX_NAME_BYTES} bytes"));
    }
    if !is_name(name) {
        mistakes.push(format!("name part {WANTED_NAME}"));
    }
    if mistakes.is_empty() { Ok(()) } else { Err(invalid("<nil>", key, &mistakes.join("; "))) }
}

fn mistakes_in_prefix(prefix: &str) -> Vec<String> {
    if prefix.is_empty() {
        return vec!["prefix part must be non-empty".to_owned()];
    }
    let too_long =
        (prefix.len() > MAX_PREFIX_BYTES).then(|| format!("prefix part must be no more than {MAX_PREFIX_BYTES} bytes"));
    let misshaped = (!prefix.split('.').all(is_dns_label)).then(|| format!("prefix part {WANTED_PREFIX}"));
    too_long.into_iter().chain(misshaped).collect()
}

fn check_values(key: &str, values: &BTreeSet<&str>) -> Result<(), String> {
    let mistakes = values.iter().enumerate().filter_map(|(index, value)| mistake_in_value(key, index, value));
    all_right(mistakes.take(MAX_MISTAKES).collect())
}

fn check_number(key: &str, value: &str) -> Result<(), String> {
    let wanted = "for 'Gt', 'Lt' operators, the value must be an integer";
    let no_number = value.parse::<i64>().is_err().then(|| invalid("values[0]", value, wanted));
    all_right(no_number.into_iter().chain(mistake_in_value(key, 0, value)).collect())
}

fn mistake_in_value(key: &str, index: usize, value: &str) -> Option<String> {
    let too_long = value.len() > MAX_NAME_BYTES;
    let misshaped = !value.is_empty() && !is_name(value);
    let length = format!("must be no more than {MAX_NAME_BYTES} bytes");
    let wanted = match (too_long, misshaped) {
        (false, false) => return None,
        (true, false) => length,
        (false, true) => WANTED_VALUE.to_owned(),
        (true, true) => format!("{length}; {WANTED_VALUE}"),
    };
    Some(invalid(&format!("values[{index}][{key}]"), value, &wanted))
}

/// Upstream's way to tell several mistakes as one.
fn all_right(mistakes: Vec<String>) -> Result<(), String> {
    match &*mistakes {
        [] => Ok(()),
        [mistake] => Err(mistake.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

fn is_name(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    ends(text.bytes().next()) && ends(text.bytes().next_back()) && text.bytes().all(inside)
}

fn is_dns_label(text: &str) -> bool {
    let end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(end) && text.bytes().next_back().is_some_and(end);
    ends && text.bytes().all(|byte| end(byte) || byte == b'-')
}

fn invalid(path: &str, value: &str, wanted: &str) -> String {
    format!("{path}: Invalid value: {}: {wanted}", quoted(value))
}

/// As Go's `%q` writes what a word can hold.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            ascii if ascii.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(ascii))),
            '\'' => quoted.push(char),
            // What cannot be printed, or would change how the rest is.
            hidden if hidden.escape_debug().len() > 1 => quoted.push_str(&format!("\\u{:04x}", u32::from(hidden))),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

impl fmt::Display for LabelSelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LabelSelectorError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        selects_unlabelled(text).expect_err(text).to_string()
    }

    #[test]
    fn what_asks_for_a_label_selects_nothing_and_what_asks_for_none_everything() {
        for asks in [
            "k",
            "k=v",
            "k==v",
            "k=",
            "k = v",
            "k in (v)",
            "k in ()",
            "k in(v,w)",
            "k\tin\r\n(v,,w)",
            "k in (,)",
            "k>1",
            "k<007",
            "in",
            "in in (in,notin)",
            "example.com/k=v",
            "!k,k=v",
            "k!=v,w",
            "k=v,k!=v",
        ] {
            assert_eq!(selects_unlabelled(asks), Ok(false), "{asks}");
        }
        for asks_for_none in [
            "",
            "  ",
            "!k",
            "! k",
            "k!=v",
            "k!=",
            "k notin (v)",
            "k notin ()",
            "notin notin (notin)",
            "!k,k!=v,w notin (x)",
        ] {
            assert_eq!(selects_unlabelled(asks_for_none), Ok(true), "{asks_for_none}");
        }
    }

    #[test]
    fn what_is_not_the_grammar_is_told_in_upstreams_words() {
        for (text, words) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("(k)", "found '(', expected: !, identifier, or 'end of string'"),
            ("k,", "found '', expected: identifier after ','"),
            ("k,,k", "found ',', expected: identifier after ','"),
            ("k=v w", "found 'w', expected: ',' or 'end of string'"),
            ("!k=v", "found '=', expected: ',' or 'end of string'"),
            ("k in (v))", "found ')', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("!!k", "unable to parse requirement: found '!', expected: identifier"),
            ("k===v", "unable to parse requirement: found '=', expected: identifier"),
            ("k w", "unable to parse requirement: found 'w', expected: in, notin, =, ==, !=, gt, lt"),
            ("k!", "unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt"),
            ("k in v", "unable to parse requirement: found 'v' expected: '('"),
            ("k in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
            ("k in (v", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("k in (v w)", "unable to parse requirement: found 'w', expected: ',' or ')'"),
            ("k in (v,", "unable to parse requirement: found '', expected: ',', or identifier"),
        ] {
            assert_eq!(told(text), words, "{text}");
        }
    }

    #[test]
    fn keys_and_values_are_those_that_a_label_can_have() {
        let key =
            |key: &str, wanted: &str| format!("unable to parse requirement: <nil>: Invalid value: \"{key}\": {wanted}");
        assert_eq!(told("$"), key("$", &format!("name part {WANTED_NAME}")));
        assert_eq!(told("k\"\x07=v"), key("k\\\"\\a", &format!("name part {WANTED_NAME}")));
        assert_eq!(told("/k"), key("/k", "prefix part must be non-empty"));
        assert_eq!(told("A/k"), key("A/k", &format!("prefix part {WANTED_PREFIX}")));
        assert_eq!(told("a/"), key("a/", &format!("name part must be non-empty; name part {WANTED_NAME}")));
        assert!(told("a/b/c").contains(" with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
        let (fits, too_long) = ("k".repeat(63), "k".repeat(64));
        assert_eq!(selects_unlabelled(&format!("{fits}!={fits}")), Ok(true));
        assert_eq!(told(&too_long), key(&too_long, "name part must be no more than 63 bytes"));
        assert!(told(&format!("{}/k", "a".repeat(254))).ends_with("prefix part must be no more than 253 bytes"));

        let value = |path: &str, value: &str, wanted: &str| format!("{path}: Invalid value: \"{value}\": {wanted}");
        let requirement = |mistake: &str| format!("unable to parse requirement: {mistake}");
        assert_eq!(told("k=-"), requirement(&value("values[0][k]", "-", WANTED_VALUE)));
        let too_long = format!("{too_long}-");
        let wanted = format!("must be no more than 63 bytes; {WANTED_VALUE}");
        assert_eq!(told(&format!("k={too_long}")), requirement(&value("values[0][k]", &too_long, &wanted)));
        let several = [value("values[0][k]", "$", WANTED_VALUE), value("values[2][k]", "_", WANTED_VALUE)].join(", ");
        assert_eq!(told("k in (_,$,A,$)"), requirement(&format!("[{several}]")), "in order, each once");
        let integer = "for 'Gt', 'Lt' operators, the value must be an integer";
        assert_eq!(told("k>x"), requirement(&value("values[0]", "x", integer)));
        assert_eq!(selects_unlabelled("k<9223372036854775807"), Ok(false));
        assert_eq!(told("k<9223372036854775808"), requirement(&value("values[0]", "9223372036854775808", integer)));
    }

    #[test]
    fn a_refusal_stays_short_however_much_is_wrong() {
        let values: Vec<_> = (0..10_000).map(|n| format!("-{n}")).collect();
        assert!(told(&format!("k in ({})", values.join(","))).len() < 4096);
    }
}
