//! A server that has no certificate yet, and waits for it: a package starts it before anybody has enrolled the host.

use std::io;
use std::thread;
use std::time::Duration;

use certs::trust::TrustFiles;
use tracing::info;

use crate::config::Config;
use crate::service_manager::{self, SignsOfLife};

/// How often it is looked whether it is there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Returns once there is a certificate in `certs_dir`, or something that hinders looking, of which opening it says more. The certificate is what
/// `minion enroll` writes last.
pub(crate) fn await_certificate(config: &Config) {
    let cert = TrustFiles::of_minion(&config.certs_dir).cert;
    let is_missing = || cert.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if !is_missing() {
        return;
    }
    info!("there is no {} yet: run `minion enroll`, as `overlord certs token` says where the authority is", cert.display());
    service_manager::ready("waits for its certificate: run `minion enroll`, as `overlord certs token` says where the authority is");
    let mut signs = SignsOfLife::begin();
    let pause = signs.every().map_or(LOOK_EVERY, |every| every.min(LOOK_EVERY));
    while is_missing() {
        signs.give();
        thread::sleep(pause);
    }
    service_manager::status("has its certificate");
}
