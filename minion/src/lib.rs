//! The daemon on each host of an Overlord fleet: checks who asks, runs the method, remembers the outcome.
//!
//! ARCHITECTURE.md has the map. `cli` is where a program begins, `dispatch` is the way of a call.

pub mod acl;
pub mod audit;
pub mod call;
pub mod caller;
pub mod check;
pub mod cli;
pub mod config;
pub mod disk;
pub mod dispatch;
pub mod enroll;
#[cfg(test)]
mod fake_authority;
pub mod folders;
pub mod guard;
pub mod jobs;
pub mod keeper;
pub mod modules;
pub mod moment;
mod packages;
pub mod process;
pub mod progress;
pub mod random;
pub mod renewal;
pub mod server_user;
mod service_manager;
pub mod spawner;
pub mod spool;
pub mod store;
pub mod submit;
pub mod supervise;
mod upgrade;
pub mod user;
pub mod variables;
pub mod worker;
