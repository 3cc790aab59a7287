//! Why a connection broke, in words for a person.

use std::error::Error;

/// What rustls says of a connection that ended without a farewell, which is how a cut one ends: with the address of a manual.
const NO_FAREWELL: &str = "close_notify";

/// The deepest cause of an error, which says most: the ones above it say that something failed.
#[must_use]
pub fn deepest_cause(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    if text.contains(NO_FAREWELL) { "the connection was cut".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_cut_connection_is_called_one() {
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "peer closed connection without sending TLS close_notify: see a manual");
        assert_eq!(deepest_cause(&cut), "the connection was cut");
        assert_eq!(deepest_cause(&io::Error::other("no route")), "no route");
    }
}
