//! What the servers of Overlord share, `minion serve` and `overlord certs serve`: a TLS listener with limits, JSON-RPC requests carried
//! to whoever answers them, and the audit log.
//!
//! Nothing here decides who may do what, knows a method, or reads a configuration.

pub mod audit;
mod gate;
mod listener;
mod reception;
mod visitor;

pub use gate::{FixedGate, Gate};
pub use listener::{Limits, serve};
pub use reception::{Knock, Reception};
pub use visitor::Visitor;
