//! The bounded, ordered, in-memory log that every watch reads from.
//!
//! ```text
//! publish(batch) ─▶ [ batch | batch | batch ] ─▶ cursor: everything, as it is published
//!                    ▲ evicted by bytes and age ─▶ after(place): what a reader that is behind has to read next
//! ```
//!
//! It knows no HTTP and no Kubernetes: what it orders is a type parameter. What it promises:
//!
//! - **Order is total.** Every event of every batch has its own [`Sequence`](audit_stream_api::Sequence), and they only grow.
//! - **Bounded.** What is retained stays within [`Config::retain_bytes`], but for the newest batch, which always fits.
//! - **A publisher never waits for a reader.** Who falls behind the retained window is told so ([`Lagged`], [`NotRetained`]).
//! - **Shared.** A batch is stored once; readers hold it by `Arc`.

mod cursor;
mod ring;

pub use cursor::{Cursor, Lagged};
pub use ring::{Bus, Config, Entry, NotRetained};
