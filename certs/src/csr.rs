//! A host's own key and its request for a certificate (PKCS #10), as the host writes it and as the authority reads it.
//!
//! Of a request the authority takes the key alone. The names in it are read so that one that wishes for another's can be refused.

use std::path::Path;

use common::identity::{MinionName, Role};
use common::protocol::certs::CSR_MAX_BYTES;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, GeneralName};

use crate::files::{self, FileError};
use crate::leaf::key_id;
use crate::request::{self, COMMON_NAME_MAX, RequestError};

/// Why a host's key or request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] RequestError),
}

/// Why a request is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrProblem {
    /// It is no request.
    #[error("it is no certificate request in PEM form of at most {CSR_MAX_BYTES} bytes")]
    NotCsr,
    /// Its signature is not that of the key in it: whoever sends it does not hold the key.
    #[error("it is not signed with the key that it brings")]
    Signature,
    /// Its key is none that a fleet uses.
    #[error("its key is not an ECDSA key on P-256, which `minion enroll` makes")]
    Key,
}

/// Makes a host's key in `path`, with mode 0600 from the first byte, unless there is one; says whether it made one.
///
/// # Errors
/// It cannot be made or written.
pub fn make_key(path: &Path) -> Result<bool, CsrError> {
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    match files::write_secret(path, request::key()?.serialize_pem().as_bytes()) {
        // Of several at once, one makes it.
        Err(FileError::Exists { .. }) => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// The request of the host `name` for a certificate for the key in `key`: PEM text.
///
/// # Errors
/// The key cannot be read, or others can read it.
pub fn write_csr(key: &Path, name: &MinionName) -> Result<String, CsrError> {
    let key = key_pair(key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str().chars().take(COMMON_NAME_MAX).collect::<String>());
    let csr = params.serialize_request(&key).and_then(|csr| csr.pem());
    Ok(csr.map_err(RequestError::from)?)
}

/// What the key in `path` is known by: the SHA-256 of its public key (SubjectPublicKeyInfo), in small hexadecimal digits.
///
/// # Errors
/// The key cannot be read, or others can read it.
pub fn key_file_id(path: &Path) -> Result<String, CsrError> {
    Ok(key_id(&key_pair(path)?.subject_public_key_info()))
}

fn key_pair(path: &Path) -> Result<KeyPair, CsrError> {
    let not_pem = || FileError::NotPem { path: path.to_owned(), what: "private key" };
    let text = String::from_utf8(files::read_secret(path)?).map_err(|_| not_pem())?;
    KeyPair::from_pem(&text).map_err(|_| not_pem().into())
}

/// What is read of a request.
#[derive(Debug, Clone)]
pub(crate) struct Csr {
    /// The SubjectPublicKeyInfo.
    pub(crate) public_key: Vec<u8>,
    /// The [`key_id`] of the key.
    pub(crate) key: String,
    /// Every name in it, wherever it stands.
    names: Vec<String>,
}

impl Csr {
    pub(crate) fn read(pem: &str) -> Result<Self, CsrProblem> {
        if pem.len() > CSR_MAX_BYTES {
            return Err(CsrProblem::NotCsr);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrProblem::NotCsr)?;
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| CsrProblem::NotCsr)?;
        if !rest.is_empty() {
            return Err(CsrProblem::NotCsr);
        }
        csr.verify_signature().map_err(|_| CsrProblem::Signature)?;
        let public_key = csr.certification_request_info.subject_pki.raw.to_vec();
        usable_key(&public_key)?;
        Ok(Self { key: key_id(&public_key), public_key, names: names(&csr) })
    }

    /// A name in it that is not `name`.
    pub(crate) fn foreign_name(&self, name: &MinionName) -> Option<&str> {
        let (role, common) = (Role::Minion(name.clone()).to_string(), common_name(name));
        let is_own = |text: &str| text.eq_ignore_ascii_case(name.as_str()) || text == role || text.eq_ignore_ascii_case(&common);
        self.names.iter().map(String::as_str).find(|text| !is_own(text))
    }
}

/// The key, if it is one that a fleet uses.
pub(crate) fn usable_key(public_key: &[u8]) -> Result<SubjectPublicKeyInfo, CsrProblem> {
    let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| CsrProblem::Key)?;
    let is_ours = *rcgen::PublicKeyData::algorithm(&key) == rcgen::PKCS_ECDSA_P256_SHA256;
    if is_ours { Ok(key) } else { Err(CsrProblem::Key) }
}

fn common_name(name: &MinionName) -> String {
    name.as_str().chars().take(COMMON_NAME_MAX).collect()
}

fn names(csr: &X509CertificationRequest<'_>) -> Vec<String> {
    let subject = csr.certification_request_info.subject.iter_attributes();
    let mut names: Vec<String> = subject.map(|attribute| attribute.as_str().unwrap_or("(not text)").to_owned()).collect();
    for extension in csr.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(alternatives) = extension {
            names.extend(alternatives.general_names.iter().map(shown));
        }
    }
    names
}

fn shown(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => (*text).to_owned(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(bytes) => std::net::Ipv4Addr::from(bytes).to_string(),
            Err(_) => {
                <[u8; 16]>::try_from(*bytes).map_or_else(|_| "(no address)".to_owned(), |bytes| std::net::Ipv6Addr::from(bytes).to_string())
            }
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::string_slice, reason = "a test may panic")]
    use super::*;
    use rcgen::{ExtendedKeyUsagePurpose, IsCa, SanType};

    fn request(key: &KeyPair, bend: impl Fn(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        bend(&mut params);
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_host_s_own_request_bears_its_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert!(make_key(&path).unwrap());
        assert!(!make_key(&path).unwrap(), "a key that is there stays");
        for name in ["web1", &format!("{0}.{0}", "long".repeat(15))] {
            let name: MinionName = name.parse().unwrap();
            let csr = Csr::read(&write_csr(&path, &name).unwrap()).unwrap();
            assert_eq!((csr.foreign_name(&name), &csr.key), (None, &key_file_id(&path).unwrap()));
            assert_eq!(csr.foreign_name(&"web2".parse().unwrap()), Some(common_name(&name).as_str()));
        }
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let key = KeyPair::generate().unwrap();
        let san = |san: SanType| request(&key, move |params| params.subject_alt_names = vec![san.clone()]);
        for (text, name) in [
            (request(&key, |params| params.distinguished_name.push(DnType::OrganizationName, "admin")), "admin"),
            (san(SanType::DnsName("web2".try_into().unwrap())), "web2"),
            (san(SanType::URI("fleet:overlord/admin".try_into().unwrap())), "fleet:overlord/admin"),
            (san(SanType::Rfc822Name("a@b".try_into().unwrap())), "a@b"),
            (san(SanType::IpAddress([10, 0, 0, 1].into())), "10.0.0.1"),
        ] {
            assert_eq!(Csr::read(&text).unwrap().foreign_name(&"web1".parse().unwrap()), Some(name));
        }
        let wishes = request(&key, |params| {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            params.subject_alt_names = vec![SanType::URI("fleet:minion/web1".try_into().unwrap())];
        });
        assert_eq!(Csr::read(&wishes).unwrap().foreign_name(&"web1".parse().unwrap()), None);
    }

    #[test]
    fn what_is_no_request_or_brings_another_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let sound = request(&key, |_| ());
        assert!(Csr::read(&sound).is_ok());
        // A digit within the signature, which is what stands last.
        let at = sound.find("-----END").unwrap() - 12;
        let other = if sound[at..].starts_with('A') { "B" } else { "A" };
        let broken = format!("{}{other}{}", &sound[..at], &sound[at + 1..]);
        assert!(matches!(Csr::read(&broken), Err(CsrProblem::Signature | CsrProblem::NotCsr)));
        for text in ["", "web1", &sound.replace("CERTIFICATE REQUEST", "CERTIFICATE"), &" ".repeat(CSR_MAX_BYTES + 1)] {
            assert!(matches!(Csr::read(text), Err(CsrProblem::NotCsr)), "{text:.40}");
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(Csr::read(&request(&other, |_| ())), Err(CsrProblem::Key)));
    }
}
