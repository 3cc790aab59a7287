//! The `overlord` command: the crate's command line, and nothing besides.

use std::process::ExitCode;

fn main() -> ExitCode {
    overlord::run(std::env::args_os())
}
