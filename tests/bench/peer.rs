//! What others do with the same work on the same machine: a script in `peers/`, run by a Python that has them from PyPI.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A script's exit status where what it times is not installed.
const NOT_INSTALLED: i32 = 3;

/// One of them.
pub(crate) struct Peer {
    /// As PyPI has it.
    pub(crate) name: &'static str,
    /// The variable that names the Python that has it, if that is not the first in `PATH`.
    pub(crate) python: &'static str,
    /// In `peers/`; its argument is how often, and it prints `took SECONDS`.
    pub(crate) script: &'static str,
}

impl Peer {
    /// How long it takes to do so many; or why that is not known.
    pub(crate) fn run(&self, count: u32) -> Result<Duration, String> {
        let python = std::env::var_os(self.python).unwrap_or_else(|| "python3".into());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers").join(self.script);
        let mut command = Command::new(&python);
        command.arg("-u").arg(script).arg(count.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
        let output = command.output().map_err(|error| format!("{}: {error}", python.display()))?;
        if output.status.code() == Some(NOT_INSTALLED) {
            let Self { name, python: variable, .. } = self;
            return Err(format!("{} does not have it: `pip install {name}`, and name that Python in {variable}", python.display()));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let took = text.lines().find_map(|line| line.strip_prefix("took ")?.parse().ok());
        took.map(Duration::from_secs_f64).ok_or_else(|| format!("it has failed: {}", String::from_utf8_lossy(&output.stderr)))
    }
}
