//! `overlord completions SHELL`.

use clap::CommandFactory;

use super::{OK, Refusal};
use crate::cli::{Cli, CompletionsArgs};
use crate::output::Output;

pub(super) fn run(mut output: Output, args: &CompletionsArgs) -> Result<u8, Refusal> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "overlord", &mut script);
    output.print(&String::from_utf8_lossy(&script))?;
    Ok(OK)
}
