//! `overlord certs list`: every certificate that was issued and is remembered, and how each stands.

use serde_json::Value;

use super::{COLUMNS, OK, Refusal, bearer_document, print_entries, remark_damaged, row};
use crate::authority::Office;
use crate::fleet::Fleet;
use crate::output::{Format, Output, table};

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let mut desk = Office::desk(fleet.home(), fleet.config())?;
    let listed = desk.listed()?;
    remark_damaged(&desk.view()?);
    match output.format() {
        Format::Text => output.print(&table(COLUMNS, listed.iter().map(row)))?,
        Format::Json | Format::Jsonl => {
            print_entries(&mut output, "certificates", &listed.iter().map(bearer_document).collect::<Vec<Value>>())?;
        }
    }
    Ok(OK)
}
