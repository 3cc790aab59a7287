//! A job's output as its reader sees it: files that grow until the outcome lies beside them. It only reads.

use std::fs::File;
use std::io;

use common::protocol::Stream;

use super::{OUTCOME, Spool, SpoolError};

impl Spool {
    /// Whether there is an outcome, unread.
    #[must_use]
    pub fn has_outcome(&self) -> bool {
        self.dir.join(OUTCOME).exists()
    }

    /// The file of that stream of the job's output; none before the job daemon has made it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_output(&self, stream: Stream) -> Result<Option<File>, SpoolError> {
        match File::open(self.dir.join(stream.as_str())) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("opening", stream.as_str())(source)),
        }
    }
}
