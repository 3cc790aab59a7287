//! For the fuzz targets alone: what a request asks, as the door reads it, without the door. It decides nothing.

use common::identity::{CallerName, MinionName};
use common::outcome::Failure;
use service::Knock;

use super::read;
use crate::call::Call;

/// What `knock` asks of the minion `name`, by the `caller` of its certificate: the text of the envelope, and what is read in it.
///
/// # Errors
/// What the caller gets in place of an answer.
pub fn call(name: &MinionName, caller: &CallerName, knock: Knock<'_>) -> Result<(String, Call), Failure> {
    let (method, params) = read::single_call(knock)?;
    read::parse(name, caller, method, &params.call).map(|call| (params.call, call))
}
