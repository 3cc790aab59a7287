//! What one side of the fleet's connections goes by: its authority, certificate, key and revocation list, as they lie on disk now.
//!
//! Whoever changes the files, a renewal, a command or an administrator, changes nothing else: from the next use on they hold. What cannot be
//! used (half written, not belonging together, an older list) is told once, and what was there before goes on until the files change
//! again. Nothing here writes but [`Trust::take_crl`] and [`Trust::take_cert`].

mod configurations;
mod source;
pub(crate) mod stamp;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use common::identity::Role;
use common::shown::chain;
use jiff::Timestamp;
use rustls::ServerConfig;

use crate::crl::{Crl, CrlError, StaleCrl};
use crate::files::{Credentials, FileError};
use crate::renewal::{RenewalError, replace_cert};
use crate::tls::checks::refuse_revoked;
use crate::tls::{self, Peer, TlsError};
pub use configurations::{AuthorityTls, Configurations, MinionTls, OverlordTls, Serving};
use source::Source;
use stamp::Stamps;

/// The files are looked at no more often than this.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where the files of a side lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFiles {
    /// The authority's certificate, or several.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The revocation list, which need not be there.
    pub crl: PathBuf,
}

impl TrustFiles {
    /// A host's: `ca.pem`, `cert.pem`, `key.pem` and `crl.pem` of a folder.
    #[must_use]
    pub fn of_minion(folder: &Path) -> Self {
        Self { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem"), crl: folder.join("crl.pem") }
    }

    /// An overlord's: `ca.pem`, `overlord.pem`, `overlord.key` and `crl.pem` of a folder.
    #[must_use]
    pub fn of_overlord(folder: &Path) -> Self {
        Self { ca: folder.join("ca.pem"), cert: folder.join("overlord.pem"), key: folder.join("overlord.key"), crl: folder.join("crl.pem") }
    }
}

/// Why there is nothing to go by, or a new piece of it is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The revocation list cannot be used.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// The certificate cannot be used for what this side does.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate was made in memory, and could not be.
    #[error("making a certificate: {0}")]
    Made(String),
    /// The certificate is somebody else's than before.
    #[error("the certificate is one of {now} now, and was one of {before}: restart, if that is meant")]
    OtherRole {
        /// What it is now.
        now: Role,
        /// What it was.
        before: Role,
    },
}

/// What a side goes by at one moment.
#[derive(Debug)]
pub struct Trusted<T> {
    credentials: Credentials,
    tls: T,
}

impl<T> Trusted<T> {
    /// Certificate, key, authority and revocation list.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The revocation list, if there is one.
    #[must_use]
    pub fn crl(&self) -> Option<&Crl> {
        self.credentials.crl()
    }

    /// The number of the revocation list; 0 if there is none.
    #[must_use]
    pub fn crl_number(&self) -> u64 {
        self.crl().map_or(0, Crl::number)
    }

    /// The TLS configurations made of them.
    #[must_use]
    pub fn tls(&self) -> &T {
        &self.tls
    }

    /// Since when the revocation list is stale, if it is: an alarm.
    #[must_use]
    pub fn stale_since(&self) -> Option<Timestamp> {
        self.crl().filter(|crl| crl.is_stale(Timestamp::now())).map(Crl::next_update)
    }

    /// Whether a peer whose handshake has succeeded may still be there. That its certificate has expired since is no reason to send it away.
    ///
    /// # Errors
    /// It has been revoked, or our list is stale and we are to refuse everyone then: why, for the log.
    pub fn admits(&self, peer: &Peer) -> Result<(), String> {
        refuse_revoked(&peer.serial, &self.credentials.revocations, Timestamp::now())
            .map_err(|error| tls::client_refusal(&error).unwrap_or_else(|| error.to_string()))
    }
}

/// A minion's trust.
pub type MinionTrust = Trust<MinionTls>;
/// An overlord's trust.
pub type OverlordTrust = Trust<OverlordTls>;
/// The trust of `overlord certs serve`.
pub type AuthorityTrust = Trust<AuthorityTls>;

/// What one side goes by, as it lies on disk now.
pub struct Trust<T> {
    source: Source,
    crl: PathBuf,
    stale: StaleCrl,
    trouble: Box<dyn Fn(&str) + Send + Sync>,
    /// Taken for as long as the files are looked at; who finds it taken goes by what there is.
    watch: Mutex<Watch>,
    trusted: RwLock<Arc<Trusted<T>>>,
}

struct Watch {
    looked_at: Instant,
    seen: Stamps,
    /// What was told last, so that it is told once.
    told: Vec<String>,
}

impl<T: Configurations> Trust<T> {
    /// Reads the files. `trouble` is told, in a line for a log, of each thing that cannot be used later on, and of a revocation list that
    /// cannot be used now.
    ///
    /// # Errors
    /// A file cannot be used: at the start there is nothing before it to go on with. The revocation list is such a file with
    /// [`StaleCrl::Refuse`] alone: a host that everybody is locked out of by a damaged file could not be mended either.
    pub fn open(files: TrustFiles, stale: StaleCrl, trouble: impl Fn(&str) + Send + Sync + 'static) -> Result<Self, TrustError> {
        let TrustFiles { ca, cert, key, crl } = files;
        Self::from_source(Source::Files { ca, cert, key }, crl, stale, Box::new(trouble))
    }

    /// As [`Trust::open`], with credentials that `make` makes in memory: again when `ca` changes, and when half of their life is over.
    ///
    /// # Errors
    /// They cannot be made, or the revocation list cannot be used.
    pub fn of_made(
        ca: PathBuf,
        crl: PathBuf,
        stale: StaleCrl,
        make: impl Fn() -> Result<Credentials, String> + Send + Sync + 'static,
        trouble: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self, TrustError> {
        Self::from_source(Source::Made { ca, make: Box::new(make) }, crl, stale, Box::new(trouble))
    }

    fn from_source(source: Source, crl: PathBuf, stale: StaleCrl, trouble: Box<dyn Fn(&str) + Send + Sync>) -> Result<Self, TrustError> {
        let seen = Stamps::of(&source.paths(&crl));
        let credentials = source.credentials()?;
        let (list, told) = match (Crl::load(&crl, credentials.authorities()), stale) {
            (Ok(list), _) => (list, Vec::new()),
            // Without a list we are where we were before there was one, and the next overlord that calls brings it.
            (Err(error), StaleCrl::Serve) => (None, vec![chain(&error)]),
            (Err(error), StaleCrl::Refuse) => return Err(error.into()),
        };
        told.iter().for_each(|told| trouble(told));
        let trusted = Arc::new(trusted(credentials.with_crl(list, stale))?);
        let watch = Watch { looked_at: Instant::now(), seen, told };
        Ok(Self { source, crl, stale, trouble, watch: Mutex::new(watch), trusted: RwLock::new(trusted) })
    }

    /// What to go by now. Looks at the files if nobody has for [`LOOK_EVERY`], or goes by what there is while somebody else is looking.
    #[must_use]
    pub fn now(&self) -> Arc<Trusted<T>> {
        let watch = match self.watch.try_lock() {
            Ok(watch) => Some(watch),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(watch) = watch.filter(|watch| watch.looked_at.elapsed() >= LOOK_EVERY) {
            self.look(watch);
        }
        self.held()
    }

    /// What to go by now, looking at the files in any case: for who has just changed one.
    #[must_use]
    pub fn refreshed(&self) -> Arc<Trusted<T>> {
        self.look(self.watch.lock().unwrap_or_else(PoisonError::into_inner));
        self.held()
    }

    /// Whether a peer whose handshake has succeeded may still be there: [`Trusted::admits`] of now.
    ///
    /// # Errors
    /// As there.
    pub fn admits(&self, peer: &Peer) -> Result<(), String> {
        self.now().admits(peer)
    }

    /// Takes a revocation list that somebody gave us, if our authority has signed it and it is newer than ours: it is on disk, and gone by,
    /// once this returns. Says whether it was newer.
    ///
    /// # Errors
    /// It cannot be used, or not be written.
    pub fn take_crl(&self, pem: &str) -> Result<bool, CrlError> {
        let held = self.now();
        let offered = Crl::parse(pem, held.credentials().authorities())?;
        if offered.number() <= held.crl_number() {
            return Ok(false);
        }
        let newer = offered.install(&self.crl, held.credentials().authorities())?;
        drop(self.refreshed());
        Ok(newer)
    }

    /// Puts a renewed certificate in the place of ours, as [`replace_cert`] does, and goes by it.
    ///
    /// # Errors
    /// As [`replace_cert`]; or our certificate lies in no file.
    pub fn take_cert(&self, pem: &str) -> Result<(), RenewalError> {
        let Source::Files { ca, cert, key } = &self.source else {
            return Err(RenewalError::NoFile);
        };
        replace_cert(ca, cert, key, pem)?;
        drop(self.refreshed());
        Ok(())
    }

    fn held(&self) -> Arc<Trusted<T>> {
        self.trusted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self, mut watch: MutexGuard<'_, Watch>) {
        watch.looked_at = Instant::now();
        let seen = Stamps::of(&self.source.paths(&self.crl));
        let held = self.held();
        let (from, due, now) = (held.credentials.not_before(), held.credentials.renewal_due_at(), Timestamp::now());
        // Made while the clock was ahead, it is good for nobody.
        let renew = self.source.is_made() && (due < now || now < from);
        let again = renew || !watch.seen.are_settled();
        if !again && seen == watch.seen {
            return;
        }
        let changed = again || seen.credentials() != watch.seen.credentials();
        watch.seen = seen;
        let mut troubles = Vec::new();
        match self.read(&held, changed, &mut troubles) {
            Ok(trusted) => *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trusted),
            Err(error) => troubles.push(chain(&error)),
        }
        for trouble in troubles.iter().filter(|trouble| !watch.told.contains(trouble)) {
            (self.trouble)(trouble);
        }
        watch.told = troubles;
    }

    /// What the files say now, with what was held in the place of whatever cannot be used.
    fn read(&self, held: &Trusted<T>, changed: bool, troubles: &mut Vec<String>) -> Result<Trusted<T>, TrustError> {
        let mut credentials = held.credentials.clone();
        if changed {
            match self.source.credentials().and_then(|read| usable::<T>(read, &held.credentials)) {
                Ok(read) => credentials = read,
                Err(error) => troubles.push(chain(&error)),
            }
        }
        let authorities = credentials.authorities();
        // A list of an authority that is not ours any more says nothing, and its number is of another row.
        let ours =
            held.crl().cloned().filter(|crl| authorities == held.credentials.authorities() || Crl::parse(crl.pem(), authorities).is_ok());
        let list = newer_list(Crl::load(&self.crl, authorities), ours, &self.crl).unwrap_or_else(|(kept, trouble)| {
            troubles.push(trouble);
            kept
        });
        trusted(credentials.with_crl(list, self.stale))
    }
}

impl<T: Serving> Trust<T> {
    /// With which configuration to accept now.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        self.now().tls().server().clone()
    }
}

impl<T> fmt::Debug for Trust<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Trust").field("crl", &self.crl).field("stale", &self.stale).finish_non_exhaustive()
    }
}

fn trusted<T: Configurations>(credentials: Credentials) -> Result<Trusted<T>, TrustError> {
    let tls = T::of(&credentials)?;
    Ok(Trusted { credentials, tls })
}

fn usable<T: Configurations>(read: Credentials, held: &Credentials) -> Result<Credentials, TrustError> {
    if read.role() != held.role() {
        return Err(TrustError::OtherRole { now: read.role().clone(), before: held.role().clone() });
    }
    T::of(&read)?;
    Ok(read)
}

/// The list to go by: the one that was read, or, with a reason, the one that was held.
pub(crate) fn newer_list(
    read: Result<Option<Crl>, CrlError>,
    held: Option<Crl>,
    path: &Path,
) -> Result<Option<Crl>, (Option<Crl>, String)> {
    let number = held.as_ref().map_or(0, Crl::number);
    let path = path.display();
    match read {
        Ok(Some(read)) if read.number() >= number => Ok(Some(read)),
        Ok(Some(read)) => Err((
            held,
            format!("{path} is an older revocation list (number {}) than the one we go by ({number}), which stays", read.number()),
        )),
        Ok(None) if number > 0 => Err((held, format!("{path} is gone; the revocation list number {number} stays in force"))),
        Ok(None) => Ok(held),
        Err(error) => Err((held, chain(&error))),
    }
}
