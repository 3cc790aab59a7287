//! Jobs that are kept, deleted and run again.

use std::collections::BTreeSet;

use common::job::retention::{EndedJob, Holdings};

use super::*;

#[test]
fn a_job_is_deleted_once_it_has_ended_whatever_its_hosts_say() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    FakeHost::start(&lab, "web2", |_, envelope| {
        (envelope.method == "jobs.delete").then_some(Reply::Error(ErrorCode::TooEarly, "kept until later"))
    });
    let web3 = FakeHost::start(&lab, "web3", |_, _| None);
    web1.is_at(running());
    let fleet = lab.fleet();
    let job = dispatched(&fleet);
    let error = job.delete().unwrap_err();
    assert!(matches!(error, JobError::NotEnded { .. }) && error.to_string().contains("job-cancel"), "{error}");
    web1.is_at(ended(Verdict::Ok { result: json!(0) }));
    let _ = job.status().unwrap();
    web3.jobs.lock().unwrap().clear();

    let log = log::JobLog::open(fleet.home(), job.id()).unwrap().lock().unwrap().unwrap();
    assert!(matches!(job.delete(), Err(JobError::Dispatching { .. })));
    drop(log);
    let told = job.delete().unwrap();
    let fate = |name: &str| told[&name.parse::<MinionName>().unwrap()].clone();
    assert_eq!((fate("web1"), fate("web3")), (Deletion::Deleted, Deletion::WasGone));
    assert_eq!(fate("web2"), Deletion::Kept("kept until later".to_owned()));
    assert!(matches!(job.status(), Err(JobError::Unknown { .. })));
    assert!(matches!(job.delete(), Err(JobError::Unknown { .. })));
    assert!(matches!(fleet.job(job.id().as_str()), Err(JobError::Unknown { .. })));
    assert!(fleet.jobs().unwrap().is_empty());
}

#[test]
fn a_job_whose_hosts_cannot_be_told_is_deleted_all_the_same() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    let job = dispatched(&lab.fleet());
    let _ = job.status().unwrap();
    let other = dispatched(&lab.fleet());
    let _ = other.status().unwrap();
    web1.jobs.lock().unwrap().clear();
    let authority = certs::authority::Authority::open(&lab.dir.path().join("certs")).unwrap();
    lab.certify_overlord(common::identity::Role::Overlord("other".parse().unwrap()), &authority, Duration::from_secs(60));
    let told = lab.fleet().job(other.id().as_str()).unwrap().delete().unwrap();
    assert!(matches!(&told[&"web1".parse().unwrap()], Deletion::Kept(reason) if reason.contains("started by admin")), "{told:?}");

    std::fs::remove_file(lab.dir.path().join("certs/overlord.key")).unwrap();
    let told = lab.fleet().job(job.id().as_str()).unwrap().delete().unwrap();
    assert!(matches!(&told[&"web1".parse().unwrap()], Deletion::Kept(reason) if reason.contains("overlord.key")), "{told:?}");
    assert!(lab.fleet().jobs().unwrap().is_empty());
}

#[test]
fn a_store_that_is_full_of_young_jobs_takes_on_no_more() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    std::fs::write(lab.dir.path().join("overlord.toml"), "[retention]\ncount = 1").unwrap();
    let fleet = lab.fleet();
    let job = dispatched(&fleet);
    let _ = job.status().unwrap();
    let sent = web1.methods().len();
    let error = fleet.target("*").unwrap().start("some.method", ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StartError::Full { .. }), "{text}");
    assert!(["retention.count is 1", "overlord.toml", "job-delete", "60 minutes"].iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(web1.methods().len(), sent);
    job.delete().unwrap();
    dispatched(&fleet);
}

#[test]
fn a_job_that_cannot_be_given_up_keeps_no_other() {
    let lab = Lab::new();
    lab.enlist("web1", "127.0.0.1:1");
    let (fleet, warnings) = lab.fleet_with_warnings();
    let (first, second) = (dispatched(&fleet), dispatched(&fleet));
    // Stands for a log that cannot be opened, whoever tries.
    let _ = first.known().unwrap();
    std::fs::remove_file(fleet.home().job_log(first.id())).unwrap();
    std::fs::create_dir(fleet.home().job_log(first.id())).unwrap();
    let bytes = std::fs::metadata(fleet.home().job_log(second.id())).unwrap().len();
    let old = |job: &Job, days: u32| EndedJob {
        id: job.id().clone(),
        age: Duration::from_secs(86_400) * days,
        proven: Duration::from_secs(86_400) * days,
        bytes,
    };
    let held = Holdings { count: 2, bytes: 2 * bytes };
    retention::sweep_of(&fleet, vec![old(&first, 50), old(&second, 40)], held).unwrap();
    assert!(matches!(second.known(), Err(JobError::Unknown { .. })));
    assert!(warnings.try_iter().any(|text| text.contains(first.id().as_str()) && text.contains("cannot be given up")));
}

#[test]
fn a_log_that_cannot_be_looked_at_is_no_unknown_job() {
    let lab = Lab::new();
    lab.enlist("web1", "127.0.0.1:1");
    let fleet = lab.fleet();
    let job = dispatched(&fleet);
    let path = fleet.home().job_log(job.id());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    assert!(matches!(fleet.job(job.id().as_str()), Err(JobError::Log(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(fleet.job(job.id().as_str()), Err(JobError::Unknown { .. })));
}

#[test]
fn a_reason_as_long_as_a_book_is_cut_before_it_is_kept() {
    const BOOK: &str = include_str!("kept.rs");
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, envelope| {
        let code = if envelope.method.starts_with("async.") { ErrorCode::Denied } else { ErrorCode::Internal };
        Some(Reply::Error(code, BOOK))
    });
    FakeHost::start(&lab, "web2", |_, envelope| {
        let told = ok_of(Verdict::Failed { error: Failure::new(ErrorCode::Failed, BOOK) });
        envelope.method.starts_with("jobs.").then_some(told)
    });
    let job = dispatched(&lab.fleet());
    let status = job.status().unwrap();
    let denied = host(&status, "web1").outcome.unwrap().verdict.error().unwrap().message.clone();
    let noted = host(&status, "web2").unreachable.unwrap().reason;
    for reason in [denied, noted] {
        assert!((1000..1100).contains(&reason.chars().count()) && reason.ends_with('…'), "{reason}");
    }
    assert!(std::fs::metadata(job.fleet.home().job_log(job.id())).unwrap().len() < 6000);
}

fn ok_of(verdict: Verdict) -> Reply {
    Reply::Result(json!(Outcome::not_run(verdict, Timestamp::UNIX_EPOCH)))
}

/// The jobs that are known to have ended, and those that are not, without asking any host.
fn standing(fleet: &Fleet) -> (usize, Vec<(JobId, Timestamp)>) {
    let standing = store::standing(fleet, PATIENCE).unwrap();
    (standing.ended.len(), standing.open)
}

#[test]
fn jobs_that_nobody_asks_about_end_a_bounded_number_at_a_time() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    let fleet = lab.fleet();
    for _ in 0..23 {
        dispatched(&fleet);
    }
    let (ended, open) = standing(&fleet);
    assert_eq!((ended, open.len()), (0, 23));
    let minute = Duration::from_secs(60);
    assert_eq!(retention::ask_after(&fleet, &open, minute, 0), 0, "they are left to those who started them");
    let sent = log::JobLog::open(fleet.home(), &open[0].0).unwrap().lock().unwrap().unwrap();
    assert_eq!(retention::ask_after(&fleet, &open, Duration::ZERO, 0), 20);
    assert_eq!((standing(&fleet).0, standing(&fleet).1.len()), (20, 3));
    drop(sent);
    let (_, open) = standing(&fleet);
    let by_another = std::fs::File::open(fleet.home().asking_lock()).unwrap();
    by_another.lock().unwrap();
    assert_eq!(retention::ask_after(&fleet, &open, Duration::ZERO, 0), 0, "somebody else does");
    drop(by_another);
    assert_eq!(retention::ask_after(&fleet, &open, Duration::ZERO, 3), 3, "wherever it begins");
    assert_eq!(standing(&fleet).0, 23);
    assert_eq!(web1.methods().iter().filter(|method| *method == "jobs.status").count(), 23);
}

#[test]
fn before_a_job_is_refused_those_that_are_kept_are_asked_after() {
    let lab = Lab::new();
    FakeHost::start(&lab, "web1", |_, _| None);
    std::fs::write(lab.dir.path().join("overlord.toml"), "[retention]\ncount = 1").unwrap();
    let fleet = lab.fleet();
    dispatched(&fleet);
    assert!(matches!(fleet.target("*").unwrap().start("some.method", ()), Err(StartError::Full { .. })));
    assert_eq!(standing(&fleet).0, 1, "it has its end, from which its hour counts");
}

#[test]
fn a_job_is_run_again_where_it_came_to_that_end() {
    let lab = Lab::new();
    let web1 = FakeHost::start(&lab, "web1", |_, _| None);
    web1.is_at(ended(Verdict::Failed { error: Failure::new(ErrorCode::Failed, "no") }));
    let web2 = FakeHost::start(&lab, "web2", |_, _| None);
    let job = dispatched(&lab.fleet());
    let failed = BTreeSet::from([HostState::Failed]);
    let again = job.retry(&failed).unwrap();
    wait_for_dispatcher(&again);
    let record = again.known().unwrap().record;
    assert_eq!((record.header.retry_of.as_ref(), record.hosts.len()), (Some(job.id()), 1));
    assert_eq!(record.header.target, format!("@job:{}:failed", job.id()));
    assert_eq!(web2.methods().iter().filter(|method| method.starts_with("async.")).count(), 1);
    assert!(matches!(job.retry(&BTreeSet::from([HostState::Lost])), Err(RetryError::NoHost { .. })));
}
