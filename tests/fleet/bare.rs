//! Bare hosts behind an `ssh` that is ours: what is run there runs in a root of the host's own, with a package manager and a systemd that do as little as a
//! test needs, and the real `minion`. A real sshd on a real Debian is the lab's business.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

use crate::run::{Run, Running};
use crate::{Fleet, binaries, processes};

const SSH: &str = include_str!("bare/ssh.sh");
/// What stands in for the host's own programs, all in one: it looks at its name.
const TOOLS: &str = include_str!("bare/tools.sh");
const TOOL_NAMES: [&str; 8] = ["apt-get", "df", "dpkg", "dpkg-deb", "dpkg-query", "journalctl", "minion-of-package", "systemctl"];
/// What of the machine's `/etc` the programs of a host look at.
const ETC: [&str; 5] = ["passwd", "group", "nsswitch.conf", "hosts", "ld.so.cache"];

/// An overlord's surroundings in which `ssh` is ours.
#[derive(Debug)]
pub struct BareHosts<'f> {
    fleet: &'f Fleet,
    dir: PathBuf,
}

/// A host that has nothing of us yet.
#[derive(Debug)]
pub struct BareHost {
    dir: PathBuf,
}

impl Fleet {
    /// Hosts that are reached by ssh alone.
    #[must_use]
    pub fn bare_hosts(&self) -> BareHosts<'_> {
        let hosts = BareHosts { fleet: self, dir: self.root().join("bare") };
        let unshare = if geteuid().is_root() { "unshare --mount" } else { "unshare --mount --map-root-user" };
        write_program(&hosts.dir.join("bin/ssh"), &SSH.replace("@DIR@", hosts.dir.to_str().unwrap()).replace("@UNSHARE@", unshare));
        hosts
    }
}

impl BareHosts<'_> {
    /// A host of this name, whose minion will listen where the fleet's of that name would.
    #[must_use]
    pub fn host(&self, name: &str) -> BareHost {
        self.host_at(name, &self.fleet.minion(name).address().to_string())
    }

    /// A host whose minion will listen at `address`, which ssh knows without the port.
    #[must_use]
    pub fn host_at(&self, name: &str, address: &str) -> BareHost {
        let host = BareHost { dir: self.dir.join("hosts").join(name) };
        for folder in ["root", "etc", "var/lib/dpkg", "var/tmp", "run/systemd/system", "fake"] {
            fs::create_dir_all(host.dir.join(folder)).unwrap();
        }
        for file in ETC {
            let _not_there = fs::copy(Path::new("/etc").join(file), host.dir.join("etc").join(file));
        }
        host.set("var/lib/dpkg/status", "Package: base-files\n");
        host.set("arch", "amd64\n");
        host.set("minion.toml", &format!("listen = \"{address}\"\n"));
        host.set("admin.toml", "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n");
        host.set("address", address.rsplit_once(':').map_or(address, |(ip, _)| ip));
        let tools = TOOLS.replace("@HOST@", host.dir.to_str().unwrap()).replace("@MINION@", binaries().minion.to_str().unwrap());
        for name in TOOL_NAMES {
            write_program(&host.dir.join("fake").join(name), &tools);
        }
        host
    }

    /// A host at which `ssh` ends with this status, and says this.
    pub fn failing(&self, name: &str, code: i32, says: &str) {
        let host = BareHost { dir: self.dir.join("hosts").join(name) };
        host.set("ssh-says", says);
        host.set("ssh-code", &code.to_string());
    }

    /// A host at which whoever answers says this, and reads what it is sent.
    pub fn claiming(&self, name: &str, says: &str) {
        let host = BareHost { dir: self.dir.join("hosts").join(name) };
        host.set("claims", says);
    }

    /// Runs `overlord deploy` to its end.
    pub fn deploy<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.deploy_spawn(args).wait()
    }

    /// Starts `overlord deploy`.
    pub fn deploy_spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let mut command = std::process::Command::new(&binaries().overlord);
        let path = format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.arg("deploy").args(args).env("PATH", path);
        command.env("OVERLORD_HOME", self.fleet.home()).env(processes::MARK, self.fleet.root());
        Running::start(command)
    }

    /// The words of every `ssh` that was started for more than its version, one line each.
    #[must_use]
    pub fn started(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("ssh.log")).unwrap_or_default();
        log.lines().filter(|line| !line.starts_with("-V")).map(str::to_owned).collect()
    }

    /// See [`package_of`].
    #[must_use]
    pub fn package(&self, version: &str, arch: &str) -> PathBuf {
        let path = self.dir.join(format!("overlord-minion_{version}_{arch}.deb"));
        fs::write(&path, package_of("overlord-minion", version, arch, 0)).unwrap();
        path
    }
}

impl BareHost {
    /// A file of the host's, as seen from outside: below `etc`, `var` and `run` its own, else what steers our tools.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Writes such a file.
    pub fn set(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Removes one, if it is there.
    pub fn unset(&self, path: &str) {
        let _not_there = fs::remove_file(self.path(path));
    }

    /// Its text; empty if it is not there.
    #[must_use]
    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// How the package stands there, in dpkg's words.
    #[must_use]
    pub fn standing(&self) -> String {
        self.text("standing").trim().to_owned()
    }

    /// The package manager waits from now on, until this is written to.
    #[must_use]
    pub fn block_apt(&self) -> PathBuf {
        let path = self.path("apt-waits");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }
}

fn write_program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The bytes of a Debian package, as far as the overlord and our `apt-get` look into it, with so many bytes in the place of its files.
#[must_use]
pub fn package_of(name: &str, version: &str, arch: &str, data_bytes: usize) -> Vec<u8> {
    let control = format!("Package: {name}\nVersion: {version}\nArchitecture: {arch}\nInstalled-Size: 100\n");
    let control = control.as_bytes();
    let data: Vec<u8> = (0..data_bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(control.len() as u64);
    header.set_cksum();
    tar.append_data(&mut header, "./control", control).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut archive = ar::Builder::new(Vec::new());
    for (name, bytes) in [("debian-binary", b"2.0\n".as_slice()), ("control.tar", tar.as_slice()), ("data.tar", data.as_slice())] {
        archive.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
    }
    archive.into_inner().unwrap()
}
