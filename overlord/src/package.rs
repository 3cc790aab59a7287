//! The minion's package, which hosts are deployed and upgraded by: which it is, for which architecture, and how much room it takes. Reads one file, and
//! trusts none of it; runs nothing.

mod deb;
mod rpm;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::format::Program;
use common::protocol::package::{PACKAGE_MAX_BYTES, PackageId};

/// What it is called.
const NAME: &str = Program::Minion.package();

/// Why no host can be given this file.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// It cannot be read.
    #[error("cannot read the package {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else, or damaged.
    #[error("{} is no package of the minion: {problem}; `make packages` makes {NAME} as .deb and .rpm", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, for a person.
        problem: String,
    },
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
    pub(crate) id: PackageId,
}

impl Package {
    /// # Errors
    /// The file cannot be read, or is not the minion's package.
    pub(crate) fn read(path: &Path) -> Result<Self, PackageError> {
        let failed = |source| PackageError::Read { path: path.to_owned(), source };
        let unusable = |problem| PackageError::Unusable { path: path.to_owned(), problem };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(unusable("it is no file".to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(PACKAGE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > PACKAGE_MAX_BYTES {
            return Err(unusable(format!("it is larger than {PACKAGE_MAX_BYTES} bytes, which is what hosts take")));
        }
        let says = describe(&bytes).map_err(unusable)?;
        if says.name != NAME {
            return Err(unusable(format!("it is the package {}", says.name)));
        }
        let id = PackageId::of(&bytes);
        Ok(Self { says, bytes: bytes.into(), id })
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
