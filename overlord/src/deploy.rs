//! `overlord deploy`: the minion's package brought to hosts over the user's own `ssh`, installed, enrolled, and seen to answer. Prints nothing.
//!
//! All that is done on a host is done by one script there (`on_host.sh`), which puts things back where they do not come out well, so that the same
//! command can be repeated at any point. What a host says is not believed: that it is one of the fleet is proved by the handshake of a ping.

mod decide;
mod destination;
mod report;
mod session;
mod ssh;
mod trouble;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use certs::member;
use certs::tls::CaPin;
use common::identity::MinionName;
use common::job::CallId;
use common::outcome::{ErrorCode, Outcome, Verdict};
use common::protocol::{Arguments, DEFAULT_PORT};
use jiff::Timestamp;
use serde_json::{Value, json};
use service::authority::{AskError, AuthorityClient, Deadlines};
use tokio::time::{Instant, sleep, timeout};

use crate::authority::audit::{Action, Entry};
use crate::authority::{Office, OfficeError, public_address};
use crate::buckets::{BucketError, fan_out, forks_max};
use crate::chain;
use crate::client::{NoAnswer, Sent};
use crate::envelope::Message;
use crate::fleet::{Fleet, Link, LinkError, Stop};
use crate::hosts::enlist::enlist;
use crate::hosts::{Host, Roster, RosterError, whole_address};
use crate::package::{Package, PackageError};
use decide::{Membership, decide};
pub(crate) use destination::Destination;
use report::{Enrolment, Facts, Orders, Report};
use session::{Session, Stage};
pub(crate) use ssh::Ssh;
use trouble::Trouble;

/// Files that are open for each host: three pipes, the process, and the connection of the ping.
const FILES_PER_HOST: u16 = 6;
/// How long the authority may take to answer at all, before any host is touched.
const AUTHORITY_WITHIN: Duration = Duration::from_secs(10);
/// A token is good for as long as its host may take, and a little.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// How long a host that has enrolled may take to answer, but no more than that part of all its time; how long one ping may, and what is between two.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
const ANSWERS_PART: u32 = 4;
const PING_WITHIN: Duration = Duration::from_secs(5);
const PING_AGAIN: Duration = Duration::from_millis(300);

/// Why no host was touched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeployError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("cannot start ssh, which brings the package to hosts: install OpenSSH's client (`apt install openssh-client`), and see PATH")]
    NoSsh(#[source] io::Error),
    #[error("cannot read the ssh configuration {}", .path.display())]
    SshConfig { path: PathBuf, source: io::Error },
    #[error("hosts enrol with the authority, which deploys from its own home alone")]
    Office(#[from] OfficeError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(
        "no host was touched, for none could enrol: {0}; `overlord certs serve` starts the authority here, --overlord ADDR says where else it is"
    )]
    Authority(#[source] AskError),
    #[error("starting threads: {0}")]
    Threads(io::Error),
}

/// A host, and what became of it.
pub(crate) type Arrival = (MinionName, Outcome);

/// What is deployed, and all that was seen to before.
pub(crate) struct Deployment<'f> {
    fleet: &'f Fleet,
    link: &'f Link,
    package: Package,
    ssh: Ssh,
    authority: String,
    pin: CaPin,
    office: Arc<Mutex<Office>>,
    roster: Roster,
    within: Duration,
}

impl<'f> Deployment<'f> {
    /// Sees to everything that can be seen to without a host. `authority` is where hosts reach it, if not where the configuration says; each host may take
    /// `within`.
    ///
    /// # Errors
    /// Something would fail on every host.
    pub(crate) fn prepare(
        fleet: &'f Fleet,
        package: &Path,
        ssh: Ssh,
        authority: Option<String>,
        within: Duration,
    ) -> Result<Self, DeployError> {
        let package = Package::read(package)?;
        Ssh::require().map_err(DeployError::NoSsh)?;
        if let Some(path) = &ssh.config {
            std::fs::metadata(path).map_err(|source| DeployError::SshConfig { path: path.clone(), source })?;
        }
        let roster = match fleet.roster() {
            Err(RosterError::Missing { .. }) => Roster::default(),
            other => other?,
        };
        let office = Office::open(fleet.home(), fleet.config())?;
        let authority = authority.unwrap_or_else(|| public_address(fleet.config(), fleet.config().certs.listen));
        let pin = office.desk.authority().pin().clone();
        let link = fleet.link()?;
        require_authority(link, &authority)?;
        Ok(Self { fleet, link, package, ssh, authority, pin, office: Arc::new(Mutex::new(office)), roster, within })
    }

    /// Deploys to all of them, no more than `forks` at a time, while `collect` takes what becomes of each as it comes.
    ///
    /// # Errors
    /// Nothing was begun.
    pub(crate) fn run<C>(
        &self,
        hosts: Vec<Destination>,
        forks: u16,
        stop: &Stop,
        collect: impl FnOnce(&Receiver<Arrival>) -> C,
    ) -> Result<C, BucketError> {
        let forks = forks.min(forks_max() / FILES_PER_HOST);
        fan_out(hosts, forks, |to| async move { self.deploy(&to, stop).await }, collect)
    }

    async fn deploy(&self, to: &Destination, stop: &Stop) -> Arrival {
        let (begun, stage) = (Timestamp::now(), Cell::new(Stage::Asking));
        let done = tokio::select! {
            biased;
            () = stop.stopped() => Err(if stage.get() == Stage::Asking { Trouble::NotBegun } else { Trouble::Interrupted }),
            done = timeout(self.within, self.steps(to, &stage)) => done.unwrap_or(Err(Trouble::TimedOut { within: self.within })),
        };
        let verdict = match done {
            Ok(result) => Verdict::Ok { result },
            Err(trouble) => trouble.into_verdict(),
        };
        (to.name.clone(), Outcome { started_at: Some(begun), ..Outcome::not_run(verdict, Timestamp::now()) })
    }

    async fn steps(&self, to: &Destination, stage: &Cell<Stage>) -> Result<Value, Trouble> {
        let waits = || self.fleet.warn(&format!("{}: another deploy or upgrade is at work there, and is waited for", to.name));
        // Less than the host has in all, so that there is time to say that it was in vain.
        let session = Session { ssh: &self.ssh, to, package: &self.package, patience: self.within / 2, stage, waits: &waits };
        let (report, orders) = session.run(async |facts: &Facts| self.orders(to, facts).await).await?;
        stage.set(Stage::Done);
        let host = self.host(to).await;
        self.require_answer(&host).await?;
        self.enlist(&host);
        Ok(self.result(&report, &host, &orders))
    }

    /// What a host is told to do, once it has said how it is.
    async fn orders(&self, to: &Destination, facts: &Facts) -> Result<Orders, Trouble> {
        let (mut orders, is_stranger) = decide(&to.name, facts, &self.package, &self.membership(&to.name, facts))?;
        if is_stranger {
            let token = self.token(&to.name).await.map_err(|reason| Trouble::Token { reason })?;
            orders.enrolment = Some(Enrolment { authority: self.authority.clone(), pin: self.pin.to_string(), token });
        }
        Ok(orders)
    }

    fn membership(&self, name: &MinionName, facts: &Facts) -> Membership {
        let pins = member::pins(&facts.ca);
        if !facts.ca.is_empty() && !pins.contains(&self.pin) {
            let pins = pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Membership::Foreign { pins: if pins.is_empty() { "one that cannot be read".to_owned() } else { pins } };
        }
        let trusted = self.link.trust.now();
        let is_good = facts.has_key && member::is_good(&facts.cert, name, trusted.credentials(), Timestamp::now());
        if is_good { Membership::Ours } else { Membership::None }
    }

    /// A token for this host alone. The desk may wait for others, so nobody else waits for it.
    async fn token(&self, name: &MinionName) -> Result<String, String> {
        let (office, name, ttl) = (self.office.clone(), name.to_string(), self.within.saturating_add(TOKEN_MARGIN));
        let made = tokio::task::spawn_blocking(move || {
            let mut office = office.lock().unwrap_or_else(PoisonError::into_inner);
            let token = office.desk.token(Some(name.clone()), ttl).map_err(|error| chain(&error))?;
            let entry = Entry::of_command(Action::Token).about([name]).with_token(&token.digest);
            office.ledger.record(&entry).map_err(|error| chain(&error))?;
            Ok(token.token)
        });
        made.await.map_err(|error| error.to_string())?
    }

    /// As the roster has it; else where `ssh` finds it.
    async fn host(&self, to: &Destination) -> Host {
        if let Some(host) = self.roster.find(&to.name) {
            return host.clone();
        }
        let found = self.ssh.address(to).await.and_then(|found| whole_address(&found, DEFAULT_PORT));
        let address = found.unwrap_or_else(|| format!("{}:{DEFAULT_PORT}", to.name));
        Host { name: to.name.clone(), address, groups: Vec::new(), vars: Default::default() }
    }

    /// A minion that has just got its certificate takes a moment to listen.
    async fn require_answer(&self, host: &Host) -> Result<(), Trouble> {
        let (link, deadline) = (self.link, Instant::now() + ANSWERS_WITHIN.min(self.within / ANSWERS_PART));
        let not_allowed = |reason: &str| Trouble::NotAllowed {
            address: host.address.clone(),
            caller: link.caller.to_string(),
            reason: reason.to_owned(),
        };
        loop {
            let reason = match ping(link, host).await {
                Ok(Outcome { verdict: Verdict::Ok { .. }, .. }) => return Ok(()),
                Ok(Outcome { verdict, .. }) => {
                    return Err(not_allowed(verdict.error().map_or("it did not say why", |error| &error.message)));
                }
                Err(silence) if silence.is_refusal(ErrorCode::Denied) => return Err(not_allowed(silence.reason())),
                Err(silence) => silence.reason().to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Trouble::NoPing { address: host.address.clone(), reason });
            }
            sleep(PING_AGAIN).await;
        }
    }

    /// So that the next command finds it. A host that is deployed to is that whatever becomes of the file.
    fn enlist(&self, host: &Host) {
        if self.roster.find(&host.name).is_some() {
            return;
        }
        let (path, name) = (self.fleet.home().hosts_file(), &host.name);
        match enlist(&path, name, &host.address) {
            Ok(true) => self.fleet.warn(&format!("{name} was added to {}", path.display())),
            Ok(false) => {}
            Err(error) => self.fleet.warn(&format!("{name} is not in {}: {}; add it there", path.display(), chain(&error))),
        }
    }

    fn result(&self, report: &Report, host: &Host, orders: &Orders) -> Value {
        let former = report.facts.installed();
        let did = match (orders.sends_package, former) {
            (false, _) => "kept",
            (true, None) => "installed",
            (true, Some(former)) if former == self.package.says.version => "reinstalled",
            (true, Some(_)) => "replaced",
        };
        let former = former.filter(|_| did == "replaced").map(str::to_owned);
        json!({ "package": did, "version": self.package.says.version, "former_version": former, "enrolled": orders.enrolment.is_some(), "address": host.address })
    }
}

/// For the fuzz targets: see [`crate::fuzzing::deploy_report`].
pub(crate) fn read_report(said: &[u8]) -> (usize, Option<Verdict>) {
    let mut report = Report::default();
    for line in said.split_inclusive(|byte| *byte == b'\n') {
        report.hear(line);
    }
    (report.kept_bytes(), Trouble::of_script(&report).map(Trouble::into_verdict))
}

async fn ping(link: &Link, host: &Host) -> Result<Outcome, NoAnswer> {
    let message = Message {
        call_id: CallId::new(service::fresh_id(), 1),
        caller: link.caller.clone(),
        method: "test.ping".to_owned(),
        args: Arguments::default(),
        limit: Some(PING_WITHIN),
    };
    let letter = message.letters([host]).pop().ok_or_else(|| NoAnswer::NotSent("there is no letter".to_owned()))?;
    link.client.ask(&letter, PING_WITHIN, &Sent::default()).await
}

/// That whoever answers at `address` is this home's authority. What it answers does not matter.
fn require_authority(link: &Link, address: &str) -> Result<(), DeployError> {
    let trusted = link.trust.now();
    let deadlines = Deadlines { connect: AUTHORITY_WITHIN / 2, answer: AUTHORITY_WITHIN / 2 };
    let ours = trusted.credentials().role().clone();
    let mut authority = AuthorityClient::new(address, trusted.tls().authority.clone(), deadlines).showing(ours);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DeployError::Threads)?;
    let asked = runtime.block_on(async { authority.revocations(u64::MAX).await });
    // A name server that does not answer must not keep the command.
    runtime.shutdown_background();
    match asked {
        Ok(_) | Err(AskError::Refused(_)) => Ok(()),
        Err(error) => Err(DeployError::Authority(error)),
    }
}
