//! What is to be done on a host, from how it is and what it shall be. Pure.

use common::identity::MinionName;

use super::report::{Disk, Facts, Orders};
use super::trouble::Trouble;
use crate::package::Package;

/// What is left free behind a package: dpkg and apt write there, too.
const MARGIN_KIB: u64 = 2 << 10;

/// What a host's own files say of the fleet that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Membership {
    /// It has a certificate of ours, for its name, that is good.
    Ours,
    /// It has none that is good; perhaps one that was.
    None,
    /// Its authority is another.
    Foreign { pins: String },
}

/// The orders for the host `name`, but for the enrolment; and whether that is needed.
///
/// # Errors
/// Nothing is to be done there: why.
pub(super) fn decide(name: &MinionName, facts: &Facts, package: &Package, membership: &Membership) -> Result<(Orders, bool), Trouble> {
    require_fitting(facts, package)?;
    if let Membership::Foreign { pins } = membership {
        return Err(Trouble::OtherFleet { pins: pins.clone() });
    }
    if let Some(other) = facts.name.as_ref().filter(|other| !is_named(other, name)) {
        return Err(Trouble::OtherName { other: other.clone() });
    }
    let sends_package = !is_there(facts, package);
    if sends_package {
        require_room(facts, package)?;
    }
    // Without a name in its configuration a host goes by its own.
    let is_named = facts.name.is_some() || is_named(&facts.hostname, name);
    let orders = Orders { sends_package, sets_name: (!is_named).then(|| name.to_string()), enrolment: None };
    Ok((orders, *membership == Membership::None))
}

fn is_named(text: &str, name: &MinionName) -> bool {
    text.eq_ignore_ascii_case(name.as_str())
}

fn require_fitting(facts: &Facts, package: &Package) -> Result<(), Trouble> {
    let says = &package.says;
    if facts.manager != says.kind.suffix() {
        let takes = if facts.manager == "none" { "neither .deb nor .rpm".to_owned() } else { format!(".{}", facts.manager) };
        return Err(Trouble::OtherManager { takes, kind: says.kind });
    }
    if facts.arch != says.arch && !matches!(says.arch.as_str(), "all" | "noarch") {
        return Err(Trouble::OtherArch { has: facts.arch.clone(), arch: says.arch.clone() });
    }
    if facts.has_systemd { Ok(()) } else { Err(Trouble::NoSystemd) }
}

/// Whether this very package, as far as can be told, is whole there. One that was installed by hand is known by its version alone.
fn is_there(facts: &Facts, package: &Package) -> bool {
    facts.installed() == Some(&package.says.version) && facts.kept.as_ref().is_none_or(|kept| kept == package.id.digits())
}

/// The package itself, and its files beside those of a former version.
fn require_room(facts: &Facts, package: &Package) -> Result<(), Trouble> {
    let size_kib = (package.bytes.len() as u64).div_ceil(1024);
    let needs = |disk: &Disk| if disk.folder == "/usr" { package.says.installed_kib.max(size_kib) } else { size_kib };
    for disk in &facts.disks {
        let on_it = facts.disks.iter().filter(|other| other.mount == disk.mount);
        let needed = on_it.map(needs).fold(MARGIN_KIB, u64::saturating_add);
        if disk.free_kib < needed {
            return Err(Trouble::NoRoom { folder: disk.folder.clone(), free_mib: disk.free_kib >> 10, needed_mib: needed.div_ceil(1024) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::package::{Description, Kind};
    use common::protocol::package::PackageId;

    fn package() -> Package {
        let says = Description {
            kind: Kind::Deb,
            name: "overlord-minion".into(),
            version: "0.2.0-1".into(),
            arch: "amd64".into(),
            installed_kib: 20 << 10,
        };
        let bytes = vec![0; 5 << 20];
        Package { says, id: PackageId::of(&bytes), bytes: bytes.into() }
    }

    fn disk(folder: &str, mount: &str, free_mib: u64) -> Disk {
        Disk { folder: folder.into(), mount: mount.into(), free_kib: free_mib << 10 }
    }

    fn bare() -> Facts {
        Facts {
            manager: "deb".into(),
            arch: "amd64".into(),
            has_systemd: true,
            hostname: "web1".into(),
            disks: vec![disk("/var/tmp", "/", 100), disk("/usr", "/", 100)],
            ..Facts::default()
        }
    }

    fn decided(facts: &Facts, membership: &Membership) -> Result<(Orders, bool), Trouble> {
        decide(&"web1".parse().unwrap(), facts, &package(), membership)
    }

    #[test]
    fn a_bare_host_gets_all_and_one_that_has_all_gets_nothing() {
        let (orders, enrols) = decided(&bare(), &Membership::None).unwrap();
        assert_eq!((orders.sends_package, orders.sets_name, enrols), (true, None, true));
        let whole = Facts { standing: "installed 0.2.0-1".into(), kept: Some(package().id.digits().to_owned()), ..bare() };
        let (orders, enrols) = decided(&whole, &Membership::Ours).unwrap();
        assert_eq!((orders.sends_package, enrols), (false, false));
    }

    #[test]
    fn another_version_another_build_and_half_a_package_are_replaced() {
        for (standing, kept) in [
            ("installed 0.1.0-1", None),
            ("installed 0.3.0-1", None),
            ("half-configured 0.2.0-1", None),
            ("config-files 0.2.0-1", None),
            ("installed 0.2.0-1", Some("cd".repeat(32))),
        ] {
            let facts = Facts { standing: standing.into(), kept, ..bare() };
            assert!(decided(&facts, &Membership::Ours).unwrap().0.sends_package, "{standing}");
        }
        let by_hand = Facts { standing: "installed 0.2.0-1".into(), ..bare() };
        assert!(!decided(&by_hand, &Membership::Ours).unwrap().0.sends_package);
    }

    #[test]
    fn a_host_that_calls_itself_something_else_is_told_its_name() {
        let facts = Facts { hostname: "localhost".into(), ..bare() };
        assert_eq!(decided(&facts, &Membership::None).unwrap().0.sets_name.as_deref(), Some("web1"));
        let facts = Facts { hostname: "localhost".into(), name: Some("WEB1".into()), ..bare() };
        assert_eq!(decided(&facts, &Membership::None).unwrap().0.sets_name, None);
        let facts = Facts { name: Some("db1".into()), ..bare() };
        assert!(matches!(decided(&facts, &Membership::None), Err(Trouble::OtherName { other }) if other == "db1"));
    }

    #[test]
    fn what_cannot_go_well_is_refused_before_anything_is_sent() {
        let refused = |facts: Facts| decided(&facts, &Membership::None).unwrap_err();
        assert!(matches!(refused(Facts { arch: "arm64".into(), ..bare() }), Trouble::OtherArch { .. }));
        assert!(matches!(refused(Facts { manager: "rpm".into(), ..bare() }), Trouble::OtherManager { .. }));
        assert!(matches!(refused(Facts { manager: "none".into(), ..bare() }), Trouble::OtherManager { .. }));
        assert!(matches!(refused(Facts { has_systemd: false, ..bare() }), Trouble::NoSystemd));
        let foreign = Membership::Foreign { pins: "ab".into() };
        assert!(matches!(decided(&bare(), &foreign), Err(Trouble::OtherFleet { .. })));
    }

    #[test]
    fn a_disk_has_room_for_all_that_comes_onto_it() {
        let with = |disks: Vec<Disk>| decided(&Facts { disks, ..bare() }, &Membership::None);
        assert!(with(vec![disk("/var/tmp", "/var", 8), disk("/usr", "/", 23)]).is_ok());
        assert!(
            matches!(with(vec![disk("/var/tmp", "/var", 6), disk("/usr", "/", 23)]), Err(Trouble::NoRoom { folder, .. }) if folder == "/var/tmp")
        );
        assert!(
            matches!(with(vec![disk("/var/tmp", "/var", 8), disk("/usr", "/", 21)]), Err(Trouble::NoRoom { folder, .. }) if folder == "/usr")
        );
        assert!(matches!(with(vec![disk("/var/tmp", "/", 26), disk("/usr", "/", 26)]), Err(Trouble::NoRoom { .. })));
        let whole = Facts { standing: "installed 0.2.0-1".into(), disks: vec![disk("/usr", "/", 0)], ..bare() };
        assert!(decided(&whole, &Membership::Ours).is_ok(), "nothing is sent");
    }
}
