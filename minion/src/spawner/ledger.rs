//! The spawner's own audit log, beside the spools, where the server cannot reach it: what was done in one file, what was refused in another, so that
//! who has captured the server cannot drive out the one by making much of the other.

use std::path::PathBuf;

use service::audit::{Audit, AuditError, Entry as _, Rotation};

use crate::audit::{Entry, Log};

/// The calls that were done.
const DONE: &str = "audit.log";
/// Those that were refused.
const REFUSED: &str = "refused.log";

/// Both files.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) spools: PathBuf,
    pub(super) rotation: Rotation,
}

impl Log for Ledger {
    /// Each process opens the file anew: what is inherited from one has one lock in common.
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        let name = if entry.is_refusal() { REFUSED } else { DONE };
        // No second thread in a process that forks.
        Audit::open(&self.spools.join(name), self.rotation)?.without_journal().record(entry)
    }
}

/// The same, of which what was not refused is left out.
#[derive(Debug)]
pub(super) struct RefusedAlone<'a>(pub(super) &'a Ledger);

impl Log for RefusedAlone<'_> {
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        if entry.is_refusal() { self.0.record(entry) } else { Ok(()) }
    }
}
