//! The programs that ours is compared with: each does the least that can be done with the same bytes over the same TLS, pinned
//! to the same core. They are `src/bin/reference-*.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use audit_stream_testplane::front_proxy::{Protocol, Target};
use audit_stream_testplane::pki::Authority;
use audit_stream_testplane::process::Process;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use crate::readers::{self, Chunks};
use crate::stand::{SERVER_NAME, spawn_pinned};
use crate::usage;

const START_DEADLINE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(10);

/// A running reference, and the connection over which it is told what to do.
pub struct Reference {
    process: Process,
    sender: TlsStream<TcpStream>,
    _directory: TempDir,
}

impl Reference {
    /// One that writes `payload` to so many connections whenever it has been sent `trigger_bytes`; and the connections.
    pub async fn writing(payload: &[u8], connections: usize, trigger_bytes: usize) -> Result<(Self, Vec<Chunks>)> {
        let directory = TempDir::new()?;
        let file = directory.path().join("payload");
        std::fs::write(&file, payload)?;
        let arguments = [file.display().to_string(), connections.to_string(), trigger_bytes.to_string()];
        let (reference, target) = Self::start("reference-write", &arguments, directory).await?;
        let mut readers = Vec::new();
        for _ in 0..connections {
            readers.push(readers::of_connection(target.connect().await?));
        }
        Ok((reference, readers))
    }

    /// One that receives and walks what it is sent.
    pub async fn receiving() -> Result<Self> {
        Ok(Self::start("reference-receive", &[], TempDir::new()?).await?.0)
    }

    async fn start(name: &str, arguments: &[String], directory: TempDir) -> Result<(Self, Target)> {
        let authority = Authority::new("reference");
        let serving = authority.server("reference", &[SERVER_NAME]).write(directory.path(), "serving")?;
        let pair = [serving.certificate, serving.key].map(|path| path.display().to_string());
        let arguments = pair.iter().chain(arguments).map(String::as_str);
        let mut process = spawn_pinned(name, arguments, &directory.path().join("log"))?;
        let address = address(&mut process).await?;
        let target = Target::new(address, authority.certificate_pem(), SERVER_NAME).protocol(Protocol::Http1);
        let sender = target.connect().await?;
        Ok((Self { process, sender, _directory: directory }, target))
    }

    /// Sends bytes without waiting for what comes of them.
    pub async fn trigger(&mut self, bytes: &[u8]) -> Result<()> {
        self.sender.write_all(bytes).await?;
        Ok(self.sender.flush().await?)
    }

    /// Sends a body, and waits until it has been walked.
    pub async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.sender.write_u64(body.len() as u64).await?;
        self.trigger(body).await?;
        self.sender.read_u8().await.context("the reference has ended")?;
        Ok(())
    }

    /// CPU time of the reference so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.process.id())
    }
}

/// The first line that it prints.
async fn address(process: &mut Process) -> Result<SocketAddr> {
    let looking = async {
        loop {
            process.ensure_running()?;
            if let Some((line, _)) = process.log().split_once('\n') {
                return line.parse().with_context(|| format!("not an address: {line}"));
            }
            sleep(GLANCE).await;
        }
    };
    timeout(START_DEADLINE, looking).await.context("it does not say where it listens")?
}
