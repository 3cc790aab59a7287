//! Which calls were done that leave no spool behind: each is done at most once, whoever hands it on again. A job has its spool for that.
//!
//! The spawner itself remembers, and its children ask it. A call is forgotten when its start-before has passed; then a high-water mark stands for
//! it, so that no clock that is set back brings it to life again. What is remembered also stands in a file, so that a spawner that was
//! killed or upgraded goes on from there. The file is not synced: a power cut ends every server that could hand a call on again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::protocol::Envelope;
use jiff::Timestamp;

/// Beside the spools; no id looks like it.
const FILE: &str = "calls";
const DRAFT: &str = ".calls";
/// The first half of a SHA-256.
const KEY_BYTES: usize = 16;
/// A key, and the second in which the call's start-before lies.
const CLAIM_BYTES: usize = KEY_BYTES + 8;
/// Calls that are remembered at once: five minutes, which is what callers write, of 1,600 a second.
pub(super) const CLAIMS_MAX: usize = 500_000;
/// The key under which the mark stands in the file; of a call it is by chance alone, once in 2^128.
const MARK: Key = [0; KEY_BYTES];
/// Where it cannot be read what was done, nothing is done that may have been: callers write five minutes.
const UNKNOWN_FOR_SECONDS: i64 = 300;
/// How often, at most, all is gone through because there is no room, or the file could not be written.
const TIDY_AGAIN: Duration = Duration::from_secs(10);
/// How often what is over is forgotten, and at most how many claims are written for nothing until the file is written anew.
const TIDY_EVERY: usize = 100_000;
/// How long the spawner may take to answer a child.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

type Key = [u8; KEY_BYTES];

/// One call of one caller on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    key: Key,
    until_second: i64,
}

/// What a child hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is the first to run that call.
    Granted,
    /// The call was done before.
    Taken,
    /// It may have been: it is as old as others that are forgotten.
    Over,
    /// More are remembered than can be.
    Full,
}

impl Claim {
    /// Of the call in `envelope` on the host `minion`.
    pub(super) fn of(minion: &MinionName, envelope: &Envelope) -> Self {
        let text = format!("{minion}\0{}\0{}", envelope.caller, envelope.call_id);
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let mut key = [0; KEY_BYTES];
        key.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        Self { key, until_second: envelope.start_before.as_second() }
    }

    fn to_bytes(self) -> [u8; CLAIM_BYTES] {
        let mut bytes = [0; CLAIM_BYTES];
        let parts = self.key.into_iter().chain(self.until_second.to_be_bytes());
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (key, second) = bytes.split_at_checked(KEY_BYTES)?;
        Some(Self { key: key.try_into().ok()?, until_second: i64::from_be_bytes(second.try_into().ok()?) })
    }
}

/// What the spawner remembers.
#[derive(Debug)]
pub(super) struct Claims {
    dir: PathBuf,
    until: HashMap<Key, i64>,
    /// No call that is forgotten could start later than in this second.
    mark_second: i64,
    /// None where the disk does not take it.
    file: Option<File>,
    since_tidied: usize,
    tidied_at: Instant,
}

impl Claims {
    /// What stands in the file beside the `spools`. Of a file that is cut it is what can be read; one that cannot be read is set aside.
    pub(super) fn open(spools: &Path) -> Self {
        let (dir, tidied_at) = (spools.to_owned(), Instant::now());
        let mut claims = Self { dir, until: HashMap::new(), mark_second: i64::MIN, file: None, since_tidied: 0, tidied_at };
        let path = spools.join(FILE);
        let mut bytes = Vec::new();
        let longest = u64::try_from((CLAIMS_MAX + TIDY_EVERY) * CLAIM_BYTES).unwrap_or(u64::MAX);
        let now = Timestamp::now();
        match File::open(&path).and_then(|file| file.take(longest).read_to_end(&mut bytes)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                claims.mark_second = now.as_second().saturating_add(UNKNOWN_FOR_SECONDS);
                tracing::error!(%error, seconds = UNKNOWN_FOR_SECONDS, "which calls were done cannot be read: for a while none is that may have been");
                // Where it cannot be set aside it is replaced, or met again at the next start.
                let _left = std::fs::rename(&path, path.with_extension("unreadable"));
            }
            _read => {}
        }
        for claim in bytes.chunks_exact(CLAIM_BYTES).filter_map(Claim::from_bytes) {
            match claim.key {
                MARK => claims.mark_second = claims.mark_second.max(claim.until_second),
                key => drop(claims.until.insert(key, claim.until_second)),
            }
        }
        claims.tidy(now);
        claims
    }

    /// Takes note of a call that is about to be done, unless it was done before.
    pub(super) fn claim(&mut self, claim: Claim, now: Timestamp) -> Answer {
        if self.until.contains_key(&claim.key) {
            return Answer::Taken;
        }
        let is_due = self.until.len() >= CLAIMS_MAX || self.file.is_none();
        if self.since_tidied >= TIDY_EVERY || is_due && self.tidied_at.elapsed() >= TIDY_AGAIN {
            self.tidy(now);
        }
        if claim.until_second <= self.mark_second {
            return Answer::Over;
        }
        if self.until.len() >= CLAIMS_MAX {
            return Answer::Full;
        }
        self.until.insert(claim.key, claim.until_second);
        self.since_tidied += 1;
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(&claim.to_bytes())) {
            tracing::error!(%error, "which calls were done cannot be written down, and is remembered only as long as this process lives");
            self.file = None;
        }
        Answer::Granted
    }

    /// The file, while it is open: no child needs it.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Forgets what can start no more, and writes the rest anew.
    fn tidy(&mut self, now: Timestamp) {
        let (now_second, mark_second) = (now.as_second(), &mut self.mark_second);
        self.until.retain(|_, until_second| {
            let is_kept = *until_second >= now_second;
            *mark_second = if is_kept { *mark_second } else { (*mark_second).max(*until_second) };
            is_kept
        });
        self.since_tidied = 0;
        self.tidied_at = Instant::now();
        self.file = self.write_anew().map_err(|error| tracing::error!(%error, "which calls were done cannot be written down")).ok();
    }

    fn write_anew(&self) -> io::Result<File> {
        let draft = self.dir.join(DRAFT);
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _gone => {}
        }
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(&draft)?;
        let all = self.until.iter().map(|(key, until_second)| (*key, *until_second)).chain([(MARK, self.mark_second)]);
        let bytes: Vec<u8> = all.flat_map(|(key, until_second)| Claim { key, until_second }.to_bytes()).collect();
        file.write_all(&bytes)?;
        std::fs::rename(&draft, self.dir.join(FILE))?;
        Ok(file)
    }

    /// Answers the child at the other end of `child`; `false` if it asks no more.
    pub(super) fn answer(&mut self, mut child: &UnixStream) -> bool {
        let mut bytes = [0; CLAIM_BYTES];
        // A child writes a claim in one piece, and one alone.
        let claim = match child.read(&mut bytes) {
            Ok(CLAIM_BYTES) => Claim::from_bytes(&bytes),
            _gone_or_out_of_its_mind => None,
        };
        let Some(claim) = claim else { return false };
        let answer = match self.claim(claim, Timestamp::now()) {
            Answer::Granted => b"y",
            Answer::Taken => b"n",
            Answer::Over => b"o",
            Answer::Full => b"f",
        };
        child.write_all(answer).is_ok()
    }
}

/// A child's way to the spawner's memory.
#[derive(Debug)]
pub(super) struct Claimant(UnixStream);

impl Claimant {
    /// A way, and its other end, which is the spawner's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn pair() -> io::Result<(Self, UnixStream)> {
        let (child, spawner) = UnixStream::pair()?;
        spawner.set_nonblocking(true)?;
        child.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok((Self(child), spawner))
    }

    /// The socket, at whose end the spawner is gone.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.0
    }

    /// Whether this child may do what that call asks.
    ///
    /// # Errors
    /// The spawner is gone, or has too much to do.
    pub(super) fn claim(mut self, claim: Claim) -> io::Result<Answer> {
        self.0.write_all(&claim.to_bytes())?;
        let mut answer = [0];
        self.0.read_exact(&mut answer)?;
        match &answer {
            b"y" => Ok(Answer::Granted),
            b"n" => Ok(Answer::Taken),
            b"o" => Ok(Answer::Over),
            _ => Ok(Answer::Full),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn claim(number: u8, until_second: i64) -> Claim {
        Claim { key: [number; KEY_BYTES], until_second }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_call_is_run_once_and_by_one_that_was_started_anew_neither() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        let soon = now.as_second() + 300;
        let mut claims = Claims::open(dir.path());
        assert_eq!(claims.claim(claim(1, soon), now), Answer::Granted);
        assert_eq!(claims.claim(claim(1, soon + 1), now), Answer::Taken);
        assert_eq!(claims.claim(claim(2, soon), now), Answer::Granted);
        // Killed, and in the middle of a word.
        let file = dir.path().join(FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.extend([7; 5]);
        std::fs::write(&file, bytes).unwrap();
        let mut again = Claims::open(dir.path());
        assert_eq!([1, 2, 3].map(|number| again.claim(claim(number, soon), now)), [Answer::Taken, Answer::Taken, Answer::Granted]);
    }

    #[test]
    fn what_can_start_no_more_is_forgotten_and_starts_no_more_though_the_clock_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = Claims::open(dir.path());
        assert_eq!(claims.claim(claim(1, 1000), at(900)), Answer::Granted);
        assert_eq!(claims.claim(claim(2, 2000), at(900)), Answer::Granted);
        claims.tidy(at(1000));
        assert_eq!(claims.claim(claim(1, 1000), at(1000)), Answer::Taken);
        claims.tidy(at(1001));
        assert_eq!(claims.until.len(), 1);
        assert_eq!(claims.claim(claim(1, 1000), at(900)), Answer::Over);
        assert_eq!(claims.claim(claim(3, 1001), at(900)), Answer::Granted);
        assert_eq!(claims.mark_second, 1000);
        assert_eq!(Claims::open(dir.path()).mark_second, 2000, "all of them are over by now");
    }

    #[test]
    fn what_cannot_be_read_may_have_been_anything() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        let mut claims = Claims::open(dir.path());
        let soon = now.as_second() + UNKNOWN_FOR_SECONDS;
        assert_eq!(claims.claim(claim(1, soon), now), Answer::Over);
        assert_eq!(claims.claim(claim(1, soon + 10), now), Answer::Granted);
        assert!(dir.path().join("calls.unreadable").exists() && dir.path().join(FILE).is_file());
    }

    #[test]
    fn a_disk_that_takes_it_again_gets_all_of_it() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        let soon = now.as_second() + 300;
        let mut claims = Claims::open(dir.path());
        claims.file = None;
        assert_eq!(claims.claim(claim(1, soon), now), Answer::Granted);
        claims.tidied_at = Instant::now().checked_sub(TIDY_AGAIN).unwrap();
        assert_eq!(claims.claim(claim(2, soon), now), Answer::Granted);
        assert_eq!(Claims::open(dir.path()).until.len(), 2);
    }

    #[test]
    fn more_than_can_be_remembered_is_refused() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
        let mut claims = Claims::open(dir.path());
        let soon = now.as_second() + 300;
        claims.until = (0..CLAIMS_MAX).map(|number| ([&number.to_be_bytes()[..], &[9; 8]].concat().try_into().unwrap(), soon)).collect();
        assert_eq!(claims.claim(claim(1, soon), now), Answer::Full);
    }

    #[test]
    fn a_child_asks_and_hears() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = Claims::open(dir.path());
        let mut ask = |number| {
            let (claimant, spawner) = Claimant::pair().unwrap();
            let child = std::thread::spawn(move || claimant.claim(claim(number, i64::MAX / 2)).unwrap());
            spawner.set_nonblocking(false).unwrap();
            assert!(claims.answer(&spawner));
            child.join().unwrap()
        };
        assert_eq!([ask(1), ask(1), ask(2)], [Answer::Granted, Answer::Taken, Answer::Granted]);
        let (claimant, spawner) = Claimant::pair().unwrap();
        drop(claimant);
        assert!(!claims.answer(&spawner));
    }
}
