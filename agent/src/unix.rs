//! Unix sockets that have a file: made, replaced when they are stale, removed.
//!
//! Owner and group may connect (mode 0660), others may not, and at no instant could
//! they. A socket that an agent left behind when it was killed is replaced; one that
//! still answers is not.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::{
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
        socket,
    },
    unistd::Group,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::config;

/// Who may connect.
const MODE: u32 = 0o660;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The file of a socket; it is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, to know it again.
    identity: (u64, u64),
}

impl SocketFile {
    /// Who may use it. The keys of the configuration are those of the socket's path and of
    /// its group, for errors.
    pub fn access(&self, socket: impl Into<String>, group: impl Into<String>) -> Access {
        Access {
            path: self.path.clone(),
            identity: self.identity,
            socket: socket.into(),
            group: group.into(),
        }
    }
}

/// Who may use a socket, beside the agent's own user: it can be changed while the socket is
/// served.
#[derive(Debug, Clone)]
pub struct Access {
    path: PathBuf,
    identity: (u64, u64),
    socket: String,
    group: String,
}

impl Access {
    /// The group whose members may, by its number.
    ///
    /// # Errors
    ///
    /// The file is gone.
    pub fn group(&self) -> io::Result<u32> {
        Ok(fs::symlink_metadata(&self.path)?.gid())
    }

    /// Lets the members of a group connect, in place of those of its group so far.
    ///
    /// # Errors
    ///
    /// There is no such group, or the file cannot be given to it.
    pub fn admit(&self, group: &config::Group) -> Result<()> {
        self.give_to(group).with_context(|| {
            let (socket, path) = (&self.socket, self.path.display());
            format!("cannot let the group {group} use {socket} {path}")
        })
    }

    fn give_to(&self, group: &config::Group) -> Result<()> {
        let setting = &self.group;
        let id = match group {
            config::Group::Id(id) => *id,
            config::Group::Name(name) => Group::from_name(name)
                .context("cannot look the group up")?
                .with_context(|| {
                    format!("there is no such group: make it, or set {setting} to another")
                })?
                .gid
                .as_raw(),
        };
        ensure!(
            identity(&self.path)? == self.identity,
            "another file has taken the socket's place: restart this agent"
        );
        if self.group()? == id {
            return Ok(());
        }
        lchown(&self.path, None, Some(id)).map_err(|error| match error.kind() {
            // Without CAP_CHOWN a process gives files to its own groups only: chown(2).
            ErrorKind::PermissionDenied => Error::new(error).context(format!(
                "the agent is not in that group; with systemd, add SupplementaryGroups={group} \
                 to its unit"
            )),
            _ => error.into(),
        })
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

/// A socket that applications connect to (`SOCK_SEQPACKET`); its file is removed when it
/// is dropped.
#[derive(Debug)]
pub struct AppListener {
    listener: AsyncFd<OwnedFd>,
    file: SocketFile,
    section: &'static str,
}

impl AppListener {
    /// Listens on `path`, and makes the folder if it is missing. `section` is that of the
    /// configuration, for errors: it has the keys `socket` and `group`.
    ///
    /// # Errors
    ///
    /// An agent answers there, something else than a socket is there, or the file
    /// system refuses. Must be called within a tokio runtime.
    pub fn bind(path: &Path, section: &'static str) -> Result<Self> {
        let at = || format!("cannot listen on {section}.socket {}", path.display());
        let setting = format!("{section}.socket");
        let (socket, file) = listen_on(path, SockType::SeqPacket, &setting).with_context(at)?;
        // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the
        // `AsyncFd` owns it.
        let listener = unsafe { AsyncFd::register(socket) }
            .map_err(io::Error::from)
            .with_context(at)?;
        Ok(Self {
            listener,
            file,
            section,
        })
    }

    /// Who may connect.
    pub fn access(&self) -> Access {
        let section = self.section;
        let keys = [format!("{section}.socket"), format!("{section}.group")];
        let [socket, group] = keys;
        self.file.access(socket, group)
    }

    /// The next application's connection.
    pub async fn accept(&self) -> OwnedFd {
        let accept = |listener: &OwnedFd| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let descriptor = accept4(listener.as_raw_fd(), flags)?;
            // SAFETY: accept4 has just made it, and nobody else knows of it.
            Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
        };
        loop {
            match self.listener.async_io(Interest::READABLE, accept).await {
                Ok(socket) => return socket,
                Err(error) => {
                    // Out of descriptors, most likely: it would fail again at once.
                    tracing::warn!(
                        %error, socket = format!("{}.socket", self.section),
                        fix = "if it goes on: raise LimitNOFILE= of the unit; tried again in 1 s",
                        "cannot accept an application"
                    );
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Listens on `path` with a socket that does not block, and makes the folder if it is
/// missing. `setting` is what says where, for errors.
///
/// # Errors
///
/// An agent answers there, something else than a socket is there, or the file system
/// refuses.
pub fn listen_on(path: &Path, kind: SockType, setting: &str) -> Result<(OwnedFd, SocketFile)> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    remove_stale(path, kind, setting)?;
    let socket = new_socket(kind)?;
    // The kernel gives the file the mode of the socket, less the umask: so it is never
    // wider than this, not even before the mode is set below.
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(MODE))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    let file = SocketFile {
        identity: identity(path)?,
        path: path.to_owned(),
    };
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok((socket, file))
}

fn new_socket(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, kind, flags, None)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn remove_stale(path: &Path, kind: SockType, setting: &str) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(meta) if !meta.file_type().is_socket() => {
            bail!("there is something else than a socket; remove it, or set {setting}")
        }
        Ok(_) => {}
    }
    let probe = new_socket(kind)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // A full backlog is an answer, too; and so is a socket of another type.
        Ok(()) | Err(nix::Error::EAGAIN | nix::Error::EPROTOTYPE) => {
            bail!("an agent answers there; stop it, or set another instance or {setting}")
        }
        Err(nix::Error::ECONNREFUSED) => {
            tracing::info!(socket = %path.display(), "replacing the socket of an agent that is gone");
            fs::remove_file(path)?;
            Ok(())
        }
        Err(error) => Err(error).context("cannot tell whether an agent answers there"),
    }
}
