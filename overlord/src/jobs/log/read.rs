//! Reading a job's log, whatever became of its bytes: a line is what was written, or it is passed over and told of. Of a log that a newer version has
//! marked as one that this must not read, nothing is told but that.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use common::format::Stamp;
use common::job::LogLine;
use common::seal::{self, SealError};

use super::{FORMAT, LogError};

/// The longest line that is read. It holds one answer of a host, with all its quotes escaped.
const LINE_MAX_BYTES: u64 = 256 << 20;
/// A last line that has no end yet may be being written. One that is the same after so long was cut off.
const TORN_AFTER: Duration = Duration::from_millis(50);
/// How often it is read again because it had grown: then it is left to the next reader.
const READ_AGAIN_MAX: usize = 10;

/// A line that cannot be believed. Whatever is left of it, it may have told that hosts were sent the job again: of two lines between which
/// the line's end was damaged one is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Where, and what is wrong, for a person.
    pub(crate) problem: String,
    /// It is the first line, which says what the job is.
    pub(crate) is_header: bool,
    /// It is whole, and tells of what this version does not know: of no sending then, as a newer version marks what must not be passed over.
    pub(crate) is_unknown: bool,
}

/// Reads the whole lines from byte `from` on, and gives the byte behind the last of them. A line that cannot be believed is given as
/// [`Damage`], and so is what is left of a last line that was cut off.
///
/// # Errors
/// It cannot be read, or a line says that it has a newer format.
pub(crate) fn read(path: &Path, from: u64, mut each: impl FnMut(Result<LogLine, Damage>)) -> Result<u64, LogError> {
    let failed = |source| LogError { doing: "reading", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut offset = if is_line_end(&mut file, from).map_err(failed)? { from } else { 0 };
    for _ in 0..READ_AGAIN_MAX {
        let (end, torn) = whole_lines(path, &mut file, offset, &mut each).map_err(failed)?;
        offset = end;
        let length = end + u64::try_from(torn.len()).unwrap_or(0);
        if torn.is_empty() {
            return Ok(offset);
        }
        sleep(TORN_AFTER);
        if file.metadata().map_err(failed)?.len() == length {
            each(Err(Damage::at(path, offset, &SealError::Torn)));
            return Ok(offset);
        }
    }
    Ok(offset)
}

/// A log that was cut, and then written to, has no line's end where there was one.
fn is_line_end(file: &mut File, at: u64) -> io::Result<bool> {
    let Some(before) = at.checked_sub(1) else { return Ok(true) };
    file.seek(SeekFrom::Start(before))?;
    let mut byte = [0];
    Ok(file.read(&mut byte)? == 1 && byte == *b"\n")
}

/// Gives the byte behind the last whole line, and what lies behind that.
pub(crate) fn whole_lines(
    path: &Path,
    file: &mut (impl Read + Seek),
    from: u64,
    each: &mut impl FnMut(Result<LogLine, Damage>),
) -> io::Result<(u64, Vec<u8>)> {
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file);
    let (mut offset, mut line) = (from, Vec::new());
    loop {
        line.clear();
        let length = reader.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let is_whole = line.last() == Some(&b'\n') || length == LINE_MAX_BYTES;
        if !is_whole {
            return Ok((offset, line));
        }
        if !line.trim_ascii().is_empty() {
            each(understood(path, offset, &line)?);
        }
        offset += length;
    }
}

/// What a line says. Which format the log has stands in its first line, and in one that raises it, which is of a kind that was not known before.
fn understood(path: &Path, offset: u64, line: &[u8]) -> io::Result<Result<LogLine, Damage>> {
    let read = seal::open(line);
    let may_raise_format = offset == 0 || matches!(read, Err(SealError::Content(_)));
    if may_raise_format && let Ok(stamp) = seal::open::<Stamp>(line) {
        FORMAT.age("it", &stamp).map_err(io::Error::other)?;
    }
    Ok(read.map_err(|error| Damage::at(path, offset, &error)))
}

impl Damage {
    fn at(path: &Path, offset: u64, why: &SealError) -> Self {
        let (path, is_header) = (path.display(), offset == 0);
        let is_unknown = !is_header && matches!(why, SealError::Content(_));
        let problem = if is_unknown {
            format!(
                "{path}: the line at byte {offset} is passed over, as a newer overlord has written it, and this version does not know it: {why}"
            )
        } else {
            format!("{path}: the line at byte {offset} is damaged and passed over: {why}")
        };
        Self { problem, is_header, is_unknown }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use std::fs;

    use common::job::{Event, News};
    use jiff::Timestamp;

    use super::*;

    fn sealed(event: Event) -> Vec<u8> {
        seal::seal(&LogLine { at: Timestamp::UNIX_EPOCH, event }).unwrap()
    }

    fn heard(reason: &str) -> Vec<u8> {
        sealed(Event::Heard { host: "web1".parse().unwrap(), attempt: 1, news: News::Unreachable { reason: reason.into() } })
    }

    fn resumed() -> Vec<u8> {
        sealed(Event::Resumed { attempt: 2, hosts: vec!["web1".parse().unwrap()] })
    }

    fn damages(bytes: &[u8]) -> (Vec<LogLine>, Vec<Damage>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let (mut lines, mut damages) = (Vec::new(), Vec::new());
        read(file.path(), 0, |line| match line {
            Ok(line) => lines.push(line),
            Err(damage) => damages.push(damage),
        })
        .unwrap();
        (lines, damages)
    }

    #[test]
    fn every_flipped_bit_costs_its_lines_and_no_other_and_is_told() {
        let whole = [heard("a"), resumed(), heard("b")].join(&b'\n');
        let whole = [whole, b"\n".to_vec()].concat();
        let (all, _) = damages(&whole);
        for bit in (0..whole.len() * 8 - 8).step_by(3) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (lines, damages) = damages(&flipped);
            assert!(lines.iter().all(|line| all.contains(line)) && !damages.is_empty(), "bit {bit}");
            assert!(damages[0].problem.contains("at byte "));
        }
    }

    #[test]
    fn a_last_line_that_was_cut_off_is_told() {
        let whole = [heard("a"), heard("b"), vec![]].join(&b'\n');
        let (lines, damages) = damages(&whole[..whole.len() - 5]);
        assert_eq!((lines.len(), damages.len()), (1, 1));
        assert!(damages[0].problem.contains("torn"), "{damages:?}");
    }

    #[test]
    fn what_a_newer_version_adds_is_passed_over_and_what_it_marks_is_refused() {
        let body = |more: serde_json::Value| seal::seal(&more).unwrap();
        let unknown = body(serde_json::json!({ "at": "2026-01-01T00:00:00Z", "event": "paused", "by": "9.0.0" }));
        let text = [heard("a"), unknown, heard("b"), Vec::new()].join(&b'\n');
        let (lines, damages) = damages(&text);
        assert_eq!((lines.len(), damages.len()), (2, 1));
        assert!(damages[0].is_unknown && damages[0].problem.contains("a newer overlord has written it"), "{damages:?}");
        let raised = body(serde_json::json!({ "at": "2026-01-01T00:00:00Z", "event": "format", "format": 3, "by": "9.0.0" }));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [heard("a"), raised, Vec::new()].join(&b'\n')).unwrap();
        let error = crate::chain(&read(file.path(), 0, |_| ()).unwrap_err());
        assert!(error.contains("it has format 3, which overlord 9.0.0 has written") && error.contains("install overlord 9.0.0"), "{error}");
    }
}
