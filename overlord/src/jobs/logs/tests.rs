//! The output of jobs on hosts that lie, drop off, drip, and never end: what was read is whole, and the reading ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::outcome::ErrorCode;
use common::protocol::{Accepted, Arguments, Envelope};
use serde_json::{Value, json};

use super::*;
use crate::fake_minion::{Lab, Reply, ok};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a fake host is asked: the job's ids, the offsets, the size and the wait.
struct Question<'a> {
    minion_job_id: &'a str,
    call_id: &'a str,
    stdout: u64,
    max_bytes: u64,
    number: usize,
}

impl Question<'_> {
    /// The reply with such a piece of stdout.
    fn reply(&self, data: Value, next: u64, size_bytes: u64, state: &str, complete: bool) -> Reply {
        ok(json!({
            "minion_job_id": self.minion_job_id, "call_id": self.call_id, "state": state, "complete": complete,
            "stdout": { "data": data, "next": next, "size_bytes": size_bytes }, "stderr": { "data": "", "next": 0, "size_bytes": 0 },
        }))
    }

    /// The reply of a host that says so much, of as much as it says there is, and is done when it has said all.
    fn honest(&self, text: &str, state: &str, is_over: bool) -> Reply {
        let from = usize::try_from(self.stdout).unwrap();
        let to = text.len().min(from + usize::try_from(self.max_bytes).unwrap());
        self.reply(json!(text[from..to]), to as u64, text.len() as u64, state, is_over && to == text.len())
    }
}

/// A job on one host, which answers to `jobs.logs` as it likes.
fn job(lab: &Lab, answer: impl Fn(&Question<'_>) -> Reply + Send + Sync + 'static) -> Job {
    let (asked, accepted) = (AtomicUsize::new(0), std::sync::OnceLock::new());
    lab.minion("web1", move |envelope: &Envelope| match (envelope.method.as_str(), &envelope.args) {
        ("jobs.logs", Arguments::Json(args)) => {
            let (minion_job_id, call_id): &(String, String) = accepted.get().unwrap();
            answer(&Question {
                minion_job_id,
                call_id,
                stdout: args["stdout"].as_u64().unwrap(),
                max_bytes: args["max_bytes"].as_u64().unwrap(),
                number: asked.fetch_add(1, SeqCst),
            })
        }
        _ => {
            let minion_job_id = MinionJobId::derive(&"web1".parse().unwrap(), &envelope.caller, &envelope.call_id);
            accepted.get_or_init(|| (minion_job_id.to_string(), envelope.call_id.to_string()));
            Reply::Result(json!(Accepted { minion_job_id, state: HostState::Running, repeated: false }))
        }
    });
    let job = lab.fleet().target("*").unwrap().start("command.run", ["x"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while job.known().unwrap().record.hosts.values().any(|host| host.minion_job_id.is_none()) {
        assert!(Instant::now() < deadline, "the job was not accepted");
        std::thread::sleep(Duration::from_millis(5));
    }
    job
}

/// What was read, and how it ended.
fn read(job: &Job, follow: Follow) -> (Vec<u8>, LogEnd, usize) {
    let (mut read, mut end, mut outages) = (Vec::new(), None, 0);
    job.logs_each(None, follow, &Stop::new(), |event| match event {
        LogEvent::Piece { bytes, .. } => read.extend(bytes),
        LogEvent::Away { .. } => outages += 1,
        LogEvent::End { end: told, .. } => end = Some(told),
    })
    .unwrap();
    (read, end.unwrap(), outages)
}

fn unread(end: LogEnd) -> String {
    match end {
        LogEnd::Unread(reason) => reason,
        LogEnd::Read(state) => panic!("it was read to the end: {state}"),
    }
}

#[test]
fn a_host_that_lies_is_not_believed_and_not_asked_again() {
    type Lie = fn(&Question<'_>) -> Reply;
    let lies: [(Lie, &str); 8] = [
        (|q| q.reply(json!("abc"), 0, 3, "running", false), "end at 0"),
        (|q| q.reply(json!("abc"), u64::MAX, 3, "running", false), "end at 18446744073709551615"),
        (|q| q.reply(json!({ "base64": "no base64" }), 3, 3, "running", false), "not a piece of stdout"),
        (|q| q.reply(json!("x".repeat(70_000)), 70_000, 70_000, "running", false), "when it was asked for"),
        (|q| q.reply(json!(""), 0, 3, "running", true), "nothing more will come"),
        (|q| q.reply(json!(""), 0, 3, "ok", false), "does not give it"),
        (|q| Question { minion_job_id: "0000-0000-0001", ..*q }.reply(json!(""), 0, 0, "ok", true), "another job"),
        (|q| Question { call_id: "0000-0000-0001", ..*q }.reply(json!(""), 0, 0, "ok", true), "another job"),
    ];
    for (lie, told) in lies {
        let lab = Lab::new();
        let job = job(&lab, move |question| {
            assert!(question.number < 2, "it was asked again");
            lie(question)
        });
        for follow in [Follow::SoFar, Follow::ToTheEnd] {
            let (read, end, outages) = read(&job, follow);
            let reason = unread(end);
            assert!(reason.contains(told) && read.is_empty() && outages == 0, "{reason}");
        }
    }
}

#[test]
fn output_without_end_is_read_as_far_as_the_limit() {
    let lab = Lab::new();
    std::fs::write(lab.dir.path().join("overlord.toml"), "logs_max_bytes = 200000\n").unwrap();
    let endless = |q: &Question<'_>| {
        let text = "x".repeat(usize::try_from(q.max_bytes).unwrap());
        q.reply(json!(text), q.stdout + q.max_bytes, u64::MAX, "running", false)
    };
    let job = job(&lab, endless);
    for follow in [Follow::SoFar, Follow::ToTheEnd] {
        let (read, end, _) = read(&job, follow);
        assert!(unread(end).contains("logs_max_bytes") && (200_000..300_000).contains(&read.len()), "{}", read.len());
    }
}

#[test]
fn a_host_that_drips_is_not_listened_to_for_ever() {
    let lab = Lab::new();
    let job = job(&lab, |q| q.reply(json!("x"), q.stdout + 1, 10_000, "running", false));
    let (read, end, _) = read(&job, Follow::SoFar);
    assert!(unread(end).contains("does not give it") && read.len() < 20, "{}", read.len());
}

/// A job that goes on writing is read as far as it had come, and one that holds back the half of a letter, too.
#[test]
fn what_is_there_at_first_is_all_that_is_read_of_a_job_that_runs() {
    let lab = Lab::new();
    let growing = job(&lab, |q| {
        let text = "abcdefgh".repeat(10_000 * (1 + q.number));
        q.honest(&text, "running", false)
    });
    let (text, end, _) = read(&growing, Follow::SoFar);
    assert_eq!(end, LogEnd::Read(HostState::Running));
    assert!((80_000..80_000 + 64 * 1024).contains(&text.len()), "{}", text.len());
    let lab = Lab::new();
    let half =
        job(&lab, |q| if q.stdout == 0 { q.reply(json!("a"), 1, 3, "running", false) } else { q.reply(json!(""), 1, 3, "running", false) });
    assert_eq!(read(&half, Follow::SoFar), (b"a".to_vec(), LogEnd::Read(HostState::Running), 0));
}

#[test]
fn a_host_that_drops_off_is_read_on_where_it_was_and_told_of_once_each_time() {
    let lab = Lab::new();
    let text = "0123456789".repeat(20_000);
    let whole = text.clone();
    let job = job(&lab, move |q| match q.number {
        1 | 3 | 4 => Reply::Close,
        2 => Reply::Raw(503, Vec::new()),
        6 => Reply::Error(ErrorCode::LimitReached, "busy"),
        7 => Reply::Raw(200, b"garbage".to_vec()),
        _ => q.honest(&text, "ok", true),
    });
    let (read, end, outages) = read(&job, Follow::ToTheEnd);
    assert_eq!((end, outages), (LogEnd::Read(HostState::Ok), 2));
    assert!(read == whole.as_bytes(), "{}", read.len());
}

#[test]
fn a_host_that_is_away_too_long_is_given_up() {
    let lab = Lab::new();
    std::fs::write(lab.dir.path().join("overlord.toml"), "lost_after = \"500ms\"\n").unwrap();
    let job = job(&lab, |q| if q.number == 0 { q.honest("begun", "running", false) } else { Reply::Close });
    let (read, end, outages) = read(&job, Follow::ToTheEnd);
    assert_eq!((read.as_slice(), outages), (&b"begun"[..], 1));
    assert!(unread(end).contains("connection was closed"));
}

#[test]
fn what_is_refused_for_good_is_not_asked_for_again() {
    let lab = Lab::new();
    let job = job(&lab, |q| {
        assert!(q.number == 0, "it was asked again");
        Reply::Error(ErrorCode::UnknownMethod, "no method jobs.logs")
    });
    let (_, end, outages) = read(&job, Follow::ToTheEnd);
    assert_eq!((unread(end).as_str(), outages), ("no method jobs.logs", 0));
}

#[test]
fn who_stops_hears_no_end_and_no_host_is_waited_for() {
    let lab = Lab::new();
    let job = job(&lab, |q| if q.number == 0 { q.honest("begun", "running", false) } else { Reply::Hang });
    let stop = Stop::new();
    let mut events = Vec::new();
    let begun = Instant::now();
    job.logs_each(None, Follow::ToTheEnd, &stop, |event| {
        stop.stop();
        events.push(event);
    })
    .unwrap();
    assert!(begun.elapsed() < PATIENCE / 3, "{:?}", begun.elapsed());
    assert!(matches!(events.as_slice(), [LogEvent::Piece { .. }]), "{events:?}");
}

#[test]
fn what_there_is_no_room_for_is_left_out_and_said() {
    let host: MinionName = "web1".parse().unwrap();
    let piece = |bytes: &[u8]| LogEvent::Piece { host: host.clone(), stream: Stream::Stdout, bytes: bytes.to_vec(), next: 0 };
    let mut gathered = Gathered { room_bytes: 5, ..Gathered::default() };
    for event in [piece(b"abc"), piece(b"def"), piece(b"g"), LogEvent::End { host: host.clone(), end: LogEnd::Read(HostState::Ok) }] {
        gathered.take(event);
    }
    let logs = &gathered.hosts[&host];
    assert_eq!((logs.stdout.as_slice(), &gathered.cut), (&b"abc"[..], &vec![host.clone()]));
    assert!(matches!(&logs.end, Some(LogEnd::Unread(reason)) if reason.contains("jsonl")), "{logs:?}");
}
