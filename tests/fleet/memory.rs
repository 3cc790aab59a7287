//! A bound on the memory of a job's own processes: a cgroup that the job's command joins by itself. The kernel kills what goes beyond it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{PATIENCE, wait};

/// Set where cgroups cannot be had: then tests of memory show nothing.
const WITHOUT: &str = "FLEET_WITHOUT_CGROUPS";
/// Where the memory controller is: of version 1, of version 2.
const PLACES: [(&str, &str); 2] = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
/// What the folders are called, before the number of the process that made them.
const NAME: &str = "fleet-memory-";

static MADE: AtomicU32 = AtomicU32::new(0);

/// A cgroup with a bound. Dropped, it is removed.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    /// A cgroup whose processes have `bytes` together; none if `FLEET_WITHOUT_CGROUPS` is set.
    ///
    /// # Panics
    /// This machine lets us make none.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        if std::env::var_os(WITHOUT).is_some() {
            return None;
        }
        let made = PLACES.iter().find_map(|(root, file)| {
            sweep(Path::new(root));
            let folder = Path::new(root).join(format!("{NAME}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
            fs::create_dir(&folder).ok()?;
            let limit = Self { folder };
            fs::write(limit.folder.join(file), bytes.to_string()).ok().map(|()| limit)
        });
        assert!(made.is_some(), "no cgroup with a memory limit can be made here, as root or otherwise; set {WITHOUT}=1 to do without");
        made
    }

    /// The shell command that joins it.
    #[must_use]
    pub fn join(&self) -> String {
        format!("echo $$ > {}", self.folder.join("cgroup.procs").display())
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if !wait::until(PATIENCE, || fs::remove_dir(&self.folder).is_ok()) {
            eprintln!("{} cannot be removed", self.folder.display());
        }
    }
}

/// Removes what tests left behind that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(NAME).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may have been faster.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
