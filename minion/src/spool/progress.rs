//! How far a job says that it is, while it runs. It is a hint, of which nothing depends.

use std::io::Write as _;

use common::outcome::Progress;

use super::{Spool, SpoolError};

const PROGRESS: &str = "progress.json";
const DRAFT: &str = ".progress.json";

impl Spool {
    /// Writes down how far the job says that it is. It is not synced: what a power cut takes of it is missed by nobody.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then the one before stands.
    pub fn write_progress(&self, progress: &Progress) -> Result<(), SpoolError> {
        let text = self.sealed(DRAFT, progress)?;
        self.create_output(DRAFT)?.write_all(&text).map_err(self.failed("writing", DRAFT))?;
        std::fs::rename(self.dir.join(DRAFT), self.dir.join(PROGRESS)).map_err(self.failed("renaming", DRAFT))
    }

    /// How far the job has said last that it is. What is damaged, or cannot be read, was not said.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.read_if_there(PROGRESS).ok().flatten()
    }
}
