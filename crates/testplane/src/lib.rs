//! What audit-stream is tested against; never shipped, and never depends on the server it tests.

pub mod assets;
pub mod audit_stream;
pub mod control_plane;
pub mod events;
pub mod frames;
pub mod front_proxy;
pub mod history;
pub mod kubectl;
pub mod manifests;
pub mod pki;
pub mod process;
pub mod recording;
pub mod relay;
pub mod reviewer;
mod tasks;
mod tls;
pub mod webhook_sender;
