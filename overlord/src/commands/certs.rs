//! `overlord certs …`: the fleet's authority, one verb a file. What is printed and what the exit status is.

mod init;
mod issue;
mod list;
mod renew;
mod requests;
mod revoke;
mod serve;
mod sign;
mod status;
mod token;

use std::io;

use certs::authority::IssuedEntry;
use certs::authority::desk::View;
use serde_json::{Value, json};

use super::{INTERNAL, NOT_WELL, OK, Refusal, STALE};
use crate::authority::audit::{Entry, Ledger};
use crate::cli::CertsCommand;
use crate::fleet::Fleet;
use crate::output::{Format, Output, remark};

pub(super) fn run(fleet: &Fleet, output: Output, command: CertsCommand) -> Result<u8, Refusal> {
    match command {
        CertsCommand::Init(args) => init::run(fleet, output, args),
        CertsCommand::Issue(args) => issue::run(fleet, output, &args),
        CertsCommand::List => list::run(fleet, output),
        CertsCommand::Requests => requests::run(fleet, output),
        CertsCommand::Sign(args) => sign::sign(fleet, output, &args),
        CertsCommand::Reject(args) => sign::reject(fleet, output, &args),
        CertsCommand::Revoke(args) => revoke::revoke(fleet, output, &args),
        CertsCommand::Clean(args) => revoke::clean(fleet, output, &args),
        CertsCommand::Token(args) => token::run(fleet, output, args),
        CertsCommand::Status => status::run(fleet, output),
        CertsCommand::Renew => renew::run(fleet, output),
        CertsCommand::Serve(args) => serve::run(fleet, &args),
    }
}

/// One document with the entries below `name`, or each on a line of its own.
fn print_entries(output: &mut Output, name: &str, entries: &[Value]) -> io::Result<()> {
    match output.format() {
        Format::Jsonl => entries.iter().try_for_each(|entry| output.print_json(entry)),
        Format::Json | Format::Text => output.print_json(&json!({ name: entries })),
    }
}

fn document(entry: &IssuedEntry) -> Value {
    json!({
        "name": entry.role.name(), "role": entry.role.kind(), "serial": entry.serial, "not_before": entry.not_before,
        "not_after": entry.not_after, "fingerprint": entry.fingerprint, "key": entry.key,
    })
}

/// Writes down what was done. It is done: that it could not be written down is told, and ends the command with an error.
fn record(ledger: &Ledger, entry: &Entry) -> Result<(), Refusal> {
    ledger.record(entry).map_err(|error| {
        let mut refusal = Refusal::from(error);
        refusal.message = format!("it was done, and is not in the audit log: {}", refusal.message);
        refusal
    })
}

/// Says which files of the authority cannot be understood.
fn remark_damaged(view: &View) {
    for path in &view.damaged {
        remark(&format!("{} is damaged, and left out: restore it from a backup, or delete it", path.display()));
    }
}
