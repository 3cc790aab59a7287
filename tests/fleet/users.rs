//! The users of one host: those of the machine, and those that the test adds. Its processes alone see them, and their homes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};

use crate::{Minion, binaries, tools};

/// The files that say who there is.
const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// Where homes are.
const HOMES: &str = "/home";
/// Who has no rights.
const NOBODY: &str = "nobody";

impl Minion {
    /// A file or folder as the host's processes see it at `path`.
    #[must_use]
    pub fn inside(&self, path: &str) -> PathBuf {
        self.enclosure().map_or_else(|| path.into(), |enclosure| enclosure.root().join(path.trim_start_matches('/')))
    }

    /// Adds a user whose id is `id`, with a group of that name and id, and a home in `/home` that nobody else can enter.
    ///
    /// # Panics
    /// The host has no users of its own.
    pub fn add_user(&self, name: &str, id: u32) {
        self.add_line(FILES[0], &format!("{name}:x:{id}:{id}::{HOMES}/{name}:/bin/bash"));
        self.add_group(name, id, &[]);
        let home = self.inside(&format!("{HOMES}/{name}"));
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
        chown(&home, Some(id), Some(id)).unwrap();
    }

    /// Adds a group with these members.
    ///
    /// # Panics
    /// The host has no users of its own.
    pub fn add_group(&self, name: &str, id: u32, members: &[&str]) {
        self.add_line(FILES[1], &format!("{name}:x:{id}:{}", members.join(",")));
    }

    /// Takes a user away. Its home and its group stay.
    ///
    /// # Panics
    /// The host has no users of its own.
    pub fn remove_user(&self, name: &str) {
        let text = fs::read_to_string(self.users_file(FILES[0])).unwrap();
        let lines = text.lines().filter(|line| line.split(':').next() != Some(name));
        fs::write(self.users_file(FILES[0]), lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }

    /// Covers the files and the folder with its own, if it has users of its own.
    pub(crate) fn mount_users(&self) {
        if !self.has_users() {
            return;
        }
        let enclosure = self.enclosure().unwrap();
        for file in FILES {
            let own = self.users_file(file);
            fs::copy(file, &own).unwrap();
            enclosure.run(&["mount", "--bind", own.to_str().unwrap(), file]);
        }
        enclosure.run(&["mount", "-t", "tmpfs", "-o", "mode=755", "none", HOMES]);
    }

    /// Gives all its files to the user without rights, and the way to them, if it is started as that one.
    pub(crate) fn give_to_nobody(&self) {
        if !self.is_nobodys() {
            return;
        }
        let nobody = User::from_name(NOBODY).unwrap().unwrap();
        let folder = self.config_file().parent().unwrap().to_owned();
        // By a process of its own: a program that is open for writing in one of ours, or in what we fork meanwhile, cannot be executed.
        tools::run(tools::with(tools::tool("cp"), [binaries().minion.as_path(), &self.own_program()]));
        tools::run(tools::with(tools::tool("chown"), ["-R", &nobody.uid.to_string(), folder.to_str().unwrap()]));
        open_way(&folder);
    }

    fn is_nobodys(&self) -> bool {
        geteuid().is_root() && self.right_words().iter().any(|word| word.starts_with("--reuid"))
    }

    fn users_file(&self, of: &str) -> PathBuf {
        assert!(self.has_users(), "describe the fleet with own_users()");
        self.config_file().with_file_name(Path::new(of).file_name().unwrap())
    }

    fn add_line(&self, of: &str, line: &str) {
        let mut file = OpenOptions::new().append(true).open(self.users_file(of)).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Lets everyone pass through the folders above `folder` that are the fleet's.
fn open_way(folder: &Path) {
    let ours = |folder: &&Path| folder.starts_with(std::env::temp_dir()) && *folder != std::env::temp_dir();
    for folder in folder.ancestors().filter(ours) {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
}
