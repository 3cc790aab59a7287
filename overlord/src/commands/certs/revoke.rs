//! `overlord certs revoke SUBJECT...` and `overlord certs clean SUBJECT...`: certificates that are good no more, and every host told so.

use std::collections::BTreeMap;

use certs::authority::IssuedEntry;
use certs::authority::desk::Desk;
use common::identity::{MinionName, Role};
use serde_json::{Value, json};

use super::{OK, Refusal, STALE, document, own_credentials, record};
use crate::aggregate::compressed;
use crate::authority::Office;
use crate::authority::audit::{Action, Entry};
use crate::authority::spread::{Spread, spread};
use crate::cli::{CertsCleanArgs, CertsRevokeArgs};
use crate::fleet::Fleet;
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};

/// The most reasons that are told: each may be that of one host of a large fleet.
const REASONS_TOLD_MAX: usize = 20;

pub(super) fn revoke(fleet: &Fleet, output: Output, args: &CertsRevokeArgs) -> Result<u8, Refusal> {
    let mut office = Office::open(fleet.home(), fleet.config())?;
    let revoked = office.desk.revoke(&args.subjects, own_serial(fleet).as_deref())?;
    finish(fleet, output, office, Action::Revoke, &args.subjects, &revoked)
}

pub(super) fn clean(fleet: &Fleet, output: Output, args: &CertsCleanArgs) -> Result<u8, Refusal> {
    let mut office = Office::open(fleet.home(), fleet.config())?;
    let revoked = office.desk.clean(&args.subjects, own_serial(fleet).as_deref())?;
    finish(fleet, output, office, Action::Clean, &args.subjects, &revoked)
}

fn finish(
    fleet: &Fleet,
    mut output: Output,
    Office { mut desk, ledger }: Office,
    action: Action,
    subjects: &[String],
    revoked: &[IssuedEntry],
) -> Result<u8, Refusal> {
    let serials = revoked.iter().map(|entry| entry.serial.clone());
    // Whatever comes of it, the hosts are told: until then they let in what is revoked.
    let recorded = record(&ledger, &Entry::of_command(action).about(subjects).with_serials(serials));
    let spread = told(fleet, &mut desk)?;
    remark_spread(&spread);
    recorded?;
    if action == Action::Revoke {
        remark_repeated(subjects, revoked);
    }
    match output.format() {
        Format::Text if revoked.is_empty() && action == Action::Revoke => {}
        Format::Text if revoked.is_empty() => output.print(&subjects.iter().map(|name| format!("{name}\n")).collect::<String>())?,
        Format::Text => output.print(&shown(revoked))?,
        Format::Json => output.print_json(&report(action, subjects, revoked, &spread))?,
        Format::Jsonl => {
            revoked.iter().try_for_each(|entry| output.print_json(&document(entry)))?;
            output.print_json(&json!({ "summary": spread_document(&spread) }))?;
        }
    }
    Ok(if spread.missed.is_empty() { OK } else { STALE })
}

/// Gives the list to every host that is still one. Of a host of which nothing is known, a record that is damaged may be the one.
fn told(fleet: &Fleet, desk: &mut Desk) -> Result<Spread, Refusal> {
    let Some(list) = desk.signed_list()? else { return Ok(Spread::default()) };
    let (listed, is_damaged) = (desk.listed()?, !desk.view()?.damaged.is_empty());
    let mut hosts: BTreeMap<MinionName, bool> = BTreeMap::new();
    for one in &listed {
        if let Some(name) = host(&one.entry.role) {
            *hosts.entry(name).or_default() |= one.standing.is_good();
        }
    }
    Ok(spread(fleet, list.number(), |name| !hosts.get(name).copied().unwrap_or(is_damaged)))
}

/// Says whose certificates were revoked before, and that the hosts are told again.
fn remark_repeated(subjects: &[String], revoked: &[IssuedEntry]) {
    let is_fresh = |subject: &str| {
        let name = subject.rsplit_once('/').map_or(subject, |(_, name)| name);
        revoked.iter().any(|entry| entry.role.name().eq_ignore_ascii_case(name) || entry.serial.eq_ignore_ascii_case(subject))
    };
    for subject in subjects.iter().filter(|subject| !is_fresh(subject)) {
        remark(&format!("{subject} was revoked before; the hosts were told again"));
    }
}

fn host(role: &Role) -> Option<MinionName> {
    match role {
        Role::Minion(name) => Some(name.clone()),
        Role::Overlord(_) | Role::Authority => None,
    }
}

/// Of the certificate that calls from here are made with. None: there is none, and nobody is locked out.
fn own_serial(fleet: &Fleet) -> Option<String> {
    own_credentials(fleet).map(|own| own.serial().to_owned())
}

fn report(action: Action, subjects: &[String], revoked: &[IssuedEntry], spread: &Spread) -> Value {
    let revoked: Vec<Value> = revoked.iter().map(document).collect();
    let mut report = json!({ "revoked": revoked, "hosts": spread_document(spread) });
    if action == Action::Clean
        && let Some(fields) = report.as_object_mut()
    {
        fields.insert("cleaned".to_owned(), json!(subjects));
    }
    report
}

fn spread_document(spread: &Spread) -> Value {
    json!({ "number": spread.number, "told": spread.told, "missed": spread.missed, "out": spread.out })
}

fn shown(revoked: &[IssuedEntry]) -> String {
    let row =
        |entry: &IssuedEntry| [entry.role.name().to_owned(), entry.role.kind().to_owned(), moment(entry.not_after), entry.serial.clone()];
    table(["REVOKED", "ROLE", "VALID UNTIL", "SERIAL"], revoked.iter().map(row))
}

fn remark_spread(spread: &Spread) {
    let Spread { number, told, missed, out } = spread;
    if !out.is_empty() {
        remark(&format!("{} has no certificate that is still good, and was not told", compressed(&out.iter().collect::<Vec<_>>())));
    }
    remark(&format!("{told} of {} hosts have the revocation list number {number}", told + missed.len()));
    let mut by_reason: BTreeMap<&str, Vec<&MinionName>> = BTreeMap::new();
    for (host, reason) in missed {
        by_reason.entry(reason).or_default().push(host);
    }
    for (reason, hosts) in by_reason.iter().take(REASONS_TOLD_MAX) {
        remark(&format!("{} could not be told, and learns it from `overlord certs serve` or the next call: {reason}", compressed(hosts)));
    }
    if let more @ 1.. = by_reason.values().skip(REASONS_TOLD_MAX).map(Vec::len).sum::<usize>() {
        remark(&format!("{more} more hosts could not be told; `--output json` says why"));
    }
}
