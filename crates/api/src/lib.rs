//! The words of audit-stream, spoken by the server, the kubectl plugin and the test plane alike.
//!
//! Types and text only: nothing here opens a socket, reads a clock or knows who is asking. In reading order: what
//! kube-apiserver sends ([`audit`], read by [`json`]); what is served ([`resource`]); what a watcher asks for ([`query`]), which events
//! ([`selection`], made of [`selector`] and [`label_selector`]); what it receives ([`object`], [`frame`], [`status`]); and
//! the [`Sequence`] that orders it all.

pub mod audit;
pub mod frame;
pub mod json;
pub mod label_selector;
pub mod object;
pub mod query;
pub mod resource;
pub mod selection;
pub mod selector;
pub mod sequence;
pub mod status;

pub use resource::{GROUP, Resource, Route, Version};
pub use sequence::Sequence;
