//! A way between two parts of a plane that a test can close: TCP on this host, byte for byte.
//!
//! It knows nothing of what it carries, so that who speaks TLS through it sees a network that fails and never a peer that
//! lies.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use crate::tasks::{Executor, Tasks};

/// What is read before it is written: of a way that is closed, no more than this and the sockets' buffers is under way.
const CHUNK: usize = 16 << 10;

/// What becomes of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They arrive.
    Open,
    /// They stay where they are, and connections too: a firewall that drops everything.
    Silent,
    /// Connections are closed, new ones as soon as they are made: nobody is there.
    Closed,
}

/// A running relay. Dropping it closes its connections.
pub struct Relay {
    port: u16,
    way: watch::Sender<Way>,
    _tasks: Tasks,
}

impl Relay {
    /// Listens on a port of its own, and connects whoever comes to `target`.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for a relay")?;
        let port = listener.local_addr().context("a bound listener has an address")?.port();
        let (way, tasks) = (watch::Sender::new(Way::Open), Tasks::new());
        let (executor, ways) = (tasks.executor(), way.subscribe());
        tasks.executor().spawn(async move {
            // An error is that of one connection, or the end of all tests of this process.
            while let Ok((client, _)) = listener.accept().await {
                executor.spawn(carry(client, target, ways.clone(), executor.clone()));
            }
        });
        Ok(Self { port, way, _tasks: tasks })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on; bytes that were read before may still arrive.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// One connection, until either side or the way is closed.
async fn carry(client: TcpStream, target: SocketAddr, mut way: watch::Receiver<Way>, executor: Executor) {
    let connected = async {
        if *way.clone().wait_for(|way| *way != Way::Silent).await.ok()? == Way::Closed {
            return None;
        }
        TcpStream::connect(target).await.ok()
    };
    let Some(server) = connected.await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Each direction ends by itself, as it does without a relay; a way that is closed ends both.
    let there = pump(from_client, to_server, way.clone());
    let back = pump(from_server, to_client, way.clone());
    executor.spawn(async move {
        tokio::select! {
            _ = async { tokio::join!(there, back) } => {}
            _ = way.wait_for(|way| *way == Way::Closed) => {}
        }
    });
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        let is_open = way.wait_for(|way| *way != Way::Silent).await.is_ok_and(|way| *way == Way::Open);
        if length == 0 || !is_open {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    /// Long enough for a byte on this host to arrive, if it ever does.
    const NOTHING: Duration = Duration::from_millis(100);

    async fn echo(listener: TcpListener) {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"?").await?;
        stream.read_exact(&mut [0]).await.map(drop)
    }

    #[tokio::test]
    async fn carries_waits_and_cuts() {
        let local = tokio::task::LocalSet::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        local.spawn_local(echo(listener));
        let story = async {
            let relay = Relay::start(target).await.unwrap();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).await.unwrap();
            timeout(SOON, ask(&mut stream)).await.unwrap().unwrap();

            relay.set(Way::Silent);
            assert!(timeout(NOTHING, ask(&mut stream)).await.is_err());
            let mut late = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).await.unwrap();
            assert!(timeout(NOTHING, ask(&mut late)).await.is_err());
            relay.set(Way::Open);
            // What waited arrives.
            timeout(SOON, stream.read_exact(&mut [0])).await.unwrap().unwrap();
            timeout(SOON, late.read_exact(&mut [0])).await.unwrap().unwrap();

            relay.set(Way::Closed);
            assert!(timeout(SOON, ask(&mut stream)).await.unwrap().is_err());
            let mut refused = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).await.unwrap();
            assert!(timeout(SOON, ask(&mut refused)).await.unwrap().is_err());
        };
        local.run_until(story).await;
    }
}
