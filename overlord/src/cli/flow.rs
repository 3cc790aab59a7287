//! The command line of `overlord flow`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum FlowCommand {
    /// Run the flow of a file
    Run(FlowRunArgs),
    /// Say what is wrong with a flow's file; nothing is run
    Check(FlowFileArgs),
    /// Print the order in which a flow's tasks run, and what each waits for
    Graph(FlowGraphArgs),
    /// Print the JSON Schema of a flow's file
    Schema,
    /// Say how a flow stands
    Status(FlowStatusArgs),
    /// List the flows that are known here, newest first
    List,
    /// Have a flow begin nothing further until it is resumed
    Suspend(FlowIdArgs),
    /// Go on with a flow that was suspended, or that nobody works on any more
    Resume(FlowResumeArgs),
    /// Stop a flow, and undo what it has done
    Cancel(FlowIdArgs),
    /// Delete flows that have ended, here; hosts keep the jobs of their steps for as long as others
    Delete(FlowDeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FlowFileArgs {
    /// The flow's file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// A value for one of the flow's vars or inputs
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = var)]
    pub(crate) vars: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct FlowRunArgs {
    #[command(flatten)]
    pub(crate) flow: FlowFileArgs,
    /// Print the flow's id at once, and run it behind
    #[arg(long = "async")]
    pub(crate) is_async: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FlowGraphArgs {
    #[command(flatten)]
    pub(crate) flow: FlowFileArgs,
    /// In Graphviz's language
    #[arg(long)]
    pub(crate) dot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FlowIdArgs {
    /// The flow's id, or its beginning
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct FlowDeleteArgs {
    /// The flows' ids, or their beginnings
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FlowResumeArgs {
    #[command(flatten)]
    pub(crate) flow: FlowIdArgs,
    /// Go on with it behind
    #[arg(long = "async")]
    pub(crate) is_async: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FlowStatusArgs {
    #[command(flatten)]
    pub(crate) flow: FlowIdArgs,
    /// Print each change, until it has ended or nobody works on it
    #[arg(long)]
    pub(crate) watch: bool,
}

fn var(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it looks like NAME=VALUE".to_owned()),
    }
}
