//! The items of a map: JSON lines, all looked at before any is sent, and then read one after the other. They are kept in a file without a name, so
//! that there may be any number of them, and that nobody changes them meanwhile. It knows nothing of hosts.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Seek as _, Write as _};

use common::protocol::Arguments;
use serde_json::{Value, json};

/// Lines that are wrong and told one by one.
const WRONG_TOLD_MAX: usize = 10;
/// How much of what is wrong with a line is told.
const PROBLEM_MAX_LETTERS: usize = 200;

/// Why there are no items. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum ItemsError {
    /// They cannot be read.
    #[error("reading the items from {name}: {source}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// There is no place to keep them.
    #[error("keeping the items in {place}: {source}")]
    Keep {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// There are more than are kept.
    #[error("{name}: {problem}; nothing was sent")]
    TooMany {
        /// The file.
        name: String,
        /// Which limit, and what to do.
        problem: String,
    },
    /// What was kept is gone, or is something else.
    #[error("the items in {place} cannot be used: {problem}")]
    Kept {
        /// Where.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// Lines are no JSON, or cannot be sent.
    #[error("{name}: {problems}; nothing was sent")]
    Wrong {
        /// The file.
        name: String,
        /// Which lines, and what is wrong with each.
        problems: String,
    },
    /// There are none.
    #[error("{name} holds no items: each line is to be one, as JSON")]
    Nothing {
        /// The file.
        name: String,
    },
}

/// The items, from the next on.
#[derive(Debug)]
pub(crate) struct Items {
    file: BufReader<File>,
    count: u64,
    crc: u32,
}

/// What one line is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    pub(crate) args: Arguments,
    pub(crate) bytes: usize,
}

impl Items {
    /// Takes in all lines of `from`, which is the file `name`.
    ///
    /// # Errors
    /// One is no item of at most `line_max_bytes`, or something fails.
    pub(crate) fn take_in(name: &str, from: impl BufRead, line_max_bytes: u32) -> Result<Self, ItemsError> {
        let place = format!("a file of {}, which TMPDIR names", std::env::temp_dir().display());
        let file = tempfile::tempfile().map_err(|source| ItemsError::Keep { place: place.clone(), source })?;
        Self::take_in_to((file, &place), name, from, (line_max_bytes, u64::MAX))
    }

    /// The same, into this empty file, at most so many bytes of items together.
    pub(super) fn take_in_to(
        (file, place): (File, &str),
        name: &str,
        mut from: impl BufRead,
        (line_max_bytes, max_bytes): (u32, u64),
    ) -> Result<Self, ItemsError> {
        let keep = |source| ItemsError::Keep { place: place.to_owned(), source };
        let (mut kept, mut bytes, mut crc) = (BufWriter::new(file), 0_u64, crc32fast::Hasher::new());
        let (mut line, mut count, mut wrong, mut problems) = (Vec::new(), 0_u64, 0_usize, Vec::new());
        loop {
            line.clear();
            let most = u64::from(line_max_bytes).saturating_add(1);
            let read = from.by_ref().take(most).read_until(b'\n', &mut line);
            if read.map_err(|source| ItemsError::Read { name: name.to_owned(), source })? == 0 {
                break;
            }
            let is_whole = line.ends_with(b"\n") || line.len() as u64 <= u64::from(line_max_bytes);
            let checked = if is_whole { arguments(&line).map(drop) } else { Err(too_long(line_max_bytes)) };
            if !is_whole {
                from.skip_until(b'\n').map_err(|source| ItemsError::Read { name: name.to_owned(), source })?;
            }
            count += 1;
            match checked {
                Err(problem) => {
                    wrong += 1;
                    if wrong <= WRONG_TOLD_MAX {
                        problems.push(format!("line {count}: {problem}"));
                    }
                }
                Ok(()) => {
                    if !line.ends_with(b"\n") {
                        line.push(b'\n');
                    }
                    bytes += line.len() as u64;
                    if bytes > max_bytes {
                        let problem = format!("more than the {max_bytes} bytes that items_max_bytes in overlord.toml lets a map have");
                        return Err(ItemsError::TooMany { name: name.to_owned(), problem });
                    }
                    crc.update(&line);
                    kept.write_all(&line).map_err(keep)?;
                }
            }
        }
        if let more @ 1.. = wrong.saturating_sub(problems.len()) {
            problems.push(format!("and {more} more lines"));
        }
        match (count, problems.is_empty()) {
            (0, _) => Err(ItemsError::Nothing { name: name.to_owned() }),
            (_, false) => Err(ItemsError::Wrong { name: name.to_owned(), problems: problems.join("; ") }),
            (count, true) => {
                let mut file = kept.into_inner().map_err(|error| keep(error.into_error()))?;
                file.rewind().map_err(keep)?;
                Ok(Self { file: BufReader::new(file), count, crc: crc.finalize() })
            }
        }
    }

    /// What was kept in this file: `count` items with that checksum.
    pub(super) fn kept(mut file: File, place: &str, count: u64, crc: u32) -> Result<Self, ItemsError> {
        let wrong = |problem: String| ItemsError::Kept { place: place.to_owned(), problem };
        let (mut reader, mut hasher) = (BufReader::new(&file), crc32fast::Hasher::new());
        loop {
            let read = reader.fill_buf().map_err(|error| wrong(error.to_string()))?;
            if read.is_empty() {
                break;
            }
            hasher.update(read);
            let length = read.len();
            reader.consume(length);
        }
        if hasher.finalize() != crc {
            return Err(wrong("they are not those that the map was started with".to_owned()));
        }
        file.rewind().map_err(|error| wrong(error.to_string()))?;
        Ok(Self { file: BufReader::new(file), count, crc })
    }

    /// The checksum of all of them.
    pub(super) fn crc(&self) -> u32 {
        self.crc
    }

    /// The file that holds them.
    pub(super) fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// How many there are in all.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The next one; none behind the last.
    ///
    /// # Errors
    /// What was kept cannot be read any more.
    pub(crate) fn read(&mut self) -> io::Result<Option<Read>> {
        let mut line = Vec::new();
        if self.file.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let args = arguments(&line).map_err(io::Error::other)?;
        Ok(Some(Read { args, bytes: line.len() }))
    }
}

fn too_long(line_max_bytes: u32) -> String {
    format!("it is longer than the {line_max_bytes} bytes that call_max_bytes in overlord.toml lets a call have")
}

/// The arguments that a line stands for: a list by position, an object by name, any other value as the only one.
fn arguments(line: &[u8]) -> Result<Arguments, String> {
    let args = match serde_json::from_slice(line) {
        Ok(args @ (Value::Array(_) | Value::Object(_))) => Arguments::Json(args),
        Ok(value) => Arguments::Json(json!([value])),
        Err(_) if line.trim_ascii().is_empty() => return Err("it is empty".to_owned()),
        Err(error) => {
            // It is always said of line 1, which is none of the file's.
            let problem: String = error.to_string().chars().take(PROBLEM_MAX_LETTERS).collect();
            return Err(format!("no JSON: {}", problem.replace(" at line 1 column ", " at column ")));
        }
    };
    args.check_depth().map(|()| args)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn items(text: &str) -> Result<Vec<Arguments>, String> {
        let mut items = Items::take_in("items", text.as_bytes(), 20).map_err(|error| error.to_string())?;
        let read: Vec<_> = std::iter::from_fn(|| items.read().unwrap()).map(|read| read.args).collect();
        assert_eq!(read.len() as u64, items.count());
        Ok(read)
    }

    #[test]
    fn each_line_is_an_item() {
        let json = Arguments::Json;
        assert_eq!(
            items("1\n[2,3]\n{\"a\":4}\r\nnull\n\"x\"").unwrap(),
            [json(json!([1])), json(json!([2, 3])), json(json!({ "a": 4 })), json(json!([null])), json(json!(["x"]))]
        );
    }

    #[test]
    fn lines_that_are_wrong_are_named_by_their_numbers() {
        let error = items("1\nx\n\n2 3\n4").unwrap_err();
        assert!(error.contains("line 2: no JSON") && error.contains("line 3: it is empty") && error.contains("line 4: no JSON"), "{error}");
        assert!(items("").unwrap_err().contains("holds no items"));
        let error = items(&"?\n".repeat(100)).unwrap_err();
        assert!(error.contains("line 10:") && !error.contains("line 11:") && error.contains("and 90 more lines"), "{error}");
    }

    #[test]
    fn a_line_has_a_largest_size_and_is_not_read_on() {
        let fits = "\"aaaaaaaaaaaaaaaaa\"";
        assert_eq!(items(&format!("{fits}\n1")).unwrap().len(), 2);
        let error = items(&format!("1\n\"{}\"\n?\n", "a".repeat(1000))).unwrap_err();
        assert!(
            error.contains("line 2: it is longer than the 20 bytes that call_max_bytes") && error.contains("line 3: no JSON"),
            "{error}"
        );
    }
}
