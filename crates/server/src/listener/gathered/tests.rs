use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, client};

use super::*;
use crate::listener::exchange::Shared;
use crate::listener::guests::Guests;
use crate::listener::tests::peer::Ca;

/// What does not come within this long will not.
const ARRIVAL: Duration = Duration::from_secs(60);

/// More than the kernel takes of both ends, and rustls.
const ENDLESS: usize = 64 << 20;

type Ours = Gathered<TlsStream<TcpStream>>;

/// Both ends of a connection that is not read, as if it had all the tasks that it may have.
async fn crowded(protocol: &[u8]) -> (Ours, client::TlsStream<TcpStream>) {
    let (ca, listener) = (Ca::new(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    let address = listener.local_addr().unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(ca.server_config())).accept(tcp).await.unwrap()
    };
    let (ours, theirs) = tokio::join!(accept, ca.connect(address, protocol));
    let place = Arc::new(Guests::new(1, 1).enter(address.ip()));
    (Gathered::new(Unhurried::new(ours, Arc::new(Shared::new(place)), 0)), theirs)
}

/// The turns of a connection that has nothing more to write. None of them ends.
async fn turns(ours: &mut Ours) {
    ours.read_u8().await.expect_err("a crowded connection is not read");
}

fn waits(ours: &mut Ours) -> bool {
    ours.stream().get_mut().waiting().is_some_and(|session| session.wants_write())
}

#[tokio::test]
async fn what_is_flushed_leaves_together_in_the_next_turn_though_nothing_is_read() {
    let (mut ours, mut theirs) = crowded(b"h2").await;
    for frame in [b"one ", b"two "] {
        ours.write_all(frame).await.unwrap();
        ours.flush().await.unwrap();
        assert!(waits(&mut ours));
    }
    let mut read = [0; 8];
    tokio::select! {
        () = turns(&mut ours) => {}
        read = timeout(ARRIVAL, theirs.read_exact(&mut read)) => {
            read.expect("nothing is held back").unwrap();
        }
    }
    assert_eq!((&read, waits(&mut ours)), (b"one two ", false));
}

#[tokio::test]
async fn what_waits_for_a_peer_that_takes_nothing_is_bounded_and_arrives_when_it_does() {
    let (mut ours, mut theirs) = crowded(b"h2").await;
    let piece = [b'x'; 64 * 1024];
    let mut written = 0;
    // Over and over, as if the socket had said that it takes more.
    while let Poll::Ready(taken) = poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_write(cx, &piece))).await {
        written += taken.unwrap();
        assert!(written < ENDLESS, "a peer that takes nothing is written to for ever");
    }
    ours.flush().await.unwrap();
    let mut read = vec![0; written];
    tokio::select! {
        () = turns(&mut ours) => {}
        read = timeout(ARRIVAL, theirs.read_exact(&mut read)) => {
            read.expect("nothing is held back").unwrap();
        }
    }
}

#[tokio::test]
async fn over_http_1_a_flush_is_a_flush() {
    let (mut ours, mut theirs) = crowded(b"http/1.1").await;
    ours.write_all(b"piece").await.unwrap();
    ours.flush().await.unwrap();
    let mut read = [0; 5];
    timeout(ARRIVAL, theirs.read_exact(&mut read)).await.expect("nothing is held back").unwrap();
    assert_eq!(&read, b"piece");
}
