//! What a request for a first certificate gets, by what is known: pure.

use common::identity::{MinionName, Role};
use jiff::Timestamp;

use super::{Answer, Desk, Refused, Request};
use crate::authority::IssuedEntry;
use crate::csr::Csr;
use crate::request::server_name;
use crate::tls::AUTHORITY_NAME;

/// As much of a name that is not the host's as is repeated, to it and in logs.
const QUOTED_MAX_LETTERS: usize = 200;

/// What a request gets.
#[derive(Debug)]
pub(super) enum Decision {
    /// The certificate that its key has already.
    Issued(IssuedEntry),
    /// It waits, as before.
    Waits(Timestamp),
    /// An administrator has said no.
    Rejected(Timestamp),
    /// It is new, and waits from now on.
    Keep,
    /// The token of this digest signs it.
    Grant(String),
}

/// What `name` gets, that asks with `csr`, and perhaps with a token of the digest `token`.
pub(super) fn decide(
    desk: &Desk,
    name: &MinionName,
    csr: &Csr,
    token: Option<&str>,
    waiting: usize,
    now: Timestamp,
) -> Result<Decision, Refused> {
    require_own_name(desk, name, csr)?;
    if let Some(entry) = require_bound(desk, name, &csr.key, now)? {
        return Ok(Decision::Issued(entry.clone()));
    }
    let before = desk.request(name);
    if let Some(token) = token {
        let kept = desk.tokens.get(token).ok_or(super::TokenProblem::Unknown);
        kept.and_then(|kept| kept.check(name, now)).map_err(|problem| Refused::Token { name: name.clone(), problem })?;
        require_known_bindings(desk, name)?;
        // An administrator has said who may: that outranks whoever merely asked before.
        return match before {
            Some(Request { answer: Answer::Granted { .. }, since, .. }) => {
                Err(Refused::OtherKeyWaits { name: name.clone(), since: *since })
            }
            _ => Ok(Decision::Grant(token.to_owned())),
        };
    }
    let before = require_no_other(before, name, &csr.key)?;
    match before {
        Some(Request { answer: Answer::Rejected { at }, .. }) => Ok(Decision::Rejected(*at)),
        Some(Request { since, .. }) => Ok(Decision::Waits(*since)),
        None if waiting >= desk.terms.requests_max => Err(Refused::Full { name: name.clone(), waiting }),
        None => Ok(Decision::Keep),
    }
}

/// While a record is damaged, nobody knows whose it is: it may be of a name that has no other.
pub(super) fn require_known_bindings(desk: &Desk, name: &MinionName) -> Result<(), Refused> {
    let has_record = desk.records(&Role::Minion(name.clone())).next().is_some();
    match desk.issued.damaged().first() {
        Some(serial) if !has_record => Err(Refused::Damaged { name: name.clone(), path: desk.issued.file(serial) }),
        _ => Ok(()),
    }
}

fn require_own_name(desk: &Desk, name: &MinionName, csr: &Csr) -> Result<(), Refused> {
    if let Err(problem) = server_name(name.as_str()) {
        return Err(Refused::Unusable { name: name.clone(), problem: problem.to_string() });
    }
    if let Some(borne) = csr.foreign_name(name) {
        return Err(Refused::ForeignName { name: name.clone(), borne: borne.escape_debug().take(QUOTED_MAX_LETTERS).collect() });
    }
    let taken = |owner| Refused::NameTaken { name: name.clone(), owner };
    let is_overlords = name.as_str().parse().is_ok_and(|caller| desk.records(&Role::Overlord(caller)).next().is_some());
    match () {
        () if name.as_str() == AUTHORITY_NAME => Err(taken("the authority")),
        () if is_overlords => Err(taken("an overlord")),
        () => Ok(()),
    }
}

/// The good certificate that the key has for the name; an error if the name is bound to another key, or was revoked.
pub(super) fn require_bound<'d>(desk: &'d Desk, name: &MinionName, key: &str, now: Timestamp) -> Result<Option<&'d IssuedEntry>, Refused> {
    let role = Role::Minion(name.clone());
    let Some(newest) = desk.records(&role).next_back() else { return Ok(None) };
    if let Some(at) = desk.revoked_at(&newest.serial) {
        return Err(Refused::Revoked { subject: name.to_string(), at });
    }
    if newest.key != key {
        return Err(Refused::Mismatch { name: name.clone(), serial: newest.serial.clone(), not_after: newest.not_after });
    }
    Ok(newest.is_valid_at(now).then_some(newest))
}

/// What the key has asked before; an error if another one has, and waits.
fn require_no_other<'r>(before: Option<&'r Request>, name: &MinionName, key: &str) -> Result<Option<&'r Request>, Refused> {
    match before {
        Some(request) if request.key == key => Ok(Some(request)),
        Some(Request { answer: Answer::Waiting | Answer::Granted { .. }, since, .. }) => {
            Err(Refused::OtherKeyWaits { name: name.clone(), since: *since })
        }
        Some(Request { answer: Answer::Rejected { .. }, .. }) | None => Ok(None),
    }
}
