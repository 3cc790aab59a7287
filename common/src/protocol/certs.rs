//! What travels between the fleet's authority, `overlord certs serve`, and whoever wants a certificate or the revocation list of it.
//!
//! JSON-RPC 2.0 over HTTP/1.1 over TLS 1.3, like calls, but with plain `params` and no envelope. Who has no certificate yet shows none, and
//! may only [`ENROLL`] and ask for [`REVOCATIONS`]; [`RENEW`] is for whoever shows a certificate that is still good. A refusal is a JSON-RPC
//! error whose fields are those of [`Failure`](crate::outcome::Failure). Texts of certificates, requests and lists are PEM.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::identity::MinionName;

/// The port that `overlord certs serve` listens on unless told otherwise.
pub const AUTHORITY_PORT: u16 = 51235;

/// Asks for a host's first certificate: [`EnrollParams`] → [`EnrollReply`]. Asked again with the same key it says how things stand.
pub const ENROLL: &str = "certs.enroll";

/// Asks for a new certificate for the key, the name and the role of the one that is shown: no parameters → [`Issued`].
pub const RENEW: &str = "certs.renew";

/// Asks for the revocation list, and gives a minion a newer one: [`RevocationsParams`] → [`Revocations`]. Of the authority and of minions.
pub const REVOCATIONS: &str = "certs.revocations";

/// A minion names the number of its revocation list in this header of every answer, so that callers see who has an older one.
pub const REVOCATIONS_HEADER: &str = "fleet-revocations";

/// The largest revocation list that is taken, as PEM text: some 80,000 certificates.
pub const REVOCATIONS_MAX_BYTES: usize = 8 << 20;

/// The largest request for a certificate that is read, as PEM text.
pub const CSR_MAX_BYTES: usize = 16 << 10;

/// The `params` of [`ENROLL`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollParams {
    /// The host's name. What else the request wishes for is not looked at, or is a reason to refuse it.
    pub name: MinionName,
    /// The certificate request (PKCS #10), signed with the host's key.
    pub csr: String,
    /// A one-time token that stands for an administrator's signing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// How a request for a first certificate stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EnrollReply {
    /// Here it is.
    Issued(Issued),
    /// It waits for an administrator.
    Waiting {
        /// SHA-256 of the public key (SubjectPublicKeyInfo) in small hexadecimal digits, for comparing it with `certs requests`.
        key: String,
        /// Since when.
        since: Timestamp,
    },
    /// An administrator has said no.
    Rejected {
        /// When.
        at: Timestamp,
    },
}

/// A certificate, and what its bearer should know besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// The revocation list of this moment.
    pub revocations: Revocations,
}

/// The `params` of [`REVOCATIONS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationsParams {
    /// The number of the list that the asker has; 0 if none.
    #[serde(default)]
    pub have: u64,
    /// A list for whoever is asked, who checks the authority's signature, and takes it if it is newer than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<String>,
}

/// The revocation list that somebody goes by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// Its number (RFC 5280, 5.2.3), which only grows; 0 if there is none.
    pub number: u64,
    /// The list itself, if its number is larger than that of the asker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<String>,
}
