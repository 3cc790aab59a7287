//! minion.toml(5), from the configuration that is packaged: its comments say what each key is, and its keys show their defaults. Writes nothing.

use clap_mangen::roff::{Roff, bold, roman};

use crate::manual::{Edition, see_also};

/// The page.
pub(crate) fn page(file: &str, edition: Edition<'_>) -> String {
    let mut page = Roff::new();
    page.control("TH", ["minion.toml", "5", edition.date, &edition.source(), "Overlord"]);
    page.control("SH", ["NAME"]).text([roman("minion.toml - configuration of the minion")]);
    page.control("SH", ["DESCRIPTION"]);
    let mut entry = Entry::default();
    for line in file.lines() {
        entry.read(line, &mut page);
    }
    entry.end(&mut page);
    page.control("SH", ["FILES"]).text([roman("/etc/minion/minion.toml")]);
    see_also(&mut page, &[("minion", "8")]);
    page.to_roff()
}

/// Lines that belong together: a comment, and the keys that it is about.
#[derive(Debug, Default)]
struct Entry {
    comment: Vec<String>,
    keys: Vec<String>,
    any_key: bool,
}

impl Entry {
    fn read(&mut self, line: &str, page: &mut Roff) {
        if line.is_empty() {
            self.end(page);
        } else if line.starts_with('[') {
            self.end(page);
            page.control("SS", [line]);
        } else if let Some(key) = key(line) {
            self.keys.push(key.to_owned());
        } else {
            self.comment.push(line.trim_start_matches('#').to_owned());
        }
    }

    fn end(&mut self, page: &mut Roff) {
        if !self.keys.is_empty() && !self.any_key {
            page.control("SH", ["KEYS"]);
            self.any_key = true;
        }
        for (nth, key) in self.keys.drain(..).enumerate() {
            page.control(if nth == 0 { "TP" } else { "TQ" }, []).text([bold(key)]);
        }
        let mut verbatim = false;
        for line in self.comment.drain(..) {
            // What is set off in the file is set off on the page.
            let is_set_off = line.starts_with("  ");
            if is_set_off != verbatim {
                page.control(if is_set_off { "EX" } else { "EE" }, []);
                verbatim = is_set_off;
            }
            page.text([roman(if is_set_off { line.as_str() } else { line.trim() })]);
        }
        page.control("PP", []);
    }
}

/// The key and the value of a line that shows some, commented out or not.
fn key(line: &str) -> Option<&str> {
    let shown = line.trim_start_matches('#').trim_start();
    let (name, _) = shown.split_once(" = ")?;
    let is_key = name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    (is_key && !line.starts_with("#  ")).then_some(shown)
}
