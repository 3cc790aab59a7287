//! Texts as a person is shown them: an error with its causes, and what somebody else has said, with nothing in it that steers a terminal.

use std::borrow::Cow;
use std::error::Error;

/// How much is shown of what somebody else has said at whatever length: enough for every refusal.
pub const SAID_MAX_LETTERS: usize = 1000;

/// An error with its causes, in one line: what one repeats of those behind it is said once.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

/// The text with everything that steers a terminal, or turns the direction of reading, as `\x1b` or `\u{202e}`. Newlines and tabs stay.
#[must_use]
pub fn harmless(text: &str) -> String {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
    if text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' => shown.push(letter),
            '\0'..='\x1f' | '\x7f' => shown.push_str(&format!("\\x{:02x}", u32::from(letter))),
            _ if steers(letter) => shown.push_str(&format!("\\u{{{:x}}}", u32::from(letter))),
            _ => shown.push(letter),
        }
    }
    shown
}

/// The first `max_letters` of the text, harmless, and in one line: newlines and tabs as `\n` and `\t`.
#[must_use]
pub fn harmless_line(text: &str, max_letters: usize) -> String {
    let text: String = text.chars().take(max_letters).collect();
    harmless(&text).replace('\n', "\\n").replace('\t', "\\t")
}

/// The JSON text, the same to a parser, with what steers a terminal as `\u009b`. Such characters can only stand in strings there.
#[must_use]
pub fn harmless_json(text: &str) -> Cow<'_, str> {
    // Most is plain, and may be long.
    if text.bytes().all(|byte| byte < 0x7f) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter == '\x7f' || steers(letter) {
            shown.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            shown.push(letter);
        }
    }
    shown.into()
}

/// C1 controls, line and paragraph separators, and what turns the direction of reading (Unicode's Bidi_Control); DEL and C0 aside.
fn steers(letter: char) -> bool {
    matches!(letter, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const HOSTILE: &str = "a\x1b[31m\0\r\u{9b}2J\u{202e}\u{7f}b\n\tc";

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Link {
        says: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn no_cause_is_said_twice() {
        let link = |says, source| Link { says, source };
        let deep = || Some(Box::new(link("no such file", None)));
        assert_eq!(chain(&link("reading ca.pem", deep())), "reading ca.pem: no such file");
        let between = link("reading ca.pem: no such file (os error 2)", deep());
        assert_eq!(chain(&link("the authority", Some(Box::new(between)))), "the authority: reading ca.pem: no such file (os error 2)");
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(harmless(HOSTILE), "a\\x1b[31m\\x00\\x0d\\u{9b}2J\\u{202e}\\x7fb\n\tc");
        assert_eq!(harmless_line(HOSTILE, usize::MAX), "a\\x1b[31m\\x00\\x0d\\u{9b}2J\\u{202e}\\x7fb\\n\\tc");
        assert_eq!(harmless_line("a\nbc", 3), "a\\nb");
    }

    #[test]
    fn json_loses_nothing_and_is_harmless_too() {
        let text = serde_json::to_string(HOSTILE).unwrap();
        let text = harmless_json(&text);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), HOSTILE);
        assert!(text.chars().all(|letter| !letter.is_control() && !steers(letter)), "{text}");
    }
}
