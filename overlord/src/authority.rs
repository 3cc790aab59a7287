//! The fleet's authority, where this home is its own: its desk, by the terms of `overlord.toml`, and the log of what was decided there.
//! What a request gets is decided in the crate `certs`.

pub(crate) mod audit;
mod clerk;
pub(crate) mod renewal;
pub(crate) mod serve;
pub(crate) mod spread;

use std::net::SocketAddr;
use std::sync::Arc;

use certs::authority::desk::{Desk, Terms};
use certs::authority::{Authority, AuthorityError};
use certs::tls::CaPin;

use crate::config::Config;
use crate::home::Home;
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
    pub(crate) ledger: Arc<Ledger>,
}

impl Office {
    /// Opens the authority of a home, and its log.
    ///
    /// # Errors
    /// There is none here, or one of them cannot be used.
    pub(crate) fn open(home: &Home, config: &Config) -> Result<Self, OfficeError> {
        let desk = Self::desk(home, config)?;
        Ok(Self { desk, ledger: Arc::new(Ledger::open(home, config)?) })
    }

    /// The desk alone, for who only looks: nothing is written, not even the log's file.
    ///
    /// # Errors
    /// There is none here, or it cannot be used.
    pub(crate) fn desk(home: &Home, config: &Config) -> Result<Desk, AuthorityError> {
        Desk::open(&home.certs_dir(), terms(config))
    }

    /// Whether the authority is in this home.
    pub(crate) fn is_in(home: &Home) -> bool {
        home.certs_dir().join("ca.key").exists()
    }
}

fn terms(config: &Config) -> Terms {
    let limits = &config.certs;
    Terms { valid: limits.valid, crl_valid: limits.crl_valid, requests_max: limits.requests_max.get() }
}

/// What to type on a host that shall enrol with `authority`.
pub(crate) fn enroll_line(config: &Config, authority: &Authority) -> String {
    enroll_line_at(&public_address(config, config.certs.listen), authority.pin())
}

fn enroll_line_at(address: &str, pin: &CaPin) -> String {
    format!("minion enroll --overlord {address} --ca-fingerprint {pin}")
}

/// Where hosts reach `overlord certs serve` that listens at `listen`, as far as can be told from here.
pub(crate) fn public_address(config: &Config, listen: SocketAddr) -> String {
    if let Some(address) = &config.authority {
        return address.clone();
    }
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}:{}", host.unwrap_or_else(|| "HOST".to_owned()), listen.port())
}
