//! A flood: thousands of connections to one server, from as many addresses of loopback, each of which does the same all the time and comes back when
//! it is cut. And what a server takes of memory and processor meanwhile.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};

use crate::tools;

/// Files of the test process that are no connections of a flood.
const OTHER_FILES: u64 = 2000;
/// How long a connection that was cut stays away.
const AWAY: Duration = Duration::from_secs(3);
/// How often one that writes slowly writes a byte.
const BYTE_EVERY: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Connections made at once.
const CONNECTING_MAX: usize = 256;

/// What each connection of a flood does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Habit {
    /// Nothing.
    Silent,
    /// It writes these bytes at once, and then nothing.
    Says(Vec<u8>),
    /// It writes these bytes, one a second, and then nothing.
    Slow(Vec<u8>),
}

/// Connections that are kept up. Dropped, they are gone.
#[derive(Debug)]
pub struct Flood {
    made: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// So many connections to `address`.
    ///
    /// # Panics
    /// This process may not have so many files open.
    #[must_use]
    pub fn of(address: SocketAddr, connections: usize, habit: &Habit) -> Self {
        allow_files(u64::try_from(connections).unwrap() + OTHER_FILES);
        let made = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = watch::channel(false);
        let (count, habit) = (Arc::clone(&made), habit.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(keep_up(address, connections, &habit, &count, stopped));
        });
        Self { made, stop, thread: Some(thread) }
    }

    /// How many connections it has made so far, those included that were cut and made again.
    #[must_use]
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn keep_up(address: SocketAddr, connections: usize, habit: &Habit, made: &Arc<AtomicUsize>, mut stop: watch::Receiver<bool>) {
    let connecting = Arc::new(tokio::sync::Semaphore::new(CONNECTING_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..connections {
        let (made, connecting, habit) = (Arc::clone(made), Arc::clone(&connecting), habit.clone());
        tasks.spawn(async move {
            loop {
                let turn = connecting.acquire().await;
                let connected = timeout(CONNECT_WITHIN, connect(number, address)).await;
                drop(turn);
                if let Ok(Ok(stream)) = connected {
                    made.fetch_add(1, Ordering::Relaxed);
                    stay(stream, &habit).await;
                }
                sleep(AWAY).await;
            }
        });
    }
    let _ = stop.wait_for(|stop| *stop).await;
}

/// From an address of its own.
async fn connect(number: usize, address: SocketAddr) -> io::Result<TcpStream> {
    let [second, third, fourth] = [251 + number / 62_500, number / 250 % 250, 1 + number % 250].map(|byte| u8::try_from(byte).unwrap());
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, second, third, fourth), 0).into())?;
    socket.connect(address).await
}

/// Until it is cut.
async fn stay(mut stream: TcpStream, habit: &Habit) {
    let (mut from, mut to) = stream.split();
    let write = async {
        match habit {
            Habit::Silent => {}
            // An error shows when it is read.
            Habit::Says(bytes) => drop(to.write_all(bytes).await),
            Habit::Slow(bytes) => {
                for byte in bytes {
                    drop(to.write_all(&[*byte]).await);
                    sleep(BYTE_EVERY).await;
                }
            }
        }
        std::future::pending().await
    };
    let read = async { while matches!(from.read(&mut [0; 64]).await, Ok(1..)) {} };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// The first that a client of TLS 1.3 says, which proves nothing.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn client_hello() -> Vec<u8> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("web1").unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

fn allow_files(wanted: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < wanted {
        let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted.max(hard), wanted.max(hard));
        raised.unwrap_or_else(|error| panic!("this test needs {wanted} open files (`ulimit -Hn {wanted}`): {error}"));
    }
}

/// How many files a process has open.
#[must_use]
pub fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Lets a process that runs have so many files open, no more.
///
/// # Panics
/// That is not allowed.
pub fn limit_files(pid: i32, files: usize) {
    let words = ["--pid".to_owned(), pid.to_string(), format!("--nofile={files}:")];
    tools::run(tools::with(tools::tool("prlimit"), words));
}

/// The processor's time that a process has had, its threads together; none if it is gone.
#[must_use]
pub fn processor_time(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let ticks_a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_millis(ticks * 1000 / ticks_a_second))
}
