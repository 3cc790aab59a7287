//! Who signed a call, and that nothing about it was changed: every other text, key, context and form is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use certs::files::Credentials;
use certs::signature::{SignatureError, sign, verify};
use common::protocol::SIGNED_CONTEXT;
use jiff::{SignedDuration, Timestamp};
use lab::{Lab, certificate, certificate_in, load};
use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

const ADMIN: &str = "fleet:overlord/admin";
const CALL: &str = r#"{"call_id":"54k2-9xqd-4fz1","caller":"admin","audience":["web1"],"method":"test.ping","args":{"words":["ü"]}}"#;

fn refused(cert: &CertificateDer<'_>, call: &str, signature: &str) -> String {
    verify(cert, call, signature).expect_err("it was taken for a signature").to_string()
}

/// What `ring` itself makes of these bytes with the key in `folder`.
fn signed_bare(folder: &std::path::Path, bytes: &[u8]) -> String {
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap() else {
        panic!("not PKCS #8");
    };
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_pkcs8_der(), &random).unwrap();
    STANDARD.encode(key.sign(&random, bytes).unwrap())
}

/// Credentials with a certificate of `lab`'s authority for a key of another kind.
fn other_kind(lab: &Lab) -> (Credentials, CertificateDer<'static>) {
    let folder = lab.folder(ADMIN);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let (from, until) = (Timestamp::now(), Timestamp::now() + SignedDuration::from_mins(5));
    fs::write(folder.join("cert.pem"), certificate(&lab.issuer(), &key, ADMIN, from, until)).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    (load(&folder), certificate_in(&folder))
}

#[test]
fn a_signature_is_good_for_its_text_and_its_certificate_alone() {
    let lab = Lab::new();
    let admin = lab.credentials(ADMIN);
    let cert = admin.cert().unwrap();
    let signature = sign(&admin, CALL).unwrap();
    verify(cert, CALL, &signature).unwrap();
    verify(cert, "", &sign(&admin, "").unwrap()).unwrap();
    let changed = "was not signed, as it stands here";
    for other in [&CALL[1..], &format!("{CALL} "), &CALL.replace("web1", "web2"), ""] {
        assert!(refused(cert, other, &signature).contains(changed), "{other}");
    }
    // The same bearer with another key, and another bearer.
    for role in [ADMIN, "fleet:overlord/ops"] {
        assert!(refused(lab.credentials(role).cert().unwrap(), CALL, &signature).contains(changed), "{role}");
    }
}

#[test]
fn a_renewed_certificate_goes_on_with_the_signatures_of_its_key() {
    let lab = Lab::new();
    let folder = lab.folder(ADMIN);
    let before = load(&folder);
    let signature = sign(&before, CALL).unwrap();
    let renewed = lab.again(&folder, ADMIN, Timestamp::now(), Timestamp::now() + SignedDuration::from_mins(5));
    fs::write(folder.join("cert.pem"), renewed).unwrap();
    let renewed = load(&folder);
    assert_eq!((renewed.key_id(), renewed.serial() == before.serial()), (before.key_id(), false));
    verify(renewed.cert().unwrap(), CALL, &signature).unwrap();
}

#[test]
fn each_flipped_bit_is_seen() {
    let lab = Lab::new();
    let admin = lab.credentials(ADMIN);
    let cert = admin.cert().unwrap();
    let signature = sign(&admin, CALL).unwrap();
    let der = STANDARD.decode(&signature).unwrap();
    let flipped = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for bit in 0..der.len() * 8 {
        assert!(verify(cert, CALL, &STANDARD.encode(flipped(&der, bit))).is_err(), "bit {bit} of the signature");
    }
    for text in (0..CALL.len() * 8).filter_map(|bit| String::from_utf8(flipped(CALL.as_bytes(), bit)).ok()) {
        assert!(verify(cert, &text, &signature).is_err(), "{text}");
    }
    // Of the key in the certificate: whatever else is flipped there, its issuer's signature tells.
    let (_, parsed) = <x509_parser::prelude::X509Certificate<'_> as x509_parser::prelude::FromDer<_>>::from_der(cert).unwrap();
    let key = &parsed.public_key().subject_public_key.data;
    let begins = cert.windows(key.len()).position(|part| part == key.as_ref()).unwrap();
    for bit in begins * 8..(begins + key.len()) * 8 {
        assert!(verify(&CertificateDer::from(flipped(cert, bit)), CALL, &signature).is_err(), "bit {bit} of the certificate");
    }
}

#[test]
fn what_the_key_signed_for_another_purpose_is_no_call() {
    let lab = Lab::new();
    let folder = lab.folder(ADMIN);
    let cert = certificate_in(&folder);
    let signed = |context: &[u8]| signed_bare(&folder, &[context, CALL.as_bytes()].concat());
    verify(&cert, CALL, &signed(b"overlord signed call 1\0")).unwrap();
    assert_eq!(SIGNED_CONTEXT, b"overlord signed call 1\0");
    for context in [&b""[..], b"overlord signed call 2\0", b"overlord signed call 1", b"TLS 1.3, client CertificateVerify\0"] {
        assert!(verify(&cert, CALL, &signed(context)).is_err(), "{context:?}");
    }
}

#[test]
fn what_cannot_be_a_signature_is_not_even_decoded() {
    let lab = Lab::new();
    let admin = lab.credentials(ADMIN);
    let cert = admin.cert().unwrap();
    let signature = sign(&admin, CALL).unwrap();
    let der = STANDARD.decode(&signature).unwrap();
    let of = |form: &dyn Fn(&[u8]) -> String| form(&der);
    let forms = [
        String::new(),
        "*".repeat(96),
        "ü".repeat(40),
        format!(" {signature}"),
        format!("{signature}\n"),
        signature[..signature.len() - 4].to_owned() + "====",
        STANDARD.encode([0; 73]),
        "A".repeat(64 << 20),
    ];
    for form in forms {
        assert!(matches!(verify(cert, CALL, &form), Err(SignatureError::Form)), "{:.100}", form);
    }
    for cut in [&der[1..], &der[..der.len() - 1], &[], &[0x30, 0x00], &[0; 72]] {
        assert!(verify(cert, CALL, &STANDARD.encode(cut)).is_err(), "{cut:?}");
    }
    // Whatever its length, its letters and its padding are those of one alphabet.
    let padded = (0..100).map(|_| sign(&admin, CALL).unwrap()).find(|text| text.ends_with('=')).unwrap();
    let bytes = STANDARD.decode(&padded).unwrap();
    assert!(verify(cert, CALL, &STANDARD_NO_PAD.encode(&bytes)).is_err());
    let lettered = (0..100).map(|_| sign(&admin, CALL).unwrap()).find(|text| text.contains(['+', '/'])).unwrap();
    assert!(verify(cert, CALL, &URL_SAFE.encode(STANDARD.decode(&lettered).unwrap())).is_err());
    assert!(verify(cert, CALL, &of(&|der| STANDARD.encode(der))).is_ok());
}

#[test]
fn a_key_of_another_kind_signs_nothing_and_says_what_to_do() {
    let lab = Lab::new();
    let (other, cert) = other_kind(&lab);
    let error = sign(&other, CALL).unwrap_err().to_string();
    assert!(error.contains("fleet:overlord/admin") && error.contains("`overlord certs issue --role overlord admin`"), "{error}");
    let signature = sign(&lab.credentials(ADMIN), CALL).unwrap();
    assert!(matches!(verify(&cert, CALL, &signature), Err(SignatureError::OtherKey)));
    let admin = lab.folder(ADMIN);
    let followed = CertificateDer::from([certificate_in(&admin).as_ref(), &[0]].concat());
    for bytes in [CertificateDer::from(vec![]), CertificateDer::from(vec![0x30; 1 << 20]), followed] {
        assert!(matches!(verify(&bytes, CALL, &signature), Err(SignatureError::Certificate)));
    }
}
