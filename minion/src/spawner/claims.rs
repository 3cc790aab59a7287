//! Which synchronous calls were run: each runs at most once, whoever hands it on again. A job has its spool for that; a synchronous call leaves
//! nothing else behind.
//!
//! The spawner itself remembers, and its children ask it. What it remembers also stands in a file, so that one that was killed or upgraded
//! goes on from there. The file is not synced: a power cut ends every server that could hand a call on again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
/// Calls that are remembered at once: five minutes of 1,600 a second.
pub(super) const CLAIMS_MAX: usize = 500_000;
/// A call is remembered longer than it may start, because clocks are set back.
const KEPT_BEYOND_SECONDS: i64 = 3600;
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
    /// The call was run before.
    Taken,
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
    /// None where the disk does not take it.
    file: Option<File>,
    since_tidied: usize,
}

impl Claims {
    /// What stands in the file beside the `spools`. A file that is cut or damaged gives what can be read.
    pub(super) fn open(spools: &Path) -> Self {
        let mut claims = Self { dir: spools.to_owned(), until: HashMap::new(), file: None, since_tidied: 0 };
        let mut bytes = Vec::new();
        let longest = u64::try_from((CLAIMS_MAX + TIDY_EVERY) * CLAIM_BYTES).unwrap_or(u64::MAX);
        match File::open(spools.join(FILE)).and_then(|file| file.take(longest).read_to_end(&mut bytes)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, "which calls were run cannot be read: one that was run before may be run again, if it is handed on again");
            }
            _read => {}
        }
        for claim in bytes.chunks_exact(CLAIM_BYTES).filter_map(Claim::from_bytes) {
            claims.until.insert(claim.key, claim.until_second);
        }
        claims.tidy(Timestamp::now());
        claims
    }

    /// Takes note of a call that is about to be run, unless it was run before.
    pub(super) fn claim(&mut self, claim: Claim, now: Timestamp) -> Answer {
        if self.until.contains_key(&claim.key) {
            return Answer::Taken;
        }
        if self.since_tidied >= TIDY_EVERY || self.until.len() >= CLAIMS_MAX {
            self.tidy(now);
        }
        if self.until.len() >= CLAIMS_MAX {
            return Answer::Full;
        }
        self.until.insert(claim.key, claim.until_second);
        self.since_tidied += 1;
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(&claim.to_bytes())) {
            tracing::error!(%error, "which calls were run cannot be written down, and is remembered only as long as this process lives");
            self.file = None;
        }
        Answer::Granted
    }

    /// Forgets what is over, and writes the rest anew.
    fn tidy(&mut self, now: Timestamp) {
        let now_second = now.as_second();
        self.until.retain(|_, until_second| until_second.saturating_add(KEPT_BEYOND_SECONDS) > now_second);
        self.since_tidied = 0;
        self.file = self.write_anew().map_err(|error| tracing::error!(%error, "which calls were run cannot be written down")).ok();
    }

    fn write_anew(&self) -> io::Result<File> {
        let draft = self.dir.join(DRAFT);
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _gone => {}
        }
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(&draft)?;
        let bytes: Vec<u8> =
            self.until.iter().flat_map(|(key, until_second)| Claim { key: *key, until_second: *until_second }.to_bytes()).collect();
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

    /// Whether this child may run that call.
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
    fn what_can_start_no_more_is_forgotten_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut claims = Claims::open(dir.path());
        assert_eq!(claims.claim(claim(1, 1000), at(900)), Answer::Granted);
        claims.tidy(at(1000 + KEPT_BEYOND_SECONDS - 1));
        assert_eq!(claims.claim(claim(1, 1000), at(900)), Answer::Taken);
        claims.tidy(at(1000 + KEPT_BEYOND_SECONDS));
        assert_eq!(claims.claim(claim(1, 1000), at(900)), Answer::Granted);
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap().len(), CLAIM_BYTES);
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
