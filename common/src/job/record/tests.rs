#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
use super::*;
use crate::job::CallId;
use crate::outcome::Verdict;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn host() -> MinionName {
    "web1".parse().unwrap()
}

fn header() -> JobHeader {
    JobHeader {
        job_id: "54k2-9xqd-4fz1".parse().unwrap(),
        caller: "admin".parse().unwrap(),
        target: "*".into(),
        method: "test.ping".into(),
        args: Arguments::default(),
        job_limit_ms: None,
        retry_of: None,
        map: None,
        hosts: vec![host()],
    }
}

fn heard(attempt: u32, news: News) -> Event {
    Event::Heard { host: host(), attempt, news }
}

fn ended(verdict: Verdict) -> Event {
    heard(1, News::Ended(Outcome::not_run(verdict, at(9))))
}

fn fold(events: &[Event]) -> JobRecord {
    let mut record = JobRecord::new(header(), at(0));
    for (second, event) in (1..).zip(events) {
        let line = LogLine { at: at(second), event: event.clone() };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<LogLine>(&text).unwrap(), line);
        record.apply(&line);
    }
    record
}

fn accepted() -> Event {
    let call = CallId::new(header().job_id, 1);
    let minion_job_id = MinionJobId::derive(&host(), &header().caller, &call);
    heard(1, News::Accepted { minion_job_id, state: HostState::Queued })
}

fn going() -> Event {
    heard(1, News::Going { state: HostState::Running, started_at: Some(at(5)), progress: None })
}

fn again() -> Event {
    Event::Resumed { attempt: 2, hosts: vec![host()] }
}

#[test]
fn what_it_says_of_its_progress_is_the_last_that_it_said_and_outlives_its_end() {
    let says = |fraction| {
        let progress = Some(Progress::new(fraction, "", at(6)));
        heard(1, News::Going { state: HostState::Running, started_at: Some(at(5)), progress })
    };
    let record = fold(&[accepted(), says(0.2), says(0.5), going()]);
    let fraction = |record: &JobRecord| record.hosts[&host()].progress.as_ref().map(Progress::fraction);
    assert_eq!((fraction(&record), record.fraction()), (Some(0.5), Some(0.5)));
    let lost = fold(&[accepted(), says(0.2), ended(Verdict::lost("gone"))]);
    assert_eq!((fraction(&lost), lost.fraction()), (Some(0.2), Some(1.0)));
    let again = fold(&[accepted(), says(0.2), ended(Verdict::undelivered("never")), again()]);
    assert_eq!((fraction(&again), again.fraction()), (None, Some(0.0)), "another sending has said nothing yet");
}

#[test]
fn a_result_keeps_the_minion_job_id_and_is_never_overwritten() {
    let ok = ended(Verdict::Ok { result: json!(0) });
    let record = fold(&[accepted(), going(), ok, ended(Verdict::lost("late news")), going(), accepted()]);
    let host = &record.hosts[&host()];
    assert_eq!(host.state, HostState::Ok);
    assert!(host.minion_job_id.is_some());
    assert_eq!(record.state(false), JobState::Finished);
}

#[test]
fn events_in_either_order_add_up_to_the_same() {
    let ok = || ended(Verdict::Ok { result: json!(1) });
    let orders = [vec![accepted(), going(), ok()], vec![ok(), going(), accepted()], vec![going(), accepted(), ok(), ok()]];
    for events in orders {
        let record = fold(&events);
        assert_eq!(record.hosts[&host()].state, HostState::Ok);
        assert!(record.hosts[&host()].minion_job_id.is_some());
    }
}

#[test]
fn lost_is_mended_by_the_result() {
    let record = fold(&[accepted(), ended(Verdict::lost("rebooted")), ended(Verdict::Ok { result: json!(1) })]);
    assert_eq!(record.hosts[&host()].state, HostState::Ok);
}

#[test]
fn lost_by_silence_is_mended_by_a_host_that_comes_back_and_runs_it_still() {
    let silent = || heard(1, News::GivenUp { reason: "silent".into() });
    let record = fold(&[accepted(), going(), silent(), going()]);
    let host = &record.hosts[&host()];
    assert_eq!((host.state, &host.outcome), (HostState::Running, &None));
    assert_eq!(record.state(false), JobState::Partial);
    let own_word = fold(&[accepted(), silent(), ended(Verdict::lost("killed")), silent(), going()]);
    let outcome = own_word.hosts[&self::host()].outcome.clone().unwrap();
    assert_eq!(outcome.verdict, Verdict::lost("killed"), "its own word is better than a guess, and older than what was still under way");
}

#[test]
fn unreachable_is_a_note_since_the_first_time_and_goes_when_the_host_answers() {
    let miss = |why: &str| heard(1, News::Unreachable { reason: why.into() });
    let record = fold(&[accepted(), going(), miss("cut"), miss("still cut")]);
    let noted = &record.hosts[&host()];
    assert_eq!(noted.state, HostState::Running);
    assert_eq!(noted.unreachable, Some(Contact { since: at(3), reason: "cut".into() }));
    assert_eq!(fold(&[accepted(), miss("cut"), going()]).hosts[&host()].unreachable, None);
}

#[test]
fn only_what_never_started_is_sent_again() {
    let record = fold(&[ended(Verdict::undelivered("fenced")), again()]);
    assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Pending, 2));
    assert_eq!(fold(&[ended(Verdict::lost("killed")), again()]).hosts[&host()].state, HostState::Lost);
    assert_eq!(fold(&[accepted(), again()]).hosts[&host()].state, HostState::Queued);
}

#[test]
fn a_sending_whose_line_is_missing_is_known_by_its_news_or_doubted() {
    let fenced = || ended(Verdict::undelivered("fenced"));
    let again = |news| Event::Heard { host: host(), attempt: 2, news };
    let ok = || News::Ended(Outcome::not_run(Verdict::Ok { result: json!(1) }, at(9)));
    let record = fold(&[fenced(), again(ok())]);
    assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Ok, 2));
    assert_eq!(fold(&[accepted(), again(ok())]).hosts[&host()].state, HostState::Queued);
    assert_eq!(fold(&[self::again(), again(ok())]).hosts[&host()].state, HostState::Ok, "that it was undelivered is missing");

    let mut record = fold(&[fenced()]);
    assert_eq!(record.doubt_sending(), [host()]);
    assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Pending, 2));
    assert!(fold(&[ended(Verdict::lost("killed"))]).doubt_sending().is_empty());
}

#[test]
fn what_ran_has_an_id_though_nothing_says_that_it_was_accepted() {
    let ran = Outcome { started_at: Some(at(5)), ..Outcome::not_run(Verdict::Ok { result: json!(1) }, at(9)) };
    let record = fold(&[heard(1, News::Ended(ran))]);
    let id = MinionJobId::derive(&host(), &header().caller, &CallId::new(header().job_id, 1));
    assert_eq!(record.hosts[&host()].minion_job_id, Some(id));
    assert_eq!(fold(&[ended(Verdict::undelivered("off"))]).hosts[&host()].minion_job_id, None);
}

#[test]
fn late_news_of_an_earlier_sending_changes_nothing() {
    let fenced = || ended(Verdict::undelivered("fenced"));
    assert_eq!(fold(&[fenced(), again(), fenced()]).hosts[&host()].state, HostState::Pending);
}
