//! What this host no longer knows: jobs that it gave up, whose calls it must neither start again nor say that they never started.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use common::identity::CallerName;
use common::job::CallId;
use common::seal;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{SpoolError, draft_name, sync_dir};

/// Beside the spools; no id looks like it.
const FILE: &str = "forgotten.json";

/// Bounds of what was given up: two high-water marks, each of the clock that gave the times it is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// No call that was given up may be started later than this.
    start_before: Timestamp,
    /// No job that was given up, of whatever caller, has an id that was made later than this, or than is said of that caller below.
    everyone_until: Timestamp,
    /// By caller: no job of his that was given up has an id that was made later than this.
    made_until: BTreeMap<CallerName, Timestamp>,
    /// What a newer version has written besides: it is kept.
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Forgotten {
    /// What the file beside the spools says; nothing was given up if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(spools: &Path) -> Result<Self, SpoolError> {
        let path = spools.join(FILE);
        match std::fs::read(&path) {
            Ok(text) => seal::open(&text).map_err(|source| SpoolError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(SpoolError::File { doing: "reading", path, source }),
        }
    }

    /// What can be said at `now` where the file is damaged: anything may have been given up.
    #[must_use]
    pub fn everything_until(now: Timestamp) -> Self {
        Self { start_before: now, everyone_until: now, ..Self::default() }
    }

    /// Writes it down beside the spools, with what stands there already. Durable on return.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then the file is as it was.
    pub fn save(&self, spools: &Path) -> Result<(), SpoolError> {
        let path = spools.join(FILE);
        // One at a time: two that are written at once must not undo each other.
        let folder = File::open(spools).and_then(|folder| folder.lock().map(|()| folder));
        let _alone = folder.map_err(|source| SpoolError::File { doing: "locking", path: spools.to_owned(), source })?;
        let all = match Self::load(spools) {
            Err(damage) if damage.is_damage() => self.clone(),
            there => there?.with(self),
        };
        let draft = spools.join(draft_name("forgotten"));
        let text = seal::seal(&all).map_err(|source| SpoolError::Unwritable { path: path.clone(), source })?;
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)
        };
        let written = write().map_err(|source| SpoolError::File { doing: "writing", path, source });
        if written.is_err() {
            // The first error is the one to tell; the draft is swept later.
            let _swept_later = std::fs::remove_file(&draft);
        }
        written.and_then(|()| sync_dir(spools))
    }

    fn with(mut self, other: &Self) -> Self {
        self.start_before = self.start_before.max(other.start_before);
        self.everyone_until = self.everyone_until.max(other.everyone_until);
        for (caller, made) in &other.made_until {
            let until = self.made_until.entry(caller.clone()).or_insert(*made);
            *until = (*made).max(*until);
        }
        self
    }

    /// Adds a job that is about to be given up.
    pub fn add(&mut self, caller: &CallerName, call_id: &CallId, start_before: Timestamp) {
        self.start_before = self.start_before.max(start_before);
        let made = call_id.job().made_at();
        let until = self.made_until.entry(caller.clone()).or_insert(made);
        *until = made.max(*until);
    }

    /// Whether a call that may be started until `start_before` may have been here and been given up.
    #[must_use]
    pub fn may_hold(&self, start_before: Timestamp) -> bool {
        start_before <= self.start_before
    }

    /// Whether the caller's call `call_id` may have run here and been given up.
    #[must_use]
    pub fn may_have_run(&self, caller: &CallerName, call_id: &CallId) -> bool {
        let until = self.made_until.get(caller).copied().unwrap_or_default().max(self.everyone_until);
        call_id.job().made_at() <= until
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::job::JobId;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_was_given_up_is_neither_started_nor_called_never_started() {
        let dir = tempfile::tempdir().unwrap();
        let (ann, bob): (CallerName, CallerName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let call = |second| CallId::new(JobId::new(at(second), 7), 1);
        let mut forgotten = Forgotten::load(dir.path()).unwrap();
        assert!(!forgotten.may_have_run(&ann, &call(1)) && !forgotten.may_hold(at(1)));
        forgotten.add(&ann, &call(1000), at(1300));
        forgotten.add(&ann, &call(900), at(1200));
        forgotten.save(dir.path()).unwrap();
        let mut older = Forgotten::default();
        older.add(&ann, &call(1), at(2));
        older.save(dir.path()).unwrap();
        let forgotten = Forgotten::load(dir.path()).unwrap();
        assert!(forgotten.may_have_run(&ann, &call(1000)) && forgotten.may_have_run(&ann, &call(3)));
        assert!(!forgotten.may_have_run(&ann, &call(1001)) && !forgotten.may_have_run(&bob, &call(3)));
        assert!(forgotten.may_hold(at(1300)) && !forgotten.may_hold(at(1301)));
        let damaged = Forgotten::everything_until(at(2000));
        assert!(damaged.may_have_run(&bob, &call(2000)) && !damaged.may_have_run(&bob, &call(2001)) && damaged.may_hold(at(2000)));
    }
}
