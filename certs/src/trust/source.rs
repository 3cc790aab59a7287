//! Where credentials come from: three files, or the authority's own hand.

use std::path::{Path, PathBuf};

use super::TrustError;
use crate::files::Credentials;

/// Makes credentials, or says why it cannot.
pub(super) type Make = Box<dyn Fn() -> Result<Credentials, String> + Send + Sync>;

pub(super) enum Source {
    Files { ca: PathBuf, cert: PathBuf, key: PathBuf },
    Made { ca: PathBuf, make: Make },
}

impl Source {
    pub(super) fn credentials(&self) -> Result<Credentials, TrustError> {
        match self {
            Self::Files { ca, cert, key } => Ok(Credentials::load(ca, cert, key)?),
            Self::Made { make, .. } => make().map_err(TrustError::Made),
        }
    }

    /// The credentials must be made anew by ourselves when they grow old.
    pub(super) fn is_made(&self) -> bool {
        matches!(self, Self::Made { .. })
    }

    /// What is to be watched, the revocation list first.
    pub(super) fn paths<'p>(&'p self, crl: &'p Path) -> Vec<&'p Path> {
        match self {
            Self::Files { ca, cert, key } => vec![crl, ca, cert, key],
            Self::Made { ca, .. } => vec![crl, ca],
        }
    }
}
