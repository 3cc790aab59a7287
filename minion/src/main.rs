//! The program `minion`. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    minion::cli::main()
}
