//! A stranger: a process of no job, that was given the number of one that is dead. And how much memory a process has had.

use std::fs;
use std::process::{Child, Stdio};

use crate::{Minion, PATIENCE, Process, processes, wait};

/// Makes the kernel give the number `$1` to a process that sleeps, and says so. Others may get it first, so it tries again.
const TAKE: &str = "while :; do echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid; sleep 3600 & [ $! = $1 ] && break; kill $!; done; wait";

/// A process with a number that another one had. Dropped, it ends.
#[derive(Debug)]
pub struct Stranger {
    shell: Child,
    process: Process,
}

impl Minion {
    /// The number of a process of this host, as the host's own processes see it.
    ///
    /// # Panics
    /// There is no such process.
    #[must_use]
    pub fn own_pid(&self, process: &Process) -> i32 {
        processes::inner_pid(process.pid).unwrap_or_else(|| panic!("{process:?} is gone"))
    }

    /// The process of this host to which its own processes give the number `own_pid`, if there is one.
    #[must_use]
    pub fn process_of_own(&self, own_pid: i32) -> Option<Process> {
        let enclosure = self.enclosure().expect("describe the fleet with own_processes()");
        processes::beside(enclosure.first()).into_iter().find(|process| processes::inner_pid(process.pid) == Some(own_pid))
    }

    /// Gives the number `own_pid` of this host, which must be free, to a process that has nothing to do with any job.
    ///
    /// # Panics
    /// The kernel does not let us.
    #[must_use]
    pub fn stranger(&self, own_pid: i32) -> Stranger {
        wait::wait_until("the number to be free", PATIENCE, || self.process_of_own(own_pid).is_none());
        let enclosure = self.enclosure().expect("describe the fleet with own_processes()");
        let mut command = enclosure.command(&["bash", "-c", TAKE, "stranger", &own_pid.to_string()]);
        let shell = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let sleeps = |process: &Process| process.command == "sleep 3600";
        let process = wait::wait_for("a stranger to take the number", PATIENCE, || self.process_of_own(own_pid).filter(sleeps));
        Stranger { shell, process }
    }
}

impl Stranger {
    /// Whether nobody has killed it.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.process.is_there()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.pid), nix::sys::signal::Signal::SIGKILL);
        let _ = self.shell.wait();
    }
}

impl Process {
    /// Whether it still is this process, and no zombie.
    #[must_use]
    pub fn is_there(&self) -> bool {
        processes::is_alive(self)
    }

    /// The most memory that it has had, in bytes; none if it is gone.
    #[must_use]
    pub fn peak_bytes(&self) -> Option<u64> {
        peak_bytes(self.pid)
    }
}

/// The most memory that the process of that number has had, in bytes; none if there is none.
#[must_use]
pub fn peak_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
