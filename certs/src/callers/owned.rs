//! Reading files whose folder somebody else may write to: what could be theirs is not gone by, and nothing of theirs is waited for.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rustls::pki_types::CertificateDer;

use crate::files::{FILE_MAX_BYTES, FileError, Revocations, WRITABLE_BY_OTHERS, folder_of, parse_certificates};
use crate::tls::{self, TlsError};

/// In a folder with this mode, what somebody else owns can be neither replaced nor deleted.
const STICKY: u32 = 0o1000;

/// Why an authority's file is not gone by.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnedError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} cannot be used", .path.display())]
    Unsound { path: PathBuf, source: TlsError },
    #[error(
        "{path} belongs to the user {uid}, who could make anybody a caller: put the authority's own there (`overlord certs status` prints \
         its fingerprint), and run `chown -h {owner} {path}`",
        path = .path.display()
    )]
    Foreign { path: PathBuf, uid: u32, owner: u32 },
    #[error(
        "{path} can be written by others (mode {mode:04o}), who could make anybody a caller: put the authority's own there (`overlord certs \
         status` prints its fingerprint), and run `chmod go-w {path}`",
        path = .path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "what lies in {folder} can be replaced by others (mode {mode:04o}), who could make anybody a caller: run `chmod +t {folder}`",
        folder = .folder.display()
    )]
    Folder { folder: PathBuf, mode: u32 },
}

impl OwnedError {
    /// Others than its owner can say what is in it.
    pub(super) fn is_foreign(&self) -> bool {
        match self {
            Self::File(_) | Self::Unsound { .. } => false,
            Self::Foreign { .. } | Self::Writable { .. } | Self::Folder { .. } => true,
        }
    }
}

/// Whether nobody but `owner` and root can say what is read at `path`: the file, its folder, and the link to it if it is one.
pub(super) fn check(path: &Path, owner: u32) -> Result<(), OwnedError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let folder = folder_of(path);
    let around = fs::metadata(folder).map_err(failed)?;
    belongs(folder, &around, owner)?;
    let mode = mode(&around);
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(OwnedError::Folder { folder: folder.to_owned(), mode });
    }
    belongs(path, &fs::symlink_metadata(path).map_err(failed)?, owner)?;
    is_private(path, &fs::metadata(path).map_err(failed)?, owner)
}

/// The authorities in a file that nobody but `owner` and root can have written, if there is an owner that it must have.
pub(super) fn read_authorities(path: &Path, owner: Option<u32>) -> Result<Vec<CertificateDer<'static>>, OwnedError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    if let Some(owner) = owner {
        check(path, owner)?;
    }
    let file = open(path, OFlag::O_NONBLOCK).map_err(failed)?;
    if let Some(owner) = owner {
        // Of the file that is read, whatever was at its path a moment ago.
        is_private(path, &file.metadata().map_err(failed)?, owner)?;
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let authorities = parse_certificates(&bytes, path)?;
    // Certificates can be held against them.
    let sound = tls::callers_verifier(&authorities, Revocations::default());
    sound.map(|_| authorities).map_err(|source| OwnedError::Unsound { path: path.to_owned(), source })
}

/// Opens somebody else's file for reading. A link of theirs is not followed, as it may lead to a device that does something when it is opened.
pub(super) fn open_foreign(path: &Path) -> io::Result<File> {
    open(path, OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)
}

/// A pipe or a device is not waited for.
fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ELOOP) => io::Error::other("it is a symbolic link, which is not followed here"),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a plain file")) }
}

fn is_private(path: &Path, seen: &Metadata, owner: u32) -> Result<(), OwnedError> {
    belongs(path, seen, owner)?;
    let mode = mode(seen);
    if mode & WRITABLE_BY_OTHERS != 0 { Err(OwnedError::Writable { path: path.to_owned(), mode }) } else { Ok(()) }
}

fn belongs(path: &Path, seen: &Metadata, owner: u32) -> Result<(), OwnedError> {
    match seen.uid() {
        // Root may write everything anyway.
        0 => Ok(()),
        uid if uid == owner => Ok(()),
        uid => Err(OwnedError::Foreign { path: path.to_owned(), uid, owner }),
    }
}

fn mode(seen: &Metadata) -> u32 {
    seen.permissions().mode() & 0o7777
}
