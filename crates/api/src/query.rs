//! What a watcher asks for in the query of its request.
//!
//! Source: `ListOptions` of `k8s.io/apimachinery/pkg/apis/meta/v1`, its conversion from strings and its validation; for the
//! replay, `PodLogOptions` of `k8s.io/api/core/v1`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

use crate::label_selector::{self, LabelSelectorError};
use crate::selection::{Parameter, Selection, Selector};
use crate::selector::{Field, FieldSelector, Requirement, SelectorError};
use crate::{Resource, Sequence};

/// The options of a watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which events.
    pub selector: Selector,
    /// Where from; `None` is now.
    pub resource_version: Option<Sequence>,
    /// What of the past comes first; `None` is nothing. Never together with `resource_version`.
    pub replay: Option<Replay>,
    /// For how long; `None` leaves it to the server.
    pub timeout: Option<Duration>,
    /// Whether BOOKMARK frames may be sent.
    pub allow_bookmarks: bool,
    /// Whether the end of the (always empty) initial state is to be marked.
    pub send_initial_events: bool,
    /// Parameters that nothing here understands, so that a misspelt filter can be warned about.
    pub unknown: Vec<String>,
}

/// How much of what is still retained a watch begins with, as in pods/log: where both bounds are given, both hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replay {
    /// Not what is older than this. At least a second; there is no upper bound.
    pub since: Option<Duration>,
    /// Of the events that the watch selects, no more than these last ones. May be 0.
    pub tail: Option<u64>,
}

/// Why a query was refused.
#[derive(Debug, PartialEq, Eq)]
pub enum QueryError {
    /// A parameter's value has the wrong form.
    Malformed {
        /// The parameter.
        parameter: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Values can be read and are not what a watch can have: all that is wrong with them, which is one thing at least.
    Invalid(Vec<Violation>),
    /// A parameter cannot be given together with `resourceVersion`.
    BesideResourceVersion {
        /// The parameter.
        parameter: &'static str,
    },
    /// `fieldSelector` was not understood, or all there is to select by is too much.
    Selector(SelectorError),
    /// `labelSelector` was not understood.
    LabelSelector(LabelSelectorError),
    /// The path names one object, and `fieldSelector` does not ask for it.
    OtherName,
}

/// One thing that is wrong with the value of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// It cannot be there, or not without another.
    Forbidden {
        /// The parameter.
        parameter: &'static str,
        /// What is wrong.
        message: &'static str,
    },
    /// It has to be one word of a few.
    NotSupported {
        /// The parameter.
        parameter: &'static str,
        /// The value given.
        value: String,
        /// The word.
        supported: &'static str,
    },
    /// A number is none that the parameter can take.
    OutOfRange {
        /// The parameter.
        parameter: &'static str,
        /// The value given.
        value: i64,
        /// Which numbers it can take.
        message: &'static str,
    },
    /// `resourceVersion` is not a number, or too large for one.
    ResourceVersion {
        /// The value given.
        value: String,
        /// In Go's words.
        problem: &'static str,
    },
}

/// Whether a query asks for a watch: `watch` is anything but absent, `0` or `false`, and its first occurrence counts.
pub fn asks_to_watch(query: &str) -> bool {
    pairs(query).find(|(key, _)| key == "watch").is_some_and(|(_, value)| boolean(&value))
}

fn pairs(query: &str) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(query.as_bytes())
}

/// As upstream converts strings to `*bool`: all but `0` and `false` in any case is true, the empty string too.
fn boolean(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// What a query says, before it is looked at together.
#[derive(Default)]
struct Given<'q> {
    options: WatchOptions,
    selection: Selection,
    field_selector: FieldSelector,
    replay: Replay,
    has_resource_version: bool,
    version_match: Option<Cow<'q, str>>,
    send_initial_events: Option<bool>,
    has_continue: bool,
    violations: Vec<Violation>,
}

// === impl WatchOptions ===

impl WatchOptions {
    /// Reads the query of a watch. Where a parameter is repeated its first occurrence counts, as upstream; of those that
    /// select by themselves, such as `verbs`, all do.
    ///
    /// # Errors
    /// If a parameter's value is wrong, or parameters do not go together.
    pub fn parse(query: &str, resource: Resource) -> Result<Self, QueryError> {
        Given::read(query, resource)?.settle(None)
    }

    /// As [`Self::parse`], for a path that names one object.
    ///
    /// # Errors
    /// Also if there is a field selector that does not ask for this name.
    pub fn parse_named(query: &str, resource: Resource, name: &str) -> Result<Self, QueryError> {
        Given::read(query, resource)?.settle(Some(name))
    }
}

// === impl Given ===

impl<'q> Given<'q> {
    fn read(query: &'q str, resource: Resource) -> Result<Self, QueryError> {
        let mut given = Self::default();
        let mut seen: HashSet<Cow<'_, str>> = HashSet::new();
        for (key, value) in pairs(query) {
            if let Some(parameter) = Parameter::named(&key, resource) {
                given.selection.add(parameter, &value).map_err(QueryError::Selector)?;
            } else if seen.insert(key.clone()) {
                given.take(key, value)?;
            }
        }
        Ok(given)
    }

    fn take(&mut self, key: Cow<'q, str>, value: Cow<'q, str>) -> Result<(), QueryError> {
        let options = &mut self.options;
        match &*key {
            "watch" | "pretty" | "limit" | "timeout" => {}
            "fieldSelector" => self.field_selector = FieldSelector::parse(&value).map_err(QueryError::Selector)?,
            "labelSelector" => self.selection.wants_label = wants_label(&value)?,
            "continue" => self.has_continue = !value.is_empty(),
            "resourceVersion" => {
                self.has_resource_version = !value.is_empty();
                match resource_version(&value) {
                    Ok(place) => options.resource_version = place,
                    Err(violation) => self.violations.push(violation),
                }
            }
            "resourceVersionMatch" if value.is_empty() => {}
            "resourceVersionMatch" => self.version_match = Some(value),
            "sinceSeconds" => match since(&value)? {
                Ok(since) => self.replay.since = since,
                Err(violation) => self.violations.push(violation),
            },
            "tailLines" => match tail(&value)? {
                Ok(tail) => self.replay.tail = tail,
                Err(violation) => self.violations.push(violation),
            },
            "timeoutSeconds" => options.timeout = timeout(&value)?,
            "allowWatchBookmarks" => options.allow_bookmarks = boolean(&value),
            "sendInitialEvents" => self.send_initial_events = Some(boolean(&value)),
            _ => options.unknown.push(key.into_owned()),
        }
        Ok(())
    }

    fn settle(mut self, name: Option<&str>) -> Result<WatchOptions, QueryError> {
        let mut violations = self.companions();
        violations.append(&mut self.violations);
        if !violations.is_empty() {
            return Err(QueryError::Invalid(violations));
        }
        check_replay(self.replay, self.has_resource_version)?;
        self.selection.require(&match name {
            Some(name) => of_object(self.field_selector, name)?,
            None => self.field_selector,
        });
        Ok(WatchOptions {
            selector: self.selection.finish().map_err(QueryError::Selector)?,
            replay: (self.replay != Replay::default()).then_some(self.replay),
            send_initial_events: self.send_initial_events.unwrap_or(false),
            ..self.options
        })
    }

    /// Upstream's `validateWatchOptions`: either both are there, with this one value and no page, or neither is.
    fn companions(&self) -> Vec<Violation> {
        const PARAMETER: &str = "resourceVersionMatch";
        const SUPPORTED: &str = "NotOlderThan";
        let given = self.version_match.as_deref();
        let other = given.filter(|value| *value != SUPPORTED);
        let wants_initial_events = self.send_initial_events.is_some();
        let forbidden = |message| Violation::Forbidden { parameter: PARAMETER, message };
        let companion = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        let alone = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        let page = "resourceVersionMatch is forbidden when continue is provided";
        let violations = [
            (wants_initial_events && given != Some(SUPPORTED)).then(|| forbidden(companion)),
            (!wants_initial_events && given.is_some()).then(|| forbidden(alone)),
            other.map(|value| Violation::NotSupported {
                parameter: PARAMETER,
                value: value.to_owned(),
                supported: SUPPORTED,
            }),
            (self.has_continue && given.is_some()).then(|| forbidden(page)),
        ];
        violations.into_iter().flatten().collect()
    }
}

/// Upstream's rule for a path that names an object: the name is the selector, unless there is one that asks for it.
fn of_object(given: FieldSelector, name: &str) -> Result<FieldSelector, QueryError> {
    let named = Requirement { field: Field::MetadataName, value: name.to_owned(), equal: true };
    if given.is_empty() {
        Ok(FieldSelector::of(vec![named]))
    } else if given.requirements().contains(&named) {
        Ok(given)
    } else {
        Err(QueryError::OtherName)
    }
}

/// A place says where to begin, and so does a replay.
fn check_replay(replay: Replay, has_resource_version: bool) -> Result<(), QueryError> {
    let given = [("sinceSeconds", replay.since.is_some()), ("tailLines", replay.tail.is_some())];
    match given.into_iter().find(|(_, given)| *given && has_resource_version) {
        Some((parameter, _)) => Err(QueryError::BesideResourceVersion { parameter }),
        None => Ok(()),
    }
}

fn wants_label(value: &str) -> Result<bool, QueryError> {
    label_selector::selects_unlabelled(value).map(|selects| !selects).map_err(QueryError::LabelSelector)
}

/// Empty and `0` both mean now: there is no state to begin with.
fn resource_version(value: &str) -> Result<Option<Sequence>, Violation> {
    if value.is_empty() {
        return Ok(None);
    }
    let sequence: Sequence = value.parse().map_err(|error: ParseIntError| {
        let too_large = *error.kind() == IntErrorKind::PosOverflow;
        let problem = if too_large { "value out of range" } else { "invalid syntax" };
        Violation::ResourceVersion { value: value.to_owned(), problem }
    })?;
    Ok(Some(sequence).filter(|sequence| sequence.get() != 0))
}

/// Zero leaves it to the server; a negative number ends the watch at once, as upstream.
fn timeout(value: &str) -> Result<Option<Duration>, QueryError> {
    let seconds = number("timeoutSeconds", value, "a whole number of seconds")?.filter(|seconds| *seconds != 0);
    Ok(seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
}

/// A number that is read, and whether the parameter can take it.
type Checked<T> = Result<Option<T>, Violation>;

fn since(value: &str) -> Result<Checked<Duration>, QueryError> {
    let (parameter, message) = ("sinceSeconds", "must be greater than 0");
    let seconds = number(parameter, value, "a whole number of seconds")?;
    Ok(seconds
        .map(|value| match value {
            1.. => Ok(Duration::from_secs(value.unsigned_abs())),
            _ => Err(Violation::OutOfRange { parameter, value, message }),
        })
        .transpose())
}

fn tail(value: &str) -> Result<Checked<u64>, QueryError> {
    let (parameter, message) = ("tailLines", "must be greater than or equal to 0");
    let lines = number(parameter, value, "a whole number")?;
    Ok(lines
        .map(|value| u64::try_from(value).map_err(|_| Violation::OutOfRange { parameter, value, message }))
        .transpose())
}

/// The empty string is as good as none.
fn number(parameter: &'static str, value: &str, what: &str) -> Result<Option<i64>, QueryError> {
    let malformed = |_| QueryError::Malformed { parameter, message: format!("\"{value}\" is not {what}") };
    if value.is_empty() { Ok(None) } else { value.parse().map(Some).map_err(malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_a_watch() {
        for yes in
            ["watch", "watch=", "watch=true", "watch=1", "watch=yes", "a=b&watch=t", "watch=1&watch=0", "w%61tch=1"]
        {
            assert!(asks_to_watch(yes), "{yes}");
        }
        for no in ["", "watch=0", "watch=false", "watch=FALSE", "watch=0&watch=1", "Watch=1"] {
            assert!(!asks_to_watch(no), "{no}");
        }
    }

    fn parse(query: &str) -> Result<WatchOptions, QueryError> {
        WatchOptions::parse(query, Resource::NamespacedEvents)
    }

    fn selecting(text: &str) -> Selector {
        FieldSelector::parse(text).unwrap().into()
    }

    #[test]
    fn a_full_query() {
        let options = parse(
            "watch=true&fieldSelector=verb%3Dget&resourceVersion=5&timeoutSeconds=30&allowWatchBookmarks=true&feildSelector=x",
        );
        assert_eq!(
            options.unwrap(),
            WatchOptions {
                selector: selecting("verb=get"),
                resource_version: Some(Sequence::new(5)),
                replay: None,
                timeout: Some(Duration::from_secs(30)),
                allow_bookmarks: true,
                send_initial_events: false,
                unknown: vec!["feildSelector".to_owned()],
            }
        );
    }

    #[test]
    fn the_first_of_a_repeated_parameter_counts() {
        let options = parse("timeoutSeconds=1&timeoutSeconds=2&fieldSelector=&fieldSelector=verb%3Dget").unwrap();
        assert_eq!((options.timeout, options.selector.is_empty()), (Some(Duration::from_secs(1)), true));
        assert!(!parse("labelSelector=!a&labelSelector=a").unwrap().selector.selects_nothing());
        let replay = parse("tailLines=1&tailLines=2&sinceSeconds=&sinceSeconds=3").unwrap().replay;
        assert_eq!(replay, Some(Replay { since: None, tail: Some(1) }));
    }

    #[test]
    fn the_neutral_values() {
        let neutral = "watch=1&resourceVersion=0&timeoutSeconds=0&fieldSelector=&labelSelector=&continue=&limit=500&pretty=true\
             &sinceSeconds=&tailLines=&verbs=&verb=,,&username=&group=&apiGroup=&resource=,&stage=&resourceVersionMatch=";
        assert_eq!(parse(neutral).unwrap(), WatchOptions::default());
        assert_eq!(WatchOptions::parse("namespace=", Resource::Events).unwrap(), WatchOptions::default());
        assert_eq!(parse("timeoutSeconds=-5").unwrap().timeout, Some(Duration::ZERO));
    }

    #[test]
    fn a_replay_is_bounded_by_age_by_number_or_by_both() {
        let replay = |query: &str| parse(query).map(|options| options.replay);
        let since = Some(Duration::from_secs(90));
        assert_eq!(replay("sinceSeconds=90"), Ok(Some(Replay { since, tail: None })));
        assert_eq!(replay("tailLines=0"), Ok(Some(Replay { since: None, tail: Some(0) })));
        assert_eq!(replay("tailLines=7&sinceSeconds=90&resourceVersion="), Ok(Some(Replay { since, tail: Some(7) })));
        let out_of_range = |parameter, value, message| {
            Err(QueryError::Invalid(vec![Violation::OutOfRange { parameter, value, message }]))
        };
        for value in [0, -1, i64::MIN] {
            let refused = out_of_range("sinceSeconds", value, "must be greater than 0");
            assert_eq!(replay(&format!("sinceSeconds={value}")), refused);
        }
        let refused = out_of_range("tailLines", -1, "must be greater than or equal to 0");
        assert_eq!(replay("tailLines=-1"), refused);
        for malformed in ["sinceSeconds=1m", "sinceSeconds=9223372036854775808", "tailLines=1.0", "tailLines=all"] {
            assert!(matches!(replay(malformed), Err(QueryError::Malformed { .. })), "{malformed}");
        }
        for (query, parameter) in [
            ("sinceSeconds=5&resourceVersion=0", "sinceSeconds"),
            ("resourceVersion=7&tailLines=0", "tailLines"),
            ("resourceVersion=7&tailLines=1&sinceSeconds=5", "sinceSeconds"),
        ] {
            assert_eq!(replay(query), Err(QueryError::BesideResourceVersion { parameter }), "{query}");
        }
    }

    #[test]
    fn a_path_with_a_name_selects_it() {
        let named =
            |query: &str| WatchOptions::parse_named(query, Resource::Events, "event-7").map(|options| options.selector);
        for nothing_else in ["", "fieldSelector=", "fieldSelector=,,", "fieldSelector=metadata.name%3D%3Devent-7"] {
            assert_eq!(named(nothing_else), Ok(selecting("metadata.name=event-7")), "{nothing_else}");
        }
        assert_eq!(
            named("fieldSelector=metadata.name%3Devent-7,verb%3Dget&stage=Panic"),
            Ok(selecting("metadata.name=event-7,verb=get,stage=Panic"))
        );
        for other in ["metadata.name%3Devent-8", "metadata.name!%3Devent-7", "verb%3Dget", "auditID%3Devent-7"] {
            assert_eq!(named(&format!("fieldSelector={other}")), Err(QueryError::OtherName), "{other}");
        }
        // What a parameter requires is not what the field selector asks for.
        assert_eq!(named("group=dev"), Ok(selecting("metadata.name=event-7,user.groups=dev")));
        let quoted = WatchOptions::parse_named("", Resource::Events, "a=b,c").unwrap().selector;
        assert_eq!(quoted, selecting(r"metadata.name=a\=b\,c"));
    }

    #[test]
    fn send_initial_events_needs_its_companion() {
        assert!(!parse("sendInitialEvents=false&resourceVersionMatch=NotOlderThan").unwrap().send_initial_events);
        assert!(parse("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").unwrap().send_initial_events);
    }

    #[test]
    fn all_that_is_wrong_is_told_in_upstreams_order() {
        let forbidden = |message| Violation::Forbidden { parameter: "resourceVersionMatch", message };
        let companion = || forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        let alone = || forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        let page = || forbidden("resourceVersionMatch is forbidden when continue is provided");
        let other = || Violation::NotSupported {
            parameter: "resourceVersionMatch",
            value: "Exact".to_owned(),
            supported: "NotOlderThan",
        };
        let place = || Violation::ResourceVersion { value: "x".to_owned(), problem: "invalid syntax" };
        let [since, tail] = [
            Violation::OutOfRange { parameter: "sinceSeconds", value: 0, message: "must be greater than 0" },
            Violation::OutOfRange { parameter: "tailLines", value: -1, message: "must be greater than or equal to 0" },
        ];
        for (query, expected) in [
            ("sendInitialEvents=true", vec![companion()]),
            ("sendInitialEvents=false&resourceVersionMatch=", vec![companion()]),
            ("sendInitialEvents=1&resourceVersionMatch=Exact", vec![companion(), other()]),
            ("resourceVersionMatch=NotOlderThan", vec![alone()]),
            ("resourceVersionMatch=Exact", vec![alone(), other()]),
            ("continue=c&resourceVersionMatch=Exact", vec![alone(), other(), page()]),
            ("continue=c&resourceVersionMatch=NotOlderThan&sendInitialEvents=true", vec![page()]),
            ("resourceVersion=x&continue=c&resourceVersionMatch=NotOlderThan", vec![alone(), page(), place()]),
            ("sinceSeconds=0&resourceVersion=x&tailLines=-1", vec![since, place(), tail]),
        ] {
            assert_eq!(parse(query), Err(QueryError::Invalid(expected)), "{query}");
        }
        let large = "18446744073709551616".to_owned();
        assert_eq!(
            parse(&format!("resourceVersion={large}")),
            Err(QueryError::Invalid(vec![Violation::ResourceVersion { value: large, problem: "value out of range" }]))
        );
        // Upstream minds a page only beside a match, and what cannot be read comes before what cannot be had.
        assert_eq!(parse("continue=c"), Ok(WatchOptions::default()));
        assert!(matches!(parse("resourceVersion=x&timeoutSeconds=x"), Err(QueryError::Malformed { .. })));
    }

    #[test]
    fn wrong_values_are_refused() {
        assert!(matches!(parse("timeoutSeconds=1.5"), Err(QueryError::Malformed { .. })));
        assert!(matches!(parse("fieldSelector=verb"), Err(QueryError::Selector(_))));
        assert!(matches!(parse("labelSelector=%24"), Err(QueryError::LabelSelector(_))));
    }
}
