//! The log: what it looks like and how much there is of it. Never an event's content, a token or a header's value.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::args::LoggingFormat;

/// Logs to standard error from now on. `verbosity` is klog's: up to 3 informs, 4 and 5 debug, more traces.
///
/// # Panics
/// If called twice in a process.
pub fn init(format: LoggingFormat, verbosity: u8) {
    let level = match verbosity {
        0..=3 => Level::INFO,
        4..=5 => Level::DEBUG,
        _ => Level::TRACE,
    };
    // Libraries trace what crosses the wire, credentials included: from them, only what is worth a warning, and from kube,
    // which warns of each failure that is told here in other words, only where somebody debugs.
    let kube = if level > Level::INFO { LevelFilter::WARN } else { LevelFilter::OFF };
    let levels = Targets::new()
        .with_target("audit_stream", level)
        .with_target("kube_client", kube)
        .with_target("kube_runtime", kube)
        .with_default(LevelFilter::WARN);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LoggingFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LoggingFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
}
