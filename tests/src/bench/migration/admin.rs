//! The agents' admin sockets, asked without starting a program for each question.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Longer than an agent gives itself for any answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of an answer.
const ANSWER_MAX: usize = 16 << 20;

/// A connection to an agent, over which one request follows the other.
pub struct Admin(BufReader<UnixStream>);

impl Admin {
    /// Connects.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot reach the agent at {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// `GET path`.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        self.ask("GET", path)
    }

    /// `POST path`.
    pub fn post(&mut self, path: &str) -> Result<Value> {
        self.ask("POST", path)
    }

    fn ask(&mut self, method: &str, path: &str) -> Result<Value> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: homing\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (status, body) = self
            .answer()
            .with_context(|| format!("the agent's answer to {method} {path}"))?;
        if !(200..300).contains(&status) {
            bail!(
                "the agent answered {status} to {method} {path}: {}",
                String::from_utf8_lossy(&body)
            );
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// The status and the body of an answer with a `content-length`, as the agent's are.
    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let (mut status, mut len) = (None, None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                bail!("the connection was closed");
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            match (status, line.split_once(':')) {
                (None, _) => status = Some(line.split(' ').nth(1).context("no HTTP")?.parse()?),
                (_, Some((name, value))) if name.eq_ignore_ascii_case("content-length") => {
                    len = Some(value.trim().parse()?);
                }
                _ => {}
            }
        }
        let len: usize = len.context("no length")?;
        if len > ANSWER_MAX {
            bail!("{len} bytes are too many");
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok((status.context("no status")?, body))
    }
}
