//! Sending a job to its hosts, and writing each one's answer into the job log as it arrives. It holds the log's lock for as long
//! as it works, which is how others know that it does.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{CallId, Event, HostState, JobHeader, JobId, JobRecord, LogLine, News};
use common::outcome::{ErrorCode, Outcome};
use common::protocol::{ASYNC_PREFIX, Accepted, Arguments};
use jiff::Timestamp;

use super::log::{LockedLog, LogError};
use super::map::{self, MapDispatch};
use super::parcel::{Parcel, ParcelError};
use super::poll::{self, Question};
use super::{Job, JobError, retention};
use crate::buckets::fan_out;
use crate::client::{self, Client, NoAnswer, Sent};
use crate::clock;
use crate::envelope::{Letter, Message};
use crate::fleet::{CheckError, Fleet, LinkError, Stop, Target, check_call, gossip};
use crate::hosts::{Host, Roster};
use crate::map::items::ItemsError;
use crate::store;

/// How often a job id is drawn before it is given up: two in the same hundredth of a second collide once in a million.
const IDS_DRAWN_MAX: usize = 16;
/// How often a call whose answer got lost is sent. The call id is the same, so it starts at most once.
const SENDINGS_MAX: u32 = 3;
/// How long to pause before it is sent again; twice as long the next time.
const RESEND_AFTER: Duration = Duration::from_millis(500);
/// So long after it was first sent a call is sent again at most: some time after its start-before a host may have forgotten that it had the
/// job, ran it and was told to delete it.
const RESEND_WITHIN: Duration = Duration::from_secs(5 * 60);
/// How long a line may wait to be synced together with others.
const SYNC_WITHIN: Duration = Duration::from_millis(50);

/// Why a job was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The method or its arguments are wrong.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// What it needs on its hosts cannot be brought.
    #[error(transparent)]
    Parcel(#[from] ParcelError),
    /// We cannot talk to hosts.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It cannot be written down.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Too many jobs are kept here.
    #[error("no new job is taken on: {reason}. Raise the limit in overlord.toml, or delete jobs with `overlord job-delete ID`")]
    Full {
        /// Which limit is reached, by what.
        reason: String,
    },
    /// The items of a map cannot be used.
    #[error(transparent)]
    Items(#[from] ItemsError),
    /// Every id that was drawn is taken.
    #[error("no free job id was found in {IDS_DRAWN_MAX} tries; try again")]
    Ids,
    /// The job is there, and nothing sends it.
    #[error("starting the thread that sends the job {job}; send it with `overlord job-resume {job}`")]
    Thread {
        /// The job.
        job: JobId,
        /// Why.
        source: io::Error,
    },
}

/// A job that is written down, locked, and ready to be sent.
pub(crate) struct Dispatch {
    fleet: Fleet,
    job: JobId,
    log: LockedLog,
    attempt: u32,
    letters: Vec<Letter>,
    parcel: Option<Arc<Parcel>>,
    forks: u16,
    accept_within: Duration,
}

/// What a process of its own is for.
pub(crate) enum Errand {
    /// Send a job.
    Call(Box<Dispatch>),
    /// Deal a map.
    Map(Box<MapDispatch>),
}

impl Errand {
    /// Does it.
    pub(crate) fn run(self) {
        match self {
            Self::Call(dispatch) => dispatch.run(),
            Self::Map(dispatch) => dispatch.run(),
        }
    }
}

impl From<Dispatch> for Errand {
    fn from(dispatch: Dispatch) -> Self {
        Self::Call(Box::new(dispatch))
    }
}

/// What can be done about a job whose dispatcher died, or that did not reach every host.
pub(crate) struct Resumption {
    pub(crate) job: JobId,
    /// None: no host is to be sent it again.
    pub(crate) dispatch: Option<Errand>,
    /// Hosts that stay as they are, and why.
    pub(crate) left: BTreeMap<MinionName, String>,
}

impl Dispatch {
    /// Writes the job down, durably. `retry_of` is the job whose hosts it is made for anew.
    pub(crate) fn begin(target: &Target, method: &str, args: Arguments, retry_of: Option<JobId>) -> Result<Self, StartError> {
        let method = check_call(method, &args)?;
        let (args, parcel) = Parcel::of_call(&method, args)?;
        let fleet = target.fleet();
        if let Some(reason) = retention::refusal(fleet)? {
            return Err(StartError::Full { reason });
        }
        let header = |job_id| {
            Ok::<_, LinkError>(JobHeader {
                job_id,
                caller: fleet.link()?.caller.clone(),
                target: target.expression().to_owned(),
                method: method.as_str().to_owned(),
                args: args.clone(),
                job_limit_ms: target.job_timeout().map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
                retry_of: retry_of.clone(),
                map: None,
                hosts: target.hosts().cloned().collect(),
            })
        };
        for _ in 0..IDS_DRAWN_MAX {
            let header = header(service::fresh_id())?;
            let message = message(&header, 1);
            let job = header.job_id.clone();
            if let Some(log) = LockedLog::create(fleet.home(), header)? {
                let letters = message.letters(target.members());
                let accept_within = target.timeout().min(fleet.config().accept_timeout);
                return Ok(Self { fleet: fleet.clone(), job, log, attempt: 1, letters, parcel, forks: target.forks(), accept_within });
            }
        }
        Err(StartError::Ids)
    }

    pub(crate) fn job_id(&self) -> &JobId {
        &self.job
    }

    /// Sends it to every host. What goes wrong on the way is found by the next `job-status`, so it is a warning here.
    pub(crate) fn run(self) {
        let Self { fleet, job, mut log, attempt, letters, parcel, forks, accept_within: within } = self;
        let link = match fleet.link() {
            Ok(link) => link,
            Err(error) => return fleet.warn(&crate::chain(&error)),
        };
        let stop = Stop::new();
        let send = |letter: Letter| {
            let (stop, parcel) = (&stop, parcel.as_deref());
            async move {
                let news = if stop.is_stopped() { None } else { Some(bring_and_deliver(&link.client, parcel, &letter, within).await) };
                (letter.host, news)
            }
        };
        let sent = fan_out(letters, forks, send, |arrivals| {
            // Without a log there is nobody to tell what the hosts say: better to leave the rest unsent.
            write_down(&mut log, attempt, arrivals).inspect_err(|_| stop.stop())
        });
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => fleet.warn(&crate::chain(&error)),
            Err(error) => fleet.warn(&crate::chain(&error)),
        }
        // What follows may take long, and the job is sent: whoever asks must not be told that it still is being sent.
        // It stays open, so that one can see by it who still works for the job.
        let _open = log.unlock();
        // So that the first who asks finds it folded; they would fold it themselves.
        if let Err(error) = store::fold(&fleet, &job) {
            fleet.warn(&crate::chain(&error));
        }
        gossip::carry_on(&fleet, link, &Stop::new(), None);
        if let Err(error) = retention::tidy(&fleet) {
            fleet.warn(&crate::chain(&error));
        }
    }
}

impl Resumption {
    /// Makes sure that hosts which the job may not have reached can never be reached by that sending, and then writes down
    /// that those and all others where it never started are sent it again.
    pub(crate) fn prepare(job: &Job) -> Result<Self, JobError> {
        let (fleet, id) = (&job.fleet, &job.id);
        let Some(mut log) = job.open_log()?.lock()? else {
            return Err(JobError::Dispatching { job: id.clone() });
        };
        let mut record = job.known()?.record;
        if record.header.map.is_some() {
            let dispatch = map::resume(job, &record.header, log)?.map(|dispatch| Errand::Map(Box::new(dispatch)));
            return Ok(Self { job: id.clone(), dispatch, left: BTreeMap::new() });
        }
        if Parcel::is_needed(&record.header.method) {
            return Err(JobError::NotKept { job: id.clone() });
        }
        fence(job, &mut record, &mut log)?;
        let roster = fleet.roster()?;
        let (hosts, left) = sort_out(&record, &roster);
        if hosts.is_empty() {
            return Ok(Self { job: id.clone(), dispatch: None, left });
        }
        let attempt = record.hosts.values().map(|host| host.attempt).max().unwrap_or(1).saturating_add(1);
        let names = hosts.iter().map(|host| host.name.clone()).collect();
        log.append(&LogLine { at: Timestamp::now(), event: Event::Resumed { attempt, hosts: names } })?;
        log.sync()?;
        let letters = message(&record.header, attempt).letters(hosts);
        let (forks, accept_within) = (fleet.config().forks, fleet.config().accept_timeout);
        let dispatch = Dispatch { fleet: fleet.clone(), job: id.clone(), log, attempt, letters, parcel: None, forks, accept_within };
        Ok(Self { job: id.clone(), dispatch: Some(dispatch.into()), left })
    }
}

/// Asks the hosts that it may or may not have reached; a host that answers has it, or never will have that sending.
fn fence(job: &Job, record: &mut JobRecord, log: &mut LockedLog) -> Result<(), JobError> {
    let mut inquiries = poll::inquiries(record, false);
    inquiries.retain(|inquiry| matches!(inquiry.question, Question::Fence(_)));
    // Even where there is nobody to ask: it also makes sure that we are the caller.
    job.ask(record, (inquiries, None), |line| log.append(line), |_| ())?.kept?;
    Ok(log.sync()?)
}

/// The hosts where it never started, and those that stay as they are although it has not ended there, with the reason.
fn sort_out<'r>(record: &JobRecord, roster: &'r Roster) -> (Vec<&'r Host>, BTreeMap<MinionName, String>) {
    let (mut hosts, mut left) = (Vec::new(), BTreeMap::new());
    for (name, host) in &record.hosts {
        match (host.state, roster.find(name)) {
            (HostState::Undelivered, Some(host)) => hosts.push(host),
            (HostState::Undelivered, None) => drop(left.insert(name.clone(), "it is no longer in hosts.toml".to_owned())),
            (HostState::Pending, _) => {
                let why = host.unreachable.as_ref().map_or("it did not answer", |contact| contact.reason.as_str());
                left.insert(name.clone(), format!("it may have the job: {why}"));
            }
            (HostState::Queued | HostState::Running | HostState::Ok | HostState::Failed, _)
            | (HostState::Denied | HostState::Cancelled | HostState::TimedOut | HostState::Lost, _) => {}
        }
    }
    (hosts, left)
}

fn message(header: &JobHeader, attempt: u32) -> Message {
    Message {
        call_id: CallId::new(header.job_id.clone(), attempt),
        caller: header.caller.clone(),
        method: format!("{ASYNC_PREFIX}{}", header.method),
        args: header.args.clone(),
        limit: header.job_limit_ms.map(Duration::from_millis),
    }
}

/// Sends it to one host, once that has what it needs there.
async fn bring_and_deliver(client: &Client, parcel: Option<&Parcel>, letter: &Letter, within: Duration) -> News {
    if let Some(parcel) = parcel
        && let Err(verdict) = parcel.bring(client, letter).await
    {
        return News::Ended(Outcome::not_run(verdict, Timestamp::now()));
    }
    deliver(client, letter, within).await
}

/// Sends it to one host, again if the answer got lost. Once it may have arrived, nothing but an acceptance settles it.
///
/// Each time the same text is sent, so that its start-before stays the first: until then, and no longer, a host remembers what it was sent.
async fn deliver(client: &Client, letter: &Letter, within: Duration) -> News {
    let ended = |silence: NoAnswer| News::Ended(Outcome::not_run(silence.into_verdict(), Timestamp::now()));
    let text = match client::written(letter) {
        Ok(text) => text,
        Err(unwritten) => return ended(unwritten),
    };
    let mut doubt = None;
    let first_sent = clock::uptime();
    for sending in 0..SENDINGS_MAX {
        if sending > 0 {
            tokio::time::sleep(RESEND_AFTER * sending).await;
        }
        if is_too_late(sending, clock::uptime().saturating_sub(first_sent)) {
            break;
        }
        match (client.send::<Accepted>(letter, &text, within, &Sent::default()).await, &doubt) {
            (Ok(accepted), _) if accepted.minion_job_id == letter.minion_job_id() => return acceptance(accepted),
            (Ok(_), _) => doubt = Some("it says that it has accepted another job".to_owned()),
            (Err(NoAnswer::Silent(reason)), _) => doubt = Some(reason),
            // It failed on the way, or does not know how far it came: the job may run there.
            (Err(NoAnswer::Refused(failure)), _) if failure.is(ErrorCode::Internal) || failure.is(ErrorCode::Lost) => {
                doubt = Some(failure.message);
            }
            (Err(silence), None) => return ended(silence),
            (Err(_), Some(_)) => {}
        }
    }
    News::Unreachable { reason: doubt.unwrap_or_default() }
}

/// Whether the `sending`th sending, from 0, must not be, so long after the first.
fn is_too_late(sending: u32, since_first: Duration) -> bool {
    sending > 0 && since_first > RESEND_WITHIN
}

/// A repeated call may find the job at its end, which `job-status` asks for: an acceptance has no result.
fn acceptance(accepted: Accepted) -> News {
    let state = if accepted.state.is_final() { HostState::Queued } else { accepted.state };
    News::Accepted { minion_job_id: accepted.minion_job_id, state }
}

/// Appends what arrives, and syncs it in groups.
fn write_down(log: &mut LockedLog, attempt: u32, arrivals: &Receiver<(MinionName, Option<News>)>) -> Result<(), LogError> {
    let mut unsynced_since: Option<Instant> = None;
    loop {
        let patience = unsynced_since.map(|since| SYNC_WITHIN.saturating_sub(since.elapsed()));
        let arrival = match patience {
            None => arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(Duration::ZERO) => Err(RecvTimeoutError::Timeout),
            Some(patience) => arrivals.recv_timeout(patience),
        };
        match arrival {
            Ok((_, None)) => {}
            Ok((host, Some(news))) => {
                log.append(&LogLine { at: Timestamp::now(), event: Event::Heard { host, attempt, news } })?;
                unsynced_since.get_or_insert_with(Instant::now);
            }
            Err(RecvTimeoutError::Timeout) => {
                log.sync()?;
                unsynced_since = None;
            }
            Err(RecvTimeoutError::Disconnected) => return log.sync(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use std::sync::{Mutex, OnceLock};

    use common::identity::Role;

    use super::*;
    use crate::fake_minion::{Lab, Reply};

    #[test]
    fn what_a_host_may_have_forgotten_is_not_sent_again() {
        let minute = Duration::from_secs(60);
        assert!(!is_too_late(0, 6 * minute) && !is_too_late(1, 5 * minute));
        assert!(is_too_late(1, 5 * minute + RESEND_AFTER));
    }

    /// However much later: the text would be written anew for another host. And with whatever key it is signed by then: the fake minion checks
    /// that it is the one of the certificate that it was shown.
    #[test]
    fn what_is_sent_again_is_the_same_text() {
        let lab = Arc::new(Lab::new());
        let letter = Arc::new(OnceLock::<Letter>::new());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (own, times, home) = (letter.clone(), seen.clone(), Arc::downgrade(&lab));
        lab.minion("web1", move |envelope| {
            times.lock().unwrap().push(envelope.start_before);
            own.get().unwrap().age();
            let lab = home.upgrade().unwrap();
            lab.certify_overlord(Role::Overlord("admin".parse().unwrap()), lab.authority(), Duration::from_secs(3600));
            Reply::Close
        });
        let fleet = lab.fleet();
        let header = JobHeader {
            job_id: service::fresh_id(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            map: None,
            hosts: vec![],
        };
        let roster = fleet.roster().unwrap();
        let letter = letter.get_or_init(|| message(&header, 1).letters(roster.iter()).pop().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let news = runtime.block_on(deliver(&fleet.link().unwrap().client, letter, Duration::from_secs(20)));
        assert!(matches!(news, News::Unreachable { .. }), "{news:?}");
        let seen = seen.lock().unwrap();
        assert!(seen.len() > 1 && seen.iter().all(|start_before| *start_before == seen[0]), "{seen:?}");
    }

    #[test]
    fn an_acceptance_never_carries_an_end() {
        let minion_job_id: common::job::MinionJobId = "54k2-9xqd-4fz1".parse().unwrap();
        for (state, noted) in [(HostState::Ok, HostState::Queued), (HostState::Running, HostState::Running)] {
            let news = acceptance(Accepted { minion_job_id: minion_job_id.clone(), state, repeated: true });
            assert_eq!(news, News::Accepted { minion_job_id: minion_job_id.clone(), state: noted });
        }
    }
}
