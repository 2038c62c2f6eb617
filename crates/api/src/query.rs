//! What a watcher asks for in the query of its request.
//!
//! Source: `ListOptions` of `k8s.io/apimachinery/pkg/apis/meta/v1`, its conversion from strings and its validation.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use crate::Sequence;
use crate::selector::{FieldSelector, SelectorError};

/// The options of a watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which events.
    pub field_selector: FieldSelector,
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
    /// A parameter is known upstream and not served here, or not together with another.
    Forbidden {
        /// The parameter.
        parameter: &'static str,
        /// What is wrong.
        message: &'static str,
    },
    /// `fieldSelector` was not understood.
    Selector(SelectorError),
    /// `resourceVersion` is not a number.
    ResourceVersion {
        /// The value given.
        value: String,
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

impl WatchOptions {
    /// Reads the query of a watch. Where a parameter is repeated its first occurrence counts, as upstream.
    ///
    /// # Errors
    /// If a parameter's value is wrong, or parameters do not go together.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        let mut options = Self::default();
        let mut seen: HashSet<Cow<'_, str>> = HashSet::new();
        let (mut version_match, mut send_initial_events) = (None, None);
        for (key, value) in pairs(query) {
            if !seen.insert(key.clone()) {
                continue;
            }
            match &*key {
                "watch" | "pretty" | "limit" | "timeout" => {}
                "fieldSelector" => options.field_selector = field_selector(&value)?,
                "labelSelector" if value.is_empty() => {}
                "labelSelector" => {
                    return Err(forbidden("labelSelector", "audit events have no labels; use fieldSelector"));
                }
                "continue" if value.is_empty() => {}
                "continue" => return Err(forbidden("continue", "a watch has no pages")),
                "resourceVersion" => options.resource_version = resource_version(&value)?,
                "resourceVersionMatch" if value.is_empty() => {}
                "resourceVersionMatch" => version_match = Some(value),
                "timeoutSeconds" => options.timeout = timeout(&value)?,
                "allowWatchBookmarks" => options.allow_bookmarks = boolean(&value),
                "sendInitialEvents" => send_initial_events = Some(boolean(&value)),
                _ => options.unknown.push(key.into_owned()),
            }
        }
        check_companions(send_initial_events, version_match.as_deref())?;
        options.send_initial_events = send_initial_events.unwrap_or(false);
        Ok(options)
    }
}

/// Upstream's `validateWatchOptions`: either both are there, with this one value, or neither is. It tells all that is
/// wrong; here the first has to do.
fn check_companions(send_initial_events: Option<bool>, version_match: Option<&str>) -> Result<(), QueryError> {
    match (send_initial_events, version_match) {
        (Some(_), Some("NotOlderThan")) | (None, None) => Ok(()),
        (Some(_), _) => Err(forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, Some(_)) => Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
    }
}

fn field_selector(value: &str) -> Result<FieldSelector, QueryError> {
    FieldSelector::parse(value).map_err(QueryError::Selector)
}

fn forbidden(parameter: &'static str, message: &'static str) -> QueryError {
    QueryError::Forbidden { parameter, message }
}

/// Empty and `0` both mean now: there is no state to begin with.
fn resource_version(value: &str) -> Result<Option<Sequence>, QueryError> {
    if value.is_empty() {
        return Ok(None);
    }
    let sequence: Sequence = value.parse().map_err(|_| QueryError::ResourceVersion { value: value.to_owned() })?;
    Ok(Some(sequence).filter(|sequence| sequence.get() != 0))
}

/// Zero leaves it to the server; a negative number ends the watch at once, as upstream.
fn timeout(value: &str) -> Result<Option<Duration>, QueryError> {
    if value.is_empty() {
        return Ok(None);
    }
    let seconds: i64 = value.parse().map_err(|_| QueryError::Malformed {
        parameter: "timeoutSeconds",
        message: format!("\"{value}\" is not a whole number of seconds"),
    })?;
    Ok((seconds != 0).then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
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

    #[test]
    fn a_full_query() {
        let options = WatchOptions::parse(
            "watch=true&fieldSelector=verb%3Dget&resourceVersion=5&timeoutSeconds=30&allowWatchBookmarks=true&feildSelector=x",
        );
        assert_eq!(
            options.unwrap(),
            WatchOptions {
                field_selector: FieldSelector::parse("verb=get").unwrap(),
                resource_version: Some(Sequence::new(5)),
                timeout: Some(Duration::from_secs(30)),
                allow_bookmarks: true,
                send_initial_events: false,
                unknown: vec!["feildSelector".to_owned()],
            }
        );
    }

    #[test]
    fn the_first_of_a_repeated_parameter_counts() {
        let options =
            WatchOptions::parse("timeoutSeconds=1&timeoutSeconds=2&fieldSelector=&fieldSelector=verb%3Dget").unwrap();
        assert_eq!((options.timeout, options.field_selector.is_empty()), (Some(Duration::from_secs(1)), true));
    }

    #[test]
    fn the_neutral_values() {
        let neutral =
            "watch=1&resourceVersion=0&timeoutSeconds=0&fieldSelector=&labelSelector=&continue=&limit=500&pretty=true";
        assert_eq!(WatchOptions::parse(neutral).unwrap(), WatchOptions::default());
        assert_eq!(WatchOptions::parse("timeoutSeconds=-5").unwrap().timeout, Some(Duration::ZERO));
    }

    #[test]
    fn send_initial_events_needs_its_companion() {
        assert!(
            !WatchOptions::parse("sendInitialEvents=false&resourceVersionMatch=NotOlderThan")
                .unwrap()
                .send_initial_events
        );
        assert!(
            WatchOptions::parse("sendInitialEvents=true&resourceVersionMatch=NotOlderThan")
                .unwrap()
                .send_initial_events
        );
        for bad in [
            "sendInitialEvents=true",
            "resourceVersionMatch=NotOlderThan",
            "sendInitialEvents=1&resourceVersionMatch=Exact",
        ] {
            let error = WatchOptions::parse(bad).unwrap_err();
            assert!(
                matches!(error, QueryError::Forbidden { parameter: "resourceVersionMatch", .. }),
                "{bad}: {error:?}"
            );
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        assert!(matches!(WatchOptions::parse("resourceVersion=abc"), Err(QueryError::ResourceVersion { .. })));
        assert!(matches!(WatchOptions::parse("timeoutSeconds=1.5"), Err(QueryError::Malformed { .. })));
        assert!(matches!(WatchOptions::parse("fieldSelector=verb"), Err(QueryError::Selector(_))));
        assert!(matches!(WatchOptions::parse("labelSelector=a%3Db"), Err(QueryError::Forbidden { .. })));
    }
}
