//! The fleet's authority, where this home is its own: its desk, by the terms of `overlord.toml`, and the log of what was decided there.
//! What a request gets is decided in the crate `certs`.

pub(crate) mod audit;
pub(crate) mod spread;

use certs::authority::desk::{Desk, Terms};
use certs::authority::{Authority, AuthorityError};

use crate::config::Config;
use crate::fleet::Fleet;
use audit::{Ledger, LedgerError};

/// Why the authority of this home cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfficeError {
    /// There is none, or it cannot do what was asked.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What is decided could not be written down.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The authority's desk, and its audit log.
#[derive(Debug)]
pub(crate) struct Office {
    pub(crate) desk: Desk,
    pub(crate) ledger: Ledger,
}

impl Office {
    /// Opens the authority of the fleet's home, and its log.
    ///
    /// # Errors
    /// There is none here, or one of them cannot be used.
    pub(crate) fn open(fleet: &Fleet) -> Result<Self, OfficeError> {
        let desk = Desk::open(&fleet.home().certs_dir(), terms(fleet.config()))?;
        Ok(Self { desk, ledger: Ledger::open(fleet.home(), fleet.config())? })
    }
}

fn terms(config: &Config) -> Terms {
    let limits = &config.certs;
    Terms { valid: limits.valid, crl_valid: limits.crl_valid, requests_max: limits.requests_max.get() }
}

/// What to type on a host that shall enrol with `authority`.
pub(crate) fn enroll_line(config: &Config, authority: &Authority) -> String {
    format!("minion enroll --overlord {} --ca-fingerprint {}", public_address(config), authority.pin())
}

/// Where hosts reach `overlord certs serve`, as far as can be told from here.
fn public_address(config: &Config) -> String {
    if let Some(address) = &config.authority {
        return address.clone();
    }
    let listen = config.certs.listen;
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}:{}", host.unwrap_or_else(|| "HOST".to_owned()), listen.port())
}
