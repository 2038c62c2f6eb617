//! TLS configurations from PEM, with the provider stated each time: a library installs no process-wide default.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::Identity;

/// A client that trusts `serving_ca_pem` and, like Go's, shows its certificate whatever CAs the server hints at.
pub(crate) fn client_config(
    serving_ca_pem: &str,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
    resume_sessions: bool,
) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(serving_ca_pem)? {
        roots.add(certificate).context("the serving CA is not usable as a root")?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("the provider supports no TLS version")?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(certificates(&identity.certificate_pem)?, private_key(&identity.key_pem)?)
            .context("the client certificate and its key do not fit")?,
        None => builder.with_no_client_auth(),
    };
    if !resume_sessions {
        config.resumption = Resumption::disabled();
    }
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// A server that asks for no client certificate and speaks HTTP/2 and HTTP/1.1.
pub(crate) fn server_config(identity: &Identity) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("the provider supports no TLS version")?
        .with_no_client_auth()
        .with_single_cert(certificates(&identity.certificate_pem)?, private_key(&identity.key_pem)?)
        .context("the serving certificate and its key do not fit")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A server that asks for a client certificate of `authority`, which also signs its own: for the fakes' own tests.
#[cfg(test)]
pub(crate) fn mutual_server_config(authority: &crate::pki::Authority, is_mandatory: bool) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(authority.certificate_pem()).unwrap());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = if is_mandatory { verifier } else { verifier.allow_unauthenticated() };
    let identity = authority.server("sink", &["sink.audit.svc"]);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(certificates(&identity.certificate_pem).unwrap(), private_key(&identity.key_pem).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().context("not a PEM certificate")
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("not a PEM private key")
}
