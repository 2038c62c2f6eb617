//! What audit-stream is tested against; never shipped, and never depends on the server it tests.

pub mod pki;
