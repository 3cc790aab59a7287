//! Folders that appear whole or not at all: filled under another name, then renamed.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::desk::CRL_FILE;
use super::{AuthorityError, Issued};
use crate::files::{self, UNFINISHED};

/// Writes `out/NAME/` with `ca.pem`, `cert.pem`, `key.pem` (0600), and `crl.pem` if there is a revocation list: what a host is given. It
/// appears whole or not at all.
///
/// # Errors
/// There is something of that name already, or it cannot be written.
pub fn write_folder(out: &Path, ca_pem: &str, crl_pem: Option<&str>, issued: &Issued) -> Result<PathBuf, AuthorityError> {
    let public = [Some(("ca.pem", ca_pem)), Some(("cert.pem", issued.cert_pem.as_str())), crl_pem.map(|pem| (CRL_FILE, pem))];
    write(out, issued, &public.into_iter().flatten().collect::<Vec<_>>(), "key.pem")
}

/// As [`write_folder`], with `overlord.pem` and `overlord.key`: what becomes the `certs/` of another overlord's home as it is.
///
/// # Errors
/// As [`write_folder`].
pub fn write_overlord_folder(out: &Path, ca_pem: &str, crl_pem: Option<&str>, issued: &Issued) -> Result<PathBuf, AuthorityError> {
    let public = [Some(("ca.pem", ca_pem)), Some(("overlord.pem", issued.cert_pem.as_str())), crl_pem.map(|pem| (CRL_FILE, pem))];
    write(out, issued, &public.into_iter().flatten().collect::<Vec<_>>(), "overlord.key")
}

fn write(out: &Path, issued: &Issued, public: &[(&str, &str)], key_file: &str) -> Result<PathBuf, AuthorityError> {
    let folder = out.join(issued.role.name());
    if folder.symlink_metadata().is_ok() {
        return Err(AuthorityError::FolderExists { path: folder });
    }
    make_folder(out)?;
    let unfinished = unfinished_folder(out, UNFINISHED)?;
    for (name, text) in public {
        files::write_new(&unfinished.path().join(name), text.as_bytes(), 0o644)?;
    }
    files::write_new(&unfinished.path().join(key_file), issued.key_pem.as_bytes(), 0o600)?;
    match publish(unfinished, &folder) {
        Err(_) if folder.exists() => Err(AuthorityError::FolderExists { path: folder }),
        published => published.map(|()| folder),
    }
}

pub(super) fn make_folder(path: &Path) -> Result<(), AuthorityError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| AuthorityError::Folder { doing: "making", path: path.to_owned(), source })
}

pub(super) fn unfinished_folder(parent: &Path, prefix: &str) -> Result<TempDir, AuthorityError> {
    let made = tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent);
    made.map_err(|source| AuthorityError::Folder { doing: "making", path: parent.to_owned(), source })
}

/// Gives a finished folder its name, durably. What is in the way is replaced only if it is an empty folder.
pub(super) fn publish(unfinished: TempDir, folder: &Path) -> Result<(), AuthorityError> {
    files::sync_folder(unfinished.path())?;
    fs::rename(unfinished.path(), folder).map_err(|source| AuthorityError::Folder { doing: "making", path: folder.to_owned(), source })?;
    let _ = unfinished.keep();
    files::sync_folder_of(folder)?;
    Ok(())
}
