//! The spawner that the keeper has started: whether it listens, and when the next one is started if it has died. Nothing here waits but
//! [`Kept::end`].

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::spawner::{self, READY};

/// How long a spawner may take until it listens: a busy disk takes seconds for its first files.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before one that died is followed by the next: after the first death, and after many.
const PAUSE_LEAST: Duration = Duration::from_millis(10);
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// One that lived so long makes its deaths count from the first again.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// How long one may take to end, once nobody holds its stdin.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The spawner, or the pause until the next one.
#[derive(Debug)]
pub(super) struct Kept {
    config: PathBuf,
    /// None: it is dead.
    process: Option<Child>,
    /// Where it says that it listens; none once it has.
    voice: Option<ChildStdout>,
    /// Since when it is as it is: starting, listening or dead.
    since: Instant,
    /// How long it is dead before the next one is started.
    pause: Duration,
}

/// What has become of it.
#[derive(Debug)]
pub(super) enum News {
    /// Nothing.
    None,
    /// It listens from now on.
    Listens,
    /// It has died in this way, or there was none to be had. The next one follows.
    Died(String),
}

impl Kept {
    /// Starts the first one.
    pub(super) fn start(config: &Path) -> io::Result<Self> {
        let mut kept = Self { config: config.to_owned(), process: None, voice: None, since: Instant::now(), pause: PAUSE_LEAST };
        kept.execute()?;
        Ok(kept)
    }

    /// Where it says that it listens, until it has.
    pub(super) fn voice(&self) -> Option<BorrowedFd<'_>> {
        self.voice.as_ref().map(ChildStdout::as_fd)
    }

    /// In how long [`Kept::look`] has something to do, if nothing is heard before; none: never.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let patience = match (&self.process, &self.voice) {
            (None, _) => self.pause,
            (Some(_), Some(_)) => READY_TIMEOUT,
            (Some(_), None) => return None,
        };
        Some(patience.saturating_sub(self.since.elapsed()))
    }

    /// Does what is due. `has_spoken`: its voice has something to be heard, or has gone.
    pub(super) fn look(&mut self, has_spoken: bool) -> News {
        let is_due = self.due_in().is_some_and(|due_in| due_in.is_zero());
        let Some(process) = &mut self.process else {
            return if is_due { self.execute().map_or_else(|error| self.died(error.to_string()), |()| News::None) } else { News::None };
        };
        match process.try_wait() {
            Ok(None) if has_spoken => self.hear(),
            Ok(None) if is_due => self.died(format!("it did not listen within {READY_TIMEOUT:?}")),
            Ok(None) => News::None,
            Ok(Some(status)) => self.died(status.to_string()),
            Err(error) => self.died(error.to_string()),
        }
    }

    /// Lets go of it, waits until it has ended, and kills it if it does not end.
    pub(super) fn end(mut self, signals: &SignalFd) {
        let Some(mut process) = self.process.take() else { return };
        drop(process.stdin.take());
        let until = Instant::now() + END_TIMEOUT;
        while matches!(process.try_wait(), Ok(None)) && Instant::now() < until {
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            let _woken = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], left);
            let _heard = signals.read_signal();
        }
        kill(&mut process);
    }

    /// It begins to live, and holds its stdin until we let go of it.
    fn execute(&mut self) -> io::Result<()> {
        let mut process = spawner::command(&self.config).spawn()?;
        self.voice = process.stdout.take();
        self.process = Some(process);
        self.since = Instant::now();
        Ok(())
    }

    fn hear(&mut self) -> News {
        let mut said = [0; READY.len()];
        let heard = self.voice.take().map(|mut voice| voice.read(&mut said));
        match heard {
            Some(Ok(length)) if said.get(..length) == Some(READY) => {
                self.since = Instant::now();
                News::Listens
            }
            _nothing_or_something_else => self.died("it ended before it listened".to_owned()),
        }
    }

    /// Nothing is left of it, and the next one has to wait a little longer than it had, unless it was well for a while.
    fn died(&mut self, why: String) -> News {
        let was_well = self.process.is_some() && self.voice.is_none() && self.since.elapsed() >= WELL_AFTER;
        if let Some(mut process) = self.process.take() {
            kill(&mut process);
        }
        self.pause = if was_well { PAUSE_LEAST } else { (self.pause * 2).min(PAUSE_MOST) };
        self.voice = None;
        self.since = Instant::now();
        News::Died(why)
    }
}

fn kill(process: &mut Child) {
    let _has_ended = process.kill().and_then(|()| process.wait());
}
