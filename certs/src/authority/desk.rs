//! What the authority does for others: it takes requests, signs them, renews, revokes, and makes tokens.
//!
//! Every change is made under `authority.lock`, by way of files that are whole or not there, in an order in which a kill at any point
//! leaves what the next one can finish: a request disappears last. What a request gets is decided in `decide`, purely.

mod decide;
mod enroll;
mod revoke;
mod view;

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::format::Age;
use common::identity::{MinionName, Role};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::records::{Folder, read_sealed};
use super::revoked::Revoked;
use super::token::{self, Token};
use super::{Authority, AuthorityError, FORMAT, FORMAT_MODE, ISSUED_FOLDER, Issued, IssuedEntry, folder, read_record};
use crate::files::{self, FileError};
use crate::format;
use crate::leaf::fingerprint;

pub use super::refusal::Refused;
pub use super::token::{NewToken, TokenProblem, digest as token_digest};
pub use enroll::{Asked, Certified, Enrolled};
pub use view::{Bearer, Standing, View, Waiting};

/// The list of what was revoked, within the authority's folder.
pub const CRL_FILE: &str = "crl.pem";
const REQUESTS_FOLDER: &str = "requests";
const REVOKED_FOLDER: &str = "revoked";
const TOKENS_FOLDER: &str = "tokens";
const LOCK_FILE: &str = "authority.lock";

/// How long to wait while another process changes the authority, and how often to look.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// How long what is over is kept, so that it can be told why: rejected requests, expired tokens. Who waits longer asks again.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// So many certificates of a name are remembered in any case. A next one is issued at half a life, so what is older has expired, whatever
/// the clock says now.
const CERTIFICATES_KEPT: usize = 4;
/// Names that are longer go by their digest as files: with `.json` they are longer than names of files may be.
const FILE_NAME_MAX_BYTES: usize = 200;

/// By what the authority issues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a certificate is valid.
    pub valid: Duration,
    /// How long a revocation list is; another one is signed at half of it.
    pub crl_valid: Duration,
    /// So many requests may wait.
    pub requests_max: usize,
}

/// The authority of a folder, with all that was asked of it, issued, revoked and promised.
#[derive(Debug)]
pub struct Desk {
    authority: Authority,
    terms: Terms,
    issued: Folder<IssuedEntry>,
    revoked: Folder<Revoked>,
    requests: Folder<Request>,
    tokens: Folder<Token>,
    /// The serial numbers of each role's certificates, oldest first, without those whose end has freed the name.
    bound: HashMap<Role, Vec<String>>,
}

/// A request as it is kept, under the name that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    name: MinionName,
    /// The key's SubjectPublicKeyInfo in hexadecimal digits, and what it is known by.
    public_key: String,
    key: String,
    since: Timestamp,
    /// Where it came from.
    from: String,
    answer: Answer,
    /// What a newer version has written besides: it is kept.
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Nobody has said anything yet.
    Waiting,
    /// An administrator has said no.
    Rejected { at: Timestamp },
    /// A token, by its digest, has said yes.
    Granted { token: String },
}

/// The authority is changed by nobody else while this lives.
#[derive(Debug)]
struct Held(#[expect(dead_code, reason = "it is the lock, which goes with the open file")] File);

impl Desk {
    /// Opens the authority in `dir`. Nothing is read of what it has issued before it is asked for something.
    ///
    /// # Errors
    /// There is none, its key can be read by others, or it is damaged.
    pub fn open(dir: &Path, terms: Terms) -> Result<Self, AuthorityError> {
        let authority = Authority::open(dir)?;
        Ok(Self {
            authority,
            terms,
            issued: Folder::new(dir.join(ISSUED_FOLDER), "pem", read_record),
            revoked: Folder::new(dir.join(REVOKED_FOLDER), "json", read_sealed),
            requests: Folder::new(dir.join(REQUESTS_FOLDER), "json", read_sealed),
            tokens: Folder::new(dir.join(TOKENS_FOLDER), "json", read_sealed),
            bound: HashMap::new(),
        })
    }

    /// The authority itself.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Issues a certificate, with a key of its own, for each of `roles`, by the hand of an administrator: whatever key a name was bound to, it
    /// is bound to the new one.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue(&mut self, roles: &[Role], valid: Duration) -> Result<Vec<Issued>, AuthorityError> {
        let _held = self.hold()?;
        self.authority.issue(roles, valid)
    }

    /// Makes a token that signs one request for a name that `names`, a glob, matches, or for any name, within `ttl`.
    ///
    /// # Errors
    /// `names` is no glob, or the token cannot be written.
    pub fn token(&mut self, names: Option<String>, ttl: Duration) -> Result<NewToken, AuthorityError> {
        if let Some((glob, problem)) = names.as_ref().and_then(|glob| Some((glob, token::check_glob(glob).err()?))) {
            return Err(AuthorityError::Glob { glob: glob.clone(), problem });
        }
        let _held = self.hold()?;
        let failed = |source| AuthorityError::Request { subject: "a token".into(), source };
        let text = token::draw().map_err(failed)?;
        let kept = Token::new(names, Timestamp::now(), ttl).map_err(failed)?;
        let digest = token::digest(&text);
        self.tokens.write(&digest, &kept)?;
        self.tokens.sync()?;
        Ok(NewToken { token: text, digest, expires_at: kept.expires_at })
    }

    /// Does what time alone asks for: signs the revocation list anew at half of its life, and forgets what is long over.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn tend(&mut self) -> Result<(), AuthorityError> {
        let _held = self.hold()?;
        let now = Timestamp::now();
        let is_over = |since: Timestamp| now.duration_since(since).unsigned_abs() > REMEMBERED && since < now;
        let is_forgotten = |request: &Request| match request.answer {
            Answer::Rejected { at } => is_over(at),
            Answer::Waiting => is_over(request.since),
            Answer::Granted { .. } => false,
        };
        for (name, _) in self.requests.iter().filter(|(_, request)| is_forgotten(request)) {
            self.requests.remove(name)?;
        }
        for (name, _) in self.tokens.iter().filter(|(_, token)| is_over(token.expires_at)) {
            self.tokens.remove(name)?;
        }
        // Marks of what was revoked stay for ever: a clock that was wrong for a while must let nobody back in.
        for serial in self.superseded(now) {
            self.issued.remove(&serial)?;
        }
        self.requests.sweep();
        self.tokens.sweep();
        self.revoked.sweep();
        self.issued.sweep();
        Ok(())
    }

    /// Takes the lock, reads what has changed, and finishes what a kill has left half done.
    fn hold(&mut self) -> Result<Held, AuthorityError> {
        // A newer version may have been here since it was opened: then even the lock is left alone.
        format::age(&self.authority.dir, &FORMAT)?;
        let held = self.lock()?;
        if format::age(&self.authority.dir, &FORMAT)? != Age::Ours {
            // The first format is what was there before formats had numbers: nothing but the mark is missing.
            format::mark(&self.authority.dir, &FORMAT, FORMAT_MODE)?;
        }
        for folder in [REQUESTS_FOLDER, REVOKED_FOLDER, TOKENS_FOLDER] {
            let folder = self.authority.dir.join(folder);
            if !folder.is_dir() {
                folder::make_folder(&folder)?;
                files::sync_folder_of(&folder)?;
            }
        }
        self.refresh()?;
        self.finish_signed()?;
        self.finish_granted()?;
        self.finish_revoked()?;
        Ok(held)
    }

    /// Reads what has changed, without the lock: for answers that change nothing.
    fn refresh(&mut self) -> Result<(), AuthorityError> {
        format::age(&self.authority.dir, &FORMAT)?;
        // Requests before what is made of them, so that none is missed on its way.
        self.requests.refresh()?;
        self.tokens.refresh()?;
        let (revoked, issued) = (self.revoked.refresh()?, self.issued.refresh()?);
        if revoked || issued {
            self.bound = self.bindings();
        }
        Ok(())
    }

    fn bindings(&self) -> HashMap<Role, Vec<String>> {
        let frees = |serial: &str| self.revoked.get(serial).is_some_and(|revoked| revoked.frees_name);
        let mut bound: HashMap<Role, Vec<&IssuedEntry>> = HashMap::new();
        for (_, entry) in self.issued.iter().filter(|(serial, _)| !frees(serial)) {
            bound.entry(entry.role.clone()).or_default().push(entry);
        }
        let sorted = |mut entries: Vec<&IssuedEntry>| {
            // Certificates count seconds, and files do not.
            entries.sort_by_key(|entry| (entry.not_before, self.issued.written_at(&entry.serial)));
            entries.into_iter().map(|entry| entry.serial.clone()).collect()
        };
        bound.into_iter().map(|(role, entries)| (role, sorted(entries))).collect()
    }

    fn lock(&self) -> Result<Held, AuthorityError> {
        let path = self.authority.dir.join(LOCK_FILE);
        let failed = |source| AuthorityError::File(FileError::Write { path: path.clone(), source });
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Held(file)),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(AuthorityError::Locked { path, within: LOCK_WITHIN });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            }
        }
    }

    /// The certificates of `role`, oldest first, without those whose end has freed the name.
    fn records(&self, role: &Role) -> impl DoubleEndedIterator<Item = &IssuedEntry> {
        self.bound.get(role).into_iter().flatten().filter_map(|serial| self.issued.get(serial))
    }

    /// The certificates of `role` for that key that are good at `now`, newest first.
    fn good(&self, role: &Role, key: &str, now: Timestamp) -> impl Iterator<Item = &IssuedEntry> {
        let is_good = move |entry: &IssuedEntry| entry.key == key && entry.is_valid_at(now) && self.revoked_at(&entry.serial).is_none();
        self.records(role).rev().filter(move |entry| is_good(entry))
    }

    /// The request of that name.
    fn request(&self, name: &MinionName) -> Option<&Request> {
        self.requests.get(&request_file(name))
    }

    fn revoked_at(&self, serial: &str) -> Option<Timestamp> {
        // A mark that is damaged is a mark: what is revoked stays so.
        let is_damaged = || self.revoked.damaged().contains(serial);
        self.revoked.get(serial).map(|revoked| revoked.at).or_else(|| is_damaged().then_some(Timestamp::UNIX_EPOCH))
    }

    /// The certificates that have expired and bind no name any more: enough later ones do, or the name was freed.
    fn superseded(&self, now: Timestamp) -> Vec<String> {
        let kept = |role: &Role| self.bound.get(role).into_iter().flat_map(|serials| serials.iter().rev().take(CERTIFICATES_KEPT));
        let is_kept = |entry: &IssuedEntry| kept(&entry.role).any(|serial| *serial == entry.serial);
        let entries = self.issued.iter().map(|(_, entry)| entry);
        entries.filter(|entry| entry.not_after < now && !is_kept(entry)).map(|entry| entry.serial.clone()).collect()
    }

    fn crl_file(&self) -> PathBuf {
        self.authority.dir.join(CRL_FILE)
    }
}

/// The file, without its extension, in which the request of a name is kept. A digest is no name: its one part is too long.
fn request_file(name: &MinionName) -> String {
    let name = name.as_str();
    if name.len() > FILE_NAME_MAX_BYTES { fingerprint(name.as_bytes()) } else { name.to_owned() }
}
