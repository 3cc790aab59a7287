//! What `minion.toml` says of trust: where the authority is, and how the host goes by its revocation list.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use certs::crl::StaleCrl;
use certs::enrolled::AUTHORITY_FILE;
use common::period;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::Config;

/// The authority is asked for the revocation list no more often.
const CRL_EVERY_LEAST: Duration = Duration::from_secs(1);
/// The longest address: a name of DNS, a colon and a port.
const ADDRESS_MAX_BYTES: usize = 260;

/// How the host goes by its revocation list: the keys of `[trust]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// Whether a list that is past its time lets callers in.
    #[serde(deserialize_with = "stale_crl")]
    pub stale_crl: StaleCrl,
    /// How often the authority is asked for the list.
    #[serde(deserialize_with = "crl_every")]
    pub crl_every: Duration,
}

impl Default for Trust {
    fn default() -> Self {
        Self { stale_crl: StaleCrl::Serve, crl_every: Duration::from_secs(300) }
    }
}

impl Config {
    /// The file that `minion enroll` writes the authority's address into.
    #[must_use]
    pub fn authority_file(&self) -> PathBuf {
        self.certs_dir.join(AUTHORITY_FILE)
    }

    /// Where the authority is asked, as it stands in `minion.toml`, or else in [`Config::authority_file`] now; none if neither says it.
    #[must_use]
    pub fn authority_address(&self) -> Option<String> {
        if self.authority.is_some() {
            return self.authority.clone();
        }
        let mut text = String::new();
        let limit = u64::try_from(ADDRESS_MAX_BYTES).unwrap_or(u64::MAX);
        File::open(self.authority_file()).ok()?.take(limit).read_to_string(&mut text).ok()?;
        Some(text.trim()).filter(|address| is_address(address)).map(str::to_owned)
    }
}

/// `HOST` or `HOST:PORT`.
pub(super) fn authority<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    let address = String::deserialize(input)?;
    if is_address(&address) { Ok(Some(address)) } else { Err(D::Error::custom("the authority's address is written HOST or HOST:PORT")) }
}

fn is_address(text: &str) -> bool {
    !text.is_empty() && text.len() <= ADDRESS_MAX_BYTES && text.chars().all(|letter| letter.is_ascii_graphic())
}

fn stale_crl<'de, D: Deserializer<'de>>(input: D) -> Result<StaleCrl, D::Error> {
    match String::deserialize(input)?.as_str() {
        "serve" => Ok(StaleCrl::Serve),
        "refuse" => Ok(StaleCrl::Refuse),
        _ => Err(D::Error::custom("it must be \"serve\" or \"refuse\"")),
    }
}

fn crl_every<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let every = period::deserialize(input)?;
    if every < CRL_EVERY_LEAST { Err(D::Error::custom("the authority is asked once in 1s at the most")) } else { Ok(every) }
}
