//! The package that is deployed: which it is, for which architecture, and how much room it takes. Reads one file, and trusts none of it; runs nothing.

mod deb;
mod rpm;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::protocol::package::PACKAGE_MAX_BYTES;
use ring::digest::{SHA256, digest};

/// The package that makes a host one of the fleet.
pub(crate) const NAME: &str = "overlord-minion";

/// Why a file cannot be deployed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    #[error("cannot read the package {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than {PACKAGE_MAX_BYTES} bytes", .path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is no package that can be deployed: {problem}; `make packages` makes {NAME} as .deb and .rpm", .path.display())]
    Unusable { path: PathBuf, problem: String },
    #[error("{} is the package {name}, and a host needs {NAME}", .path.display())]
    OtherName { path: PathBuf, name: String },
}

/// Who can install it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Deb,
    Rpm,
}

/// What a package says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// With its release: `0.1.0-1`.
    pub(crate) version: String,
    /// As its kind has it: `amd64`, `x86_64`.
    pub(crate) arch: String,
    /// What its files take on the disk.
    pub(crate) installed_kib: u64,
}

/// A package, whole.
#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) says: Description,
    pub(crate) bytes: Bytes,
    /// In small hexadecimal digits.
    pub(crate) sha256: String,
}

impl Package {
    /// # Errors
    /// The file cannot be read, or is not the minion's package.
    pub(crate) fn read(path: &Path) -> Result<Self, PackageError> {
        let failed = |source| PackageError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(PACKAGE_MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > PACKAGE_MAX_BYTES {
            return Err(PackageError::TooLarge { path: path.to_owned() });
        }
        let says = describe(&bytes).map_err(|problem| PackageError::Unusable { path: path.to_owned(), problem })?;
        if says.name != NAME {
            return Err(PackageError::OtherName { path: path.to_owned(), name: says.name });
        }
        let sha256 = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { says, bytes: bytes.into(), sha256 })
    }
}

/// What the bytes of a package say of it.
///
/// # Errors
/// They are none: why, for a person.
pub(crate) fn describe(bytes: &[u8]) -> Result<Description, String> {
    let says = if bytes.starts_with(deb::MAGIC) {
        deb::describe(bytes)?
    } else if bytes.starts_with(&rpm::MAGIC) {
        rpm::describe(bytes)?
    } else {
        return Err("it is neither a .deb nor an .rpm".to_owned());
    };
    let is_word = |text: &str| !text.is_empty() && text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic());
    let words = [("name", &says.name), ("version", &says.version), ("architecture", &says.arch)];
    if let Some((what, _)) = words.iter().find(|(_, text)| !is_word(text)) {
        return Err(format!("its {what} is not one"));
    }
    Ok(says)
}

impl Kind {
    /// The end of its files' names, and what the script on the host calls it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Rpm => "rpm",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, ".{}", self.suffix())
    }
}
