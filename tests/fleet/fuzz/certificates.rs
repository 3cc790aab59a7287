//! What travels of trust: certificates, requests for them, revocation lists.
//!
//! A signature keeps whatever lies behind it from a fuzzer. So bytes that are not PEM are what is signed, and are signed here, with the key
//! of an authority that everyone knows.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::authority::fuzzing::{record, requested};
use certs::crl::Crl;
use certs::tls::{CaPin, peer};
use common::identity::{MinionName, Role};
use common::protocol::certs::{CSR_MAX_BYTES, REVOCATIONS_MAX_BYTES};
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::words::is_lower_hex;

/// An authority of no fleet.
const CA: &[u8] = include_bytes!("../../fuzz/authority/ca.pem");
const CA_KEY: &[u8] = include_bytes!("../../fuzz/authority/ca.key");

/// `ecdsa-with-SHA256`, as an AlgorithmIdentifier (RFC 5758, 3.2).
const ECDSA_WITH_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

static AUTHORITY: LazyLock<CertificateDer<'static>> = LazyLock::new(|| CertificateDer::from_pem_slice(CA).expect("it is a certificate"));
static KEY: LazyLock<EcdsaKeyPair> = LazyLock::new(|| {
    let key = PrivatePkcs8KeyDer::from_pem_slice(CA_KEY).expect("it is a key");
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_pkcs8_der(), &SystemRandom::new()).expect("it is a key on P-256")
});
static NAME: LazyLock<MinionName> = LazyLock::new(|| "web1".parse().expect("it is a name"));

/// PEM text, or the body of a certificate request: whatever it asks for, a key is taken from it, and each other's name is seen.
pub fn csr(data: &[u8]) {
    let Some(text) = pem_of(data, "CERTIFICATE REQUEST") else { return };
    let Ok(read) = requested(&text, &NAME) else { return };
    assert!(text.len() <= CSR_MAX_BYTES && read.key.len() == 64 && is_lower_hex(&read.key), "{read:?}");
    assert!(read.foreign_name.is_none_or(|other| !other.eq_ignore_ascii_case(NAME.as_str())));
    // P-256 alone (RFC 5480): a point of 65 bytes, and 26 that say so.
    assert_eq!(read.public_key.len(), 91, "{:?}", read.public_key);
    let again = requested(&text, &NAME).expect("it was read before");
    assert_eq!(again.key, CaPin::of(&CertificateDer::from(read.public_key.clone())).to_string(), "a key is known by its digest");
}

/// PEM text, or the body of a revocation list.
pub fn crl(data: &[u8]) {
    let Some(text) = pem_of(data, "X509 CRL") else { return };
    let authorities = std::slice::from_ref(&*AUTHORITY);
    let Ok(list) = Crl::parse(&text, authorities) else { return };
    assert!(list.pem().len() <= REVOCATIONS_MAX_BYTES && list.pem() == text.trim());
    assert!(list.serials().count() == list.count() && list.serials().all(|serial| list.revokes(serial)));
    assert!(list.serials().all(|serial| serial.is_empty() || is_lower_hex(serial)));
    let times = [list.signed_at(), list.half_time(), list.this_update(), list.next_update()];
    assert!(times.iter().all(|time| *time >= Timestamp::MIN) && list.is_stale(Timestamp::MAX));
    let again = Crl::parse(list.pem(), authorities).expect("a list that is given on is taken");
    assert_eq!((again.number(), again.count()), (list.number(), list.count()));
    assert!(Crl::parse(&text, &[]).is_err(), "nobody has signed it");
}

/// PEM text that is a record of the authority, or the DER of a certificate.
pub fn certificate(data: &[u8]) {
    if let Some(text) = as_text(data) {
        return drop(record("00", text.as_bytes()));
    }
    let der = CertificateDer::from(data);
    let Ok(peer) = peer(std::slice::from_ref(&der)) else { return };
    assert_eq!(peer.role.to_string().parse::<Role>().ok().as_ref(), Some(&peer.role));
    assert!(peer.fingerprint.len() == 64 && is_lower_hex(&peer.fingerprint) && peer.cert == der);
    assert!(peer.serial.is_empty() || is_lower_hex(&peer.serial), "{}", peer.serial);
    let text = pem(data, "CERTIFICATE");
    let written = format!("{text}CRC32: {:08x}\n", crc32fast::hash(text.as_bytes()));
    let entry = record(&peer.serial, written.as_bytes()).expect("what is recorded is read");
    assert_eq!((&entry.role, &entry.serial, &entry.fingerprint), (&peer.role, &peer.serial, &peer.fingerprint));
    assert!(entry.overdue_at() <= entry.not_after.max(entry.not_before), "{entry:?}");
    assert!(record(&format!("{}0", peer.serial), written.as_bytes()).is_none(), "a record has the name of its serial number");
    assert!(record(&peer.serial, written.to_lowercase().as_bytes()).is_none(), "a record that was changed is none");
}

/// The text as it is, or the signed bytes as PEM text.
fn pem_of(data: &[u8], label: &str) -> Option<String> {
    match as_text(data) {
        Some(text) => Some(text.to_owned()),
        None => Some(pem(&signed(data)?, label)),
    }
}

fn as_text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok().filter(|text| text.trim_start().starts_with('-'))
}

fn signed(body: &[u8]) -> Option<Vec<u8>> {
    let signature = KEY.sign(&SystemRandom::new(), body).ok()?;
    let bits = [&[0], signature.as_ref()].concat();
    Some(element(SEQUENCE, &[body, &ECDSA_WITH_SHA256, &element(BIT_STRING, &bits)].concat()))
}

/// A tag, a length and a value (X.690, 8.1).
fn element(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len().to_be_bytes();
    let digits = length.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &length[first..]);
    let head = match value.len() {
        short @ 0..=127 => vec![tag, short.to_le_bytes()[0]],
        _ => [&[tag, 0x80 | digits.len().to_le_bytes()[0]], digits].concat(),
    };
    [&head, value].concat()
}

/// RFC 7468.
fn pem(der: &[u8], label: &str) -> String {
    let digits = STANDARD.encode(der);
    let lines: Vec<_> = digits.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
