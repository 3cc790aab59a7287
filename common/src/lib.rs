//! The nouns that the two programs share: what stands on the wire and in the job log, and the pure rules over it.
//!
//! Nothing here does IO, knows a transport or a store, reads a clock or draws a random number.

pub mod format;
pub mod identity;
pub mod job;
pub mod method;
pub mod outcome;
pub mod period;
pub mod protocol;
pub mod seal;
pub mod shown;
