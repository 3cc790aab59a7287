//! The integration tests: everything through the two real programs. One file a topic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic"
)]

mod arguments;
mod audit;
mod calls;
mod captured;
mod certs;
mod certs_trouble;
mod damage_overlord;
mod deploy;
mod enrolment;
mod faults;
mod flood;
mod flows;
mod fuzz;
mod handshake;
mod harness;
mod hostile;
mod hostile_minion;
mod jobs;
mod library;
mod logs;
mod map;
mod output;
mod overlord_calls;
mod overlord_store;
mod packaging;
mod progress;
mod queue;
mod renewal;
mod retention;
mod retry;
mod revocation;
mod run_as;
mod samples;
mod security;
mod separation;
mod service_manager;
mod submit;
mod subtasks;
mod trust;
mod trust_files;
mod upgrade;
mod versions;
mod workers;
