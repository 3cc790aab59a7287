//! Who is refused once revoked, what a stale list means, and the authority's own server: who it lets in, and who can pose as it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;

use std::sync::Arc;

use certs::crl::{Crl, StaleCrl};
use certs::files::Credentials;
use certs::tls::{self, Anchor, CaPin, TlsError};
use certs::trust::{MinionTrust, TrustFiles};
use jiff::{SignedDuration, Timestamp};
use lab::{Lab, careless_server, certificate_in, load, refused, refused_authority, shake};
use rustls::ClientConfig;

const STALE: SignedDuration = SignedDuration::from_mins(-1);

fn going_by(credentials: Credentials, crl: &Crl) -> Credentials {
    credentials.with_crl(Some(crl.clone()), StaleCrl::Serve)
}

fn by_authorities(lab: &Lab, shows: Option<&Credentials>) -> Arc<ClientConfig> {
    tls::authority_client_config(&Anchor::Authorities(lab.ca()), shows).unwrap()
}

fn by_pin(pin: &CaPin) -> Arc<ClientConfig> {
    tls::authority_client_config(&Anchor::Pin(pin.clone()), None).unwrap()
}

#[test]
fn a_revoked_overlord_is_refused_and_the_others_are_not() {
    let lab = Lab::new();
    let (mallory, admin) = (lab.credentials("fleet:overlord/mallory"), lab.credentials("fleet:overlord/admin"));
    let crl = lab.crl(1, &[mallory.serial()]);
    let server = tls::server_config(&going_by(lab.credentials("fleet:minion/web1"), &crl)).unwrap();
    let (log, refusal) = refused(server.clone(), tls::client_config(&mallory).unwrap());
    assert_eq!(log, "its certificate has been revoked");
    assert!(refusal.refused_by_peer, "{refusal:?}");
    assert!(refusal.message.starts_with("web1 refuses our certificate: it has been revoked; `overlord certs status`"), "{refusal:?}");
    let shaken = shake(server, tls::client_config(&admin).unwrap(), "web1");
    assert_eq!(shaken.served.unwrap().unwrap().serial, admin.serial());
}

#[test]
fn a_revoked_minion_is_refused_and_the_others_are_not() {
    let lab = Lab::new();
    let (web1, web1_anew) = (lab.credentials("fleet:minion/web1"), lab.credentials("fleet:minion/web1"));
    let admin = going_by(lab.credentials("fleet:overlord/admin"), &lab.crl(1, &[web1.serial()]));
    let client = tls::client_config(&admin).unwrap();
    let (log, refusal) = refused(tls::server_config(&web1).unwrap(), client.clone());
    assert_eq!(log, "it refuses our certificate (CertificateRevoked)");
    assert!(!refusal.refused_by_peer && refusal.message.contains("`overlord certs clean web1`"), "{refusal:?}");
    shake(tls::server_config(&web1_anew).unwrap(), client, "web1").asked.unwrap();
}

#[test]
fn a_stale_list_still_holds_and_refuses_the_rest_only_if_told() {
    let lab = Lab::new();
    let (mallory, admin) = (lab.credentials("fleet:overlord/mallory"), lab.credentials("fleet:overlord/admin"));
    let stale = Crl::parse(&lab.list(1, &[mallory.serial()], STALE), &lab.ca()).unwrap();
    assert!(stale.is_stale(Timestamp::now()) && !stale.is_stale(stale.next_update()));
    let web1 = lab.credentials("fleet:minion/web1");
    let lenient = tls::server_config(&web1.clone().with_crl(Some(stale.clone()), StaleCrl::Serve)).unwrap();
    shake(lenient.clone(), tls::client_config(&admin).unwrap(), "web1").asked.unwrap();
    assert_eq!(refused(lenient, tls::client_config(&mallory).unwrap()).0, "its certificate has been revoked");

    let strict = web1.with_crl(Some(stale.clone()), StaleCrl::Refuse);
    let (log, refusal) = refused(tls::server_config(&strict).unwrap(), tls::client_config(&admin).unwrap());
    assert!(log.starts_with("our revocation list is stale since 20"), "{log}");
    assert!(refusal.refused_by_peer && refusal.message.contains("perhaps its revocation list is stale"), "{refusal:?}");

    let strict = tls::client_config(&admin.with_crl(Some(stale), StaleCrl::Refuse)).unwrap();
    let (_, refusal) = refused(tls::server_config(&lab.credentials("fleet:minion/web1")).unwrap(), strict);
    assert!(!refusal.refused_by_peer && refusal.message.contains("our revocation list is stale since 20"), "{refusal:?}");
}

#[test]
fn whose_list_is_stale_still_asks_the_authority_for_a_newer_one() {
    let lab = Lab::new();
    let stale = Crl::parse(&lab.list(1, &[], STALE), &lab.ca()).unwrap();
    let strict = lab.credentials("fleet:minion/web1").with_crl(Some(stale), StaleCrl::Refuse);
    let server = tls::authority_server_config(&lab.serving()).unwrap();
    shake(server, by_authorities(&lab, Some(&strict)), tls::AUTHORITY_NAME).asked.unwrap();
    // Whom that list names is refused all the same.
    let revoked = lab.serving();
    let strict = strict.with_crl(Some(lab.crl(2, &[revoked.serial()])), StaleCrl::Refuse);
    let server = tls::authority_server_config(&revoked).unwrap();
    let (_, refusal) = refused_authority(server, by_authorities(&lab, Some(&strict)), Some(strict.role()));
    assert!(refusal.message.starts_with("the certificate of what answers at ca:51235 has been revoked"), "{refusal:?}");
}

#[test]
fn a_connection_that_is_open_is_admitted_until_it_is_revoked() {
    let lab = Lab::new();
    let folder = lab.folder("fleet:minion/web1");
    let trust = MinionTrust::open(TrustFiles::of_minion(&folder), StaleCrl::Refuse, |trouble| panic!("{trouble}")).unwrap();
    let admin = tls::peer(&[certificate_in(&lab.folder("fleet:overlord/admin"))]).unwrap();
    assert_eq!(trust.admits(&admin), Ok(()));
    assert!(trust.take_crl(&lab.list(1, &[&admin.serial], SignedDuration::from_hours(1))).unwrap());
    assert_eq!(trust.admits(&admin), Err("its certificate has been revoked".to_owned()));
    assert!(trust.take_crl(&lab.list(2, &[], STALE)).unwrap());
    assert!(trust.admits(&admin).unwrap_err().contains("stale"));
}

#[test]
fn the_authority_lets_in_members_and_whoever_shows_nothing() {
    let lab = Lab::new();
    let server = tls::authority_server_config(&lab.serving()).unwrap();
    for role in ["fleet:minion/web1", "fleet:overlord/admin"] {
        let shaken = shake(server.clone(), by_authorities(&lab, Some(&lab.credentials(role))), tls::AUTHORITY_NAME);
        assert_eq!(shaken.served.unwrap().unwrap().role, role.parse().unwrap());
    }
    for client in [by_authorities(&lab, None), by_pin(&CaPin::of(&lab.ca()[0]))] {
        assert_eq!(shake(server.clone(), client, tls::AUTHORITY_NAME).served.unwrap(), None);
    }
}

#[test]
fn the_authority_refuses_whoever_shows_a_certificate_that_is_not_good() {
    let lab = Lab::new();
    let (web1, web2) = (lab.credentials("fleet:minion/web1"), lab.credentials("fleet:minion/web2"));
    let server = tls::authority_server_config(&going_by(lab.serving(), &lab.crl(1, &[web1.serial()]))).unwrap();
    let expired = load(&lab.folder_until("fleet:minion/web1", Timestamp::now() - SignedDuration::from_mins(1)));
    let posing = lab.serving();
    let words = |log: &str, ours: &Credentials| {
        let shaken = shake(server.clone(), by_authorities(&lab, Some(ours)), tls::AUTHORITY_NAME);
        assert_eq!(tls::client_refusal(&shaken.served.unwrap_err()).unwrap(), log);
        assert!(!shaken.heard);
        tls::authority_refusal_within("ca:51235", Some(ours.role()), &shaken.asked.unwrap_err()).unwrap().message
    };
    let message = words("its certificate has been revoked", &web1);
    assert!(message.starts_with("the authority at ca:51235 refuses our certificate: it has been revoked; if web1"), "{message}");
    assert!(message.contains("`overlord certs clean web1`") && message.contains("`minion enroll`"), "{message}");
    assert!(words("its certificate has expired", &expired).contains("it has expired or is not valid yet"));
    assert!(words("its certificate is not one of a client", &posing).contains("neither a minion's nor an overlord's"));
    shake(server.clone(), by_authorities(&lab, Some(&web2)), tls::AUTHORITY_NAME).asked.unwrap();
}

#[test]
fn a_pin_finds_its_authority_in_what_the_server_shows() {
    let lab = Lab::new();
    let pin = CaPin::of(&lab.ca()[0]);
    let shaken = shake(tls::authority_server_config(&lab.serving()).unwrap(), by_pin(&pin), tls::AUTHORITY_NAME);
    assert_eq!(pin.find(&shaken.asked.unwrap()), Some(&lab.ca()[0]));
}

#[test]
fn another_authority_than_the_pinned_one_is_refused_before_a_byte_is_sent() {
    let (ours, theirs) = (Lab::new(), Lab::new());
    let (pin, other) = (CaPin::of(&ours.ca()[0]), CaPin::of(&theirs.ca()[0]));
    let (_, refusal) = refused_authority(tls::authority_server_config(&theirs.serving()).unwrap(), by_pin(&pin), None);
    assert!(!refusal.refused_by_peer, "{refusal:?}");
    assert!(refusal.message.contains(&format!("it shows the authority {other}, and {pin} is expected")), "{refusal:?}");

    // It shows our authority's certificate, which anyone can have, and is not certified by it.
    let folder = theirs.folder("fleet:minion/web1");
    let chain = vec![certificate_in(&folder), ours.ca()[0].clone()];
    let (_, refusal) = refused_authority(careless_server(chain, &folder), by_pin(&pin), None);
    assert!(refusal.message.contains("certified by another authority than ours"), "{refusal:?}");

    // It shows no authority at all; what is pinned is no authority.
    let chain = vec![certificate_in(&folder)];
    let (_, refusal) = refused_authority(careless_server(chain.clone(), &folder), by_pin(&pin), None);
    assert!(refusal.message.contains("it shows no authority's certificate"), "{refusal:?}");
    let leaf_pin = CaPin::of(&chain[0]);
    let twice = vec![chain[0].clone(), chain[0].clone()];
    let (_, refusal) = refused_authority(careless_server(twice, &folder), by_pin(&leaf_pin), None);
    assert!(refusal.message.contains("it shows no authority's certificate"), "{refusal:?}");
}

#[test]
fn nobody_but_the_authority_poses_as_it() {
    let lab = Lab::new();
    let ca = lab.ca()[0].clone();
    let pin = CaPin::of(&ca);
    // A host may bear the very name under which the authority is dialled; its role is another.
    for role in ["fleet:minion/fleet-authority", "fleet:minion/web1", "fleet:overlord/fleet-authority"] {
        let folder = lab.folder(role);
        for client in [by_authorities(&lab, None), by_pin(&pin)] {
            let (_, refusal) = refused_authority(careless_server(vec![certificate_in(&folder), ca.clone()], &folder), client, None);
            assert!(refusal.message.starts_with("what answers at ca:51235 is not the fleet's authority"), "{refusal:?}");
        }
        assert!(matches!(tls::authority_server_config(&load(&folder)), Err(TlsError::Role { needs: "authority", .. })));
    }
}

#[test]
fn the_authority_is_neither_a_minion_nor_an_overlord() {
    let lab = Lab::new();
    let serving = lab.serving();
    assert!(matches!(tls::server_config(&serving), Err(TlsError::Role { needs: "minion", .. })));
    assert!(matches!(tls::client_config(&serving), Err(TlsError::Role { needs: "overlord", .. })));
    let other = Lab::new();
    let (_, refusal) = refused_authority(tls::authority_server_config(&other.serving()).unwrap(), by_authorities(&lab, None), None);
    assert!(refusal.message.contains("certified by another authority than ours"), "{refusal:?}");
}
