//! Gives a certificate a subject with several organizations, which rcgen cannot: there a subject holds each attribute
//! once.
//!
//! Kubernetes reads one group from each organization, so a user of two groups needs two. The certificate that rcgen
//! made is taken apart just far enough to exchange its subject, and signed again. It handles what `pki` makes and
//! nothing else.

use rcgen::{KeyPair, SigningKey};

const UTF8_STRING: u8 = 0x0c;
const OBJECT_ID: u8 = 0x06;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
const ORGANIZATION: [u8; 3] = [0x55, 4, 10];
/// The order of RFC 5280: version, serial number, algorithm, issuer, validity, subject.
const SUBJECT: usize = 5;

/// The certificate `der` for another subject, signed by `authority`, whose kind of key must be the one that signed it
/// before.
pub(super) fn replace(
    der: &[u8],
    common_names: &[&str],
    organizations: &[&str],
    authority: &KeyPair,
) -> Result<Vec<u8>, rcgen::Error> {
    let parts = children(der);
    let mut fields = children(parts[0]);
    let subject = subject(common_names, organizations);
    fields[SUBJECT] = &subject;
    let to_be_signed = element(SEQUENCE, &fields.concat());
    // A bit string's content starts with the number of its unused bits.
    let signature = element(BIT_STRING, &[&[0][..], &authority.sign(&to_be_signed)?].concat());
    Ok(element(SEQUENCE, &[&to_be_signed[..], parts[1], &signature].concat()))
}

fn subject(common_names: &[&str], organizations: &[&str]) -> Vec<u8> {
    let attribute = |id: [u8; 3], value: &str| {
        let pair = [element(OBJECT_ID, &id), element(UTF8_STRING, value.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &pair))
    };
    let common_names = common_names.iter().map(|name| attribute(COMMON_NAME, name));
    let organizations = organizations.iter().map(|organization| attribute(ORGANIZATION, organization));
    element(SEQUENCE, &common_names.chain(organizations).collect::<Vec<_>>().concat())
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match significant {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).expect("a length has at most eight bytes"));
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

/// The elements inside `der`, each with its own tag and length.
fn children(der: &[u8]) -> Vec<&[u8]> {
    let (start, end) = content(der);
    let mut rest = &der[start..end];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (child, after) = rest.split_at(content(rest).1);
        found.push(child);
        rest = after;
    }
    found
}

/// Where the content of the first element of `der` starts and ends.
fn content(der: &[u8]) -> (usize, usize) {
    let first = usize::from(der[1]);
    if first < 0x80 {
        return (2, 2 + first);
    }
    let start = 2 + (first & 0x7f);
    let length = der[2..start].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    (start, start + length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType};

    use super::*;

    /// Where rcgen can write the subject itself, ours has the same bytes.
    #[test]
    fn writes_the_subject_as_rcgen_does() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let long = "o".repeat(300);
        params.distinguished_name.push(DnType::CommonName, "jane");
        params.distinguished_name.push(DnType::OrganizationName, &*long);
        let original = params.self_signed(&key).unwrap();
        let replaced = replace(original.der(), &["jane"], &[&long], &key).unwrap();
        assert_eq!(children(&replaced)[..2], children(original.der())[..2]);
    }

    #[test]
    fn holds_several_organizations() {
        let key = KeyPair::generate().unwrap();
        let original = CertificateParams::default().self_signed(&key).unwrap();
        let replaced = replace(original.der(), &["jane"], &["dev", "ops"], &key).unwrap();
        let fields = children(children(&replaced)[0]);
        assert_eq!(children(fields[SUBJECT]).len(), 3);
    }
}
