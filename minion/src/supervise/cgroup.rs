//! A cgroup for each job, where cgroup v2 is delegated to us: then nothing of a job can hide, and killing it is one write.
//!
//! Delegation is systemd's word for "this subtree is yours" (`Delegate=yes`); it marks the folder with the extended attribute
//! `user.delegate` or, as root, `trusted.delegate`. Without the mark we keep our hands off and walk the tree of processes instead.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::spool::Spool;

/// Where version 2 is mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How long the dead may take to leave a cgroup.
const EMPTY_TIMEOUT: Duration = Duration::from_millis(500);

/// The cgroup that was delegated to the spawner.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
}

/// The cgroup of one job.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroups {
    /// This process's own cgroup, if it is of version 2 and delegated.
    #[must_use]
    pub fn delegated() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        MOUNTS.iter().map(|mount| Path::new(mount).join(own)).find(|root| is_delegated(root)).map(|root| Self { root })
    }

    fn of(&self, spool: &Spool) -> PathBuf {
        let id = spool.dir().file_name().unwrap_or_default();
        self.root.join(format!("job-{}", id.to_string_lossy()))
    }

    /// A cgroup for the job of `spool`; none if the kernel refuses one more, which costs the job nothing but this.
    pub(super) fn create(&self, spool: &Spool) -> Option<Cgroup> {
        let dir = self.of(spool);
        std::fs::create_dir(&dir).ok().map(|()| Cgroup { dir })
    }

    /// Kills what is left in the cgroup of the job of `spool`, and removes it.
    pub fn clear(&self, spool: &Spool) {
        let cgroup = Cgroup { dir: self.of(spool) };
        if cgroup.dir.is_dir() {
            cgroup.kill();
            cgroup.remove();
        }
    }
}

fn is_delegated(root: &Path) -> bool {
    let is_v2 = statfs(root).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let is_marked = |name: &&str| xattr::get(root, name).ok().flatten().as_deref() == Some(b"1".as_slice());
    is_v2 && ["user.delegate", "trusted.delegate"].iter().any(is_marked)
}

impl Cgroup {
    /// Moves this process in. One that the kernel does not let in runs all the same, and is found by its ancestors.
    pub(super) fn join(&self) {
        let _outside = std::fs::write(self.dir.join("cgroup.procs"), "0");
    }

    /// Kills all that is in it. Kernels before 5.14 cannot; the tree of processes is walked too.
    pub(super) fn kill(&self) {
        let _too_old = std::fs::write(self.dir.join("cgroup.kill"), "1");
    }

    /// Removes it, once what was killed in it is gone. One that is never empty stays, as a sign of what would not die.
    pub(super) fn remove(&self) {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        while std::fs::remove_dir(&self.dir).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
