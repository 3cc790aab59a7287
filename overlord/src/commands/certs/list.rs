//! `overlord certs list`: every certificate that was issued and is remembered, and how each stands.

use std::collections::HashMap;

use certs::authority::desk::Listed;
use common::identity::Role;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{OK, Refusal, document, print_entries, remark_damaged};
use crate::authority::Office;
use crate::fleet::Fleet;
use crate::output::job::moment;
use crate::output::{Format, Output, table};

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let mut desk = Office::desk(fleet.home(), fleet.config())?;
    let listed = desk.listed()?;
    remark_damaged(&desk.view()?);
    let now = Timestamp::now();
    let is_held = |one: &&Listed| one.revoked_at.is_none();
    // They come oldest first, so the last of a role is its newest.
    let newest: HashMap<&Role, &str> = listed.iter().filter(is_held).map(|one| (&one.entry.role, one.entry.serial.as_str())).collect();
    let state = |one: &Listed| state(one, newest.get(&one.entry.role) == Some(&one.entry.serial.as_str()), now);
    match output.format() {
        Format::Text => output.print(&table(
            ["NAME", "ROLE", "STATE", "VALID UNTIL", "SERIAL"],
            listed.iter().map(|one| {
                let Listed { entry, .. } = one;
                let (name, kind) = (entry.role.name().to_owned(), entry.role.kind().to_owned());
                [name, kind, state(one).to_owned(), moment(entry.not_after), entry.serial.clone()]
            }),
        ))?,
        Format::Json | Format::Jsonl => {
            let documents: Vec<Value> = listed.iter().map(|one| with_state(one, state(one))).collect();
            print_entries(&mut output, "certificates", &documents)?;
        }
    }
    Ok(OK)
}

fn with_state(one: &Listed, state: &str) -> Value {
    let mut fields = document(&one.entry);
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("state".to_owned(), json!(state));
        fields.insert("revoked_at".to_owned(), json!(one.revoked_at));
    }
    fields
}

fn state(one: &Listed, is_newest: bool, now: Timestamp) -> &'static str {
    match one {
        Listed { revoked_at: Some(_), .. } => "revoked",
        Listed { entry, .. } if now >= entry.not_after => "expired",
        _ if !is_newest => "replaced",
        Listed { entry, .. } if now >= entry.overdue_at() => "overdue",
        _ => "good",
    }
}
