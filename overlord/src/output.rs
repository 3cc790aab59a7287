//! What reaches standard output and standard error, and in which form. Text of a host passes through here, and only here, on
//! its way to a terminal: control characters are made visible, and nothing that a host says can look like a line of ours.

pub(crate) mod call;
pub(crate) mod flow;
pub(crate) mod job;
pub(crate) mod logs;
pub(crate) mod map;
pub(crate) mod text;

use std::io::{self, IsTerminal, StdoutLock, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use comfy_table::{Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

pub(crate) use crate::cli::Format;
pub(crate) use common::shown::{harmless, harmless_json};

/// Standard output, and what is printed on it.
pub(crate) struct Output {
    format: Format,
    is_terminal: bool,
    out: StdoutLock<'static>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let out = io::stdout();
        Self { format, is_terminal: out.is_terminal(), out: out.lock() }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Prints text whose control characters are harmless already: see [`harmless`].
    pub(crate) fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        if text.ends_with('\n') { Ok(()) } else { self.out.write_all(b"\n") }?;
        self.out.flush()
    }

    /// Prints harmless text as it is: a line may go on with the next.
    pub(crate) fn relay(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Prints a document: on one line, or on several for a person who asked for one document.
    pub(crate) fn print_json(&mut self, document: &impl Serialize) -> io::Result<()> {
        let pretty = self.is_terminal && self.format == Format::Json;
        let text = if pretty { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) };
        self.print(&harmless_json(&text?))
    }
}

/// Columns below their names, two spaces between them.
pub(crate) fn table<const COLUMNS: usize>(names: [&str; COLUMNS], rows: impl IntoIterator<Item = [String; COLUMNS]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(names);
    for row in rows {
        table.add_row(row.map(|cell| harmless(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A line on standard error, for a person. Further lines are indented: a host may have written them.
pub(crate) fn remark(text: &str) {
    // If standard error is closed, there is nobody to be told.
    let _nobody = writeln!(io::stderr().lock(), "{}", remarked(text));
}

pub(crate) fn remarked(text: &str) -> String {
    format!("overlord: {}", harmless(text).trim_end().replace('\n', "\n  "))
}

/// A line on standard error without our name before it.
pub(crate) fn remark_result(text: &str) {
    let _nobody = writeln!(io::stderr().lock(), "{}", harmless(text));
}

/// Harmless text of a host on standard error, as it is.
pub(crate) fn relay_to_stderr(text: &str) {
    let _nobody = io::stderr().lock().write_all(text.as_bytes());
}

/// Waits, unless standard output is a pipe that nobody reads any more: who would be told?
pub(crate) fn is_unread_within(patience: Duration) -> bool {
    let out = io::stdout();
    // No event is asked for: a pipe without a reader is told of all the same, and so is a terminal that was hung up.
    let mut broken = [PollFd::new(out.as_fd(), PollFlags::empty())];
    match poll(&mut broken, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
        Ok(0) | Err(Errno::EINTR) => false,
        Ok(_) => true,
        Err(_) => {
            thread::sleep(patience);
            false
        }
    }
}

/// A bar on standard error while hosts are waited for; invisible where that is no terminal.
pub(crate) fn progress(hosts: usize) -> ProgressBar {
    bar(u64::try_from(hosts).unwrap_or(u64::MAX), "{bar:30} {pos}/{len} hosts  {elapsed}")
}

/// The same while items are worked on, with how long it may still take.
pub(crate) fn progress_of(items: u64) -> ProgressBar {
    bar(items, "{bar:30} {pos}/{len} items  {elapsed}, {eta} to go")
}

/// The same while the tasks of a flow are.
pub(crate) fn progress_of_tasks(tasks: usize) -> ProgressBar {
    bar(u64::try_from(tasks).unwrap_or(u64::MAX), "{bar:30} {pos}/{len} tasks  {elapsed}")
}

fn bar(count: u64, template: &str) -> ProgressBar {
    if count < 2 || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_remark_holds_a_line_that_looks_like_another() {
        assert_eq!(
            remarked("web1 is not sent it again: x\noverlord: the job was FINISHED\r\n"),
            "overlord: web1 is not sent it again: x\n  overlord: the job was FINISHED\\x0d"
        );
    }
}
