//! `overlord certs issue NAME...`: certificates by hand, with their keys, a folder for each.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};

use certs::authority::desk::CRL_FILE;
use certs::authority::{AuthorityError, write_folder, write_overlord_folder};
use common::identity::{InvalidName, Role};
use serde_json::{Value, json};

use super::{OK, Refusal, print_entries, record};
use crate::authority::Office;
use crate::authority::audit::{Action, Entry};
use crate::cli::{CertsIssueArgs, IssuedRole};
use crate::fleet::Fleet;
use crate::output::{Format, Output};

/// The most that is read from standard input: names for a million hosts.
const STDIN_MAX_BYTES: u64 = 64 << 20;

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &CertsIssueArgs) -> Result<u8, Refusal> {
    let roles = roles(args)?;
    // Before anything is issued: a certificate that cannot be handed out is a key that is lost.
    if let Some(path) = roles.iter().map(|role| args.out.join(role.name())).find(|path| path.symlink_metadata().is_ok()) {
        return Err(AuthorityError::FolderExists { path }.into());
    }
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let all = desk.issue(&roles, args.valid.unwrap_or(fleet.config().certs.valid))?;
    let names = roles.iter().map(Role::name);
    record(&ledger, &Entry::of_command(Action::Issue).about(names).with_serials(all.iter().map(|issued| issued.serial.clone())))?;
    let (ca, crl) = (desk.authority().ca_pem(), fs::read_to_string(fleet.home().certs_dir().join(CRL_FILE)).ok());
    let mut folders = Vec::new();
    for issued in all {
        let folder = match issued.role {
            Role::Overlord(_) => write_overlord_folder(&args.out, ca, crl.as_deref(), &issued)?,
            Role::Minion(_) | Role::Authority => write_folder(&args.out, ca, crl.as_deref(), &issued)?,
        };
        folders.push((folder, issued));
    }
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
