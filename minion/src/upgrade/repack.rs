//! A Debian package made of what is installed: the way back, where nobody has kept the package itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PACKAGE;
use super::command::Command;

const BUILD_WITHIN: Duration = Duration::from_secs(120);
/// The scripts of a package, see deb-preinst(5) and its neighbours.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];
const CONFFILES: &str = "conffiles";
/// What dpkg adds to a package's own fields.
const ADDED: [&str; 3] = ["Status:", "Conffiles:", "Config-Version:"];

/// Makes the package `to`, in whose folder there is room for what is in it. Of configuration it has what an administrator has removed, without its text, and nothing else. What is in
/// the package dpkg would take for the distribution's own, and what an administrator has changed for nobody's: the next package would replace it. What is
/// missing in the package dpkg leaves where it is, and remembers.
///
/// # Errors
/// In a line.
pub(crate) fn repack(to: &Path) -> Result<(), String> {
    let tree = to.with_extension("tree");
    fill(&tree).map_err(|error| format!("packing what is installed: {error}"))?;
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).arg(&tree).arg(to);
    build.run(BUILD_WITHIN)?;
    fs::remove_dir_all(&tree).map_err(|error| format!("removing {}: {error}", tree.display()))
}

fn fill(tree: &Path) -> io::Result<()> {
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control)?;
    // Whatever the umask: dpkg-deb wants it so.
    [tree, &control].into_iter().try_for_each(|folder| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)))?;
    write(&control.join("control"), &own_fields(&ask(&["--status", PACKAGE])?), 0o644)?;
    for script in SCRIPTS {
        // Not every package has each.
        if let Ok(text) = ask(&["--control-show", PACKAGE, script]) {
            write(&control.join(script), &text, 0o755)?;
        }
    }
    let conffiles = ask(&["--control-show", PACKAGE, CONFFILES]).unwrap_or_default();
    let conffiles: BTreeSet<&Path> = conffiles.lines().map(Path::new).filter(|path| path.is_absolute()).collect();
    let removed = conffiles.iter().filter(|path| !path.exists());
    let listed = ask(&["--listfiles", PACKAGE])?;
    listed.lines().map(Path::new).filter(|path| path.is_absolute() && !conffiles.contains(path)).try_for_each(|path| take(path, tree))?;
    write(&control.join(CONFFILES), &removed.clone().map(|path| format!("{}\n", path.display())).collect::<String>(), 0o644)?;
    removed.map(|path| below(path, tree)).try_for_each(|path| {
        fs::create_dir_all(path.parent().unwrap_or(tree))?;
        write(&path, "# It was removed here.\n", 0o644)
    })
}

/// What is not there, because the host keeps no documentation for instance, is left out.
fn take(path: &Path, tree: &Path) -> io::Result<()> {
    let to = below(path, tree);
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if found.is_dir() {
        fs::create_dir_all(&to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(found.permissions().mode() & 0o7777))
    } else if found.is_symlink() && !path.is_dir() {
        symlink(fs::read_link(path)?, &to)
    } else if found.is_file() {
        fs::copy(path, &to).map(drop)
    } else {
        // A folder that is a link on this host, as /lib may be.
        Ok(())
    }
}

fn below(path: &Path, tree: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

fn own_fields(status: &str) -> String {
    let mut is_added = false;
    let kept = |line: &&str| {
        if !line.starts_with(' ') {
            is_added = ADDED.iter().any(|field| line.starts_with(field));
        }
        !is_added && !line.is_empty()
    };
    status.lines().filter(kept).map(|line| format!("{line}\n")).collect()
}

fn ask(words: &[&str]) -> io::Result<String> {
    Command::new("dpkg-query").args(words).ask().map_err(io::Error::other)
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_dpkg_knows_the_package_s_own_fields_are_taken() {
        let status = "Package: overlord-minion\nStatus: install ok installed\nVersion: 0.1.0-1\nConffiles:\n /etc/minion/minion.toml 0f\n \
                      /etc/x 1a\nDescription: one\n more\n\n";
        assert_eq!(own_fields(status), "Package: overlord-minion\nVersion: 0.1.0-1\nDescription: one\n more\n");
    }
}
