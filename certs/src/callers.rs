//! Who may call, for a process that has no key and takes nobody's word: the authority's certificate and the newest revocation list.
//!
//! The authority's file is gone by only while nobody but its owner can say what is in it. The list lies where somebody else writes: it may be put
//! back or deleted, or never be there, and the newest that the authority has signed stays in force, over a restart, too. Nothing here
//! knows a key, starts a thread, or waits for what somebody else does.

mod owned;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::shown::chain;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use crate::crl::{Crl, CrlError, StaleCrl};
use crate::files::{self, FileError, Revocations};
use crate::tls::{self, Peer};
use crate::trust::stamp::Stamps;
use crate::trust::{LOOK_EVERY, newer_list};
use owned::OwnedError;

/// The largest certificate that is looked at: one takes 1 KiB.
const CERT_MAX_BYTES: usize = 64 << 10;
/// How soon it is tried again to keep a list that could not be written.
const KEEP_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The authority's certificate and the revocation list, as they lie on disk now.
pub struct Callers {
    files: Files,
    stale: StaleCrl,
    owner: Option<u32>,
    trouble: Box<dyn Fn(&str)>,
    watch: Watch,
    /// None are trusted until the file is sound.
    authorities: Vec<CertificateDer<'static>>,
    list: Option<Crl>,
    /// The number of the list that is kept; 0 if none is.
    kept_number: u64,
    /// What certificates are held against, or why nobody may call.
    verifier: Result<Arc<dyn ClientCertVerifier>, String>,
}

struct Files {
    ca: PathBuf,
    crl: PathBuf,
    kept: PathBuf,
}

/// What was seen of the files when they were last read.
struct Watch {
    looked_at: Instant,
    /// Of our files, and of the one that is anybody's. None before the first look.
    seen: Option<(Stamps, Stamps)>,
    /// Why others than its owner can say what is in the authority's file.
    foreign: Option<String>,
    /// When a list was last written, or could not be.
    kept_at: Option<Instant>,
    /// What was told last, so that it is told once.
    told: Vec<String>,
}

impl Callers {
    /// Reads the authority's certificate, or several, in `ca`, which must belong to the user `owner` if there is one to name, and the revocation
    /// list in `crl`, which is anybody's. The newest list is kept in `kept`, which nobody else must be able to write. `trouble` is told, in a line
    /// for a log, of each thing that cannot be used, now and later on; without a usable `ca` everyone is refused, with the reason.
    pub fn open(ca: PathBuf, crl: PathBuf, kept: PathBuf, stale: StaleCrl, owner: Option<u32>, trouble: impl Fn(&str) + 'static) -> Self {
        let watch = Watch { looked_at: Instant::now(), seen: None, foreign: None, kept_at: None, told: Vec::new() };
        let mut callers = Self {
            files: Files { ca, crl, kept },
            stale,
            owner,
            trouble: Box::new(trouble),
            watch,
            authorities: Vec::new(),
            list: None,
            kept_number: 0,
            verifier: Err("no authority is known yet".to_owned()),
        };
        callers.look();
        callers
    }

    /// Looks at the files if nobody has for [`LOOK_EVERY`], and reads again what has changed.
    pub fn refresh(&mut self) {
        if self.watch.looked_at.elapsed() >= LOOK_EVERY {
            self.look();
        }
    }

    /// Who bears `cert`, if it may call at `now`: one of our authorities has issued it, to an overlord, it is valid, and not revoked. That whoever
    /// shows it holds its key is not proved by this.
    ///
    /// # Errors
    /// It may not: why, for the log and for the one that called.
    pub fn verify(&self, cert: &CertificateDer<'_>, now: Timestamp) -> Result<Peer, String> {
        let verifier = self.verifier.as_ref().map_err(Clone::clone)?;
        if cert.len() > CERT_MAX_BYTES {
            return Err(format!("its certificate is larger than {CERT_MAX_BYTES} bytes"));
        }
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0)));
        let refused = |error: rustls::Error| tls::client_refusal(&error).unwrap_or_else(|| error.to_string());
        verifier.verify_client_cert(cert, &[], at).map_err(refused)?;
        tls::peer(slice::from_ref(cert)).map_err(|error| chain(&error))
    }

    /// That the revocation list, as old as it is at `now`, lets anybody in.
    ///
    /// # Errors
    /// It is stale, and nobody is to be let in then: why.
    pub fn require_fresh(&self, now: Timestamp) -> Result<(), String> {
        match &self.list {
            Some(list) if self.stale == StaleCrl::Refuse && list.is_stale(now) => {
                Err(format!("the revocation list is stale since {}", list.next_update()))
            }
            _ => Ok(()),
        }
    }

    /// The number of the revocation list that is gone by; 0 if there is none.
    #[must_use]
    pub fn crl_number(&self) -> u64 {
        self.list.as_ref().map_or(0, Crl::number)
    }

    fn look(&mut self) {
        self.watch.looked_at = Instant::now();
        let Files { ca, crl, kept } = &self.files;
        let seen = (Stamps::of(&[ca, kept]), Stamps::of_links(&[crl]));
        let ownership = self.owner.map_or(Ok(()), |owner| owned::check(ca, owner));
        // That it is not there says nothing of others.
        let foreign = ownership.err().filter(OwnedError::is_foreign).map(|error| chain(&error));
        let is_unkept = self.crl_number() > self.kept_number;
        let keep_again = is_unkept && self.watch.kept_at.is_none_or(|at| at.elapsed() >= KEEP_AGAIN_AFTER);
        if !keep_again && foreign == self.watch.foreign && self.watch.is_settled(&seen) {
            return;
        }
        self.watch.seen = Some(seen);
        self.watch.foreign = foreign;
        self.read();
    }

    /// All of them, as they change together or hardly ever.
    fn read(&mut self) {
        let mut troubles = Vec::new();
        let refusal = self.read_authorities(&mut troubles);
        let blind = self.read_lists(&mut troubles);
        let revocations = Revocations { crl: self.list.clone(), stale: self.stale };
        let made = || tls::callers_verifier(&self.authorities, revocations).map_err(|error| chain(&error));
        self.verifier = refusal.or(blind).map_or_else(made, Err);
        troubles.extend(self.verifier.as_ref().err().cloned());
        for trouble in troubles.iter().filter(|trouble| !self.watch.told.contains(trouble)) {
            (self.trouble)(trouble);
        }
        self.watch.told = troubles;
    }

    /// Why nobody may call: others could have written the file, or there never was one that can be used. One that can be used no more leaves in
    /// force what was there before.
    fn read_authorities(&mut self, troubles: &mut Vec<String>) -> Option<String> {
        if self.watch.foreign.is_some() {
            return self.watch.foreign.clone();
        }
        match owned::read_authorities(&self.files.ca, self.owner) {
            Ok(authorities) => {
                // A list of an authority that is not ours any more says nothing, and its number is of another row.
                let is_ours = |list: &Crl| authorities == self.authorities || Crl::parse(list.pem(), &authorities).is_ok();
                self.list = self.list.take().filter(is_ours);
                self.authorities = authorities;
                None
            }
            Err(error) if self.authorities.is_empty() || error.is_foreign() => Some(chain(&error)),
            Err(error) => {
                troubles.push(chain(&error));
                None
            }
        }
    }

    /// Goes by the newest list there is. Without one that can be used: why nobody may call, if that is to be so then.
    fn read_lists(&mut self, troubles: &mut Vec<String>) -> Option<String> {
        if self.authorities.is_empty() {
            return None;
        }
        let Files { crl, kept: kept_at, .. } = &self.files;
        let mut unread = None;
        let kept = Crl::load(kept_at, &self.authorities).unwrap_or_else(|error| {
            unread = Some(chain(&error));
            None
        });
        self.kept_number = kept.as_ref().map_or(0, Crl::number);
        let known = self.list.take().into_iter().chain(kept).max_by_key(Crl::number);
        self.list = newer_list(self.read_foreign_list(), known, crl).unwrap_or_else(|(known, trouble)| {
            // Where an authority has begun anew on purpose, this is what is in its way.
            let kept = known.as_ref().map(|_| format!("; it is kept in {}", kept_at.display()));
            unread = Some(trouble + &kept.unwrap_or_default());
            known
        });
        troubles.extend(unread.clone());
        self.keep(troubles);
        unread.filter(|_| self.list.is_none() && self.stale == StaleCrl::Refuse)
    }

    fn read_foreign_list(&self) -> Result<Option<Crl>, CrlError> {
        let path = &self.files.crl;
        match owned::open_foreign(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::Read { path: path.clone(), source }.into()),
            Ok(file) => Crl::read(file, path, &self.authorities).map(Some),
        }
    }

    /// Keeps the list, durably, if none so new is kept.
    fn keep(&mut self, troubles: &mut Vec<String>) {
        let Some(list) = self.list.as_ref().filter(|list| list.number() > self.kept_number) else {
            return;
        };
        self.watch.kept_at = Some(Instant::now());
        let path = &self.files.kept;
        match files::replace(path, format!("{}\n", list.pem()).as_bytes(), 0o600).and_then(|()| files::sync_folder_of(path)) {
            Ok(()) => self.kept_number = list.number(),
            Err(error) => troubles.push(format!(
                "the revocation list number {} is in force and cannot be kept, so that after a restart an older one would be taken: {}",
                list.number(),
                chain(&error)
            )),
        }
    }
}

impl Watch {
    /// Nothing has changed since the files were read, nor a moment before that.
    fn is_settled(&self, now: &(Stamps, Stamps)) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen == now && seen.0.are_settled() && seen.1.are_settled())
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Files { ca, crl, .. } = &self.files;
        out.debug_struct("Callers").field("ca", ca).field("crl", crl).field("list", &self.list).finish_non_exhaustive()
    }
}
