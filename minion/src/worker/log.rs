//! What a worker's instances write to stdout and stderr: the newest of it, in two files of bounded size; and the last words of each process, for who asks why.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Past this the file becomes the older one.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// How much of the end of what one process writes is remembered.
const LAST_WORDS_BYTES: usize = 400;

/// The end of what one process has written.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.drain(..self.0.len().saturating_sub(LAST_WORDS_BYTES));
    }

    /// The last line that has something in it.
    pub(super) fn last_line(&self) -> Option<String> {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// The log of one worker.
#[derive(Debug)]
pub(super) struct OutputLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl OutputLog {
    /// The log at `path`, which is gone on with.
    pub(super) fn open(path: PathBuf) -> Self {
        let mut log = Self { path, file: None, size: 0 };
        log.reopen();
        log
    }

    /// Keeps `bytes`. A disk that takes no more costs what is written there, and nothing else.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size.saturating_add(count) > FILE_MAX_BYTES {
            let _as_before = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.reopen();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.size += count;
        }
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn it_stays_within_its_bounds_and_knows_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut log = OutputLog::open(path.clone());
        let line = format!("{}\n", "x".repeat(64 * 1024));
        for _ in 0..100 {
            log.take(line.as_bytes());
        }
        let sizes = [path.clone(), path.with_extension("log.1")].map(|path| fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| *size > 0 && *size <= FILE_MAX_BYTES), "{sizes:?}");
        let mut tail = Tail::default();
        assert_eq!(tail.last_line(), None);
        tail.take(line.as_bytes());
        tail.take(b"the end\n\n");
        assert_eq!((tail.last_line().unwrap().as_str(), tail.0.len()), ("the end", LAST_WORDS_BYTES));
    }
}
