//! TLS 1.3 with a key of both sides' own, by s2n-tls: who completes the handshake
//! holds the POP's key.

use std::{io, sync::Arc};

use s2n_tls::{
    config::Config,
    connection::{Builder, Connection},
    enums::{Mode, PskHmac, Version},
    error::Error,
    psk::Psk,
    security::Policy,
};
use s2n_tls_tokio::{TlsAcceptor, TlsConnector, TlsStream};
use tokio::net::TcpStream;

use super::preamble::{PREAMBLE_LEN, Preamble};
use crate::pop::keys::Key;

/// What is offered and accepted of TLS: a set that does not change with the library.
const POLICY: &str = "20240503";

/// A protected connection.
pub(super) type Protected = TlsStream<TcpStream>;

/// How carriers are protected.
pub(super) struct Tls {
    config: Config,
}

impl Tls {
    /// Sets TLS up.
    pub fn new() -> Result<Self, Error> {
        let mut config = Config::builder();
        config
            .set_security_policy(&Policy::from_version(POLICY)?)?
            // No certificate proves anything here.
            .with_system_certs(false)?
            // Delays before a failure is told hide what padding of old ciphers gives
            // away. TLS 1.3 has none, and a failed handshake holds a place.
            .set_max_blinding_delay(0)?;
        let config = config.build()?;
        Ok(Self { config })
    }

    /// The dialer's handshake.
    pub async fn connect(
        &self,
        preamble: &Preamble,
        key: &Key,
        tcp: TcpStream,
    ) -> io::Result<Protected> {
        let connector = TlsConnector::new(self.keyed(preamble, key)?);
        let stream = connector.connect("homing", tcp).await?;
        is_proven(stream.as_ref(), preamble)?;
        Ok(stream)
    }

    /// The acceptor's handshake.
    pub async fn accept(
        &self,
        preamble: &Preamble,
        key: &Key,
        tcp: TcpStream,
    ) -> io::Result<Protected> {
        let acceptor = TlsAcceptor::new(self.keyed(preamble, key)?);
        let stream = acceptor.accept(tcp).await?;
        is_proven(stream.as_ref(), preamble)?;
        Ok(stream)
    }

    fn keyed(&self, preamble: &Preamble, key: &Key) -> Result<Keyed, Error> {
        let mut psk = Psk::builder()?;
        psk.set_identity(&preamble.encode())?
            .set_secret(&preamble.secret(key))?
            .set_hmac(PskHmac::SHA256)?;
        Ok(Keyed {
            config: self.config.clone(),
            psk: Arc::new(psk.build()?),
        })
    }
}

/// Makes connections that know one key, and nothing else.
#[derive(Clone)]
struct Keyed {
    config: Config,
    psk: Arc<Psk>,
}

impl Builder for Keyed {
    type Output = Connection;

    fn build_connection(&self, mode: Mode) -> Result<Connection, Error> {
        let mut connection = self.config.build_connection(mode)?;
        connection.append_psk(&self.psk)?;
        Ok(connection)
    }
}

/// A handshake without the key cannot complete, since neither side has, or trusts, a
/// certificate. That it was the key is looked at nevertheless.
fn is_proven(connection: &Connection, preamble: &Preamble) -> io::Result<()> {
    let mut identity = [0; PREAMBLE_LEN];
    let proven = connection.actual_protocol_version()? == Version::TLS13
        && connection.negotiated_psk_identity_length()? == PREAMBLE_LEN
        && connection.negotiated_psk_identity(&mut identity).is_ok()
        && identity == preamble.encode();
    let unproven = || io::Error::other("TLS without the POP's key");
    proven.then_some(()).ok_or_else(unproven)
}
