//! One order, or several that only look, served by a child of the spawner.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::identity::CallerName;
use common::job::retention::KEPT_AT_LEAST;
use common::job::{CallId, MinionJobId};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::claims::Claimant;
use super::look::not_what_it_says;
use super::order::{self, Heard, Look, Order, Place, Reply};
use super::verify::Warrant;
use super::{Post, daemon, no_process};
use crate::acl::Scope;
use crate::call::{Ask, Form, START_AHEAD_MAX};
use crate::guard::Way;
use crate::modules::JobsCall;
use crate::process;
use crate::spool::{self, CancelRequest, Followup, Forgotten, Life, Made, Spool, SpoolError, SpoolLock, SpoolRequest};
use crate::supervise::{Charge, Stop, cancelled, kill_bearing, supervise};
use crate::variables;

/// How long the server may take to say its order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to say the next one, of those that only look.
const NEXT_LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// How long what is left of a dead daemon's job may take to die.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lock may be held by those who only look.
const LOCK_TIMEOUT: Duration = Duration::from_millis(100);

/// Serves the orders that come over `server`; the child's exit status.
pub(super) fn serve(post: &Post, claimant: Claimant, server: UnixStream) -> u8 {
    let max_bytes = order_max_bytes(post);
    match order::hear(&server, ORDER_TIMEOUT, max_bytes) {
        Ok(Heard::Order(order)) => match *order {
            Order::Look(look) => serve_looks(post, look, &claimant, &server, max_bytes),
            order => act(post, order, claimant, server),
        },
        Ok(Heard::Strange(answer)) => reply(&server, Ok(answer)),
        // The server is gone, or died in the middle of a word: there is nobody to answer, and nothing was asked.
        Ok(Heard::End) | Err(_) => 1,
    }
}

/// A call stands in an order as JSON text in JSON text, and there is a certificate beside it.
fn order_max_bytes(post: &Post) -> usize {
    const MARGIN_BYTES: usize = 64 * 1024;
    usize::try_from(post.station.limits.body_max_bytes).unwrap_or(usize::MAX).saturating_mul(2).saturating_add(MARGIN_BYTES)
}

/// Who has looked may only look again, until he is refused: what was true when this process was forked may be true no more.
fn serve_looks(post: &Post, first: Look, claimant: &Claimant, server: &UnixStream, max_bytes: usize) -> u8 {
    let mut look = first;
    loop {
        let reply = post.look(look);
        let is_refused = matches!(reply, Reply::Refused(_));
        if order::send(server, &reply).is_err() || is_refused || !another_comes(claimant, server) {
            return 0;
        }
        let Ok(Heard::Order(order)) = order::hear(server, ORDER_TIMEOUT, max_bytes) else { return 0 };
        let Order::Look(next) = *order else { return 0 };
        look = next;
    }
}

/// Waits for the next look; `false` if none comes, or the spawner is gone: another one, of another version maybe, answers then.
fn another_comes(claimant: &Claimant, server: &UnixStream) -> bool {
    let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN), PollFd::new(claimant.socket().as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(NEXT_LOOK_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let is_heard = poll(&mut fds, timeout).is_ok_and(|count| count > 0);
    let [server, spawner] = fds.map(|fd| fd.any().unwrap_or(false));
    is_heard && server && !spawner
}

fn act(post: &Post, order: Order, claimant: Claimant, server: UnixStream) -> u8 {
    let order = match order {
        Order::Run(ask) => return call(post, &ask, claimant, server),
        Order::Tell(ask) => return reply(&server, tell(post, ask, claimant)),
        other => other,
    };
    // What else is forked from here needs no way to the spawner.
    drop(claimant);
    match order {
        Order::Start(place) => start(post, place, server),
        Order::Enqueue(place) => reply(&server, enqueue(post, place)),
        Order::Launch(id) => launch(post, &id, server),
        Order::Settle(id) => reply(&server, settle(post, &id).map(|()| Reply::Done)),
        Order::Remove(ids) => reply(&server, remove(post, ids, |age| age >= KEPT_AT_LEAST)),
        Order::Run(_) | Order::Tell(_) | Order::Look(_) => 1,
    }
}

fn reply(server: &UnixStream, reply: Result<Reply, SpoolError>) -> u8 {
    let reply = reply.unwrap_or_else(|error| Reply::Refused(error.into()));
    u8::from(order::send(server, &reply).is_err())
}

/// That no spool was made, so that its job can never start; or that this is not known.
fn not_made(error: SpoolError) -> Reply {
    let code = if matches!(error, SpoolError::Doubtful { .. }) { ErrorCode::Lost } else { ErrorCode::Undelivered };
    Reply::Refused(Failure::new(code, error.to_string()))
}

/// A synchronous call: this child supervises it.
fn call(post: &Post, ask: &Ask, claimant: Claimant, server: UnixStream) -> u8 {
    let verified = post.identify(ask).and_then(|known| {
        post.claim(ask, &known, claimant)?;
        let way = if known.call.form == Form::Map { Way::Map } else { Way::Run };
        let warrant = post.admit(ask, known, way)?;
        let chunk = if way == Way::Map { Some(warrant.call.chunk()?) } else { None };
        Ok((warrant, chunk))
    });
    let (Warrant { call, passed, .. }, chunk) = match verified {
        Ok(verified) => verified,
        Err(failure) => return reply(&server, Ok(Reply::Refused(failure))),
    };
    let run = post.guard.method_run(&call, passed);
    let begun = nix::unistd::setsid().map(drop).and_then(|()| server.set_nonblocking(true).map_err(|_| nix::Error::EBADF));
    let supervised = match begun {
        Ok(()) => supervise(&post.station, &run, chunk.as_ref(), Charge::Call(server)),
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
fn start(post: &Post, place: Place, server: UnixStream) -> u8 {
    let request = match wanted(post, place, true) {
        Ok(Wanted::Job(request)) => *request,
        Ok(Wanted::Nothing(why)) => return reply(&server, Ok(why)),
        Err(error) => return reply(&server, Err(error)),
    };
    match Spool::make(&post.spools, &request, None) {
        Ok(Made::New(spool, lock)) => start_daemon(post, request, spool, lock, server),
        Ok(Made::Exists) => reply(&server, Ok(Reply::Exists)),
        Err(error) => reply(&server, Ok(not_made(error))),
    }
}

fn enqueue(post: &Post, place: Place) -> Result<Reply, SpoolError> {
    Ok(match wanted(post, place, false)? {
        Wanted::Job(request) => make(post, &request, None).unwrap_or_else(not_made),
        Wanted::Nothing(why) => why,
    })
}

/// What comes of a call for a job.
enum Wanted {
    /// It is to have a spool, with this in it.
    Job(Box<SpoolRequest>),
    /// There is nothing to make.
    Nothing(Reply),
}

fn wanted(post: &Post, place: Place, starts_at_once: bool) -> Result<Wanted, SpoolError> {
    let Place { ask, accepted_at } = place;
    let refused = |failure| Ok(Wanted::Nothing(Reply::Refused(failure)));
    let known = match post.identify(&ask) {
        Ok(known) => known,
        Err(failure) => return refused(failure),
    };
    let (caller, call_id) = (known.call.envelope.caller.clone(), known.call.envelope.call_id.clone());
    let start_before = known.call.envelope.start_before;
    let minion_job_id = MinionJobId::derive(&ask.minion, &caller, &call_id);
    if Spool::of(&post.spools, &minion_job_id).exists()? {
        return Ok(Wanted::Nothing(Reply::Exists));
    }
    let Warrant { call, passed, signer } = match post.admit(&ask, known, Way::Start) {
        Ok(warrant) => warrant,
        Err(failure) => return refused(failure),
    };
    // Where a job was given up there is no spool any more to say that it has run.
    if forgotten(post)?.may_hold(start_before) {
        let message =
            format!("too late: jobs that could be started until {start_before} have been given up here, and it may be one of them");
        return refused(Failure::new(ErrorCode::TooLate, message));
    }
    if let Some(parent) = &signer.parent {
        let limit = post.station.limits.followups_max;
        let message = match Spool::of(&post.spools, parent).add_followup(&minion_job_id, limit)? {
            Followup::Named => None,
            Followup::TooMany => {
                Some(format!("the job {parent} has submitted {limit} jobs, and limits.followups_max lets it submit no more"))
            }
            Followup::TooLate => Some(format!("the job {parent} has ended, and submits nothing any more")),
        };
        if let Some(message) = message {
            return refused(Failure::new(ErrorCode::LimitReached, message));
        }
    }
    let run = Some(post.guard.method_run(&call, passed));
    let certificate = signer.certificate;
    let ask = Some(ask);
    let request = SpoolRequest { minion_job_id, run, caller, call_id, ask, certificate, start_before, accepted_at, starts_at_once };
    Ok(Wanted::Job(Box::new(request)))
}

/// What was given up. Where that is damaged anything may have been.
fn forgotten(post: &Post) -> Result<Forgotten, SpoolError> {
    match Forgotten::load(&post.spools) {
        Err(damage) if damage.is_damage() => {
            tracing::error!(%damage, "what was given up is not known any more: a call that is not found may have run, and is called lost");
            let everything = Forgotten::everything_until(Timestamp::now());
            everything.save(&post.spools).map(|()| everything)
        }
        loaded => loaded,
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

/// What a caller wants of a job that is there, or of one that is never to be.
fn tell(post: &Post, ask: Ask, claimant: Claimant) -> Result<Reply, SpoolError> {
    let told = post.identify(&ask).and_then(|known| {
        post.claim(&ask, &known, claimant)?;
        let Warrant { call, passed, .. } = post.admit(&ask, known, Way::Jobs)?;
        let asked = JobsCall::read(passed.method, passed.args)?;
        Ok((asked, call.envelope.caller, passed.scope))
    });
    let (asked, caller, scope) = match told {
        Ok(told) => told,
        Err(failure) => return Ok(Reply::Refused(failure)),
    };
    match asked {
        JobsCall::Fence(call_id) => fence(post, ask, caller, call_id),
        JobsCall::Cancel(id) if is_seen(post, &id, &caller, scope)? => cancel(post, &id, caller),
        JobsCall::Delete(id) if is_seen(post, &id, &caller, scope)? => remove(post, vec![id], |_| true),
        JobsCall::Cancel(id) | JobsCall::Delete(id) => {
            let message = format!("this host knows no job {id} of {caller}");
            Ok(Reply::Refused(Failure::new(ErrorCode::UnknownJob, message)))
        }
        JobsCall::Status(_) | JobsCall::List | JobsCall::Logs(_) | JobsCall::Wait(_) => Ok(Reply::Refused(not_what_it_says(&ask))),
    }
}

/// Whether there is such a job, and the caller may hear of it.
fn is_seen(post: &Post, id: &MinionJobId, caller: &CallerName, scope: Scope) -> Result<bool, SpoolError> {
    let spool = Spool::of(&post.spools, id);
    match scope {
        Scope::All => spool.exists(),
        Scope::Own => Ok(spool.exists()? && spool.request()?.caller == *caller),
    }
}

fn fence(post: &Post, ask: Ask, caller: CallerName, call_id: CallId) -> Result<Reply, SpoolError> {
    let minion_job_id = MinionJobId::derive(&ask.minion, &caller, &call_id);
    if Spool::of(&post.spools, &minion_job_id).exists()? {
        return Ok(Reply::Exists);
    }
    if forgotten(post)?.may_have_run(&caller, &call_id) {
        let message = "jobs as old as that have been given up here (see [retention]): whether it ran is not known";
        return Ok(Reply::Refused(Failure::new(ErrorCode::Lost, message)));
    }
    let now = Timestamp::now();
    let message = format!("call {call_id} never started here, and is refused from now on");
    let verdict = Verdict::Undelivered { error: Failure::new(ErrorCode::Fenced, message) };
    // It stands in the way of the call for as long as any call may be on its way.
    let start_before = now.saturating_add(START_AHEAD_MAX).unwrap_or(Timestamp::MAX);
    let request = SpoolRequest {
        minion_job_id,
        run: None,
        caller,
        call_id,
        ask: Some(ask),
        certificate: None,
        start_before,
        accepted_at: now,
        starts_at_once: false,
    };
    make(post, &request, Some(&Outcome::not_run(verdict, now)))
}

fn cancel(post: &Post, id: &MinionJobId, by: CallerName) -> Result<Reply, SpoolError> {
    let (spool, wish) = (Spool::of(&post.spools, id), CancelRequest { by, at: Timestamp::now() });
    spool.ask_to_cancel(&wish)?;
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
            outcome.progress = spool.progress().map(Box::new);
            outcome.followup = spool.followups().unwrap_or_default();
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
    kill_bearing(variables::JOB, id.as_str().as_ref(), KILL_TIMEOUT);
    spool.write_outcome(&lock, &outcome)?;
    daemon::poke(post, id, "");
    Ok(())
}

/// Removes the spools of jobs that have ended, whose calls can come no more, and which `may_go` by how long ago that was; it is written down first that
/// they are forgotten. One that stays is left out of the reply, and keeps no other.
fn remove(post: &Post, ids: Vec<MinionJobId>, may_go: impl Fn(Duration) -> bool) -> Result<Reply, SpoolError> {
    let (mut forgotten, now) = (Forgotten::default(), Timestamp::now());
    let (mut going, mut removed) = (Vec::new(), Vec::new());
    for id in ids {
        let spool = Spool::of(&post.spools, &id);
        if !spool.exists()? {
            removed.push(id);
        } else if let Ok(request) = spool.request()
            && request.start_before < now
            && let Ok(Some(ended_at)) = spool.ended_at(&request)
            // A clock that was ahead and is right again must not keep it for ever: the caller's is another one.
            && Duration::try_from(now.duration_since(ended_at).max(now.duration_since(request.start_before))).is_ok_and(&may_go)
        {
            forgotten.add(&request.caller, &request.call_id, request.start_before);
            going.push((id, spool));
        }
    }
    if !going.is_empty() {
        forgotten.save(&post.spools)?;
    }
    removed.extend(going.into_iter().filter(|(_, spool)| spool.remove().is_ok_and(|is_gone| is_gone)).map(|(id, _)| id));
    Ok(Reply::Removed(removed))
}
