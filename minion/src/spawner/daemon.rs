//! The job daemon: supervises one job, writes its outcome into the spool, and pokes the server.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::order::{self, Reply};
use super::{Post, no_process};
use crate::spool::{Spool, SpoolError, SpoolLock, SpoolRequest, Started};
use crate::supervise::{Charge, JobCharge, Stop, cancelled, supervise};

/// How often, and for how long, a daemon tries to write an outcome that a full or broken disk does not take. Until it succeeds
/// the job counts as running, because the daemon lives; after that it is lost.
const OUTCOME_RETRY: Duration = Duration::from_secs(1);
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How long a server that has much to hear may take to hear of this, too.
const POKE_TIMEOUT: Duration = Duration::from_secs(1);

/// The whole life of a job daemon; its exit status.
pub(super) fn live(post: &Post, request: &SpoolRequest, spool: Spool, lock: SpoolLock, server: UnixStream) -> u8 {
    let id = &request.minion_job_id;
    let begun = match leave_stdio() {
        Ok(()) => JobCharge::new(
            spool,
            lock,
            Box::new(post.tokens.token(request.ask.as_ref().map_or(&post.station.minion, |ask| &ask.minion), id)),
            post.station.limits.output_max_bytes,
        ),
        Err(error) => Err((error, spool, lock)),
    };
    match begun {
        Ok(job) => {
            let written = run_job(post, request, job, server);
            poke(post, id, "");
            u8::from(!written)
        }
        // A job that waited goes on waiting: the lock is let go, and nothing of a start is there.
        Err((error, spool, lock)) => {
            if request.starts_at_once {
                let failure = Failure::new(ErrorCode::Undelivered, format!("it could not be started: {error}"));
                let outcome = Outcome::not_run(Verdict::Undelivered { error: failure.clone() }, Timestamp::now());
                if spool.write_outcome(&lock, &outcome).is_ok() {
                    let _gone = order::send(&server, &Reply::Refused(failure));
                }
            }
            poke(post, id, &error.to_string());
            1
        }
    }
}

/// Lets go of the spawner's stdin, stdout and stderr, which may be pipes that somebody waits for the end of.
fn leave_stdio() -> Result<(), SpoolError> {
    let leave = || {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null)).map_err(std::io::Error::from)
    };
    leave().map_err(|source| SpoolError::File { doing: "opening", path: "/dev/null".into(), source })
}

fn run_job(post: &Post, request: &SpoolRequest, job: JobCharge, server: UnixStream) -> bool {
    let id = &request.minion_job_id;
    // A fence has nothing to run, and an end from its beginning.
    let Some(run) = &request.run else { return false };
    let write_outcome = |job: &JobCharge, outcome| write_outcome(post, id, job, &outcome);
    if let Some(wish) = job.cancelled() {
        let verdict = cancelled(&Stop::Cancelled(wish));
        return write_outcome(&job, Outcome::not_run(verdict, Timestamp::now()));
    }
    let now = Timestamp::now();
    let started = Started { at: Some(now), boot_id: post.boot_id.clone() };
    if let Err(error) = job.spool.mark_started(&job.lock, &started, request.starts_at_once) {
        if !request.starts_at_once && job.spool.unmark(&job.lock).is_ok() {
            // It waited for its turn, and does so again.
            poke(post, id, &error.to_string());
            return false;
        }
        let error = Failure::new(ErrorCode::Undelivered, format!("its start could not be written down: {error}"));
        let is_written = write_outcome(&job, Outcome::not_run(Verdict::Undelivered { error: error.clone() }, Timestamp::now()));
        let _gone = order::send(&server, &Reply::Refused(error));
        return is_written;
    }
    // All of it is durable. A server that is gone finds the job by its spool.
    let _gone = order::send(&server, &Reply::Started(now));
    drop(server);
    match supervise(&post.station, run, None, Charge::Job(job)) {
        Ok((mut outcome, Charge::Job(job))) => {
            // Of a disk that fails the outcome says what it can.
            outcome.followup = job.spool.seal_followups().unwrap_or_default();
            write_outcome(&job, outcome)
        }
        Err((errno, Charge::Job(job))) => {
            let error = no_process(errno);
            write_outcome(&job, Outcome::not_run(Verdict::Undelivered { error }, Timestamp::now()))
        }
        _another_charge => false,
    }
}

/// Writes the outcome, again and again if need be; `false` if it could not be written at all.
fn write_outcome(post: &Post, id: &MinionJobId, job: &JobCharge, outcome: &Outcome) -> bool {
    let deadline = Instant::now() + OUTCOME_TIMEOUT;
    loop {
        match job.spool.write_outcome(&job.lock, outcome) {
            Ok(()) => return true,
            // Somebody has removed it: nobody will ask.
            Err(_) if !job.spool.dir().exists() => return false,
            Err(error) if Instant::now() < deadline => {
                poke(post, id, &format!("its outcome cannot be written, and is tried again: {error}"));
                std::thread::sleep(OUTCOME_RETRY);
            }
            Err(_) => return false,
        }
    }
}

/// Tells the server to look at the job `id`, and, where an operator must act, of a `problem` to log. It is only a hint: a server that
/// misses it finds out by itself.
pub(super) fn poke(post: &Post, id: &MinionJobId, problem: &str) {
    let _missed = UnixDatagram::unbound().and_then(|socket| {
        socket.set_write_timeout(Some(POKE_TIMEOUT))?;
        // The name is the server's to give, who could make it a link to a socket that listens to root.
        let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
        let server = File::options().read(true).custom_flags(flags).open(&post.server_socket)?;
        socket.send_to(format!("{id} {problem}").as_bytes(), format!("/proc/self/fd/{}", server.as_raw_fd()))
    });
}
