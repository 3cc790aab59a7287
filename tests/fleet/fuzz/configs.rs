//! The files that an administrator writes: `minion.toml`, `overlord.toml`, `hosts.toml`.

use std::path::Path;
use std::time::Duration;

use common::job::retention::KEPT_AT_LEAST;
use common::period::LONGEST;
use minion::config::ConfigError as MinionConfigError;
use overlord::{Config, ConfigError, Host, Roster, RosterError};
use service::authority::full_address;

/// The bytes as each of the two configurations.
pub fn configs(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    of_minion(text);
    of_overlord(text);
}

/// The bytes as `hosts.toml`.
pub fn roster(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/etc/overlord/hosts.toml");
    match overlord::fuzzing::roster(path, text) {
        Ok(roster) => {
            roster.iter().for_each(|host| is_sound(host, &roster));
            let written: String = roster.iter().map(written).collect();
            let again = overlord::fuzzing::roster(path, &written).unwrap_or_else(|error| panic!("{error}: {written}"));
            let bare = |host: &Host| (host.name.clone(), host.address.clone(), host.groups.clone());
            assert!(roster.iter().map(bare).eq(again.iter().map(bare)), "{written}");
        }
        Err(RosterError::Config(ConfigError::Content { line, .. })) => is_a_line(line, text),
        Err(other) => panic!("{other}"),
    }
}

fn of_minion(text: &str) {
    let config = match minion::config::Config::parse("/etc/minion/minion.toml".into(), text) {
        Ok(config) => config,
        Err(MinionConfigError::Invalid { line, .. }) => return is_a_line(line, text),
        Err(MinionConfigError::HostName { .. }) => return,
        Err(other) => panic!("{other}"),
    };
    let limits = &config.limits;
    assert!(limits.body_max_bytes > 0 && limits.connections_max > 0 && limits.result_max_bytes > 0 && limits.output_max_bytes > 0);
    assert!(limits.calls_max > 0 && limits.jobs_max > 0);
    let waits = [limits.handshake_timeout, limits.header_timeout, limits.idle_timeout, limits.call_time_max, limits.job_time_max];
    are_lengths_of_time(&waits);
    are_lengths_of_time(&[limits.cancel_grace, limits.shutdown_grace, limits.reconcile_every, config.trust.crl_every]);
    assert!(config.retention.age >= KEPT_AT_LEAST && config.retention.count > 0 && config.retention.bytes > 0);
    assert!(config.audit.max_bytes > 0 && config.audit.files > 0);
    assert!([&config.state_dir, &config.certs_dir, &config.acl_dir].into_iter().all(|dir| dir.is_absolute()), "{config:?}");
    if let Some(authority) = &config.authority {
        assert!(!authority.contains(char::is_whitespace) && full_address(authority).contains(':'), "{authority}");
    }
}

fn of_overlord(text: &str) {
    let config: Config = match overlord::fuzzing::config(Path::new("/etc/overlord/overlord.toml"), text) {
        Ok(config) => config,
        Err(ConfigError::Content { line, .. }) => return is_a_line(line, text),
        Err(other) => panic!("{other}"),
    };
    assert!(config.forks > 0 && config.result_max_bytes > 0 && config.call_max_bytes > 0 && config.logs_max_bytes > 0);
    are_lengths_of_time(&[config.timeout, config.connect_timeout, config.accept_timeout, config.poll_timeout, config.lost_after]);
    are_lengths_of_time(&[config.store_wait, config.retention.age, config.certs.valid, config.certs.crl_valid]);
    assert!(config.retention.age >= KEPT_AT_LEAST && config.retention.count > 0);
    if let Some(authority) = &config.authority {
        is_an_address(authority);
    }
}

fn are_lengths_of_time(lengths: &[Duration]) {
    assert!(lengths.iter().all(|length| !length.is_zero() && *length <= LONGEST), "{lengths:?}");
}

/// Where a complaint points to.
fn is_a_line(line: usize, text: &str) {
    assert!(line >= 1 && line <= text.matches('\n').count() + 1, "line {line}");
}

fn is_sound(host: &Host, roster: &Roster) {
    assert_eq!(roster.find(&host.name), Some(host));
    is_an_address(&host.address);
}

/// `HOST:PORT` that can be dialled.
fn is_an_address(address: &str) {
    let (host, port) = address.rsplit_once(':').unwrap_or_else(|| panic!("{address} has no port"));
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{address} has no port that can be dialled");
    assert!(!host.is_empty() && host.chars().all(|letter| letter.is_ascii_graphic() && letter != '/'), "{address}");
    assert_eq!(full_address(address), address);
}

/// The host as `hosts.toml` has it, its variables left out.
fn written(host: &Host) -> String {
    let groups: Vec<String> = host.groups.iter().map(|group| quoted(group)).collect();
    format!("[host.\"{}\"]\naddress = \"{}\"\ngroups = [{}]\n", host.name, host.address, groups.join(", "))
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let escaped = |letter: char| match letter {
        '"' | '\\' => format!("\\{letter}"),
        _ if letter.is_control() => format!("\\U{:08X}", u32::from(letter)),
        _ => letter.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}
