//! Clients that write down what they do and see, for a [`crate::history::History`].
//!
//! They decide nothing: a test says what is sent and when a reader leaves, and the validators say what that proves.

mod reader;
mod sender;
#[cfg(test)]
mod tests;

pub use reader::{RecordingReader, Stopped};
pub use sender::RecordingSender;
