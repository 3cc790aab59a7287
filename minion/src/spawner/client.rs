//! The server's way to the spawner: one connection an order; and the spawner's life where the server starts it itself.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::order::{LINE_MAX_BYTES, Order, Reply};
use super::{Origin, READY};
use crate::config::Config;

/// How long a spawner that is executed may take until it listens: a busy disk takes seconds for its first files.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an order waits for a spawner that is being started, or started again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait between two attempts to reach a spawner that is a unit of its own and being restarted.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Why an order was not carried out, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The spawner cannot be reached: the order was not given.
    #[error("the spawner cannot be reached at {path}: {source}; see `systemctl status minion-spawner` where it is a unit")]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its child died, or was silent: what became of the order must be looked up.
    #[error("the spawner's child gave no answer: {0}")]
    NoAnswer(std::io::Error),
}

/// The spawner, seen from the server.
#[derive(Debug)]
pub struct Spawner {
    socket: PathBuf,
    config_file: PathBuf,
    /// The process, where the server starts it itself. The other end of its stdin is held here, so it ends with the server.
    own: Option<Mutex<Option<std::process::Child>>>,
}

impl Spawner {
    /// The spawner of this host. With [`Origin::Server`] it is started now, and again whenever it has died.
    ///
    /// # Errors
    /// It does not start.
    pub fn open(config: &Config, origin: Origin) -> std::io::Result<Self> {
        let own = (origin == Origin::Server).then(Mutex::default);
        let spawner = Self { socket: config.spawner_socket(), config_file: config.file.clone(), own };
        spawner.ensure()?;
        Ok(spawner)
    }

    /// Starts the spawner if it is the server's own and does not live.
    fn ensure(&self) -> std::io::Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let mut process = own.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match process.as_mut().map(std::process::Child::try_wait) {
            Some(Ok(None)) => Ok(()),
            _dead_or_never_started => {
                *process = Some(self.execute()?);
                Ok(())
            }
        }
    }

    /// Executes the spawner afresh and waits until it listens.
    fn execute(&self) -> std::io::Result<std::process::Child> {
        // Not by its path, which an upgrade may have taken away.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("minion").arg("--config").arg(&self.config_file).args(["spawner", "--of-server"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = [0; READY.len()];
        let ready = child.stdout.take().map(|mut stdout| wait_readable(&stdout).and_then(|()| stdout.read_exact(&mut said)));
        if let Some(Err(error)) = ready {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::new(error.kind(), format!("the spawner did not start: {error}")));
        }
        Ok(child)
    }

    /// Gives an order and waits for the reply, for at most `patience`. Dropping the future hangs up.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn order(&self, order: &Order, patience: Duration) -> Result<Reply, SpawnError> {
        let stream = self.connect().await?;
        match tokio::time::timeout(patience, exchange(stream, order)).await {
            Ok(reply) => reply.map_err(SpawnError::NoAnswer),
            Err(_) => Err(SpawnError::NoAnswer(std::io::ErrorKind::TimedOut.into())),
        }
    }

    async fn connect(&self) -> Result<UnixStream, SpawnError> {
        let unreachable = |source| SpawnError::Unreachable { path: self.socket.clone(), source };
        let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(source) if tokio::time::Instant::now() >= deadline => return Err(unreachable(source)),
                // Its queue of connections is full, or it is dead.
                Err(_) => {
                    tokio::task::block_in_place(|| self.ensure()).map_err(unreachable)?;
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
        }
    }
}

fn wait_readable(fd: &impl std::os::fd::AsFd) -> std::io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(START_TIMEOUT).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)? {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

async fn exchange(mut stream: UnixStream, order: &Order) -> std::io::Result<Reply> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    line.clear();
    let mut reader = BufReader::new(stream).take(LINE_MAX_BYTES);
    if reader.read_until(b'\n', &mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
