//! The small sealed files of the authority's folder: requests, revocations, tokens, the number of the last list.

use certs::authority::desk::{TokenProblem, token_digest};
use certs::authority::fuzzing::{Sealed, is_glob, sealed, token};
use common::identity::MinionName;
use jiff::Timestamp;
use serde_json::Value;

use super::words::is_lower_hex;

const KINDS: [Sealed; 4] = [Sealed::Request, Sealed::Revoked, Sealed::Token, Sealed::Number];

/// The bytes as such a file, and as what such a file holds.
pub fn authority_records(data: &[u8]) {
    let whole = super::sealed(data);
    for kind in KINDS {
        for text in [data, &whole] {
            let Ok(written) = sealed(kind, text) else { continue };
            assert_eq!(sealed(kind, &written).ok().as_ref(), Some(&written), "{kind:?}: what is written reads as it was");
        }
    }
    signs(&whole, data);
    super::spool::cannot_be_changed(&whole, |text| KINDS.into_iter().any(|kind| sealed(kind, text).is_ok()));
    if let Ok(text) = std::str::from_utf8(data) {
        let digest = token_digest(text);
        assert!(digest.len() == 64 && is_lower_hex(&digest) && digest == token_digest(&format!(" {text}\n")));
    }
}

/// A token that was used, or has expired, or is for other names, signs nothing.
fn signs(text: &[u8], body: &[u8]) {
    // A field that a token has not may hold what is no text: it is passed over unread.
    let Ok(fields) = serde_json::from_slice::<Value>(body) else { return };
    let name: MinionName = "web1".parse().expect("it is a name");
    for at in [Timestamp::UNIX_EPOCH, Timestamp::MAX] {
        let Some(said) = token(text, &name, at) else { return };
        let names = fields.get("names").and_then(Value::as_str);
        match said {
            Ok(()) => {
                assert!(fields.get("used").is_none_or(Value::is_null) && at < Timestamp::MAX, "{fields}");
                assert!(names.is_none_or(is_glob), "{fields}");
            }
            Err(TokenProblem::OtherName { names: other }) => assert_eq!(Some(other.as_str()), names),
            Err(TokenProblem::Used { .. }) => assert!(fields.get("used").is_some_and(Value::is_object), "{fields}"),
            Err(TokenProblem::Expired { at: end }) => assert!(end <= at),
            Err(problem @ TokenProblem::Unknown) => panic!("{problem}"),
        }
    }
}
