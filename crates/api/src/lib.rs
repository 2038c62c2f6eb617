//! The words of audit-stream, spoken by the server, the kubectl plugin and the test plane alike.
//!
//! Types and text only: nothing here opens a socket, reads a clock or knows who is asking.
//! In reading order: what kube-apiserver sends ([`audit`]).

pub mod audit;

/// The API group that audit-stream serves.
pub const GROUP: &str = "audit.k8s.io";
