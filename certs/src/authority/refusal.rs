//! Why a request from outside gets nothing: one line for the person at the host, which names the command that settles it.

use std::path::PathBuf;

use common::identity::{MinionName, Role};
use jiff::Timestamp;

use super::token::TokenProblem;
use crate::csr::CsrProblem;

/// Why a request gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is none, or its key is of no use.
    #[error("the request of {name} is refused: {problem}")]
    Csr {
        /// Who asked.
        name: MinionName,
        /// What is wrong with it.
        problem: CsrProblem,
    },
    /// No certificate can be made for the name.
    #[error("the request of {name} is refused: {problem}")]
    Unusable {
        /// Who asked.
        name: MinionName,
        /// Why not.
        problem: String,
    },
    /// A record of an issued certificate is damaged, and may be that of the name.
    #[error(
        "the request of {name} is not signed: {} is damaged, and may be the record of a certificate that {name} has. Restore it from a backup \
         where the authority is",
        .path.display()
    )]
    Damaged {
        /// Who asked.
        name: MinionName,
        /// The record.
        path: PathBuf,
    },
    /// It bears a name that is not the host's.
    #[error("the request of {name} is refused: it bears the name \"{borne}\", and a host gets a certificate for its own name alone")]
    ForeignName {
        /// Who asked.
        name: MinionName,
        /// The other name.
        borne: String,
    },
    /// The name is an overlord's or the authority's own.
    #[error("the request of {name} is refused: {name} is the name of {owner}; give this host another name")]
    NameTaken {
        /// Who asked.
        name: MinionName,
        /// Whose it is.
        owner: &'static str,
    },
    /// The name is bound to another key.
    #[error(
        "the request of {name} is refused: {name} has a certificate for another key (serial {serial}, until {not_after}), which stays as it is. \
         If this host was installed anew, run `overlord certs clean {name}` where the authority is, and enrol again"
    )]
    Mismatch {
        /// Who asked.
        name: MinionName,
        /// The certificate that it has.
        serial: String,
        /// Until when that is valid.
        not_after: Timestamp,
    },
    /// The name's certificate was revoked.
    #[error(
        "the request of {subject} is refused: its certificate was revoked on {at}. To let {subject} back in, run `overlord certs clean \
         {subject}` where the authority is, and enrol again"
    )]
    Revoked {
        /// Whose.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// Another key asks for the name.
    #[error(
        "the request of {name} is refused: another key has asked for that name on {since} and waits. See `overlord certs requests` where the \
         authority is; `overlord certs reject {name}` makes way"
    )]
    OtherKeyWaits {
        /// Who asked.
        name: MinionName,
        /// Since when the other waits.
        since: Timestamp,
    },
    /// The token signs nothing.
    #[error("the request of {name} is refused: {problem}. Make another with `overlord certs token --for {name}`")]
    Token {
        /// Who asked.
        name: MinionName,
        /// What is wrong with it.
        problem: TokenProblem,
    },
    /// As many wait as may.
    #[error(
        "the request of {name} is refused: {waiting} requests wait already, as many as may (certs.requests_max). `overlord certs sign` or \
         `reject` them where the authority is, or give this host a token"
    )]
    Full {
        /// Who asked.
        name: MinionName,
        /// How many wait.
        waiting: usize,
    },
    /// The certificate that asks for its renewal has another key than its name is bound to.
    #[error(
        "no new certificate for {role}: the name is bound to another key by now, by a certificate that was issued later. If that one is not meant \
         to be, `overlord certs list` where the authority is names it, and `overlord certs clean SERIAL` undoes it. Else a host enrols again, and an \
         overlord is given what `overlord certs issue --role overlord NAME` makes"
    )]
    NotCurrent {
        /// Whose.
        role: Role,
    },
    /// The certificate is not one that can be renewed.
    #[error("no new certificate: {problem}")]
    NotRenewable {
        /// Why not.
        problem: String,
    },
}
