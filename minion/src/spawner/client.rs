//! The server's way to the spawner: a connection for each order that does something, and a few that are kept for those that only look; and the
//! spawner's life where the server starts it itself.

use std::convert::Infallible;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use common::format::VERSION;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use super::order::{LINE_MAX_BYTES, Look, Order, Reply, Said, Speaker};
use super::{Origin, READY};
use crate::config::Config;

/// How long a spawner that is executed may take until it listens: a busy disk takes seconds for its first files.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an order waits for a spawner that is being started, or started again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait between two attempts to reach a spawner that is a unit of its own and being restarted.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long a spawner of another version is waited for to be replaced: a package starts the two units one after the other.
const OTHER_VERSION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait until it is asked again.
const OTHER_VERSION_PAUSE: Duration = Duration::from_millis(200);

/// How soon a spawner of the server's own that has died is started again though nobody asks for anything; and after an attempt that failed.
const KEEP_EVERY: Duration = Duration::from_secs(1);
const KEEP_AGAIN: Duration = Duration::from_secs(10);

/// Looks that are under way at once, each with a connection, and so a process of the spawner's.
const LOOKS_MAX: usize = 8;

/// How long a look may take: a disk that has just been woken takes seconds for its first file.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

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
    /// It is of another version, and stays so: it has done nothing.
    #[error(
        "the spawner is minion {}, and this server is minion {VERSION}, and they do not understand each other: one of the two has not been          started again; run `systemctl restart minion-spawner minion`", .0.by.escape_debug()
    )]
    OtherVersion(Speaker),
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
    /// Connections for those that only look, while nobody uses them.
    kept: Mutex<Vec<UnixStream>>,
    looks: Semaphore,
}

impl Spawner {
    /// The spawner of this host. With [`Origin::Server`] it is started now, and again whenever it has died.
    ///
    /// # Errors
    /// It does not start.
    pub fn open(config: &Config, origin: Origin) -> std::io::Result<Self> {
        let own = (origin == Origin::Server).then(Mutex::default);
        let (socket, config_file) = (config.spawner_socket(), config.file.clone());
        let spawner = Self { socket, config_file, own, kept: Mutex::default(), looks: Semaphore::new(LOOKS_MAX) };
        spawner.ensure()?;
        Ok(spawner)
    }

    /// Starts the spawner again whenever it has died, if it is the server's own: it looks after the resident workers though nobody calls.
    pub async fn keep(&self) -> Infallible {
        if self.own.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            if let Err(error) = tokio::task::block_in_place(|| self.ensure()) {
                tracing::error!(%error, "the spawner has died, and another cannot be started; it is tried again");
                tokio::time::sleep(KEEP_AGAIN).await;
            }
        }
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
        let mut child = super::command(&self.config_file).spawn()?;
        let mut said = [0; READY.len()];
        let ready = child.stdout.take().map(|mut stdout| wait_readable(&stdout).and_then(|()| stdout.read_exact(&mut said)));
        if let Some(Err(error)) = ready {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::new(error.kind(), format!("the spawner did not start, and its own words say why: {error}")));
        }
        Ok(child)
    }

    /// Gives an order and waits for the reply, for at most `patience`. Dropping the future hangs up.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn order(&self, order: &Order, patience: Duration) -> Result<Reply, SpawnError> {
        let (reply, _) = self.exchange_anew(order, patience).await?;
        Ok(reply)
    }

    /// Over a connection of its own. One who does not speak our protocol has done nothing, and another is about to take his place.
    async fn exchange_anew(&self, order: &Order, patience: Duration) -> Result<(Reply, UnixStream), SpawnError> {
        let deadline = tokio::time::Instant::now() + OTHER_VERSION_TIMEOUT;
        let mut is_told = false;
        loop {
            let mut stream = self.connect().await?;
            match exchange(&mut stream, order, patience).await.map_err(SpawnError::NoAnswer)? {
                Reply::OtherVersion(other) if tokio::time::Instant::now() >= deadline => return Err(SpawnError::OtherVersion(other)),
                Reply::OtherVersion(other) => {
                    if !std::mem::replace(&mut is_told, true) {
                        warn!(version = %other.by.escape_debug(), "the spawner is of another version; it is asked again until it has been replaced");
                    }
                    tokio::time::sleep(OTHER_VERSION_PAUSE).await;
                }
                reply => return Ok((reply, stream)),
            }
        }
    }

    /// Has the spawner look at something.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn look(&self, look: Look) -> Result<Reply, SpawnError> {
        let place = timeout(LOOK_TIMEOUT, self.looks.acquire()).await;
        let _place = place.map_err(|_| SpawnError::NoAnswer(std::io::ErrorKind::TimedOut.into()))?;
        let order = Order::Look(look);
        // One that was kept may be at its end, which changes nothing: who only looks may look again.
        let kept = self.kept().pop();
        if let Some(mut kept) = kept
            && let Ok(reply) = exchange(&mut kept, &order, LOOK_TIMEOUT).await
            && !matches!(reply, Reply::OtherVersion(_))
        {
            self.kept().push(kept);
            return Ok(reply);
        }
        let (reply, stream) = self.exchange_anew(&order, LOOK_TIMEOUT).await?;
        self.kept().push(stream);
        Ok(reply)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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

/// Says `order`, and waits for the reply.
async fn exchange(stream: &mut UnixStream, order: &Order, patience: Duration) -> std::io::Result<Reply> {
    let mut line = serde_json::to_vec(&Said::of(order))?;
    line.push(b'\n');
    let reply = async {
        stream.write_all(&line).await?;
        let mut reply = Vec::new();
        // Nothing stands behind a reply until the next order.
        let read = BufReader::new(&mut *stream).take(LINE_MAX_BYTES).read_until(b'\n', &mut reply).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&reply)?)
    };
    timeout(patience, reply).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
