//! `overlord certs issue NAME...`: certificates by hand, with their keys, a folder for each.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use certs::authority::desk::{Bearer, CRL_FILE, Desk};
use certs::authority::{AuthorityError, Issued, write_folder, write_overlord_folder};
use common::identity::{InvalidName, Role};
use serde_json::{Value, json};

use super::{OK, Refusal, own_credentials, print_entries};
use crate::authority::Office;
use crate::authority::audit::{Action, Entry, Ledger};
use crate::chain;
use crate::cli::{CertsIssueArgs, IssuedRole};
use crate::fleet::Fleet;
use crate::output::{Format, Output, remark};

/// The most that is read from standard input: names for a million hosts.
const STDIN_MAX_BYTES: u64 = 64 << 20;
/// The most names that are told because they had a certificate already.
const REPLACED_TOLD_MAX: usize = 20;

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &CertsIssueArgs) -> Result<u8, Refusal> {
    let roles = roles(args)?;
    refuse_our_own(fleet, &roles)?;
    // Before anything is issued: a certificate that cannot be handed out is a key that is lost.
    if let Some(path) = roles.iter().map(|role| args.out.join(role.name())).find(|path| path.symlink_metadata().is_ok()) {
        return Err(AuthorityError::FolderExists { path }.into());
    }
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let before = good(&mut desk)?;
    let all = desk.issue(&roles, args.valid.unwrap_or(fleet.config().certs.valid))?;
    let mut all = VecDeque::from(all);
    let mut folders = Vec::new();
    let handed_out = hand_out(fleet, args, (&desk, &ledger), &mut all, &mut folders);
    if let Err(mut refusal) = handed_out {
        let lost: Vec<String> = all.iter().map(|issued| issued.serial.clone()).collect();
        refusal.message.push_str(&take_back(&mut desk, &ledger, &lost, folders.len()));
        return Err(refusal);
    }
    remark_replaced(&before, folders.iter().map(|(_, issued)| issued));
    match output.format() {
        Format::Text => output.print(&folders.iter().map(|(folder, _)| format!("{}\n", folder.display())).collect::<String>())?,
        Format::Json | Format::Jsonl => {
            let issued: Vec<Value> = folders
                .iter()
                .map(|(folder, issued)| json!({ "name": issued.role.name(), "folder": folder, "serial": issued.serial }))
                .collect();
            print_entries(&mut output, "issued", &issued)?;
        }
    }
    Ok(OK)
}

/// This overlord's own name stays bound to its key: another would end its renewals.
fn refuse_our_own(fleet: &Fleet, roles: &[Role]) -> Result<(), Refusal> {
    match own_credentials(fleet) {
        Some(own) if roles.contains(own.role()) => Err(Refusal::usage(format!(
            "{} is this overlord itself: with a certificate for another key of that name its own would be renewed no more. Give the other overlord \
             another NAME; `overlord certs renew` renews this one's",
            own.role().name()
        ))),
        _ => Ok(()),
    }
}

/// Who has a certificate that is good, by its serial number.
fn good(desk: &mut Desk) -> Result<HashMap<Role, String>, Refusal> {
    let listed = desk.listed()?.into_iter().filter(|bearer| bearer.standing.is_good());
    Ok(listed.map(|Bearer { entry, .. }| (entry.role, entry.serial)).collect())
}

/// Writes down what was issued, and a folder for each of `all`, which moves to `folders` as soon as it lies there.
fn hand_out(
    fleet: &Fleet,
    args: &CertsIssueArgs,
    (desk, ledger): (&Desk, &Ledger),
    all: &mut VecDeque<Issued>,
    folders: &mut Vec<(PathBuf, Issued)>,
) -> Result<(), Refusal> {
    let entry = Entry::of_command(Action::Issue).about(all.iter().map(|issued| issued.role.name()));
    ledger.record(&entry.with_serials(all.iter().map(|issued| issued.serial.clone())))?;
    let (ca, crl) = (desk.authority().ca_pem(), fs::read_to_string(fleet.home().certs_dir().join(CRL_FILE)).ok());
    while let Some(issued) = all.front() {
        let folder = match issued.role {
            Role::Overlord(_) => write_overlord_folder(&args.out, ca, crl.as_deref(), issued)?,
            Role::Minion(_) | Role::Authority => write_folder(&args.out, ca, crl.as_deref(), issued)?,
        };
        folders.extend(all.pop_front().map(|issued| (folder, issued)));
    }
    Ok(())
}

/// Revokes certificates whose keys are lost, so that their names are as before. What is to be said of it.
fn take_back(desk: &mut Desk, ledger: &Ledger, lost: &[String], kept: usize) -> String {
    let serials = lost.join(" ");
    let kept = if kept == 0 { String::new() } else { format!(" The first {kept} are complete, and stay good.") };
    match desk.clean(lost, None) {
        Ok(_) => {
            // The log may be what failed; that they are revoked stands in the authority's folder.
            let _unwritten = ledger.record(&Entry::of_command(Action::Clean).with_serials(lost));
            format!(". What could not be handed out was taken back: {serials}.{kept}")
        }
        Err(error) => {
            let problem = chain(&error);
            format!(
                ". What could not be handed out is issued, and its keys are lost: run `overlord certs clean {serials}` ({problem}).{kept}"
            )
        }
    }
}

/// Says whose present certificate is renewed no more.
fn remark_replaced<'i>(before: &HashMap<Role, String>, issued: impl Iterator<Item = &'i Issued>) {
    let replaced: Vec<_> = issued.filter_map(|issued| Some((issued, before.get(&issued.role)?))).collect();
    for (Issued { role, serial, .. }, old) in replaced.iter().take(REPLACED_TOLD_MAX) {
        remark(&format!(
            "{} has a good certificate for another key already ({old}): renewals of its present key stop; `overlord certs clean {serial}` undoes it",
            role.name()
        ));
    }
    if let more @ 1.. = replaced.len().saturating_sub(REPLACED_TOLD_MAX) {
        remark(&format!("so it is with {more} more; see `overlord certs list`"));
    }
}

/// The roles in the order in which they were named, each once.
fn roles(args: &CertsIssueArgs) -> Result<Vec<Role>, Refusal> {
    let mut names = args.names.clone();
    if let Some(place) = names.iter().position(|name| name == "-") {
        names.splice(place..=place, stdin_names()?);
    }
    let role = |name: &String| -> Result<Role, InvalidName> {
        match args.role {
            IssuedRole::Minion => Ok(Role::Minion(name.parse()?)),
            IssuedRole::Overlord => Ok(Role::Overlord(name.parse()?)),
        }
    };
    let mut seen = BTreeSet::new();
    let mut roles = Vec::with_capacity(names.len());
    for name in &names {
        let role = role(name).map_err(|error| Refusal::usage(error.to_string()))?;
        if seen.insert(role.clone()) {
            roles.push(role);
        }
    }
    if roles.is_empty() { Err(Refusal::usage("no name was given")) } else { Ok(roles) }
}

fn stdin_names() -> Result<Vec<String>, Refusal> {
    let mut text = String::new();
    match io::stdin().lock().take(STDIN_MAX_BYTES).read_to_string(&mut text) {
        Ok(_) => Ok(text.split_whitespace().map(str::to_owned).collect()),
        Err(error) => Err(Refusal::usage(format!("reading names from standard input: {error}"))),
    }
}
