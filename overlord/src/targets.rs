//! Target expressions: `web*;db1,@group;web[01-20];@job:54k2:failed;!web9` → the hosts of the roster that are meant. Pure: reads no file, asks no host.
//!
//! A term that names something, a host or a group, must name something that is there: a slip of the hand is an error, and
//! never a smaller target. An operator that this version does not have is refused by its name, and never read as a glob.

pub(crate) mod job_term;
mod node_set;

use std::collections::BTreeSet;

use common::identity::MinionName;
use common::shown::harmless_line;
use globset::{Glob, GlobSet};
use rayon::prelude::*;

use crate::hosts::{Host, Roster, RosterError};
use crate::jobs::JobError;
pub(crate) use job_term::JobTerm;

/// Rosters above this are matched on all cores; below, starting the threads costs more than it saves.
const PARALLEL_FROM: usize = 10_000;

/// Why an expression names no hosts.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is not an expression.
    #[error("the target \"{}\": {problem}", .target.escape_debug())]
    Syntax {
        /// As it was given.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A host or a group in it is not in the roster.
    #[error("the target \"{}\": {problem}; `overlord hosts` lists what is known", .target.escape_debug())]
    Unknown {
        /// As it was given.
        target: String,
        /// What is not known.
        problem: String,
    },
    /// The job in it is not known, or its hosts are not.
    #[error("the target \"{}\"", .target.escape_debug())]
    Job {
        /// As it was given.
        target: String,
        /// Why.
        source: Box<JobError>,
    },
    /// Nothing matches.
    #[error("the target \"{}\" matches none of the {known} known hosts; `overlord hosts` lists them", .target.escape_debug())]
    Nothing {
        /// As it was given.
        target: String,
        /// How many hosts the roster has.
        known: usize,
    },
    /// There is no roster to match against.
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// A target expression, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Expression {
    text: String,
    included: Vec<Pattern>,
    excluded: Vec<Pattern>,
}

#[derive(Debug, Clone)]
enum Pattern {
    Every,
    Glob(GlobSet),
    Names(BTreeSet<MinionName>),
    Group(String),
    Job(JobTerm),
}

/// Whether a term adds hosts or takes them away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sense {
    Included,
    Excluded,
}

impl Expression {
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        let wrong = |problem: String| TargetError::Syntax { target: text.to_owned(), problem: harmless_line(&problem, usize::MAX) };
        refuse_what_is_not_there(text).map_err(wrong)?;
        let (mut included, mut excluded) = (Vec::new(), Vec::new());
        for term in terms(text).map(str::trim) {
            match term.strip_prefix('!') {
                None => included.push(pattern(term).map_err(wrong)?),
                Some(rest) => excluded.push(pattern(rest.trim_start()).map_err(wrong)?),
            }
        }
        if included.is_empty() {
            included.push(Pattern::Every);
        }
        Ok(Self { text: text.to_owned(), included, excluded })
    }

    /// The hosts that are meant, by name; never none. `members` are the hosts that a term with a job means, some perhaps not in the roster.
    pub(crate) fn hosts(
        mut self,
        roster: &Roster,
        mut members: impl FnMut(&JobTerm, Sense) -> Result<BTreeSet<MinionName>, JobError>,
    ) -> Result<Vec<&Host>, TargetError> {
        self.check_names(roster)?;
        for (patterns, sense) in [(&mut self.included, Sense::Included), (&mut self.excluded, Sense::Excluded)] {
            for pattern in patterns {
                if let Pattern::Job(term) = pattern {
                    let names = members(term, sense);
                    let names = names.map_err(|error| TargetError::Job { target: self.text.clone(), source: Box::new(error) })?;
                    *pattern = Pattern::Names(names);
                }
            }
        }
        let is_meant = |host: &&Host| {
            self.included.iter().any(|pattern| pattern.matches(host)) && !self.excluded.iter().any(|pattern| pattern.matches(host))
        };
        let hosts: Vec<&Host> = if roster.iter().len() < PARALLEL_FROM {
            roster.iter().filter(is_meant).collect()
        } else {
            let all: Vec<&Host> = roster.iter().collect();
            all.into_par_iter().filter(is_meant).collect()
        };
        if hosts.is_empty() { Err(TargetError::Nothing { target: self.text.clone(), known: roster.iter().len() }) } else { Ok(hosts) }
    }

    fn check_names(&self, roster: &Roster) -> Result<(), TargetError> {
        let unknown = |problem| TargetError::Unknown { target: self.text.clone(), problem };
        let mut groups: Option<BTreeSet<&str>> = None;
        for pattern in self.included.iter().chain(&self.excluded) {
            match pattern {
                Pattern::Names(names) => {
                    if let Some(name) = names.iter().find(|name| roster.find(name).is_none()) {
                        return Err(unknown(format!("no host is named {name}")));
                    }
                }
                Pattern::Group(group) => {
                    let groups = groups.get_or_insert_with(|| roster.iter().flat_map(|host| &host.groups).map(String::as_str).collect());
                    if !groups.contains(group.as_str()) {
                        return Err(unknown(format!("no host is in a group {group}")));
                    }
                }
                Pattern::Every | Pattern::Glob(_) | Pattern::Job(_) => {}
            }
        }
        Ok(())
    }
}

impl Pattern {
    fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Every => true,
            Self::Glob(glob) => glob.is_match(host.name.as_str()),
            Self::Names(names) => names.contains(&host.name),
            Self::Group(group) => host.groups.contains(group),
            // It has been replaced by the names of its hosts.
            Self::Job(_) => false,
        }
    }
}

/// The terms of an expression: what stands between `;` and `,`, except that a `,` within brackets belongs to a node set.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut is_in_brackets = false;
    text.split(move |letter| {
        match letter {
            '[' => is_in_brackets = true,
            ']' => is_in_brackets = false,
            _ => {}
        }
        letter == ';' || (letter == ',' && !is_in_brackets)
    })
}

/// What the grammar will have and this version has not. It must not be taken for part of a glob.
fn refuse_what_is_not_there(text: &str) -> Result<(), String> {
    let not_yet = |what: &str| {
        Err(format!("{what} are not supported yet; terms are names, globs, node sets, @groups, @job:ID and !exclusions, joined by ;"))
    };
    for letter in terms(text).filter(|term| !job_term::is_job_term(term)).flat_map(str::chars) {
        match letter {
            '/' => return not_yet("regular expressions (/web\\d+/)"),
            '(' | ')' => return not_yet("parentheses"),
            '&' | '|' => return not_yet("the operators & and |"),
            ':' | '=' => return not_yet("facts (os=debian)"),
            '{' | '}' => return not_yet("alternatives ({a,b})"),
            _ => {}
        }
    }
    // A word alone is a name, whatever it is.
    let is_operator = |word: &str| ["and", "or", "not"].iter().any(|operator| word.eq_ignore_ascii_case(operator));
    if terms(text).any(|term| term.split_whitespace().count() > 1 && term.split_whitespace().any(is_operator)) {
        return not_yet("the operators and, or, not");
    }
    Ok(())
}

fn pattern(term: &str) -> Result<Pattern, String> {
    if term.is_empty() {
        return Err("it has an empty term; every host is written *".to_owned());
    }
    if let Some(job) = JobTerm::parse(term) {
        return job.map(Pattern::Job);
    }
    if let Some(group) = term.strip_prefix('@') {
        let name: Result<MinionName, _> = group.parse();
        return name.map(|name| Pattern::Group(name.as_str().to_owned())).map_err(|_| format!("\"{term}\" is not a group, like @web"));
    }
    if term == "*" {
        return Ok(Pattern::Every);
    }
    if term.contains(['[', ']']) {
        return node_set::expand(term).map(|names| Pattern::Names(names.into_iter().collect()));
    }
    if !term.contains(['*', '?']) {
        return term.parse().map(|name| Pattern::Names(BTreeSet::from([name]))).map_err(|error| format!("{error}"));
    }
    let is_sound = |letter: char| letter.is_ascii_alphanumeric() || "-_.*?".contains(letter);
    match term.chars().find(|letter| !is_sound(*letter)) {
        Some(letter) => Err(format!("{letter:?} has no meaning in \"{term}\"")),
        None => glob(&term.to_ascii_lowercase()).map(Pattern::Glob).map_err(|_| format!("a glob of {} letters is too long", term.len())),
    }
}

/// A set of one: of all that globset compiles it alone says so, and does not panic, where a glob becomes too large.
fn glob(text: &str) -> Result<GlobSet, globset::Error> {
    GlobSet::builder().add(Glob::new(text)?).build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use common::job::{HostState, JobHeader, JobRecord};

    use super::*;

    fn roster() -> Roster {
        let host = |name: &str, group: &str| Host {
            name: name.parse().unwrap(),
            address: String::new(),
            groups: vec![group.to_owned()],
            vars: Default::default(),
        };
        [host("web1", "web"), host("web2", "web"), host("web10", "old"), host("db1", "db"), host("a.example.com", "db")]
            .into_iter()
            .collect()
    }

    /// The job 54k2 was sent to web1, where it failed, to web2, where it runs, and to web9, which is not in the roster.
    fn members(term: &JobTerm, _: Sense) -> Result<BTreeSet<MinionName>, JobError> {
        if term.id != "54k2" {
            return Err(JobError::Unknown { text: term.id.clone() });
        }
        let header = JobHeader {
            job_id: "54k2-9xqd-4fz1".parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Default::default(),
            job_limit_ms: None,
            retry_of: None,
            map: None,
            hosts: ["web1", "web2", "web9"].map(|name| name.parse().unwrap()).into(),
        };
        let mut record = JobRecord::new(header, jiff::Timestamp::UNIX_EPOCH);
        for (name, state) in [("web1", HostState::Failed), ("web2", HostState::Running), ("web9", HostState::Lost)] {
            record.hosts.get_mut(&name.parse().unwrap()).unwrap().state = state;
        }
        Ok(term.members(&record))
    }

    fn names(text: &str) -> Result<String, TargetError> {
        let roster = roster();
        let hosts = Expression::parse(text)?.hosts(&roster, members)?;
        Ok(hosts.into_iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn terms_unite_and_exclusions_take_away_from_the_whole() {
        for (text, meant) in [
            ("*", "a.example.com db1 web1 web10 web2"),
            ("web?", "web1 web2"),
            ("WEB*;db1", "db1 web1 web10 web2"),
            ("!web1, web1, web2", "web2"),
            ("!web*", "a.example.com db1"),
            ("@WEB;@db;!*.example.com", "db1 web1 web2"),
            ("*;!@web", "a.example.com db1 web10"),
            ("none*;web1", "web1"),
            ("web[1-2,10]", "web1 web10 web2"),
            ("web[1-2],db1;!WEB[2]", "db1 web1"),
            ("@job:54k2", "web1 web2"),
            ("@JOB:54k2:FAILED", "web1"),
            ("@job:54k2:unfinished;db1", "db1 web2"),
            ("@web; !@job:54k2:failed", "web2"),
            ("! @job:54k2", "a.example.com db1 web10"),
        ] {
            assert_eq!(names(text).unwrap(), meant, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_an_error_and_never_a_smaller_target() {
        for text in ["web1;web3", "web3", "@none", "*;!web3", "*;!@none", "web[1-3]"] {
            assert!(matches!(names(text), Err(TargetError::Unknown { .. })), "{text}");
        }
        let error = names("web1;@job:zz").unwrap_err();
        assert!(matches!(error, TargetError::Job { .. }) && crate::chain(&error).contains("no job zz is known"), "{error}");
        for text in ["none*", "web1;!web*", "@job:54k2:ok", "@job:54k2:lost"] {
            assert!(matches!(names(text), Err(TargetError::Nothing { .. })), "{text}");
        }
    }

    #[test]
    fn what_is_quoted_of_a_target_is_printable() {
        for text in ["@web\0", "@job:54k2:\x1b[2J", "web\u{9b}[1]", "web1\nweb2"] {
            let error = Expression::parse(text).unwrap_err().to_string();
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn a_host_may_be_named_like_an_operator() {
        let roster: Roster = [Host { name: "not".parse().unwrap(), address: String::new(), groups: Vec::new(), vars: Default::default() }]
            .into_iter()
            .collect();
        for text in ["not", "Not", "NOT,not"] {
            assert_eq!(Expression::parse(text).unwrap().hosts(&roster, members).unwrap().len(), 1, "{text}");
        }
    }

    /// globset panics where such a glob is compiled alone.
    #[test]
    fn a_glob_that_is_too_large_is_an_error() {
        let error = Expression::parse(&"?*".repeat(60_000)).unwrap_err();
        assert!(error.to_string().ends_with("a glob of 120000 letters is too long"), "{:.200}", error.to_string());
    }

    #[test]
    fn operators_to_come_are_refused_by_name() {
        for (text, problem) in [
            ("web[1-", "is not closed"),
            ("web[1-2]*", "is not a name"),
            ("web]1", "is not a name"),
            ("/web,db/", "regular expressions"),
            ("os=debian", "facts"),
            ("os:debian", "facts"),
            ("@job:54k2;os:debian", "facts"),
            ("@job:", "names no job"),
            ("@job:54k2:bad", "no state of a host, which are pending, "),
            ("web*&db*", "operators &"),
            ("web* and db*", "and, or, not"),
            ("web1;not web2", "and, or, not"),
            ("(web1)", "parentheses"),
            ("web{1,2}", "alternatives"),
            ("", "empty term"),
            ("web1;;db1", "empty term"),
            ("!!web1", "is not a name"),
            ("@we*", "is not a group"),
            ("we!b*", "'!' has no meaning"),
            ("web\u{1b}*", "no meaning"),
        ] {
            let error = names(text).unwrap_err();
            assert!(matches!(error, TargetError::Syntax { .. }) && error.to_string().contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn a_large_roster_matches_the_same() {
        let host =
            |n: usize| Host { name: format!("n{n}").parse().unwrap(), address: String::new(), groups: vec![], vars: Default::default() };
        let roster: Roster = (0..PARALLEL_FROM).map(host).collect();
        let names: Vec<_> =
            Expression::parse("n9*;!n99*").unwrap().hosts(&roster, members).unwrap().iter().map(|host| host.name.clone()).collect();
        assert_eq!(names.len(), 1111 - 111);
        assert!(names.is_sorted());
    }
}
