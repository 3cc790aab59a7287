//! Target expressions: which hosts of a roster are meant.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use common::identity::MinionName;
use common::job::{HostState, JobHeader, JobRecord};
use jiff::Timestamp;
use overlord::{Roster, TargetError};

/// Hosts of all kinds of names.
const ROSTER: &str = "\
[host.web1]\ngroups = [\"web\"]\n[host.web2]\ngroups = [\"web\"]\n[host.web10]\ngroups = [\"web\", \"old\"]\n[host.web01]\n[host.web02]\n[host.web03]\n\
[host.db1]\ngroups = [\"db\"]\n[host.\"a.example.com\"]\ngroups = [\"db\"]\n[host.7]\n[host.8]\n[host.9]\n[host.10]\n\
[host.\"rack1-node9.x\"]\n[host.\"rack1-node10.x\"]\n[host.\"rack1-node11.x\"]\n[host.n4294967295]\n[host.n4294967296]\n[host.n4294967294]\n";

static KNOWN: LazyLock<Roster> = LazyLock::new(|| roster(ROSTER).expect("the roster is sound"));

/// Up to the first line's end an expression, behind it the roster, if not the usual one.
pub fn targets(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (expression, own) = text.split_once('\n').unwrap_or((text, ""));
    match roster(own).filter(|own| own.iter().len() > 0) {
        Some(own) => expression_on(expression, &own),
        None => expression_on(expression, &KNOWN),
    }
}

fn roster(text: &str) -> Option<Roster> {
    overlord::fuzzing::roster(Path::new("/etc/overlord/hosts.toml"), text).ok()
}

fn expression_on(expression: &str, roster: &Roster) {
    let record = record(roster);
    let read = |expression: &str| match overlord::fuzzing::hosts(expression, roster, &record) {
        Ok(hosts) => Ok(hosts.into_iter().map(|host| host.name.clone()).collect::<Vec<_>>()),
        Err(error) => Err(error),
    };
    let names = match read(expression) {
        Ok(names) => names,
        Err(error) => return assert!(!error.to_string().contains(char::is_control), "{error:?}"),
    };
    let known = |name: &MinionName| roster.find(name).is_some();
    assert!(!names.is_empty() && names.iter().all(known), "{names:?}");
    let set: BTreeSet<&MinionName> = names.iter().collect();
    assert_eq!(set.len(), names.len(), "{names:?}");
    assert_eq!(read(&expression.to_ascii_uppercase()).ok().as_ref(), Some(&names), "names match without regard to case");

    let shown = overlord::fuzzing::compressed(&names.iter().collect::<Vec<_>>());
    let again = read(&shown).unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(again.iter().collect::<BTreeSet<_>>() == set, "{shown} is shown for {names:?} and means {again:?}");

    let first = names.first().expect("there is one");
    match read(&format!("{expression};!{first}")) {
        Ok(rest) => assert!(rest.len() + 1 == names.len() && !rest.contains(first), "{rest:?}"),
        Err(error) => assert!(matches!(error, TargetError::Nothing { .. }) && names.len() == 1, "{error}"),
    }
}

/// A job that was sent to every second host, with every state among them.
fn record(roster: &Roster) -> JobRecord {
    let header = JobHeader {
        job_id: "54k2-9xqd-4fz1".parse().expect("it is an id"),
        caller: "admin".parse().expect("it is a name"),
        target: "*".to_owned(),
        method: "test.ping".to_owned(),
        args: common::protocol::Arguments::default(),
        job_limit_ms: None,
        retry_of: None,
        map: None,
        hosts: roster.iter().step_by(2).map(|host| host.name.clone()).collect(),
    };
    let mut record = JobRecord::new(header, Timestamp::UNIX_EPOCH);
    let states = [HostState::Ok, HostState::Failed, HostState::Running, HostState::Lost, HostState::Pending];
    for (host, state) in record.hosts.values_mut().zip(states.into_iter().cycle()) {
        host.state = state;
    }
    record
}
