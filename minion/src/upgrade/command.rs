//! One command of the host's, with a limit in time, and what it said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How much of what it writes is read.
const SAID_MAX_BYTES: u64 = 1 << 20;
/// How much of it stands in a message: its last lines.
const LINES_MAX: usize = 4;
/// How long an answer may take of a command that changes nothing.
const ASK_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command, found in the folders that root's commands lie in, that asks nothing and speaks English.
pub(super) struct Command {
    name: &'static str,
    command: std::process::Command,
}

impl Command {
    pub(super) fn new(name: &'static str) -> Self {
        let mut command = std::process::Command::new(name);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").env("HOME", "/root").env("DEBIAN_FRONTEND", "noninteractive");
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        Self { name, command }
    }

    pub(super) fn arg(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(word);
        self
    }

    pub(super) fn args<W: AsRef<OsStr>>(&mut self, words: impl IntoIterator<Item = W>) -> &mut Self {
        self.command.args(words);
        self
    }

    /// As [`run`](Self::run), of a command that changes nothing.
    pub(super) fn ask(&mut self) -> Result<String, String> {
        self.run(ASK_WITHIN)
    }

    /// What it writes, both streams, once it has ended well.
    ///
    /// # Errors
    /// In a line: it cannot be executed, ended with another status than 0, or was killed after `within`.
    pub(super) fn run(&mut self, within: Duration) -> Result<String, String> {
        let name = self.name;
        let mut run = || -> std::io::Result<(Option<ExitStatus>, String)> {
            // A file, and no pipe: what it leaves running, a service for instance, may keep it open for ever.
            let mut said = unlinked()?;
            self.command.stdout(said.try_clone()?).stderr(said.try_clone()?);
            let mut child = self.command.spawn()?;
            let ended = await_end(&mut child, within)?;
            said.rewind()?;
            let mut bytes = Vec::new();
            said.take(SAID_MAX_BYTES).read_to_end(&mut bytes)?;
            Ok((ended, String::from_utf8_lossy(&bytes).into_owned()))
        };
        match run() {
            Ok((Some(status), said)) if status.success() => Ok(said),
            Ok((Some(status), said)) => Err(format!("{name}: {status}{}", last_lines(&said))),
            Ok((None, said)) => Err(format!("{name} did not end within {} s and was killed{}", within.as_secs(), last_lines(&said))),
            Err(error) => Err(format!("{name} cannot be run: {error}")),
        }
    }
}

fn unlinked() -> std::io::Result<File> {
    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_APPEND;
    Ok(nix::fcntl::open("/tmp", flags, Mode::from_bits_truncate(0o600)).map(File::from)?)
}

/// None: it was killed, with all of its group.
fn await_end(child: &mut Child, within: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).unwrap_or(i32::MAX);
            let _has_ended_by_itself = killpg(Pid::from_raw(group), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The last lines in one, behind a colon.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(LINES_MAX)..).unwrap_or_default().join("; ");
    if last.is_empty() { String::new() } else { format!(": {last}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_command_says_what_it_wrote_or_how_it_ended() {
        assert_eq!(Command::new("sh").args(["-c", "echo a; echo b >&2"]).run(SOON).unwrap(), "a\nb\n");
        let error = Command::new("sh").args(["-c", "for i in 1 2 3 4 5; do echo line $i; done; exit 3"]).run(SOON).unwrap_err();
        assert_eq!(error, "sh: exit status: 3: line 2; line 3; line 4; line 5");
        assert!(Command::new("no-such-command").run(SOON).unwrap_err().starts_with("no-such-command cannot be run: "));
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_what_it_started() {
        let error = Command::new("sh").args(["-c", "echo begun; sleep 600 & sleep 600"]).run(Duration::from_millis(200)).unwrap_err();
        assert!(error.starts_with("sh did not end within 0 s and was killed: begun"), "{error}");
    }
}
