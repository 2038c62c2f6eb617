//! The front proxy: kube-aggregator, which names the user in headers and proves with a client certificate that it may.
//!
//! Source: `k8s.io/apiserver/pkg/authentication/request/headerrequest/requestheader.go` and `…/request/x509/x509.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use http::HeaderMap;
use k8s_openapi::api::core::v1::ConfigMap;
use percent_encoding::percent_decode_str;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::User;
use crate::certs;

/// What the front proxy is known by. Only header names that are listed here count.
#[derive(Debug)]
pub struct FrontProxyTrust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Common names; empty allows any that the CA has signed.
    allowed_names: Vec<String>,
    username_headers: Vec<String>,
    uid_headers: Vec<String>,
    group_headers: Vec<String>,
    /// In lower case.
    extra_header_prefixes: Vec<String>,
}

/// Nobody's front proxy has more, and a chain of a hundred that anybody can make costs a tenth of a second to refuse.
const MAX_INTERMEDIATES: usize = 4;

/// The peer is not the front proxy, or names nobody, or names somebody ambiguously.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoIdentity;

impl FrontProxyTrust {
    /// Reads `kube-system/extension-apiserver-authentication`.
    ///
    /// # Errors
    /// If the ConfigMap has no usable CA or a key of it is malformed; the message names the key.
    pub fn from_config_map(config_map: &ConfigMap) -> Result<Self> {
        const CA: &str = "requestheader-client-ca-file";
        let data = config_map.data.as_ref().context("it has no data")?;
        let ca = data.get(CA).with_context(|| format!("{CA} is missing: kube-apiserver runs without --{CA}"))?;
        let names = |key: &str| match data.get(key) {
            Some(json) => {
                serde_json::from_str::<Vec<String>>(json).with_context(|| format!("{key} is no list of names"))
            }
            None => Ok(Vec::new()),
        };
        Ok(Self {
            verifier: certs::client_verifier(ca.as_bytes()).context(CA)?,
            allowed_names: names("requestheader-allowed-names")?,
            username_headers: names("requestheader-username-headers")?,
            uid_headers: names("requestheader-uid-headers")?,
            group_headers: names("requestheader-group-headers")?,
            extra_header_prefixes: lower(names("requestheader-extra-headers-prefix")?),
        })
    }

    /// The user that the front proxy names.
    ///
    /// # Errors
    /// If the certificate is not the front proxy's, or the headers name nobody, more than one, or are not UTF-8.
    pub fn identify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        headers: &HeaderMap,
    ) -> Result<User, NoIdentity> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(NoIdentity);
        }
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(|_| NoIdentity)?;
        if !self.allowed_names.is_empty() {
            let name = certs::common_name(leaf).ok_or(NoIdentity)?;
            self.allowed_names.contains(&name).then_some(()).ok_or(NoIdentity)?;
        }
        Ok(User {
            name: only(headers, &self.username_headers)?.ok_or(NoIdentity)?,
            uid: only(headers, &self.uid_headers)?,
            groups: all(headers, &self.group_headers)?,
            extra: self.extra(headers)?,
        })
    }

    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, NoIdentity> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            // http stores header names in lower case, and upstream lowers the key too.
            let key = self.extra_header_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            if let Some(key) = key {
                let decoded = percent_decode_str(key).decode_utf8();
                let key = decoded.map_or_else(|_| key.to_owned(), std::borrow::Cow::into_owned);
                extra.entry(key).or_default().push(text(value)?);
            }
        }
        Ok(extra)
    }
}

fn lower(names: Vec<String>) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

/// The value of the first of `names` that has one. kube-apiserver writes it once, so two are somebody else's doing.
fn only(headers: &HeaderMap, names: &[String]) -> Result<Option<String>, NoIdentity> {
    for name in names {
        let mut values = headers.get_all(name.as_str()).iter();
        match (values.next(), values.next()) {
            (None, _) => {}
            (Some(value), None) if value.is_empty() => {}
            (Some(value), None) => return text(value).map(Some),
            (Some(_), Some(_)) => return Err(NoIdentity),
        }
    }
    Ok(None)
}

fn all(headers: &HeaderMap, names: &[String]) -> Result<Vec<String>, NoIdentity> {
    let values = names.iter().flat_map(|name| headers.get_all(name.as_str()));
    values.filter(|value| !value.is_empty()).map(text).collect()
}

fn text(value: &http::HeaderValue) -> Result<String, NoIdentity> {
    std::str::from_utf8(value.as_bytes()).map(str::to_owned).map_err(|_| NoIdentity)
}
