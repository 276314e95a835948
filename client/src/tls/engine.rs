//! s2n-tls between two records: no socket, no time.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use s2n_tls::{
    config::Config,
    connection::Connection,
    enums::{Blinding, Mode, PeerKeyUpdate, Version},
    error::Error,
};

use super::{
    Session, Unmovable, Unusable,
    state::{self, State},
    wire::{PLAINTEXT_MAX, Record, Wire},
};

/// Application data as everybody can see it (RFC 8446, 5.1).
const APPLICATION_DATA: u8 = 23;
/// Content type and tag, which every record of TLS 1.3 has (RFC 8446, 5.2; all its
/// ciphers that s2n-tls has use tags of 16 bytes).
const OVERHEAD_13: usize = 17;
/// A whole `KeyUpdate`, without padding (RFC 8446, 4.6.3).
const KEY_UPDATE_LEN: usize = 5;

/// What came of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Came {
    /// So many bytes of data: more than none.
    Data(usize),
    /// Something that is the protocol's own business.
    Nothing,
    /// The client sends no more.
    Close,
    /// There is no whole record.
    Incomplete,
}

/// One connection's TLS.
pub(super) struct Engine {
    connection: Connection,
    pub wire: Wire,
    /// The client may be owed a `KeyUpdate`: s2n-tls sends it with the next data, and
    /// does not serialize that it will.
    owes_key_update: bool,
    /// The last record may have been a part of a message.
    in_message: bool,
    is_closing: bool,
}

impl Engine {
    /// Before the handshake.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let mut connection = Connection::new(Mode::Server);
        connection.set_config(config.clone())?;
        // s2n-tls would stop the whole thread.
        connection.set_blinding(Blinding::SelfService)?;
        Ok(Self {
            connection,
            wire: Wire::default(),
            owes_key_update: false,
            in_message: false,
            is_closing: false,
        })
    }

    /// Where another one was.
    pub fn restore(config: &Config, state: &State<'_>) -> Result<Self, Unusable> {
        state::check_serialized(state.serialized)?;
        let refused = |_| Unusable("s2n-tls refuses it");
        let mut engine = Self::new(config).map_err(refused)?;
        let restored = engine.connection.deserialize(state.serialized);
        state::wipe_stack();
        restored.map_err(refused)?;
        if state.owes_key_update {
            let update = PeerKeyUpdate::KeyUpdateNotRequested;
            engine
                .connection
                .request_key_update(update)
                .map_err(refused)?;
        }
        engine.owes_key_update = state.owes_key_update;
        engine.wire.input.put(state.input);
        engine.wire.output.put(state.output);
        Ok(engine)
    }

    /// As much of the handshake as can be done with what has come. True: all of it.
    pub fn negotiate(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        // A handshake takes what it asks for: it may begin with a record of SSL 2, and its
        // records may be long. It does not ask for more than its own.
        self.wire.input.allow(usize::MAX);
        // For callbacks of the configuration that take their time.
        self.connection.set_waker(Some(cx.waker()))?;
        let done = self
            .wire
            .with(&mut self.connection, |c| c.poll_negotiate().map_ok(drop))?;
        self.connection.set_waker(None)?;
        self.wire.input.allow(0);
        state::wipe_stack();
        match done {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    /// What the handshake found out.
    pub fn session(&self) -> Result<Session, Error> {
        let connection = &self.connection;
        let mut client_certificates = Vec::new();
        if connection.client_cert_used() {
            for certificate in connection.peer_cert_chain()?.iter() {
                client_certificates.push(certificate?.der()?.to_vec());
            }
        }
        Ok(Session {
            server_name: connection.server_name().map(str::to_owned),
            application_protocol: connection.application_protocol().map(<[u8]>::to_vec),
            client_certificates,
        })
    }

    /// The version that was agreed on.
    pub fn version(&self) -> Result<Version, Error> {
        self.connection.actual_protocol_version()
    }

    /// The cipher suite that was agreed on, as OpenSSL calls it.
    pub fn cipher_suite(&self) -> Result<&str, Error> {
        self.connection.cipher_suite()
    }

    /// Decrypts the next record. `out` has room for any.
    pub fn decrypt(&mut self, out: &mut [u8]) -> io::Result<Came> {
        debug_assert!(out.len() >= PLAINTEXT_MAX);
        let Some(record) = self.wire.input.record()? else {
            return Ok(Came::Incomplete);
        };
        self.wire.input.allow(record.len());
        let received = self.wire.with(&mut self.connection, |c| c.poll_recv(out))?;
        let came = match received {
            Poll::Ready(Ok(0)) => Came::Close,
            Poll::Ready(Ok(len)) => Came::Data(len),
            Poll::Pending => Came::Nothing,
            Poll::Ready(Err(error)) => {
                self.is_closing = true;
                return Err(error.into());
            }
        };
        match came {
            Came::Data(_) => self.in_message = false,
            Came::Close => self.is_closing = true,
            _ => self.came_nothing(record)?,
        }
        Ok(came)
    }

    /// A record was the protocol's own business. That it was a whole message can be told
    /// from its length alone, and not always.
    pub fn came_nothing(&mut self, record: Record) -> Result<(), Error> {
        // It may have changed keys.
        state::wipe_stack();
        if self.version()? != Version::TLS13 {
            self.in_message = record.kind != APPLICATION_DATA;
            return Ok(());
        }
        match record.body_len.checked_sub(OVERHEAD_13) {
            // Data, but none.
            Some(0) => {}
            Some(KEY_UPDATE_LEN) => {
                self.owes_key_update = true;
                self.in_message = false;
            }
            _ => {
                self.owes_key_update = true;
                self.in_message = true;
            }
        }
        Ok(())
    }

    /// Encrypts; all of it is output then.
    pub fn encrypt(&mut self, data: &[u8]) -> Result<(), Error> {
        let sent = self
            .wire
            .with(&mut self.connection, |c| c.poll_send(data))?;
        if self.owes_key_update {
            state::wipe_stack();
        }
        match sent {
            Poll::Ready(sent) => {
                debug_assert_eq!(sent?, data.len());
                self.owes_key_update &= data.is_empty();
                Ok(())
            }
            // The output takes all there is.
            Poll::Pending => Err(Error::application("s2n-tls did not send".into())),
        }
    }

    /// Says that nothing more will be sent, or what was wrong.
    pub fn close(&mut self) -> Result<(), Error> {
        self.is_closing = true;
        let closed = self.wire.with(&mut self.connection, |c| {
            c.poll_shutdown_send().map_ok(drop)
        })?;
        match closed {
            Poll::Ready(closed) => closed,
            Poll::Pending => Err(Error::application("s2n-tls did not close".into())),
        }
    }

    /// How long to wait before the client may notice that something was wrong.
    pub fn delay(&self) -> Duration {
        // It fails with null pointers only.
        self.connection
            .remaining_blinding_delay()
            .unwrap_or_default()
    }

    /// Makes a state of it; afterwards it is of no use.
    pub fn serialize(
        &mut self,
        session: &Session,
        plaintext: &[u8],
        application: &[u8],
    ) -> Result<crate::Blob, Unmovable> {
        let refused = |error: Error| Unmovable::Refused(error.name());
        if self.is_closing {
            return Err(Unmovable::Closing);
        }
        if self.in_message {
            return Err(Unmovable::NoBoundary);
        }
        if !matches!(
            self.version().map_err(refused)?,
            Version::TLS12 | Version::TLS13
        ) {
            return Err(Unmovable::Version);
        }
        let serialized = vec![0; self.connection.serialization_length().map_err(refused)?];
        let mut serialized = zeroize::Zeroizing::new(serialized);
        self.connection
            .serialize(&mut serialized)
            .map_err(refused)?;
        self.is_closing = true;
        let state = State {
            owes_key_update: self.owes_key_update,
            serialized: &serialized,
            session: session.clone(),
            plaintext,
            input: self.wire.input.left(),
            output: self.wire.output.left(),
            application,
        };
        Ok(state.encode())
    }
}
