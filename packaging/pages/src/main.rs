//! `pages FOLDER VERSION DATE`: the manual pages and the completion scripts of both programs, from the definitions of their command lines, and
//! minion.toml(5) from the configuration that is packaged. `packaging/build` runs it; it is in no package.
//!
//! Writes FOLDER/overlord and FOLDER/minion, and in each `man`, `bash`, `zsh` and `fish`. VERSION and DATE are what the pages
//! show.

mod configuration;
mod manual;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Command;
use clap_complete::{Shell, generate_to};

use manual::{Book, Edition};

/// What each program's own page has beside what its command line says.
const OVERLORD: Book = Book {
    section: "1",
    files: &[
        (
            "/etc/overlord",
            "As root, the overlord's configuration: overlord.toml, hosts.toml and certs/. A user has them in ~/.config/overlord.",
        ),
        ("/var/lib/overlord", "As root, what the overlord knows of its jobs. A user has it in ~/.local/state/overlord."),
    ],
    see_also: &[("minion", "8")],
};
const MINION: Book = Book {
    section: "8",
    files: &[
        ("/etc/minion/minion.toml", "The configuration."),
        ("/etc/minion/acl.d", "Who may call what."),
        ("/etc/minion/certs", "The host's certificate and key, and the fleet's authority."),
        ("/var/lib/minion", "The jobs with their results, and the audit log."),
    ],
    see_also: &[("minion.toml", "5"), ("overlord", "1")],
};
/// What is packaged as minion.toml.
const MINION_TOML: &str = include_str!("../../minion.toml");

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [folder, version, date] = words.as_slice() else { bail!("usage: pages FOLDER VERSION DATE") };
    let edition = Edition { version, date };
    let folder = Path::new(folder);
    program(&folder.join("overlord"), edition, &OVERLORD, overlord::definitions())?;
    program(&folder.join("minion"), edition, &MINION, minion::cli::definitions())?;
    write(&folder.join("minion/man/minion.toml.5"), &configuration::page(MINION_TOML, edition))
}

fn program(folder: &Path, edition: Edition<'_>, book: &Book, definitions: Command) -> anyhow::Result<()> {
    let name = definitions.get_name().to_owned();
    for (page, text) in book.pages(edition, definitions.clone())? {
        write(&folder.join("man").join(page), &text)?;
    }
    for (shell, of_shell) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let beside = made(folder.join(of_shell))?;
        generate_to(shell, &mut definitions.clone(), &name, &beside).with_context(|| format!("writing into {}", beside.display()))?;
    }
    // Where bash looks, scripts have the name of their command.
    fs::rename(folder.join("bash").join(format!("{name}.bash")), folder.join("bash").join(&name)).context("naming the script for bash")
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        made(folder.to_owned())?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn made(folder: PathBuf) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const EDITION: Edition<'_> = Edition { version: "1.2.3", date: "2026-01-02" };

    fn names(pages: &[(String, String)]) -> Vec<&str> {
        pages.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn each_command_has_a_page_and_what_is_hidden_has_none() {
        let overlord = OVERLORD.pages(EDITION, overlord::definitions()).unwrap();
        for page in ["overlord.1", "overlord-call.1", "overlord-job-status.1", "overlord-certs.1", "overlord-certs-init.1"] {
            assert!(names(&overlord).contains(&page), "{page}: {:?}", names(&overlord));
        }
        let minion = MINION.pages(EDITION, minion::cli::definitions()).unwrap();
        for page in ["minion.8", "minion-serve.8", "minion-enroll.8", "minion-check.8", "minion-submit.8"] {
            assert!(names(&minion).contains(&page), "{page}: {:?}", names(&minion));
        }
        assert!(!names(&minion).contains(&"minion-spawner.8"));
        let Some((_, program)) = overlord.first() else { unreachable!("names() has shown it") };
        for heading in ["EXAMPLES", "\"EXIT STATUS\"", "FILES", "\"SEE ALSO\""] {
            assert!(program.contains(&format!(".SH {heading}\n")), "{heading}: {program}");
        }
    }

    #[test]
    fn each_key_of_the_configuration_is_on_its_page() {
        let page = configuration::page(MINION_TOML, EDITION);
        for key in ["name", "user", "listen", "authority", "stale_crl", "calls_max", "queue_max", "age", "max_bytes"] {
            assert!(page.lines().any(|line| line.starts_with(&format!("\\fB{key} = "))), "{key}: {page}");
        }
        assert!(page.contains("\n.EX\n") && page.contains("[[allow]]"), "{page}");
    }
}
