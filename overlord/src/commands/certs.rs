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

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use certs::authority::IssuedEntry;
use certs::authority::desk::{Bearer, Standing, View};
use certs::files::Credentials;
use serde_json::{Value, json};

use super::{INTERNAL, NOT_WELL, OK, Refusal, STALE};
use crate::authority::audit::{Entry, Ledger};
use crate::cli::CertsCommand;
use crate::fleet::Fleet;
use crate::output::job::moment;
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

/// The columns of a [`row`].
const COLUMNS: [&str; 5] = ["NAME", "ROLE", "STATE", "VALID UNTIL", "SERIAL"];

fn bearer_document(bearer: &Bearer) -> Value {
    let mut fields = document(&bearer.entry);
    if let Some(fields) = fields.as_object_mut() {
        let revoked_at = match bearer.standing {
            Standing::Revoked(at) => Some(at),
            _ => None,
        };
        fields.insert("state".to_owned(), json!(bearer.standing.name()));
        fields.insert("revoked_at".to_owned(), json!(revoked_at));
        fields.insert("overdue_at".to_owned(), json!(bearer.entry.overdue_at()));
    }
    fields
}

fn row(bearer: &Bearer) -> [String; 5] {
    let entry = &bearer.entry;
    let (who, kind) = (entry.role.name().to_owned(), entry.role.kind().to_owned());
    [who, kind, bearer.standing.name().to_owned(), moment(entry.not_after), entry.serial.clone()]
}

/// What calls from here are made with. None: there is nothing of it, or nothing that can be used.
fn own_credentials(fleet: &Fleet) -> Option<Credentials> {
    let certs = fleet.home().certs_dir();
    Credentials::load(&certs.join("ca.pem"), &certs.join("overlord.pem"), &certs.join("overlord.key")).ok()
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
        remark(&damage(path));
    }
}

/// What it means that a file of the authority is damaged, and what to do: by the folder in which it lies.
fn damage(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
    let meaning = match folder {
        Some("issued") => {
            "the certificate in it is not known, nor to which key its name is bound. Restore it from a backup, and never delete it: another \
             host could then have the name"
        }
        Some("revoked") => {
            "its certificate stays revoked, and in the list. Restore it from a backup, and never delete it: the certificate would be good again"
        }
        Some("requests") => "it is left out. Delete it, and the host asks again",
        Some("tokens") => "it signs nothing. Delete it, and make another with `overlord certs token`",
        _ => "it is left out. Restore it from a backup",
    };
    format!("{} is damaged: {meaning}", path.display())
}
