//! The front proxy: kube-aggregator, which names the user in headers and proves with a client certificate that it may.
//!
//! Source: `k8s.io/apiserver/pkg/authentication/request/headerrequest/requestheader.go`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use rustls_pki_types::CertificateDer;

use super::certificate::Subject;
use super::{Opinion, User};
use crate::certs::CaBundle;
use crate::request_info::has_whole_escapes;

/// What the front proxy is known by. Only header names that are listed here count.
#[derive(Debug)]
pub struct FrontProxyTrust {
    ca: CaBundle,
    names: Names,
}

/// Whom to believe, and in which headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Common names; empty allows any that the CA has signed.
    pub allowed: Vec<String>,
    /// Of the user. The first that has a value counts.
    pub username_headers: Vec<String>,
    /// Of the user's UID. The first that has a value counts.
    pub uid_headers: Vec<String>,
    /// Of a group each.
    pub group_headers: Vec<String>,
    /// What is before the key of an extra, in any case.
    pub extra_header_prefixes: Vec<String>,
}

/// The headers name more than one, or are no UTF-8.
struct Ambiguous;

impl FrontProxyTrust {
    /// Believes who shows a certificate of these CAs.
    pub fn new(ca: CaBundle, names: Names) -> Self {
        Self { ca, names }
    }

    /// Reads `kube-system/extension-apiserver-authentication`. `None`: kube-apiserver has no front proxy.
    ///
    /// # Errors
    /// If the ConfigMap has no usable CA or a key of it is malformed; the message names the key.
    pub fn from_config_map(data: &BTreeMap<String, String>) -> Result<Option<Self>> {
        const CA: &str = "requestheader-client-ca-file";
        let Some(ca) = data.get(CA) else { return Ok(None) };
        let names = |key: &str| {
            let names: Vec<String> = match data.get(key) {
                Some(json) => serde_json::from_str(json).with_context(|| format!("{key} is no list of names"))?,
                None => Vec::new(),
            };
            ensure!(names.iter().all(|name| !name.trim().is_empty()), "{key} has an empty name");
            Ok(names)
        };
        let names = Names {
            allowed: names("requestheader-allowed-names")?,
            username_headers: names("requestheader-username-headers")?,
            uid_headers: names("requestheader-uid-headers")?,
            group_headers: names("requestheader-group-headers")?,
            extra_header_prefixes: names("requestheader-extra-headers-prefix")?,
        };
        Ok(Some(Self::new(CaBundle::parse(ca.as_bytes()).context(CA)?, names)))
    }

    /// Whether everybody with a certificate of `clients` could name any user: a CA is in both bundles, and no name tells the
    /// front proxy from the others.
    pub fn is_anybody_of(&self, clients: &CaBundle) -> bool {
        self.names.allowed.is_empty() && self.ca.overlaps(clients)
    }

    /// The user that the front proxy names, if the chain is the front proxy's.
    pub fn identify(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Opinion {
        if chain.is_empty() {
            return Opinion::None;
        }
        if !self.ca.vouches_for(chain) || !self.allows(&chain[0]) {
            return Opinion::Bad;
        }
        match self.user(headers) {
            Ok(None) => Opinion::None,
            Ok(Some(user)) => Opinion::Proxied(user),
            Err(Ambiguous) => Opinion::Ambiguous,
        }
    }

    fn allows(&self, leaf: &CertificateDer<'_>) -> bool {
        let allowed = &self.names.allowed;
        allowed.is_empty() || Subject::of(leaf).is_some_and(|subject| allowed.contains(&subject.name))
    }

    fn user(&self, headers: &HeaderMap) -> Result<Option<User>, Ambiguous> {
        let Some(name) = only(headers, &self.names.username_headers)? else { return Ok(None) };
        Ok(Some(User {
            name,
            uid: only(headers, &self.names.uid_headers)?,
            groups: all(headers, &self.names.group_headers)?,
            extra: self.extra(headers)?,
        }))
    }

    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, Ambiguous> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key = self.names.extra_header_prefixes.iter().find_map(|prefix| after_prefix(name.as_str(), prefix));
            if let Some(key) = key {
                extra.entry(decoded(key)).or_default().push(text(value)?);
            }
        }
        Ok(extra)
    }
}

/// http keeps header names in lower case, as upstream makes the key; the prefix may have any.
fn after_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, key) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(key)
}

/// Percent-decoded, or as it is where an escape is no escape or the result no text, as upstream.
fn decoded(key: &str) -> String {
    if has_whole_escapes(key)
        && let Ok(decoded) = percent_decode_str(key).decode_utf8()
    {
        return decoded.into_owned();
    }
    key.to_owned()
}

/// The value of the first of `names` that has one. kube-apiserver writes it once, so two are somebody else's doing.
fn only(headers: &HeaderMap, names: &[String]) -> Result<Option<String>, Ambiguous> {
    for name in names {
        let mut values = headers.get_all(name.as_str()).iter();
        match (values.next(), values.next()) {
            (None, _) => {}
            (Some(value), None) if value.is_empty() => {}
            (Some(value), None) => return text(value).map(Some),
            (Some(_), Some(_)) => return Err(Ambiguous),
        }
    }
    Ok(None)
}

fn all(headers: &HeaderMap, names: &[String]) -> Result<Vec<String>, Ambiguous> {
    let values = names.iter().flat_map(|name| headers.get_all(name.as_str()));
    values.filter(|value| !value.is_empty()).map(text).collect()
}

fn text(value: &http::HeaderValue) -> Result<String, Ambiguous> {
    std::str::from_utf8(value.as_bytes()).map(str::to_owned).map_err(|_| Ambiguous)
}
