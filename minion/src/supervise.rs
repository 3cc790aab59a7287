//! Running one method in a child process, until it and everything that it started has ended.
//!
//! The supervisor is the job daemon, or for a synchronous call the spawner's child. It is the subreaper of all that the method starts,
//! so nothing can fork away from it. It neither decides what may run nor keeps what became of it.

mod cgroup;
mod charge;
mod child;
mod chunk;
mod output;
mod progress;
mod tree;

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use serde_json::json;

pub use cgroup::Cgroups;
pub use charge::{Charge, JobCharge, Stop};
pub use tree::{descends, kill_bearing, kill_strays, signal_below};

use crate::config::Limits;
use crate::jobs::MethodRun;
use crate::modules::Registry;
use crate::process::{Death, bury, dead_child};
use crate::worker::Places;
use child::Child;
use chunk::Course;
use common::protocol::map::Chunk;
use progress::Reports;

/// How long after its method's end what is left of the tree may take to die. SIGKILL takes effect at once, except for a process that
/// waits in the kernel, for a dead disk for instance; such a one is left behind after this.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two attempts to kill a tree that may be growing while it is read.
const KILL_AGAIN: Duration = Duration::from_millis(20);

/// What every supervisor knows of its host.
#[derive(Debug)]
pub struct Station {
    /// This host.
    pub minion: MinionName,
    /// What it can do.
    pub registry: Arc<Registry>,
    /// Its bounds.
    pub limits: Limits,
    /// Where to make a cgroup for a job, if the host lets us.
    pub cgroups: Option<Cgroups>,
    /// Where packages of the minion lie that were brought here.
    pub packages: PathBuf,
    /// Where jobs submit calls of their own.
    pub submit_socket: PathBuf,
    /// The resident workers.
    pub workers: Places,
}

/// Why a method was made to stop.
#[derive(Debug)]
enum Ending {
    TimedOut,
    Stopped(Stop),
}

/// A method that runs, and what its supervisor knows of it.
struct Supervision<'a> {
    station: &'a Station,
    run: &'a MethodRun,
    charge: Charge,
    child: Child,
    signals: SignalFd,
    child_status: Option<Death>,
    /// No child is left, neither the method's process nor anything that it left behind.
    childless: bool,
    answer: Vec<u8>,
    /// How far it is, if it is run for a chunk of items; the answer is then what it says of them, as far as that is not a whole line.
    chunk: Option<Course>,
    reports: Reports,
    ending: Option<Ending>,
    limit_at: Instant,
    kill_at: Option<Instant>,
}

/// Runs `run` to its end, or each item of `chunk` in one process, where the limit is that of an item and the result is the `Chunked`; and gives what
/// became of it, with the charge, which the method's process has closed first of all. SIGCHLD must be blocked in the calling process.
///
/// # Errors
/// No process could be made: nothing was started.
pub fn supervise(
    station: &Station,
    run: &MethodRun,
    chunk: Option<&Chunk>,
    charge: Charge,
) -> Result<(Outcome, Charge), (nix::Error, Charge)> {
    let signals = match prepare() {
        Ok(signals) => signals,
        Err(errno) => return Err((errno, charge)),
    };
    let started_at = Timestamp::now();
    let limit_at = Instant::now() + run.limit;
    let (child, charge) = Child::start(station, run, chunk, charge)?;
    let mut supervision = Supervision {
        station,
        run,
        charge,
        child,
        signals,
        child_status: None,
        childless: false,
        answer: Vec::new(),
        chunk: chunk.map(|chunk| Course::of(chunk, run.limit)),
        reports: Reports::default(),
        ending: None,
        limit_at,
        kill_at: None,
    };
    while !supervision.is_over() {
        supervision.wait_for_news();
    }
    let finished_at = Timestamp::now();
    supervision.clear_away();
    let verdict = supervision.judge(finished_at);
    let progress = supervision.reports.into_latest().map(Box::new);
    Ok((Outcome { progress, ..Outcome::ran(verdict, started_at, finished_at) }, supervision.charge))
}

/// Makes this process the one that gets its descendants' orphans, and lets it hear of their ends.
fn prepare() -> nix::Result<SignalFd> {
    nix::sys::prctl::set_child_subreaper(true)?;
    crate::spawner::signal_fd(&[Signal::SIGCHLD])
}

impl Supervision<'_> {
    /// The method's process is gone, and, where it was asked to stop, so is all that it started, or its time is up.
    fn is_over(&self) -> bool {
        let may_tidy_up = self.kill_at.is_some_and(|kill_at| Instant::now() < kill_at);
        self.childless || (self.child_status.is_some() && !may_tidy_up)
    }

    fn wait_for_news(&mut self) {
        let [signalled, stopped, answered, reported, printed] = self.poll();
        if signalled {
            while let Ok(Some(_one_or_more)) = self.signals.read_signal() {}
            self.reap();
        }
        if answered {
            self.read_answer();
        }
        if reported {
            self.reports.hear(&mut self.child.progress);
        }
        if let Charge::Job(job) = &self.charge {
            self.reports.write(|progress| job.spool.write_progress(progress));
        }
        if printed {
            self.child.pump_output(&mut self.charge);
        }
        if self.ending.is_none() && Instant::now() >= self.limit_at {
            // The next item may have begun meanwhile, and has its own time.
            self.read_answer();
        }
        let now = Instant::now();
        if self.ending.is_none() && now >= self.limit_at {
            self.ending = Some(Ending::TimedOut);
            self.kill_at = Some(now);
        } else if stopped
            && self.ending.is_none()
            && let Some(stop) = self.charge.stop()
        {
            self.ending = Some(Ending::Stopped(stop));
            self.kill_at = Some(now + self.station.limits.cancel_grace);
            self.child.signal_tree(Signal::SIGTERM);
        }
        if self.kill_at.is_some_and(|kill_at| now >= kill_at) {
            self.child.signal_tree(Signal::SIGKILL);
        }
    }

    /// Waits for the next event or deadline. Which had news: the signals, the wish to stop, the answer, the progress, the output.
    fn poll(&self) -> [bool; 5] {
        let wishes = self.ending.is_none().then(|| self.charge.wishes());
        let pipes = [&self.child.answer, &self.child.progress].map(|pipe| pipe.as_ref().map(|pipe| pipe.as_fd()));
        let streams = [Some(self.signals.as_fd()), wishes].into_iter().chain(pipes);
        let outputs = self.child.outputs.iter().map(|output| output.as_ref().map(|pipe| pipe.as_fd()));
        let listed: Vec<_> = streams.chain(outputs).enumerate().filter_map(|(which, fd)| Some((which.min(4), fd?))).collect();
        let mut polled: Vec<_> = listed.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let left = self.kill_at.unwrap_or(self.limit_at).saturating_duration_since(Instant::now());
        let wait = if left.is_zero() { KILL_AGAIN } else { left };
        // Rounded up, so that the deadline has passed when the wait is over.
        let wait = self.reports.due_at().map_or(wait, |due| wait.min(due.saturating_duration_since(Instant::now())));
        let timeout = PollTimeout::try_from(wait.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let _interrupted_or_not = poll(&mut polled, timeout);
        let mut news = [false; 5];
        for ((which, _), fd) in listed.iter().zip(&polled) {
            if let Some(place) = news.get_mut(*which) {
                *place |= fd.any().unwrap_or(false);
            }
        }
        news
    }

    /// Takes note of every child that has died, the method's own and orphans.
    fn reap(&mut self) {
        loop {
            match dead_child() {
                Ok(None) => return,
                Ok(Some((pid, death))) => {
                    if pid == self.child.pid {
                        self.child_status = Some(death);
                    }
                    bury(pid);
                }
                Err(_no_child) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    fn read_answer(&mut self) {
        let cap = self.station.limits.result_max_bytes.saturating_mul(2).saturating_add(child::ANSWER_MARGIN_BYTES);
        let Some(pipe) = &mut self.child.answer else { return };
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match pipe.read(&mut chunk) {
                Ok(count) if count > 0 && self.answer.len() <= cap => {
                    self.answer.extend(chunk.iter().take(count));
                    if self.chunk.as_mut().is_some_and(|chunk| chunk.take_in(&mut self.answer)) {
                        self.limit_at = Instant::now() + self.run.limit;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _over => break,
            }
        }
        self.child.answer = None;
    }

    /// Ends what the method left behind, and takes in the last of its answer and output.
    fn clear_away(&mut self) {
        self.read_answer();
        self.reports.hear(&mut self.child.progress);
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while !self.childless && Instant::now() < deadline {
            self.child.signal_tree(Signal::SIGKILL);
            let mut signals = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _woken_or_not = poll(&mut signals, PollTimeout::try_from(KILL_AGAIN).unwrap_or(PollTimeout::ZERO));
            while let Ok(Some(_one_or_more)) = self.signals.read_signal() {}
            self.reap();
        }
        self.child.pump_output(&mut self.charge);
        self.charge.close_output();
        self.child.leave_cgroup();
    }

    /// What became of it, or of each item of a chunk.
    fn judge(&mut self, at: Timestamp) -> Verdict {
        let Some(course) = self.chunk.take() else { return self.verdict() };
        // What is left of a line says nothing.
        self.answer.clear();
        course.verdict(&self.verdict(), at)
    }

    fn verdict(&self) -> Verdict {
        let answer = serde_json::from_slice::<child::Answer>(&self.answer).ok();
        match (answer, &self.ending) {
            (Some(answer @ child::Answer::Ok(_)), _) => answer.verdict(),
            (_, Some(Ending::TimedOut)) => {
                let limit = humane(self.run.limit);
                let message = format!("{} was stopped at its time limit of {limit}", self.run.method);
                Verdict::TimedOut { error: Failure::new(ErrorCode::TimedOut, message) }
            }
            (_, Some(Ending::Stopped(stop))) => cancelled(stop),
            (Some(answer), None) => answer.verdict(),
            (None, None) => {
                let message = format!("{}: its process {} before it gave a result", self.run.method, self.death());
                Verdict::Failed { error: Failure::new(ErrorCode::Crashed, message).with_data(json!({ "type": "crash" })) }
            }
        }
    }

    fn death(&self) -> String {
        match self.child_status {
            Some(death) => death.to_string(),
            None => "ended".to_owned(),
        }
    }
}

/// The verdict on a method that was stopped for this reason.
pub(crate) fn cancelled(stop: &Stop) -> Verdict {
    let error = match stop {
        Stop::Cancelled(wish) => Failure::new(ErrorCode::Cancelled, format!("cancelled by {} at {}", wish.by, wish.at))
            .with_data(json!({ "by": wish.by, "at": wish.at })),
        Stop::HungUp => Failure::new(ErrorCode::Cancelled, "stopped because its caller hung up"),
    };
    Verdict::Cancelled { error }
}

/// A length of time as people write it.
pub(crate) fn humane(period: Duration) -> String {
    jiff::SignedDuration::try_from(period).map_or_else(|_| format!("{period:?}"), |signed| format!("{signed:#}"))
}
