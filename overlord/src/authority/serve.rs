//! `overlord certs serve`: the authority for hosts and other overlords, over TLS. It answers; what it answers is decided at the desk.

mod reception;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::authority::Authority;
use certs::authority::desk::{CRL_FILE, Desk};
use certs::crl::StaleCrl;
use certs::files::Credentials;
use certs::trust::{AuthorityTrust, OverlordTrust, TrustError};
use service::audit::COUNTED_FOR;
use service::{Limits, Strangers};
use tokio::net::TcpListener;
use tracing::{error, info, warn};

use super::audit::{Action, Entry, Ledger};
use super::clerk::Clerk;
use super::renewal::renew_at;
use super::{Office, OfficeError, enroll_line_at, public_address};
use crate::chain;
use crate::config::Config;
use crate::fleet::{Fleet, Warning, open_trust};
use reception::Desk as Counter;

/// How long the certificate that the server shows is good; another one is made at half of that.
const SERVER_VALID: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate request and what is around it.
const BODY_MAX_BYTES: u32 = 64 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Of who shows no certificate.
const STRANGERS_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// The desk is tended at least this often within the life of a certificate or a list, within bounds.
const TEND_PART_OF_LIFE: u32 = 20;
const TEND_EVERY_MIN: Duration = Duration::from_secs(1);
const TEND_EVERY_MAX: Duration = Duration::from_secs(60 * 60);
/// Threads that carry connections.
const WORKERS: usize = 2;
/// How long blocking work may hold up the end of the process.
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the authority does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// There is none here.
    #[error(transparent)]
    Office(#[from] OfficeError),
    /// Its certificate or revocation list cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address cannot be listened at.
    #[error("cannot listen at {address} (--listen or certs.listen in overlord.toml names another address)")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no thread, or no signals.
    #[error("starting threads: {0}")]
    Threads(std::io::Error),
    /// Nobody is there any more who decides.
    #[error(
        "the thread at the desk has panicked, which is a bug: nobody could be answered any more. What was decided is on disk; start it again"
    )]
    Desk,
}

/// Serves at `listen` until SIGTERM or SIGINT; `ready` is told what to type on a host once connections are accepted.
///
/// # Errors
/// It cannot begin to, or cannot go on.
pub(crate) fn serve(fleet: &Fleet, listen: SocketAddr, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
    serve_tended(fleet, listen, ready, tending(fleet))
}

fn serve_tended(
    fleet: &Fleet,
    listen: SocketAddr,
    ready: impl FnOnce(&str),
    tend: impl FnMut(&mut Desk, &Ledger) + Send + 'static,
) -> Result<(), ServeError> {
    let config = fleet.config();
    let mut office = Office::open(fleet.home(), config)?;
    // The first list of an authority that has none, before anybody asks for it.
    office.desk.tend().map_err(OfficeError::from)?;
    let trust = Arc::new(server_trust(fleet.home().certs_dir())?);
    let (pin, ledger) = (office.desk.authority().pin().clone(), office.ledger.clone());
    let (clerk, ended, desk) = Clerk::start(office, tend_every(config), tend).map_err(ServeError::Threads)?;
    let counter = Arc::new(Counter::new(clerk, trust.clone(), ledger.clone()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().map_err(ServeError::Threads)?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.map_err(|source| ServeError::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { address: listen, source })?;
        let stop = service::stop_on_signals().map_err(ServeError::Threads)?;
        info!(%address, "listening");
        ready(&enroll_line_at(&public_address(config, address), &pin));
        tokio::select! {
            () = service::serve(listener, trust, counter, Arc::new(limits(config)), stop) => Ok(()),
            () = ended.wait() => Err(ServeError::Desk),
            never = tell_repeats(&ledger) => match never {},
        }
    });
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    if let Err(problem) = ledger.tell_all_repeats() {
        error!(problem = %chain(&problem), "how often was refused cannot be written down");
    }
    match desk.join() {
        Ok(()) => served,
        Err(_) => Err(ServeError::Desk),
    }
}

/// Sees to it that what was counted is in the log in time, though nothing else comes.
async fn tell_repeats(ledger: &Ledger) -> Infallible {
    loop {
        tokio::time::sleep(COUNTED_FOR).await;
        if let Err(problem) = ledger.tell_repeats(Instant::now()) {
            error!(problem = %chain(&problem), "how often was refused cannot be written down");
        }
    }
}

/// What the server shows is made by whoever holds the authority's key, and lies in no file.
fn server_trust(dir: PathBuf) -> Result<AuthorityTrust, TrustError> {
    let (ca, crl) = (dir.join("ca.pem"), dir.join(CRL_FILE));
    let make = {
        let ca = ca.clone();
        move || {
            let identity = Authority::open(&dir).and_then(|authority| authority.server_identity(SERVER_VALID));
            let made = Credentials::made(&ca, identity.map_err(|error| chain(&error))?);
            made.map_err(|error| chain(&error))
        }
    };
    AuthorityTrust::of_made(ca, crl, StaleCrl::Serve, make, |trouble| warn!("{trouble}"))
}

fn limits(config: &Config) -> Limits {
    let connections_max = usize::try_from(config.certs.connections_max.get()).unwrap_or(usize::MAX);
    let per_address_max = usize::try_from(config.certs.connections_per_address_max.get()).unwrap_or(usize::MAX);
    // The other half is for those who renew.
    let strangers = Strangers { connections_max: connections_max.div_ceil(2), per_address_max, idle_timeout: STRANGERS_IDLE_TIMEOUT };
    Limits {
        body_max_bytes: BODY_MAX_BYTES,
        connections_max,
        handshakes_max: usize::try_from(config.certs.handshakes_max.get()).unwrap_or(usize::MAX),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        header_timeout: HEADER_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        shutdown_grace: SHUTDOWN_GRACE,
        strangers: Some(strangers),
    }
}

fn tend_every(config: &Config) -> Duration {
    let life = config.certs.crl_valid.min(config.certs.valid);
    (life / TEND_PART_OF_LIFE).clamp(TEND_EVERY_MIN, TEND_EVERY_MAX)
}

/// What is due by time alone: the revocation list, what is to be forgotten, and the certificate of this home's overlord.
fn tending(fleet: &Fleet) -> impl FnMut(&mut Desk, &Ledger) + Send + 'static {
    let (home, config) = (fleet.home().clone(), fleet.config().clone());
    let warning: Warning = Arc::new(|text| warn!("{text}"));
    let mut own: Option<OverlordTrust> = None;
    move |desk, ledger| {
        if let Err(problem) = desk.tend() {
            error!(problem = %chain(&problem), "the authority cannot be tended");
        }
        // A home without an overlord's certificate needs none to serve.
        own = own.take().or_else(|| open_trust(&home, &config, &warning).ok());
        let Some(own) = &own else { return };
        if jiff::Timestamp::now() >= own.now().credentials().renewal_due_at()
            && let Err(problem) = renew_at(desk, ledger, own, || Entry::of_command(Action::Renew))
        {
            warn!(%problem, "this home's own certificate is not renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::fake_minion::Lab;

    #[test]
    fn a_server_at_whose_desk_nobody_is_any_more_ends_with_an_error() {
        let lab = Lab::new();
        let (fleet, (told, ended)) = (lab.fleet(), channel());
        thread::spawn(move || {
            let served = serve_tended(&fleet, "127.0.0.1:0".parse().unwrap(), |_| (), |_, _| panic!("of the test's"));
            told.send(served).unwrap();
        });
        let served = ended.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(served, Err(ServeError::Desk)), "{served:?}");
    }
}
