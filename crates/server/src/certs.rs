//! Certificates: the pairs that are served, the CAs that clients are checked against, and the names in a certificate.
//!
//! Another TLS option is added here and nowhere else. Sessions are never resumed: a resumed session would skip the check
//! of the client's certificate, and an identity would outlive the CA that vouched for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A serving certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct PairFiles {
    /// PEM, the leaf first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// The oldest TLS version that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TlsMinVersion {
    /// TLS 1.2.
    #[value(name = "VersionTLS12")]
    Tls12,
    /// TLS 1.3.
    #[value(name = "VersionTLS13")]
    Tls13,
}

/// The one TLS provider of the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// TLS of the API's listener: a client certificate is asked for, not required, and judged with each request.
///
/// # Errors
/// If the pair cannot be read or does not belong together.
pub fn api_config(pair: &PairFiles, min_version: TlsMinVersion) -> Result<ServerConfig> {
    config(pair, min_version, Arc::new(AnyClient { algorithms: provider().signature_verification_algorithms }))
}

/// TLS of the webhook's listener: nobody gets past the handshake without a certificate of the given CA.
///
/// # Errors
/// If a file cannot be read, or the pair does not belong together.
pub fn webhook_config(pair: &PairFiles, min_version: TlsMinVersion, client_ca: &Path) -> Result<ServerConfig> {
    let pem = std::fs::read(client_ca).with_context(|| format!("cannot read {}", client_ca.display()))?;
    let verifier = client_verifier(&pem).with_context(|| format!("in {}", client_ca.display()))?;
    config(pair, min_version, verifier)
}

/// Checks client certificates against the CAs of a PEM bundle, extended key usage `clientAuth` included.
///
/// # Errors
/// If the bundle holds no usable certificate.
pub fn client_verifier(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().context("not PEM")?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    ensure!(added > 0, "no certificate of a CA in it");
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}

fn config(pair: &PairFiles, min: TlsMinVersion, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig> {
    let PairFiles { certificate, key } = pair;
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read a certificate from {}", certificate.display()))?;
    ensure!(!chain.is_empty(), "no certificate in {}", certificate.display());
    let private_key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read a private key from {}", key.display()))?;
    let versions: &[&SupportedProtocolVersion] = match min {
        TlsMinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsMinVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, private_key)
        .with_context(|| format!("{} and {} are no pair", certificate.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The common name and the DNS names that a certificate stands for.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let mut names: Vec<_> = subject_name(&certificate).into_iter().collect();
    if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    names
}

/// The last one where there are several, as Go reads it.
fn subject_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.last().map(str::to_owned)
}

/// Lets any client finish the handshake that owns the key of whatever certificate it shows. Which CA vouches for it is asked
/// later, with each request: there are several, they are answered for differently, and they change while connections live.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
