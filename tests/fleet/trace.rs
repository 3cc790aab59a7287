//! What programs asked of the kernel, in order: a record made by strace, read into calls, and what would be on the disk if the power went
//! between two of them.

mod durable;

use std::collections::HashMap;
use std::ffi::OsStr;

use crate::strace::Strace;
use crate::{Fleet, Minion, Run, Running};

/// The calls that are recorded: what writes, names and syncs files, what tells others of it, and what makes processes. A name that a
/// machine's kernel does not have is passed over.
const CALLS: &str = "?open,?creat,openat,?mkdir,mkdirat,?mknod,mknodat,?rename,renameat,renameat2,?link,linkat,?unlink,unlinkat,?rmdir,\
    write,writev,pwrite64,pwritev,ftruncate,fsync,fdatasync,sendto,sendmsg,clone,?clone3,?fork,?vfork";

/// How much is kept of each text that is written.
const TEXT_MAX_BYTES: usize = 8192;

/// A record that is being made of running processes, and of all that they fork. Dropped, it lets go of them.
#[derive(Debug)]
pub struct Recorder {
    strace: Strace,
}

/// What was recorded.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    calls: Vec<Call>,
}

/// One system call of one thread.
#[derive(Debug, Clone)]
pub struct Call {
    /// The thread's number.
    pub thread: i32,
    /// The call's name.
    pub name: String,
    /// Its arguments as strace shows them: descriptors with what they are of, texts in quotes.
    pub args: String,
    /// What it gave; none if it has not returned, or the thread died in it.
    pub result: Option<i64>,
    /// Its place in the record: a call that began before this place came first.
    pub began: usize,
    /// Where it returned.
    pub ended: usize,
}

impl Minion {
    /// Records what its server and its spawner do from now on, with all that they fork.
    ///
    /// # Panics
    /// They do not run, or cannot be traced.
    #[must_use]
    pub fn record(&self) -> Recorder {
        let spawner = self.spawner().unwrap_or_else(|| panic!("{} has no spawner", self.name()));
        Recorder { strace: Strace::attach(&options(), &[self.pid(), spawner.pid]) }
    }
}

impl Fleet {
    /// Runs the overlord, and what it leaves behind, to its end, and records what it does.
    pub fn overlord_traced<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> (Run, Trace) {
        let folder = tempfile::Builder::new().prefix("trace-").tempdir_in(self.root()).unwrap();
        let record = folder.path().join("record");
        let strace = [vec!["strace".to_owned()], options(), vec!["-o".to_owned(), record.display().to_string(), "--".to_owned()]].concat();
        let words = [self.overlord_words(), strace].concat();
        let run = Running::overlord_within(&words, &self.home(), self.root(), args).wait();
        (run, Trace::read(&std::fs::read_to_string(record).unwrap()))
    }
}

fn options() -> Vec<String> {
    ["-f", "-yy", "-s", &TEXT_MAX_BYTES.to_string(), "-e", &format!("trace={CALLS}"), "-e", "signal=none"].map(str::to_owned).to_vec()
}

impl Recorder {
    /// What was recorded so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        Trace::read(&self.strace.record())
    }

    /// Lets go of all that lives, and gives the whole record.
    #[must_use]
    pub fn finish(mut self) -> Trace {
        self.strace.let_go();
        self.trace()
    }
}

impl Trace {
    /// Reads lines of `PID CALL(ARGS) = RESULT`. A call that another one interrupts in the record stands there in two parts.
    #[must_use]
    pub fn read(record: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut unfinished: HashMap<i32, usize> = HashMap::new();
        for (place, line) in record.lines().enumerate() {
            let Some((thread, text)) = line.split_once(' ') else { continue };
            let (Ok(thread), text) = (thread.parse::<i32>(), text.trim_start()) else { continue };
            if let Some((_, rest)) = text.strip_prefix("<... ").and_then(|text| text.split_once(" resumed>")) {
                let Some(call) = unfinished.remove(&thread).and_then(|which| calls.get_mut(which)) else { continue };
                let (args, result) = split_result(rest);
                call.args.push_str(args);
                (call.result, call.ended) = (result, place);
            } else if let Some((name, rest)) =
                text.split_once('(').filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
            {
                let (args, result, ended) = match rest.strip_suffix("<unfinished ...>") {
                    Some(args) => {
                        unfinished.insert(thread, calls.len());
                        (args.trim_end(), None, usize::MAX)
                    }
                    None => {
                        let (args, result) = split_result(rest);
                        (args, result, place)
                    }
                };
                calls.push(Call { thread, name: name.to_owned(), args: args.to_owned(), result, began: place, ended });
            }
        }
        Self { calls }
    }

    /// Every call, in the order in which they began.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The first call that is as wanted.
    #[must_use]
    pub fn find(&self, wanted: impl Fn(&Call) -> bool) -> Option<&Call> {
        self.calls.iter().find(|call| wanted(call))
    }

    /// The same.
    ///
    /// # Panics
    /// There is none; all calls are shown.
    #[must_use]
    pub fn first(&self, what: &str, wanted: impl Fn(&Call) -> bool) -> &Call {
        self.find(wanted).unwrap_or_else(|| panic!("nobody {what}:\n{}", self.shown()))
    }

    /// The calls, a line each, cut to what a person reads.
    #[must_use]
    pub fn shown(&self) -> String {
        let line = |call: &Call| {
            let args: String = call.args.chars().take(200).collect();
            format!("{:>5} {} {}({args}) = {:?}\n", call.began, call.thread, call.name, call.result)
        };
        self.calls.iter().map(line).collect()
    }
}

impl Call {
    /// Whether it writes to a file, a pipe or a socket.
    #[must_use]
    pub fn is_write(&self) -> bool {
        ["write", "writev", "pwrite64", "pwritev", "sendto", "sendmsg"].contains(&self.name.as_str())
    }

    /// Whether it makes a process or a thread.
    #[must_use]
    pub fn is_fork(&self) -> bool {
        ["clone", "clone3", "fork", "vfork"].contains(&self.name.as_str())
    }

    /// What its first argument is a descriptor of: a path, or a socket as strace names it.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        let (number, rest) = self.args.split_once('<')?;
        number.parse::<i32>().ok()?;
        let end = [">,", ">("].iter().filter_map(|end| rest.find(end)).min();
        end.map_or_else(|| rest.strip_suffix('>'), |end| rest.get(..end))
    }

    /// The texts among its arguments: paths, or what is written.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let (mut texts, mut text): (Vec<String>, Option<String>) = (Vec::new(), None);
        let mut characters = self.args.chars();
        while let Some(character) = characters.next() {
            match (character, &mut text) {
                ('"', None) => text = Some(String::new()),
                ('"', Some(_)) => texts.extend(text.take()),
                ('\\', Some(text)) => match characters.next() {
                    Some('n') => text.push('\n'),
                    Some(escaped) => text.push(escaped),
                    None => {}
                },
                (other, Some(text)) => text.push(other),
                (_, None) => {}
            }
        }
        texts
    }

    /// Whether it writes a text with these words in it.
    #[must_use]
    pub fn says(&self, words: &str) -> bool {
        self.is_write() && self.texts().iter().any(|text| text.contains(words))
    }

    fn has_succeeded(&self) -> bool {
        self.result.is_some_and(|result| result >= 0)
    }
}

/// `ARGS) = RESULT`, split.
fn split_result(text: &str) -> (&str, Option<i64>) {
    let Some((args, result)) = text.rsplit_once(" = ") else { return (text, None) };
    let number = result.split(|c: char| !c.is_ascii_digit() && c != '-').next().and_then(|number| number.parse().ok());
    let args = args.trim_end();
    (args.strip_suffix(')').unwrap_or(args), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"7 openat(AT_FDCWD</x>, "/x/a", O_WRONLY|O_CREAT, 0600) = 3</x/a>
7 write(3</x/a>, "{\"x\":1}\n", 8 <unfinished ...>
8 sendto(4<TCP:[127.0.0.1:1->127.0.0.1:2]>, "hi = you", 2, 0, NULL, 0) = 2
7 <... write resumed>)              = 8
7 fsync(3</x/a>)                    = 0
7 fsync(3</x/a>(deleted))           = -1 EIO (Input/output error)
7 +++ exited with 0 +++
"#;

    #[test]
    fn a_record_is_read_into_calls() {
        let trace = Trace::read(RECORD);
        let [open, write, send, fsync, failed] = trace.calls() else { panic!("{}", trace.shown()) };
        assert_eq!((open.name.as_str(), open.result, open.texts()), ("openat", Some(3), vec!["/x/a".to_owned()]));
        assert_eq!((write.began, write.ended, write.file(), write.says("{\"x\":1}\n")), (1, 3, Some("/x/a"), true));
        assert_eq!((send.thread, send.file(), send.result), (8, Some("TCP:[127.0.0.1:1->127.0.0.1:2]"), Some(2)));
        assert_eq!((fsync.file(), fsync.has_succeeded(), failed.file(), failed.result), (Some("/x/a"), true, Some("/x/a"), Some(-1)));
    }
}
