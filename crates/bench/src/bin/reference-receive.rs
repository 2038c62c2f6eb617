//! The least that taking a batch over TLS can take: each body is read into memory, walked by `serde_json` as far as its syntax
//! goes, and answered with a byte.
//!
//! `reference-receive CERTIFICATE KEY`

use std::env;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::IgnoredAny;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |name| arguments.next().with_context(|| format!("{name} is missing"));
    let certificate = CertificateDer::from_pem_file(argument("CERTIFICATE")?)?;
    let key = PrivateKeyDer::from_pem_file(argument("KEY")?)?;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (tcp, _) = listener.accept()?;
    tcp.set_nodelay(true)?;
    let mut sender = StreamOwned::new(ServerConnection::new(Arc::new(config))?, tcp);

    let mut length = [0; 8];
    let mut body = Vec::new();
    // It ends when the bench does: the read fails then.
    loop {
        sender.read_exact(&mut length)?;
        body.resize(usize::try_from(u64::from_be_bytes(length))?, 0);
        sender.read_exact(&mut body)?;
        serde_json::from_slice::<IgnoredAny>(&body)?;
        sender.write_all(&[0])?;
    }
}
