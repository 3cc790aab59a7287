//! The tokens of jobs, and what is believed by them: a call that a job submits is its caller's, as long as the job runs. They follow from one secret
//! of the spawner, so nothing is written down of them, and none is good on another host.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use certs::files::write_secret;
use common::identity::{MinionName, Role};
use common::job::MinionJobId;
use common::seal;
use common::shown::chain;
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Post;
use super::verify::Signer;
use crate::call::{Ask, Token};
use crate::spool::{Life, Spool, SpoolRequest};

/// Beside the spools; no id looks like it.
const FILE: &str = "token.key";
/// Where a key that cannot be read goes.
const DAMAGED_FILE: &str = "token.key.damaged";
const KEY_BYTES: usize = 32;
/// Stands before the host's name in what tokens are made of.
const CONTEXT: &[u8] = b"minion job token 1\0";

/// What tokens are made with.
pub(super) struct Tokens(hmac::Key);

impl fmt::Debug for Tokens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Tokens(…)")
    }
}

impl Tokens {
    /// Those of the key beside the `spools`, which is made if there is none. Where it cannot be read there is a new one, and the tokens that jobs have
    /// are good no more; where it cannot be written it is good as long as this process lives.
    ///
    /// # Errors
    /// The kernel gives no random numbers.
    pub(super) fn open(spools: &Path) -> std::io::Result<Self> {
        let path = spools.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(text) => read(&text).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        match kept {
            Ok(Some(key)) => return Ok(Self::of(&key)),
            Ok(None) => {}
            Err(problem) => {
                tracing::error!(
                    file = %path.display(),
                    problem,
                    "the key of the jobs' tokens cannot be read, and is made anew: jobs that run now go on, and can submit no more"
                );
                // Looked at by a person; where it stays in its place, the new one is not kept.
                let _in_its_place = std::fs::rename(&path, spools.join(DAMAGED_FILE));
            }
        }
        Self::make(&path)
    }

    fn make(path: &Path) -> std::io::Result<Self> {
        let mut key = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut key).map_err(|_| std::io::Error::other("the kernel gives no random numbers"))?;
        let written = seal::seal(&BASE64.encode(key)).map_err(|error| error.to_string());
        if let Err(problem) = written.and_then(|text| write_secret(path, &text).map_err(|error| chain(&error))) {
            tracing::error!(
                problem,
                "the key of the jobs' tokens cannot be kept: jobs that run now can submit no more once the spawner is started again"
            );
        }
        Ok(Self::of(&key))
    }

    fn of(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The token of the job `job` of the host `minion`.
    pub(super) fn token(&self, minion: &MinionName, job: &MinionJobId) -> Token {
        let named = [CONTEXT, minion.as_str().as_bytes(), b"\0", job.as_str().as_bytes()].concat();
        Token::new(job.clone(), &hmac::sign(&self.0, &named))
    }
}

fn read(text: &[u8]) -> Result<[u8; KEY_BYTES], String> {
    let encoded: String = seal::open(text).map_err(|error| error.to_string())?;
    let key = BASE64.decode(encoded).ok().and_then(|key| key.try_into().ok());
    key.ok_or_else(|| "it is whole, and no key".to_owned())
}

impl Post {
    /// For whom the job `job` submits the call of `ask`: for its own caller, as long as it runs and he is not revoked.
    ///
    /// That his certificate has ended since he was believed does not stop the job from submitting. What it submits then runs, and submits nothing
    /// itself: so nobody calls for ever with a certificate that has ended.
    ///
    /// # Errors
    /// Why it is not believed.
    pub(super) fn submitter(&self, ask: &Ask, job: &MinionJobId, code: &str) -> Result<Signer, String> {
        if !self.tokens.token(&ask.minion, job).has_coded(&ask.call, code) {
            return Err(format!("the call was not submitted with the token of the job {job}"));
        }
        let request = self.running(job)?;
        let none =
            || format!("the job {job} was accepted when the certificate of {} had ended, and submits nothing itself", request.caller);
        let certificate = request.certificate().ok_or_else(none)?;
        let cert =
            BASE64.decode(certificate).map(CertificateDer::from).map_err(|error| format!("the job {job}: its certificate: {error}"))?;
        let callers = self.callers.borrow();
        let now = Timestamp::now();
        let (peer, inherited) = match callers.verify(&cert, now) {
            Ok(peer) => (Ok(peer), Some(certificate.to_owned())),
            // As it was when the job was accepted, but for the revocation list: that is today's, and may be too old today.
            Err(_) => (callers.require_fresh(now).and_then(|()| callers.verify(&cert, request.accepted_at)), None),
        };
        let peer = peer.map_err(|why| format!("the caller of the job {job} is not believed any more: {why}"))?;
        match peer.role {
            Role::Overlord(caller) if caller == request.caller => {
                let confined_to = request.run.and_then(|run| run.run_as);
                Ok(Signer { caller, fingerprint: peer.fingerprint, parent: Some(job.clone()), confined_to, certificate: inherited })
            }
            role => Err(format!("the job {job} of {} was accepted from {role}", request.caller)),
        }
    }

    /// Who asked for the job `job`, if that runs.
    fn running(&self, job: &MinionJobId) -> Result<SpoolRequest, String> {
        let spool = Spool::of(&self.spools, job);
        let unknown = |error: &dyn std::fmt::Display| format!("whether the job {job} that submits the call runs cannot be told: {error}");
        if !spool.exists().map_err(|error| unknown(&error))? {
            return Err(format!("the job {job} that submits the call is gone"));
        }
        match spool.life().map_err(|error| unknown(&error))? {
            Life::Running(_) => spool.request().map_err(|error| unknown(&error)),
            Life::Ended(_) | Life::Queued | Life::Dead(_) | Life::Damaged(_) => {
                Err(format!("the job {job} that submits the call does not run any more"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(tokens: &Tokens, minion: &str, job: &str) -> String {
        tokens.token(&minion.parse().unwrap(), &job.parse().unwrap()).exposed()
    }

    #[test]
    fn a_token_is_one_jobs_of_one_host_and_of_one_key() {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [here, elsewhere] = [&dir, &other_dir].map(|dir| Tokens::open(dir.path()).unwrap());
        let tokens = [
            token(&here, "web1", "54k2-9xqd-4fz1"),
            token(&here, "web1", "54k2-9xqd-4fz2"),
            token(&here, "web2", "54k2-9xqd-4fz1"),
            token(&elsewhere, "web1", "54k2-9xqd-4fz1"),
        ];
        let secrets: std::collections::BTreeSet<_> = tokens.iter().map(|token| token.split_once('.').unwrap().1).collect();
        assert_eq!(secrets.len(), tokens.len());
        let again = Tokens::open(dir.path()).unwrap();
        assert_eq!(Some(&token(&again, "web1", "54k2-9xqd-4fz1")), tokens.first());
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_key_that_is_damaged_is_set_aside_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let before = token(&Tokens::open(dir.path()).unwrap(), "web1", "54k2-9xqd-4fz1");
        let whole = std::fs::read(&path).unwrap();
        let cut = whole.get(..whole.len() - 4).unwrap();
        for damaged in [cut, b"", b"\xff"] {
            std::fs::write(&path, damaged).unwrap();
            let made = token(&Tokens::open(dir.path()).unwrap(), "web1", "54k2-9xqd-4fz1");
            assert_ne!(made, before);
            assert_eq!(std::fs::read(dir.path().join(DAMAGED_FILE)).unwrap(), damaged);
            assert_eq!(token(&Tokens::open(dir.path()).unwrap(), "web1", "54k2-9xqd-4fz1"), made);
        }
    }

    #[test]
    fn a_key_that_cannot_be_kept_is_good_for_now() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join("gone")).unwrap();
        assert_eq!(token(&tokens, "web1", "54k2-9xqd-4fz1"), token(&tokens, "web1", "54k2-9xqd-4fz1"));
    }
}
