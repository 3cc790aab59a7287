//! When a server is told to stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

/// Becomes true at the first SIGTERM or SIGINT; a second one changes nothing.
///
/// # Errors
/// The signals cannot be waited for.
pub fn stop_on_signals() -> io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {},
            _ = interrupt.recv() => {},
        }
        info!("stopping: running requests may end");
        if sender.send(true).is_err() {
            warn!("told to stop, and nothing is serving");
        }
        // Dropped, it would stop nothing less; kept, a second signal changes nothing.
        sender.closed().await;
    });
    Ok(receiver)
}
