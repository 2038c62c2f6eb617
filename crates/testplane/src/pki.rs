//! Throw-away certificate authorities and the certificates of a control plane's parts.
//!
//! Keys live in memory and in the temporary directory of whoever asked; nothing here is fit for anything but a test.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate authority that can sign clients and servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A certificate and its private key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The leaf certificate.
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
        let mut params = params(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).expect("the parameters above are valid");
        let certificate_pem = certificate.pem();
        Self { issuer: Issuer::new(params, key), certificate_pem }
    }

    /// The authority's own certificate: what a peer that trusts it is given.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A client certificate: Kubernetes reads the user from the common name and the groups from the organizations.
    pub fn client(&self, common_name: &str, organizations: &[&str]) -> Identity {
        self.sign(params(common_name, organizations), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A serving certificate for DNS names and IP addresses.
    ///
    /// # Panics
    /// If a name is neither.
    pub fn server(&self, common_name: &str, subject_alt_names: &[&str]) -> Identity {
        let mut with_names =
            CertificateParams::new(subject_alt_names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .expect("names are DNS names or IP addresses");
        with_names.distinguished_name = params(common_name, &[]).distinguished_name;
        self.sign(with_names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("the system has randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs what it is given");
        Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

impl Identity {
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

fn params(common_name: &str, organizations: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for organization in organizations {
        params.distinguished_name.push(DnType::OrganizationName, *organization);
    }
    params
}
