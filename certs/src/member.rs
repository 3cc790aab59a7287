//! What a host's own files say of the fleet that it is in, for who was given their text. That the host holds the key is proved by a handshake
//! alone.

use jiff::Timestamp;

use common::identity::MinionName;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::files::Credentials;
use crate::tls::{self, CaPin};

/// The fingerprints of the certificates in a PEM text; what is none is passed over.
#[must_use]
pub fn pins(pem: &str) -> Vec<CaPin> {
    certificates(pem).iter().map(CaPin::of).collect()
}

/// Whether the first certificate of a PEM text is one that `name` could show to whoever goes by `credentials`: of an authority of theirs, a minion's,
/// for that name, not revoked, and valid at `now`.
#[must_use]
pub fn is_good(pem: &str, name: &MinionName, credentials: &Credentials, now: Timestamp) -> bool {
    certificates(pem).first().is_some_and(|cert| tls::verify_minion(credentials, cert, name, now).is_ok())
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::time::Duration;

    use common::identity::Role;

    use super::*;
    use crate::authority::{Authority, Issued, write_overlord_folder};

    const HOUR: Duration = Duration::from_secs(3600);

    fn issue(authority: &Authority, role: &str) -> Issued {
        authority.issue(&[role.parse::<Role>().unwrap()], HOUR).unwrap().remove(0)
    }

    #[test]
    fn a_certificate_is_good_for_its_own_name_in_its_own_fleet_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|folder| Authority::init(&dir.path().join(folder), 2 * HOUR).unwrap());
        let folder = write_overlord_folder(dir.path(), ours.ca_pem(), None, &issue(&ours, "fleet:overlord/admin")).unwrap();
        let [ca, cert, key] = ["ca.pem", "overlord.pem", "overlord.key"].map(|file| folder.join(file));
        let credentials = Credentials::load(&ca, &cert, &key).unwrap();
        let good = |issued: &Issued, name: &str, now| is_good(&issued.cert_pem, &name.parse().unwrap(), &credentials, now);
        let (web, now) = (issue(&ours, "fleet:minion/web1"), Timestamp::now());
        assert!(good(&web, "web1", now));
        assert!(!good(&web, "web2", now));
        assert!(!good(&web, "web1", now + Duration::from_secs(3601)), "it has expired");
        assert!(!good(&issue(&ours, "fleet:overlord/web1"), "web1", now));
        assert!(!good(&issue(&theirs, "fleet:minion/web1"), "web1", now));
        assert!(!is_good("nonsense", &"web1".parse().unwrap(), &credentials, now));
        assert_eq!(pins(&format!("x\n{}{}", ours.ca_pem(), theirs.ca_pem())), [ours.pin().clone(), theirs.pin().clone()]);
    }
}
