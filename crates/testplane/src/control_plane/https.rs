//! One HTTPS GET at a time, for readiness checks: no pool, no redirects, a connection per request.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::pki::Identity;
use crate::tls;

const DEADLINE: Duration = Duration::from_secs(5);

/// A server on this host, whose certificate has to be `server_name`'s.
#[derive(Clone)]
pub(crate) struct HttpsClient {
    tls: TlsConnector,
    server_name: ServerName<'static>,
    port: u16,
}

impl HttpsClient {
    /// Trusts `ca_pem` alone, and presents `identity` if there is one.
    pub(crate) fn new(ca_pem: &str, server_name: &str, port: u16, identity: Option<&Identity>) -> Result<Self> {
        let config = tls::client_config(ca_pem, identity, &[b"http/1.1"], false)?;
        let server_name = ServerName::try_from(server_name.to_owned()).context("not a server name")?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), server_name, port })
    }

    /// The body of a 200.
    ///
    /// # Errors
    /// If there is no answer within 5 s, or another one.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let (status, body) = timeout(DEADLINE, self.exchange(path)).await.context("no answer within 5 s")??;
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(status == StatusCode::OK, "GET {path}: {status}: {}", body.trim_end());
        Ok(body)
    }

    async fn exchange(&self, path: &str) -> Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await.context("TLS handshake")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path)
            .header(header::HOST, &*self.server_name.to_str())
            .header(header::USER_AGENT, "audit-stream-testplane")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        // The connection ends with the sender, so both can be awaited here and no task is left behind.
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        // Where the connection fails, the answer fails too, and says why.
        let (answer, _) = tokio::join!(answer, connection);
        Ok(answer?)
    }
}
