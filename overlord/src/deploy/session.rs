//! One conversation with the script on a host, over one `ssh`: it tells how the host is, gets its orders and perhaps the package, and tells what became
//! of them. Decides nothing.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Take};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::destination::Destination;
use super::report::{Facts, Heard, Orders, Report};
use super::ssh::Ssh;
use super::trouble::Trouble;
use crate::package::Package;

/// What runs on the host.
const SCRIPT: &str = include_str!("on_host.sh");
/// How much a host may say.
const SAID_MAX_BYTES: u64 = 1 << 20;
/// How much of what ssh writes to its stderr is kept: the end.
const STDERR_KEPT_BYTES: usize = 8 << 10;
/// How long an ssh whose script has ended may take to end itself.
const END_WITHIN: Duration = Duration::from_secs(2);

/// How far it has come, also for who ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was done there.
    Asking,
    /// The host has its orders.
    Ordered,
    /// It has carried them out.
    Done,
}

/// A conversation, and what is told of it meanwhile.
pub(super) struct Session<'s> {
    pub(super) ssh: &'s Ssh,
    pub(super) to: &'s Destination,
    pub(super) package: &'s Package,
    /// How long the host may wait for others.
    pub(super) patience: Duration,
    pub(super) stage: &'s Cell<Stage>,
    /// Is told that another deploy, or an upgrade, is at work there.
    pub(super) waits: &'s dyn Fn(),
}

type Said = BufReader<Take<ChildStdout>>;

impl Session<'_> {
    /// Has it, and gives all that the host said, and what it was told to do.
    ///
    /// # Errors
    /// The host was not reached, `decide` refuses it, or something failed there.
    pub(super) async fn run(&self, decide: impl AsyncFnOnce(&Facts) -> Result<Orders, Trouble>) -> Result<(Report, Orders), Trouble> {
        let script = format!("wait_s={}\n{SCRIPT}", self.patience.as_secs().max(1));
        let failed = |error: std::io::Error| Trouble::Ssh { to: self.to.to_string(), said: error.to_string() };
        let mut ssh = self.ssh.start(self.to, &first_command(script.len())).map_err(failed)?;
        let (Some(stdin), Some(stdout), Some(mut stderr)) = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take()) else {
            return Err(failed(std::io::Error::other("it has no pipes")));
        };
        let (mut report, mut tail) = (Report::default(), Vec::new());
        let said = BufReader::new(stdout.take(SAID_MAX_BYTES));
        let talked = tokio::select! {
            biased;
            talked = self.talk(&mut report, stdin, said, script, decide) => talked,
            never = keep_tail_for_ever(&mut stderr, &mut tail) => match never {},
        };
        let orders = talked?;
        let (Some(orders), Some(_)) = (orders, &report.end) else { return Err(self.ended_early(ssh, stderr, tail).await) };
        let _killed_if_late = timeout(END_WITHIN, ssh.wait()).await;
        Trouble::of_script(&report).map_or(Ok((report, orders)), Err)
    }

    /// What the host was told to do, if it came to that. The streams are closed behind it.
    async fn talk(
        &self,
        report: &mut Report,
        mut stdin: ChildStdin,
        mut said: Said,
        script: String,
        decide: impl AsyncFnOnce(&Facts) -> Result<Orders, Trouble>,
    ) -> Result<Option<Orders>, Trouble> {
        // Whoever does not read it has ended, and that is told by its output.
        let _unread = stdin.write_all(script.as_bytes()).await;
        if self.hear(report, &mut said).await != Heard::Ready {
            return Ok(None);
        }
        let orders = decide(&report.facts).await?;
        self.stage.set(Stage::Ordered);
        let send = async {
            let _unread = stdin.write_all(orders.lines(self.package).as_bytes()).await;
            if orders.sends_package {
                let _unread = stdin.write_all(&self.package.bytes).await;
            }
            drop(stdin);
            pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            _ = self.hear(report, &mut said) => {}
            never = send => match never {},
        }
        Ok(Some(orders))
    }

    /// Until the host wants orders, or has ended.
    async fn hear(&self, report: &mut Report, said: &mut Said) -> Heard {
        let (mut line, mut has_told) = (Vec::new(), false);
        loop {
            line.clear();
            if !matches!(said.read_until(b'\n', &mut line).await, Ok(1..)) {
                return Heard::Ended;
            }
            match report.hear(&line) {
                Heard::Noted => {}
                Heard::Waits if has_told => {}
                Heard::Waits => {
                    has_told = true;
                    (self.waits)();
                }
                heard @ (Heard::Ready | Heard::Ended) => return heard,
            }
        }
    }

    /// What it means that nothing more comes, and no end was told.
    async fn ended_early(&self, mut ssh: Child, mut stderr: impl AsyncRead + Unpin, mut tail: Vec<u8>) -> Trouble {
        let rest = async {
            keep_tail(&mut stderr, &mut tail).await;
            ssh.wait().await.ok().and_then(|status| status.code())
        };
        let code = timeout(END_WITHIN, rest).await.ok().flatten();
        match self.stage.get() {
            Stage::Asking => Trouble::of_ssh(self.to, code, &tail),
            Stage::Ordered | Stage::Done => Trouble::of_broken(code, &tail),
        }
    }
}

/// What the login shell there gets, whichever it is: one line, which reads so many bytes and not one more, and runs them as root.
fn first_command(bytes: usize) -> String {
    format!(
        "exec sh -c 's=$(dd bs=1 count={bytes} 2>/dev/null); if [ \"$(id -u)\" = 0 ]; then exec sh -c \"$s\" overlord-deploy; fi; \
         exec sudo -n sh -c \"$s\" overlord-deploy'"
    )
}

async fn keep_tail_for_ever(stream: &mut (impl AsyncRead + Unpin), tail: &mut Vec<u8>) -> Infallible {
    keep_tail(stream, tail).await;
    pending().await
}

async fn keep_tail(stream: &mut (impl AsyncRead + Unpin), tail: &mut Vec<u8>) {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        tail.extend_from_slice(chunk.get(..count).unwrap_or_default());
        tail.drain(..tail.len().saturating_sub(STDERR_KEPT_BYTES));
    }
}
