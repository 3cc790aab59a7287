//! The token of a job that runs, by which what it submits is known to be its own. It stays with the job: a call carries the code that was made
//! of it, never the token itself, so that whoever hands the call on can neither change it nor make up another. It says nothing of who may do what.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use common::job::MinionJobId;
use ring::hmac;

use super::Proof;

/// Stands before a job's secret and the call in what is coded, so that nothing else that is ever coded with it is a call.
const CONTEXT: &[u8] = b"minion submitted call 1\0";
/// The secret of a token: a SHA-256.
const SECRET_BYTES: usize = 32;

/// What a job has, and shows to nobody: its id, and a secret that its host can make again from that. [`fmt::Debug`] hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    job: MinionJobId,
    secret: [u8; SECRET_BYTES],
}

/// Why a text is no token. It does not repeat the text.
#[derive(Debug, thiserror::Error)]
#[error("it is no token: that is a job's id, a dot, and {} hexadecimal digits", SECRET_BYTES * 2)]
pub struct InvalidToken;

impl Token {
    /// The token of the job `job`, whose secret is what `tag` holds.
    #[must_use]
    pub fn new(job: MinionJobId, tag: &hmac::Tag) -> Self {
        let mut secret = [0; SECRET_BYTES];
        secret.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        Self { job, secret }
    }

    /// The text of it, for the job's environment and nothing else.
    #[must_use]
    pub fn exposed(&self) -> String {
        format!("{}.{}", self.job, hex(&self.secret))
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &MinionJobId {
        &self.job
    }

    /// The proof that the job of this token submits `call`.
    #[must_use]
    pub fn proof(&self, call: &str) -> Proof {
        Proof::Token { job: self.job.clone(), code: hex(hmac::sign(&self.key(), &coded(call)).as_ref()) }
    }

    /// Whether `code` was made of this token and `call`. It takes as long, whatever is wrong.
    #[must_use]
    pub fn has_coded(&self, call: &str, code: &str) -> bool {
        unhex(code).is_some_and(|tag| hmac::verify(&self.key(), &coded(call), &tag).is_ok())
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.secret)
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let (job, secret) = text.split_once('.').ok_or(InvalidToken)?;
        Ok(Self { job: job.parse().map_err(|_| InvalidToken)?, secret: unhex(secret).ok_or(InvalidToken)? })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token({}, …)", self.job)
    }
}

fn coded(call: &str) -> Vec<u8> {
    [CONTEXT, call.as_bytes()].concat()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a text cannot fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    let digits = text.as_bytes();
    if digits.len() != SECRET_BYTES * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
    use super::*;

    fn token(secret: u8) -> Token {
        Token { job: "54k2-9xqd-4fz1".parse().unwrap(), secret: [secret; SECRET_BYTES] }
    }

    fn code(token: &Token, call: &str) -> String {
        let Proof::Token { job, code } = token.proof(call) else { panic!("a token gives no other proof") };
        assert_eq!(job, *token.job());
        code
    }

    #[test]
    fn a_call_is_known_by_the_token_that_coded_it() {
        let (token, other) = (token(7), token(8));
        let code_of_call = code(&token, "{}");
        assert!(token.has_coded("{}", &code_of_call));
        assert!(!token.has_coded("{ }", &code_of_call) && !other.has_coded("{}", &code_of_call));
        for wrong in ["", "00", &code_of_call[1..], &format!("{code_of_call}0"), &code(&other, "{}"), &"é".repeat(32)] {
            assert!(!token.has_coded("{}", wrong), "{wrong}");
        }
    }

    #[test]
    fn its_text_reads_back_and_is_shown_nowhere_else() {
        let token = token(0xa5);
        let text = token.exposed();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains("a5a5") && !code(&token, "").contains("a5a5"));
        for wrong in ["", ".", "54k2-9xqd-4fz1", "54k2-9xqd-4fz1.", &text[1..], &text[..text.len() - 1], &text.replace('.', "-")] {
            let error = wrong.parse::<Token>().unwrap_err();
            assert!(!error.to_string().contains("a5a5"), "{error}");
        }
    }
}
