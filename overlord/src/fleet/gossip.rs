//! Revocation lists carried on: after a call, hosts with an older list than ours are given ours, and of a host with a newer one we take it. A list
//! is signed and numbered, so it matters not who brings it. Changes no outcome, and speaks to no host if all have the same list.

use std::time::Duration;

use common::outcome::Outcome;
use common::protocol::certs::{Revocations, RevocationsParams};

use super::{Fleet, Link};
use crate::authority::spread::letters;
use crate::buckets::fan_out;
use crate::client::Sent;
use crate::envelope::Letter;
use crate::hosts::Host;

/// So many hosts that say they have a newer list are asked for it, one after the other, until one has.
const ASKED_FOR_NEWER_MAX: usize = 3;

/// Does so for what was heard since.
pub(crate) fn carry_on(fleet: &Fleet, link: &Link) {
    let ours = link.trust.now().crl_number();
    let newer = link.client.heard().others_than(ours).into_iter().take_while(|(number, _)| *number > ours);
    for (_, host) in newer.take(ASKED_FOR_NEWER_MAX) {
        if take_from(fleet, link, host, ours) {
            break;
        }
    }
    give_to_older(fleet, link);
}

/// Asks a host for its list, and says whether we go by it now.
fn take_from(fleet: &Fleet, link: &Link, host: Host, ours: u64) -> bool {
    let mut answers = exchange(fleet, link, vec![host], RevocationsParams { have: ours, crl: None });
    let Some(pem) = answers.pop().and_then(|theirs| theirs.crl) else { return false };
    match link.trust.take_crl(&pem) {
        Ok(newer) => newer,
        Err(error) => {
            fleet.warn(&format!("a host offers a revocation list that cannot be used: {}", crate::chain(&error)));
            false
        }
    }
}

fn give_to_older(fleet: &Fleet, link: &Link) {
    let trusted = link.trust.now();
    let Some(crl) = trusted.crl() else { return };
    let older = link.client.heard().others_than(crl.number()).into_iter().filter(|(number, _)| *number < crl.number());
    let older: Vec<Host> = older.map(|(_, host)| host).collect();
    exchange(fleet, link, older, RevocationsParams { have: crl.number(), crl: Some(crl.pem().to_owned()) });
}

/// One question to each host, bounded by the time to connect and as long again; what could be understood.
fn exchange(fleet: &Fleet, link: &Link, hosts: Vec<Host>, params: RevocationsParams) -> Vec<Revocations> {
    if hosts.is_empty() {
        return Vec::new();
    }
    link.client.heard().speak_to(&hosts);
    let Ok(letters) = letters(link, fleet, params, &hosts) else { return Vec::new() };
    let within = fleet.config().connect_timeout;
    let asked = fan_out(letters, fleet.config().forks, |letter| ask(link, letter, within), |answers| answers.iter().flatten().collect());
    asked.unwrap_or_default()
}

/// Who gives no answer is spoken to by the next command.
async fn ask(link: &Link, letter: Letter, within: Duration) -> Option<Revocations> {
    let outcome = link.client.ask::<Outcome>(&letter, within, &Sent::default()).await.ok()?;
    match outcome.verdict {
        common::outcome::Verdict::Ok { result } => serde_json::from_value(result).ok(),
        _ => None,
    }
}
