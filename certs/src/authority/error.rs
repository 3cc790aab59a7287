//! Why the authority cannot do what was asked.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::files::FileError;
use crate::leaf::LeafError;
use crate::request::RequestError;

/// Why the authority cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("there is an authority in {dir} already, which stays as it is: `overlord certs issue NAME` uses it", dir = .dir.display())]
    Exists {
        /// Its folder.
        dir: PathBuf,
    },
    /// The folder holds other things.
    #[error("{} is not empty, and holds no authority: move what is in it away first", .dir.display())]
    Occupied {
        /// The folder.
        dir: PathBuf,
    },
    /// There is none.
    #[error("there is no authority in {}: make one with `overlord certs init`", .dir.display())]
    Missing {
        /// Its folder.
        dir: PathBuf,
    },
    /// A file cannot be read, written or used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The authority's own certificate or key is damaged, or they do not belong together.
    #[error("the authority in {dir} cannot be used: restore ca.pem and ca.key from a backup", dir = .dir.display())]
    Damaged {
        /// Its folder.
        dir: PathBuf,
    },
    /// A certificate could not be made.
    #[error("making a certificate for {subject}")]
    Request {
        /// Whom it was for.
        subject: String,
        /// Why.
        source: RequestError,
    },
    /// The certificate would outlast the authority's.
    #[error("a certificate until {asked} would outlast the authority, which ends {authority}: ask for a shorter validity")]
    Outlasts {
        /// Until when it was asked for.
        asked: Timestamp,
        /// Until when the authority's is valid.
        authority: Timestamp,
    },
    /// A record of an issued certificate is damaged.
    #[error("the record {} of an issued certificate is damaged", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LeafError,
    },
    /// The host's folder is there already.
    #[error("{} exists already and is never overwritten: move it away, or choose another folder with --out", .path.display())]
    FolderExists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder cannot be made or read.
    #[error("{doing} {}", .path.display())]
    Folder {
        /// `making` or `reading`.
        doing: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
