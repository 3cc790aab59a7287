//! Revocation lists carried on: after a call, hosts with an older list than ours are given ours, and of a host with a newer one we take it. A list
//! is signed and numbered, so it matters not who brings it. Changes no outcome, and speaks to no host if all have the same list. What time it takes is
//! bounded for all hosts together: who has not heard of it by then is spoken to by the next command.

use std::time::{Duration, Instant};

use common::outcome::Outcome;
use common::protocol::certs::{Revocations, RevocationsParams};

use super::{Fleet, Link, Stop};
use crate::authority::spread::letters;
use crate::buckets::fan_out;
use crate::client::Sent;
use crate::envelope::Letter;
use crate::hosts::Host;

/// So many hosts that say they have a newer list are asked for it, all at once, until one has: whoever says so and has none keeps nobody from it.
const ASKED_FOR_NEWER_MAX: usize = 3;
/// How long it may take in all; half of it for a newer list. The command is over but for this.
const WITHIN: Duration = Duration::from_secs(2);

/// Does so for what was heard since, until it is stopped, and no longer than `until`, when the command is to be over.
pub(crate) fn carry_on(fleet: &Fleet, link: &Link, stop: &Stop, until: Option<Instant>) {
    let now = Instant::now();
    let until = until.map_or(now + WITHIN, |until| until.min(now + WITHIN));
    take_newer(fleet, link, stop, now + until.saturating_duration_since(now) / 2);
    give_to_older(fleet, link, stop, until);
}

/// Asks for a newer list than ours, and takes the first that is one.
fn take_newer(fleet: &Fleet, link: &Link, stop: &Stop, until: Instant) {
    let ours = link.trust.now().crl_number();
    let newer = link.client.heard().others_than(ours).into_iter().take_while(|(number, _)| *number > ours);
    let hosts: Vec<Host> = newer.take(ASKED_FOR_NEWER_MAX).map(|(_, host)| host).collect();
    let taken = Stop::new();
    exchange(fleet, link, &hosts, RevocationsParams { have: ours, crl: None }, [stop, &taken], until, |theirs| {
        match theirs.crl.as_deref().map(|pem| link.trust.take_crl(pem)) {
            Some(Ok(true)) => taken.stop(),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => fleet.warn(&format!("a host offers a revocation list that cannot be used: {}", crate::chain(&error))),
        }
    });
}

fn give_to_older(fleet: &Fleet, link: &Link, stop: &Stop, until: Instant) {
    let trusted = link.trust.now();
    let Some(crl) = trusted.crl() else { return };
    let older = link.client.heard().others_than(crl.number()).into_iter().filter(|(number, _)| *number < crl.number());
    let older: Vec<Host> = older.map(|(_, host)| host).collect();
    let params = RevocationsParams { have: crl.number(), crl: Some(crl.pem().to_owned()) };
    exchange(fleet, link, &older, params, [stop, stop], until, |_| ());
}

/// One question to each host, all at once, until `until` or until one of the two is stopped; `each` is given what could be understood.
fn exchange(
    fleet: &Fleet,
    link: &Link,
    hosts: &[Host],
    params: RevocationsParams,
    [first, second]: [&Stop; 2],
    until: Instant,
    mut each: impl FnMut(Revocations),
) {
    if hosts.is_empty() {
        return;
    }
    link.client.heard().speak_to(hosts);
    let Ok(letters) = letters(link, fleet, params, hosts) else { return };
    let work = |letter| async move {
        tokio::select! {
            biased;
            () = first.stopped() => None,
            () = second.stopped() => None,
            () = tokio::time::sleep_until(until.into()) => None,
            answer = ask(link, letter, WITHIN) => answer,
        }
    };
    // Where there are no threads for it, the next command does it.
    let _untold = fan_out(letters, fleet.config().forks, work, |answers| answers.iter().flatten().for_each(&mut each));
}

/// Who gives no answer is spoken to by the next command.
async fn ask(link: &Link, letter: Letter, within: Duration) -> Option<Revocations> {
    let outcome = link.client.ask::<Outcome>(&letter, within, &Sent::default()).await.ok()?;
    match outcome.verdict {
        common::outcome::Verdict::Ok { result } => serde_json::from_value(result).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::fs;

    use certs::authority::desk::{Desk, Terms};
    use common::protocol::certs::REVOCATIONS_HEADER;
    use http::HeaderMap;
    use serde_json::json;

    use super::*;
    use crate::fake_minion::{Lab, Reply, ok};

    const HOUR: Duration = Duration::from_secs(3600);

    /// Of the home of an overlord that is not the authority's: else it would sign a list itself.
    #[test]
    fn who_claims_the_newest_list_and_stalls_keeps_nobody_from_an_honest_one() {
        let lab = Lab::new();
        let (certs, home) = (lab.dir.path().join("certs"), lab.dir.path().join("elsewhere"));
        lab.minion("old1", |_| Reply::Hang);
        let mut desk = Desk::open(&certs, Terms { valid: HOUR, crl_valid: HOUR, requests_max: 1 }).unwrap();
        desk.revoke(&["minion/old1".to_owned()], None).unwrap();
        let (number, pem) = (desk.signed_list().unwrap().unwrap().number(), fs::read_to_string(certs.join("crl.pem")).unwrap());
        let list = json!({ "number": number, "crl": pem });
        let hosts = [("liar1", lab.minion("liar1", |_| Reply::Hang)), ("web1", lab.minion("web1", move |_| ok(list.clone())))];
        fs::create_dir_all(home.join("certs")).unwrap();
        for file in ["ca.pem", "overlord.pem", "overlord.key"] {
            fs::copy(certs.join(file), home.join("certs").join(file)).unwrap();
        }
        let fleet = Fleet::open(&home).unwrap();
        let link = fleet.link().unwrap();
        for ((name, address), claim) in hosts.iter().zip([u64::MAX, number]) {
            let headers = HeaderMap::from_iter([(REVOCATIONS_HEADER.parse().unwrap(), claim.to_string().parse().unwrap())]);
            link.client.heard().note(&name.parse().unwrap(), &address.to_string(), &headers);
        }
        let begun = Instant::now();
        carry_on(&fleet, link, &Stop::new(), None);
        assert_eq!(link.trust.now().crl_number(), number);
        assert!(begun.elapsed() < 2 * WITHIN, "{:?}", begun.elapsed());
    }
}
