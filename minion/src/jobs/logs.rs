//! What a job has written, from its spool, a piece at a time; whoever wants more than there is may wait for it, and holds no thread meanwhile.
//!
//! It only reads, and who may read is decided as for `jobs.status`.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use common::outcome::{Failure, bytes_value, cut_letter_bytes};
use common::protocol::{JobLogs, JobProgress, LOGS_CHUNK_MIN_BYTES, LOGS_WAIT_MAX_MS, LogPiece, Stream, logs_chunk_bytes};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Jobs, Reader, internal};
use crate::modules::LogsWanted;
use crate::spool::{Spool, SpoolError};

/// How often the files of a job whose output is waited for are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often such a job is asked after as a whole: one whose daemon was killed leaves no outcome to be seen.
const LEARN_EVERY: Duration = Duration::from_secs(1);

/// How much of each stream there is, and whether the outcome lies beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    sizes_bytes: [u64; 2],
    has_ended: bool,
}

impl Jobs {
    /// What the job has written, in a reply of at most `reply_max_bytes`. If that is nothing beyond the offsets, it waits as long as is wanted,
    /// but no longer than [`LOGS_WAIT_MAX_MS`], for more, or for the job's end.
    ///
    /// # Errors
    /// There is no such job that the reader may hear of, or its spool is gone or cannot be read.
    pub async fn logs(&self, reader: &Reader, wanted: &LogsWanted, reply_max_bytes: usize) -> Result<JobLogs, Failure> {
        let deadline = Instant::now() + Duration::from_millis(wanted.wait_ms.min(LOGS_WAIT_MAX_MS).into());
        let max_bytes = wanted.max_bytes.unwrap_or(u32::MAX).max(LOGS_CHUNK_MIN_BYTES).min(logs_chunk_bytes(reply_max_bytes));
        let spool = Spool::of(&self.spools, &wanted.id);
        let mut may_wait = wanted.wait_ms > 0;
        loop {
            // The state before the output: what is read after the end is all that there is.
            let report = self.status(reader, &wanted.id).await?;
            let state = report.progress.state();
            let (from, asked) = (spool.clone(), wanted.clone());
            let has_run = matches!(&report.progress, JobProgress::Ended(outcome) if outcome.started_at.is_some());
            let (look, [stdout, stderr]) = blocking(move || read(&from, &asked, max_bytes, state.is_final(), has_run)).await??;
            let is_news = stdout.next > wanted.stdout || stderr.next > wanted.stderr;
            if is_news || state.is_final() || !may_wait {
                let is_read = stdout.next >= stdout.size_bytes && stderr.next >= stderr.size_bytes;
                let complete = state.is_final() && is_read;
                return Ok(JobLogs { minion_job_id: report.minion_job_id, call_id: report.call_id, state, complete, stdout, stderr });
            }
            may_wait = self.wait_for_change(&spool, look, deadline).await?;
        }
    }

    /// From when `stop` is true, nobody waits for output any more: a server that is to end would wait for them.
    pub fn stop_waiting_on(&self, stop: watch::Receiver<bool>) {
        // Said twice, the first holds.
        let _said_before = self.stopping.set(stop);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.get().is_some_and(|stop| *stop.borrow())
    }

    /// Waits until the spool looks different from `before`, or it is time to ask after the job; `false` if there is no more time to wait, or
    /// the server is to end.
    async fn wait_for_change(&self, spool: &Spool, before: Look, deadline: Instant) -> Result<bool, Failure> {
        let until = deadline.min(Instant::now() + LEARN_EVERY);
        loop {
            sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
            if self.is_stopping() || Instant::now() >= deadline {
                return Ok(false);
            }
            let spool = spool.clone();
            let now = blocking(move || look(&spool).map_err(told)).await??;
            // An outcome that was seen already came between the last look at the job and the one at its files.
            if now != before || before.has_ended || Instant::now() >= until {
                return Ok(true);
            }
        }
    }
}

/// Reading files blocks, which the server's own threads must not.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(read).await.map_err(|error| internal(error.to_string()))
}

fn look(spool: &Spool) -> Result<Look, SpoolError> {
    let size_bytes = |stream| match spool.open_output(stream)? {
        Some(file) => file.metadata().map(|metadata| metadata.len()).map_err(|error| unread(spool, stream, error)),
        None => Ok(0),
    };
    Ok(Look { sizes_bytes: [size_bytes(Stream::Stdout)?, size_bytes(Stream::Stderr)?], has_ended: spool.has_outcome() })
}

/// What the spool looks like, and then both pieces. Of a job that `has_run` there are files, though they may be empty.
fn read(spool: &Spool, wanted: &LogsWanted, max_bytes: u32, is_final: bool, has_run: bool) -> Result<(Look, [LogPiece; 2]), Failure> {
    if is_final && !spool.exists().map_err(told)? {
        let message = format!("the job {} has ended, and its spool {} is gone, and its output with it", wanted.id, spool.dir().display());
        return Err(Failure::of_kind("no_spool", message));
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        if has_run && spool.open_output(stream).map_err(told)?.is_none() {
            let message = format!("the job {} has run, and what it wrote to its {} is gone from its spool", wanted.id, stream.as_str());
            return Err(Failure::of_kind("no_output", message));
        }
    }
    let before = look(spool).map_err(told)?;
    let piece = |stream, offset| piece(spool, stream, offset, max_bytes, is_final).map_err(told);
    Ok((before, [piece(Stream::Stdout, wanted.stdout)?, piece(Stream::Stderr, wanted.stderr)?]))
}

/// At most `max_bytes` of the stream from `offset` on; a job that has no file for it has written nothing yet.
fn piece(spool: &Spool, stream: Stream, offset: u64, max_bytes: u32, is_final: bool) -> Result<LogPiece, SpoolError> {
    let Some(file) = spool.open_output(stream)? else { return Ok(LogPiece { data: bytes_value(&[]), next: offset, size_bytes: 0 }) };
    let failed = |error| unread(spool, stream, error);
    let size_bytes = file.metadata().map_err(failed)?.len();
    let there = usize::try_from(size_bytes.saturating_sub(offset).min(max_bytes.into())).unwrap_or(usize::MAX);
    let mut bytes = vec![0; there];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    let end = offset.saturating_add(bytes.len() as u64);
    if !(is_final && end >= size_bytes) {
        bytes.truncate(bytes.len() - cut_letter_bytes(&bytes));
    }
    Ok(LogPiece { next: offset.saturating_add(bytes.len() as u64), data: bytes_value(&bytes), size_bytes })
}

fn told(error: SpoolError) -> Failure {
    internal(error.to_string())
}

fn unread(spool: &Spool, stream: Stream, source: io::Error) -> SpoolError {
    SpoolError::File { doing: "reading", path: spool.dir().join(stream.as_str()), source }
}
