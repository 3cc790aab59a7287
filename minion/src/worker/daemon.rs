//! A worker's daemon: one loop that waits for whatever comes first, and hands it to who knows what to do. What is done for callers stands in
//! `callers`, for instances in `tasks`, and what time alone brings in `tend`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::config::WorkerConfig;
use super::desk::{Desk, SlotId};
use super::instance::Home;
use super::log::OutputLog;
use super::report::Processes;
use super::slot::Slot;
use super::tend::Stamp;
use super::wire::Wire;
use super::{Places, WorkerError, bind_own, clear_left, too_long};
use crate::process::{Death, bury, dead_child};
use crate::spawner::signal_fd;
use crate::supervise::kill_strays;
use crate::{random, variables};

/// The longest wait, after which the worker's file is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long no connection is taken after one could not be, for want of files for instance: it would be found waiting again and again.
const DEAF_FOR: Duration = Duration::from_millis(50);

/// How long what an instance has left behind may take to die.
const STRAYS_TIMEOUT: Duration = Duration::from_millis(500);

/// All that one daemon has.
pub(super) struct Daemon {
    pub(super) places: Places,
    pub(super) home: Home,
    pub(super) config: Rc<WorkerConfig>,
    /// What its file looked like when it was read, and what is wrong with what stands there now.
    pub(super) stamp: Option<Stamp>,
    pub(super) looked_at: Instant,
    pub(super) config_problem: Option<String>,
    /// Since when the program that this process executes is no longer there, or is another.
    pub(super) program_gone: Option<Instant>,
    pub(super) desk: Desk,
    pub(super) slots: Vec<Slot>,
    pub(super) callers: BTreeMap<u64, Wire>,
    pub(super) callers_met: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) log: OutputLog,
    pub(super) processes: Processes,
    pub(super) began: Instant,
    /// When all instances are replaced next, if the file says when.
    pub(super) restart_at: Option<Timestamp>,
    /// It has been told to end, by then.
    pub(super) ends_by: Option<Instant>,
    control: UnixListener,
    signals: SignalFd,
    deaf: Deafness,
}

/// Whether connections are taken.
#[derive(Debug, Default)]
struct Deafness {
    until: Option<Instant>,
    is_told: bool,
}

/// Where something happened.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Control,
    Caller(u64),
    Door(SlotId),
    Wire(SlotId, u64),
    Output(SlotId),
}

impl Daemon {
    /// Reads the worker's file, clears away what an earlier daemon left, and listens. The lock is held.
    pub(super) fn begin(places: Places, home: Home) -> Result<Self, WorkerError> {
        let file = places.file(&home.worker);
        let stamp = Stamp::of(&file);
        let config = WorkerConfig::load(&file)?;
        let path = places.control(&home.worker);
        if let Some(path) = too_long(&home.folder) {
            return Err(WorkerError::LongPath { path });
        }
        clear_left(&home.folder).map_err(|source| WorkerError::File { doing: "clearing", path: home.folder.clone(), source })?;
        nix::sys::prctl::set_child_subreaper(true)?;
        let signals = signal_fd(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
        let control = bind_own(&path).map_err(|source| WorkerError::File { doing: "listening at", path, source })?;
        let mut daemon = Self { stamp, ..Self::new(places, home, config, (control, signals)) };
        daemon.settle_in();
        tracing::info!(worker = %daemon.home.worker, instances = daemon.config.instances, "a worker's daemon listens");
        Ok(daemon)
    }

    /// One that has heard of nobody yet.
    pub(super) fn new(places: Places, home: Home, config: WorkerConfig, (control, signals): (UnixListener, SignalFd)) -> Self {
        let log = OutputLog::open(home.folder.join("output.log"));
        let now = Instant::now();
        Self {
            places,
            home,
            config: Rc::new(config),
            stamp: None,
            looked_at: now,
            config_problem: None,
            program_gone: None,
            desk: Desk::new(random::word()),
            slots: Vec::new(),
            callers: BTreeMap::new(),
            callers_met: 0,
            done: 0,
            failed: 0,
            log,
            processes: Processes::default(),
            began: now,
            restart_at: None,
            ends_by: None,
            control,
            signals,
            deaf: Deafness::default(),
        }
    }

    /// Waits for the next thing, and does what follows; `false` when all is over.
    pub(super) fn turn(&mut self) -> Result<bool, WorkerError> {
        let now = Instant::now();
        self.tend(now);
        self.deaf.until = self.deaf.until.filter(|until| *until > now);
        if self.is_over() {
            return Ok(false);
        }
        for (source, may_write) in self.wait()? {
            self.serve(source, may_write)?;
        }
        self.drop_callers();
        self.deal();
        Ok(true)
    }

    /// The slot of that number.
    pub(super) fn slot(&mut self, number: SlotId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.number == number)
    }

    /// What has something to be read, or takes more of what is to be written.
    fn wait(&self) -> Result<Vec<(Source, bool)>, WorkerError> {
        let listed = self.sources();
        let mut fds: Vec<_> = listed.iter().map(|(_, fd, wanted)| PollFd::new(*fd, *wanted)).collect();
        let due = self.next_due().min(self.looked_at + LOOK_EVERY);
        let left = self.deaf.until.map_or(due, |until| due.min(until)).saturating_duration_since(Instant::now());
        // Rounded up, so that what is due is due when the wait is over.
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        let news = listed.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(false));
        Ok(news.map(|((source, _, _), fd)| (*source, fd.revents().is_some_and(|events| events.contains(PollFlags::POLLOUT)))).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let wishes = |wire: &Wire| {
            let reads = if wire.is_stuck() { PollFlags::empty() } else { PollFlags::POLLIN };
            if wire.is_full() { reads | PollFlags::POLLOUT } else { reads }
        };
        let takes_connections = self.deaf.until.is_none();
        let mut all = vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        if takes_connections {
            all.push((Source::Control, self.control.as_fd(), PollFlags::POLLIN));
        }
        all.extend(self.callers.iter().map(|(caller, wire)| (Source::Caller(*caller), wire.as_fd(), wishes(wire))));
        for slot in &self.slots {
            let Some(instance) = &slot.instance else { continue };
            if takes_connections {
                all.push((Source::Door(slot.number), instance.door.as_fd(), PollFlags::POLLIN));
            }
            all.extend(instance.wires.iter().map(|(id, wire)| (Source::Wire(slot.number, *id), wire.as_fd(), wishes(wire))));
            all.extend(instance.output.as_ref().map(|pipe| (Source::Output(slot.number), pipe.as_fd(), PollFlags::POLLIN)));
        }
        all
    }

    fn serve(&mut self, source: Source, may_write: bool) -> Result<(), WorkerError> {
        match source {
            Source::Signals => return self.hear_signals(),
            Source::Control => self.meet_callers(),
            Source::Caller(caller) => {
                if may_write && let Some(wire) = self.callers.get_mut(&caller) {
                    wire.flush();
                }
                self.hear_caller(caller);
            }
            Source::Door(slot) => {
                if let Some(instance) = self.slot(slot).and_then(|slot| slot.instance.as_mut()) {
                    let taken = instance.accept();
                    self.hear_or_not(taken);
                }
            }
            Source::Wire(slot, wire) => {
                if may_write && let Some(wire) = self.wire(slot, wire) {
                    wire.flush();
                }
                self.hear_instance(slot, wire);
            }
            Source::Output(slot) => {
                let log = &mut self.log;
                let instance = self.slots.iter_mut().find(|found| found.number == slot).and_then(|slot| slot.instance.as_mut());
                if let Some(instance) = instance {
                    instance.pump_output(log);
                }
            }
        }
        Ok(())
    }

    /// The next connections of callers.
    fn meet_callers(&mut self) {
        let taken = loop {
            match accepted(&self.control) {
                Ok(Some(stream)) => self.meet(stream),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.hear_or_not(taken);
    }

    /// Where a connection could not be taken, none is for a moment. Whoever waits goes on waiting, and what is under way goes on.
    fn hear_or_not(&mut self, taken: io::Result<()>) {
        let Err(error) = taken else {
            self.deaf = Deafness::default();
            return;
        };
        if !self.deaf.is_told {
            let worker = &self.home.worker;
            tracing::error!(%worker, %error, "a worker's daemon cannot take a connection; who waits goes on waiting, and it is tried again and again");
        }
        self.deaf = Deafness { until: Some(Instant::now() + DEAF_FOR), is_told: true };
    }

    fn hear_signals(&mut self) -> Result<(), WorkerError> {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let is_childs = i32::try_from(signal.ssi_signo).is_ok_and(|number| number == Signal::SIGCHLD as i32);
            if !is_childs {
                self.end("was told to end");
            }
        }
        self.reap()
    }

    /// Takes note of every child that has died: an instance, a health check, or an orphan of one.
    fn reap(&mut self) -> Result<(), WorkerError> {
        loop {
            match dead_child() {
                Ok(None) | Err(Errno::ECHILD) => return Ok(()),
                Ok(Some((pid, death))) => {
                    self.child_died(pid, death);
                    bury(pid);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn child_died(&mut self, pid: Pid, death: Death) {
        let of_instance = |slot: &&mut Slot| slot.instance.as_ref().is_some_and(|instance| instance.pid == pid);
        if let Some(slot) = self.slots.iter_mut().find(of_instance) {
            let number = slot.number;
            if let Some(instance) = &mut slot.instance {
                instance.clear_away(&mut self.log);
            }
            self.kill_strays(number);
            self.hear_last(number);
            self.lose_task(number, death);
            let home = &self.home;
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) {
                slot.died(home, death);
            }
            return;
        }
        self.check_ended(pid, death);
    }

    /// Kills what the instance has left behind, whatever it has made of itself: all that is below this process, but not the other instances, nor what is theirs.
    fn kill_strays(&self, dead: SlotId) {
        let others = self.slots.iter().filter(|slot| slot.number != dead).filter_map(|slot| slot.instance.as_ref());
        let (processes, sockets): (Vec<_>, Vec<_>) = others.map(|instance| (instance.processes(), instance.socket())).unzip();
        kill_strays(&processes.concat(), (variables::WORKER_SOCKET, &sockets), STRAYS_TIMEOUT);
    }

    /// Hears what a dead instance has said and nobody has read yet: a result among it is one.
    fn hear_last(&mut self, number: SlotId) {
        let instance = self.slot(number).and_then(|slot| slot.instance.as_ref());
        let wires: Vec<u64> = instance.map(|instance| instance.wires.keys().copied().collect()).unwrap_or_default();
        for wire in wires {
            if let Some(wire) = self.wire(number, wire) {
                wire.flush();
            }
            self.hear_instance(number, wire);
            while self.wire(number, wire).is_some_and(|wire| wire.has_more()) {
                self.hear_instance(number, wire);
            }
        }
    }
}

/// The next connection that waits; none if nobody does.
pub(super) fn accepted(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
