//! What outlasts a power cut, as far as POSIX promises it: what was written to a file once the file is synced, and a name once the folder
//! is synced that it stands in. Nothing else is counted on: not that things reach the disk in the order in which they were done.

use super::{Call, Trace};

/// How a path came to be.
enum Naming<'t> {
    Made(&'t Call),
    Renamed(&'t Call, String),
}

impl Naming<'_> {
    fn call(&self) -> &Call {
        match self {
            Self::Made(call) | Self::Renamed(call, _) => call,
        }
    }
}

impl Trace {
    /// That `path`, with all that is in it, would be as it is if the power went at the place `at` of the record.
    ///
    /// # Panics
    /// Something of it would be missing; it is named, and all calls are shown.
    pub fn assert_durable(&self, path: &str, at: usize) {
        if let Some(doubt) = self.doubt(path, at) {
            panic!("a power cut at {at} could cost {path}: {doubt}\n{}", self.shown());
        }
    }

    /// The same of what was written to `path`, whether or not its name would be there.
    ///
    /// # Panics
    /// Likewise.
    pub fn assert_content_durable(&self, path: &str, at: usize) {
        if let Some(doubt) = self.doubt_of_content(path, at) {
            panic!("a power cut at {at} could cost the content of {path}: {doubt}\n{}", self.shown());
        }
    }

    /// That `path` would be there at the place `at`, with all that was in it when it got its name.
    ///
    /// # Panics
    /// Likewise.
    pub fn assert_durable_as_named(&self, path: &str, at: usize) {
        let naming = self.naming(path, at).unwrap_or_else(|| panic!("{path} got no name before {at}:\n{}", self.shown()));
        let Naming::Renamed(call, from) = naming else { panic!("{path} was never renamed:\n{}", self.shown()) };
        if let Some(doubt) = self.doubt_of_name(path, at).or_else(|| self.doubt_of_content(&from, call.began)) {
            panic!("a power cut at {at} could cost {path}: {doubt}\n{}", self.shown());
        }
    }

    /// Why `path` might not be as it is after a power cut at `at`. What is older than the record is not doubted.
    #[must_use]
    pub fn doubt(&self, path: &str, at: usize) -> Option<String> {
        let folders = std::iter::successors(parent(path), |folder| parent(folder));
        let above = folders.filter_map(|folder| self.doubt_of_name(folder, at)).next();
        self.doubt_within(path, at).or(above)
    }

    /// The same, the way to its folder apart.
    fn doubt_within(&self, path: &str, at: usize) -> Option<String> {
        let doubt = self.doubt_of_name(path, at).or_else(|| self.doubt_of_content(path, at));
        doubt.or_else(|| match self.naming(path, at)? {
            // It had its content before it got its name, or it could be found empty.
            Naming::Renamed(call, from) => self.doubt_of_content(&from, call.began),
            Naming::Made(_) => None,
        })
    }

    fn doubt_of_name(&self, path: &str, at: usize) -> Option<String> {
        let naming = self.naming(path, at)?;
        let call = naming.call();
        let is_kept = parent(path).is_some_and(|folder| self.is_synced(folder, call.ended, at));
        (!is_kept).then(|| format!("{} gave {path} its name at {}, and its folder was not synced after that", call.name, call.ended))
    }

    fn doubt_of_content(&self, path: &str, at: usize) -> Option<String> {
        let writes = |call: &&Call| (call.is_write() || call.name == "ftruncate") && call.file() == Some(path) && call.began < at;
        if let Some(last) = self.calls.iter().rfind(writes)
            && !self.is_synced(path, last.ended, at)
        {
            return Some(format!("what was written to {path} at {} was not synced after that", last.began));
        }
        self.children(path, at).into_iter().find_map(|child| self.doubt_within(&child, at))
    }

    /// Whether a sync of `path` began after `since`, and had succeeded by `at`.
    fn is_synced(&self, path: &str, since: usize, at: usize) -> bool {
        let syncs = |call: &Call| (call.name == "fsync" || call.name == "fdatasync") && call.file() == Some(path) && call.result == Some(0);
        self.calls.iter().any(|call| syncs(call) && call.began > since && call.ended < at)
    }

    /// What last gave `path` its name before `at`.
    fn naming(&self, path: &str, at: usize) -> Option<Naming<'_>> {
        self.calls.iter().rev().filter(|call| call.ended < at).find_map(|call| {
            let (from, to) = call.names()?;
            (to == path).then(|| from.map_or(Naming::Made(call), |from| Naming::Renamed(call, from)))
        })
    }

    /// What was made in the folder `path`, and was still there at `at`.
    fn children(&self, path: &str, at: usize) -> Vec<String> {
        let made = self.calls.iter().filter(|call| call.ended < at).filter_map(|call| Some((call.ended, call.names()?.1)));
        let made = made.filter(|(_, name)| parent(name) == Some(path));
        let is_gone = |since: usize, name: &str| {
            let later = self.calls.iter().filter(|call| call.began > since && call.ended < at);
            later.filter_map(Call::takes_away).any(|gone| gone == name)
        };
        made.filter(|(since, name)| !is_gone(*since, name)).map(|(_, name)| name).collect()
    }
}

impl Call {
    /// The name that it gives to something, after the one that it takes away for that, if it does.
    fn names(&self) -> Option<(Option<String>, String)> {
        if !self.has_succeeded() {
            return None;
        }
        let mut texts = self.texts().into_iter();
        match self.name.as_str() {
            "rename" | "renameat" | "renameat2" => Some((texts.next(), texts.next()?)),
            "link" | "linkat" => Some((None, texts.nth(1)?)),
            "mkdir" | "mkdirat" | "mknod" | "mknodat" | "creat" => Some((None, texts.next()?)),
            "open" | "openat" if self.args.contains("O_CREAT") => Some((None, texts.next()?)),
            _ => None,
        }
    }

    /// The name that it takes away.
    #[must_use]
    pub fn takes_away(&self) -> Option<String> {
        let name = || self.texts().into_iter().next();
        match self.name.as_str() {
            _ if !self.has_succeeded() => None,
            "rename" | "renameat" | "renameat2" | "unlink" | "rmdir" => name(),
            "unlinkat" => Some(match self.file() {
                Some(folder) => format!("{folder}/{}", name()?),
                None => name()?,
            }),
            _ => None,
        }
    }
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(folder, _)| folder).filter(|folder| !folder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: [&str; 9] = [
        "mkdir(\"/x/.d\", 0700) = 0",
        "openat(AT_FDCWD</>, \"/x/.d/f\", O_WRONLY|O_CREAT, 0600) = 3</x/.d/f>",
        "write(3</x/.d/f>, \"1\", 1) = 1",
        "fsync(3</x/.d/f>) = 0",
        "fsync(3</x/.d>) = 0",
        "renameat2(AT_FDCWD</>, \"/x/.d\", AT_FDCWD</>, \"/x/d\", RENAME_NOREPLACE) = 0",
        "fsync(3</x>) = 0",
        "write(1</dev/null>, \"said\", 4) = 4",
        "write(3</x/d/f>, \"2\", 1) = 1",
    ];

    /// The doubt about `/x/d` as it is said to be there, with these calls in this order.
    fn doubt(calls: &[usize]) -> Option<String> {
        let lines: Vec<_> = calls.iter().map(|call| format!("7 {}\n", MADE[*call])).collect();
        let trace = Trace::read(&lines.concat());
        trace.doubt("/x/d", trace.first("said it", |call| call.says("said")).began)
    }

    #[test]
    fn only_what_was_synced_in_order_outlasts_a_power_cut() {
        assert_eq!(doubt(&[0, 1, 2, 3, 4, 5, 6, 7]), None);
        for (calls, missing) in [
            (&[0, 1, 2, 4, 5, 6, 7][..], "what was written to /x/.d/f"),
            (&[0, 1, 3, 2, 4, 5, 6, 7], "what was written to /x/.d/f"),
            (&[0, 1, 2, 3, 5, 6, 7], "openat gave /x/.d/f its name"),
            (&[0, 1, 2, 3, 5, 4, 6, 7], "openat gave /x/.d/f its name"),
            (&[0, 1, 2, 3, 4, 5, 7, 6], "renameat2 gave /x/d its name"),
            (&[0, 1, 2, 3, 4, 6, 5, 7], "renameat2 gave /x/d its name"),
        ] {
            let doubt = doubt(calls).unwrap_or_else(|| panic!("{calls:?} are taken to be enough"));
            assert!(doubt.contains(missing), "{calls:?}: {doubt}");
        }
    }

    #[test]
    fn a_file_that_changes_after_its_folder_got_its_name_is_doubted() {
        let lines: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 8, 7].iter().map(|call| format!("7 {}\n", MADE[*call])).collect();
        let trace = Trace::read(&lines.concat());
        assert!(trace.doubt("/x/d/f", 8).is_some_and(|doubt| doubt.contains("what was written to /x/d/f")));
    }
}
