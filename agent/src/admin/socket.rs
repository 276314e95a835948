//! The Unix socket that the admin server listens on.
//!
//! Owner and group may talk to the agent (mode 0660), others may not, and at no
//! instant could they. A socket that an agent left behind when it was killed is
//! replaced; one that still answers is not.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tokio::net::{UnixListener, UnixSocket};

/// Who may talk to the agent.
const MODE: u32 = 0o660;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, to know it again.
    identity: (u64, u64),
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
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream()?;
        // The kernel gives the file the mode of the socket, less the umask: so it
        // is never wider than this, not even before the next line.
        nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(MODE))?;
        socket.bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
        let identity = identity(path)?;
        let listener = socket.listen(BACKLOG)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity,
        };
        Ok(Self { listener, file })
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another agent may have taken the place since.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(meta) if !meta.file_type().is_socket() => {
            bail!("there is something else than a socket; remove it, or set admin.socket")
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("an agent answers there; stop it, or set another instance or admin.socket"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing the socket of an agent that is gone");
            fs::remove_file(path)?;
            Ok(())
        }
        Err(error) => Err(error).context("cannot tell whether an agent answers there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_comes_and_goes_with_the_socket() {
        let folder = super::super::fake::Folder::new();
        let path = folder.0.join("deep/er/admin.sock");
        let socket = AdminSocket::bind(&path).expect("bind");
        let mode = fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
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
