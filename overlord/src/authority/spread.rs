//! The revocation list given to every host of the roster, all at once. What a host says of it changes nothing here.

use std::collections::{BTreeMap, BTreeSet};

use certs::authority::desk::CRL_FILE;
use common::identity::MinionName;
use common::job::CallId;
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::certs::{REVOCATIONS, Revocations, RevocationsParams};

use crate::buckets::fan_out;
use crate::chain;
use crate::client::Sent;
use crate::envelope::{Letter, Message};
use crate::fleet::{Fleet, Link};
use crate::hosts::{Host, Roster, RosterError};

/// Which hosts have the list.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    /// The number of the list.
    pub(crate) number: u64,
    /// How many hosts have it, or a newer one.
    pub(crate) told: usize,
    /// Who could not be told, and why.
    pub(crate) missed: BTreeMap<MinionName, String>,
    /// Who was not called, because it has no certificate that is still good.
    pub(crate) out: BTreeSet<MinionName>,
}

/// Gives the home's list, of that number, to every host but those that are `out`: they have no certificate that is good, and can be called no
/// more. Bounded by the limits of `overlord.toml`.
pub(crate) fn spread(fleet: &Fleet, number: u64, is_out: impl Fn(&MinionName) -> bool) -> Spread {
    let none = Spread { number, ..Spread::default() };
    let roster = match fleet.roster() {
        Ok(roster) => roster,
        // An authority need not have hosts of its own.
        Err(RosterError::Missing { .. }) => return none,
        Err(error) => {
            fleet.warn(&format!("no host is told of the revocation list: {}", chain(&error)));
            return none;
        }
    };
    let out: BTreeSet<_> = roster.iter().map(|host| host.name.clone()).filter(is_out).collect();
    let roster: Roster = roster.iter().filter(|host| !out.contains(&host.name)).cloned().collect();
    let asked = give_all(fleet, number, &roster);
    let spread = asked.unwrap_or_else(|reason| {
        let missed = roster.iter().map(|host| (host.name.clone(), reason.clone())).collect();
        Spread { missed, ..none }
    });
    Spread { out, ..spread }
}

fn give_all(fleet: &Fleet, number: u64, roster: &Roster) -> Result<Spread, String> {
    let path = fleet.home().certs_dir().join(CRL_FILE);
    let pem = std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    let link = fleet.link().map_err(|error| chain(&error))?;
    let letters =
        letters(link, fleet, RevocationsParams { have: number, crl: Some(pem) }, roster.iter()).map_err(|error| error.to_string())?;
    let limit = fleet.config().poll_timeout;
    let mut spread = Spread { number, ..Spread::default() };
    let given = fan_out(
        letters,
        fleet.config().forks,
        |letter| async move { (letter.host.clone(), ask(link, &letter, limit).await) },
        |answers| {
            for (host, answer) in answers {
                match answer {
                    Ok(theirs) if theirs.number >= number => spread.told += 1,
                    Ok(theirs) => drop(spread.missed.insert(host, format!("it stays with the list number {}", theirs.number))),
                    Err(reason) => drop(spread.missed.insert(host, reason)),
                }
            }
        },
    );
    given.map(|()| spread).map_err(|error| error.to_string())
}

/// What is said of revocation lists, to each of `hosts`.
pub(crate) fn letters<'h>(
    link: &Link,
    fleet: &Fleet,
    params: RevocationsParams,
    hosts: impl IntoIterator<Item = &'h Host>,
) -> serde_json::Result<Vec<Letter>> {
    let message = Message {
        call_id: CallId::new(service::fresh_id(), 1),
        caller: link.caller.clone(),
        method: REVOCATIONS.to_owned(),
        args: Arguments::Json(serde_json::to_value(params)?),
        limit: Some(fleet.config().poll_timeout),
    };
    Ok(message.letters(hosts))
}

/// What a host goes by, after it was told what the letter says.
async fn ask(link: &Link, letter: &Letter, within: std::time::Duration) -> Result<Revocations, String> {
    let answer = link.client.ask::<Outcome>(letter, within, &Sent::default()).await;
    match answer.map_err(|silence| silence.reason().to_owned())?.verdict {
        Verdict::Ok { result } => serde_json::from_value(result).map_err(|error| format!("it answered something else: {error}")),
        other => Err(other.error().map_or_else(|| "it did not say why".to_owned(), |failure| failure.message.clone())),
    }
}
