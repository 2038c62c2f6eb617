//! audit-stream's server: Kubernetes audit events as a watch.
//!
//! ```text
//! kube-apiserver ──POST EventList──▶ ingest ──▶ bus ──▶ watch ──▶ wire ──▶ kube-aggregator ──▶ kubectl
//!                                    attribution         ▲
//!                                    view        authn ▶ authz (a lease, renewed while open)
//! ```
//!
//! The modules follow that order: sockets, the way in, the way out, what answers from memory, what all share.

pub mod args;
pub mod certs;
pub mod listener;
pub mod reload;

pub mod request_info;

pub mod attribution;
pub mod ingest;
pub mod view;

pub mod authn;
pub mod authz;
pub mod negotiation;
pub mod rejection;
pub mod review_budget;
pub mod review_cache;
pub mod router;
pub mod watch;
pub mod wire;

pub mod discovery;
pub mod health;

pub mod logging;
pub mod memory;
pub mod metrics;
mod serve;
pub mod shutdown;
#[cfg(test)]
mod testing;

pub use serve::{Config, Server};
