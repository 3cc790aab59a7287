//! What can go wrong with the files of a spool.

use std::io;
use std::path::PathBuf;

use certs::format::MarkError;
use common::outcome::{ErrorCode, Failure};
use common::seal::SealError;

/// Why a spool could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file or folder could not be made, read, synced or renamed.
    #[error("{doing} {path}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SealError,
    },
    /// A spool got its name, which may outlast a power cut or not, and could not be taken back.
    #[error("whether {path} is durable is not known: {source}")]
    Doubtful {
        /// The spool.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of the spools is of a newer version, or cannot be marked.
    #[error(transparent)]
    Format(Box<MarkError>),
    /// A value cannot be written as JSON.
    #[error("writing {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// For whoever asked: this host could not do what was to be done.
impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }
}

impl SpoolError {
    /// What a file holds can never be read again; any other failure may pass.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::File { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Unwritable { .. } | Self::Doubtful { .. } | Self::Format(_) => false,
        }
    }
}
