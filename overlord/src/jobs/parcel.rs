//! What a job needs on a host before it is sent there: a package of the minion, brought in pieces.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::job::JobId;
use common::method::{ArgumentError, Catalogue, MethodName};
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::package::{PIECE_MAX_BYTES, PackageId, Piece, STAGE, Staged, UPGRADE};
use serde_json::json;
use tokio::time::Instant;

use crate::client::{Client, Sent};
use crate::envelope::Letter;
use crate::package::{Package, PackageError};

/// How long a host may take for a piece.
const PIECE_WITHIN: Duration = Duration::from_secs(60);
/// How long bringing all of it to one host may take.
const BROUGHT_WITHIN: Duration = Duration::from_secs(20 * 60);

/// Why there is nothing to bring.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// The arguments do not name one file.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// The file is not the minion's package.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// A package, on the way to the hosts of one job.
pub(crate) struct Parcel(Package);

impl Parcel {
    /// Whether calls of this method need one.
    pub(crate) fn is_needed(method: &str) -> bool {
        method == UPGRADE
    }

    /// What is to be brought before that call is sent, if anything is; and the arguments that name it as the hosts know it.
    pub(crate) fn of_call(method: &MethodName, args: Arguments) -> Result<(Arguments, Option<Arc<Self>>), ParcelError> {
        let spec = if Self::is_needed(method.as_str()) { Catalogue::builtin().find(method).cloned() } else { None };
        let Some(spec) = spec else { return Ok((args, None)) };
        let bound = spec.bind(&args)?;
        let file = bound.get("file").and_then(|file| file.as_str()).unwrap_or_default();
        if file.parse::<PackageId>().is_ok() {
            return Ok((args, None));
        }
        let package = Package::read(Path::new(file))?;
        Ok((Arguments::Json(json!({ "file": package.id })), Some(Arc::new(Self(package)))))
    }

    /// Brings what the host of `letter` has not yet.
    ///
    /// # Errors
    /// That the job cannot be sent there, and why.
    pub(crate) async fn bring(&self, client: &Client, letter: &Letter) -> Result<(), Verdict> {
        let (bytes, deadline) = (&self.0.bytes, Instant::now() + BROUGHT_WITHIN);
        let mut have = self.bring_piece(client, letter, 0, &[]).await?;
        while have < bytes.len() {
            let end = bytes.len().min(have.saturating_add(PIECE_MAX_BYTES));
            let piece = bytes.get(have..end).unwrap_or_default();
            let now = self.bring_piece(client, letter, have, piece).await?;
            if now <= have || now > bytes.len() {
                return Err(not_brought(&format!("it says that it has {now} bytes of it, after {end} were brought")));
            }
            have = now;
            if Instant::now() > deadline {
                return Err(not_brought(&format!("{have} of {} bytes were brought in {BROUGHT_WITHIN:?}", bytes.len())));
            }
        }
        Ok(())
    }

    async fn bring_piece(&self, client: &Client, letter: &Letter, offset: usize, piece: &[u8]) -> Result<usize, Verdict> {
        let args = Piece { file: &self.0.id, bytes: self.0.bytes.len() as u64, offset: offset as u64, data: STANDARD.encode(piece) };
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

/// What to do about a job that is to be sent again.
pub(super) fn not_kept(job: &JobId) -> String {
    format!(
        "the job {job} brought a package to its hosts, which is not kept here; start it anew where it is needed, for instance \
         `overlord '@job:{job}:undelivered' {UPGRADE} FILE --async`"
    )
}

fn not_brought(why: &str) -> Verdict {
    Verdict::undelivered(format!("the package could not be brought there: {why}"))
}
