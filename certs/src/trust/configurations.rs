//! Which TLS configurations each kind of side has.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use crate::files::Credentials;
use crate::tls::{self, Anchor, TlsError};

/// The TLS configurations of one kind of side, made of its credentials.
pub trait Configurations: Sized + Send + Sync + 'static {
    /// Makes them.
    ///
    /// # Errors
    /// The credentials are not of this kind, or their authority is not sound.
    fn of(credentials: &Credentials) -> Result<Self, TlsError>;
}

/// The configurations of a side that serves.
pub trait Serving: Configurations {
    /// With which it accepts.
    fn server(&self) -> &Arc<ServerConfig>;
}

/// A minion's.
#[derive(Debug)]
pub struct MinionTls {
    /// For calls.
    pub server: Arc<ServerConfig>,
    /// For asking the authority.
    pub authority: Arc<ClientConfig>,
}

/// An overlord's.
#[derive(Debug)]
pub struct OverlordTls {
    /// For calling minions.
    pub client: Arc<ClientConfig>,
    /// For asking the authority.
    pub authority: Arc<ClientConfig>,
}

/// That of `overlord certs serve`.
#[derive(Debug)]
pub struct AuthorityTls {
    /// For whoever asks.
    pub server: Arc<ServerConfig>,
}

impl Configurations for MinionTls {
    fn of(credentials: &Credentials) -> Result<Self, TlsError> {
        Ok(Self { server: tls::server_config(credentials)?, authority: asking_authority(credentials)? })
    }
}

impl Configurations for OverlordTls {
    fn of(credentials: &Credentials) -> Result<Self, TlsError> {
        Ok(Self { client: tls::client_config(credentials)?, authority: asking_authority(credentials)? })
    }
}

impl Configurations for AuthorityTls {
    fn of(credentials: &Credentials) -> Result<Self, TlsError> {
        Ok(Self { server: tls::authority_server_config(credentials)? })
    }
}

impl Serving for MinionTls {
    fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

impl Serving for AuthorityTls {
    fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

fn asking_authority(credentials: &Credentials) -> Result<Arc<ClientConfig>, TlsError> {
    tls::authority_client_config(&Anchor::Authorities(credentials.authorities().to_vec()), Some(credentials))
}
