//! Picks free ports on the loopback interface, all of them below the range that outgoing connections draw from.
//!
//! Binding port 0 would give ports of that range. Some of ours stay unbound while others run, those of audit-stream
//! and those of a kube-apiserver between stop and start, and kube-apiserver keeps dialling them: sooner or later one
//! of the thousands of outgoing connections would hold such a port, or connect to itself.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, ensure};

/// Linux draws outgoing ports from 32768 on, others from 49152 on.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// Who listens where, all on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// etcd, for its clients.
    pub etcd: u16,
    /// etcd, for its peers: it has none and listens all the same.
    pub etcd_peer: u16,
    /// kube-apiserver.
    pub apiserver: u16,
    /// kube-controller-manager.
    pub controller_manager: u16,
    /// audit-stream's API.
    pub secure: u16,
    /// audit-stream's listener for the audit webhook.
    pub webhook: u16,
}

impl Ports {
    /// Ports that nobody listens on at this moment. Another process can still be faster: `ControlPlane::start` tries
    /// twice.
    pub(super) fn choose() -> Result<Self> {
        // A random start, so that two test runs on one machine rarely try the same ports.
        let start = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
        let candidates = (0..COUNT).map(|step| FIRST + ((start + u64::from(step)) % u64::from(COUNT)) as u16);
        // All are held until the last is found, or one could be found twice.
        let free = candidates.filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
        let held: Vec<_> = free.take(6).collect();
        let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
        ensure!(ports.len() == 6, "no six free ports on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1);
        let [etcd, etcd_peer, apiserver, controller_manager, secure, webhook] = ports[..] else { unreachable!() };
        Ok(Self { etcd, etcd_peer, apiserver, controller_manager, secure, webhook })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn are_distinct_and_outside_the_ephemeral_range() {
        let Ports { etcd, etcd_peer, apiserver, controller_manager, secure, webhook } = Ports::choose().unwrap();
        let all = BTreeSet::from([etcd, etcd_peer, apiserver, controller_manager, secure, webhook]);
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|port| (FIRST..FIRST + COUNT).contains(port)));
    }
}
