//! Client certificates: whom one names.
//!
//! Source: `k8s.io/apiserver/pkg/authentication/request/x509/x509.go`. What goes by another's certificate, as the front
//! proxy does, is not decided here.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::der_parser::{Oid, oid};
use x509_parser::oid_registry::OID_X509_ORGANIZATION_NAME;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::{Opinion, User};
use crate::certs::{self, CaBundle};

/// Upstream's attribute for a user's UID (`k8s.io/apimachinery/pkg/util/asn1`).
const OID_KUBERNETES_UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// Upstream's name for what tells one credential of a user from another.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Whom a certificate names.
#[derive(Debug, PartialEq, Eq)]
pub struct Subject {
    /// The common name, the last one of several as Go reads it; empty where there is none.
    pub name: String,
    uid: Option<String>,
    groups: Vec<String>,
}

/// The user whose certificate the first of a chain is, if one of these CAs vouches for it.
pub fn identify(clients: &CaBundle, chain: &[CertificateDer<'_>]) -> Opinion {
    let Some(leaf) = chain.first() else { return Opinion::None };
    match Subject::of(leaf).filter(|_| clients.vouches_for(chain)) {
        None => Opinion::Bad,
        Some(subject) if subject.name.is_empty() => Opinion::None,
        Some(Subject { name, uid, groups }) => {
            let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![credential_id(leaf)])]);
            Opinion::User(User { name, uid, groups, extra })
        }
    }
}

impl Subject {
    /// Reads a certificate's subject. `None` if it holds what we cannot read: a name that is skipped would leave another one
    /// standing, and not the one that was meant.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let mut uids = all(subject, &OID_KUBERNETES_UID)?;
        let uid = uids.pop();
        if !uids.is_empty() || uid.as_deref() == Some("") {
            return None;
        }
        let name = certs::common_name(subject).ok()?.unwrap_or_default();
        Some(Self { name, uid, groups: all(subject, &OID_X509_ORGANIZATION_NAME)? })
    }
}

/// The values of an attribute, in their order.
fn all(subject: &X509Name<'_>, attribute: &Oid<'_>) -> Option<Vec<String>> {
    subject.iter_by_oid(attribute).map(|value| value.as_str().map(str::to_owned).ok()).collect()
}

fn credential_id(leaf: &CertificateDer<'_>) -> String {
    let hash = digest(&SHA256, leaf);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("X509SHA256={hex}")
}
