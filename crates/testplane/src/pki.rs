//! Throw-away certificate authorities and the certificates of a control plane's parts.
//!
//! Keys live in memory and in the temporary directory of whoever asked; nothing here is fit for anything but a test.

mod subject;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// A certificate authority that can sign clients and servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    /// What a peer that trusts only the root needs besides a leaf: nothing of a root, an intermediate and those above it.
    chain_pem: String,
}

/// A certificate and its private key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The leaf certificate, and those between it and the root.
    pub certificate_pem: String,
    /// Its private key, PKCS #8.
    pub key_pem: String,
}

/// An [`Identity`] or a CA bundle written to files, for programs that take paths.
pub struct IdentityFiles {
    /// The leaf certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// A new self-signed authority.
    ///
    /// # Panics
    /// If the system's random source fails.
    pub fn new(common_name: &str) -> Self {
        let key = KeyPair::generate().expect("the system has randomness");
        let params = authority_params(common_name);
        let certificate = params.self_signed(&key).expect("the parameters above are valid");
        let certificate_pem = certificate.pem();
        Self { issuer: Issuer::new(params, key), certificate_pem, chain_pem: String::new() }
    }

    /// An authority below this one. What it signs comes with the certificates in between.
    ///
    /// # Panics
    /// If the authority's key cannot sign.
    #[must_use]
    pub fn intermediate(&self, common_name: &str) -> Self {
        let key = KeyPair::generate().expect("the system has randomness");
        let params = authority_params(common_name);
        let certificate_pem = params.signed_by(&key, &self.issuer).expect("the authority signs what it is given").pem();
        let chain_pem = format!("{certificate_pem}{}", self.chain_pem);
        Self { issuer: Issuer::new(params, key), certificate_pem, chain_pem }
    }

    /// Its certificate anew, under the same key, as it is renewed.
    ///
    /// # Panics
    /// If it cannot be signed.
    pub fn reissued(&self, common_name: &str) -> String {
        let mut params = authority_params(common_name);
        params.not_after = date_time_ymd(2060, 1, 1);
        params.self_signed(self.issuer.key()).expect("an authority can sign for itself").pem()
    }

    /// The authority itself as a client: its own certificate and key.
    pub fn itself(&self) -> Identity {
        let certificate_pem = format!("{}{}", self.certificate_pem, self.chain_pem);
        Identity { certificate_pem, key_pem: self.issuer.key().serialize_pem() }
    }

    /// The authority's own certificate: what a peer that trusts it is given.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A client certificate: Kubernetes reads the user from the common name and the groups from the organizations.
    ///
    /// # Panics
    /// If the authority's key cannot sign.
    pub fn client(&self, common_name: &str, organizations: &[&str]) -> Identity {
        self.client_of(params(common_name), &[common_name], organizations)
    }

    /// A client certificate with several common names, of which Kubernetes reads the last, or none.
    ///
    /// # Panics
    /// If the authority's key cannot sign.
    pub fn client_named(&self, common_names: &[&str], organizations: &[&str]) -> Identity {
        self.client_of(params("replaced"), common_names, organizations)
    }

    /// A client certificate that is good from the beginning of one year until the beginning of another.
    ///
    /// # Panics
    /// If the authority's key cannot sign.
    pub fn client_during(&self, common_name: &str, from_year: i32, until_year: i32) -> Identity {
        let mut params = params(common_name);
        params.not_before = date_time_ymd(from_year, 1, 1);
        params.not_after = date_time_ymd(until_year, 1, 1);
        self.client_of(params, &[common_name], &[])
    }

    fn client_of(&self, params: CertificateParams, common_names: &[&str], organizations: &[&str]) -> Identity {
        let (certificate, key) = self.sign(params, ExtendedKeyUsagePurpose::ClientAuth);
        let der = subject::replace(certificate.der(), common_names, organizations, self.issuer.key());
        let der = der.expect("the key has just signed a certificate");
        let certificate_pem = format!("{}{}", pem("CERTIFICATE", &der), self.chain_pem);
        Identity { certificate_pem, key_pem: key.serialize_pem() }
    }

    /// A serving certificate for DNS names and IP addresses.
    ///
    /// # Panics
    /// If a name is neither.
    pub fn server(&self, common_name: &str, subject_alt_names: &[&str]) -> Identity {
        let mut with_names =
            CertificateParams::new(subject_alt_names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .expect("names are DNS names or IP addresses");
        with_names.distinguished_name = params(common_name).distinguished_name;
        let (certificate, key) = self.sign(with_names, ExtendedKeyUsagePurpose::ServerAuth);
        let certificate_pem = format!("{}{}", certificate.pem(), self.chain_pem);
        Identity { certificate_pem, key_pem: key.serialize_pem() }
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> (Certificate, KeyPair) {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("the system has randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs what it is given");
        (certificate, key)
    }
}

impl Identity {
    /// The leaf certificate in DER.
    ///
    /// # Errors
    /// If it is not PEM.
    pub fn certificate(&self) -> anyhow::Result<Vec<u8>> {
        Ok(CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())?.to_vec())
    }

    /// Writes `NAME.crt` and `NAME.key` into `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, directory: &Path, name: &str) -> std::io::Result<IdentityFiles> {
        let files = IdentityFiles {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, &self.certificate_pem)?;
        std::fs::write(&files.key, &self.key_pem)?;
        Ok(files)
    }
}

/// A pair for signing `ServiceAccount` tokens: the private key for who signs, the public one for who checks.
///
/// # Panics
/// If the system's random source fails.
pub fn signing_key() -> (String, String) {
    let key = KeyPair::generate().expect("the system has randomness");
    (key.serialize_pem(), key.public_key_pem())
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority_params(common_name: &str) -> CertificateParams {
    let mut params = params(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
