//! A call in flight, stopped from outside.

use std::sync::Arc;

use tokio::sync::watch;

/// Stops a synchronous call: hosts that were not asked yet are not, and those that were are no longer waited for. Clones stop
/// the same call.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// A call that goes on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops it, once and for all.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn stopped(&self) {
        let mut watcher = self.0.subscribe();
        // The only error is that the sender is gone, and we hold it.
        let _ = watcher.wait_for(|stopped| *stopped).await;
    }
}
