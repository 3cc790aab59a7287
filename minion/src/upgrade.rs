//! Another package of the minion in the place of the one that runs, with a way back.
//!
//! A job asks for it, and must not be what does it: the minion is restarted meanwhile, and a job can be cancelled, or killed at its time limit, in the
//! middle of an installation. So the work is done by a unit of its own, a copy of the program that runs now (`unit`, `worker`), which a boot starts again
//! where the host went down meanwhile. The job prepares it, starts it, and waits for what it writes.

mod command;
mod compare;
mod manager;
mod repack;
mod unit;
mod units;
mod worker;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::format::Program;
use common::outcome::Failure;
use common::protocol::package::PackageId;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::packages::Packages;
use manager::{Manager, Package};
pub(crate) use repack::repack;
pub(crate) use worker::work;

/// The package of which there is another.
const PACKAGE: &str = Program::Minion.package();
/// The program as the package installs it.
const PROGRAM: &str = "/usr/bin/minion";
/// Installing twice, for which it may have to wait for others, and looking twice whether it came up.
const ENDS_WITHIN: Duration = worker::FORMER_WITHIN.saturating_mul(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// It is made by the unit once it has ended, whole.
const RESULT: &str = "result.json";
/// The package that is to be installed, and the former one.
const NEW: &str = "new";
const FORMER: &str = "former";
/// The package that was installed last, here or by `overlord deploy`: the way back from the next.
const KEPT: &str = "installed";
/// Locked by whoever installs: the worker here, and the script of `overlord deploy`.
const HOST_LOCK: &str = "/run/overlord-minion.lock";
const AT_WORK: &str = "another upgrade, or an `overlord deploy`, of this host is under way: try again once it has ended";

/// What became of it.
#[derive(Debug, Serialize)]
pub(crate) struct Upgraded {
    /// The version of the package before.
    from: String,
    /// And now.
    to: String,
    /// Whether there was anything to do.
    changed: bool,
}

/// What the unit writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Ended {
    /// The new one runs.
    Up,
    /// Nothing was done.
    Untouched { why: String },
    /// It did not come up, and the former one runs again.
    RolledBack { why: String },
    /// It could not be taken back as it should, and yet the minion runs.
    Stuck { why: String, and: String },
    /// It did not come up, and neither does the former one.
    Down { why: String, and: String },
}

/// Installs the package `id`, which was brought before, and waits until it runs, or the former one again.
///
/// # Errors
/// It cannot be begun, and nothing was done; or it did not come up. The message says what runs now.
pub(crate) fn upgrade(packages: &Packages, id: &PackageId) -> Result<Upgraded, Failure> {
    let file = packages.find(id)?;
    require_place()?;
    let Some(_lock) = packages.try_lock()? else { return Err(refused(AT_WORK)) };
    drop(lock_host(Duration::ZERO).map_err(|why| refused(&why))?);
    let manager = Manager::of_minion().map_err(|why| refused(&why))?;
    let (installed, new) = describe(manager, &file)?;
    let (folder, kept) = (packages.make()?.join("upgrade"), packages.make()?.join(KEPT));
    if manager.has(&file) {
        keep(&file, &kept)?;
        return Ok(Upgraded { from: installed.version, to: new.version, changed: false });
    }
    prepare(&folder, &file, manager, &kept)?;
    unit::place(&folder).map_err(|error| refused(&format!("making {}: {error}", unit::NAME)))?;
    unit::start().map_err(|why| refused(&why))?;
    match wait(&folder)? {
        Ended::Up => {
            // It is the way back from the next one. Without it that is made of the files that are installed, where that can be done.
            let _no_way_back_by_it = keep(&file, &kept);
            Ok(Upgraded { from: installed.version, to: new.version, changed: true })
        }
        Ended::Untouched { why } => Err(refused(&why)),
        Ended::RolledBack { why } => {
            let message = format!("{} did not come up and was taken back: {why}; {} runs again", new.version, installed.version);
            Err(Failure::of_kind("rolled_back", message))
        }
        Ended::Stuck { why, and } => {
            let message = format!(
                "{} could not be installed ({why}), nor {} again ({and}); the minion runs. Mend the package on the host: `dpkg --configure -a`, \
                 `apt-get -f install`",
                new.version, installed.version
            );
            Err(Failure::of_kind("stuck", message))
        }
        Ended::Down { why, and } => {
            let message = format!(
                "{} did not come up: {why}; and {} does not, either: {and}. Look at `journalctl -u minion -u minion-spawner` on the host",
                new.version, installed.version
            );
            Err(Failure::of_kind("down", message))
        }
    }
}

/// Only root installs, and only systemd has units.
fn require_place() -> Result<(), Failure> {
    if !geteuid().is_root() {
        return Err(refused("it takes root: a rule without run_as, on a minion that root started"));
    }
    if !matches!(sd_notify::booted(), Ok(true)) {
        return Err(refused("this host was not booted with systemd, which starts what installs it: install the package by other means"));
    }
    let runs = fs::read_link("/proc/self/exe").map_err(|error| refused(&format!("/proc/self/exe cannot be read: {error}")))?;
    // Once another file has taken its place, the kernel appends a word.
    if !runs.to_string_lossy().starts_with(PROGRAM) {
        let message = format!("the minion that runs is {}, and not the package's {PROGRAM}: install it by other means", runs.display());
        return Err(refused(&message));
    }
    Ok(())
}

/// Held by whoever changes what is installed here; waited for `within` a time.
fn lock_host(within: Duration) -> Result<File, String> {
    let failed = |error: io::Error| format!("locking {HOST_LOCK}: {error}");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(HOST_LOCK).map_err(failed)?;
    let deadline = Instant::now() + within;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOOK_EVERY),
            Err(TryLockError::WouldBlock) => return Err(AT_WORK.to_owned()),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// What is installed, and what is to be.
fn describe(manager: Manager, file: &Path) -> Result<(Package, Package), Failure> {
    let installed = manager.installed().map_err(|why| refused(&why))?;
    let new = manager.describe(file).map_err(|why| refused(&why))?;
    if new.name != PACKAGE {
        return Err(refused(&format!("it is a package of {}, and not of {PACKAGE}", new.name)));
    }
    if new.architecture != installed.architecture {
        return Err(refused(&format!("it is a package for {}, and this host is {}", new.architecture, installed.architecture)));
    }
    Ok((installed, new))
}

/// Puts together all that the unit needs, so that nothing is missing once it has begun.
fn prepare(folder: &Path, file: &Path, manager: Manager, kept: &Path) -> Result<(), Failure> {
    let failed = |doing: &'static str| move |error: io::Error| refused(&format!("{doing} {}: {error}", folder.display()));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("emptying")(error)),
        _it_is_gone => {}
    }
    DirBuilder::new().mode(0o700).create(folder).map_err(failed("making"))?;
    // A name more, and no copy: what is complete is never written again.
    fs::hard_link(file, folder.join(NEW)).map_err(failed("putting the package into"))?;
    let former = folder.join(FORMER);
    // One that is there by half is no way back.
    if manager.has(kept) || !manager.has_whole() && kept.is_file() {
        fs::hard_link(kept, &former).map_err(failed("putting the former package into"))?;
    } else {
        manager.repack(&former).map_err(|why| refused(&format!("there would be no way back: {why}")))?;
    }
    [&former, folder].into_iter().try_for_each(|path| File::open(path)?.sync_all()).map_err(failed("syncing"))
}

/// Until the unit has written what became of it, or has ended without.
fn wait(folder: &Path) -> Result<Ended, Failure> {
    let (result, deadline) = (folder.join(RESULT), Instant::now() + ENDS_WITHIN);
    let read = || fs::read(&result).ok().and_then(|text| serde_json::from_slice(&text).ok());
    while Instant::now() < deadline {
        // Looked at before it is read: what has ended has written.
        let is_over = unit::is_over();
        if let Some(ended) = read() {
            return Ok(ended);
        }
        if is_over {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let unit = unit::NAME;
    let message = format!("{unit} has ended, or goes on, without saying what became of it: look at `journalctl -u {unit}` on the host");
    Err(Failure::of_kind("unknown", message))
}

/// Keeps the package as the way back from the next.
fn keep(file: &Path, kept: &Path) -> Result<(), Failure> {
    let draft: PathBuf = kept.with_extension("draft");
    let again = |result: io::Result<()>| if draft.exists() { result } else { Ok(()) };
    let keep = || {
        again(fs::remove_file(&draft))?;
        fs::hard_link(file, &draft)?;
        fs::rename(&draft, kept)?;
        // Where it was kept already, both names stay.
        again(fs::remove_file(&draft))
    };
    keep().map_err(|error| refused(&format!("keeping it as {}: {error}", kept.display())))
}

fn refused(why: &str) -> Failure {
    Failure::of_kind("not_upgraded", format!("nothing was installed: {why}"))
}
