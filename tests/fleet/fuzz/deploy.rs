//! What `overlord deploy` reads: the package, and what a host says of itself.

use overlord::fuzzing;

use super::assert_harmless;

/// The most that is kept of all that a host says: two certificates, the end of a log, and a few words.
const KEPT_MAX_BYTES: usize = 256 << 10;
/// The longest line that a failure becomes.
const MESSAGE_MAX_CHARS: usize = 1000;

/// The bytes as a package.
pub fn package(data: &[u8]) {
    match fuzzing::package(data) {
        Ok(words) => {
            for word in words {
                assert!(!word.is_empty() && word.len() <= 255 && word.bytes().all(|byte| byte.is_ascii_graphic()), "{word:?}");
            }
        }
        Err(problem) => assert!(!problem.is_empty()),
    }
}

/// The bytes as all that a host says.
pub fn deploy_report(data: &[u8]) {
    let (kept, verdict) = fuzzing::deploy_report(data);
    assert!(kept <= KEPT_MAX_BYTES, "{kept}");
    if let Some(error) = verdict.as_ref().and_then(|verdict| verdict.error()) {
        assert!(error.message.chars().count() <= MESSAGE_MAX_CHARS, "{}", error.message);
        assert_harmless(&fuzzing::harmless(&error.message));
    }
}
