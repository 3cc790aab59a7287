//! What the authority's desk gives to whom, and that a kill between any two of its steps loses and doubles nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test may panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::authority::desk::{Asked, Desk, Enrolled, Refused, Standing, Terms, TokenProblem};
use certs::authority::{Authority, AuthorityError};
use certs::crl::Crl;
use certs::csr::{make_key, write_csr};
use common::identity::MinionName;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);
const TERMS: Terms = Terms { valid: DAY, crl_valid: DAY, requests_max: 3 };

struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        Authority::init(&lab.certs(), 100 * DAY).unwrap();
        lab
    }

    fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    fn desk(&self) -> Desk {
        self.desk_with(TERMS)
    }

    fn desk_with(&self, terms: Terms) -> Desk {
        Desk::open(&self.certs(), terms).unwrap()
    }

    /// The request of `name` with the key `key`.
    fn asked(&self, name: &str, key: &str) -> Asked {
        let path = self.dir.path().join(key);
        make_key(&path).unwrap();
        let name: MinionName = name.parse().unwrap();
        Asked { csr: write_csr(&path, &name).unwrap(), name, token: None, from: "127.0.0.1:1".into() }
    }

    fn with_token(&self, name: &str, key: &str, token: &str) -> Asked {
        Asked { token: Some(token.to_owned()), ..self.asked(name, key) }
    }

    fn files(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.certs().join(folder)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn names(names: &[&str]) -> Vec<MinionName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn ask(desk: &mut Desk, asked: Asked) -> Result<Enrolled, Refused> {
    desk.enroll(&[asked]).unwrap().remove(0)
}

fn issued(enrolled: Result<Enrolled, Refused>) -> String {
    match enrolled {
        Ok(Enrolled::Issued(certified)) => certified.cert_pem,
        other => panic!("not issued: {other:?}"),
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn serials(list: &Crl) -> BTreeSet<String> {
    list.serials().map(str::to_owned).collect()
}

fn is_waiting(enrolled: &Result<Enrolled, Refused>) -> bool {
    matches!(enrolled, Ok(Enrolled::Waiting { .. }))
}

#[test]
fn a_request_waits_until_it_is_signed_and_then_gets_one_certificate() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    assert!(is_waiting(&ask(&mut desk, lab.asked("web1", "a"))));
    assert!(is_waiting(&ask(&mut desk, lab.asked("web1", "a"))), "asked again it waits as before");
    // Another process signs.
    assert_eq!(lab.desk().sign(None).unwrap().len(), 1);
    let first = issued(ask(&mut desk, lab.asked("web1", "a")));
    assert_eq!(issued(ask(&mut desk, lab.asked("web1", "a"))), first);
    assert_eq!((lab.files("issued").len(), lab.files("requests").len()), (1, 0));
}

#[test]
fn signing_signs_all_or_none_and_rejecting_rejects_all_or_none() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    for name in ["web1", "web2"] {
        let _ = ask(&mut desk, lab.asked(name, name));
    }
    for refused in [desk.sign(Some(&names(&["web1", "web3", "web2"]))).map(drop), desk.reject(&names(&["web1", "web3"]))] {
        let Err(AuthorityError::NotAll { problems, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(problems, ["web3 has no request that waits"]);
    }
    assert_eq!((lab.files("issued").len(), lab.files("requests").len()), (0, 2));
    desk.reject(&names(&["web2"])).unwrap();
    assert!(matches!(ask(&mut desk, lab.asked("web2", "web2")), Ok(Enrolled::Rejected { .. })));
    assert!(desk.sign(Some(&names(&["web1", "web2"]))).is_err(), "a rejected one is not signed");
    assert_eq!(desk.sign(Some(&names(&["web1"]))).unwrap()[0].role.name(), "web1");
    assert!(is_waiting(&ask(&mut desk, lab.asked("web2", "another"))), "another key may ask where one was rejected");
}

#[test]
fn nobody_gets_anothers_name() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    Authority::open(&lab.certs()).unwrap().issue(&["fleet:overlord/admin".parse().unwrap()], DAY).unwrap();
    for (asked, refused) in [
        (lab.asked("admin", "k"), "an overlord"),
        (lab.asked("fleet-authority", "k"), "the authority"),
        (Asked { name: "web2".parse().unwrap(), ..lab.asked("web1", "k") }, "bears the name \"web1\""),
        (Asked { csr: "nonsense".into(), ..lab.asked("web1", "k") }, "no certificate request"),
    ] {
        let said = ask(&mut desk, asked).unwrap_err().to_string();
        assert!(said.contains(refused), "{said}");
    }
    assert!(lab.files("requests").is_empty());
}

/// What a request wishes for beside its key: to be an authority, to sign code, a long life. The certificate has none of it.
#[test]
fn nothing_that_a_request_wishes_for_is_in_the_certificate() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let mut wishes = rcgen::CertificateParams::default();
    wishes.distinguished_name = rcgen::DistinguishedName::new();
    wishes.distinguished_name.push(rcgen::DnType::CommonName, "web1");
    wishes.subject_alt_names = vec![rcgen::SanType::URI("fleet:minion/web1".try_into().unwrap())];
    wishes.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wishes.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    wishes.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning, rcgen::ExtendedKeyUsagePurpose::Any];
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = wishes.serialize_request(&key).unwrap().pem().unwrap();
    let token = desk.token(None, DAY).unwrap().token;
    let asked = Asked { name: "web1".parse().unwrap(), csr, token: Some(token), from: "127.0.0.1:1".into() };
    let der = der(&issued(ask(&mut desk, asked)));
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert!(!cert.is_ca());
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign(), "{usage:?}");
    let extended = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.code_signing && !extended.any, "{extended:?}");
    let names: Vec<_> = cert.subject_alternative_name().unwrap().unwrap().value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["URI(fleet:minion/web1)", "DNSName(web1)"]);
    assert!(cert.validity().time_to_expiration().unwrap() <= DAY);
}

#[test]
fn a_name_is_bound_to_its_key_until_it_is_cleaned() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let _ = ask(&mut desk, lab.asked("web1", "old"));
    assert!(matches!(ask(&mut desk, lab.asked("web1", "new")), Err(Refused::OtherKeyWaits { .. })));
    desk.sign(None).unwrap();
    let old = issued(ask(&mut desk, lab.asked("web1", "old")));
    let token = desk.token(None, DAY).unwrap().token;
    for asked in [lab.asked("web1", "new"), lab.with_token("web1", "new", &token)] {
        let said = ask(&mut desk, asked).unwrap_err().to_string();
        assert!(said.contains("another key") && said.contains("overlord certs clean web1"), "{said}");
    }
    assert_eq!(issued(ask(&mut desk, lab.asked("web1", "old"))), old, "the old certificate is untouched");
    assert_eq!(desk.clean(&texts(&["web1"]), None).unwrap().len(), 1);
    let fresh = issued(ask(&mut desk, lab.with_token("web1", "new", &token)));
    assert_ne!(fresh, old);
    assert!(matches!(desk.renew(&[der(&old)]).unwrap()[0], Err(Refused::Revoked { .. })), "the old one is out");
    assert!(desk.clean(&texts(&["web1", "web9"]), None).is_err());
    assert_eq!(issued(ask(&mut desk, lab.asked("web1", "new"))), fresh, "all or none");
}

#[test]
fn a_token_signs_once_for_its_names_in_its_time() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = desk.token(Some("web*".into()), DAY).unwrap().token;
    let problem = |refused: Result<Enrolled, Refused>| match refused {
        Err(Refused::Token { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert!(matches!(problem(ask(&mut desk, lab.with_token("db1", "db1", &token))), TokenProblem::OtherName { .. }));
    assert!(matches!(problem(ask(&mut desk, lab.with_token("web1", "web1", "guessed"))), TokenProblem::Unknown));
    let mut both = desk.enroll(&[lab.with_token("web1", "web1", &token), lab.with_token("web2", "web2", &token)]).unwrap();
    assert!(matches!(problem(both.remove(1)), TokenProblem::Used { .. }), "two at once");
    let cert = issued(both.remove(0));
    assert!(matches!(problem(ask(&mut desk, lab.with_token("web3", "web3", &token))), TokenProblem::Used { .. }));
    assert_eq!(issued(ask(&mut desk, lab.with_token("web1", "web1", &token))), cert, "who did not hear the answer asks again");
    let over = desk.token(None, Duration::ZERO).unwrap().token;
    assert!(matches!(problem(ask(&mut desk, lab.with_token("web3", "web3", &over))), TokenProblem::Expired { .. }));
    assert!(matches!(desk.token(Some("web[".into()), DAY), Err(AuthorityError::Glob { .. })));
    let kept: String = lab.files("tokens").iter().map(|file| fs::read_to_string(lab.certs().join("tokens").join(file)).unwrap()).collect();
    assert!(!kept.contains(&token) && !lab.files("tokens").iter().any(|file| file.contains(&token)), "the token itself is kept nowhere");
}

#[test]
fn only_so_many_requests_wait_and_a_token_passes_them() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let asked: Vec<_> = (1..=5).map(|number| lab.asked(&format!("web{number}"), &number.to_string())).collect();
    let told = desk.enroll(&asked).unwrap();
    assert_eq!(told.iter().filter(|told| is_waiting(told)).count(), 3);
    assert!(matches!(told[3], Err(Refused::Full { waiting: 3, .. })), "{told:?}");
    let token = desk.token(None, DAY).unwrap().token;
    let _ = issued(ask(&mut desk, lab.with_token("web5", "5", &token)));
}

#[test]
fn a_renewal_keeps_key_name_and_role_and_is_given_once() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = desk.token(None, DAY).unwrap().token;
    let first = issued(ask(&mut desk, lab.with_token("web1", "k", &token)));
    let renew = |desk: &mut Desk, pem: &str| desk.renew(&[der(pem)]).unwrap().remove(0).unwrap().cert_pem;
    let second = renew(&mut desk, &first);
    assert_ne!(second, first);
    assert_eq!(renew(&mut desk, &first), second, "who did not hear the answer asks again");
    let view = desk.view().unwrap();
    assert_eq!((view.bearers.len(), view.bearers[0].standing), (1, Standing::Good));
    let keys: BTreeSet<_> = desk.listed().unwrap().into_iter().map(|listed| (listed.entry.key, listed.entry.role)).collect();
    assert_eq!(keys.len(), 1);
    let authority = Authority::open(&lab.certs()).unwrap().server_identity(DAY).unwrap();
    assert!(matches!(desk.renew(&authority.cert[..1]).unwrap()[0], Err(Refused::NotRenewable { .. })));
}

#[test]
fn what_is_revoked_stands_in_the_list_and_the_list_only_grows_newer() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    desk.tend().unwrap();
    let empty = desk.signed_list().unwrap().unwrap();
    assert_eq!(empty.count(), 0);
    let roles = ["fleet:minion/web1", "fleet:overlord/ops", "fleet:minion/both", "fleet:overlord/both"].map(|role| role.parse().unwrap());
    let made = Authority::open(&lab.certs()).unwrap().issue(&roles, DAY).unwrap();
    for (subjects, problem) in [
        (texts(&["web1", "web9"]), "web9 has no certificate that is still good"),
        (texts(&["both"]), "minion/both or overlord/both"),
        (texts(&["ops"]), "own certificate"),
    ] {
        let Err(AuthorityError::NotAll { problems, .. }) = desk.revoke(&subjects, Some(&made[1].serial)) else { panic!("{subjects:?}") };
        assert!(problems.len() == 1 && problems[0].contains(problem), "{problems:?}");
    }
    assert_eq!(desk.signed_list().unwrap().unwrap().pem(), empty.pem(), "nothing was revoked");
    let revoked = desk.revoke(&texts(&["web1", "overlord/both", &made[2].serial]), None).unwrap();
    assert_eq!(revoked.len(), 3);
    let list = desk.signed_list().unwrap().unwrap();
    assert!(list.count() == 3 && revoked.iter().all(|entry| list.revokes(&entry.serial)));
    assert!(list.number() > empty.number());
    fs::remove_file(lab.certs().join("crl.pem")).unwrap();
    desk.tend().unwrap();
    let again = desk.signed_list().unwrap().unwrap();
    assert!(serials(&again) == serials(&list) && again.number() >= list.number(), "{again:?}");
    assert!(desk.revoke(&texts(&["web1"]), None).unwrap().is_empty(), "it is revoked already");
    assert!(desk.revoke(&texts(&["web1", "web9"]), None).is_err(), "and still all or none");
    assert!(matches!(ask(&mut desk, lab.asked("web1", "k")), Err(Refused::Revoked { .. })), "and its name stays shut");
    for _ in 0..2 {
        desk.clean(&texts(&["web1", "overlord/both"]), None).unwrap();
    }
    assert!(desk.revoke(&texts(&["web1", "overlord/both", &made[0].serial]), None).unwrap().is_empty());
    assert!(is_waiting(&ask(&mut desk, lab.asked("web1", "k"))));
}

/// What a kill leaves is a state of files from which the next one goes on.
#[test]
fn what_a_kill_left_half_done_is_finished() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = desk.token(None, DAY).unwrap().token;
    let _ = ask(&mut desk, lab.asked("web1", "1"));
    let keep = |folder: &str| copy(&lab.certs().join(folder), &lab.dir.path().join(format!("kept-{folder}")));
    let restore = |folder: &str| copy(&lab.dir.path().join(format!("kept-{folder}")), &lab.certs().join(folder));
    // Between the record and the end of the request.
    keep("requests");
    desk.sign(None).unwrap();
    restore("requests");
    let mut next = lab.desk();
    let cert = issued(ask(&mut next, lab.asked("web1", "1")));
    assert_eq!((lab.files("issued").len(), lab.files("requests").len()), (1, 0), "no second certificate");
    assert_eq!(issued(ask(&mut next, lab.asked("web1", "1"))), cert);
    // Between the revocation and the list.
    let list = fs::read(lab.certs().join("crl.pem")).unwrap();
    next.revoke(&texts(&["web1"]), None).unwrap();
    fs::write(lab.certs().join("crl.pem"), list).unwrap();
    lab.desk().tend().unwrap();
    assert_eq!(lab.desk().signed_list().unwrap().unwrap().count(), 1);
    // A mark that is damaged is a mark.
    let mark = lab.certs().join("revoked").join(lab.files("revoked").first().unwrap());
    fs::write(&mark, "nonsense").unwrap();
    assert!(matches!(lab.desk().renew(&[der(&cert)]).unwrap()[0], Err(Refused::Revoked { .. })));
    // A token that is burnt and has signed nothing yet.
    let mut desk = lab.desk();
    keep("issued");
    let _ = issued(ask(&mut desk, lab.with_token("web2", "2", &token)));
    assert!(matches!(ask(&mut lab.desk(), lab.with_token("web3", "3", &token)), Err(Refused::Token { .. })));
}

/// A name that no certificate can be made for harms nobody else, however it came to be asked.
#[test]
fn a_name_that_cannot_be_certified_stops_nobody() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = desk.token(None, DAY).unwrap().token;
    for asked in [lab.asked("db.10", "x"), lab.with_token("db.10", "x", &token)] {
        let said = ask(&mut desk, asked).unwrap_err().to_string();
        assert!(said.contains("db.10") && said.contains("digits"), "{said}");
    }
    // An older version has kept one, and granted another.
    let waiting = ask(&mut desk, lab.asked("web1", "1"));
    assert!(is_waiting(&waiting));
    let kept: String = fs::read_to_string(lab.certs().join("requests/web1.json")).unwrap();
    for (name, answer) in [("rack.7", "\"waiting\""), ("rack.8", "{\"granted\":{\"token\":\"none\"}}")] {
        let body: serde_json::Value = serde_json::from_str(&kept).unwrap();
        let mut body = body["body"].clone();
        body["name"] = name.into();
        body["answer"] = serde_json::from_str(answer).unwrap();
        fs::write(lab.certs().join(format!("requests/{name}.json")), common::seal::seal(&body).unwrap()).unwrap();
    }
    let Err(AuthorityError::NotAll { problems, .. }) = desk.sign(None) else { panic!("signed") };
    assert!(problems.len() == 1 && problems[0].contains("rack.7"), "{problems:?}");
    assert!(lab.files("issued").is_empty(), "all or none");
    assert_eq!(desk.sign(Some(&names(&["web1"]))).unwrap().len(), 1);
    assert!(desk.view().unwrap().requests.iter().any(|request| request.name.as_str() == "rack.8" && request.rejected_at.is_some()));
}

#[test]
fn the_longest_name_is_kept_and_signed_like_any_other() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    assert!(is_waiting(&ask(&mut desk, lab.asked(&long, "other"))));
    desk.reject(&names(&[&long])).unwrap();
    assert!(matches!(ask(&mut desk, lab.asked(&long, "other")), Ok(Enrolled::Rejected { .. })));
    assert!(is_waiting(&ask(&mut desk, lab.asked(&long, "k"))));
    assert_eq!(desk.sign(Some(&names(&[&long]))).unwrap()[0].role.name(), long);
    let _ = issued(ask(&mut desk, lab.asked(&long, "k")));
}

#[test]
fn a_token_outranks_who_merely_asked_before() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    assert!(is_waiting(&ask(&mut desk, lab.asked("web1", "squatter"))));
    let token = desk.token(Some("web1".into()), DAY).unwrap().token;
    let _ = issued(ask(&mut desk, lab.with_token("web1", "own", &token)));
    assert!(matches!(ask(&mut desk, lab.asked("web1", "squatter")), Err(Refused::Mismatch { .. })));
}

/// Damage never frees a name, turns a record into another's, or lets a revoked certificate back in.
#[test]
fn damage_gives_nobody_anything() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = |desk: &mut Desk| desk.token(None, DAY).unwrap().token;
    let first = token(&mut desk);
    let _ = issued(ask(&mut desk, lab.with_token("web1", "own", &first)));
    let revoked = issued(ask(&mut desk, lab.with_token("web2", "2", &token(&mut lab.desk()))));
    desk.revoke(&texts(&["web2"]), None).unwrap();
    let serial = serials(&desk.signed_list().unwrap().unwrap()).pop_first().unwrap();
    // The mark of the one, and the record of the other.
    fs::write(lab.certs().join(format!("revoked/{serial}.json")), "nonsense").unwrap();
    let record = lab.files("issued").into_iter().find(|file| !file.starts_with(&serial)).unwrap();
    let path = lab.certs().join("issued").join(record);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen('M', "N", 1)).unwrap();
    let mut desk = lab.desk();
    desk.revoke(&texts(&["web9"]), None).unwrap_err();
    fs::remove_file(lab.certs().join("crl.pem")).unwrap();
    desk.tend().unwrap();
    assert!(desk.signed_list().unwrap().unwrap().revokes(&serial), "its mark is damaged, and it stays revoked");
    assert!(matches!(desk.renew(&[der(&revoked)]).unwrap()[0], Err(Refused::Revoked { .. })));
    let stolen = token(&mut desk);
    assert!(matches!(ask(&mut desk, lab.with_token("web1", "thief", &stolen)), Err(Refused::Damaged { .. })));
    assert!(is_waiting(&ask(&mut desk, lab.asked("web1", "thief"))));
    assert!(matches!(desk.sign(None), Err(AuthorityError::NotAll { .. })));
    assert_eq!(desk.view().unwrap().damaged.len(), 2);
    fs::write(&path, whole).unwrap();
    assert!(matches!(ask(&mut lab.desk(), lab.with_token("web1", "thief", &stolen)), Err(Refused::Mismatch { .. })));
}

/// What was revoked stands in the list after a restore from a backup too, and a list that nobody can verify is signed anew.
#[test]
fn the_list_forgets_nothing_that_it_cannot_know_to_be_over() {
    let lab = Lab::new();
    // Each list is signed anew whenever the folder is held.
    let mut desk = lab.desk_with(Terms { crl_valid: Duration::ZERO, ..TERMS });
    let token = desk.token(None, DAY).unwrap().token;
    let _ = issued(ask(&mut desk, lab.with_token("web1", "1", &token)));
    desk.revoke(&texts(&["web1"]), None).unwrap();
    let list = desk.signed_list().unwrap().unwrap();
    fs::remove_dir_all(lab.certs().join("revoked")).unwrap();
    fs::remove_dir_all(lab.certs().join("issued")).unwrap();
    fs::create_dir(lab.certs().join("issued")).unwrap();
    let mut restored = lab.desk_with(Terms { crl_valid: Duration::ZERO, ..TERMS });
    restored.tend().unwrap();
    let again = restored.signed_list().unwrap().unwrap();
    assert!(again.number() > list.number() && serials(&again) == serials(&list), "{again:?}");
    let path = lab.certs().join("crl.pem");
    let text = fs::read_to_string(&path).unwrap();
    let at = text.find("-----END").unwrap() - 12;
    let other = if text[at..].starts_with('A') { "B" } else { "A" };
    fs::write(&path, format!("{}{other}{}", &text[..at], &text[at + 1..])).unwrap();
    assert!(restored.signed_list().unwrap().is_none(), "its signature is not the authority's");
    restored.tend().unwrap();
    assert!(restored.signed_list().unwrap().unwrap().number() > again.number());
}

#[test]
fn a_second_renewal_goes_on_from_the_first() {
    let lab = Lab::new();
    let mut desk = lab.desk();
    let token = desk.token(None, DAY).unwrap().token;
    let first = issued(ask(&mut desk, lab.with_token("web1", "k", &token)));
    let renew = |desk: &mut Desk, pem: &str| desk.renew(&[der(pem)]).unwrap().remove(0).unwrap().cert_pem;
    let second = renew(&mut desk, &first);
    let third = renew(&mut desk, &second);
    assert!(third != first && third != second);
    for _ in 0..6 {
        let newest = desk.listed().unwrap().len();
        let _ = renew(&mut desk, &third);
        assert!(desk.listed().unwrap().len() <= newest + 1);
    }
    assert_eq!(desk.view().unwrap().bearers.len(), 1);
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn several_processes_work_on_one_authority() {
    let lab = Lab::new();
    let terms = Terms { requests_max: 1000, ..TERMS };
    std::thread::scope(|scope| {
        for process in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let mut desk = lab.desk_with(terms);
                for number in 0..10 {
                    let name = format!("web{process}-{number}");
                    let _ = ask(&mut desk, lab.asked(&name, &name));
                    if number % 3 == 0 {
                        let _ = desk.sign(None);
                    }
                }
            });
        }
    });
    let mut desk = lab.desk_with(terms);
    let _ = desk.sign(None);
    let bearers = desk.view().unwrap().bearers;
    assert_eq!((bearers.len(), lab.files("issued").len(), lab.files("requests").len()), (40, 40, 0));
}
