//! A job that a lab's hosts do while something happens to them. Each of its starts and each of its ends is a line in a file on the host's own disk,
//! so that no answer has to be believed about how often it ran; and it goes on until it is let go.

use serde_json::Value;

use super::Lab;
use super::host::Host;
use crate::{COMMAND_TIMEOUT, PATIENCE, wait_for, wait_until};

/// Where the files lie.
const FOLDER: &str = "/srv/work";

/// A job under way.
#[derive(Debug)]
pub struct Work<'lab> {
    lab: &'lab Lab,
    hosts: Vec<&'lab Host>,
    /// Its job id.
    pub id: String,
    tag: String,
}

impl Lab {
    /// Starts a job on `target`, which is all hosts or one, whose traces have the name `tag`, which no other of the lab has.
    #[must_use]
    pub fn start_work(&self, target: &str, tag: &str) -> Work<'_> {
        let id = self.overlord([target, "command.run", &work_line(tag), "--async"]).ok().out().trim().to_owned();
        assert!(id.parse::<common::job::JobId>().is_ok(), "not a job id alone on stdout: {id:?}");
        let hosts = self.hosts().iter().filter(|host| target == "*" || target == host.name()).collect();
        Work { lab: self, hosts, id, tag: tag.to_owned() }
    }

    /// Lets the job with the traces `tag` end as soon as it begins, on every host, on or off.
    pub fn let_go(&self, tag: &str) {
        self.hosts().iter().for_each(|host| let_go(host, tag));
    }
}

/// What is run on each host.
fn work_line(tag: &str) -> String {
    let file = format!("{FOLDER}/{tag}");
    format!(
        "mkdir -p {FOLDER}; echo start >> {file}; while ! [ -e {file}.go ]; do sleep 0.05; done; echo end >> {file}; echo \"$MINION_NAME\" is done"
    )
}

fn let_go(host: &Host, tag: &str) {
    std::fs::create_dir_all(host.path(FOLDER)).unwrap();
    host.write(&format!("{FOLDER}/{tag}.go"), "");
}

impl Work<'_> {
    /// Waits until it has begun on every host.
    pub fn has_begun(&self) -> &Self {
        self.hosts.iter().for_each(|host| self.has_begun_on(host));
        self
    }

    /// Waits until it has begun on a host.
    pub fn has_begun_on(&self, host: &Host) {
        wait_until(&format!("{} to begin on {}", self.tag, host.name()), PATIENCE, || !self.traces(host).is_empty());
    }

    /// Lets it end on every host.
    pub fn let_go(&self) -> &Self {
        self.hosts.iter().for_each(|host| self.let_go_on(host));
        self
    }

    /// Lets it end on a host.
    pub fn let_go_on(&self, host: &Host) {
        let_go(host, &self.tag);
    }

    /// The starts and ends on a host.
    #[must_use]
    pub fn traces(&self, host: &Host) -> Vec<String> {
        let text = host.read(&format!("{FOLDER}/{}", self.tag)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What `overlord job-status` says of it now.
    #[must_use]
    pub fn status(&self) -> Value {
        self.lab.overlord(["job-status", &self.id, "--output", "json"]).json()
    }

    /// What it says of a host now.
    #[must_use]
    pub fn status_of(&self, host: &Host) -> Value {
        self.status()["hosts"][host.name()].clone()
    }

    /// Waits until it has ended on every host, and gives what is said of each.
    #[must_use]
    pub fn ended(&self) -> Value {
        self.lab.overlord(["job-status", &self.id, "--wait", "--output", "json"]).json()["hosts"].clone()
    }

    /// Waits until a host is in that state, and gives what is said of it.
    #[must_use]
    pub fn is_on(&self, host: &Host, state: &str) -> Value {
        wait_for(&format!("{} to be {state} on {}", self.tag, host.name()), COMMAND_TIMEOUT, || {
            Some(self.status_of(host)).filter(|status| status["state"] == state)
        })
    }

    /// Lets it end, and sees that it ran once on every host, to its end, and that its result is there.
    pub fn ends_well(&self) {
        self.let_go();
        let hosts = self.ended();
        for host in &self.hosts {
            let (name, status) = (host.name(), &hosts[host.name()]);
            assert_eq!(
                (&status["state"], &status["result"]["stdout"]),
                (&"ok".into(), &format!("{name} is done\n").into()),
                "{name}: {hosts:#}"
            );
            self.ran_once(host);
        }
    }

    /// It ran once on this host, to its end.
    pub fn ran_once(&self, host: &Host) {
        assert_eq!(self.traces(host), ["start", "end"], "{} on {}", self.tag, host.name());
    }
}
