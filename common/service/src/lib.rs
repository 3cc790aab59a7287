//! What the servers of Overlord share, `minion serve` and `overlord certs serve`: a TLS listener with limits, JSON-RPC requests carried
//! to whoever answers them, and the audit log. And how the second of them is asked, by hosts and overlords alike; and the ids of calls.
//!
//! Nothing here decides who may do what, knows a method but those of `authority`, or reads a configuration.

pub mod audit;
pub mod authority;
mod cause;
pub mod dial;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod ids;
mod listener;
mod reception;
mod signals;
mod visitor;

pub use cause::deepest_cause;
pub use gate::Gate;
pub use ids::fresh_id;
pub use listener::{Limits, Strangers, serve};
pub use reception::{Knock, Reception};
pub use signals::stop_on_signals;
pub use visitor::Visitor;
