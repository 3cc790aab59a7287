//! This overlord's own certificate, renewed in time: by the authority's desk where that is in this home, else by asking `overlord certs serve`.
//! The key stays, and the new certificate holds from the next dial on.

mod list;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use certs::authority::desk::Desk;
use certs::files::Credentials;
use certs::trust::OverlordTrust;
use jiff::{SignedDuration, Timestamp};
use service::authority::{AuthorityClient, Deadlines};

use super::audit::{Action, Decision, Entry, Ledger};
use super::{Office, OfficeError};
use crate::chain;
use crate::config::Config;
use crate::fleet::Warning;
use crate::home::Home;

/// An attempt that failed is made again after this part of the certificate's life, but no sooner than after [`PAUSE_MIN`].
const PAUSE_PART_OF_LIFE: i32 = 100;
const PAUSE_MIN: SignedDuration = SignedDuration::from_secs(1);

/// The certificate has expired, and no other was to be had.
#[derive(Debug, thiserror::Error)]
#[error("this overlord's certificate has expired on {expired_at}, and could not be renewed: {reason}")]
pub struct RenewalFailed {
    expired_at: Timestamp,
    reason: String,
}

/// Who sees to it that the certificate is renewed.
pub(crate) struct Renewal {
    home: Home,
    config: Config,
    trust: Arc<OverlordTrust>,
    warning: Warning,
    /// One attempt at a time.
    is_trying: AtomicBool,
}

impl Renewal {
    pub(crate) fn new(home: &Home, config: &Config, trust: &Arc<OverlordTrust>, warning: &Warning) -> Self {
        let (home, config, trust, warning) = (home.clone(), config.clone(), trust.clone(), warning.clone());
        Self { home, config, trust, warning, is_trying: AtomicBool::new(false) }
    }

    /// Renews what is due before hosts are called: the certificate, and the revocation list, which is signed where the authority is, and asked for
    /// elsewhere.
    ///
    /// # Errors
    /// The certificate has expired, and could not be renewed. That it could not be renewed in time is a warning.
    pub(crate) fn before_calls(&self) -> Result<(), RenewalFailed> {
        let now = Timestamp::now();
        if Office::is_in(&self.home)
            && is_list_due(&self.trust, now)
            && let Err(error) = tend(&self.home, &self.config)
        {
            (self.warning)(&format!("the revocation list is not signed anew: {}", chain(&error)));
        }
        self.look_at_list();
        let credentials = self.trust.now().credentials().clone();
        let has_expired = now >= credentials.not_after();
        if now < credentials.renewal_due_at() || !(has_expired || self.may_try(&credentials)) {
            return Ok(());
        }
        match self.renew() {
            Ok(()) => Ok(()),
            Err(reason) if has_expired => Err(RenewalFailed { expired_at: credentials.not_after(), reason }),
            Err(reason) => {
                (self.warning)(&format!("this overlord's certificate ends {}, and is not renewed: {reason}", credentials.not_after()));
                Ok(())
            }
        }
    }

    /// The same for a command that goes on for long, from a thread of its own: nobody waits for it.
    pub(crate) fn look(self: &Arc<Self>) {
        if Timestamp::now() < self.trust.now().credentials().renewal_due_at() || self.is_trying.swap(true, Ordering::AcqRel) {
            return;
        }
        let renewal = self.clone();
        let work = move || {
            if let Err(error) = renewal.before_calls() {
                (renewal.warning)(&error.to_string());
            }
            renewal.is_trying.store(false, Ordering::Release);
        };
        if thread::Builder::new().name("renewal".to_owned()).spawn(work).is_err() {
            self.is_trying.store(false, Ordering::Release);
        }
    }

    /// Renews the certificate now.
    ///
    /// # Errors
    /// Why it was not: for a person.
    pub(crate) fn renew(&self) -> Result<(), String> {
        self.mark_attempt();
        if Office::is_in(&self.home) {
            return self.renew_here();
        }
        let Some(address) = &self.config.authority else {
            return Err(
                "the authority is not in this home, and overlord.toml does not say `authority = \"HOST:PORT\"`, where `overlord certs serve` \
                 listens"
                    .to_owned(),
            );
        };
        // In a thread of its own: whoever calls may be within a runtime.
        let asked = thread::scope(|scope| scope.spawn(|| self.renew_there(address)).join());
        asked.unwrap_or_else(|_| Err("asking for it panicked, which is a bug".to_owned()))
    }

    fn renew_here(&self) -> Result<(), String> {
        let Office { mut desk, ledger } = Office::open(&self.home, &self.config).map_err(|error| chain(&error))?;
        renew_at(&mut desk, &ledger, &self.trust, || Entry::of_command(Action::Renew))
    }

    fn renew_there(&self, address: &str) -> Result<(), String> {
        let trusted = self.trust.now();
        let deadlines = Deadlines { connect: self.config.connect_timeout, answer: self.config.connect_timeout };
        let ours = trusted.credentials().role().clone();
        let mut authority = AuthorityClient::new(address, trusted.tls().authority.clone(), deadlines).showing(ours);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let renewed = runtime.block_on(authority.renew());
        // A name server that does not answer must not keep the command.
        runtime.shutdown_background();
        let issued = renewed.map_err(|error| error.to_string())?;
        self.trust.take_cert(&issued.cert).map_err(|error| chain(&error))?;
        // The certificate is renewed, whatever becomes of the list that came with it.
        if let Some(Err(error)) = issued.revocations.crl.as_ref().map(|crl| self.trust.take_crl(crl)) {
            (self.warning)(&format!("the authority's revocation list is not taken: {}", chain(&error)));
        }
        Ok(())
    }

    /// Whether the last attempt, of any command, is long enough ago.
    fn may_try(&self, credentials: &Credentials) -> bool {
        let life = credentials.not_after().duration_since(credentials.issued_at());
        let pause = (life / PAUSE_PART_OF_LIFE).max(PAUSE_MIN).unsigned_abs();
        is_long_ago(&self.home.renewal_mark(), pause)
    }

    /// Where it cannot be written, each command makes an attempt.
    fn mark_attempt(&self) {
        let _unmarked: io::Result<()> = fs::write(self.home.renewal_mark(), []);
    }
}

/// Renews this overlord's certificate at the desk, and puts it in place.
///
/// # Errors
/// Why it was not: for a person.
pub(super) fn renew_at(desk: &mut Desk, ledger: &Ledger, trust: &OverlordTrust, entry: impl Fn() -> Entry) -> Result<(), String> {
    let credentials = trust.now().credentials().clone();
    let cert = credentials.cert().cloned().ok_or("there is no certificate")?;
    let mut answers = desk.renew(&[cert]).map_err(|error| chain(&error))?;
    let entry = entry().about([credentials.role().name()]);
    let certified = match answers.pop() {
        Some(Ok(certified)) => certified,
        Some(Err(refused)) => {
            let entry = entry.decided(Decision::Refused, Some(refused.to_string()));
            ledger.record(&entry).map_err(|error| chain(&error))?;
            return Err(refused.to_string());
        }
        None => return Err("the authority has said nothing".to_owned()),
    };
    ledger.record(&entry.with_serials([certified.serial])).map_err(|error| chain(&error))?;
    trust.take_cert(&certified.cert_pem).map_err(|error| chain(&error))
}

/// Signs the authority's revocation list anew if it is time.
pub(crate) fn tend(home: &Home, config: &Config) -> Result<(), OfficeError> {
    Ok(Office::desk(home, config)?.tend()?)
}

/// Whether that mark was made so long ago, or never.
fn is_long_ago(mark: &Path, pause: Duration) -> bool {
    let made = fs::metadata(mark).and_then(|mark| mark.modified());
    // A mark of the future is one of a clock that was set.
    made.ok().and_then(|made| SystemTime::now().duration_since(made).ok()).is_none_or(|ago: Duration| ago >= pause)
}

/// Whether half the time of the list is over.
fn is_list_due(trust: &OverlordTrust, now: Timestamp) -> bool {
    trust.now().crl().is_none_or(|list| now >= list.half_time())
}
