//! `overlord certs requests`: the hosts that wait for a certificate, or were refused one.

use certs::authority::desk::Waiting;
use serde_json::{Value, json};

use super::{OK, Refusal, print_entries, remark_damaged};
use crate::authority::Office;
use crate::fleet::Fleet;
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let mut desk = Office::desk(fleet.home(), fleet.config())?;
    let view = desk.view()?;
    remark_damaged(&view);
    match output.format() {
        Format::Text if view.requests.is_empty() => remark("no host waits for a certificate"),
        Format::Text => output.print(&shown(&view.requests))?,
        Format::Json | Format::Jsonl => {
            let documents: Vec<Value> = view.requests.iter().map(document).collect();
            print_entries(&mut output, "requests", &documents)?;
        }
    }
    Ok(OK)
}

fn document(request: &Waiting) -> Value {
    json!({
        "name": request.name, "state": state(request), "key": request.key, "since": request.since, "from": request.from,
        "rejected_at": request.rejected_at,
    })
}

fn shown(requests: &[Waiting]) -> String {
    let row = |request: &Waiting| {
        let (name, state) = (request.name.to_string(), state(request).to_owned());
        [name, state, moment(request.since), request.from.clone(), request.key.clone()]
    };
    table(["NAME", "STATE", "SINCE", "FROM", "KEY"], requests.iter().map(row))
}

fn state(request: &Waiting) -> &'static str {
    if request.rejected_at.is_some() { "rejected" } else { "waiting" }
}
