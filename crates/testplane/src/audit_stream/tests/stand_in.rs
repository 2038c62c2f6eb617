//! Answers 200 to everything on both of audit-stream's ports, and reports what it was asked.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::SOON;
use crate::control_plane::ControlPlane;
use crate::pki::Authority;

pub(super) struct Asked {
    pub(super) path: String,
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    pub(super) has_certificate: bool,
    pub(super) body: Bytes,
}

pub(super) struct StandIn {
    asked: mpsc::Receiver<Asked>,
    _listeners: JoinSet<Result<()>>,
}

impl StandIn {
    pub(super) async fn start(plane: &ControlPlane) -> Result<Self> {
        let (sender, asked) = mpsc::channel(10_000);
        let (ports, trust) = (plane.ports(), plane.trust());
        let mut listeners = JoinSet::new();
        for (port, authority) in [(ports.secure, &trust.front_proxy), (ports.webhook, &trust.webhook)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
            listeners.spawn(listen(listener, acceptor(plane, authority)?, sender.clone()));
        }
        Ok(Self { asked, _listeners: listeners })
    }

    /// The next request that is `wanted`; the others are forgotten.
    pub(super) async fn next(&mut self, wanted: impl Fn(&Asked) -> bool) -> Asked {
        let search = async {
            loop {
                let asked = self.asked.recv().await.expect("the stand-in listens");
                if wanted(&asked) {
                    return asked;
                }
            }
        };
        timeout(SOON, search).await.expect("the request that the test waits for arrives")
    }
}

/// A certificate of another authority fails the handshake; none is fine, as for the kubelet's probes.
fn acceptor(plane: &ControlPlane, authority: &Authority) -> Result<TlsAcceptor> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let files = &plane.trust().files.audit_stream;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&files.certificate)?],
            PrivateKeyDer::from_pem_file(&files.key)?,
        )?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor, sender: mpsc::Sender<Asked>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        connections.spawn(async move {
            let stream = acceptor.accept(stream).await?;
            let has_certificate = stream.get_ref().1.peer_certificates().is_some();
            let answer = service_fn(|request| answer(request, has_certificate, sender.clone()));
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await?;
            anyhow::Ok(())
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    has_certificate: bool,
    sender: mpsc::Sender<Asked>,
) -> Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let values = |name: &str| {
        let values = parts.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let asked = Asked {
        path: parts.uri.to_string(),
        user: values("x-remote-user").join(""),
        groups: values("x-remote-group"),
        has_certificate,
        body: body.collect().await?.to_bytes(),
    };
    sender.try_send(asked)?;
    Ok(Response::new(Full::from("{}\n")))
}
