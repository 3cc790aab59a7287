//! What the script on a host says, a line at a time, and what it is told to do. The host is not believed: all that it says is bounded, and is shown
//! harmless. Pure.

use crate::package::Package;

/// What each line of the script begins with. Whatever else comes, a shell's greeting, is passed over.
const MARK: &str = "overlord-deploy ";
/// How long a value may be, and how much of a certificate and of the log is kept.
const VALUE_MAX_CHARS: usize = 512;
const PEM_MAX_BYTES: usize = 32 << 10;
const LOG_MAX_LINES: usize = 40;

/// What was heard so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(super) facts: Facts,
    /// The end of what the failed step has written.
    pub(super) log: Vec<String>,
    /// What became of what was begun, if it failed.
    pub(super) back: Option<Back>,
    pub(super) end: Option<End>,
}

/// How a host is before anything is done there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Which packages it takes: `deb`, `rpm` or `none`.
    pub(super) manager: String,
    pub(super) arch: String,
    /// How the package stands there, in dpkg's words: `installed 0.1.0-1`.
    pub(super) standing: String,
    pub(super) has_systemd: bool,
    pub(super) hostname: String,
    /// The name that its configuration says.
    pub(super) name: Option<String>,
    pub(super) disks: Vec<Disk>,
    /// The SHA-256 of the package that was deployed last.
    pub(super) kept: Option<String>,
    pub(super) has_key: bool,
    pub(super) ca: String,
    pub(super) cert: String,
}

/// The disk below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) folder: String,
    pub(super) mount: String,
    pub(super) free_kib: u64,
}

/// What became of a package that could not stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// What was installed before is again.
    Former,
    /// It was not installed before, and is not.
    Removed,
    /// Neither could be done.
    Neither,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Failed { kind: String },
}

/// What a line means for who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It was taken down.
    Noted,
    /// Another deploy, or an upgrade, is at work there.
    Waits,
    /// Orders are waited for.
    Ready,
    /// There is no more to come.
    Ended,
}

impl Report {
    /// Takes down a line.
    pub(crate) fn hear(&mut self, line: &[u8]) -> Heard {
        let line = String::from_utf8_lossy(line);
        let Some(said) = line.trim_end_matches(['\n', '\r']).strip_prefix(MARK) else { return Heard::Noted };
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "waits" => return Heard::Waits,
            "ready" => return Heard::Ready,
            "log" if self.log.len() < LOG_MAX_LINES => self.log.push(value(rest)),
            "back" => self.back = Some(Back::read(rest)),
            "failed" => return self.ends(End::Failed { kind: value(rest) }),
            "done" => return self.ends(End::Done),
            _ => self.facts.hear(word, rest),
        }
        Heard::Noted
    }

    /// How much it has grown to by what was said.
    pub(super) fn kept_bytes(&self) -> usize {
        let Facts { manager, arch, standing, hostname, name, disks, kept, ca, cert, .. } = &self.facts;
        let words = [manager, arch, standing, hostname, ca, cert].into_iter().chain(name).chain(kept).chain(&self.log);
        words.chain(disks.iter().flat_map(|disk| [&disk.folder, &disk.mount])).map(String::len).sum()
    }

    fn ends(&mut self, end: End) -> Heard {
        self.end = Some(end);
        Heard::Ended
    }
}

impl Facts {
    fn hear(&mut self, word: &str, rest: &str) {
        match word {
            "manager" => self.manager = value(rest),
            "arch" => self.arch = value(rest),
            "standing" => self.standing = value(rest),
            "systemd" => self.has_systemd = true,
            "hostname" => self.hostname = value(rest),
            "name" => self.name = Some(value(rest)).filter(|name| !name.is_empty()),
            "df" if self.disks.len() < 2 => self.disks.extend(Disk::read(rest)),
            "kept" => self.kept = Some(value(rest)),
            "key" => self.has_key = true,
            "ca" => add_line(&mut self.ca, rest),
            "cert" => add_line(&mut self.cert, rest),
            _ => {}
        }
    }

    /// The version that is wholly installed.
    pub(super) fn installed(&self) -> Option<&str> {
        self.standing.strip_prefix("installed ").filter(|version| !version.is_empty())
    }
}

impl Disk {
    /// The folder, and a line of `df -Pk`.
    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [folder, _device, _size, _used, free, _share, mount, ..] = words.as_slice() else { return None };
        Some(Self { folder: value(folder), mount: value(mount), free_kib: free.parse().ok()? })
    }
}

impl Back {
    fn read(word: &str) -> Self {
        match word {
            "former" => Self::Former,
            "removed" => Self::Removed,
            _ => Self::Neither,
        }
    }
}

fn value(text: &str) -> String {
    text.trim().chars().take(VALUE_MAX_CHARS).collect()
}

fn add_line(text: &mut String, line: &str) {
    if text.len() + line.len() < PEM_MAX_BYTES {
        text.push_str(line);
        text.push('\n');
    }
}

/// What a host is to do. It has no way to be told more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Orders {
    /// The package is sent and installed; else what is there stays.
    pub(super) sends_package: bool,
    /// The name that is written into its configuration.
    pub(super) sets_name: Option<String>,
    pub(super) enrolment: Option<Enrolment>,
}

/// How a host gets its certificate.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Enrolment {
    pub(super) authority: String,
    pub(super) pin: String,
    pub(super) token: String,
}

impl Orders {
    /// The lines that the script reads. None of the words can have a space or a line's end in it.
    pub(super) fn lines(&self, package: &Package) -> String {
        let package = match self.sends_package {
            true => format!("package {} {}", package.bytes.len(), package.id.digits()),
            false => "keep".to_owned(),
        };
        let name = self.sets_name.as_deref().unwrap_or_default();
        let enrolment = match &self.enrolment {
            Some(Enrolment { authority, pin, token }) => format!("enrol {authority} {pin} {token}"),
            None => "enrolled".to_owned(),
        };
        format!("{package}\nname {name}\n{enrolment}\nend\n")
    }
}

/// The token is nobody's to see.
impl std::fmt::Debug for Enrolment {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Enrolment").field("authority", &self.authority).field("pin", &self.pin).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn heard(text: &str) -> (Report, Heard) {
        let mut report = Report::default();
        let last = text.lines().map(|line| report.hear(line.as_bytes())).last().unwrap();
        (report, last)
    }

    #[test]
    fn a_report_is_what_its_lines_say_and_no_more() {
        let (report, last) = heard(
            "Welcome!\noverlord-deploy manager deb\noverlord-deploy arch amd64\noverlord-deploy standing installed 0.1.0-1\n\
             overlord-deploy name \noverlord-deploy df /usr /dev/sda1 100 40 60 40% /\noverlord-deploy df /var/tmp nonsense\n\
             overlord-deploy cert AAA\noverlord-deploy cert BBB\noverlord-deploy whatever x\noverlord-deploy ready",
        );
        assert_eq!(last, Heard::Ready);
        assert_eq!((report.facts.installed(), report.facts.name.as_deref()), (Some("0.1.0-1"), None));
        assert_eq!(report.facts.disks, [Disk { folder: "/usr".into(), mount: "/".into(), free_kib: 60 }]);
        assert_eq!(report.facts.cert, "AAA\nBBB\n");
    }

    #[test]
    fn half_installed_is_not_installed() {
        for standing in ["half-configured 0.1.0-1", "config-files 0.1.0-1", "not-installed ", "installed ", ""] {
            let facts = Facts { standing: standing.to_owned(), ..Facts::default() };
            assert_eq!(facts.installed(), None, "{standing}");
        }
    }

    #[test]
    fn however_much_a_host_says_little_is_kept() {
        let mut report = Report::default();
        let long = "x".repeat(100_000);
        for word in ["log", "cert", "ca", "hostname", "df /usr a b c"] {
            for _ in 0..100 {
                report.hear(format!("overlord-deploy {word} {long}\n").as_bytes());
            }
        }
        assert!(report.log.len() == LOG_MAX_LINES && report.log[0].len() == VALUE_MAX_CHARS);
        assert!(report.facts.cert.len() <= PEM_MAX_BYTES && report.facts.hostname.len() == VALUE_MAX_CHARS);
        assert_eq!(report.hear(b"overlord-deploy failed \x1b[2J\xff"), Heard::Ended);
    }
}
