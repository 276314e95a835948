//! Asks the agent: HTTP over its Unix socket.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Failure;
use crate::admin::{api, server};

/// How long the agent is waited for: longer than it gives itself.
const WITHIN: Duration = server::ANSWER_WITHIN.saturating_add(Duration::from_secs(2));

/// The largest answer: the largest page of sessions is some 3 MB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// An agent, by its socket.
pub(super) struct Agent {
    socket: PathBuf,
    /// Where it answers those who may not use that one.
    read_socket: Option<PathBuf>,
}

impl Agent {
    pub(super) fn new(socket: PathBuf, read_socket: Option<PathBuf>) -> Self {
        Self {
            socket,
            read_socket,
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for something.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, WITHIN).await
    }

    /// Tells the agent to do something that it answers at once.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.post_within(path, WITHIN).await
    }

    /// Tells the agent to do something that may take it so long.
    pub(super) async fn post_within<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, within).await
    }

    /// Tells the agent to leave the POP and stop; the others keep its claims for
    /// `hold`.
    pub(super) async fn leave(&self, hold: Duration) -> Result<(), Failure> {
        let path = format!("/leave?hold_ms={}", hold.as_millis());
        let _: api::Leaving = self.post(&path).await?;
        Ok(())
    }

    /// Whether somebody listens on the socket.
    ///
    /// # Errors
    ///
    /// It cannot be told: no permission, for one.
    pub(super) async fn is_listening(&self) -> Result<bool, Failure> {
        match UnixStream::connect(&self.socket).await {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(false),
                _ => Err(self.unreachable(&error)),
            },
        }
    }

    /// The process that listens on the socket, as this one sees it; none where that cannot
    /// be told.
    pub(super) async fn pid(&self) -> Option<u32> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        let pid = stream.peer_cred().ok()?.pid()?;
        // Zero: a process that has no number here, in a namespace of its own.
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        within: Duration,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(within, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(&format!("no answer within {within:?}"))),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Failure> {
        let connected = self.connect(&method).await;
        let stream = connected.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "homing")
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .context("cannot put the request together")?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
        let body = body
            .collect()
            .await
            .map_err(|error| {
                anyhow!(
                    "the agent's answer broke off: {error}; repeat the command, and if that fails \
                     too see `journalctl -u homing`"
                )
            })?
            .to_bytes();
        if status.is_success() {
            let answer = serde_json::from_slice(&body);
            return Ok(answer.context("cannot read the agent's answer; is it of another version?")?);
        }
        let error = match serde_json::from_slice::<api::Failure>(&body) {
            Ok(failure) => failure.error,
            Err(_) => format!("the agent answered {status}"),
        };
        Err(match status {
            StatusCode::NOT_FOUND => Failure::NotFound(error),
            _ => anyhow!(error).into(),
        })
    }

    /// By the socket for reading, where that is all that is allowed and wanted.
    async fn connect(&self, method: &Method) -> io::Result<UnixStream> {
        let refused = match UnixStream::connect(&self.socket).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => error,
            connected => return connected,
        };
        match &self.read_socket {
            Some(socket) if *method == Method::GET => {
                UnixStream::connect(socket).await.map_err(|_| refused)
            }
            _ => Err(refused),
        }
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::Unreachable {
            socket: self.socket.clone(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, chown},
    };

    use nix::unistd::{Uid, geteuid, setfsuid};

    use super::*;
    use crate::admin::{socket::Rights, tests::Served};

    /// This thread is another user's to the file system until this is dropped.
    struct Stranger;

    impl Stranger {
        fn new() -> Self {
            setfsuid(Uid::from_raw(4711));
            Self
        }
    }

    impl Drop for Stranger {
        fn drop(&mut self) {
            setfsuid(Uid::from_raw(0));
        }
    }

    #[tokio::test]
    async fn who_may_only_read_asks_at_the_other_socket() {
        assert!(geteuid().is_root(), "this test needs root");
        let (both, read) = (Served::new(), Served::with(Rights::Read));
        chown(&both.path, None, Some(4242)).expect("chown");
        fs::set_permissions(&read.path, fs::Permissions::from_mode(0o666)).expect("chmod");
        let agent = Agent::new(both.path.clone(), Some(read.path.clone()));
        let apart = Agent::new(both.path.clone(), None);
        let _stranger = Stranger::new();
        agent
            .get::<api::Status>("/status")
            .await
            .expect("it answers");
        for refused in [
            agent.post::<api::Reloaded>("/reload").await.err(),
            apart.get::<api::Status>("/status").await.err(),
        ] {
            let why = refused.map(|failure| failure.to_string());
            let is_told = |why: &String| why.contains("Permission denied");
            assert!(why.as_ref().is_some_and(is_told), "{why:?}");
        }
    }
}
