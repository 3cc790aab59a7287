//! One order, served by a child of the spawner.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use jiff::Timestamp;

use super::order::{self, Order, Reply};
use super::{Post, daemon, no_process};
use crate::jobs::MethodRun;
use crate::process;
use crate::spool::{self, CancelRequest, Life, Made, Spool, SpoolError, SpoolLock, SpoolRequest};
use crate::supervise::{Charge, kill_marked, supervise};

/// How long the server may take to say its order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what is left of a dead daemon's job may take to die, and how long its lock may be held by those who only look.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves the order that comes over `server`; the child's exit status.
pub(super) fn serve(post: &Post, server: UnixStream) -> u8 {
    let read = server.set_read_timeout(Some(ORDER_TIMEOUT)).and_then(|()| order::receive(&server));
    let Ok(order) = read else {
        // The server is gone, or died in the middle of a word: there is nobody to answer, and nothing was asked.
        return 1;
    };
    match order {
        Order::Run(run) => call(post, &run, server),
        Order::Start(request) => start(post, request, server),
        Order::Fence(request) => reply(&server, fence(post, &request)),
        Order::Cancel(id, wish) => reply(&server, cancel(post, &id, &wish)),
        Order::Settle(id) => reply(&server, settle(post, &id).map(|()| Reply::Done)),
    }
}

fn reply(server: &UnixStream, reply: Result<Reply, SpoolError>) -> u8 {
    let reply = reply.unwrap_or_else(|error| Reply::Refused(Failure::new(ErrorCode::Internal, error.to_string())));
    u8::from(order::send(server, &reply).is_err())
}

/// A synchronous call: this child supervises it.
fn call(post: &Post, run: &MethodRun, server: UnixStream) -> u8 {
    let begun = nix::unistd::setsid().map(drop).and_then(|()| server.set_nonblocking(true).map_err(|_| nix::Error::EBADF));
    let supervised = match begun {
        Ok(()) => supervise(&post.station, run, Charge::Call(server)),
        Err(errno) => Err((errno, Charge::Call(server))),
    };
    let (reply, charge) = match supervised {
        Ok((outcome, charge)) => (Reply::Ended(outcome), charge),
        Err((errno, charge)) => (Reply::Refused(no_process(errno)), charge),
    };
    let Charge::Call(server) = charge else { return 1 };
    let sent = server.set_nonblocking(false).and_then(|()| order::send(&server, &reply));
    u8::from(sent.is_err())
}

/// The start of a job: this child makes the spool, and its child is the job daemon.
fn start(post: &Post, request: SpoolRequest, server: UnixStream) -> u8 {
    let Some(run) = request.run.clone() else { return 1 };
    match Spool::make(&post.spools, &request, None) {
        Ok(Made::New(spool, lock)) => start_daemon(post, &run, spool, lock, server),
        Ok(Made::Exists) => reply(&server, Ok(Reply::Exists)),
        Err(error) => reply(&server, Ok(Reply::Refused(Failure::new(ErrorCode::Undelivered, error.to_string())))),
    }
}

fn start_daemon(post: &Post, run: &MethodRun, spool: Spool, lock: SpoolLock, server: UnixStream) -> u8 {
    // The new session is the daemon's own: this child leaves it at once.
    let forked = match nix::unistd::setsid() {
        Ok(_) => process::fork_with((spool, lock, server), |(spool, lock, server)| daemon::live(post, run, spool, lock, server)),
        Err(errno) => Err((errno, (spool, lock, server))),
    };
    match forked {
        Ok(_) => 0,
        // The spool is there, without a daemon and without an outcome: that reads as lost, never started. Better to say it at once.
        Err((errno, (spool, lock, server))) => {
            let failure = no_process(errno);
            let outcome = Outcome::not_run(Verdict::Undelivered { error: failure.clone() }, Timestamp::now());
            let written = spool.write_outcome(&lock, &outcome);
            reply(&server, written.map(|()| Reply::Refused(failure)))
        }
    }
}

fn fence(post: &Post, request: &SpoolRequest) -> Result<Reply, SpoolError> {
    let message = format!("call {} never started here, and is refused from now on", request.call_id);
    let verdict = Verdict::Undelivered { error: Failure::new(ErrorCode::Fenced, message) };
    let outcome = Outcome::not_run(verdict, request.accepted_at);
    Ok(match Spool::make(&post.spools, request, Some(&outcome))? {
        Made::New(..) => Reply::Done,
        Made::Exists => Reply::Exists,
    })
}

fn cancel(post: &Post, id: &MinionJobId, wish: &CancelRequest) -> Result<Reply, SpoolError> {
    Spool::of(&post.spools, id).ask_to_cancel(wish)?;
    Ok(Reply::Done)
}

/// Writes the outcome of a job whose daemon is dead, once what is left of the job is dead too.
fn settle(post: &Post, id: &MinionJobId) -> Result<(), SpoolError> {
    let spool = Spool::of(&post.spools, id);
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let lock = loop {
        match spool.try_lock()? {
            Some(lock) => break lock,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            // The daemon lives after all.
            None => return Ok(()),
        }
    };
    let Life::Dead(started) = spool.life_under_lock(&lock)? else { return Ok(()) };
    if let Some(cgroups) = &post.station.cgroups {
        cgroups.clear(&spool);
    }
    kill_marked(id, SETTLE_TIMEOUT);
    let mut outcome = Outcome::not_run(spool::lost_reason(started.as_ref(), &post.boot_id), Timestamp::now());
    outcome.started_at = started.map(|started| started.at);
    spool.write_outcome(&lock, &outcome)?;
    daemon::poke(post, id, "");
    Ok(())
}
