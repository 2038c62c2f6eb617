//! The scenarios: audit-stream as a whole, against the test plane and against the real control plane.
//!
//! Modules that begin with `real_` start etcd and kube-apiserver and take seconds each; the others run in this process
//! against fakes, for speed and for faults that the real thing cannot be made to show.

#![expect(unreachable_pub, reason = "`pub` here says what a module offers the others of this binary")]

use tokio::sync::Mutex;

/// Held by the tests that take all cores. Next to each other they would show how slow the machine is, and nothing of the server.
static ALONE: Mutex<()> = Mutex::const_new(());

mod confinement;
mod delivery;
mod draining;
mod identity;
mod ingest;
mod ingest_senders;
mod ingest_sources;
mod matrix;
mod openings;
mod permission;
mod real_api;
mod real_clients;
mod real_clock;
mod real_cluster;
mod real_first_light;
mod real_hostile;
mod real_identity;
mod real_lifecycle;
mod real_matrix;
mod real_memory;
mod real_readers;
mod real_restarts;
mod real_revocation;
mod real_rotation;
mod real_stalled;
mod real_storm;
mod refusals;
mod rotation;
mod shared_connection;
mod spoofing;
mod stage;
mod strangers;
mod watch;
mod watch_place;
mod watch_resume;
mod watch_selecting;
mod watch_wire;
