//! `overlord certs init | issue | list`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::time::Duration;

use certs::authority::{Authority, AuthorityError, IssuedEntry, write_folder};
use certs::files::{write_public, write_secret};
use common::identity::{InvalidName, Role};
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::cli::{CertsCommand, CertsInitArgs, CertsIssueArgs, IssuedRole};
use crate::home::Home;
use crate::output::job::moment;
use crate::output::{Format, Output, table};

/// How long the authority is valid: longer than any host, so that it is never the reason why a fleet stands still.
const AUTHORITY_VALID: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// The most that is read from standard input: names for a million hosts.
const STDIN_MAX_BYTES: u64 = 64 << 20;

pub(super) fn run(home: &Home, output: Output, command: CertsCommand) -> Result<u8, Refusal> {
    match command {
        CertsCommand::Init(args) => init(home, output, args),
        CertsCommand::Issue(args) => issue(home, output, &args),
        CertsCommand::List => list(home, output),
    }
}

/// Where a crash came between the authority and the certificate with its key, it makes what is missing.
fn init(home: &Home, mut output: Output, args: CertsInitArgs) -> Result<u8, Refusal> {
    let dir = home.certs_dir();
    let (cert, key) = (dir.join("overlord.pem"), dir.join("overlord.key"));
    let authority = match Authority::init(&dir, AUTHORITY_VALID) {
        Err(AuthorityError::Exists { .. }) if !(cert.exists() && key.exists()) => Authority::open(&dir)?,
        made => made?,
    };
    for half in [&cert, &key] {
        // One without the other is of no use to anybody; if it cannot be removed, writing it anew says why.
        let _not_there = fs::remove_file(half);
    }
    let role = Role::Overlord(args.name);
    for issued in authority.issue(std::slice::from_ref(&role), args.valid)? {
        write_secret(&key, issued.key_pem().as_bytes())?;
        write_public(&cert, issued.cert_pem.as_bytes())?;
    }
    let ca = dir.join("ca.pem");
    match output.format() {
        Format::Text => output.print(&format!("{}\n{}", ca.display(), cert.display()))?,
        Format::Json | Format::Jsonl => output.print_json(&json!({ "authority": ca, "certificate": cert, "role": role.to_string() }))?,
    }
    Ok(OK)
}

fn issue(home: &Home, mut output: Output, args: &CertsIssueArgs) -> Result<u8, Refusal> {
    let roles = roles(args)?;
    // Before anything is issued: a certificate that cannot be handed out is a key that is lost.
    if let Some(path) = roles.iter().map(|role| args.out.join(role.name())).find(|path| path.symlink_metadata().is_ok()) {
        return Err(AuthorityError::FolderExists { path }.into());
    }
    let authority = Authority::open(&home.certs_dir())?;
    let mut folders = Vec::new();
    for issued in authority.issue(&roles, args.valid)? {
        folders.push((write_folder(&args.out, authority.ca_pem(), &issued)?, issued));
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

fn list(home: &Home, mut output: Output) -> Result<u8, Refusal> {
    let entries = Authority::list(&home.certs_dir())?;
    match output.format() {
        Format::Text => output.print(&shown(&entries))?,
        Format::Json | Format::Jsonl => print_entries(&mut output, "certificates", &entries.iter().map(document).collect::<Vec<_>>())?,
    }
    Ok(OK)
}

fn print_entries(output: &mut Output, name: &str, entries: &[Value]) -> io::Result<()> {
    match output.format() {
        Format::Jsonl => entries.iter().try_for_each(|entry| output.print_json(entry)),
        Format::Json | Format::Text => output.print_json(&json!({ name: entries })),
    }
}

fn document(entry: &IssuedEntry) -> Value {
    json!({
        "name": entry.role.name(), "role": entry.role.kind(), "serial": entry.serial, "not_before": entry.not_before,
        "not_after": entry.not_after, "fingerprint": entry.fingerprint,
    })
}

fn shown(entries: &[IssuedEntry]) -> String {
    let row =
        |entry: &IssuedEntry| [entry.role.name().to_owned(), entry.role.kind().to_owned(), moment(entry.not_after), entry.serial.clone()];
    table(["NAME", "ROLE", "VALID UNTIL", "SERIAL"], entries.iter().map(row))
}
