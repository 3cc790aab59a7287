//! For the fuzz targets alone: a daemon with instances that are no processes and callers that are nobody's, each at the other end of a socket
//! that has no name. Nothing is executed, written or waited for.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::Places;
use super::config::WorkerConfig;
use super::daemon::Daemon;
use super::desk::{Desk, SlotId};
use super::instance::{Home, Instance};
use super::slot::Slot;
use super::wire::Wire;

/// No process, and no group, has this number: the kernel gives out none above 2^22.
const NOBODY: Pid = Pid::from_raw(i32::MAX);
/// The one connection of each instance.
const WIRE: u64 = 1;
/// What the ids of the tasks begin with.
const WORD: &str = "fuzz";

/// Who speaks to the daemon: an instance or a caller, by its number from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A process that works.
    Instance(usize),
    /// A method's process.
    Caller(usize),
}

/// A task that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// For whom it is.
    pub by: String,
    /// Which of the callers that are connected has asked for it.
    pub caller: Option<usize>,
    /// Which instance has it.
    pub holder: Option<usize>,
    /// It is to stop.
    pub is_to_stop: bool,
}

/// A daemon, and the other ends of all its connections.
pub struct Stage {
    daemon: Daemon,
    instances: Vec<UnixStream>,
    /// Each with the number under which the daemon knows it.
    callers: Vec<(u64, UnixStream)>,
}

impl Stage {
    /// A worker as the file `config` describes it, with all its instances, and `callers` callers.
    ///
    /// # Errors
    /// The file is wrong, or there is no socket to be had.
    pub fn begin(config: &str, callers: usize) -> io::Result<Self> {
        let config = WorkerConfig::parse(Path::new("fuzz.toml"), config).map_err(io::Error::other)?;
        let (minion, worker) = (WORD.parse().map_err(io::Error::other)?, WORD.parse().map_err(io::Error::other)?);
        let nowhere = PathBuf::from("/nonexistent");
        let places = Places { configs: nowhere.clone(), state: nowhere.clone() };
        let ends = (listener()?, SignalFd::new(&SigSet::empty())?);
        let mut daemon = Daemon::new(places, Home { minion, worker, folder: nowhere }, config, ends);
        daemon.desk = Desk::new(WORD.to_owned());
        let mut stage = Self { daemon, instances: Vec::new(), callers: Vec::new() };
        let config = Rc::clone(&stage.daemon.config);
        for number in 1..=config.instances {
            stage.add_instance(number, &config)?;
        }
        for _ in 0..callers {
            let caller = stage.connect()?;
            stage.callers.push(caller);
        }
        Ok(stage)
    }

    fn add_instance(&mut self, number: SlotId, config: &Rc<WorkerConfig>) -> io::Result<()> {
        let (ours, theirs) = pair()?;
        let mut instance = Instance::new(NOBODY, config, listener()?, PathBuf::new());
        instance.wires.insert(WIRE, Wire::new(theirs, instance.line_max())?);
        let mut slot = Slot::new(number);
        slot.instance = Some(instance);
        self.daemon.slots.push(slot);
        self.instances.push(ours);
        Ok(())
    }

    fn connect(&mut self) -> io::Result<(u64, UnixStream)> {
        let (ours, theirs) = pair()?;
        self.daemon.meet(theirs);
        Ok((self.daemon.callers_met, ours))
    }

    /// These bytes, and the end of a line, come from `actor`, and the daemon does what follows.
    pub fn say(&mut self, actor: Actor, bytes: &[u8]) {
        let stream = match actor {
            Actor::Instance(at) => self.instances.get_mut(at),
            Actor::Caller(at) => self.callers.get_mut(at).map(|(_, stream)| stream),
        };
        let Some(stream) = stream else { return };
        // What does not go through at once is too long for a line anyway.
        let _cut = stream.write_all(bytes).and_then(|()| stream.write_all(b"\n"));
        match actor {
            Actor::Instance(at) => self.daemon.hear_instance(at + 1, WIRE),
            Actor::Caller(at) => {
                let caller = self.callers.get(at).map_or(0, |(caller, _)| *caller);
                self.daemon.hear_caller(caller);
            }
        }
        self.daemon.drop_callers();
        self.daemon.deal();
    }

    /// A caller hangs up, and another takes its place.
    ///
    /// # Errors
    /// There is no socket to be had.
    pub fn hang_up(&mut self, caller: usize) -> io::Result<()> {
        let next = self.connect()?;
        let Some(place) = self.callers.get_mut(caller) else { return Ok(()) };
        let (gone, stream) = std::mem::replace(place, next);
        drop(stream);
        self.daemon.hear_caller(gone);
        self.daemon.drop_callers();
        self.daemon.deal();
        Ok(())
    }

    /// The lines that `actor` has heard since the last time.
    pub fn heard(&mut self, actor: Actor) -> Vec<String> {
        let stream = match actor {
            Actor::Instance(at) => self.instances.get_mut(at),
            Actor::Caller(at) => self.callers.get_mut(at).map(|(_, stream)| stream),
        };
        let mut bytes = Vec::new();
        // It ends with what there is: it does not block.
        let _would_block = stream.map(|stream| stream.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }

    /// The tasks that have not ended.
    #[must_use]
    pub fn tasks(&self) -> Vec<Seen> {
        let caller = |number: u64| self.callers.iter().position(|(known, _)| *known == number);
        let seen = |(holder, task): (Option<SlotId>, &super::desk::Task)| Seen {
            id: task.id.clone(),
            by: task.by.clone(),
            caller: caller(task.ticket.caller),
            holder: holder.map(|slot| slot.saturating_sub(1)),
            is_to_stop: task.wish.is_some(),
        };
        self.daemon.desk.all().map(seen).collect()
    }
}

/// A listener to whom nobody finds.
fn listener() -> io::Result<UnixListener> {
    Ok(UnixListener::from(OwnedFd::from(UnixStream::pair()?.0)))
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}
