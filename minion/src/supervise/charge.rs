//! What a supervisor holds besides the method's process: for a call the caller's connection, for a job its spool, and from either
//! the wish to stop.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::output::CappedFile;
use crate::call::Token;
use crate::spool::{CancelRequest, Spool, SpoolError, SpoolLock};

/// Why a method is to stop.
#[derive(Debug, Clone)]
pub enum Stop {
    /// Somebody asked for it.
    Cancelled(CancelRequest),
    /// The caller of a synchronous call is gone: nobody can have the answer.
    HungUp,
}

/// What a supervisor has in its keeping. The method's process closes all of it before it does anything else.
#[derive(Debug)]
pub enum Charge {
    /// A synchronous call: the server waits on the other end.
    Call(UnixStream),
    /// A job.
    Job(JobCharge),
}

/// What a job daemon has in its keeping.
#[derive(Debug)]
pub struct JobCharge {
    /// The job's folder.
    pub spool: Spool,
    /// Its lock, held for life.
    pub lock: SpoolLock,
    /// By which the method's process submits calls of its own. Boxed, because a charge comes back with errors.
    pub token: Box<Token>,
    wake: File,
    stdout: CappedFile,
    stderr: CappedFile,
}

impl JobCharge {
    /// Takes charge of a job: opens its output files, of `output_max_bytes` each, and listens for a wish to cancel it.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; spool and lock come back with it.
    pub fn new(spool: Spool, lock: SpoolLock, token: Box<Token>, output_max_bytes: u64) -> Result<Self, (SpoolError, Spool, SpoolLock)> {
        let open = || Ok((spool.listen()?, spool.create_output("stderr")?, spool.create_output("stdout")?));
        match open() {
            Ok((wake, stderr, stdout)) => {
                let [stdout, stderr] = [stdout, stderr].map(|file| CappedFile::new(file, output_max_bytes));
                Ok(Self { spool, lock, token, wake, stdout, stderr })
            }
            Err(error) => Err((error, spool, lock)),
        }
    }

    /// The wish to cancel the job, if there is one.
    #[must_use]
    pub fn cancelled(&self) -> Option<CancelRequest> {
        // A wish that cannot be read does not stop a job; whoever cancels sees that the job goes on.
        self.spool.cancel_request().ok().flatten()
    }
}

impl Charge {
    /// Readable when there may be a wish to stop.
    #[must_use]
    pub fn wishes(&self) -> BorrowedFd<'_> {
        match self {
            Self::Call(caller) => caller.as_fd(),
            Self::Job(job) => job.wake.as_fd(),
        }
    }

    /// The wish to stop, if there is one.
    pub fn stop(&mut self) -> Option<Stop> {
        match self {
            // The server sends nothing after the request, so whatever can be read is the end.
            Self::Call(caller) => match caller.read(&mut [0; 64]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
                _gone => Some(Stop::HungUp),
            },
            Self::Job(job) => {
                while (&job.wake).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                job.cancelled().map(Stop::Cancelled)
            }
        }
    }

    /// The files for stdout and stderr, if the output is kept.
    pub fn output(&mut self) -> Option<[&mut CappedFile; 2]> {
        match self {
            Self::Call(_) => None,
            Self::Job(job) => Some([&mut job.stdout, &mut job.stderr]),
        }
    }

    /// Whether the output is kept.
    #[must_use]
    pub fn keeps_output(&self) -> bool {
        matches!(self, Self::Job(_))
    }

    /// Marks the output as complete, and as cut where it was.
    pub fn close_output(&mut self) {
        for file in self.output().into_iter().flatten() {
            file.close();
        }
    }
}
