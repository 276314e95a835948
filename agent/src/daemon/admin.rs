//! The sockets at which operators ask, and who serves them.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{mpsc, watch};

use super::{reload::Readers, view::AgentView};
use crate::{
    admin::{
        server,
        socket::{AdminSocket, Rights},
    },
    config::Config,
    unix::Access,
};

/// The admin sockets, open for those whom the configuration lets in.
pub(super) struct AdminSockets {
    both: AdminSocket,
    read: Option<AdminSocket>,
    readers: mpsc::Receiver<Readers>,
}

/// What a reload changes of them.
pub(super) struct AdminDoors {
    /// Who may ask and change.
    pub both: Access,
    /// Who may only ask.
    pub read: Option<Access>,
    /// Has another socket for reading served, or none.
    pub readers: mpsc::Sender<Readers>,
}

impl AdminSockets {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// An agent answers there, or there is no such group.
    pub fn open(config: &Config) -> Result<(Self, AdminDoors)> {
        let admin = &config.admin;
        let both = AdminSocket::bind(&admin.socket, Rights::Change)?;
        both.access().admit(&admin.group)?;
        let mut read = None;
        if let Some(readers) = &admin.readers {
            let socket = AdminSocket::bind(&admin.read_socket, Rights::Read)?;
            socket.access().admit(readers)?;
            read = Some(socket);
        }
        // One reload at a time asks for one thing.
        let (to, readers) = mpsc::channel(1);
        let doors = AdminDoors {
            both: both.access(),
            read: read.as_ref().map(AdminSocket::access),
            readers: to,
        };
        let sockets = Self {
            both,
            read,
            readers,
        };
        Ok((sockets, doors))
    }

    /// Serves them until `stopped` is told; then what is under way is answered.
    pub async fn serve(self, view: Arc<AgentView>, mut stopped: watch::Receiver<()>) {
        let told = stopped.clone();
        let serve = |socket: AdminSocket| {
            let (view, mut told) = (view.clone(), told.clone());
            tokio::spawn(async move {
                let stop = async move {
                    // An error means that the sender is gone, which says the same.
                    let _ = told.changed().await;
                };
                server::serve(socket, view, stop).await;
            })
        };
        let both = serve(self.both);
        let (mut read, mut readers) = (self.read.map(&serve), self.readers);
        loop {
            let wanted = tokio::select! {
                wanted = readers.recv() => wanted,
                _ = stopped.changed() => None,
            };
            let Some((socket, done)) = wanted else { break };
            if let Some(before) = read.take() {
                // Who is being answered there is answered; nobody new comes in.
                before.abort();
                let _ = before.await;
            }
            read = socket.map(&serve);
            // Whoever asked may have gone.
            let _ = done.send(());
        }
        // Servers bound their own ends; a panic in one has been reported.
        let _ = both.await;
        if let Some(read) = read {
            let _ = read.await;
        }
    }
}
