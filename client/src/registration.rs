//! An application's registration with its agent, for as long as the application runs.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    Application, Protocol,
    driver::{Driver, Ended},
    wire::{Closing, SERVICES_MAX, canonical},
};

/// The first wait before another try to reach the agent; each is twice as long, up to
/// [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Why an application cannot register.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent refuses it.
    #[error("the agent at {socket} refuses the registration: {closing}{}{text}", if text.is_empty() { "" } else { ": " }, socket = socket.display())]
    Refused {
        /// The agent's socket.
        socket: PathBuf,
        /// The kind of reason.
        closing: Closing,
        /// More.
        text: String,
    },
    /// What is to be registered cannot be said.
    #[error("{0}")]
    Invalid(&'static str),
}

/// What an application is, and serves.
#[derive(Clone, Debug)]
pub struct Registration {
    pub(crate) socket: PathBuf,
    pub(crate) protocol: Protocol,
    pub(crate) services: Vec<SocketAddr>,
}

impl Registration {
    /// A registration with the agent that listens on `socket`, as an application that
    /// speaks `protocol`.
    pub fn new(socket: impl AsRef<Path>, protocol: Protocol) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
            protocol,
            services: Vec::new(),
        }
    }

    /// Adds a service whose connections can be moved: an address and TCP port of the
    /// POP that this application serves.
    #[must_use]
    pub fn service(mut self, endpoint: SocketAddr) -> Self {
        self.services.push(canonical(endpoint));
        self
    }

    /// Registers the application and has it do what the agent asks for, until this is
    /// dropped; then moves that are pending end as if the process had ended. An agent
    /// that is not there, or goes, is waited for: moves that are pending stay pending,
    /// for nobody else may say what becomes of them.
    ///
    /// # Errors
    ///
    /// The agent refuses the first registration. A later one it cannot refuse for good:
    /// it is tried again.
    pub async fn serve<A: Application>(self, application: Arc<A>) -> Result<Infallible, Error> {
        if !self.protocol.is_valid() {
            return Err(Error::Invalid(
                "the protocol's name must have 1 to 64 bytes and no control characters",
            ));
        }
        if self.services.is_empty() || self.services.len() > SERVICES_MAX {
            return Err(Error::Invalid("there must be 1 to 256 services"));
        }
        let mut driver = Driver::new(application);
        let mut wait = RETRY_MIN;
        let mut was_registered = false;
        loop {
            let ended = driver.connect(&self).await;
            if driver.take_registered() {
                was_registered = true;
                wait = RETRY_MIN;
            }
            match ended {
                // Its successor is about to start.
                Ended::Refused(Closing::Stopping, _) | Ended::Lost(_) => {}
                Ended::Refused(closing, text) if !was_registered => {
                    return Err(Error::Refused {
                        socket: self.socket,
                        closing,
                        text,
                    });
                }
                Ended::Refused(..) => wait = RETRY_MAX,
            }
            driver.rest(wait).await;
            wait = RETRY_MAX.min(wait * 2);
        }
    }
}
