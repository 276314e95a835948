//! The socket for applications, and a task for each of them.
//!
//! Whom the file of the socket lets connect may register: its owner and group (mode 0660).
//! The kernel checks that; who it was is kept ([`Peer`]). An application can register any
//! TCP service of the host that nobody else has, so whoever is let in is trusted with
//! all of them, and with no connection that is not its own.

pub(super) mod mail;

use std::{
    io,
    ops::ControlFlow,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use homing_client::{
    seqpacket::{Received, Socket},
    wire::{Closing, MESSAGE_MAX, Message},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::{sync::Notify, task::JoinSet};
use zeroize::{Zeroize as _, Zeroizing};

use super::{AppId, Apps, Peer, remedy};
use crate::{bound::Bound, unix::AppListener};
use mail::Mail;

/// What applications could repeat.
static UNWATCHED: Bound = Bound::new();
static CLOSED: Bound = Bound::new();

/// How long a stop waits for the tasks of applications.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Serves applications until `stop` is ready; then tells them so.
pub async fn serve(socket: AppListener, apps: Apps, stop: impl Future<Output = ()>) {
    let mut tasks = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let due = apps.0.lock().core.next_due();
        tokio::select! {
            accepted = socket.accept() => welcome(&apps, accepted, &mut tasks),
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            () = apps.0.timer.notified() => {}
            () = sleep_until(due), if due.is_some() => {
                let mut state = apps.0.lock();
                state.core.tick(Instant::now());
                state.dispatch();
            }
            () = &mut stop => break,
        }
    }
    drop(socket);
    {
        let mut state = apps.0.lock();
        state.core.close_all();
        state.dispatch();
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_WITHIN, all).await;
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

fn welcome(apps: &Apps, accepted: OwnedFd, tasks: &mut JoinSet<()>) {
    let peer = getsockopt(&accepted, PeerCredentials)
        .map(|peer| Peer {
            pid: peer.pid(),
            uid: peer.uid(),
            gid: peer.gid(),
        })
        .unwrap_or_default();
    let socket = match Socket::of(accepted) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            if let Some(left_out) = UNWATCHED.take() {
                tracing::warn!(
                    %error, left_out,
                    fix = "the application was turned away and has to come again; if it goes on, raise LimitNOFILE= and MemoryMax= of the unit",
                    "cannot watch an application's connection"
                );
            }
            return;
        }
    };
    let connected = {
        let mut state = apps.0.lock();
        let connected = state.core.connected(peer, Instant::now()).map(|app| {
            let notify = state.mailboxes.open(app, Arc::clone(&socket));
            (app, notify)
        });
        state.dispatch();
        connected
    };
    match connected {
        Ok((app, notify)) => {
            let apps = apps.clone();
            let connection = Connection {
                apps,
                app,
                socket,
                notify,
            };
            tasks.spawn(connection.run());
        }
        Err(closing) => {
            let text = "so many applications are connected as may be";
            say_closing(&socket, closing, text);
        }
    }
}

/// It is only told if it reads: nobody waits for an application that does not.
fn say_closing(socket: &Socket, closing: Closing, text: &'static str) {
    let _ = socket.try_send(&Message::Closing { closing, text }.encode());
}

struct Connection {
    apps: Apps,
    app: AppId,
    socket: Arc<Socket>,
    notify: Arc<Notify>,
}

impl Connection {
    async fn run(self) {
        let mut buffer = Zeroizing::new(vec![0; MESSAGE_MAX]);
        let mut sending = None;
        loop {
            if self.mail().await.is_break() {
                return;
            }
            if sending.is_none() {
                sending = self.next_datagram();
            }
            tokio::select! {
                received = self.socket.receive(&mut buffer) => {
                    if self.received(received, &mut buffer).is_break() {
                        // What is left to tell.
                        let _ = self.mail().await;
                        return;
                    }
                }
                sent = send(&self.socket, &sending), if sending.is_some() => match sent {
                    Ok(()) => sending = None,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        self.close(Closing::Slow, "it does not read what it is sent");
                    }
                    // Its end closed: what it still said can be read, and then the end.
                    Err(_) => sending = None,
                },
                () = self.notify.notified() => {}
            }
        }
    }

    async fn mail(&self) -> ControlFlow<()> {
        loop {
            let mail = self.apps.0.lock().mailboxes.take(self.app);
            match mail {
                // Without a reader there is nobody to tell.
                Some(Mail::Tell(event)) => drop(self.apps.0.events.send(event).await),
                Some(Mail::Close(closing, text)) => {
                    if let Some(left_out) = CLOSED.take() {
                        tracing::warn!(
                            app = self.app.0, %closing, text, left_out, fix = remedy(closing),
                            "an application's connection is closed"
                        );
                    }
                    say_closing(&self.socket, closing, text);
                    return ControlFlow::Break(());
                }
                None => return ControlFlow::Continue(()),
            }
        }
    }

    fn next_datagram(&self) -> Option<Sending> {
        let mut state = self.apps.0.lock();
        let datagram = state.core.next_datagram(self.app)?;
        Some((datagram, Instant::now() + state.core.limits().read_within))
    }

    fn received(&self, received: io::Result<Received>, buffer: &mut [u8]) -> ControlFlow<()> {
        let mut state = self.apps.0.lock();
        let flow = match received {
            Ok(Received { len: 0, .. }) | Err(_) => {
                state.core.gone(self.app);
                ControlFlow::Break(())
            }
            Ok(Received { spoilt: true, .. }) => {
                let why = "it is too long, or has more than a descriptor";
                state.core.close(self.app, Closing::Malformed, why);
                ControlFlow::Continue(())
            }
            Ok(Received {
                len, descriptor, ..
            }) => {
                let datagram = &mut buffer[..len];
                for rival in state.core.rivals(self.app, datagram) {
                    // One that was killed, and started again before its end was seen.
                    state.is_there(rival);
                }
                let now = Instant::now();
                state.core.received(self.app, datagram, descriptor, now);
                // It may have been part of a state.
                datagram.zeroize();
                ControlFlow::Continue(())
            }
        };
        state.dispatch();
        drop(state);
        self.apps.0.timer.notify_one();
        flow
    }

    fn close(&self, closing: Closing, text: &'static str) {
        let mut state = self.apps.0.lock();
        state.core.close(self.app, closing, text);
        state.dispatch();
    }
}

/// Whatever ends the task, a panic among it: the application is forgotten.
impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.apps.0.lock();
        state.core.gone(self.app);
        state.dispatch();
        state.mailboxes.end(self.app);
    }
}

/// A datagram, and by when it must be read.
type Sending = (Zeroizing<Vec<u8>>, Instant);

async fn send(socket: &Socket, sending: &Option<Sending>) -> io::Result<()> {
    let Some((datagram, until)) = sending else {
        return Ok(());
    };
    tokio::time::timeout_at((*until).into(), socket.send(datagram, None))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
