//! Jobs against minions that lose answers, forget jobs and go away: the answer must stay true.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::sync::{Arc, Mutex};

use common::job::{CallId, HostRecord, JobState, MinionJobId};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{Accepted, Envelope, JobProgress, JobReport};
use jiff::Timestamp;
use serde_json::json;

use super::dispatcher::Resumption;
use super::*;
use crate::fake_minion::{Lab, Reply, ok};

mod kept;

const PATIENCE: Duration = Duration::from_secs(20);

/// A minion that accepts jobs and says of each that it has come to `progress`.
struct FakeHost {
    name: MinionName,
    progress: Mutex<JobProgress>,
    /// The method and the call id of each call.
    calls: Mutex<Vec<(String, String)>>,
    jobs: Mutex<BTreeMap<MinionJobId, CallId>>,
}

impl FakeHost {
    fn start(lab: &Lab, name: &str, answer: impl Fn(&Self, &Envelope) -> Option<Reply> + Send + Sync + 'static) -> Arc<Self> {
        let progress = Mutex::new(ended(Verdict::Ok { result: json!(0) }));
        let host = Arc::new(Self { name: name.parse().unwrap(), progress, calls: Mutex::default(), jobs: Mutex::default() });
        let fake = host.clone();
        lab.minion(name, move |envelope| {
            fake.calls.lock().unwrap().push((envelope.method.clone(), envelope.call_id.to_string()));
            answer(&fake, envelope).unwrap_or_else(|| fake.usual(envelope))
        });
        host
    }

    fn usual(&self, envelope: &Envelope) -> Reply {
        let derived = |call: &CallId| MinionJobId::derive(&self.name, &envelope.caller, call);
        match (envelope.method.as_str(), &envelope.args) {
            ("jobs.status" | "jobs.cancel", Arguments::Json(args)) => {
                let id: MinionJobId = args["id"].as_str().unwrap().parse().unwrap();
                match self.jobs.lock().unwrap().get(&id) {
                    Some(call) => self.report(id, call, self.progress.lock().unwrap().clone()),
                    None => Reply::Error(ErrorCode::UnknownJob, "no such job"),
                }
            }
            ("jobs.delete", Arguments::Json(args)) => {
                let id: MinionJobId = args["id"].as_str().unwrap().parse().unwrap();
                match self.jobs.lock().unwrap().remove(&id) {
                    Some(call) => self.report(id, &call, self.progress.lock().unwrap().clone()),
                    None => Reply::Error(ErrorCode::UnknownJob, "no such job"),
                }
            }
            ("jobs.fence", Arguments::Json(args)) => {
                let call: CallId = args["call_id"].as_str().unwrap().parse().unwrap();
                let is_known = self.jobs.lock().unwrap().contains_key(&derived(&call));
                let fenced = ended(Verdict::Undelivered { error: Failure::new(ErrorCode::Fenced, "fenced") });
                self.report(derived(&call), &call, if is_known { self.progress.lock().unwrap().clone() } else { fenced })
            }
            _ => {
                let minion_job_id = derived(&envelope.call_id);
                self.jobs.lock().unwrap().insert(minion_job_id.clone(), envelope.call_id.clone());
                Reply::Result(json!(Accepted { minion_job_id, state: HostState::Queued, repeated: false }))
            }
        }
    }

    fn report(&self, minion_job_id: MinionJobId, call_id: &CallId, progress: JobProgress) -> Reply {
        ok(json!(JobReport {
            minion_job_id,
            call_id: call_id.clone(),
            caller: "admin".parse().unwrap(),
            method: "test.ping".into(),
            accepted_at: Timestamp::UNIX_EPOCH,
            progress,
        }))
    }

    fn methods(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(method, _)| method.clone()).collect()
    }

    fn is_at(&self, progress: JobProgress) {
        *self.progress.lock().unwrap() = progress;
    }
}

fn ended(verdict: Verdict) -> JobProgress {
    JobProgress::Ended(Outcome::not_run(verdict, Timestamp::UNIX_EPOCH))
}

fn running() -> JobProgress {
    JobProgress::Going { state: HostState::Running, started_at: Some(Timestamp::UNIX_EPOCH), progress: None }
}

/// Starts a job, and returns when its dispatcher is through.
fn dispatched(fleet: &Fleet) -> Job {
    let job = fleet.target("*").unwrap().start("some.method", ()).unwrap();
    wait_for_dispatcher(&job);
    job
}

fn wait_for_dispatcher(job: &Job) {
    let deadline = Instant::now() + PATIENCE;
    while log::is_dispatching(job.fleet.home(), &job.id).unwrap() {
        assert!(Instant::now() < deadline, "the dispatcher does not end");
        thread::sleep(Duration::from_millis(10));
    }
}

fn host(status: &JobStatus, name: &str) -> HostRecord {
    status.record.hosts[&name.parse().unwrap()].clone()
}

#[test]
fn a_job_goes_its_way_and_then_nobody_is_asked() {
    let lab = Lab::new();
    let fast = FakeHost::start(&lab, "web1", |_, _| None);
    let slow = FakeHost::start(&lab, "web2", |_, _| None);
    slow.is_at(running());
    let job = dispatched(&lab.fleet());
    let status = job.status().unwrap();
    assert_eq!((status.state(), host(&status, "web1").state), (JobState::Partial, HostState::Ok));
    let id = host(&status, "web2").minion_job_id.unwrap();
    slow.is_at(ended(Verdict::Ok { result: json!("late") }));
    let status = job.wait(PATIENCE).unwrap();
    assert_eq!(status.state(), JobState::Finished);
    assert_eq!(host(&status, "web2").minion_job_id.unwrap(), id);
    let asked = (fast.calls.lock().unwrap().len(), slow.calls.lock().unwrap().len());
    assert_eq!(lab.fleet().job(job.id().as_str()).unwrap().status().unwrap(), status);
    assert_eq!((fast.calls.lock().unwrap().len(), slow.calls.lock().unwrap().len()), asked);
    assert_eq!(fast.methods(), ["async.some.method", "jobs.status"]);
}

#[test]
fn an_answer_that_got_lost_is_asked_for_again_under_the_same_id() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |fake, _| (fake.calls.lock().unwrap().len() == 1).then_some(Reply::Close));
    let job = dispatched(&lab.fleet());
    assert_eq!(job.status().unwrap().state(), JobState::Finished);
    let calls = web1.calls.lock().unwrap().clone();
    let sending = ("async.some.method".to_owned(), job.id().to_string());
    assert_eq!(calls[..2], [sending.clone(), sending]);
}

#[test]
fn a_host_that_never_said_is_fenced_and_then_sent_it_again() {
    let lab = Lab::new();
    let is_deaf = |envelope: &Envelope| envelope.method.starts_with("async.") && !envelope.call_id.to_string().contains('/');
    let web1 = FakeHost::start(&lab, "web1", move |_, envelope| is_deaf(envelope).then_some(Reply::Close));
    let web2 = FakeHost::start(&lab, "web2", |_, _| None);
    let job = dispatched(&lab.fleet());
    let known = job.known().unwrap();
    assert_eq!((host(&known, "web1").state, known.state()), (HostState::Pending, JobState::Partial));
    assert!(host(&known, "web1").unreachable.is_some());

    let status = job.status().unwrap();
    assert_eq!((status.state(), host(&status, "web1").state), (JobState::Finished, HostState::Undelivered));
    let Resumption { dispatch, left, .. } = Resumption::prepare(&job).unwrap();
    assert!(left.is_empty());
    assert!(matches!(Resumption::prepare(&job), Err(JobError::Dispatching { .. })));
    dispatch.unwrap().run();
    let status = job.status().unwrap();
    assert_eq!((status.state(), host(&status, "web1").state, host(&status, "web1").attempt), (JobState::Finished, HostState::Ok, 2));
    assert_eq!(web1.methods().iter().filter(|method| *method == "jobs.fence").count(), 1);
    assert_eq!(web2.methods().iter().filter(|method| method.starts_with("async.")).count(), 1);
    assert!(Resumption::prepare(&job).unwrap().dispatch.is_none());
}

#[test]
fn a_fence_finds_the_job_that_arrived_after_all() {
    let lab = Lab::new();
    // It takes the job, and its answers are lost.
    FakeHost::start(&lab, "web1", |fake, envelope| {
        let is_sending = envelope.method.starts_with("async.");
        is_sending.then(|| drop(fake.usual(envelope))).map(|()| Reply::Close)
    });
    let job = dispatched(&lab.fleet());
    let status = job.status().unwrap();
    assert_eq!((status.state(), host(&status, "web1").state), (JobState::Finished, HostState::Ok));
    assert!(host(&status, "web1").minion_job_id.is_some());
}

#[test]
fn a_minion_that_fails_to_say_whether_it_started_the_job_is_asked_again() {
    for code in [ErrorCode::Internal, ErrorCode::Lost] {
        let lab = Lab::new();
        // It takes the job, and says that it failed.
        FakeHost::start(&lab, "web1", move |fake, envelope| {
            let is_sending = envelope.method.starts_with("async.");
            is_sending.then(|| drop(fake.usual(envelope))).map(|()| Reply::Error(code, "the disk is full"))
        });
        let job = dispatched(&lab.fleet());
        assert_eq!(host(&job.known().unwrap(), "web1").state, HostState::Pending);
        assert_eq!(host(&job.status().unwrap(), "web1").state, HostState::Ok);
    }
}

#[test]
fn cancelling_tells_a_host_that_holds_it_without_our_knowing() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |fake, envelope| {
        if envelope.method == "jobs.cancel" {
            fake.is_at(ended(Verdict::Cancelled { error: Failure::new(ErrorCode::Cancelled, "by admin") }));
        }
        let is_sending = envelope.method.starts_with("async.");
        is_sending.then(|| drop(fake.usual(envelope))).map(|()| Reply::Close)
    });
    web1.is_at(running());
    let job = dispatched(&lab.fleet());
    let told = job.cancel(None).unwrap();
    assert_eq!(told[&"web1".parse().unwrap()], Cancellation::Told(HostState::Cancelled));
    assert!(web1.methods().contains(&"jobs.cancel".to_owned()));
    assert_eq!(host(&job.known().unwrap(), "web1").state, HostState::Cancelled);
}

#[test]
fn what_one_host_says_is_kept_before_the_last_has_answered() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, _| None);
    FakeHost::start(&lab, "web2", |_, envelope| envelope.method.starts_with("jobs.").then_some(Reply::Hang));
    std::fs::write(lab.dir.path().join("overlord.toml"), "poll_timeout = \"20s\"").unwrap();
    let job = dispatched(&lab.fleet());
    let asking = job.clone();
    thread::spawn(move || asking.status());
    let deadline = Instant::now() + PATIENCE / 2;
    while host(&job.known().unwrap(), "web1").state != HostState::Ok {
        assert!(Instant::now() < deadline, "the answer is not kept");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_status_beside_a_sending_that_has_just_begun_fences_nothing() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    let job = dispatched(&lab.fleet());
    // Whoever asks finds the store in use until the sending has begun.
    let (locked, is_locked) = std::sync::mpsc::channel();
    let holder = std::fs::OpenOptions::new().append(true).create(true).open(lab.dir.path().join("jobs.lock")).unwrap();
    let holder = nix::fcntl::Flock::lock(holder, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let asking = job.clone();
    let asked = thread::spawn(move || {
        locked.send(()).unwrap();
        asking.known().unwrap()
    });
    is_locked.recv().unwrap();
    thread::sleep(Duration::from_millis(200));
    let log = log::JobLog::open(job.fleet.home(), job.id()).unwrap().lock().unwrap().unwrap();
    drop(holder);
    assert!(asked.join().unwrap().is_dispatching);
    drop((log, web1));
}

#[test]
fn silence_and_refusal_are_told_apart_and_a_host_that_left_the_roster_is_lost_until_it_is_back() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, envelope| envelope.method.starts_with("jobs.").then_some(Reply::Error(ErrorCode::Denied, "no rule")));
    FakeHost::start(&lab, "web2", |_, _| None).is_at(running());
    std::fs::write(lab.dir.path().join("overlord.toml"), "lost_after = \"1ms\"").unwrap();
    let job = dispatched(&lab.fleet());
    let roster = std::fs::read_to_string(lab.dir.path().join("hosts.toml")).unwrap();
    std::fs::write(lab.dir.path().join("hosts.toml"), roster.replace("web2", "web3")).unwrap();
    job.status().unwrap();
    thread::sleep(Duration::from_millis(10));
    let status = job.status().unwrap();
    let words = host(&status, "web1").outcome.unwrap().verdict.error().unwrap().message.clone();
    assert!(words.contains("has refused to say: no rule"), "{words}");
    let left = host(&status, "web2");
    let words = left.outcome.unwrap().verdict.error().unwrap().message.clone();
    assert!(left.state == HostState::Lost && words.contains("no longer in hosts.toml"), "{words}");
    assert!(status.state().has_ended(), "{status:?}");
    std::fs::write(lab.dir.path().join("hosts.toml"), roster).unwrap();
    assert_eq!(host(&job.status().unwrap(), "web2").state, HostState::Running);
}

#[test]
fn refusals_and_dead_hosts_end_at_once() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, _| Some(Reply::Error(ErrorCode::Denied, "no rule")));
    lab.enlist("web2", "127.0.0.1:1");
    let status = dispatched(&lab.fleet()).known().unwrap();
    assert_eq!((host(&status, "web1").state, host(&status, "web2").state), (HostState::Denied, HostState::Undelivered));
    assert_eq!(status.record.exit_bits(), 6);
}

#[test]
fn a_host_that_forgot_the_job_is_lost_until_it_remembers() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    let job = dispatched(&lab.fleet());
    let remembered = std::mem::take(&mut *web1.jobs.lock().unwrap());
    let status = job.status().unwrap();
    assert_eq!((status.state(), host(&status, "web1").state), (JobState::Lost, HostState::Lost));
    assert!(host(&status, "web1").outcome.unwrap().verdict.error().unwrap().message.contains("retention"));
    *web1.jobs.lock().unwrap() = remembered;
    assert_eq!(job.status().unwrap().state(), JobState::Finished);
}

#[test]
fn a_host_that_says_itself_that_the_job_is_lost_is_believed() {
    let lab = Lab::new();
    let lost =
        |envelope: &Envelope| envelope.method.starts_with("jobs.").then_some(Reply::Error(ErrorCode::Lost, "its outcome was damaged"));
    FakeHost::start(&lab, "web1", move |_, envelope| lost(envelope));
    let status = dispatched(&lab.fleet()).status().unwrap();
    assert_eq!(host(&status, "web1").state, HostState::Lost);
    assert_eq!(host(&status, "web1").outcome.unwrap().verdict.error().unwrap().message, "its outcome was damaged");
}

#[test]
fn a_host_that_goes_away_is_noted_then_lost_and_hides_no_other() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, envelope| envelope.method.starts_with("jobs.").then_some(Reply::Hang));
    FakeHost::start(&lab, "web2", |_, _| None);
    std::fs::write(lab.dir.path().join("overlord.toml"), "poll_timeout = \"300ms\"\nlost_after = \"1s\"").unwrap();
    let job = dispatched(&lab.fleet());
    let status = job.status().unwrap();
    assert_eq!((host(&status, "web1").state, host(&status, "web2").state), (HostState::Queued, HostState::Ok));
    let noted = host(&status, "web1").unreachable.unwrap();
    assert!(noted.reason.contains("no answer came within 300ms"), "{noted:?}");
    let length = std::fs::metadata(job.fleet.home().job_log(job.id())).unwrap().len();
    assert_eq!(host(&job.status().unwrap(), "web1").unreachable, Some(noted));
    assert_eq!(std::fs::metadata(job.fleet.home().job_log(job.id())).unwrap().len(), length, "what is not new is not written");
    let status = job.wait(PATIENCE).unwrap();
    assert_eq!((status.state(), host(&status, "web1").state), (JobState::Finished, HostState::Lost));
}

#[test]
fn a_host_that_left_the_roster_hides_no_other_and_no_roster_hides_nothing() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, _| None).is_at(running());
    let job = dispatched(&lab.fleet());
    std::fs::write(lab.dir.path().join("hosts.toml"), "").unwrap();
    let status = job.status().unwrap();
    assert!(host(&status, "web1").unreachable.unwrap().reason.contains("no longer in hosts.toml"));
    std::fs::remove_file(lab.dir.path().join("hosts.toml")).unwrap();
    let (fleet, warnings) = lab.fleet_with_warnings();
    assert_eq!(fleet.job(job.id().as_str()).unwrap().status().unwrap(), status);
    assert!(warnings.recv_timeout(PATIENCE).unwrap().contains("hosts.toml"));
}

#[test]
fn another_caller_sets_no_fence() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, envelope| envelope.method.starts_with("async.").then_some(Reply::Close));
    let job = dispatched(&lab.fleet());
    let authority = certs::authority::Authority::open(&lab.dir.path().join("certs")).unwrap();
    let other = common::identity::Role::Overlord("other".parse().unwrap());
    lab.certify_overlord(other, &authority, Duration::from_secs(60));
    let (fleet, warnings) = lab.fleet_with_warnings();
    let job = fleet.job(job.id().as_str()).unwrap();
    assert_eq!(host(&job.status().unwrap(), "web1").state, HostState::Pending);
    assert!(warnings.recv_timeout(PATIENCE).unwrap().contains("was started by admin"));
    assert!(matches!(Resumption::prepare(&job), Err(JobError::OtherCaller { .. })));
    assert!(!web1.methods().contains(&"jobs.fence".to_owned()));
}

#[test]
fn cancelling_tells_those_who_hold_it() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |fake, envelope| {
        if envelope.method == "jobs.cancel" {
            fake.is_at(ended(Verdict::Cancelled { error: Failure::new(ErrorCode::Cancelled, "by admin") }));
        }
        None
    });
    web1.is_at(running());
    lab.enlist("web2", "127.0.0.1:1");
    let job = dispatched(&lab.fleet());
    let (name, dead) = ("web1".parse().unwrap(), "web2".parse().unwrap());
    assert!(matches!(job.cancel(Some(&"web3".parse().unwrap())), Err(JobError::NotAMember { .. })));
    let told = job.cancel(None).unwrap();
    assert_eq!((&told[&name], &told[&dead]), (&Cancellation::Told(HostState::Cancelled), &Cancellation::HadEnded(HostState::Undelivered)));
    assert_eq!(host(&job.known().unwrap(), "web1").state, HostState::Cancelled);
}

#[test]
fn an_id_may_be_cut_short_as_long_as_it_is_one_jobs() {
    let lab = Lab::new();
    lab.enlist("web1", "127.0.0.1:1");
    let fleet = lab.fleet();
    let (one, two) = (dispatched(&fleet), dispatched(&fleet));
    assert_eq!(fleet.job(&one.id().as_str().to_uppercase().replace('-', "")).unwrap().id(), one.id());
    let error = fleet.job(one.id().as_str().get(..3).unwrap()).unwrap_err();
    assert!(
        matches!(&error, JobError::Ambiguous { ids, .. } if ids.len() == 2) && error.to_string().contains(two.id().as_str()),
        "{error}"
    );
    assert!(matches!(fleet.job("zzzz"), Err(JobError::Unknown { .. })));
    assert!(matches!(fleet.job(""), Err(JobError::Id(_))));
    assert!(matches!(fleet.job("no id"), Err(JobError::Id(_))));
    assert_eq!(fleet.jobs().unwrap().len(), 2);
}
