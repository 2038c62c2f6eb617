//! What an `Accept` header lets us answer with: JSON, or nothing.
//!
//! This server speaks JSON only, so negotiation is not a choice of encoding but of *object*: a clause may ask for the
//! object itself or for another one in its place (`as`, `g`, `v`: a Table, aggregated discovery). The caller says which
//! of those it has. Knows no path and builds no response; discovery and the watch both call it.
//! Rules: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation/negotiate.go` and `github.com/munnerz/goautoneg`.

use http::HeaderMap;
use http::header::ACCEPT;

/// What a 406 names as accepted for an ordinary answer.
pub const JSON: &[&str] = &["application/json"];

/// What a 406 names as accepted for a watch.
pub const JSON_WATCH: &[&str] = &["application/json;stream=watch"];

/// The object that a clause wants in place of the route's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target<'a> {
    /// The parameter `g`.
    pub group: &'a str,
    /// The parameter `v`.
    pub version: &'a str,
    /// The parameter `as`.
    pub kind: &'a str,
}

/// The caller's answer to the client's most preferred clause that it has one for, or `None`: 406.
///
/// `offer` is asked once for each clause that JSON satisfies, best first: with `None` where the route's own object will
/// do, else with the object wanted. A clause without an answer is passed over and is never an error, because that is how
/// clients ask for what only newer servers have.
pub fn negotiate<T>(headers: &HeaderMap, offer: impl Fn(Option<Target<'_>>) -> Option<T>) -> Option<T> {
    // Clients split a long list over several lines, and a line that is not text holds no clause. No Accept at all, or an
    // empty one, is no wish.
    let lines = || headers.get_all(ACCEPT).iter().map(|line| line.to_str().unwrap_or("?"));
    if lines().all(|line| line.trim().is_empty()) {
        return offer(None);
    }
    let mut clauses: Vec<Clause<'_>> = lines().flat_map(|line| line.split(',')).filter_map(Clause::parse).collect();
    // The sort is stable, so that clauses of one rank stay in the client's order.
    clauses.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(b.named.cmp(&a.named)));
    clauses.into_iter().find_map(|clause| offer(clause.target))
}

/// Whether the client takes the route's own object as JSON.
#[must_use]
pub fn accepts_json(headers: &HeaderMap) -> bool {
    negotiate(headers, |target| target.is_none().then_some(())).is_some()
}

/// A clause that JSON satisfies.
struct Clause<'a> {
    /// In `(0, 1]`.
    weight: f32,
    /// How many of type and subtype are spelled out: between equal weights the more specific goes first.
    named: u8,
    target: Option<Target<'a>>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';');
        let mut clause = Self { weight: 1.0, named: named(parts.next()?)?, target: None };
        for part in parts {
            // Upstream takes a parameter without a value as absent.
            if let Some((name, value)) = part.split_once('=').map(|(name, value)| (name.trim(), value.trim()))
                && !value.is_empty()
            {
                clause.parameter(name, value)?;
            }
        }
        Some(clause)
    }

    /// Takes one parameter in; `None` if it makes the clause one that cannot be served.
    fn parameter(&mut self, name: &str, value: &'a str) -> Option<()> {
        match name.to_ascii_lowercase().as_str() {
            "q" => {
                // RFC 9110, 12.4.2: zero is "not acceptable". A weight that cannot be read is no weight.
                let weight: f32 = value.parse().ok().filter(|weight: &f32| weight.is_finite()).unwrap_or(1.0);
                self.weight = weight.min(1.0);
                return (weight > 0.0).then_some(());
            }
            "as" => self.target.get_or_insert_default().kind = value,
            "g" => self.target.get_or_insert_default().group = value,
            "v" => self.target.get_or_insert_default().version = value,
            "stream" => return (value == "watch").then_some(()),
            // The version of the server's own API group: nobody has more than one.
            "sv" => return None,
            // Upstream collects what it does not know (`charset`, `profile`, what comes next) and serves the clause.
            _ => {}
        }
        Some(())
    }
}

/// How many of type and subtype are spelled out, if `application/json` is among what the range covers.
fn named(range: &str) -> Option<u8> {
    let range = range.trim();
    // Java's URLConnection sends a bare `*`.
    let (kind, subtype) = range.split_once('/').unwrap_or((range, if range == "*" { "*" } else { "" }));
    match (kind.trim(), subtype.trim()) {
        ("*", "*") => Some(0),
        (kind, "*") if kind.eq_ignore_ascii_case("application") => Some(1),
        (kind, subtype) if kind.eq_ignore_ascii_case("application") && subtype.eq_ignore_ascii_case("json") => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT, line.parse().unwrap());
        }
        headers
    }

    /// Which object is served to this Accept by a route that has its own and a Table.
    fn served(line: &str) -> Option<&'static str> {
        negotiate(&accept(&[line]), |target| match target {
            None => Some("own"),
            Some(Target { group: "meta.k8s.io", version: "v1", kind: "Table" }) => Some("Table"),
            Some(_) => None,
        })
    }

    const KUBECTL_GET: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                               application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    const METADATA_CLIENT: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,\
                                   application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

    #[test]
    fn what_real_clients_send_gets_json() {
        for line in [
            "",
            " ",
            "*/*",
            "*",
            "application/json",
            "application/*",
            "Application/JSON",
            "application/json, */*",
            "application/json;charset=utf-8",
            "application/json;stream=watch",
            "application/json; stream=watch , application/vnd.kubernetes.protobuf;stream=watch",
            "application/vnd.kubernetes.protobuf, */*",
            "application/vnd.kubernetes.protobuf,application/json",
            "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch",
            "application/cbor,application/json",
            "application/cbor-seq, application/cbor;q=0.9, application/json;q=0.8",
            "application/yaml, application/json;q=0.1",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
            "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
            "application/json;q=nonsense",
            "application/json;as=;g=;v=",
            KUBECTL_GET,
            METADATA_CLIENT,
        ] {
            assert!(accepts_json(&accept(&[line])), "{line}");
        }
        assert!(accepts_json(&HeaderMap::new()));
    }

    #[test]
    fn what_json_cannot_satisfy_is_not_acceptable() {
        for line in [
            "application/vnd.kubernetes.protobuf",
            "application/vnd.kubernetes.protobuf;stream=watch",
            "application/cbor-seq",
            "application/yaml",
            "application/jsonx",
            "application",
            "json",
            "text/*",
            "*/json",
            ",",
            "application/json;q=0",
            "application/json;q=-1",
            "application/json;stream=chunks",
            "application/json;sv=v1",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=Table",
            "*/*;as=Table;v=v1;g=meta.k8s.io",
        ] {
            assert!(!accepts_json(&accept(&[line])), "{line}");
        }
    }

    #[test]
    fn clauses_are_tried_by_weight_then_precision_then_order() {
        for (line, expected) in [
            (KUBECTL_GET, Some("Table")),
            ("application/json,application/json;as=Table;v=v1;g=meta.k8s.io", Some("own")),
            ("application/json;q=0.5,application/json;as=Table;v=v1;g=meta.k8s.io;q=0.6", Some("Table")),
            ("*/*,application/json;as=Table;v=v1;g=meta.k8s.io", Some("Table")),
            ("application/*,application/json;as=Table;v=v1;g=meta.k8s.io", Some("Table")),
            ("*/*,application/json;as=Table;v=v1;g=meta.k8s.io;q=0.9", Some("own")),
            ("application/json;q=7,application/json;as=Table;v=v1;g=meta.k8s.io", Some("own")),
            ("application/json;as=Table;v=v1;g=META.K8S.IO,application/json;q=0", None),
            ("application/json;g=meta.k8s.io;profile=x;as=Table;v=v1", Some("Table")),
        ] {
            assert_eq!(served(line), expected, "{line}");
        }
    }

    #[test]
    fn several_lines_are_one_list_and_bytes_that_are_not_text_are_no_wish() {
        assert!(accepts_json(&accept(&["application/cbor", "application/json"])));
        assert!(accepts_json(&accept(&["", ""])));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, http::HeaderValue::from_bytes(b"application/json;\xff").unwrap());
        assert!(!accepts_json(&headers));
        headers.append(ACCEPT, http::HeaderValue::from_static("*/*"));
        assert!(accepts_json(&headers));
    }
}
