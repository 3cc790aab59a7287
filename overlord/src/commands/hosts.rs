//! `overlord hosts [TARGET]`: the roster, or a part of it. Asks no host.

use comfy_table::{Table, presets::NOTHING};
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::cli::HostsArgs;
use crate::fleet::Fleet;
use crate::hosts::Host;
use crate::output::{Format, Output, harmless};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &HostsArgs) -> Result<u8, Refusal> {
    let target = fleet.target(&args.target)?;
    let hosts = target.members();
    match output.format() {
        Format::Json => output.print_json(&json!({ "hosts": hosts.iter().map(document).collect::<Vec<_>>() }))?,
        Format::Jsonl => hosts.iter().try_for_each(|host| output.print_json(&document(host)))?,
        Format::Text => output.print(&table(hosts))?,
    }
    Ok(OK)
}

fn document(host: &Host) -> Value {
    json!({ "name": host.name, "address": host.address, "groups": host.groups, "vars": host.vars })
}

fn table(hosts: &[Host]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["HOST", "ADDRESS", "GROUPS"]);
    for host in hosts {
        table.add_row([host.name.to_string(), host.address.clone(), harmless(&host.groups.join(" "))]);
    }
    table.trim_fmt()
}
