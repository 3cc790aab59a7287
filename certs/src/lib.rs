//! The fleet's certificates: the authority that issues them, the files they lie in, and the TLS configurations made of them.
//!
//! Every certificate of a fleet comes from one authority and carries exactly one [`Role`](common::identity::Role), which each
//! side of a connection checks while the handshake is still going on. This crate does not know what is in a call, opens no
//! connection, and never installs a process-wide default for cryptography.

pub mod authority;
pub mod callers;
pub mod crl;
pub mod csr;
pub mod enrolled;
pub mod files;
pub mod format;
mod leaf;
pub mod member;
pub mod renewal;
mod request;
pub mod signature;
pub mod tls;
pub mod trust;

pub use leaf::LeafError;
