//! What a job needs on a host before it is sent there: a package of the minion, brought in pieces.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::method::{ArgumentError, Catalogue, MethodName};
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::package::{PACKAGE_MAX_BYTES, PIECE_MAX_BYTES, PackageId, Piece, STAGE, Staged, UPGRADE};
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Client, Sent};
use crate::envelope::Letter;

/// How long a host may take for a piece.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// How long bringing all of it to one host may take.
const BROUGHT_WITHIN: Duration = Duration::from_secs(20 * 60);
/// What the files of packages begin with: of Debian, see deb(5); of RPM, see its LSB lead.
const MAGICS: [&[u8]; 2] = [b"!<arch>\n", b"\xed\xab\xee\xdb"];

/// Why there is nothing to bring.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// The arguments do not name one file.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// It cannot be read.
    #[error("reading the package {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is larger than hosts take.
    #[error("{} is larger than {PACKAGE_MAX_BYTES} bytes, and no package of the minion", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is neither a .deb nor a .rpm", path.display())]
    NoPackage {
        /// The file.
        path: PathBuf,
    },
}

/// A package, on the way to the hosts of one job.
pub(crate) struct Parcel {
    id: PackageId,
    bytes: Vec<u8>,
}

impl Parcel {
    /// What is to be brought before that call is sent, if anything is; and the arguments that name it as the hosts know it.
    pub(crate) fn of_call(method: &MethodName, args: Arguments) -> Result<(Arguments, Option<Arc<Self>>), ParcelError> {
        let spec = if method.as_str() == UPGRADE { Catalogue::builtin().find(method).cloned() } else { None };
        let Some(spec) = spec else { return Ok((args, None)) };
        let bound = spec.bind(&args)?;
        let file = bound.get("file").and_then(|file| file.as_str()).unwrap_or_default();
        if file.parse::<PackageId>().is_ok() {
            return Ok((args, None));
        }
        let bytes = read(Path::new(file))?;
        let id = PackageId::of(&bytes);
        Ok((Arguments::Json(json!({ "file": id })), Some(Arc::new(Self { id, bytes }))))
    }

    /// Brings what the host of `letter` has not yet.
    ///
    /// # Errors
    /// That the job cannot be sent there, and why.
    pub(crate) async fn bring(&self, client: &Client, letter: &Letter) -> Result<(), Verdict> {
        let deadline = Instant::now() + BROUGHT_WITHIN;
        let mut have = self.bring_piece(client, letter, 0, &[]).await?;
        while have < self.bytes.len() {
            let end = self.bytes.len().min(have.saturating_add(PIECE_MAX_BYTES));
            let piece = self.bytes.get(have..end).unwrap_or_default();
            let now = self.bring_piece(client, letter, have, piece).await?;
            if now <= have || now > self.bytes.len() {
                return Err(not_brought(&format!("it says that it has {now} bytes of it, after {end} were brought")));
            }
            have = now;
            if Instant::now() > deadline {
                return Err(not_brought(&format!("{have} of {} bytes were brought in {BROUGHT_WITHIN:?}", self.bytes.len())));
            }
        }
        Ok(())
    }

    async fn bring_piece(&self, client: &Client, letter: &Letter, offset: usize, piece: &[u8]) -> Result<usize, Verdict> {
        let args = Piece { file: &self.id, bytes: self.bytes.len() as u64, offset: offset as u64, data: STANDARD.encode(piece) };
        let args = serde_json::to_value(args).map_err(|error| not_brought(&error.to_string()))?;
        let letter = letter.to_the_same(STAGE, Arguments::Json(args), PIECE_WITHIN);
        let within = PIECE_WITHIN.saturating_mul(2);
        let verdict = match client.ask::<Outcome>(&letter, within, &Sent::default()).await {
            Ok(outcome) => outcome.verdict,
            Err(silence) => silence.into_verdict(),
        };
        match verdict {
            Verdict::Ok { result } => match serde_json::from_value::<Staged>(result) {
                Ok(Staged { have }) => usize::try_from(have).map_err(|error| not_brought(&error.to_string())),
                Err(error) => Err(not_brought(&format!("its answer cannot be read: {error}"))),
            },
            // Who may not bring it may not install it, either; and the host says so.
            denied @ Verdict::Denied { .. } => Err(denied),
            other => Err(not_brought(other.error().map_or("no reason was given", |error| error.message.as_str()))),
        }
    }
}

fn not_brought(why: &str) -> Verdict {
    Verdict::undelivered(format!("the package could not be brought there: {why}"))
}

fn read(path: &Path) -> Result<Vec<u8>, ParcelError> {
    let failed = |source| ParcelError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ParcelError::NoPackage { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(PACKAGE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 {
        0..=PACKAGE_MAX_BYTES if MAGICS.iter().any(|magic| bytes.starts_with(magic)) => Ok(bytes),
        0..=PACKAGE_MAX_BYTES => Err(ParcelError::NoPackage { path: path.to_owned() }),
        _ => Err(ParcelError::TooLarge { path: path.to_owned() }),
    }
}
