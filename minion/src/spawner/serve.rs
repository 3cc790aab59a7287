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
use crate::spool::{self, CancelRequest, Forgotten, Life, Made, Spool, SpoolError, SpoolLock, SpoolRequest};
use crate::supervise::{Charge, Stop, cancelled, kill_marked, supervise};
use crate::user::{self, UserError};

/// How long the server may take to say its order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what is left of a dead daemon's job may take to die.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lock may be held by those who only look.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// Serves the order that comes over `server`; the child's exit status.
pub(super) fn serve(post: &Post, server: UnixStream) -> u8 {
    let read = server.set_read_timeout(Some(ORDER_TIMEOUT)).and_then(|()| order::receive(&server));
    let Ok(order) = read else {
        // The server is gone, or died in the middle of a word: there is nobody to answer, and nothing was asked.
        return 1;
    };
    if let Err(error) = require_user(&order) {
        let problem = format!("{}: {error}", post.station.minion);
        return reply(&server, Ok(Reply::Refused(Failure::new(ErrorCode::Undelivered, problem))));
    }
    match order {
        Order::Run(run) => call(post, &run, server),
        Order::Start(request) => start(post, SpoolRequest { starts_at_once: true, ..request }, server),
        Order::Enqueue(request) => reply(&server, Ok(make(post, &request, None).unwrap_or_else(not_made))),
        Order::Launch(id) => launch(post, &id, server),
        Order::Fence(request) => reply(&server, fence(post, &request)),
        Order::Cancel(id, wish) => reply(&server, cancel(post, &id, &wish)),
        Order::Settle(id) => reply(&server, settle(post, &id).map(|()| Reply::Done)),
        Order::Remove(ids, forgotten) => reply(&server, remove(post, ids, forgotten)),
    }
}

/// That what is ordered could run as the user that it is to run as: nothing is begun that cannot be.
fn require_user(order: &Order) -> Result<(), UserError> {
    let run = match order {
        Order::Run(run) => Some(run),
        Order::Start(request) | Order::Enqueue(request) => request.run.as_ref(),
        Order::Launch(_) | Order::Fence(_) | Order::Cancel(..) | Order::Settle(_) | Order::Remove(..) => None,
    };
    run.and_then(|run| run.run_as.as_deref()).map_or(Ok(()), user::require_in_reach)
}

fn reply(server: &UnixStream, reply: Result<Reply, SpoolError>) -> u8 {
    let reply = reply.unwrap_or_else(|error| Reply::Refused(Failure::new(ErrorCode::Internal, error.to_string())));
    u8::from(order::send(server, &reply).is_err())
}

/// That no spool was made, so that its job can never start; or that this is not known.
fn not_made(error: SpoolError) -> Reply {
    let code = if matches!(error, SpoolError::Doubtful { .. }) { ErrorCode::Lost } else { ErrorCode::Undelivered };
    Reply::Refused(Failure::new(code, error.to_string()))
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
    let made = Spool::make(&post.spools, &request, None);
    match made {
        Ok(Made::New(spool, lock)) => start_daemon(post, request, spool, lock, server),
        Ok(Made::Exists) => reply(&server, Ok(Reply::Exists)),
        Err(error) => reply(&server, Ok(not_made(error))),
    }
}

/// The start of a job that has waited: who holds its lock while it waits is the one who may start it.
fn launch(post: &Post, id: &MinionJobId, server: UnixStream) -> u8 {
    let spool = Spool::of(&post.spools, id);
    let waiting = lock_of(&spool, Life::is_queued).and_then(|lock| match lock {
        Some(lock) => Ok(Some((spool.request()?, lock))),
        None => Ok(None),
    });
    match waiting {
        Ok(Some((request, lock))) => start_daemon(post, request, spool, lock, server),
        Ok(None) => reply(&server, Ok(Reply::Exists)),
        Err(error) => reply(&server, Err(error)),
    }
}

fn make(post: &Post, request: &SpoolRequest, outcome: Option<&Outcome>) -> Result<Reply, SpoolError> {
    Ok(match Spool::make(&post.spools, request, outcome)? {
        Made::New(..) => Reply::Done,
        Made::Exists => Reply::Exists,
    })
}

/// The lock of a spool, if nobody works under it and what its files say is as it is `wanted`.
fn lock_of(spool: &Spool, wanted: impl FnOnce(&Life) -> bool) -> Result<Option<SpoolLock>, SpoolError> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        if let Some(lock) = spool.try_lock()? {
            return Ok(wanted(&spool.life_under_lock(&lock)?).then_some(lock));
        }
        // Its daemon lives; or somebody only looks, which takes him an instant.
        if spool.daemon_lives()? || Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start_daemon(post: &Post, request: SpoolRequest, spool: Spool, lock: SpoolLock, server: UnixStream) -> u8 {
    // The new session is the daemon's own: this child leaves it at once.
    let forked = match nix::unistd::setsid() {
        Ok(_) => process::fork_with((spool, lock, server), |(spool, lock, server)| daemon::live(post, &request, spool, lock, server)),
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
    make(post, request, Some(&outcome))
}

fn cancel(post: &Post, id: &MinionJobId, wish: &CancelRequest) -> Result<Reply, SpoolError> {
    let spool = Spool::of(&post.spools, id);
    spool.ask_to_cancel(wish)?;
    // A daemon that takes the lock from here on finds the wish before it starts anything.
    if let Some(lock) = lock_of(&spool, Life::is_queued)? {
        let first = spool.cancel_request()?.unwrap_or_else(|| wish.clone());
        spool.write_outcome(&lock, &Outcome::not_run(cancelled(&Stop::Cancelled(first)), Timestamp::now()))?;
        daemon::poke(post, id, "");
    }
    Ok(Reply::Done)
}

/// Writes the outcome of a job whose daemon is dead, once what is left of the job is dead too; or in place of one that cannot be read.
fn settle(post: &Post, id: &MinionJobId) -> Result<(), SpoolError> {
    let spool = Spool::of(&post.spools, id);
    // Of a daemon that lives after all, there is nothing to settle.
    let Some(lock) = lock_of(&spool, |_| true)? else { return Ok(()) };
    let outcome = match spool.life_under_lock(&lock)? {
        Life::Dead(started) => {
            let mut outcome = Outcome::not_run(spool::lost_reason(started.as_ref(), &post.boot_id), Timestamp::now());
            outcome.started_at = started.and_then(|started| started.at);
            outcome
        }
        Life::Damaged(how) => {
            spool.keep_damaged_outcome()?;
            Outcome::not_run(Verdict::lost(format!("it has ended, and how cannot be read: {how}")), Timestamp::now())
        }
        // Who asked for what is all that it takes to start it.
        Life::Queued => match spool.request() {
            Err(damage) if damage.is_damage() => Outcome::not_run(Verdict::lost(damage.to_string()), Timestamp::now()),
            _whole_or_to_be_seen => return Ok(()),
        },
        Life::Ended(_) | Life::Running(_) => return Ok(()),
    };
    if let Some(cgroups) = &post.station.cgroups {
        cgroups.clear(&spool);
    }
    kill_marked(id, KILL_TIMEOUT);
    spool.write_outcome(&lock, &outcome)?;
    daemon::poke(post, id, "");
    Ok(())
}

/// One that cannot be removed is left out of the reply, and keeps no other.
fn remove(post: &Post, ids: Vec<MinionJobId>, forgotten: Forgotten) -> Result<Reply, SpoolError> {
    forgotten.save(&post.spools)?;
    Ok(Reply::Removed(ids.into_iter().filter(|id| Spool::of(&post.spools, id).remove().is_ok_and(|is_gone| is_gone)).collect()))
}
