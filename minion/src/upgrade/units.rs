//! The minion's units, as systemd has them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::PROGRAM;
use super::command::Command;

const UNITS: [&str; 2] = ["minion.service", "minion-spawner.service"];
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A unit that has been up for so long without a restart is up.
const STEADY_FOR: Duration = Duration::from_secs(3);
const UP_WITHIN: Duration = Duration::from_secs(20);

/// How a unit stands.
///
/// # Errors
/// In a line: systemd does not say.
pub(super) fn state(unit: &str) -> Result<String, String> {
    properties(unit)?.remove("ActiveState").ok_or_else(|| format!("{unit} has no state"))
}

/// Returns once both units have run for a while, with the program that is installed now. A unit of type `notify` is active once it listens.
///
/// # Errors
/// In a line: which does not, and how it stands.
pub(super) fn come_up() -> Result<(), String> {
    let (begun, mut steady) = (Instant::now(), None::<(Vec<u32>, Instant)>);
    loop {
        let looked = look();
        match looked {
            Ok(pids) => {
                let (_, since) = steady.take_if(|(before, _)| *before == pids).unwrap_or_else(|| (pids.clone(), Instant::now()));
                if since.elapsed() >= STEADY_FOR {
                    return Ok(());
                }
                steady = Some((pids, since));
            }
            Err(why) if begun.elapsed() >= UP_WITHIN => return Err(why),
            Err(_) => steady = None,
        }
        if begun.elapsed() >= UP_WITHIN + STEADY_FOR {
            return Err(format!("its units start again and again{}", last_words()));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The processes of both units.
fn look() -> Result<Vec<u32>, String> {
    UNITS.into_iter().map(process_of).collect()
}

fn process_of(unit: &str) -> Result<u32, String> {
    let of = properties(unit)?;
    let value = |name: &str| of.get(name).map(String::as_str).unwrap_or_default();
    if value("ActiveState") != "active" {
        return Err(format!("{unit} is {} ({}){}", value("ActiveState"), value("SubState"), last_words()));
    }
    let pid: u32 = value("MainPID").parse().unwrap_or_default();
    let file =
        |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).map_err(|error| format!("{}: {error}", path.display()));
    if file(Path::new(&format!("/proc/{pid}/exe")))? != file(Path::new(PROGRAM))? {
        return Err(format!("{unit} still runs another program than {PROGRAM}"));
    }
    Ok(pid)
}

fn properties(unit: &str) -> Result<BTreeMap<String, String>, String> {
    let said = Command::new("systemctl").args(["show", unit, "--property=ActiveState,SubState,MainPID"]).ask()?;
    Ok(said.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What the units last wrote, if the journal has it.
fn last_words() -> String {
    let mut journal = Command::new("journalctl");
    journal.args(["--no-pager", "--quiet", "--output=cat", "--lines=2"]).args(UNITS.iter().flat_map(|unit| ["--unit", unit]));
    let said = journal.ask().unwrap_or_default();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!("; the journal says: {}", lines.join("; ")) }
}
