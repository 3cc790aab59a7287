//! A job's output as its reader sees it: files that grow until the outcome lies beside them. It only reads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use common::outcome::{bytes_value, cut_letter_bytes};
use common::protocol::{LogPiece, Stream};
use serde::{Deserialize, Serialize};

use super::{OUTCOME, Spool, SpoolError};

/// How much of each stream there is, and whether the outcome lies beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glance {
    /// Of stdout and stderr.
    pub sizes_bytes: [u64; 2],
    /// Whether there is an outcome, unread.
    pub has_ended: bool,
}

impl Spool {
    /// How much the job has written.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn glance(&self) -> Result<Glance, SpoolError> {
        let size_bytes = |stream| match self.open_output(stream)? {
            Some(file) => file.metadata().map(|metadata| metadata.len()).map_err(self.failed("reading", Stream::as_str(stream))),
            None => Ok(0),
        };
        let sizes_bytes = [size_bytes(Stream::Stdout)?, size_bytes(Stream::Stderr)?];
        Ok(Glance { sizes_bytes, has_ended: self.dir.join(OUTCOME).exists() })
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

    /// At most `max_bytes` of the stream from `offset` on; a job that has no file for it has written nothing yet. A letter that is still
    /// being written is left for the next piece, unless the stream `is_final`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn output_piece(&self, stream: Stream, offset: u64, max_bytes: u32, is_final: bool) -> Result<LogPiece, SpoolError> {
        let Some(file) = self.open_output(stream)? else {
            return Ok(LogPiece { data: bytes_value(&[]), next: offset, size_bytes: 0 });
        };
        let size_bytes = file.metadata().map_err(self.failed("reading", stream.as_str()))?.len();
        let there = usize::try_from(size_bytes.saturating_sub(offset).min(max_bytes.into())).unwrap_or(usize::MAX);
        let mut bytes = vec![0; there];
        file.read_exact_at(&mut bytes, offset).map_err(self.failed("reading", stream.as_str()))?;
        let end = offset.saturating_add(bytes.len() as u64);
        if !(is_final && end >= size_bytes) {
            bytes.truncate(bytes.len() - cut_letter_bytes(&bytes));
        }
        Ok(LogPiece { next: offset.saturating_add(bytes.len() as u64), data: bytes_value(&bytes), size_bytes })
    }
}
