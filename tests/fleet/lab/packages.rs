//! The packages that a lab installs, as `make packages` leaves them, and the same of another version.

use std::fs;
use std::path::{Path, PathBuf};

/// Where they are, unless `LAB_PACKAGES` names a folder.
const FOLDER: &str = "target/packages";
/// Where those of the next version are, below that.
const NEXT: &str = "next";

/// Which version of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// That of this tree.
    This,
    /// One that follows it.
    Next,
}

impl Version {
    /// The version of a package, as dpkg has it: `0.1.0-1`.
    ///
    /// # Panics
    /// There is no such package.
    #[must_use]
    pub fn of(self, name: &str) -> String {
        let file = find(name, self, "_amd64.deb");
        let file = file.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        file.split('_').nth(1).unwrap_or_default().to_owned()
    }
}

/// The folder with all of them.
///
/// # Panics
/// There is none.
pub(super) fn folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    let folder = workspace.join(std::env::var_os("LAB_PACKAGES").unwrap_or_else(|| FOLDER.into()));
    assert!(folder.is_dir(), "{} is missing, which has the packages to test: `make lab-test` makes them", folder.display());
    folder
}

/// The one file there of that name and ending, as a path below [`folder`].
///
/// # Panics
/// There is none, or more than one.
pub(super) fn find(name: &str, version: Version, ending: &str) -> PathBuf {
    let below = Path::new(if version == Version::Next { NEXT } else { "" });
    let is_meant = |file: &str| {
        // A version begins with a digit, and `overlord` is no `overlord-minion`.
        let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix(['_', '-']));
        rest.is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit())) && file.ends_with(ending)
    };
    let entries = fs::read_dir(folder().join(below)).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|file| is_meant(file)).collect();
    assert!(found.len() == 1, "{} has not one {name}*{ending} but {found:?}", folder().join(below).display());
    below.join(found.remove(0))
}
