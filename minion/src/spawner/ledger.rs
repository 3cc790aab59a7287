//! The spawner's own audit log, beside the spools, where the server cannot reach it: what was done in one file, what was refused in another, so that
//! who has captured the server cannot drive out the one by making much of the other; and what no job's token proves in a third, a small one, because
//! anybody on the host can make as much of it as he likes.

use std::path::PathBuf;

use service::audit::{Audit, AuditError, Entry as _, Rotation};

use crate::audit::{Entry, Log};

/// The calls that were done.
const DONE: &str = "audit.log";
/// Those that were refused.
const REFUSED: &str = "refused.log";

/// Submissions that no job's token proves.
const UNPROVED: &str = "unproved.log";
/// As much of these as says what somebody tries.
const UNPROVED_MAX: Rotation = Rotation { max_bytes: 1 << 20, files: 1 };

/// The files.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) spools: PathBuf,
    pub(super) rotation: Rotation,
}

impl Log for Ledger {
    /// Each process opens the file anew: what is inherited from one has one lock in common.
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.append(if entry.is_refusal() { REFUSED } else { DONE }, self.rotation, entry)
    }
}

impl Ledger {
    fn append(&self, name: &str, rotation: Rotation, entry: &Entry<'_>) -> Result<(), AuditError> {
        // No second thread in a process that forks.
        Audit::open(&self.spools.join(name), rotation)?.without_journal().record(entry)
    }
}

/// The same for submissions that no job's token proves.
#[derive(Debug)]
pub(super) struct Unproved<'a>(pub(super) &'a Ledger);

impl Log for Unproved<'_> {
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        self.0.append(UNPROVED, UNPROVED_MAX, entry)
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
