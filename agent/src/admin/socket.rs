//! The Unix sockets that the admin server listens on: see [`crate::unix`] for who may
//! talk to the agent.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::SockType;
use tokio::net::UnixListener;

use crate::unix::{Access, SocketFile, listen_on};

/// What the agent does for who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// It answers, and does what it is told.
    Change,
    /// It answers.
    Read,
}

impl Rights {
    /// The keys of the configuration: the socket's path, and the group that may use it.
    fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Change => ["admin.socket", "admin.group"],
            Self::Read => ["admin.read_socket", "admin.readers"],
        }
    }
}

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    file: SocketFile,
    rights: Rights,
}

impl AdminSocket {
    /// Listens on `path`, and makes the folder if it is missing.
    ///
    /// # Errors
    ///
    /// An agent answers there, something else than a socket is there, or the file
    /// system refuses. Must be called within a tokio runtime.
    pub fn bind(path: &Path, rights: Rights) -> Result<Self> {
        let [setting, _] = rights.keys();
        Self::try_bind(path, rights)
            .with_context(|| format!("cannot listen on {setting} {}", path.display()))
    }

    fn try_bind(path: &Path, rights: Rights) -> Result<Self> {
        let [setting, _] = rights.keys();
        let (socket, file) = listen_on(path, SockType::Stream, setting)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self {
            listener,
            file,
            rights,
        })
    }

    /// Who may use it.
    pub fn access(&self) -> Access {
        let [socket, group] = self.rights.keys();
        self.file.access(socket, group)
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile, Rights) {
        (self.listener, self.file, self.rights)
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
        let socket = AdminSocket::bind(&path, Rights::Change).expect("bind");
        let mode = fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let refusal = AdminSocket::bind(&path, Rights::Change).expect_err("it is live");
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
        drop(AdminSocket::bind(&path, Rights::Change).expect("bind"));
        fs::write(&path, "mine").expect("write");
        let refusal = AdminSocket::bind(&path, Rights::Change).expect_err("a file");
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
        let first = AdminSocket::bind(&path, Rights::Change).expect("bind");
        fs::remove_file(&path).expect("remove");
        let second = AdminSocket::bind(&path, Rights::Change).expect("bind");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
