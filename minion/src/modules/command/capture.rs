//! What a command wrote, kept within a bound, and made to fit into a result.

use common::outcome::bytes_value;
use serde_json::{Map, Value, json};

/// `{"base64":""}`, rounded up.
const BASE64_FRAME_BYTES: usize = 16;
/// The quotes of a string.
const TEXT_FRAME_BYTES: usize = 2;

/// The beginning of what a stream carried, and how much it was in all.
#[derive(Debug, Default)]
pub(super) struct Capture {
    head: Vec<u8>,
    total_bytes: u64,
}

impl Capture {
    /// Adds `bytes`; what goes beyond `max_bytes` is counted and not kept.
    pub(super) fn add(&mut self, bytes: &[u8], max_bytes: usize) {
        let room = max_bytes.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.total_bytes += bytes.len() as u64;
    }

    /// The last line with something in it.
    pub(super) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.head);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }

    /// As much of it as takes at most `room_bytes` of JSON, and how many bytes of the stream that is.
    fn fit(&self, room_bytes: usize) -> (Value, u64) {
        let (head, is_whole) = (self.head.as_slice(), self.head.len() as u64 == self.total_bytes);
        let kept = match text(head, is_whole) {
            Some(text) => text_prefix(text, room_bytes),
            None => {
                let length = room_bytes.saturating_sub(BASE64_FRAME_BYTES) / 4 * 3;
                let prefix = head.get(..length).unwrap_or(head);
                // What is not text as a whole may begin with text.
                text(prefix, prefix.len() == head.len() && is_whole).map_or(prefix, |text| text_prefix(text, room_bytes))
            }
        };
        (bytes_value(kept), kept.len() as u64)
    }

    fn json_bytes(&self) -> usize {
        match text(&self.head, self.head.len() as u64 == self.total_bytes) {
            Some(text) => TEXT_FRAME_BYTES + text.chars().map(json_length).sum::<usize>(),
            None => BASE64_FRAME_BYTES + self.head.len().div_ceil(3) * 4,
        }
    }
}

/// `stdout` and `stderr` as fields of a result that take at most `room_bytes` of JSON together. If one had to be cut, the field `cut`
/// says how many bytes it had.
pub(super) fn fields(stdout: &Capture, stderr: &Capture, room_bytes: usize) -> Map<String, Value> {
    let (wants_out, wants_err, half) = (stdout.json_bytes(), stderr.json_bytes(), room_bytes / 2);
    let out_room = if wants_err <= half { room_bytes - wants_err } else { wants_out.min(half) };
    let err_room = room_bytes - wants_out.min(out_room);
    let (mut fields, mut cut) = (Map::new(), Map::new());
    for (name, stream, room) in [("stdout", stdout, out_room), ("stderr", stderr, err_room)] {
        let (value, kept_bytes) = stream.fit(room);
        fields.insert(name.to_owned(), value);
        if kept_bytes < stream.total_bytes {
            cut.insert(name.to_owned(), json!(stream.total_bytes));
        }
    }
    if !cut.is_empty() {
        fields.insert("cut".to_owned(), Value::Object(cut));
    }
    fields
}

/// `bytes` as text; if they are not the whole, a letter that was cut through at their end is left out.
fn text(bytes: &[u8], is_whole: bool) -> Option<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if !is_whole && error.error_len().is_none() => {
            bytes.get(..error.valid_up_to()).and_then(|sound| str::from_utf8(sound).ok())
        }
        Err(_) => None,
    }
}

/// The longest beginning of `text` that takes at most `room_bytes` as a JSON string.
fn text_prefix(text: &str, room_bytes: usize) -> &[u8] {
    let mut used = TEXT_FRAME_BYTES;
    let end = text.char_indices().find(|(_, letter)| {
        used += json_length(*letter);
        used > room_bytes
    });
    let end = end.map_or(text.len(), |(at, _)| at);
    text.as_bytes().get(..end).unwrap_or_default()
}

/// How many bytes serde_json writes for `letter` within a string.
fn json_length(letter: char) -> usize {
    match letter {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        letter if letter < ' ' => 6,
        letter => letter.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn capture(bytes: &[u8], max_bytes: usize) -> Capture {
        let mut capture = Capture::default();
        bytes.chunks(7).for_each(|chunk| capture.add(chunk, max_bytes));
        capture
    }

    #[test]
    fn what_fits_is_whole_and_what_does_not_is_marked() {
        let (out, err) = (capture(b"out\n", 100), capture(b"err", 100));
        assert_eq!(Value::Object(fields(&out, &err, 100)), json!({ "stdout": "out\n", "stderr": "err" }));
        let long = capture(&[b'x'; 300], 100);
        let fields = fields(&long, &err, 60);
        assert_eq!(fields["stdout"].as_str().unwrap().len(), 60 - 5 - 2);
        assert_eq!((&fields["stderr"], &fields["cut"]), (&json!("err"), &json!({ "stdout": 300 })));
    }

    #[test]
    fn whatever_it_is_it_stays_within_the_room() {
        let mut control_then_binary = vec![1_u8; 500];
        control_then_binary.push(0xff);
        for bytes in [vec![b'a'; 500], vec![1_u8; 500], vec![0xff; 500], control_then_binary, "ü\u{1b}\"".repeat(90).into_bytes(), vec![]]
        {
            for room in [4, 40, 41, 42, 100, 1000, 5000] {
                for max in [50, 51, 499, 10_000] {
                    let fields = fields(&capture(&bytes, max), &capture(&bytes, max), room);
                    let length = fields["stdout"].to_string().len() + fields["stderr"].to_string().len();
                    assert!(length <= room.max(32), "{length} bytes in a room of {room}: {fields:?}");
                    assert_eq!(
                        fields.contains_key("cut"),
                        fields["stdout"] != bytes_value(&bytes) || fields["stderr"] != bytes_value(&bytes)
                    );
                }
            }
        }
    }

    #[test]
    fn a_letter_is_never_cut_through() {
        let value = capture("aüü".as_bytes(), 4).fit(100).0;
        assert_eq!(value, json!("aü"));
        assert_eq!(capture(b"a\xff", 100).fit(100).0, json!({ "base64": "Yf8=" }));
    }
}
