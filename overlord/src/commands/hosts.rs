//! `overlord hosts [TARGET]`: the roster, or a part of it. Asks no host.

use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::cli::HostsArgs;
use crate::fleet::Fleet;
use crate::hosts::Host;
use crate::output::{Format, Output, table};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &HostsArgs) -> Result<u8, Refusal> {
    let target = fleet.target(&args.target)?;
    let hosts = target.members();
    match output.format() {
        Format::Json => output.print_json(&json!({ "hosts": hosts.iter().map(document).collect::<Vec<_>>() }))?,
        Format::Jsonl => hosts.iter().try_for_each(|host| output.print_json(&document(host)))?,
        Format::Text => output.print(&shown(hosts))?,
    }
    Ok(OK)
}

fn document(host: &Host) -> Value {
    json!({ "name": host.name, "address": host.address, "groups": host.groups, "vars": host.vars })
}

fn shown(hosts: &[Host]) -> String {
    let row = |host: &Host| [host.name.to_string(), host.address.clone(), host.groups.join(" ")];
    table(["HOST", "ADDRESS", "GROUPS"], hosts.iter().map(row))
}
