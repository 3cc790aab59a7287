//! A job's stdout or stderr on disk: kept up to a cap, the rest counted and dropped, and the cut marked in the file's last line.

use std::fs::File;
use std::io::Write as _;

/// A file that takes any amount and keeps so much of it.
#[derive(Debug)]
pub struct CappedFile {
    file: File,
    cap: u64,
    kept: u64,
    total: u64,
}

impl CappedFile {
    /// An empty file, which will keep `cap` bytes and a line.
    #[must_use]
    pub fn new(file: File, cap: u64) -> Self {
        Self { file, cap, kept: 0, total: 0 }
    }

    /// Takes `bytes`. What is beyond the cap, or what a full disk does not take, is dropped; nothing is kept behind a gap.
    pub fn take(&mut self, bytes: &[u8]) {
        let is_whole = self.kept == self.total;
        self.total += bytes.len() as u64;
        if is_whole {
            let room = usize::try_from(self.cap - self.kept).unwrap_or(usize::MAX);
            self.keep(bytes.get(..room).unwrap_or(bytes));
        }
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(count) if count > 0 => {
                    self.kept += count as u64;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _full => return,
            }
        }
    }

    /// Marks the file as cut if it is, and has what was kept written to the disk before the end is told.
    pub fn close(&mut self) {
        if self.kept < self.total {
            let mark = format!("\n[cut: the first {} of {} bytes are above]\n", self.kept, self.total);
            // A disk that was too full for the output may be too full for the mark; the job's outcome matters more.
            let _best_effort = self.file.write_all(mark.as_bytes());
        }
        if self.total > 0 {
            // What a failing disk has lost of the output costs the job nothing else.
            let _best_effort = self.file.sync_data();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn the_first_bytes_are_kept_and_the_cut_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let mut file = CappedFile::new(File::create(&path).unwrap(), 10);
        for bytes in ["12345", "67890abc", "d"] {
            file.take(bytes.as_bytes());
        }
        file.close();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "1234567890\n[cut: the first 10 of 14 bytes are above]\n");
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let mut file = CappedFile::new(File::create(&path).unwrap(), 4);
        file.take(b"1234");
        file.close();
        assert_eq!(std::fs::read(path).unwrap(), b"1234");
    }
}
