//! Sees in a map's log that somebody wants it to end, while its dispatcher is at work. Reads the lines that are new, and understands none but that one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::job::{Event, LogLine};

use crate::fleet::Stop;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest line that can be the one.
const WISH_MAX_BYTES: usize = 1024;

/// Looks, until it is told to end.
pub(super) struct CancelWatch {
    end: Sender<()>,
    is_asked: Arc<AtomicBool>,
    watcher: JoinHandle<()>,
}

impl CancelWatch {
    /// Looks from here on, and stops `stop` when it is asked for.
    ///
    /// # Errors
    /// The log cannot be read, or no thread be started.
    pub(super) fn begin(path: PathBuf, stop: Stop) -> io::Result<Self> {
        let mut log = BufReader::new(File::open(path)?);
        log.seek(SeekFrom::Start(0))?;
        let (end, ended) = channel();
        let is_asked = Arc::new(AtomicBool::new(false));
        let told = is_asked.clone();
        let watcher = thread::Builder::new().name("cancel".to_owned()).spawn(move || watch(&mut log, &ended, &told, &stop))?;
        Ok(Self { end, is_asked, watcher })
    }

    /// Ends it, and says whether somebody wants the map to end.
    pub(super) fn end(self) -> bool {
        drop(self.end);
        let _panicked = self.watcher.join();
        self.is_asked.load(Ordering::Acquire)
    }
}

fn watch(log: &mut BufReader<File>, ended: &Receiver<()>, told: &AtomicBool, stop: &Stop) {
    let mut line = Vec::new();
    loop {
        match is_asked(log, &mut line) {
            Ok(false) => {}
            Ok(true) => {
                told.store(true, Ordering::Release);
                return stop.stop();
            }
            // Whoever asks sees that nothing comes of it; what is dealt goes on.
            Err(_) => return,
        }
        if !matches!(ended.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

/// Whether a line that is new says so. What is left of a line without an end is kept in `line`.
fn is_asked(log: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    while log.read_until(b'\n', line)? > 0 {
        if line.last() != Some(&b'\n') {
            return Ok(false);
        }
        let wish = if line.len() <= WISH_MAX_BYTES { common::seal::open::<LogLine>(line).ok() } else { None };
        line.clear();
        if wish.is_some_and(|wish| wish.event == Event::CancelAsked) {
            return Ok(true);
        }
    }
    Ok(false)
}
