//! `simulate`: thousands of minions in one process, for benchmarks and for tests of size. Each has its own name, certificate and address;
//! they share one store and one spawner. What serves them is the minion's own server and door, so what answers is not a mock.
//!
//! `simulate FOLDER ECHO_PORT`: FOLDER holds `hosts` (lines `NAME ADDRESS`), `certs/NAME/` for each, and `minion.toml`, whose state and
//! rules they share. On ECHO_PORT of each address a bare TLS echo answers, with the same certificate: the limit to measure against.
//! Prints `ready` when all listen, and ends when its stdin does.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use certs::crl::StaleCrl;
use certs::trust::{MinionTrust, TrustFiles};
use minion::acl::Acl;
use minion::config::Config;
use minion::dispatch::{Door, Parts};
use minion::jobs::Jobs;
use minion::modules::Registry;
use minion::spawner::{self, Origin};
use service::audit::Audit;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The most that the echo takes at once, and gives back.
const ECHO_BYTES: usize = 4096;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // The jobs of a simulated fleet start their spawner by executing this program as they would execute the minion.
        ["--config", config, "spawner", "--of-server"] => spawn(Path::new(config)),
        [folder, echo_port] => match echo_port.parse() {
            Ok(echo_port) => simulate(Path::new(folder), echo_port),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _stderr_is_gone = writeln!(std::io::stderr(), "simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let _stderr_is_gone = writeln!(std::io::stderr(), "usage: simulate FOLDER ECHO_PORT");
    ExitCode::from(64)
}

/// The one spawner of all.
fn spawn(config: &Path) -> Result<(), AnyError> {
    let config = Config::load(config)?;
    let folder = config.file.parent().ok_or("the configuration lies in no folder")?;
    let hosts = std::fs::read_to_string(folder.join("hosts"))?;
    let names: Result<_, _> = hosts.lines().map(|line| line.split(' ').next().unwrap_or_default().parse()).collect();
    Ok(spawner::run(&config, names?, Origin::Server)?)
}

fn simulate(folder: &Path, echo_port: u16) -> Result<(), AnyError> {
    let config = Config::load(&folder.join("minion.toml"))?;
    let jobs = Arc::new(Jobs::open(&config, Origin::Server)?);
    let audit = Arc::new(Audit::open(&config.audit_log(), config.audit)?);
    let registry = Arc::new(Registry::builtin());
    let (limits, served) = (&config.limits, Arc::new(config.limits.listener()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        tokio::spawn(Arc::clone(&jobs).tend());
        for line in std::fs::read_to_string(folder.join("hosts"))?.lines() {
            let (name, address) = line.split_once(' ').ok_or("hosts has a line without an address")?;
            let files = TrustFiles::of_minion(&folder.join("certs").join(name));
            let trust = Arc::new(MinionTrust::open(files, StaleCrl::Serve, |_| ())?);
            let tls = trust.server();
            let acl = Arc::new(Acl::open(&config.acl_dir));
            let (audit, registry, jobs) = (Arc::clone(&audit), Arc::clone(&registry), Arc::clone(&jobs));
            let door = Door::new(name.parse()?, Parts { acl, audit, registry, jobs, trust: Arc::clone(&trust) }, limits);
            let address: SocketAddr = address.parse()?;
            let listener = TcpListener::bind(address).await?;
            tokio::spawn(service::serve(listener, trust, Arc::new(door), Arc::clone(&served), stopped.clone()));
            let echo = TcpListener::bind(SocketAddr::new(address.ip(), echo_port)).await?;
            tokio::spawn(serve_echo(echo, TlsAcceptor::from(tls)));
        }
        std::io::stdout().write_all(b"ready\n")?;
        std::io::stdout().flush()?;
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        Ok(())
    })
}

async fn serve_echo(listener: TcpListener, tls: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let mut stream = tls.accept(stream).await?;
            let mut bytes = vec![0; ECHO_BYTES];
            let count = stream.read(&mut bytes).await?;
            stream.write_all(bytes.get(..count).unwrap_or_default()).await?;
            stream.shutdown().await
        });
    }
}
