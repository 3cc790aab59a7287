//! Getting at the store: one command at a time, within a bound, whatever state its files are in.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

use super::StoreError;
use super::db::Store;
use super::format::{bring_forward, place};
use crate::fleet::Fleet;

/// How long work on the store may take, waiting for others aside. On a full disk, or one that hangs, sled waits for ever.
const WORK_WITHIN: Duration = Duration::from_secs(30);
/// Where less is free, the store is not touched: sled grows its file by segments of 512 KiB, several at a time.
const FREE_MIN_BYTES: u64 = 4 << 20;

/// Opens the store, does `work` and closes it, waiting for other commands within the configured bound. `work` is done again,
/// on an empty store, if the store turns out to be damaged.
pub(super) fn with_store<R: Send + 'static>(
    fleet: &Fleet,
    work: impl Fn(&Store) -> Result<R, StoreError> + Send + 'static,
) -> Result<R, StoreError> {
    let (path, own) = (fleet.home().store_dir(), fleet.clone());
    let within = fleet.config().store_wait.saturating_add(WORK_WITHIN);
    let (done, end) = channel();
    let worker = move || {
        let mut warnings = Vec::new();
        let result = open_and(&own, &work, &mut warnings);
        // Whoever waited may have given up.
        let _nobody = done.send((result, warnings));
    };
    let spawned = thread::Builder::new().name("store".to_owned()).spawn(worker);
    spawned.map_err(|source| StoreError::File { doing: "starting a thread for", path: path.clone(), source })?;
    match end.recv_timeout(within) {
        Ok((result, warnings)) => {
            warnings.iter().for_each(|warning| fleet.warn(warning));
            result
        }
        Err(_) => Err(StoreError::Stuck { path, waited: within }),
    }
}

fn open_and<R>(fleet: &Fleet, work: &impl Fn(&Store) -> Result<R, StoreError>, warnings: &mut Vec<String>) -> Result<R, StoreError> {
    let usual = fleet.home().store_dir();
    let deadline = Instant::now() + fleet.config().store_wait;
    let busy = || StoreError::Busy { path: usual.clone(), waited: fleet.config().store_wait };
    // Our own lock is held longer than sled's: it also covers setting a damaged store aside. It is the same for every version.
    let _lock = lock(fleet.home().state_dir(), &usual.with_extension("lock"), deadline)?.ok_or_else(busy)?;
    has_room(fleet.home().state_dir())?;
    let (path, newer) = place(&usual);
    warnings.extend(newer);
    let mut attempt = || {
        let is_new = !path.exists();
        let done = catch_unwind(AssertUnwindSafe(|| {
            bring_forward(&path)?;
            let store = Store::open(fleet, &path, deadline)?.ok_or_else(busy)?;
            let done = work(&store)?;
            store.save()?;
            warnings.extend(store.warnings.take());
            Ok(done)
        }));
        let done = done.unwrap_or_else(|_| Err(StoreError::Damaged { path: path.clone(), reason: "sled panicked".to_owned() }));
        if is_new && matches!(done, Err(StoreError::Damaged { .. } | StoreError::File { .. })) {
            // It holds nothing that the logs do not, and half made it would be taken for damaged by the next.
            let _half = fs::remove_dir_all(&path);
        }
        (done, is_new)
    };
    let reason = match attempt() {
        (Err(StoreError::Damaged { reason, .. }), false) => reason,
        (done, _) => return done,
    };
    let aside = set_aside(&path)?;
    let (done, _) = attempt();
    warnings.push(format!(
        "the job store {} is damaged ({reason}); it was set aside as {} and is rebuilt from the job logs",
        path.display(),
        aside.display()
    ));
    done
}

fn has_room(folder: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::File { doing: "looking for room in", path: folder.to_owned(), source };
    let room = statvfs(folder).map_err(|errno| failed(errno.into()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    if free < FREE_MIN_BYTES { Err(failed(io::ErrorKind::StorageFull.into())) } else { Ok(()) }
}

fn lock(folder: &Path, path: &Path, deadline: Instant) -> Result<Option<Flock<File>>, StoreError> {
    let failed = |source| StoreError::File { doing: "locking", path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(Some(file)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if Instant::now() >= deadline {
            return Ok(None);
        }
        pause();
    }
}

/// Between 5 and 20 ms, so that those who wait do not come back all at once.
pub(super) fn pause() {
    let jitter = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() % 16);
    sleep(Duration::from_millis(5 + jitter));
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ")));
    let aside = PathBuf::from(aside);
    let renamed = fs::rename(path, &aside);
    renamed.map(|()| aside).map_err(|source| StoreError::File { doing: "setting aside the damaged", path: path.to_owned(), source })
}
