//! How jobs submit calls of their own: over a Unix socket of the server, a JSON line each way. What may be done with them is the door's to say, and
//! whether a job is believed is the spawner's.

mod command;
mod errand;
mod listener;
mod places;

use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure};
use serde::{Deserialize, Serialize};

use crate::call::said;

pub use command::{WaitWords, Words, run, run_wait};
pub use listener::{Submissions, SubmitLimits};

/// The kind of refusal, in `data.type`, of a connection for which there is no place: nothing of it was read.
pub const NO_PLACE: &str = "no_place";

/// What a job says, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The envelope, as JSON text.
    pub call: String,
    /// The job that says it.
    pub job: MinionJobId,
    /// The HMAC that the job's token gives of `call`, in hex.
    pub code: String,
}

/// What it hears: `{"result": …}`, as a caller on the network does, or `{"error": {"code", "message", "data"?}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<R> {
    /// What it came to.
    Result(R),
    /// It was refused: nothing was run.
    Error(Failure),
}

impl Submission {
    /// What a line says.
    ///
    /// # Errors
    /// `InvalidRequest`: it is no submission.
    pub fn read(line: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(line).map_err(|error| {
            let message = format!("what was said is not {{\"call\": \"…\", \"job\": \"…\", \"code\": \"…\"}}: {}", said(&error));
            Failure::new(ErrorCode::InvalidRequest, message)
        })
    }
}
