//! `overlord certs sign NAME... | --all` and `overlord certs reject NAME...`: what becomes of requests that wait.

use certs::authority::IssuedEntry;
use common::identity::MinionName;
use serde_json::{Value, json};

use super::{OK, Refusal, document, print_entries, record};
use crate::authority::Office;
use crate::authority::audit::{Action, Entry};
use crate::cli::{CertsRejectArgs, CertsSignArgs};
use crate::fleet::Fleet;
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};

pub(super) fn sign(fleet: &Fleet, mut output: Output, args: &CertsSignArgs) -> Result<u8, Refusal> {
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let names = each_once(&args.names);
    let signed = desk.sign((!args.all).then_some(names.as_slice()))?;
    if !signed.is_empty() {
        let entry = Entry::of_command(Action::Sign).about(signed.iter().map(|entry| entry.role.name()));
        record(&ledger, &entry.with_serials(signed.iter().map(|entry| entry.serial.clone())))?;
    }
    match output.format() {
        Format::Text if signed.is_empty() => remark("no host waits for a certificate"),
        Format::Text => output.print(&shown(&signed))?,
        Format::Json | Format::Jsonl => print_entries(&mut output, "signed", &signed.iter().map(document).collect::<Vec<_>>())?,
    }
    Ok(OK)
}

pub(super) fn reject(fleet: &Fleet, mut output: Output, args: &CertsRejectArgs) -> Result<u8, Refusal> {
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let names = each_once(&args.names);
    desk.reject(&names)?;
    record(&ledger, &Entry::of_command(Action::Reject).about(names.iter().map(MinionName::as_str)))?;
    match output.format() {
        Format::Text => output.print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())?,
        Format::Json | Format::Jsonl => {
            let rejected: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
            print_entries(&mut output, "rejected", &rejected)?;
        }
    }
    Ok(OK)
}

fn each_once(names: &[MinionName]) -> Vec<MinionName> {
    let mut once: Vec<MinionName> = names.to_vec();
    once.sort();
    once.dedup();
    once
}

fn shown(signed: &[IssuedEntry]) -> String {
    let row = |entry: &IssuedEntry| [entry.role.name().to_owned(), moment(entry.not_after), entry.serial.clone()];
    table(["NAME", "VALID UNTIL", "SERIAL"], signed.iter().map(row))
}
