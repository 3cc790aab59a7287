//! Why the authority cannot do what was asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::files::FileError;
use crate::format::MarkError;
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
    /// It is of a newer version, or that cannot be told.
    #[error(transparent)]
    Format(#[from] MarkError),
    /// Its certificate is there, and its key is not: it is another machine's.
    #[error("the authority's key is not in {dir}: run this on the machine where the authority is", dir = .dir.display())]
    Elsewhere {
        /// The folder.
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
    /// The host's folder is there already.
    #[error("{} exists already and is never overwritten: move it away, or choose another folder with --out", .path.display())]
    FolderExists {
        /// The folder.
        path: PathBuf,
    },
    /// The revocation list would be larger than anybody reads.
    #[error("nothing was revoked: the revocation list would be larger than {max_bytes} bytes, which nobody reads; a new authority is due")]
    ListFull {
        /// The most that it may be.
        max_bytes: usize,
    },
    /// A request that is kept is damaged.
    #[error("the request {} cannot be used: delete the file, and let the host ask again", .path.display())]
    DamagedRequest {
        /// The file.
        path: PathBuf,
    },
    /// Another process changes the authority, and does not come to an end.
    #[error("another program has held {} for {within:?}: see what it is with `fuser {}`", .path.display(), .path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long was waited.
        within: Duration,
    },
    /// The names for a token are no glob.
    #[error("\"{glob}\" is no glob for names: {problem}")]
    Glob {
        /// As it was given.
        glob: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something of what was asked cannot be done, so nothing was.
    #[error("nothing was {done}: {}", .problems.join("; "))]
    NotAll {
        /// `signed`, `rejected`, `revoked` or `cleaned`.
        done: &'static str,
        /// What cannot be done and why, for each name.
        problems: Vec<String>,
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
