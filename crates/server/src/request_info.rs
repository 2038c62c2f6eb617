//! What a path means, as upstream's `RequestInfo` reads it: the one place that decides that.
//!
//! By this reading `router` authorizes and serves requests, and `attribution` finds the namespace of an audit event, which is
//! authorized by the same reading in kube-apiserver. It knows no resource of ours, and decides nothing.
//! Source: `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// What a decoded path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPath<'p> {
    /// Something of an API, whether or not anybody serves it.
    Resource(ResourcePath<'p>),
    /// A deprecated prefix with nothing behind it, of which upstream cannot say what it is about.
    BarePrefix,
    /// Anything else, discovery too.
    NonResource,
}

/// A path of an API, in parts. Empty means none, as upstream; a segment may be empty too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourcePath<'p> {
    /// `None` is the core group, `/api/{version}`. `/apis//{version}` is a group whose name is empty.
    pub group: Option<&'p str>,
    /// The API version.
    pub version: &'p str,
    /// The prefix that takes the verb's place.
    pub prefix: Option<Prefix>,
    /// Where it is.
    pub namespace: &'p str,
    /// Whether the resource is one inside that namespace, and not the namespace itself.
    pub inside: bool,
    /// The plural name.
    pub resource: &'p str,
    /// Which of them.
    pub name: &'p str,
    /// What of it.
    pub subresource: &'p str,
    /// The segments from the resource on: 1 is a collection, 2 one object, 3 a subresource. All that lies deeper, which upstream does
    /// not interpret either, is [`ResourcePath::DEEPER`].
    pub depth: usize,
}

/// The deprecated way to say what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// A watch, whatever the method.
    Watch,
    /// A proxy. What it names has no subresource.
    Proxy,
}

/// The segments of the longest path that means something, and one more to know that there is more:
/// `apis/{group}/{version}/watch/namespaces/{namespace}/{resource}/{name}/{subresource}`.
const INTERPRETED: usize = 9 + 1;

/// `path`, percent-decoded exactly once; `None` if it has a broken escape, which Go refuses before anything else.
///
/// To upstream an encoded slash separates like any other: `shop%2Fpods` is two segments. `+` is itself. Bytes that are no text
/// become U+FFFD, as they do where kube-apiserver writes them into JSON: into `objectRef`, and into a review.
#[must_use]
pub fn decoded(path: &str) -> Option<Cow<'_, str>> {
    if !path.as_bytes().contains(&b'%') {
        return Some(Cow::Borrowed(path));
    }
    has_whole_escapes(path).then(|| percent_decode_str(path).decode_utf8_lossy())
}

/// A URI's path, and its query if it has one.
#[must_use]
pub fn split_uri(uri: &str) -> (&str, Option<&str>) {
    cut(uri, b'?')
}

/// What is before an ASCII character, and what is behind it if it is there.
#[must_use]
pub fn cut(text: &str, separator: u8) -> (&str, Option<&str>) {
    // Not `split_once`, which takes several times as long for a character as for a byte.
    match memchr::memchr(separator, text.as_bytes()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Whether two hexadecimal digits follow each `%`.
#[must_use]
pub fn has_whole_escapes(text: &str) -> bool {
    let hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    text.split('%').skip(1).map(str::as_bytes).all(|after| hex(after.first()) && hex(after.get(1)))
}

/// Whether `name` is a DNS-1123 label, as the name of each namespace is.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

// === impl RequestPath ===

impl<'p> RequestPath<'p> {
    /// Reads a decoded path.
    ///
    /// Slashes at its ends do not count. Empty and dot segments between are segments: kube-apiserver cleans no path, and
    /// authorizes what it reads.
    #[must_use]
    pub fn of(path: &'p str) -> Self {
        let mut buffer = [""; INTERPRETED];
        Self::walk(split(path.trim_matches('/'), &mut buffer))
    }

    fn walk(segments: &[&'p str]) -> Self {
        let (group, version, rest) = match segments {
            ["api", version, rest @ ..] => (None, *version, rest),
            ["apis", group, version, rest @ ..] => (Some(*group), *version, rest),
            _ => return Self::NonResource,
        };
        // Consumed once only: of `watch/watch/namespaces/x` the resource is `watch`.
        let (prefix, rest) = match rest {
            [] => return Self::NonResource,
            ["watch" | "proxy"] => return Self::BarePrefix,
            ["watch", rest @ ..] => (Some(Prefix::Watch), rest),
            ["proxy", rest @ ..] => (Some(Prefix::Proxy), rest),
            rest => (None, rest),
        };
        let (namespace, inside, parts) = match rest {
            ["namespaces", namespace] | ["namespaces", namespace, "status" | "finalize", ..] => {
                (*namespace, false, rest)
            }
            // An empty namespace is none: `namespaces//pods` are the pods of all.
            ["namespaces", namespace, parts @ ..] => (*namespace, true, parts),
            _ => ("", false, rest),
        };
        let part = |index: usize| parts.get(index).copied().unwrap_or_default();
        let subresource = if prefix == Some(Prefix::Proxy) { "" } else { part(2) };
        let (resource, name, depth) = (part(0), part(1), parts.len().min(ResourcePath::DEEPER));
        Self::Resource(ResourcePath { group, version, prefix, namespace, inside, resource, name, subresource, depth })
    }
}

/// The segments of `path`, in `buffer`; those that find no room there mean nothing.
fn split<'b, 'p>(path: &'p str, buffer: &'b mut [&'p str]) -> &'b [&'p str] {
    let (mut start, mut count) = (0, 0);
    let ends = memchr::memchr_iter(b'/', path.as_bytes()).chain([path.len()]);
    for (slot, end) in buffer.iter_mut().zip(ends) {
        *slot = &path[start..end];
        (start, count) = (end + 1, count + 1);
    }
    &buffer[..count]
}

// === impl ResourcePath ===

impl ResourcePath<'_> {
    /// The depth of what upstream does not interpret.
    pub const DEEPER: usize = 4;

    /// Upstream's request verb. A name in the path wins over `watches`, which is what the query asks for.
    #[must_use]
    pub fn verb(&self, method: &Method, watches: bool) -> &'static str {
        let named = !self.name.is_empty();
        match (self.prefix, method) {
            (Some(Prefix::Watch), _) => "watch",
            (Some(Prefix::Proxy), _) => "proxy",
            (None, &Method::GET | &Method::HEAD) if named => "get",
            (None, &Method::GET | &Method::HEAD) if watches => "watch",
            (None, &Method::GET | &Method::HEAD) => "list",
            (None, &Method::POST) => "create",
            (None, &Method::PUT) => "update",
            (None, &Method::PATCH) => "patch",
            (None, &Method::DELETE) if named => "delete",
            (None, &Method::DELETE) => "deletecollection",
            (None, _) => "",
        }
    }
}

#[cfg(test)]
mod tests;
