//! What a .deb says of itself: the fields of `control`, in the archive `control.tar.*`, in an ar archive (deb(5)). Bounded in all that it unpacks.

use std::io::Read;

use ar::Archive;
use flate2::read::GzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::Stream;

use super::{Description, Kind};

pub(super) const MAGIC: &[u8] = b"!<arch>\n";
/// How deep into the file `control.tar.*` is looked for: it is the second member.
const MEMBERS_MAX: usize = 4;
/// How many files of `control.tar` are looked at, and how much of it is unpacked.
const FILES_MAX: usize = 64;
const UNPACKED_MAX_BYTES: u64 = 16 << 20;
/// The largest `control`.
const CONTROL_MAX_BYTES: u64 = 64 << 10;
/// What unpacking may take: the dictionary of `xz -9`, and a little.
const XZ_MEMORY_MAX_BYTES: u64 = 80 << 20;

pub(super) fn describe(bytes: &[u8]) -> Result<Description, String> {
    let mut archive = Archive::new(bytes);
    for _ in 0..MEMBERS_MAX {
        let Some(member) = archive.next_entry() else { break };
        let member = member.map_err(|error| format!("its ar archive is damaged: {error}"))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        if let Some(packed) = name.strip_prefix("control.tar") {
            return read_fields(&control(member, packed)?);
        }
    }
    Err("it has no control.tar".to_owned())
}

/// The text of `control`.
fn control(member: impl Read, packed: &str) -> Result<String, String> {
    match packed.trim_end_matches('/') {
        "" => unpack(member),
        ".gz" => unpack(GzDecoder::new(member)),
        ".xz" => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX_BYTES, 0).map_err(|error| error.to_string())?;
            unpack(XzDecoder::new_stream(member, stream))
        }
        other => Err(format!("its control.tar is packed by {}, and .gz and .xz can be read", other.escape_debug())),
    }
}

fn unpack(tar: impl Read) -> Result<String, String> {
    let damaged = |error: std::io::Error| format!("its control.tar is damaged: {error}");
    let mut tar = tar::Archive::new(tar.take(UNPACKED_MAX_BYTES));
    for file in tar.entries().map_err(damaged)?.take(FILES_MAX) {
        let file = file.map_err(damaged)?;
        if matches!(&*file.path_bytes(), b"control" | b"./control") {
            let mut text = String::new();
            file.take(CONTROL_MAX_BYTES).read_to_string(&mut text).map_err(damaged)?;
            return Ok(text);
        }
    }
    Err("its control.tar has no control".to_owned())
}

fn read_fields(control: &str) -> Result<Description, String> {
    let find = |name: &str| {
        let mut fields = control.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    let require = |name: &str| find(name).ok_or_else(|| format!("its control has no {name}"));
    Ok(Description {
        kind: Kind::Deb,
        name: require("Package")?,
        version: require("Version")?,
        arch: require("Architecture")?,
        installed_kib: find("Installed-Size").and_then(|kib| kib.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::Write as _;

    use super::super::{Kind, describe};

    const CONTROL: &str =
        "Package: overlord-minion\nVersion: 0.2.0-1\nArchitecture: arm64\nInstalled-Size: 4711\nDescription: x\n Version: 9\n";

    fn tar(name: &str, control: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in [("./postinst", "#!/bin/sh\n"), (name, control)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn deb(member: &str, packed: &[u8]) -> Vec<u8> {
        let mut archive = ar::Builder::new(Vec::new());
        for (name, bytes) in [("debian-binary", b"2.0\n".as_slice()), (member, packed), ("data.tar.xz", b"")] {
            archive.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 9);
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn a_package_says_what_it_is_however_it_is_packed() {
        for (member, bytes) in [
            ("control.tar", tar("./control", CONTROL)),
            ("control.tar.gz", gz(&tar("control", CONTROL))),
            ("control.tar.xz", xz(&tar("./control", CONTROL))),
        ] {
            let says = describe(&deb(member, &bytes)).unwrap();
            assert_eq!((says.kind, says.name.as_str(), says.version.as_str()), (Kind::Deb, "overlord-minion", "0.2.0-1"), "{member}");
            assert_eq!((says.arch.as_str(), says.installed_kib), ("arm64", 4711));
        }
    }

    #[test]
    fn what_is_no_package_is_told() {
        let whole = xz(&tar("./control", CONTROL));
        for (bytes, problem) in [
            (b"#!/bin/sh\n".to_vec(), "neither a .deb nor an .rpm"),
            (b"!<arch>\n".to_vec(), "no control.tar"),
            (deb("control.tar.zst", &whole), "packed by .zst"),
            (deb("control.tar.xz", whole.get(..40).unwrap()), "damaged"),
            (deb("control.tar", &tar("./other", CONTROL)), "no control"),
            (deb("control.tar", &tar("./control", "Package: x\nVersion: 1\n")), "no Architecture"),
            (deb("control.tar", &tar("./control", "Package: x\nVersion: a b\nArchitecture: amd64\n")), "its version is not one"),
        ] {
            let said = describe(&bytes).unwrap_err();
            assert!(said.contains(problem), "{said}");
        }
    }
}
