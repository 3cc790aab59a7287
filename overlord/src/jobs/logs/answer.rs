//! What a host answered to `jobs.logs`, checked against what it was asked: offsets that do not add up, or another job's output, must not
//! be taken for an answer. Pure.

use common::job::{HostState, JobId, MinionJobId};
use common::outcome::value_bytes;
use common::protocol::{JobLogs, LogPiece, Stream};

/// How many bytes at most a host keeps back: a letter of UTF-8 that is not whole yet.
pub(super) const KEPT_BACK_MAX_BYTES: u64 = 3;

/// What a host was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) job: JobId,
    pub(crate) minion_job_id: MinionJobId,
    /// It is a job that the job has submitted, under a call id of its own.
    pub(crate) is_child: bool,
    /// From where on, of each of [`Stream::ALL`].
    pub(crate) offsets: [u64; 2],
    /// At most so many bytes of each.
    pub(crate) max_bytes: u32,
}

/// A sound answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) state: HostState,
    pub(crate) complete: bool,
    /// Of each of [`Stream::ALL`]: what it carried from the offset on.
    pub(crate) bytes: [Vec<u8>; 2],
    /// The offsets behind that.
    pub(crate) offsets: [u64; 2],
    /// How much there is.
    pub(crate) sizes_bytes: [u64; 2],
}

impl Asked {
    /// The answer in `logs`.
    ///
    /// # Errors
    /// It is not one to what was asked. The message is for a person, and says what is wrong with it.
    pub(crate) fn check(&self, logs: JobLogs) -> Result<Answer, String> {
        if logs.minion_job_id != self.minion_job_id || !self.is_child && *logs.call_id.job() != self.job {
            return Err("it answered about another job".to_owned());
        }
        if logs.complete && !logs.state.is_final() {
            return Err(format!("it says that the job is {} and that nothing more will come", logs.state));
        }
        let sizes_bytes = [logs.stdout.size_bytes, logs.stderr.size_bytes];
        let [from_stdout, from_stderr] = self.offsets;
        let (next_stdout, stdout) = self.piece(Stream::Stdout, from_stdout, logs.stdout)?;
        let (next_stderr, stderr) = self.piece(Stream::Stderr, from_stderr, logs.stderr)?;
        Ok(Answer { state: logs.state, complete: logs.complete, bytes: [stdout, stderr], offsets: [next_stdout, next_stderr], sizes_bytes })
    }

    fn piece(&self, stream: Stream, from: u64, piece: LogPiece) -> Result<(u64, Vec<u8>), String> {
        let stream = stream.as_str();
        let bytes = value_bytes(piece.data).ok_or_else(|| format!("it answered something that is not a piece of {stream}"))?;
        if bytes.len() as u64 > u64::from(self.max_bytes) {
            return Err(format!("it answered {} bytes of {stream} when it was asked for {}", bytes.len(), self.max_bytes));
        }
        let end = from.saturating_add(bytes.len() as u64);
        if piece.next != end {
            return Err(format!("it says that {} bytes of {stream} from {from} on end at {}", bytes.len(), piece.next));
        }
        Ok((end, bytes))
    }
}

impl Answer {
    /// There was something in it.
    pub(crate) fn is_news(&self) -> bool {
        self.bytes.iter().any(|bytes| !bytes.is_empty())
    }

    /// It carried less than so many bytes of a stream that has more.
    pub(super) fn is_shorter_than(&self, min_bytes: u64) -> bool {
        let mut streams = self.bytes.iter().zip(self.offsets).zip(self.sizes_bytes);
        streams.any(|((bytes, offset), size)| (bytes.len() as u64) < min_bytes && size.saturating_sub(offset) > KEPT_BACK_MAX_BYTES)
    }

    /// Each stream was read as far as `sizes_bytes`.
    pub(crate) fn has_reached(&self, sizes_bytes: [u64; 2]) -> bool {
        self.missing_bytes(sizes_bytes) == 0
    }

    /// What is missing of each stream is no more than a host may keep back while the job runs.
    pub(crate) fn has_all_but_a_letter(&self, sizes_bytes: [u64; 2]) -> bool {
        self.missing_bytes(sizes_bytes) <= KEPT_BACK_MAX_BYTES && !self.state.is_final()
    }

    /// Of the stream of which more is missing.
    fn missing_bytes(&self, sizes_bytes: [u64; 2]) -> u64 {
        self.offsets.iter().zip(sizes_bytes).map(|(offset, size)| size.saturating_sub(*offset)).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::{Value, json};

    fn asked() -> Asked {
        Asked {
            job: "54k2-9xqd-4fz1".parse().unwrap(),
            minion_job_id: "0000-0000-0001".parse().unwrap(),
            is_child: false,
            offsets: [10, 0],
            max_bytes: 4,
        }
    }

    fn logs(stdout: Value, next: u64) -> JobLogs {
        serde_json::from_value(json!({
            "minion_job_id": "0000-0000-0001", "call_id": "54k2-9xqd-4fz1/2", "state": "running", "complete": false,
            "stdout": { "data": stdout, "next": next, "size_bytes": 20 }, "stderr": { "data": "", "next": 0, "size_bytes": 0 },
        }))
        .unwrap()
    }

    #[test]
    fn an_answer_to_what_was_asked_is_taken() {
        let answer = asked().check(logs(json!({ "base64": "/wA=" }), 12)).unwrap();
        assert_eq!((answer.bytes.clone(), answer.offsets), ([b"\xff\0".to_vec(), vec![]], [12, 0]));
        assert!(answer.is_news() && !answer.has_reached(answer.sizes_bytes) && answer.has_reached([12, 0]));
        assert!(answer.has_all_but_a_letter([15, 0]) && !answer.has_all_but_a_letter([16, 0]));
    }

    #[test]
    fn what_does_not_add_up_is_no_answer() {
        let said = |logs| asked().check(logs).unwrap_err();
        for (data, next, problem) in [
            (json!("ab"), 9, "end at 9"),
            (json!("ab"), 13, "end at 13"),
            (json!(""), 0, "end at 0"),
            (json!("abcde"), 15, "5 bytes of stdout when it was asked for 4"),
            (json!({ "base64": "?" }), 10, "not a piece of stdout"),
            (json!(7), 10, "not a piece of stdout"),
        ] {
            let problem_said = said(logs(data, next));
            assert!(problem_said.contains(problem), "{problem_said}");
        }
        assert!(said(JobLogs { minion_job_id: "0000-0000-0002".parse().unwrap(), ..logs(json!(""), 10) }).contains("another job"));
        assert!(said(JobLogs { call_id: "54k2-9xqd-4fz2".parse().unwrap(), ..logs(json!(""), 10) }).contains("another job"));
        assert!(said(JobLogs { complete: true, ..logs(json!(""), 10) }).contains("running and that nothing more"));
    }
}
