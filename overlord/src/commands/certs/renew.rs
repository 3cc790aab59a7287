//! `overlord certs renew`: this overlord's own certificate, now.

use std::sync::Arc;

use serde_json::json;

use super::{INTERNAL, OK, Refusal};
use crate::authority::renewal::Renewal;
use crate::fleet::{Fleet, open_trust};
use crate::output::job::moment;
use crate::output::{Format, Output};

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let (home, config, warning) = (fleet.home(), fleet.config(), fleet.warning());
    let trust = Arc::new(open_trust(home, config, warning)?);
    let renewed = Renewal::new(home, config, &trust, warning).renew();
    renewed.map_err(|reason| Refusal { status: INTERNAL, message: format!("this overlord's certificate is not renewed: {reason}") })?;
    let trusted = trust.now();
    let ours = trusted.credentials();
    match output.format() {
        Format::Text => output.print(&format!("{}  until {}  {}", ours.role().name(), moment(ours.not_after()), ours.serial()))?,
        Format::Json | Format::Jsonl => output.print_json(&json!({
            "name": ours.role().name(), "role": ours.role().kind(), "serial": ours.serial(), "not_before": ours.not_before(),
            "not_after": ours.not_after(), "fingerprint": ours.fingerprint(),
        }))?,
    }
    Ok(OK)
}
