//! What `overlord.toml` says of certificates: the table `[certs]` of the home where the authority is, and where to find that from elsewhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use certs::crl::StaleCrl;
use common::protocol::certs::AUTHORITY_PORT;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::hosts::whole_address;

/// A shorter life leaves no time to renew in.
const VALID_MIN: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How the authority issues certificates and serves: the table `[certs]` of `overlord.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CertsLimits {
    /// How long a certificate is valid; it is renewed at half of that. At least 10 s.
    #[serde(deserialize_with = "life")]
    pub valid: Duration,
    /// How long a revocation list is good; the next one is signed at half of that. At least 10 s.
    #[serde(deserialize_with = "list_life")]
    pub crl_valid: Duration,
    /// So many requests may wait for an administrator.
    pub requests_max: NonZeroUsize,
    /// Where `overlord certs serve` listens.
    pub listen: SocketAddr,
    /// So many connections it holds open at once whose handshake is over; one more takes the place of the one that has waited longest to be
    /// asked anything.
    pub connections_max: NonZeroU32,
    /// So many it holds open at once that are in their handshake; one more takes the place of the oldest.
    pub handshakes_max: NonZeroU32,
    /// So many of them may come from one address without a certificate: of hosts that enrol. In all, half of `connections_max` may.
    pub connections_per_address_max: NonZeroU32,
    /// The authority's audit log begins another file at this size.
    pub audit_max_bytes: NonZeroU64,
    /// So many files of it are kept.
    pub audit_files: NonZeroU32,
}

impl Default for CertsLimits {
    fn default() -> Self {
        Self {
            valid: 90 * DAY,
            crl_valid: 30 * DAY,
            requests_max: NonZeroUsize::MIN.saturating_add(9_999),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, AUTHORITY_PORT)),
            connections_max: NonZeroU32::MIN.saturating_add(4095),
            handshakes_max: NonZeroU32::MIN.saturating_add(1023),
            // A rack of hosts behind one address enrols at once.
            connections_per_address_max: NonZeroU32::MIN.saturating_add(1023),
            audit_max_bytes: NonZeroU64::MIN.saturating_add((64 << 20) - 1),
            audit_files: NonZeroU32::MIN.saturating_add(7),
        }
    }
}

/// What goes for the certificates of others: the table `[trust]` of `overlord.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustLimits {
    /// Whether hosts are called (`serve`) or not (`refuse`) while the revocation list is past its time.
    #[serde(deserialize_with = "stale_crl")]
    pub stale_crl: StaleCrl,
}

fn stale_crl<'de, D: Deserializer<'de>>(input: D) -> Result<StaleCrl, D::Error> {
    match String::deserialize(input)?.as_str() {
        "serve" => Ok(StaleCrl::Serve),
        "refuse" => Ok(StaleCrl::Refuse),
        _ => Err(D::Error::custom("trust.stale_crl is \"serve\" or \"refuse\"")),
    }
}

/// A certificate's life as a person gives it, on the command line as in the file.
///
/// # Errors
/// It is no length of time, or shorter than 10 s.
pub(crate) fn valid(text: &str) -> Result<Duration, String> {
    let valid = common::period::parse(text).map_err(|error| error.to_string())?;
    if valid < VALID_MIN { Err(format!("it is shorter than {VALID_MIN:?}, which leaves no time to renew in")) } else { Ok(valid) }
}

pub(super) fn address<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    authority_address(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

/// Where an authority is asked, as a person gives it, on the command line as in the file: whole, with its port.
///
/// # Errors
/// It is no address.
pub(crate) fn authority_address(text: &str) -> Result<String, String> {
    let whole = whole_address(text, AUTHORITY_PORT);
    whole.ok_or_else(|| format!("\"{}\" is not HOST:PORT, like 10.0.0.1:{AUTHORITY_PORT}", text.escape_debug()))
}

fn life<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    at_least_the_minimum(input, "certs.valid")
}

fn list_life<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    at_least_the_minimum(input, "certs.crl_valid")
}

fn at_least_the_minimum<'de, D: Deserializer<'de>>(input: D, key: &str) -> Result<Duration, D::Error> {
    let period = common::period::deserialize(input)?;
    if period < VALID_MIN { Err(D::Error::custom(format!("{key} is shorter than {VALID_MIN:?}"))) } else { Ok(period) }
}
