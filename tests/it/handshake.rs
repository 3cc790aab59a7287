//! What others than our own programs see of TLS: `openssl s_client` against a minion and against `overlord certs serve`. The versions that are spoken,
//! the certificate that is shown, and the alert for each certificate that is not accepted (RFC 8446, 6.2).

use std::net::SocketAddr;
use std::time::Duration;

use certs::authority::{Authority, Validity};
use fleet::openssl::{Shown, s_client};
use fleet::{Fleet, PATIENCE, issue_into, wait_until};
use jiff::{SignedDuration, Timestamp};

/// The alerts, as RFC 8446 numbers them.
const HANDSHAKE_FAILURE: u8 = 40;
const CERTIFICATE_REVOKED: u8 = 44;
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const ACCESS_DENIED: u8 = 49;
const PROTOCOL_VERSION: u8 = 70;
const CERTIFICATE_REQUIRED: u8 = 116;

/// So many hours from now on, or back.
fn validity(from: i64, to: i64) -> Validity {
    let now = Timestamp::now();
    Validity { not_before: now + SignedDuration::from_hours(from), not_after: now + SignedDuration::from_hours(to) }
}

/// The server refuses with this alert, and answers nothing.
fn assert_alert(what: &str, address: SocketAddr, shown: Option<&Shown>, words: &[&str], alert: u8) {
    let said = s_client(address, shown, words);
    assert!(said.contains(&format!("SSL alert number {alert}\n")), "{what}: not alert {alert}: {said}");
    assert!(!said.contains("HTTP/1.1"), "{what}: it was answered: {said}");
}

/// The server answers, over TLS 1.3, and openssl finds its certificate good.
fn assert_answered(what: &str, fleet: &Fleet, address: SocketAddr, shown: Option<&Shown>) -> String {
    let ca = fleet.home().join("certs/ca.pem");
    let said = s_client(address, shown, &["-CAfile", ca.to_str().unwrap(), "-verify_return_error"]);
    assert!(said.contains("HTTP/1.1 405 "), "{what}: {said}");
    assert!(said.contains("TLSv1.3") && said.contains("Verify return code: 0 (ok)"), "{what}: {said}");
    said
}

/// Older versions are refused, whoever asks. A client of 1.1 and older does not say which signatures it knows, and rustls, which looks at that first,
/// calls it a failed handshake.
fn assert_tls_13_alone(address: SocketAddr, shown: &Shown) {
    for (version, alert) in [("-tls1_2", PROTOCOL_VERSION), ("-tls1_1", HANDSHAKE_FAILURE), ("-tls1", HANDSHAKE_FAILURE)] {
        assert_alert(version, address, Some(shown), &[version], alert);
        assert_alert(version, address, None, &[version], alert);
    }
}

/// What no port accepts, each with its alert.
fn assert_refused_everywhere(fleet: &Fleet, address: SocketAddr, role: &str) {
    let foreign = Authority::init(&fleet.root().join("foreign"), Duration::from_secs(7200)).unwrap();
    let stranger = issue_into(&fleet.root().join("strangers"), &foreign, role, validity(-1, 1));
    let revoked = fleet.issue_within("fleet:overlord/gone", validity(-1, 1));
    let _ = fleet.overlord(["certs", "revoke", "gone"]).ok();
    let revoked = Shown::of(&revoked);
    // Who serves looks at the list a few times a second.
    wait_until("who was revoked is refused", PATIENCE, || !s_client(address, Some(&revoked), &[]).contains("HTTP/1.1"));
    let cases = [
        ("self-signed", Shown::self_signed(fleet.root(), role), UNKNOWN_CA),
        ("another authority's", Shown::of(&stranger), UNKNOWN_CA),
        ("expired", Shown::of(&fleet.issue_within(role, validity(-2, -1))), CERTIFICATE_EXPIRED),
        ("not yet valid", Shown::of(&fleet.issue_within(role, validity(1, 2))), CERTIFICATE_EXPIRED),
        ("revoked", revoked, CERTIFICATE_REVOKED),
    ];
    for (what, shown, alert) in &cases {
        assert_alert(what, address, Some(shown), &[], *alert);
    }
}

#[test]
fn a_minion_speaks_tls_13_alone_and_says_what_is_wrong_with_a_certificate() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let admin = Shown { cert: fleet.home().join("certs/overlord.pem"), key: fleet.home().join("certs/overlord.key") };
    let said = assert_answered("an overlord", &fleet, web1.address(), Some(&admin));
    assert!(said.contains("TLS_AES_") || said.contains("TLS_CHACHA20_"), "{said}");
    assert_tls_13_alone(web1.address(), &admin);
    assert_alert("no certificate", web1.address(), None, &[], CERTIFICATE_REQUIRED);
    assert_alert("a minion's role", web1.address(), Some(&Shown::of(&web1.certs_dir())), &[], ACCESS_DENIED);
    assert_refused_everywhere(&fleet, web1.address(), "fleet:overlord/ops");
    assert_answered("the overlord, after all that", &fleet, web1.address(), Some(&admin));
    let _ = fleet.overlord(["web1", "test.ping"]).ok();
}

/// There who shows no certificate may ask for one, and hosts ask as well as overlords.
#[test]
fn the_authority_speaks_tls_13_alone_and_says_what_is_wrong_with_a_certificate() {
    let fleet = Fleet::start(1);
    let authority = fleet.serve_certs();
    let admin = Shown { cert: fleet.home().join("certs/overlord.pem"), key: fleet.home().join("certs/overlord.key") };
    let host = Shown::of(&fleet.minion("web1").certs_dir());
    for (what, shown) in [("no certificate", None), ("an overlord", Some(&admin)), ("a host", Some(&host))] {
        assert_answered(what, &fleet, authority.address(), shown);
    }
    assert_tls_13_alone(authority.address(), &admin);
    assert_refused_everywhere(&fleet, authority.address(), "fleet:minion/web9");
    assert_answered("a host, after all that", &fleet, authority.address(), Some(&host));
    authority.stop();
}
