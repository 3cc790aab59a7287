//! The library's face: a [`Fleet`], a [`Target`] in it, and what can be asked of the target. The command line is a skin over it.
//! Prints nothing: what a person should know besides is given to the function set with [`Fleet::with_warnings`].

pub(crate) mod any;
mod arguments;
mod call;
pub(crate) mod gossip;
mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use certs::tls::TlsError;
use certs::trust::{OverlordTrust, TrustError, TrustFiles};
use common::identity::{CallerName, MinionName, Role};
use common::job::JobRecord;

use crate::aggregate::compressed;
use crate::authority::renewal::{self, Renewal, RenewalFailed};
use crate::buckets::BucketError;
use crate::client::Client;
use crate::config::{Config, ConfigError};
use crate::home::{Home, HomeError};
use crate::hosts::{Host, Roster, RosterError};
use crate::jobs::{Job, JobError, StartError};
use crate::store::{self, JobSummary, Listed, Overview};
use crate::targets::{Expression, JobTerm, Sense, TargetError};

pub use any::AnyError;
pub(crate) use arguments::check_call;
pub use arguments::{CheckError, IntoArguments};
pub(crate) use call::ANSWER_GRACE;
pub use call::CallError;
pub use stop::Stop;

/// Why the overlord's home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// There is no telling where it is.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Why hosts cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// We have no certificate.
    #[error("there is no {}; make an authority and this overlord's certificate with `overlord certs init`", .path.display())]
    Missing {
        /// The file that is not there.
        path: PathBuf,
    },
    /// It, its key, the authority's or the revocation list cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It has expired, and could not be renewed.
    #[error(transparent)]
    Renewal(#[from] RenewalFailed),
    /// Threads cannot be started.
    #[error(transparent)]
    Buckets(#[from] BucketError),
}

/// A fleet of hosts, as one overlord's home describes it. Clones are the same fleet.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    home: Home,
    config: Config,
    warning: Warning,
    link: OnceLock<Link>,
}

/// Who is told, a line at a time, what a person should know and what stops nothing.
pub(crate) type Warning = Arc<dyn Fn(&str) + Send + Sync>;

/// What it takes to talk to hosts: made when the first is talked to. It goes by the files of the home as they are at each dial.
pub(crate) struct Link {
    pub(crate) caller: CallerName,
    pub(crate) trust: Arc<OverlordTrust>,
    pub(crate) client: Client,
}

/// The hosts that an expression names, and the limits of what is asked of them.
#[derive(Clone, Debug)]
pub struct Target {
    fleet: Fleet,
    expression: String,
    hosts: Vec<Host>,
    forks: u16,
    timeout: Duration,
    job_timeout: Option<Duration>,
}

impl Fleet {
    /// Opens the overlord's home: the folder with `hosts.toml`, `certs/` and perhaps `overlord.toml`.
    ///
    /// # Errors
    /// `overlord.toml` is there and cannot be read or understood.
    pub fn open(home: impl AsRef<Path>) -> Result<Self, FleetError> {
        Self::at(Home::at(home)?)
    }

    /// As [`Fleet::open`], of the home that [`Home::find`] has found.
    ///
    /// # Errors
    /// As [`Fleet::open`].
    pub fn at(home: Home) -> Result<Self, FleetError> {
        let config = Config::load(&home.config_file())?;
        Ok(Self(Arc::new(Inner { home, config, warning: Arc::new(|_| ()), link: OnceLock::new() })))
    }

    /// The same fleet, where `warning` is called with what a person should know and what stops nothing, a line at a time.
    #[must_use]
    pub fn with_warnings(self, warning: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let (home, config) = (self.0.home.clone(), self.0.config.clone());
        Self(Arc::new(Inner { home, config, warning: Arc::new(warning), link: OnceLock::new() }))
    }

    /// The hosts of the roster that `expression` names: `*`, `web*;db1`, `@group`, `@job:ID:failed`, `!web9`.
    ///
    /// # Errors
    /// `hosts.toml` cannot be used; the expression is none; it names a host, group or job that is not there; or it matches nothing.
    pub fn target(&self, expression: &str) -> Result<Target, TargetError> {
        let parsed = Expression::parse(expression)?;
        let roster = self.roster()?;
        let mut known = BTreeMap::new();
        let members = |term: &JobTerm, sense| self.members(term, sense, &roster, &mut known);
        let hosts = parsed.hosts(&roster, members)?.into_iter().cloned().collect();
        Ok(self.target_of(expression, hosts))
    }

    /// Those hosts, which an expression has named.
    pub(crate) fn target_of(&self, expression: &str, hosts: Vec<Host>) -> Target {
        Target {
            fleet: self.clone(),
            expression: expression.to_owned(),
            hosts,
            forks: self.0.config.forks,
            timeout: self.0.config.timeout,
            job_timeout: None,
        }
    }

    /// The hosts of a job that a term means, as far as is known without asking; `known` are the jobs that were looked up before.
    fn members(
        &self,
        term: &JobTerm,
        sense: Sense,
        roster: &Roster,
        known: &mut BTreeMap<String, JobRecord>,
    ) -> Result<BTreeSet<MinionName>, JobError> {
        if !known.contains_key(&term.id) {
            let job = self.job(&term.id)?;
            let record = job.known()?.record;
            if record.header.map.is_some() {
                let instead = format!("its hosts have no states, only its items have; `overlord job-status {}` names both", job.id());
                return Err(JobError::IsMap { job: job.id().clone(), instead });
            }
            known.insert(term.id.clone(), record);
        }
        let members = known.get(&term.id).map(|record| term.members(record)).unwrap_or_default();
        let gone: Vec<&MinionName> = members.iter().filter(|name| roster.find(name).is_none()).collect();
        if sense == Sense::Included && !gone.is_empty() {
            self.warn(&format!("{} of the job {}: no longer in hosts.toml, and left out", compressed(&gone), term.id));
        }
        Ok(members)
    }

    /// The job of that id, or of the only id that begins so.
    ///
    /// # Errors
    /// The text can be no id's beginning, several ids begin so, or none does.
    pub fn job(&self, id: &str) -> Result<Job, JobError> {
        Job::find(self, id)
    }

    /// Every job that is known, oldest first, as of what is known; no host is asked.
    ///
    /// # Errors
    /// The logs or the store cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobSummary>, JobError> {
        Ok(self.overview(Listed::All)?.jobs)
    }

    /// What is known of all jobs, and of those that are `listed` a little more.
    pub(crate) fn overview(&self, listed: Listed) -> Result<Overview, JobError> {
        store::overview(self, listed).map_err(JobError::Store)
    }

    /// The roster: `hosts.toml` as it is now.
    ///
    /// # Errors
    /// It is missing, or cannot be read or understood.
    pub fn roster(&self) -> Result<Roster, RosterError> {
        Roster::load(&self.0.home.hosts_file())
    }

    /// Its limits.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn home(&self) -> &Home {
        &self.0.home
    }

    pub(crate) fn warning(&self) -> &Warning {
        &self.0.warning
    }

    pub(crate) fn warn(&self, text: &str) {
        (self.0.warning)(text);
    }

    pub(crate) fn link(&self) -> Result<&Link, LinkError> {
        if let Some(link) = self.0.link.get() {
            return Ok(link);
        }
        let link = Link::load(&self.0.home, &self.0.config, &self.0.warning)?;
        Ok(self.0.link.get_or_init(|| link))
    }
}

impl Link {
    fn load(home: &Home, config: &Config, warning: &Warning) -> Result<Self, LinkError> {
        let trust = Arc::new(open_trust(home, config, warning)?);
        let renewal = Arc::new(Renewal::new(home, config, &trust, warning));
        renewal.before_calls()?;
        let credentials = trust.now().credentials().clone();
        match credentials.role() {
            Role::Overlord(caller) => Ok(Self { caller: caller.clone(), client: Client::new(trust.clone(), renewal, config), trust }),
            Role::Minion(_) | Role::Authority => {
                Err(TrustError::from(TlsError::Role { needs: "overlord", has: credentials.role().clone() }).into())
            }
        }
    }
}

/// What this overlord goes by. Where the authority is, a revocation list that cannot be read is signed anew.
pub(crate) fn open_trust(home: &Home, config: &Config, warning: &Warning) -> Result<OverlordTrust, LinkError> {
    let files = TrustFiles::of_overlord(&home.certs_dir());
    if let Some(path) = [&files.ca, &files.cert, &files.key].into_iter().find(|path| !path.exists()) {
        return Err(LinkError::Missing { path: path.clone() });
    }
    let open = || {
        let warning = warning.clone();
        OverlordTrust::open(files.clone(), config.trust.stale_crl, move |text| warning(text))
    };
    match open() {
        Err(TrustError::Crl(_)) if renewal::tend(home, config).is_ok() => Ok(open()?),
        opened => Ok(opened?),
    }
}

impl Target {
    /// At most so many hosts are in flight at once.
    #[must_use]
    pub fn with_forks(mut self, forks: u16) -> Self {
        self.forks = forks.max(1);
        self
    }

    /// A method may take so long on a host in a synchronous call, and a host so long to accept a job (but no longer than
    /// [`Config::accept_timeout`]). The limit of a job's run is another: see [`Target::with_job_timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A job may run so long on a host; without this, as long as the host lets it.
    #[must_use]
    pub fn with_job_timeout(mut self, limit: Duration) -> Self {
        self.job_timeout = Some(limit);
        self
    }

    /// The names of the hosts.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = &MinionName> {
        self.hosts.iter().map(|host| &host.name)
    }

    /// Starts `method` as a job on every host, and gives its handle as soon as the job is on the disk.
    ///
    /// A thread of this program sends it to the hosts. If the program ends before it has, the rest can be sent with
    /// `overlord job-resume ID`; what was sent runs on whatever becomes of the program.
    ///
    /// # Errors
    /// The arguments do not fit the method, there is no certificate to call with, or the job cannot be written down.
    pub fn start(&self, method: &str, args: impl IntoArguments) -> Result<Job, StartError> {
        Job::start(self, method, args.into_arguments())
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    pub(crate) fn expression(&self) -> &str {
        &self.expression
    }

    pub(crate) fn members(&self) -> &[Host] {
        &self.hosts
    }

    pub(crate) fn forks(&self) -> u16 {
        self.forks
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn job_timeout(&self) -> Option<Duration> {
        self.job_timeout
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Fleet").field("home", &self.0.home).finish_non_exhaustive()
    }
}
