//! Why a host was not deployed to: one line, which says what failed, why, and what to type next. Pure; what a host or `ssh` says in it is made
//! harmless where it is printed.

use std::time::Duration;

use common::outcome::{ErrorCode, Failure, Verdict};

use super::destination::Destination;
use super::report::{Back, End, Report};
use crate::package::Kind;

/// How much of what others said is told.
const SAID_MAX_CHARS: usize = 300;
/// What apt and dpkg say of their own progress: no reason.
const CHATTER: [&str; 8] = ["Setting up", "Preparing to", "Unpacking", "(Reading", "Selecting", "Get:", "Processing", "Errors were"];

/// Why a host was not deployed to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("ssh does not know its host key: compare what `ssh {to}` shows with the host's own, accept it there, and repeat this")]
    UnknownHostKey { to: String },
    #[error(
        "ssh finds another host key than it knows. If the host was installed anew, `ssh-keygen -R {host}` forgets the old one; compare the new one \
         with `ssh {to}`, and repeat this"
    )]
    OtherHostKey { host: String, to: String },
    #[error("ssh is not let in ({said}): `ssh {to} true` has to work without a password; `ssh-copy-id {to}` sees to that")]
    NoLogin { to: String, said: String },
    #[error("ssh does not find it ({said}): say where it is by HostName in an ssh configuration, and give that with --ssh-config")]
    Unresolved { said: String },
    #[error("ssh cannot reach it ({said}): see that it is up and that sshd listens there, and repeat this")]
    Unreachable { said: String },
    #[error("ssh has failed ({said}): `ssh {to} true` has to work")]
    Ssh { to: String, said: String },
    #[error("ssh was let in, and no shell has answered ({said}): `ssh {to} true` has to work")]
    NoShell { to: String, said: String },
    #[error("its user is not root, and sudo asks or refuses ({said}): deploy to root@{host}, or let that user use sudo without a password")]
    Sudo { host: String, said: String },
    #[error("it takes {takes} packages, and this is a {kind}: `make packages` makes both")]
    OtherManager { takes: String, kind: Kind },
    #[error("the package is for {arch}, and the host is {has}: give --package one for {has}")]
    OtherArch { has: String, arch: String },
    #[error(
        "systemd does not run there, and the package's units need it: without it, copy the program there, `minion --config FILE enroll …` and have \
         what starts services there run `minion --config FILE serve`"
    )]
    NoSystemd,
    #[error("its disk is full: {folder} has {free_mib} MiB free, and {needed_mib} MiB are needed; make room there, and repeat this")]
    NoRoom { folder: String, free_mib: u64, needed_mib: u64 },
    #[error(
        "it has the certificate of another fleet's authority ({pins}), and was left as it is; if it is to change fleets, move the files of \
         /etc/minion/certs away there, and repeat this"
    )]
    OtherFleet { pins: String },
    #[error("its /etc/minion/minion.toml says that it is {other}: deploy to it by that name, or change `name` there")]
    OtherName { other: String },
    #[error("no token can be made for it: {reason}")]
    Token { reason: String },
    #[error("another deploy, or an upgrade, has been at work there all the time: repeat this when that has ended")]
    Busy,
    #[error("what was sent did not arrive as it was; repeat this")]
    Cut,
    #[error("its disk is full ({said}){}; make room there, and repeat this", tail(*.back))]
    DiskFull { said: String, back: Option<Back> },
    #[error("the package could not be installed: {said}{}", tail(*.back))]
    Install { said: String, back: Option<Back> },
    #[error("the program does not run there: {said}{}", tail(*.back))]
    Program { said: String, back: Option<Back> },
    #[error("the minion does not come up: {said}{}; `journalctl -u minion -u minion-spawner` there says more", tail(*.back))]
    Start { said: String, back: Option<Back> },
    #[error("the package is installed and runs, and the host has got no certificate: {said}{}", enrol_hint(.said))]
    Enrol { said: String },
    #[error("its name could not be written into /etc/minion/minion.toml: {said}; repeat this")]
    Name { said: String },
    #[error(
        "nothing was done: /run/overlord-minion.lock cannot be made there, so that nobody else could be kept away meanwhile; see `ls -ld /run` there"
    )]
    NoLock,
    #[error("what was sent could not be put on its disk below /var/tmp: {said}")]
    Copy { said: String },
    #[error("the script there has failed ({kind}): {said}")]
    Script { kind: String, said: String },
    #[error("the connection has ended half-way ({said}): what has begun there ends by itself; repeat this, and it is finished")]
    Broken { said: String },
    #[error(
        "it is installed and enrolled, and does not answer at {address}: {reason}. See that no firewall is in between and that hosts.toml has the \
         right address, and repeat this"
    )]
    NoPing { address: String, reason: String },
    #[error(
        "it is installed and enrolled, and answers at {address}, and its rules do not let {caller} call test.ping ({reason}): add one in \
         /etc/minion/acl.d there"
    )]
    NotAllowed { address: String, caller: String, reason: String },
    #[error("it was not done within {within:?} (--timeout): what has begun there ends by itself; repeat this, and it is finished")]
    TimedOut { within: Duration },
    #[error("interrupted before anything was done there")]
    NotBegun,
    #[error("interrupted: what has begun there ends by itself; repeat this, and it is finished")]
    Interrupted,
}

impl Trouble {
    /// Of an ssh that ended with `code` before the script was ready.
    pub(super) fn of_ssh(to: &Destination, code: Option<i32>, stderr: &[u8]) -> Self {
        let stderr = String::from_utf8_lossy(stderr);
        let has = |words: &[&str]| stderr.lines().rev().find(|line| words.iter().any(|word| line.contains(word))).map(shortened);
        let (dest, host) = (to.to_string(), to.host.clone());
        if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED"]).is_some() {
            return Self::OtherHostKey { host, to: dest };
        }
        if has(&["Host key verification failed", "host key is known for"]).is_some() {
            return Self::UnknownHostKey { to: dest };
        }
        if let Some(said) = has(&["Permission denied", "Too many authentication failures"]) {
            return Self::NoLogin { to: dest, said };
        }
        if let Some(said) = has(&["Could not resolve hostname"]) {
            return Self::Unresolved { said };
        }
        if let Some(said) = has(&["sudo: "]).or_else(|| has(&["is not in the sudoers file", "may not run sudo", "not allowed to execute"]))
        {
            return Self::Sudo { host, said };
        }
        let said =
            last_line(&stderr).unwrap_or_else(|| code.map_or("a signal has ended it".to_owned(), |code| format!("exit status {code}")));
        match code {
            Some(255) if has(&["onnect", "No route", "Network is unreachable", "timed out"]).is_some() => Self::Unreachable { said },
            Some(255) | None => Self::Ssh { to: dest, said },
            Some(_) => Self::NoShell { to: dest, said },
        }
    }

    /// Of an ssh that ended after the host had got its orders.
    pub(super) fn of_broken(code: Option<i32>, stderr: &[u8]) -> Self {
        let said = last_line(&String::from_utf8_lossy(stderr));
        Self::Broken { said: said.unwrap_or_else(|| code.map_or("ssh was killed".to_owned(), |code| format!("ssh: exit status {code}"))) }
    }

    /// Of a script that has told its failure.
    pub(super) fn of_script(report: &Report) -> Option<Self> {
        let Some(End::Failed { kind }) = &report.end else { return None };
        let (said, back) = (cause(&report.log), report.back);
        Some(match kind.as_str() {
            "copy" | "install" | "program" | "start" | "name" if said.contains("No space left") => Self::DiskFull { said, back },
            "busy" => Self::Busy,
            "cut" | "sum" => Self::Cut,
            "install" => Self::Install { said, back },
            "program" => Self::Program { said, back },
            "start" => Self::Start { said, back },
            "enrol" => Self::Enrol { said },
            "name" => Self::Name { said },
            "copy" => Self::Copy { said },
            "lock" => Self::NoLock,
            _ => Self::Script { kind: kind.chars().take(SAID_MAX_CHARS).collect(), said },
        })
    }

    /// What kind it is, for a program: `data.type` of the error.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::UnknownHostKey { .. } | Self::OtherHostKey { .. } => "host_key",
            Self::NoLogin { .. } => "no_login",
            Self::Unresolved { .. } | Self::Unreachable { .. } => "unreachable",
            Self::Ssh { .. } | Self::NoShell { .. } => "ssh",
            Self::Sudo { .. } => "sudo",
            Self::OtherManager { .. } => "other_manager",
            Self::OtherArch { .. } => "other_arch",
            Self::NoSystemd => "no_systemd",
            Self::NoRoom { .. } | Self::DiskFull { .. } => "disk_full",
            Self::OtherFleet { .. } => "other_fleet",
            Self::OtherName { .. } => "other_name",
            Self::Token { .. } => "token",
            Self::Busy => "busy",
            Self::Cut => "cut",
            Self::Install { .. } => "install",
            Self::Program { .. } => "program",
            Self::Start { .. } => "start",
            Self::Enrol { .. } => "enrol",
            Self::Name { .. } => "name",
            Self::Copy { .. } => "copy",
            Self::NoLock => "lock",
            Self::Script { .. } => "script",
            Self::Broken { .. } => "broken",
            Self::NoPing { .. } => "no_ping",
            Self::NotAllowed { .. } => "not_allowed",
            Self::TimedOut { .. } => "timed_out",
            Self::NotBegun | Self::Interrupted => "interrupted",
        }
    }

    /// What it makes of the host: nothing was done, all is as it was or said, or nobody knows.
    pub(crate) fn into_verdict(self) -> Verdict {
        let code = match &self {
            Self::UnknownHostKey { .. }
            | Self::OtherHostKey { .. }
            | Self::NoLogin { .. }
            | Self::Unresolved { .. }
            | Self::Unreachable { .. }
            | Self::Ssh { .. }
            | Self::NoShell { .. }
            | Self::NotBegun => ErrorCode::Undelivered,
            Self::Broken { .. } | Self::Interrupted => ErrorCode::Lost,
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            _ => ErrorCode::Failed,
        };
        let error = Failure::new(code, self.to_string()).with_data(serde_json::json!({ "type": self.kind() }));
        match code {
            ErrorCode::Undelivered => Verdict::Undelivered { error },
            ErrorCode::Lost => Verdict::Lost { error },
            ErrorCode::TimedOut => Verdict::TimedOut { error },
            _ => Verdict::Failed { error },
        }
    }
}

fn tail(back: Option<Back>) -> &'static str {
    match back {
        Some(Back::Former) => "; what was installed before is back",
        Some(Back::Removed) => "; nothing of it is left there",
        Some(Back::Neither) => "; what was there before could not be put back: deploy the former package",
        None => "",
    }
}

/// What `overlord certs serve` says is reached from here need not be reached from there.
fn enrol_hint(said: &str) -> &'static str {
    if said.contains("cannot reach the authority") { " (--overlord ADDR names the address at which hosts reach it)" } else { "" }
}

/// The line of a log that says why.
fn cause(log: &[String]) -> String {
    let is_reason = |line: &&String| !line.trim().is_empty() && !CHATTER.iter().any(|words| line.trim_start().starts_with(words));
    let lines: Vec<&String> = log.iter().filter(is_reason).collect();
    let full = lines.iter().find(|line| line.contains("No space left"));
    // dpkg tells of a script that failed behind what that has said.
    let script = lines.iter().position(|line| line.starts_with("dpkg: error processing"));
    let script = script.and_then(|at| at.checked_sub(1).or(Some(at + 1))).and_then(|at| lines.get(at));
    let error = lines.iter().find(|line| ["E: ", "error: ", "dpkg: error"].iter().any(|start| line.starts_with(start)));
    let line = full.or(script).or(error).or(lines.last());
    line.map_or_else(|| "it has said nothing".to_owned(), |line| shortened(line))
}

fn last_line(text: &str) -> Option<String> {
    text.lines().rev().find(|line| !line.trim().is_empty()).map(shortened)
}

fn shortened(line: &str) -> String {
    line.trim().trim_start_matches("minion: ").chars().take(SAID_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn of_ssh(code: i32, stderr: &str) -> Trouble {
        Trouble::of_ssh(&"deploy@web1".parse().unwrap(), Some(code), stderr.as_bytes())
    }

    #[test]
    fn what_ssh_says_is_told_with_the_next_command() {
        for (code, stderr, kind, next) in [
            (
                255,
                "No ED25519 host key is known for web1 and you have requested strict checking.\r\nHost key verification failed.\r\n",
                "host_key",
                "`ssh deploy@web1`",
            ),
            (
                255,
                "@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n@@@\nHost key verification failed.\n",
                "host_key",
                "ssh-keygen -R web1",
            ),
            (255, "deploy@web1: Permission denied (publickey).\r\n", "no_login", "ssh-copy-id deploy@web1"),
            (255, "ssh: Could not resolve hostname web1: Name or service not known\r\n", "unreachable", "--ssh-config"),
            (255, "ssh: connect to host web1 port 22: Connection refused\r\n", "unreachable", "sshd listens"),
            (255, "ssh: connect to host web1 port 22: No route to host\r\n", "unreachable", "repeat"),
            (255, "kex_exchange_identification: Connection closed by remote host\r\n", "unreachable", "repeat"),
            (
                255,
                "/etc/f: line 1: Bad configuration option: x\r\n/etc/f: terminating, 1 bad configuration options\r\n",
                "ssh",
                "`ssh deploy@web1 true`",
            ),
            (1, "sudo: a password is required\n", "sudo", "root@web1"),
            (127, "sh: 1: exec: sudo: not found\n", "sudo", "root@web1"),
            (1, "This account is currently not available.\n", "ssh", "no shell has answered"),
            (127, "", "ssh", "exit status 127"),
        ] {
            let trouble = of_ssh(code, stderr);
            assert_eq!(trouble.kind(), kind, "{stderr}: {trouble}");
            assert!(trouble.to_string().contains(next), "{trouble}");
        }
    }

    fn of_script(kind: &str, log: &[&str], back: Option<Back>) -> Trouble {
        let log = log.iter().map(|line| (*line).to_owned()).collect();
        Trouble::of_script(&Report { log, back, end: Some(End::Failed { kind: kind.into() }), ..Report::default() }).unwrap()
    }

    #[test]
    fn a_script_that_failed_is_told_by_the_line_that_says_why() {
        let apt = [
            "Unpacking overlord-minion (0.2.0-1) ...",
            "Setting up overlord-minion (0.2.0-1) ...",
            "useradd: cannot lock /etc/passwd",
            "dpkg: error processing package overlord-minion (--configure):",
            " installed overlord-minion package post-installation script subprocess returned error exit status 1",
            "Errors were encountered while processing:",
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        ];
        let said = of_script("install", &apt, Some(Back::Removed)).to_string();
        assert_eq!(said, "the package could not be installed: useradd: cannot lock /etc/passwd; nothing of it is left there");
        let silent: Vec<&str> = apt.iter().filter(|line| !line.starts_with("useradd")).copied().collect();
        let said = of_script("install", &silent, Some(Back::Former)).to_string();
        assert!(said.contains("post-installation script") && said.ends_with("what was installed before is back"), "{said}");
        let said = of_script("install", &["E: Unable to locate x", "E: Other"], None).to_string();
        assert!(said.contains("Unable to locate x"), "{said}");
        let full = of_script("copy", &["cat: write error: No space left on device"], None);
        assert_eq!(full.kind(), "disk_full");
        let said = of_script("enrol", &["minion: the authority at a:1 refuses: x; run `overlord certs clean web1`"], None).to_string();
        assert!(said.contains("certs clean web1") && !said.contains("minion: the"), "{said}");
        assert!(of_script("enrol", &["cannot reach the authority at a:1"], None).to_string().contains("--overlord ADDR"));
        assert_eq!(of_script("something new", &[], None).kind(), "script");
    }

    #[test]
    fn what_is_unknown_is_lost_and_what_never_began_undelivered() {
        let state = |trouble: Trouble| trouble.into_verdict().state().to_string();
        assert_eq!(state(of_ssh(255, "")), "undelivered");
        assert_eq!(state(Trouble::of_broken(Some(255), b"")), "lost");
        assert_eq!((state(Trouble::NotBegun), state(Trouble::Interrupted)), ("undelivered".into(), "lost".into()));
        assert_eq!(state(Trouble::Busy), "failed");
        assert_eq!(state(Trouble::TimedOut { within: Duration::from_secs(1) }), "timed_out");
    }
}
