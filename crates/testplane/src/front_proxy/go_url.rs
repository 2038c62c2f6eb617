//! Paths and queries as Go's `net/url` writes them, which is how kube-aggregator forwards them.
//!
//! The aggregator never passes on what the client wrote: it sends the decoded path encoded anew and the parsed query
//! encoded anew (`k8s.io/kube-aggregator/pkg/apiserver/handler_proxy.go`), so `%2F` arrives as `/` and keys are sorted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

/// What `path_and_query` looks like after kube-aggregator has forwarded it.
///
/// # Errors
/// If the path holds a broken percent escape, which Go's server refuses before any handler runs.
pub(crate) fn forwarded(path_and_query: &str) -> Result<String> {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let path = escaped_path(path)?;
    let query = encoded_query(query);
    Ok(if query.is_empty() { path } else { format!("{path}?{query}") })
}

/// The path, decoded once and encoded as Go encodes a path.
pub(crate) fn escaped_path(path: &str) -> Result<String> {
    let decoded = unescape(path, false).with_context(|| format!("invalid URL escape in path {path:?}"))?;
    Ok(escape(&decoded, b"-_.~$&+,/:;=@", false))
}

// Go drops a pair that it cannot decode, and one with a semicolon, without failing the request.
fn encoded_query(query: &str) -> String {
    let mut values = BTreeMap::<Vec<u8>, Vec<Vec<u8>>>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Ok(key), Ok(value)) = (unescape(key, true), unescape(value, true)) {
            values.entry(key).or_default().push(value);
        }
    }
    let pairs = values.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
    let encoded = pairs.map(|(key, value)| format!("{}={}", escape(key, b"-_.~", true), escape(value, b"-_.~", true)));
    encoded.collect::<Vec<_>>().join("&")
}

fn escape(bytes: &[u8], unescaped: &[u8], plus_is_space: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || unescaped.contains(&byte) {
            text.push(char::from(byte));
        } else if byte == b' ' && plus_is_space {
            text.push('+');
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
    }
    text
}

fn unescape(text: &str, plus_is_space: bool) -> Result<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let Some((digits, after)) = rest.split_at_checked(2) else { bail!("a percent sign without digits") };
                let digits = std::str::from_utf8(digits).context("not hexadecimal")?;
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    bail!("%{digits} is not hexadecimal");
                }
                decoded.push(u8::from_str_radix(digits, 16).context("not hexadecimal")?);
                rest = after;
            }
            b'+' if plus_is_space => decoded.push(b' '),
            byte => decoded.push(byte),
        }
    }
    Ok(decoded)
}

/// The part of an `X-Remote-Extra-` header name that stands for `key`: bytes that a header name cannot hold, escaped.
pub(crate) fn escaped_header_key(key: &str) -> String {
    escape(key.as_bytes(), b"!#$&'*+-.^_`|~", false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_decoded_once_and_encoded_as_go_does() {
        for (sent, arrives) in [
            ("/apis/a/v1/namespaces/sh%6Fp/pods", "/apis/a/v1/namespaces/shop/pods"),
            ("/a%2Fb", "/a/b"),
            ("/a%252Fb", "/a%252Fb"),
            ("/a(b)!'*;,~", "/a%28b%29%21%27%2A;,~"),
            ("/%1b%5B", "/%1B%5B"),
            ("/caf\u{e9}", "/caf%C3%A9"),
        ] {
            assert_eq!(forwarded(sent).unwrap(), arrives, "{sent}");
        }
        assert!(forwarded("/a%zz").is_err());
        assert!(forwarded("/a%+1").is_err());
        assert!(forwarded("/a%2").is_err());
    }

    #[test]
    fn query_is_sorted_by_key_and_keeps_the_order_of_values() {
        for (sent, arrives) in [
            ("/a?watch=true&b=2&b=1&a=x%20y", "/a?a=x+y&b=2&b=1&watch=true"),
            ("/a?fieldSelector=verb=create,stage!=Panic", "/a?fieldSelector=verb%3Dcreate%2Cstage%21%3DPanic"),
            ("/a?watch", "/a?watch="),
            ("/a?", "/a"),
            ("/a?x;y=1&z=%zz&ok=~*", "/a?ok=~%2A"),
        ] {
            assert_eq!(forwarded(sent).unwrap(), arrives, "{sent}");
        }
    }

    #[test]
    fn header_keys_escape_what_a_token_cannot_hold() {
        assert_eq!(escaped_header_key("example.com/a b%"), "example.com%2Fa%20b%25");
    }
}
