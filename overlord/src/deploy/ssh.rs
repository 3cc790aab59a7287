//! The user's own `ssh`: how it is started, so that it asks nobody anything, forwards nothing, and ends with us.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::destination::Destination;

/// Whatever an ssh configuration says: nobody is there to be asked, nothing but the script shall run, and no master connection may stay that holds our
/// pipes open. Errors alone are told, so that what it says last is why it has ended.
const OPTIONS: [&str; 14] = [
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "GSSAPIDelegateCredentials=no",
    "Tunnel=no",
    "ControlMaster=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "LogLevel=ERROR",
];
const PROGRAM: &str = "ssh";

/// How `ssh` is started.
#[derive(Debug, Clone)]
pub(crate) struct Ssh {
    /// In the place of the user's own configuration.
    pub(crate) config: Option<PathBuf>,
}

impl Ssh {
    /// Whether there is one.
    ///
    /// # Errors
    /// It cannot be started: why.
    pub(crate) fn require() -> io::Result<()> {
        let version =
            std::process::Command::new(PROGRAM).arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.map(drop)
    }

    /// Starts `command` there, all of its streams ours. It is killed when what is returned is dropped.
    pub(super) fn start(&self, to: &Destination, command: &str) -> io::Result<Child> {
        let mut ssh = self.command(to);
        for option in OPTIONS {
            ssh.args(["-o", option]);
        }
        ssh.arg("--").arg(&to.host).arg(command);
        // A group of its own: Ctrl-C in a terminal is ours to hear, and the order in which all end ours to say.
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true).spawn()
    }

    /// Where `ssh` looks for the host: what its configuration says, else the very name. None if it does not say.
    pub(super) async fn address(&self, to: &Destination) -> Option<String> {
        let mut ssh = self.command(to);
        ssh.arg("-G").arg("--").arg(&to.host).stdin(Stdio::null()).kill_on_drop(true);
        let said = ssh.output().await.ok().filter(|said| said.status.success())?.stdout;
        let said = String::from_utf8_lossy(&said);
        said.lines().find_map(|line| line.strip_prefix("hostname ")).map(|name| name.trim().to_owned())
    }

    fn command(&self, to: &Destination) -> Command {
        let mut ssh = Command::new(PROGRAM);
        if let Some(config) = &self.config {
            ssh.arg("-F").arg(config);
        }
        if let Some(user) = &to.user {
            ssh.args(["-l", user]);
        }
        if let Some(port) = to.port {
            ssh.args(["-p", &port.to_string()]);
        }
        ssh
    }
}
