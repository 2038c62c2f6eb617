//! Certificates: the pairs that are served, the CAs that clients are checked against, and the names in a certificate.
//!
//! Another TLS option is added here and nowhere else. Sessions are never resumed: a resumed session would skip the check
//! of the client's certificate, and an identity would outlive the CA that vouched for it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Error, X509Name};

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

/// Nobody's client has more, and a chain of a hundred that anybody can make costs a tenth of a second to refuse.
const MAX_INTERMEDIATES: usize = 4;

/// TLS of one listener, as its files say now.
#[derive(Debug)]
pub struct ServerTls {
    pair: PairFiles,
    min_version: TlsMinVersion,
    verifier: Arc<dyn ClientCertVerifier>,
    current: Arc<ArcSwap<ServerConfig>>,
    /// When the serving certificate expires, in seconds since 1970.
    expiration: Gauge,
}

/// Who signs the webhook's clients, as its file says now.
///
/// It is asked in the handshake, and with each request again: a connection may be older than the CA. It hints at no CA, because
/// kube-apiserver shows its certificate in any case.
#[derive(Debug)]
pub struct ClientCa {
    file: PathBuf,
    current: ArcSwap<CaBundle>,
}

/// The CAs of a PEM bundle, as judges of client certificates.
#[derive(Debug)]
pub struct CaBundle {
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

/// That the CAs of a bundle vouched for who showed certificates on a connection, remembered with it.
///
/// To find that out anew costs about as much as all else that is done for a small batch. It is not asked of each request, because
/// nothing but the bundle and the time can change the answer.
#[derive(Debug, Default)]
pub struct Vouched(Mutex<Option<(Arc<CaBundle>, Validity)>>);

/// Seconds since 1970, the last one included.
type Validity = RangeInclusive<i64>;

/// The one TLS provider of the process.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// For the API's listener: a client certificate is asked for, not required, and judged with each request.
pub fn any_client() -> Arc<dyn ClientCertVerifier> {
    Arc::new(AnyClient { algorithms: provider().signature_verification_algorithms })
}

/// The TLS of a pair, and its certificate.
fn config(
    pair: &PairFiles,
    min: TlsMinVersion,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<(ServerConfig, CertificateDer<'static>)> {
    let PairFiles { certificate, key } = pair;
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read a certificate from {}", certificate.display()))?;
    let leaf = chain.first().cloned().with_context(|| format!("no certificate in {}", certificate.display()))?;
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
    Ok((config, leaf))
}

/// Seconds since 1970; 0 if that cannot be read, which is long ago.
fn expiration(certificate: &CertificateDer<'_>) -> i64 {
    X509Certificate::from_der(certificate).map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp())
}

/// The time in which all of these certificates are valid; `None` if one cannot be read.
fn validity(chain: &[CertificateDer<'_>]) -> Option<Validity> {
    chain.iter().try_fold(i64::MIN..=i64::MAX, |all, certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let own = certificate.validity();
        Some(*all.start().max(&own.not_before.timestamp())..=*all.end().min(&own.not_after.timestamp()))
    })
}

/// The common name and the DNS names that a certificate stands for.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let mut names: Vec<_> = common_name(certificate.subject()).into_iter().flatten().collect();
    if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    names
}

/// The common name of a subject, the last one where there are several, as Go reads it.
///
/// # Errors
/// If one of them cannot be read: passed over, it would leave another standing than the one that was meant.
pub fn common_name(subject: &X509Name<'_>) -> Result<Option<String>, X509Error> {
    let names = subject.iter_common_name().map(|name| name.as_str().map(str::to_owned));
    Ok(names.collect::<Result<Vec<_>, _>>()?.pop())
}

// === impl ServerTls ===

impl ServerTls {
    /// Reads a pair. `verifier` judges clients in the handshake; `expiration` is told when the certificate expires.
    ///
    /// # Errors
    /// If the pair cannot be read or does not belong together.
    pub fn read(
        pair: PairFiles,
        min_version: TlsMinVersion,
        verifier: Arc<dyn ClientCertVerifier>,
        gauge: Gauge,
    ) -> Result<Self> {
        let (config, leaf) = config(&pair, min_version, Arc::clone(&verifier))?;
        gauge.set(expiration(&leaf));
        let current = Arc::new(ArcSwap::from_pointee(config));
        Ok(Self { pair, min_version, verifier, current, expiration: gauge })
    }

    /// Reads the pair again, for handshakes that begin from now on. Connections go on with what theirs began with.
    ///
    /// # Errors
    /// As [`Self::read`]; then everything stays as it is.
    pub fn read_again(&self) -> Result<()> {
        let (config, leaf) = config(&self.pair, self.min_version, Arc::clone(&self.verifier))?;
        self.expiration.set(expiration(&leaf));
        self.current.store(Arc::new(config));
        Ok(())
    }

    /// What is current, at any time.
    pub fn current(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.current)
    }
}

impl PairFiles {
    /// Both.
    pub fn paths(&self) -> Vec<PathBuf> {
        vec![self.certificate.clone(), self.key.clone()]
    }
}

// === impl ClientCa ===

impl ClientCa {
    /// Reads a bundle.
    ///
    /// # Errors
    /// If it cannot be read, or holds no usable certificate.
    pub fn read(file: PathBuf) -> Result<Self> {
        let current = ArcSwap::from_pointee(CaBundle::read(&file)?);
        Ok(Self { file, current })
    }

    /// Reads it again. From now on nobody is believed for whom it does not vouch.
    ///
    /// # Errors
    /// As [`Self::read`]; then everything stays as it is.
    pub fn read_again(&self) -> Result<()> {
        self.current.store(Arc::new(CaBundle::read(&self.file)?));
        Ok(())
    }

    /// Whether it vouches now for who showed these certificates, the leaf first. `vouched` is what is remembered of them.
    pub fn vouches_for(&self, chain: &[CertificateDer<'_>], vouched: &Vouched) -> bool {
        vouched.by(&self.current.load_full(), UnixTime::now(), chain)
    }
}

/// Whether what the CA `below` signs may count as signed by the CA `above`. Two CAs that signed themselves may have one name by
/// chance; their keys tell them apart.
fn is_above(above: &X509Certificate<'_>, below: &X509Certificate<'_>) -> bool {
    let signed_itself = below.issuer().as_raw() == below.subject().as_raw();
    above.public_key().raw == below.public_key().raw
        || (!signed_itself && above.subject().as_raw() == below.issuer().as_raw())
}

// === impl CaBundle ===

impl CaBundle {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or holds no usable certificate; the message names it.
    pub fn read(file: &Path) -> Result<Self> {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&pem).with_context(|| format!("in {}", file.display()))
    }

    /// Reads a PEM bundle.
    ///
    /// # Errors
    /// If it holds no usable certificate.
    pub fn parse(pem: &[u8]) -> Result<Self> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().context("not PEM")?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        ensure!(added > 0, "no certificate of a CA in it");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        Ok(Self { verifier, certificates })
    }

    /// Whether one of them vouches now for the first certificate of a chain, as a client's: extended key usage `clientAuth`.
    pub fn vouches_for(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.vouches_at(UnixTime::now(), chain)
    }

    fn vouches_at(&self, now: UnixTime, chain: &[CertificateDer<'_>]) -> bool {
        let [leaf, intermediates @ ..] = chain else { return false };
        self.verify(leaf, intermediates, now).is_ok()
    }

    /// Whether some whom `other` vouches for may find these to vouch for them too: a CA is in both, perhaps reissued under its
    /// key, or one of `other` was signed by one of these, as far as its issuer's name tells.
    pub fn overlaps(&self, other: &Self) -> bool {
        // What cannot be read cannot be told apart.
        let (Some(mine), Some(theirs)) = (self.read_all(), other.read_all()) else { return true };
        theirs.iter().any(|below| mine.iter().any(|above| is_above(above, below)))
    }

    fn read_all(&self) -> Option<Vec<X509Certificate<'_>>> {
        let read = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
        self.certificates.iter().map(|der| read(der).ok()).collect()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(CertificateError::UnknownIssuer.into());
        }
        self.verifier.verify_client_cert(leaf, intermediates, now)
    }
}

// === impl Vouched ===

impl Vouched {
    /// Whether `bundle` vouches now for the first certificate of a chain, which is always the same one. A yes is remembered for
    /// as long as every certificate of the chain is valid; a no is not, because its connection takes no more requests.
    fn by(&self, bundle: &Arc<CaBundle>, now: UnixTime, chain: &[CertificateDer<'_>]) -> bool {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some((by, during)) = &*remembered
            && Arc::ptr_eq(by, bundle)
            && during.contains(&seconds)
        {
            return true;
        }
        let vouches = bundle.vouches_at(now, chain);
        let during = vouches.then(|| validity(chain)).flatten();
        *remembered = during.map(|during| (Arc::clone(bundle), during));
        vouches
    }
}

impl ClientCertVerifier for ClientCa {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.current.load().verify(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current.load().verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current.load().verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().verifier.supported_verify_schemes()
    }
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

#[cfg(test)]
mod tests;
