//! For the fuzz targets alone: what a request asks, as the door reads it, without the door. It decides nothing.

use common::identity::{CallerName, MinionName};
use common::method::MethodName;
use common::outcome::Failure;
use common::protocol::Envelope;
use service::Knock;

use super::read::{self, Form};

/// A call as it is read, before anyone decides on it.
#[derive(Debug)]
pub struct Call {
    /// The envelope as it came.
    pub text: String,
    /// What it says.
    pub envelope: Envelope,
    /// Without `async.`.
    pub method: MethodName,
    /// Whether it asks for a job.
    pub is_job: bool,
}

/// What `knock` asks of the minion `name`, by the `caller` of its certificate.
///
/// # Errors
/// What the caller gets in place of an answer.
pub fn call(name: &MinionName, caller: &CallerName, knock: Knock<'_>) -> Result<Call, Failure> {
    let read::Call { text, envelope, method, form } = read::read(name, caller, knock)?;
    Ok(Call { text, envelope, method, is_job: form == Form::Job })
}
