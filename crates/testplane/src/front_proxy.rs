//! What kube-aggregator does in front of an aggregated server: it authenticates itself with the front-proxy certificate
//! and says in headers on whose behalf it asks.
//!
//! It is not kube-apiserver: it authorizes nobody, so that the server's own second lock is what a test meets. Imitates
//! `k8s.io/kube-aggregator/pkg/apiserver/handler_proxy.go` and the transports below it, as of Kubernetes 1.37.

use std::net::SocketAddr;

use anyhow::Result;

use crate::pki::Identity;

mod client;
mod go_url;
#[cfg(test)]
pub(crate) mod tests;
mod user;
mod watch;

pub use client::{Client, Protocol, Response, Target, Windows, request};
pub use user::ProxiedUser;
pub use watch::{Lines, Watch, WatchError};

/// One kube-apiserver's way to an aggregated server: over HTTP/2, one connection that all its users share.
#[derive(Clone)]
pub struct FrontProxy {
    client: Client,
}

impl FrontProxy {
    /// Connects with the front-proxy client certificate.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(
        address: SocketAddr,
        serving_ca_pem: &str,
        server_name: &str,
        identity: &Identity,
        protocol: Protocol,
    ) -> Result<Self> {
        Self::through(Target::new(address, serving_ca_pem, server_name).identity(identity).protocol(protocol)).await
    }

    /// Connects as the target says.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn through(target: Target) -> Result<Self> {
        Ok(Self { client: Client::connect(target).await? })
    }

    /// An end user, as kube-apiserver authenticated them: a member of `system:authenticated`.
    pub fn user(&self, name: &str) -> ProxiedUser {
        ProxiedUser::new(self.client.clone(), name, &["system:authenticated"])
    }

    /// A part of the control plane that puts itself into no group: `system:kube-aggregator` for legacy discovery,
    /// `system:aggregator` for OpenAPI. With [`ProxiedUser::groups`], exactly the groups given there.
    pub fn component(&self, name: &str) -> ProxiedUser {
        ProxiedUser::new(self.client.clone(), name, &[])
    }

    /// The connection itself, for requests that no aggregator would send.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How many connections have been made so far: more than one over HTTP/2 means that the server ended one.
    pub fn connections(&self) -> usize {
        self.client.connections()
    }
}
