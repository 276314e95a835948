//! Asks the agent: HTTP over its Unix socket.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
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
        self.ask(Method::GET, path, None, WITHIN).await
    }

    /// Asks for something by a question that does not fit into a path. It changes nothing.
    pub(super) async fn query<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, Failure> {
        let question = serde_json::to_vec(question).map_err(anyhow::Error::from)?;
        self.ask(Method::POST, path, Some(question.into()), WITHIN)
            .await
    }

    /// Tells the agent to do something whose answer comes piece by piece.
    pub(super) async fn pieces(&self, path: &str) -> Result<Pieces, Failure> {
        let response = tokio::time::timeout(WITHIN, self.request(Method::POST, path, None));
        let Ok(response) = response.await else {
            return Err(self.unreachable(&format!("no answer within {WITHIN:?}")));
        };
        let response = response?;
        match response.status().is_success() {
            true => Ok(Pieces(response)),
            false => Err(refusal(response).await),
        }
    }

    /// Asks for something, and waits for the answer for so long only.
    pub(super) async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, Failure> {
        self.ask(Method::GET, path, None, within).await
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
        self.ask(Method::POST, path, None, within).await
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
        body: Option<Bytes>,
        within: Duration,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(within, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(&format!("no answer within {within:?}"))),
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, Failure> {
        let response = self.request(method, path, body).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let answer = serde_json::from_slice(&whole(response).await?);
        Ok(answer.context("cannot read the agent's answer; is it of another version?")?)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, Failure> {
        let changes = method != Method::GET && body.is_none();
        let connected = self.connect(changes).await;
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
            .header("content-type", "application/json")
            .body(Full::new(body.unwrap_or_default()))
            .context("cannot put the request together")?;
        let response = sender.send_request(request).await;
        response.map_err(|error| self.unreachable(&error))
    }

    /// By the socket for reading, where that is all that is allowed and wanted.
    async fn connect(&self, changes: bool) -> io::Result<UnixStream> {
        let refused = match UnixStream::connect(&self.socket).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => error,
            connected => return connected,
        };
        match &self.read_socket {
            Some(socket) if !changes => UnixStream::connect(socket).await.map_err(|_| refused),
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

/// An answer that comes piece by piece.
pub(super) struct Pieces(Response<Incoming>);

impl Pieces {
    /// The capture's number.
    pub(super) fn number(&self) -> Option<u64> {
        let number = self.0.headers().get(api::CAPTURE_NUMBER)?;
        number.to_str().ok()?.parse().ok()
    }

    /// The next piece; none, if it has come to its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.0.body_mut().frame().await {
            let frame = frame.map_err(|error| broken_off(&error))?;
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await;
    let body = body.map_err(|error| broken_off(&error))?;
    Ok(body.to_bytes())
}

fn broken_off(error: &dyn std::fmt::Display) -> Failure {
    anyhow!(
        "the agent's answer broke off: {error}; repeat the command, and if that fails too see \
         `journalctl -u homing`"
    )
    .into()
}

/// Why the agent did not do what it was told.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = match whole(response).await {
        Ok(body) => body,
        Err(failure) => return failure,
    };
    let error = match serde_json::from_slice::<api::Failure>(&body) {
        Ok(failure) => failure.error,
        Err(_) => format!("the agent answered {status}"),
    };
    match status {
        StatusCode::NOT_FOUND => Failure::NotFound(error),
        StatusCode::UNPROCESSABLE_ENTITY => Failure::RefusedConfig(error),
        _ => anyhow!(error).into(),
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
