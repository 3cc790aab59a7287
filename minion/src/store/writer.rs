//! The thread that writes the store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use common::protocol::JobReport;
use tokio::sync::{mpsc, oneshot};

use super::{End, Kept, Known, QUEUE_MAX, StoreError, WHOLE_MAX_BYTES, end_key, require_room};

/// The file inside a sled store that holds its data.
const DATA_FILE: &str = "db";

pub(super) enum Change {
    Put(Box<JobReport>, Box<Kept>),
    Remove(Vec<End>),
}

pub(super) struct Write {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<bool, StoreError>>,
}

pub(super) struct Writer {
    pub(super) db: sled::Db,
    pub(super) jobs: sled::Tree,
    pub(super) ends: sled::Tree,
    pub(super) path: PathBuf,
}

impl Writer {
    /// Writes until nobody can ask for it any more, or until it fails.
    pub(super) fn write_all(&self, mut queue: mpsc::Receiver<Write>) {
        let mut writes = Vec::new();
        while queue.blocking_recv_many(&mut writes, QUEUE_MAX) > 0 {
            let result = match require_room(&self.path) {
                Ok(()) => self.write(&writes),
                Err(()) => Err(StoreError::NoRoom(self.path.clone())),
            };
            let has_failed = matches!(result, Err(StoreError::Write { .. }));
            for (place, write) in writes.drain(..).enumerate() {
                let is_new = |done: &Vec<bool>| done.get(place).copied().unwrap_or_default();
                // Who no longer waits does not need to know.
                let _gone = write.done.send(result.as_ref().map(is_new).map_err(StoreError::clone));
            }
            if has_failed {
                return;
            }
        }
    }

    /// Whether each write changed something.
    fn write(&self, writes: &[Write]) -> Result<Vec<bool>, StoreError> {
        let written = catch_unwind(AssertUnwindSafe(|| self.try_write(writes))).unwrap_or_else(|_| Err("sled panicked".to_owned()));
        written.map_err(|problem| StoreError::Write { path: self.path.clone(), problem })
    }

    fn try_write(&self, writes: &[Write]) -> Result<Vec<bool>, String> {
        let mut done = Vec::with_capacity(writes.len());
        for Write { change, .. } in writes {
            done.push(match change {
                Change::Put(report, kept) => self.put(report, kept)?,
                Change::Remove(ends) => {
                    ends.iter().try_for_each(|end| self.remove(end))?;
                    true
                }
            });
        }
        self.db.flush().map_err(|error| error.to_string())?;
        // sled's flush starts the writing but does not wait for the disk.
        let data = std::fs::File::open(self.path.join(DATA_FILE)).and_then(|file| file.sync_data());
        data.map(|()| done).map_err(|error| error.to_string())
    }

    /// The end comes first: a crash in between leaves a job that is taken in again, and not one that is never given up.
    fn put(&self, report: &JobReport, kept: &Kept) -> Result<bool, String> {
        let end = end_key(report);
        let has_end = self.ends.contains_key(&end).map_err(|error| error.to_string())?;
        if has_end && self.jobs.contains_key(report.minion_job_id.as_str()).map_err(|error| error.to_string())? {
            return Ok(false);
        }
        let mut text = serde_json::to_vec(&Known::Whole(report.clone())).map_err(|error| error.to_string())?;
        if text.len() > WHOLE_MAX_BYTES {
            text = serde_json::to_vec(&Known::Listed(report.clone().into())).map_err(|error| error.to_string())?;
        }
        let kept_text = serde_json::to_vec(kept).map_err(|error| error.to_string())?;
        self.ends.insert(end, kept_text).map_err(|error| error.to_string())?;
        self.jobs.insert(report.minion_job_id.as_str(), text).map_err(|error| error.to_string())?;
        Ok(true)
    }

    fn remove(&self, End { id, key, .. }: &End) -> Result<(), String> {
        self.jobs.remove(id.as_str()).map_err(|error| error.to_string())?;
        self.ends.remove(key).map(drop).map_err(|error| error.to_string())
    }
}
