//! The overlord's job logs: lines of events, whatever became of their bytes, and the record they add up to.

use std::collections::BTreeSet;

use common::identity::MinionName;
use common::job::{Event, JobRecord, LogLine, News};
use common::seal;

use super::{hides, sealed};

/// The most lines that are looked at: the rest is more of the same.
const LINES_MAX: usize = 64;

/// The bytes as a log. A line that is not sealed is what a line holds.
pub fn job_log(data: &[u8]) {
    let is_sealed = |line: &[u8]| line.starts_with(b"{\"crc32\":");
    let lines = data.split(|byte| *byte == b'\n').take(LINES_MAX);
    let text = lines.map(|line| if is_sealed(line) { line.to_vec() } else { sealed(line) }).collect::<Vec<_>>().join(&b'\n');
    let Ok((lines, end)) = overlord::fuzzing::log_lines(&text) else { return };
    assert!(lines.len() <= LINES_MAX && end <= text.len() as u64);
    for problem in lines.iter().filter_map(|line| line.as_ref().err()) {
        assert!(!problem.contains('\n'), "{problem}");
    }
    let lines: Vec<LogLine> = lines.into_iter().filter_map(Result::ok).collect();
    lines.iter().for_each(can_be_kept);
    folds(&lines);
}

/// What is appended reads back as it is. News that cannot be kept are told of instead; nothing else comes of them.
fn can_be_kept(line: &LogLine) {
    let kept = match overlord::fuzzing::kept(line) {
        Ok(kept) => seal::open::<LogLine>(&kept).expect("what is kept can be read"),
        Err(error) => return assert!(hides(format!("{line:?}").as_bytes()) || is_deep(line), "{error}: {line:?}"),
    };
    if kept != *line {
        let Event::Heard { news: News::Unreachable { reason }, .. } = &kept.event else { panic!("{line:?} was kept as {kept:?}") };
        assert!(reason.starts_with("what it said cannot be kept"), "{reason}");
    }
}

/// Arguments of a job may stand deeper in the log's line than anywhere else.
fn is_deep(line: &LogLine) -> bool {
    matches!(&line.event, Event::Created(header) if header.args.check_depth().is_err())
}

/// The record has the hosts of its first line and no others, each with an outcome if it has ended, and reading the log again adds nothing.
fn folds(lines: &[LogLine]) {
    let Some((LogLine { at, event: Event::Created(header) }, rest)) = lines.split_first() else { return };
    let mut record = JobRecord::new(header.clone(), *at);
    for line in rest {
        let before = record.clone();
        let about: BTreeSet<&MinionName> = record.apply(line).iter().collect();
        for (host, now) in &record.hosts {
            assert!(about.contains(host) || before.hosts.get(host) == Some(now), "{host} changed by {line:?}");
        }
        is_sound(&record);
    }
    let mut again = record.clone();
    for line in rest {
        again.apply(line);
    }
    assert_eq!(again, record, "a log that is read again says nothing new");
    again.doubt_sending();
    is_sound(&again);
}

fn is_sound(record: &JobRecord) {
    assert!(record.hosts.keys().collect::<BTreeSet<_>>() == record.header.hosts.iter().collect::<BTreeSet<_>>());
    for (name, host) in &record.hosts {
        let ended = host.outcome.as_ref().map(|outcome| outcome.verdict.state());
        assert_eq!(ended, Some(host.state).filter(|state| state.is_final()), "{name}: {host:?}");
        assert!(host.attempt >= 1 || host.state == common::job::HostState::Pending, "{name}: {host:?}");
    }
    let (finished, state) = (record.finished_at(), record.state(false));
    assert!(finished.is_none() || state.has_ended(), "{state:?}");
    assert!(record.exit_bits() <= 6);
}
