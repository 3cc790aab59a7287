//! The unit that installs, as long as there is something to install: its file, its program, and its start. Both lie on the disk, and the host starts it when
//! it boots, so that what a power cut or a reboot has interrupted is brought to its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use super::command::Command;
use super::units;

/// Its name. There is one, whoever asks.
pub(super) const NAME: &str = "minion-upgrade.service";
const FILE: &str = "/etc/systemd/system/minion-upgrade.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/minion-upgrade.service";
/// A copy of the program that runs now, where programs lie: elsewhere a host may allow none to be executed (`noexec`, SELinux).
const PROGRAM: &str = "/usr/bin/minion-upgrade-worker";
const START_WITHIN: Duration = Duration::from_secs(30);

/// Puts it there, durably, to work in `folder`.
///
/// # Errors
/// The file system refuses; what is there of it then does nothing.
pub(super) fn place(folder: &Path) -> io::Result<()> {
    remove_files();
    let mut program = create(PROGRAM, 0o700)?;
    io::copy(&mut File::open("/proc/self/exe")?, &mut program)?;
    program.sync_all()?;
    let mut file = create(FILE, 0o644)?;
    file.write_all(text(folder).as_bytes())?;
    file.sync_all()?;
    if let Some(wants) = Path::new(WANTED).parent() {
        fs::create_dir_all(wants)?;
        symlink(FILE, WANTED)?;
        File::open(wants)?.sync_all()?;
    }
    [PROGRAM, FILE].into_iter().filter_map(|path| Path::new(path).parent()).try_for_each(|folder| File::open(folder)?.sync_all())
}

/// Starts it.
///
/// # Errors
/// In a line: it does not run, and nothing is left of it.
pub(super) fn start() -> Result<(), String> {
    let reload = Command::new("systemctl").arg("daemon-reload").run(START_WITHIN);
    let started = reload.and_then(|_| Command::new("systemctl").args(["start", NAME]).run(START_WITHIN));
    match started {
        Err(why) if is_over() => {
            remove();
            Err(why)
        }
        // It runs, whatever was heard of its start.
        Err(_) | Ok(_) => Ok(()),
    }
}

/// Whether it has ended. As long as systemd does not say, it has not.
pub(super) fn is_over() -> bool {
    matches!(units::state(NAME).as_deref(), Ok("inactive" | "failed"))
}

/// Removes all of it but the process, which may be the one that asks.
pub(super) fn remove() {
    remove_files();
    let _read_again_with_the_next = Command::new("systemctl").arg("daemon-reload").run(START_WITHIN);
}

fn remove_files() {
    for path in [WANTED, FILE, PROGRAM] {
        let _not_there = fs::remove_file(path);
    }
}

fn create(path: &str, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

fn text(folder: &Path) -> String {
    format!(
        "# Made by minion.upgrade, and removed once that has come to its end.\n\
         [Unit]\nDescription=Upgrade of the Overlord minion\nStartLimitIntervalSec=0\n\n\
         [Service]\nType=exec\nExecStart={PROGRAM} upgrade-worker {}\nRestart=on-failure\nRestartSec=30s\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        folder.display()
    )
}
