//! Which jobs a job has submitted: an id a line, written before the job of that id has a spool. So one that is named may never have come to be, and none that
//! came to be is missing: once they are read for the outcome, none is added.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use common::job::MinionJobId;

use super::{FILE_MAX_BYTES, Spool, SpoolError};

const FOLLOWUPS: &str = "followups";

/// The last line, behind which nothing is added.
const SEAL: &str = "sealed";

/// What came of the wish to add one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followup {
    /// It is named.
    Named,
    /// The job has submitted as many as it may.
    TooMany,
    /// The job has ended: its outcome names what it has submitted.
    TooLate,
}

impl Spool {
    /// Writes down that the job has submitted the job `id`, durably, unless it has submitted `max` others already, or has ended.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then the job must not be made.
    pub fn add_followup(&self, id: &MinionJobId, max: usize) -> Result<Followup, SpoolError> {
        let file = self.lock_followups()?;
        let (before, is_sealed) = self.read_followups()?;
        if before.contains(id) {
            return Ok(Followup::Named);
        }
        if is_sealed {
            return Ok(Followup::TooLate);
        }
        if before.len() >= max {
            return Ok(Followup::TooMany);
        }
        self.write_followup(&file, id.as_str())?;
        // A new file is there for good when its folder is.
        let synced = File::open(&self.dir).and_then(|folder| folder.sync_all());
        synced.map_err(self.failed("syncing", FOLLOWUPS)).map(|()| Followup::Named)
    }

    /// The same as [`followups`](Self::followups), for the outcome: none is added from now on.
    ///
    /// # Errors
    /// The file cannot be written or read.
    pub fn seal_followups(&self) -> Result<Vec<MinionJobId>, SpoolError> {
        let file = self.lock_followups()?;
        // A disk that is full lets nothing be added either.
        let _sealed_or_full = self.write_followup(&file, SEAL);
        self.followups()
    }

    /// Opens the file, to be added to by nobody else until it is closed.
    fn lock_followups(&self) -> Result<File, SpoolError> {
        let file = File::options().append(true).create(true).mode(0o600).open(self.dir.join(FOLLOWUPS));
        file.and_then(|file| file.lock().map(|()| file)).map_err(self.failed("locking", FOLLOWUPS))
    }

    fn write_followup(&self, mut file: &File, line: &str) -> Result<(), SpoolError> {
        // A line that a full disk cut short ends where the next begins, and is none.
        let written = file.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| file.sync_data());
        written.map_err(self.failed("writing", FOLLOWUPS))
    }

    /// The jobs that the job has submitted, in order, each once.
    ///
    /// # Errors
    /// The file is there, and cannot be read.
    pub fn followups(&self) -> Result<Vec<MinionJobId>, SpoolError> {
        self.read_followups().map(|(ids, _)| ids)
    }

    /// And whether none is added any more.
    fn read_followups(&self) -> Result<(Vec<MinionJobId>, bool), SpoolError> {
        let file = match File::open(self.dir.join(FOLLOWUPS)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
            Err(source) => return Err(self.failed("opening", FOLLOWUPS)(source)),
        };
        let (mut ids, mut seen, mut is_sealed) = (Vec::new(), HashSet::new(), false);
        for line in BufReader::new(file.take(FILE_MAX_BYTES)).split(b'\n') {
            let line = line.map_err(self.failed("reading", FOLLOWUPS))?;
            is_sealed |= line == SEAL.as_bytes();
            let id = str::from_utf8(&line).ok().and_then(|text| text.parse::<MinionJobId>().ok());
            ids.extend(id.filter(|id| seen.insert(id.clone())));
        }
        Ok((ids, is_sealed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn id(last: u8) -> MinionJobId {
        format!("54k2-9xqd-4fz{last}").parse().unwrap()
    }

    #[test]
    fn each_is_named_once_in_order_and_no_more_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::of(dir.path(), &id(0));
        std::fs::create_dir(spool.dir()).unwrap();
        assert_eq!(spool.followups().unwrap(), []);
        use Followup::{Named, TooLate, TooMany};
        for (last, came_of_it) in [(2, Named), (1, Named), (2, Named), (3, TooMany), (1, Named)] {
            assert_eq!(spool.add_followup(&id(last), 2).unwrap(), came_of_it, "{last}");
        }
        assert_eq!(spool.seal_followups().unwrap(), [id(2), id(1)]);
        assert_eq!(spool.add_followup(&id(4), 9).unwrap(), TooLate);
        assert_eq!(spool.add_followup(&id(1), 9).unwrap(), Named);
        assert_eq!(spool.seal_followups().unwrap(), [id(2), id(1)]);
    }

    #[test]
    fn a_line_that_was_cut_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::of(dir.path(), &id(0));
        std::fs::create_dir(spool.dir()).unwrap();
        assert_eq!(spool.add_followup(&id(1), 9).unwrap(), Followup::Named);
        let mut text = std::fs::read(spool.dir().join(FOLLOWUPS)).unwrap();
        text.extend(b"\n54k2-9x");
        std::fs::write(spool.dir().join(FOLLOWUPS), text).unwrap();
        assert_eq!(spool.add_followup(&id(2), 9).unwrap(), Followup::Named);
        assert_eq!(spool.followups().unwrap(), [id(1), id(2)]);
    }
}
