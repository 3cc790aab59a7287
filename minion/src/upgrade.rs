//! Another package of the minion in the place of the one that runs, with a way back.
//!
//! A job asks for it, and must not be what does it: the minion is restarted meanwhile, and a job can be cancelled, or killed at its time limit, in the
//! middle of an installation. So the work is a transient unit of systemd's own, a copy of the program that runs now (`worker`). The job prepares it,
//! starts it, and waits for what it writes.

mod command;
mod manager;
mod repack;
mod units;
mod worker;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::outcome::Failure;
use common::protocol::package::PackageId;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::packages::Packages;
use command::Command;
use manager::{Manager, Package};
pub(crate) use worker::work;

/// The package of which there is another.
const PACKAGE: &str = "overlord-minion";
/// The program as the package installs it.
const PROGRAM: &str = "/usr/bin/minion";
/// The transient unit. There is one at a time, whoever asks.
const UNIT: &str = "minion-upgrade.service";
/// Installing twice and looking twice whether it came up, and a little more.
const ENDS_WITHIN: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// It is made by the unit once it has ended, whole.
const RESULT: &str = "result.json";
/// The package that is to be installed, the former one, and the program that does it.
const NEW: &str = "new";
const FORMER: &str = "former";
const WORKER: &str = "minion";

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
    /// It did not come up, and the former one runs again.
    RolledBack { why: String },
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
    let Some(_lock) = packages.try_lock()? else { return Err(refused("another upgrade of this host is under way")) };
    let manager = Manager::of_minion().map_err(|why| refused(&why))?;
    let (installed, new) = describe(manager, &file)?;
    let folder = packages.make()?.join("upgrade");
    if installed.version == new.version {
        keep(&file, &packages.make()?.join(KEPT))?;
        return Ok(Upgraded { from: installed.version, to: new.version, changed: false });
    }
    prepare(&folder, &file, manager, &installed, &packages.make()?.join(KEPT))?;
    start(&folder)?;
    match wait(&folder)? {
        Ended::Up => {
            // It is the way back from the next one. Without it that is made of the files that are installed, where that can be done.
            let _no_way_back_by_it = keep(&file, &packages.make()?.join(KEPT));
            Ok(Upgraded { from: installed.version, to: new.version, changed: true })
        }
        Ended::RolledBack { why } => {
            let message = format!("{} did not come up and was taken back: {why}; {} runs again", new.version, installed.version);
            Err(Failure::of_kind("rolled_back", message))
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

/// The package that was installed last by an upgrade.
const KEPT: &str = "installed";

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
    if units::is_running(UNIT) {
        return Err(refused("another upgrade of this host is under way, begun by a job that has ended: try again in a minute"));
    }
    Ok(())
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
fn prepare(folder: &Path, file: &Path, manager: Manager, installed: &Package, kept: &Path) -> Result<(), Failure> {
    let failed = |doing: &'static str| move |error: io::Error| refused(&format!("{doing} {}: {error}", folder.display()));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("emptying")(error)),
        _it_is_gone => {}
    }
    DirBuilder::new().mode(0o700).create(folder).map_err(failed("making"))?;
    fs::copy(file, folder.join(NEW)).map_err(failed("copying the package into"))?;
    let worker = folder.join(WORKER);
    fs::copy("/proc/self/exe", &worker).map_err(failed("copying the program into"))?;
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o700)).map_err(failed("copying the program into"))?;
    let former = folder.join(FORMER);
    let is_kept = manager.describe(kept).is_ok_and(|kept| kept.name == installed.name && kept.version == installed.version);
    if is_kept {
        fs::copy(kept, &former).map_err(failed("copying the former package into"))?;
    } else {
        manager.repack(folder, &former).map_err(|why| refused(&format!("there would be no way back: {why}")))?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("syncing"))
}

fn start(folder: &Path) -> Result<(), Failure> {
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--collect", "--unit", UNIT, "--description", "Upgrade of the Overlord minion"]);
    command.arg(folder.join(WORKER)).arg("upgrade-worker").arg(folder);
    command.run(Duration::from_secs(30)).map(drop).map_err(|why| refused(&why))
}

/// Until the unit has written what became of it, or has ended without.
fn wait(folder: &Path) -> Result<Ended, Failure> {
    let (result, deadline) = (folder.join(RESULT), Instant::now() + ENDS_WITHIN);
    let read = || fs::read(&result).ok().and_then(|text| serde_json::from_slice(&text).ok());
    while Instant::now() < deadline {
        // Looked at before it is read: what has ended has written.
        let is_running = units::is_running(UNIT);
        if let Some(ended) = read() {
            return Ok(ended);
        }
        if !is_running {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let message = format!("{UNIT} ended, or hangs, without saying what became of it: look at `journalctl -u {UNIT}` on the host");
    Err(Failure::of_kind("unknown", message))
}

/// Keeps the package as the way back from the next.
fn keep(file: &Path, kept: &Path) -> Result<(), Failure> {
    let draft: PathBuf = kept.with_extension("draft");
    let copied = fs::copy(file, &draft).and_then(|_| File::open(&draft)?.sync_all()).and_then(|()| fs::rename(&draft, kept));
    copied.map_err(|error| refused(&format!("keeping it as {}: {error}", kept.display())))
}

fn refused(why: &str) -> Failure {
    Failure::of_kind("not_upgraded", format!("nothing was installed: {why}"))
}
