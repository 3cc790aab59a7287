//! The spawner's socket: who can reach it, and who is heard. The server, root, and nobody else.
//!
//! It reads nothing that anybody says.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tracing::warn;

use super::{Origin, SpawnerError};
use crate::config::Config;
use crate::server_user::ServerUser;

/// Taken away from a new socket's mode: this user alone has it, or this user and a group.
const OWN: Mode = Mode::from_bits_truncate(0o177);
const SHARED: Mode = Mode::from_bits_truncate(0o117);
/// How often strangers are told of in the log.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long a spawner that listens already may take to end: one that was told to does it at once.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const END_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long it takes no connection after one could not be taken, for want of files for instance.
const DEAF_FOR: Duration = Duration::from_millis(50);
const ROOT: u32 = 0;

/// The spawner's ear.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    /// Whose connections are served.
    heard: Vec<u32>,
    strangers: Strangers,
}

/// Connections of others.
#[derive(Debug, Default)]
struct Strangers {
    count: u64,
    told_at: Option<Instant>,
}

impl Socket {
    /// Listens, for this user alone from the first instant, and for the server's where that is another. A socket that a dead spawner left
    /// behind is replaced, and one that lives is waited for.
    pub(super) fn listen(config: &Config, origin: Origin) -> Result<Self, SpawnerError> {
        let path = config.spawner_socket();
        let user = config.user.as_ref().filter(|_| geteuid().is_root());
        // Another server's spawner cannot be there: the server's lock is taken before it starts one.
        if (origin == Origin::Unit || user.is_some()) && !is_free(&path) {
            return Err(SpawnerError::InUse { path });
        }
        let listener = bind(&path, user).map_err(|source| SpawnerError::Listen { path, source })?;
        let heard = [ROOT, geteuid().as_raw()].into_iter().chain(user.map(ServerUser::uid)).collect();
        Ok(Self { listener, heard, strangers: Strangers::default() })
    }

    /// The next connection of somebody who is heard; none if nobody waits. Others are hung up on.
    pub(super) fn accept(&mut self) -> Option<UnixStream> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    // Whoever waits goes on waiting, and would be found waiting again and again meanwhile.
                    warn!(%error, "the spawner's socket cannot take a connection");
                    std::thread::sleep(DEAF_FOR);
                    return None;
                }
            };
            match getsockopt(&stream, PeerCredentials) {
                Ok(peer) if self.heard.contains(&peer.uid()) => return Some(stream),
                Ok(peer) => self.strangers.tell(Some((peer.uid(), peer.pid()))),
                Err(_) => self.strangers.tell(None),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Strangers {
    /// The first is told at once, those of the next minute together.
    fn tell(&mut self, who: Option<(u32, i32)>) {
        self.count += 1;
        if self.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
            self.told_at = Some(Instant::now());
            let (uid, pid) = who.unzip();
            warn!(uid, pid, so_far = self.count, "a process that is not the server's was refused at the spawner's socket");
        }
    }
}

/// Made under another name first: the one that it gets is never free, so nobody can put anything in its place.
fn bind(path: &Path, user: Option<&ServerUser>) -> io::Result<UnixListener> {
    // Shorter than the name that it gets, as a socket's path must be short.
    let draft = path.with_file_name(format!(".s{:08x}", jiff::Timestamp::now().subsec_nanosecond()));
    let before = umask(if user.is_some() { SHARED } else { OWN });
    let bound = UnixListener::bind(&draft);
    umask(before);
    let listener = bound?;
    if let Some(user) = user {
        lchown(&draft, None, Some(user.gid()))?;
    }
    std::fs::rename(&draft, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether no other spawner listens there. What others than this user have put there is no spawner.
fn is_free(path: &Path) -> bool {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let is_ours = path.symlink_metadata().is_ok_and(|file| file.uid() == geteuid().as_raw());
        if !is_ours || !is_heard(path) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(END_LOOK_EVERY);
    }
}

/// Whether somebody listens at the socket. It does not wait for him.
fn is_heard(path: &Path) -> bool {
    let connected = UnixAddr::new(path).and_then(|address| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let ours = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(ours.as_raw_fd(), &address)
    });
    // His queue is full.
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}
