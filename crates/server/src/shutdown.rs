//! The signals that end the process: the first politely, the second at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit code after a second signal: 128 + SIGINT, as a shell would say it.
const INTERRUPTED: i32 = 130;

/// Cancels `stop` on SIGTERM or SIGINT, and exits the process on the next of them.
///
/// # Errors
/// If the signals cannot be listened for.
pub async fn on_signal(stop: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    info!(signal = next().await, "asked to end");
    stop.cancel();
    warn!(signal = next().await, "asked again, ending at once");
    std::process::exit(INTERRUPTED)
}
