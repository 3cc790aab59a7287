//! The manual pages of a program: one for the program, and one for each of its commands. Writes nothing.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Of what, and of when, a page is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edition<'a> {
    pub(crate) version: &'a str,
    /// `2026-01-02`.
    pub(crate) date: &'a str,
}

impl Edition<'_> {
    /// What stands at the foot of a page.
    pub(crate) fn source(self) -> String {
        format!("Overlord {}", self.version)
    }
}

/// What a program's pages have beside what its command line says.
#[derive(Debug)]
pub(crate) struct Book {
    /// The section of the manual.
    pub(crate) section: &'static str,
    /// Files that the program reads or writes, and what they are.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Other pages to read, each with its section.
    pub(crate) see_also: &'static [(&'static str, &'static str)],
}

impl Book {
    /// The names of the pages' files, and their texts.
    ///
    /// # Errors
    /// None: what is written goes into memory.
    pub(crate) fn pages(&self, edition: Edition<'_>, definitions: Command) -> io::Result<Vec<(String, String)>> {
        let mut program = definitions.disable_help_subcommand(true);
        program.build();
        let mut pages = vec![self.page(edition, &program, None)?];
        self.of_commands(edition, &program, &mut pages)?;
        Ok(pages)
    }

    fn of_commands(&self, edition: Edition<'_>, parent: &Command, pages: &mut Vec<(String, String)>) -> io::Result<()> {
        for command in parent.get_subcommands().filter(|command| !command.is_hide_set()) {
            pages.push(self.page(edition, command, Some(parent))?);
            self.of_commands(edition, command, pages)?;
        }
        Ok(())
    }

    fn page(&self, edition: Edition<'_>, command: &Command, parent: Option<&Command>) -> io::Result<(String, String)> {
        let man = Man::new(command.clone()).section(self.section).date(edition.date).source(edition.source()).manual("Overlord");
        let mut text = Vec::new();
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.get_subcommands().any(|command| !command.is_hide_set()) {
            man.render_subcommands_section(&mut text)?;
        }
        self.rest(command, parent).to_writer(&mut text)?;
        Ok((man.get_filename(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// What stands behind the options.
    fn rest(&self, command: &Command, parent: Option<&Command>) -> Roff {
        let mut page = Roff::new();
        if let Some(help) = command.get_after_help() {
            paragraphs(&mut page, &help.to_string());
        }
        let mut others = Vec::new();
        match parent {
            Some(parent) => others.push((parent.get_display_name().unwrap_or(parent.get_name()), self.section)),
            None => {
                page.control("SH", ["FILES"]);
                for (file, what) in self.files {
                    page.control("TP", []).text([bold(*file)]).text([roman(*what)]);
                }
                others.extend(self.see_also);
            }
        }
        see_also(&mut page, &others);
        page
    }
}

/// Each paragraph that begins with a word and a colon is a section of that name: its lines as they are, or, if it begins on that line, as text.
fn paragraphs(page: &mut Roff, text: &str) {
    for paragraph in text.split("\n\n") {
        let Some((heading, body)) = paragraph.split_once(':') else {
            page.control("PP", []).text([roman(paragraph)]);
            continue;
        };
        page.control("SH", [heading.to_uppercase().as_str()]);
        match body.strip_prefix('\n') {
            Some(lines) => {
                page.control("nf", []);
                for line in lines.lines() {
                    page.text([roman(line)]);
                }
                page.control("fi", []);
            }
            None => {
                page.text([roman(body.trim())]);
            }
        }
    }
}

pub(crate) fn see_also(page: &mut Roff, others: &[(&str, &str)]) {
    page.control("SH", ["SEE ALSO"]);
    let mut words = Vec::new();
    for (name, section) in others {
        let before = if words.is_empty() { "" } else { ", " };
        words.extend([roman(before), bold(*name), roman(format!("({section})"))]);
    }
    page.text(words);
}
