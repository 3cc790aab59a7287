//! Where requests are answered.

use common::outcome::Failure;
use http::HeaderMap;
use serde::Serialize;

use crate::Visitor;

/// What stands before the door.
#[derive(Debug, Clone, Copy)]
pub enum Knock<'a> {
    /// One JSON-RPC call with an id.
    Call {
        /// The request's `method`.
        method: &'a str,
        /// The request's `params`, as JSON text.
        params: &'a str,
    },
    /// Several requests in one: refused as a whole.
    Batch,
    /// A request without an id, or with one that is none: nobody could be answered.
    WithoutId {
        /// The request's `method`.
        method: &'a str,
    },
    /// Anything else, and why it is no call.
    Malformed(&'static str),
}

/// Where requests are answered: the minion's is its door.
pub trait Reception: Send + Sync + 'static {
    /// Whoever was admitted.
    type Caller: Send + Sync + 'static;
    /// The `result` of a JSON-RPC response.
    type Reply: Serialize + Clone + Send + 'static;

    /// Whether and as whom this visitor is let in. Asked once for a connection.
    ///
    /// # Errors
    /// Why not: the connection is closed, and the reason is logged.
    fn admit(&self, visitor: Visitor) -> Result<Self::Caller, String>;

    /// The one way in for every request of every connection, well formed or not. The future is dropped when the connection ends.
    ///
    /// # Errors
    /// What the caller gets in place of a reply.
    fn enter(&self, caller: &Self::Caller, knock: Knock<'_>) -> impl Future<Output = Result<Self::Reply, Failure>> + Send;

    /// The most that a reply may be as JSON text, beside what JSON-RPC puts around it.
    fn reply_max_bytes(&self) -> usize;

    /// What a caller gets in place of a reply that would be larger.
    fn reply_too_large(&self) -> Failure;

    /// Puts headers on an answer. Every answer is marked, refusals too.
    fn mark(&self, _headers: &mut HeaderMap) {}
}
