//! The Unix socket that the admin server listens on: see [`crate::unix`] for who may
//! talk to the agent.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::SockType;
use tokio::net::UnixListener;

use crate::unix::{SocketFile, listen_on};

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    file: SocketFile,
}

impl AdminSocket {
    /// Listens on `path`, and makes the folder if it is missing.
    ///
    /// # Errors
    ///
    /// An agent answers there, something else than a socket is there, or the file
    /// system refuses. Must be called within a tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        Self::try_bind(path)
            .with_context(|| format!("cannot listen on the admin socket {}", path.display()))
    }

    fn try_bind(path: &Path) -> Result<Self> {
        let (socket, file) = listen_on(path, SockType::Stream, "admin.socket")?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self { listener, file })
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[tokio::test]
    async fn the_file_comes_and_goes_with_the_socket() {
        let folder = super::super::fake::Folder::new();
        let path = folder.0.join("deep/er/admin.sock");
        let socket = AdminSocket::bind(&path).expect("bind");
        let mode = fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let refusal = AdminSocket::bind(&path).expect_err("it is live");
        assert!(
            format!("{refusal:#}").contains("an agent answers there"),
            "{refusal:#}"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = super::super::fake::Folder::new();
        let path = folder.0.join("admin.sock");
        // The file of a std listener stays when the listener goes.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        drop(AdminSocket::bind(&path).expect("bind"));
        fs::write(&path, "mine").expect("write");
        let refusal = AdminSocket::bind(&path).expect_err("a file");
        assert!(
            format!("{refusal:#}").contains("something else"),
            "{refusal:#}"
        );
        assert_eq!(fs::read_to_string(&path).expect("read"), "mine");
    }

    #[tokio::test]
    async fn a_successors_file_is_left_alone() {
        let folder = super::super::fake::Folder::new();
        let path = folder.0.join("admin.sock");
        let first = AdminSocket::bind(&path).expect("bind");
        fs::remove_file(&path).expect("remove");
        let second = AdminSocket::bind(&path).expect("bind");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
