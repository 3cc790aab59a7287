//! Which jobs a job has submitted: an id a line, written before the job of that id has a spool. So one that is named may never have come to be, and none that
//! came to be is missing.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use common::job::MinionJobId;

use super::{FILE_MAX_BYTES, Spool, SpoolError};

const FOLLOWUPS: &str = "followups";

impl Spool {
    /// Writes down that the job has submitted the job `id`, durably; `false` if it has submitted `max` others already.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then the job must not be made.
    pub fn add_followup(&self, id: &MinionJobId, max: usize) -> Result<bool, SpoolError> {
        let before = self.followups()?;
        if before.contains(id) {
            return Ok(true);
        }
        if before.len() >= max {
            return Ok(false);
        }
        let mut options = File::options();
        let file = options.append(true).create(true).mode(0o600).open(self.dir.join(FOLLOWUPS));
        // A line that a full disk cut short ends where the next begins, and is none.
        let line = format!("\n{id}\n");
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_data()));
        written.map_err(self.failed("writing", FOLLOWUPS)).map(|()| true)
    }

    /// The jobs that the job has submitted, in order, each once.
    ///
    /// # Errors
    /// The file is there, and cannot be read.
    pub fn followups(&self) -> Result<Vec<MinionJobId>, SpoolError> {
        let file = match File::open(self.dir.join(FOLLOWUPS)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.failed("opening", FOLLOWUPS)(source)),
        };
        let (mut ids, mut seen) = (Vec::new(), HashSet::new());
        for line in BufReader::new(file.take(FILE_MAX_BYTES)).split(b'\n') {
            let line = line.map_err(self.failed("reading", FOLLOWUPS))?;
            let id = str::from_utf8(&line).ok().and_then(|text| text.parse::<MinionJobId>().ok());
            ids.extend(id.filter(|id| seen.insert(id.clone())));
        }
        Ok(ids)
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
        for (last, is_taken) in [(2, true), (1, true), (2, true), (3, false), (1, true)] {
            assert_eq!(spool.add_followup(&id(last), 2).unwrap(), is_taken, "{last}");
        }
        assert_eq!(spool.followups().unwrap(), [id(2), id(1)]);
    }

    #[test]
    fn a_line_that_was_cut_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::of(dir.path(), &id(0));
        std::fs::create_dir(spool.dir()).unwrap();
        assert!(spool.add_followup(&id(1), 9).unwrap());
        let mut text = std::fs::read(spool.dir().join(FOLLOWUPS)).unwrap();
        text.extend(b"\n54k2-9x");
        std::fs::write(spool.dir().join(FOLLOWUPS), text).unwrap();
        assert!(spool.add_followup(&id(2), 9).unwrap());
        assert_eq!(spool.followups().unwrap(), [id(1), id(2)]);
    }
}
