//! Field selectors on audit events: their grammar, the fields they know, and what they mean.
//!
//! Grammar: `k8s.io/apimachinery/pkg/fields`. Which text a field holds is the caller's business: a selector sees what the
//! reader's view shows.

use std::fmt;

/// A field that can be selected on. Its place in [`Field::ALL`] is its ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the field that its name spells; see Field::name")]
pub enum Field {
    MetadataName,
    MetadataNamespace,
    AuditId,
    Level,
    Stage,
    Verb,
    Username,
    Groups,
    ImpersonatedUsername,
    UserAgent,
    SourceIps,
    ObjectResource,
    ObjectApiGroup,
    ObjectApiVersion,
    ObjectNamespace,
    ObjectName,
    ObjectSubresource,
    ObjectUid,
    ResponseCode,
    Decision,
    RequestUri,
}

impl Field {
    /// Every field, in the order of error messages.
    pub const ALL: [Self; 21] = [
        Self::MetadataName,
        Self::MetadataNamespace,
        Self::AuditId,
        Self::Level,
        Self::Stage,
        Self::Verb,
        Self::Username,
        Self::Groups,
        Self::ImpersonatedUsername,
        Self::UserAgent,
        Self::SourceIps,
        Self::ObjectResource,
        Self::ObjectApiGroup,
        Self::ObjectApiVersion,
        Self::ObjectNamespace,
        Self::ObjectName,
        Self::ObjectSubresource,
        Self::ObjectUid,
        Self::ResponseCode,
        Self::Decision,
        Self::RequestUri,
    ];

    /// As it stands in a selector.
    pub fn name(self) -> &'static str {
        match self {
            Self::MetadataName => "metadata.name",
            Self::MetadataNamespace => "metadata.namespace",
            Self::AuditId => "auditID",
            Self::Level => "level",
            Self::Stage => "stage",
            Self::Verb => "verb",
            Self::Username => "user.username",
            Self::Groups => "user.groups",
            Self::ImpersonatedUsername => "impersonatedUser.username",
            Self::UserAgent => "userAgent",
            Self::SourceIps => "sourceIPs",
            Self::ObjectResource => "objectRef.resource",
            Self::ObjectApiGroup => "objectRef.apiGroup",
            Self::ObjectApiVersion => "objectRef.apiVersion",
            Self::ObjectNamespace => "objectRef.namespace",
            Self::ObjectName => "objectRef.name",
            Self::ObjectSubresource => "objectRef.subresource",
            Self::ObjectUid => "objectRef.uid",
            Self::ResponseCode => "responseStatus.code",
            Self::Decision => "annotations.authorization.k8s.io/decision",
            Self::RequestUri => "requestURI",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// A conjunction of requirements; empty, it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldSelector {
    requirements: Vec<Requirement>,
}

/// Every term is compared with every event: more than anybody writes by hand, and too few to keep a server busy. It bounds
/// all that a watch selects by together.
pub const MAX_TERMS: usize = 32;

/// A selection is held for as long as somebody watches by it.
pub const MAX_VALUE_BYTES: usize = 4096;

/// One term of a selector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// What is compared.
    pub field: Field,
    /// With what.
    pub value: String,
    /// Whether the field must be, or must not be, the value.
    pub equal: bool,
}

/// Why a selector was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorError {
    /// Not the grammar.
    Syntax {
        /// The whole selector.
        selector: String,
        /// The part that was not understood.
        term: String,
    },
    /// What follows a backslash is none of the three that may; at the end of a value nothing does.
    Escape(Option<char>),
    /// A comma or an equals sign in a value, with no backslash before it.
    Unescaped(char),
    /// A field that cannot be selected on.
    UnknownField(String),
    /// More than [`MAX_TERMS`], whatever they were written as.
    TooManyTerms,
    /// Values of more than [`MAX_VALUE_BYTES`] together.
    TooLong,
}

impl FieldSelector {
    /// Reads `key=value,key!=value,…`. The order of terms means nothing: selectors that select the same are equal.
    ///
    /// # Errors
    /// If the text is not the grammar, names a field that is not in [`Field::ALL`], or has more than [`MAX_TERMS`] different
    /// terms.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = split_terms(text);
        // Upstream reads them in this order, and fields are looked up after all were read: it decides which of several
        // mistakes is told.
        terms.sort_unstable();
        let terms: Vec<_> = terms
            .into_iter()
            .filter(|term| !term.is_empty())
            .map(|term| read_term(text, term))
            .collect::<Result<_, _>>()?;
        // A term of nothing but an operator requires nothing, as upstream.
        let terms = terms.into_iter().filter(|(key, _, value)| !key.is_empty() || !value.is_empty());
        let requirements = terms.map(|(key, equal, value)| {
            let field = Field::named(key).ok_or_else(|| SelectorError::UnknownField(key.to_owned()))?;
            Ok(Requirement { field, value, equal })
        });
        let selector = Self::of(requirements.collect::<Result<_, _>>()?);
        if selector.requirements.len() > MAX_TERMS { Err(SelectorError::TooManyTerms) } else { Ok(selector) }
    }

    /// The conjunction of these, however many they are.
    pub(crate) fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        requirements.dedup();
        Self { requirements }
    }

    /// Its terms; all must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an event is selected; `holds` says whether one of a field's values is the given text.
    pub fn matches(&self, mut holds: impl FnMut(Field, &str) -> bool) -> bool {
        self.requirements.iter().all(|term| holds(term.field, &term.value) == term.equal)
    }
}

/// Key, whether it must be equal, and value.
fn read_term<'a>(selector: &str, term: &'a str) -> Result<(&'a str, bool, String), SelectorError> {
    let not_understood = || SelectorError::Syntax { selector: selector.to_owned(), term: term.to_owned() };
    let (key, equal, value) = split_term(term).ok_or_else(not_understood)?;
    Ok((key, equal, unescape(value)?))
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// The first operator decides: `!=` and `==` before `=`, as upstream looks for them at each place.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    term.char_indices().find_map(|(index, _)| {
        let rest = &term[index..];
        let operators = [("!=", false), ("==", true), ("=", true)];
        let (operator, equal) = operators.into_iter().find(|(operator, _)| rest.starts_with(operator))?;
        Some((&term[..index], equal, &rest[operator.len()..]))
    })
}

/// `\\`, `\,` and `\=` are the only escapes; a bare `=` in a value is an error, as upstream has it.
fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(char) = rest.next() {
        plain.push(match char {
            '\\' => match rest.next() {
                Some(escaped @ ('\\' | ',' | '=')) => escaped,
                other => return Err(SelectorError::Escape(other)),
            },
            ',' | '=' => return Err(SelectorError::Unescaped(char)),
            other => other,
        });
    }
    Ok(plain)
}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { selector, term } => {
                write!(f, "invalid selector: '{selector}'; can't understand '{term}'")
            }
            Self::Escape(escaped) => {
                let escaped = escaped.map(String::from).unwrap_or_default();
                write!(f, "invalid field selector: invalid escape sequence: \\{escaped}")
            }
            // Upstream tells the character by its number.
            Self::Unescaped(char) => {
                write!(f, "invalid field selector: unescaped character in value: {}", u32::from(*char))
            }
            Self::TooLong => {
                write!(f, "the values to select by have more than {MAX_VALUE_BYTES} bytes together")
            }
            Self::TooManyTerms => {
                write!(
                    f,
                    "a watch selects by at most {MAX_TERMS} terms and values, all selectors and parameters together"
                )
            }
            Self::UnknownField(name) => {
                // Not joined into one text first: LLVM unrolls that over all of the fields, and then thinks for two minutes.
                let [first, others @ ..] = Field::ALL;
                write!(f, "field label not supported: {name}; supported are {}", first.name())?;
                others.iter().try_for_each(|field| write!(f, ", {}", field.name()))
            }
        }
    }
}

impl std::error::Error for SelectorError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<(Field, bool, String)> {
        let selector = FieldSelector::parse(text).unwrap();
        selector.requirements.into_iter().map(|term| (term.field, term.equal, term.value)).collect()
    }

    #[test]
    fn upstream_grammar() {
        assert_eq!(parse(""), []);
        assert_eq!(parse(",,"), []);
        assert_eq!(
            parse("verb=get,stage==ResponseComplete,user.username!=system:admin"),
            [
                (Field::Stage, true, "ResponseComplete".to_owned()),
                (Field::Verb, true, "get".to_owned()),
                (Field::Username, false, "system:admin".to_owned()),
            ]
        );
        assert_eq!(parse(r"requestURI=/a?b\=c\,d\\"), [(Field::RequestUri, true, r"/a?b=c,d\".to_owned())]);
        assert_eq!(parse("verb="), [(Field::Verb, true, String::new())]);
        assert_eq!(parse("verb!="), [(Field::Verb, false, String::new())]);
        assert_eq!(parse("=,!=,=="), []);
    }

    #[test]
    fn selectors_that_select_the_same_are_equal() {
        assert_eq!(FieldSelector::parse("verb=a,stage=b,verb=a"), FieldSelector::parse("stage==b,verb=a"));
        assert_ne!(FieldSelector::parse("verb=a"), FieldSelector::parse("verb!=a"));
    }

    #[test]
    fn what_is_not_the_grammar_is_named() {
        let told = |bad| FieldSelector::parse(bad).unwrap_err().to_string();
        assert_eq!(told("verb"), "invalid selector: 'verb'; can't understand 'verb'");
        assert_eq!(told("x=y,verb"), "invalid selector: 'x=y,verb'; can't understand 'verb'");
        assert_eq!(told("verb,level"), "invalid selector: 'verb,level'; can't understand 'level'");
        for bad in ["verb=a=b", "verb===x"] {
            assert_eq!(told(bad), "invalid field selector: unescaped character in value: 61", "{bad}");
        }
        assert_eq!(told(r"verb=a\b"), r"invalid field selector: invalid escape sequence: \b");
        assert_eq!(told(r"verb=a\"), r"invalid field selector: invalid escape sequence: \");
        let error = FieldSelector::parse("spec.nodeName=x").unwrap_err().to_string();
        assert!(
            error.starts_with("field label not supported: spec.nodeName; supported are metadata.name, "),
            "{error}"
        );
    }

    #[test]
    fn there_is_an_end_to_terms() {
        let selector = |terms: usize| (0..terms).map(|n| format!("verb!={n},verb!={n}")).collect::<Vec<_>>().join(",");
        assert!(FieldSelector::parse(&selector(MAX_TERMS)).is_ok());
        assert_eq!(FieldSelector::parse(&selector(MAX_TERMS + 1)), Err(SelectorError::TooManyTerms));
    }

    #[test]
    fn all_terms_must_hold() {
        let selector = FieldSelector::parse("verb=get,user.groups=dev,user.groups!=ops").unwrap();
        let event = |groups: &'static [&'static str]| {
            move |field: Field, value: &str| match field {
                Field::Verb => value == "get",
                Field::Groups => groups.contains(&value),
                _ => false,
            }
        };
        assert!(selector.matches(event(&["dev", "qa"])));
        assert!(!selector.matches(event(&["dev", "ops"])));
        assert!(!selector.matches(event(&["qa"])));
    }

    #[test]
    fn every_field_is_found_by_its_name_and_at_its_ordinal() {
        for (ordinal, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!(Field::named(field.name()), Some(field));
            assert_eq!(field as usize, ordinal);
        }
    }
}
