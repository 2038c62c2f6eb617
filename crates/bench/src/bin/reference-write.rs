//! The least that fan-out over TLS can take: for each trigger that comes over the first connection, the same bytes go to every
//! other one, by rustls' own `write_all` on blocking sockets.
//!
//! `reference-write CERTIFICATE KEY PAYLOAD CONNECTIONS TRIGGER_BYTES`

use std::env;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// As much as rustls takes at once.
const PIECE_BYTES: usize = 64 * 1024;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |name| arguments.next().with_context(|| format!("{name} is missing"));
    let certificate = CertificateDer::from_pem_file(argument("CERTIFICATE")?)?;
    let key = PrivateKeyDer::from_pem_file(argument("KEY")?)?;
    let payload = std::fs::read(argument("PAYLOAD")?)?;
    let connections: usize = argument("CONNECTIONS")?.parse()?;
    let trigger_bytes: usize = argument("TRIGGER_BYTES")?.parse()?;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);

    let accept = || -> Result<StreamOwned<ServerConnection, TcpStream>> {
        let (tcp, _) = listener.accept()?;
        tcp.set_nodelay(true)?;
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config))?, tcp);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(stream)
    };
    let mut sender = accept()?;
    let mut readers = (0..connections).map(|_| accept()).collect::<Result<Vec<_>>>()?;
    let mut trigger = vec![0; trigger_bytes];
    // It ends when the bench does: the read fails then.
    loop {
        sender.read_exact(&mut trigger)?;
        for reader in &mut readers {
            for piece in payload.chunks(PIECE_BYTES) {
                reader.write_all(piece)?;
            }
        }
    }
}
