//! Whether what is installed is what a package has: by the bytes of its files, as a version may have been built twice.

use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use super::command::Command;

/// Below this is what an administrator changes.
const CONFIGURATION: &str = "etc";

/// Whether each file of the Debian package `file`, its configuration aside, is there as it is in the package. It is unpacked beside it, for the moment.
pub(super) fn is_installed(file: &Path) -> bool {
    let tree = file.with_extension("unpacked");
    let _not_there = fs::remove_dir_all(&tree);
    let unpacked = Command::new("dpkg-deb").arg("--extract").arg(file).arg(&tree).ask();
    let is_same = unpacked.is_ok() && is_same_below(&tree, Path::new("/"), &|name| name != CONFIGURATION).unwrap_or(false);
    let _stays_until_the_next = fs::remove_dir_all(&tree);
    is_same
}

fn is_same_below(tree: &Path, root: &Path, counts: &dyn Fn(&str) -> bool) -> io::Result<bool> {
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let (ours, theirs, kind) = (entry.path(), root.join(entry.file_name()), entry.file_type()?);
        let is_same = if !entry.file_name().to_str().is_some_and(counts) {
            true
        } else if kind.is_dir() {
            is_same_below(&ours, &theirs, &|_| true)?
        } else if kind.is_symlink() {
            fs::read_link(&ours)? == fs::read_link(&theirs)?
        } else {
            is_same_file(&ours, &theirs)?
        };
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut others = BufReader::new(other).bytes();
    for byte in BufReader::new(one).bytes() {
        if Some(byte?) != others.next().transpose()? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn trees_are_the_same_file_by_file_but_for_configuration() {
        let [tree, root] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for folder in [&tree, &root] {
            fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
            fs::create_dir_all(folder.path().join("etc")).unwrap();
            fs::write(folder.path().join("usr/bin/minion"), "program").unwrap();
            std::os::unix::fs::symlink("minion", folder.path().join("usr/bin/link")).unwrap();
        }
        let same = || is_same_below(tree.path(), root.path(), &|name| name != CONFIGURATION).unwrap_or(false);
        fs::write(tree.path().join("etc/minion.toml"), "theirs").unwrap();
        fs::write(root.path().join("usr/more"), "of another package").unwrap();
        assert!(same());
        for other in ["progran", "program\n"] {
            fs::write(root.path().join("usr/bin/minion"), other).unwrap();
            assert!(!same(), "{other:?}");
        }
        fs::remove_file(root.path().join("usr/bin/minion")).unwrap();
        assert!(!same());
    }
}
