//! What a broken exchange means, and how far it had come: errors alone, no bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jsonrpsee::core::http_helpers::HttpError;

/// Whether the call may have reached the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent(Arc<AtomicBool>);

impl Sent {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn unset(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why an exchange brought no answer, for a person.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The host has not read the call, and will not.
    #[error("{0}")]
    NotSent(String),
    /// The host may have read it.
    #[error("{0}")]
    Silent(String),
}

impl Broken {
    /// Finds it in the error that jsonrpsee wrapped it in.
    pub(super) fn within(error: HttpError) -> Result<Self, HttpError> {
        match error {
            HttpError::Stream(error) => error.downcast::<Self>().map(|broken| *broken).map_err(HttpError::Stream),
            other => Err(other),
        }
    }
}
