//! The socket at which applications ask for message sockets.
//!
//! Whom the file of the socket lets connect may offer and use every service: its owner and
//! group (mode 0660).

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use homing_client::{
    message::wire::{Answer, Ask, DATAGRAM_MAX, Opened, Refused, Request, Wrong},
    seqpacket::Socket,
};
use homing_common::host::HostId;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Made, Sockets, Wanted};
use crate::{bound::Bound, unix::AppListener};

/// The most applications that are being answered; beyond, they wait to be let in.
const APPS_MAX: usize = 256;

/// Applications can repeat it.
static UNWATCHED: Bound = Bound::new();

/// Serves applications until `stop` is ready.
pub async fn serve(listener: AppListener, sockets: Sockets, stop: impl Future<Output = ()>) {
    let mut tasks = JoinSet::new();
    let places = Arc::new(Semaphore::new(APPS_MAX));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // It is never closed.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accept => match Socket::of(accepted) {
                Ok(socket) => {
                    let sockets = sockets.clone();
                    tasks.spawn(async move {
                        answer_all(&socket, &sockets).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    if let Some(left_out) = UNWATCHED.take() {
                        tracing::warn!(
                            %error, left_out,
                            fix = "the application was turned away and has to come again; if it goes on, raise LimitNOFILE= and MemoryMax= of the unit",
                            "cannot watch an application's connection"
                        );
                    }
                }
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            () = &mut stop => return,
        }
    }
}

/// Answers the requests of an application, one after the other.
async fn answer_all(socket: &Socket, sockets: &Sockets) {
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let received = match socket.receive(&mut buffer).await {
            Ok(received) if received.len > 0 => received,
            Ok(_) | Err(_) => return,
        };
        let whole = !received.spoilt && received.descriptor.is_none();
        let request = match Request::decode(&buffer[..received.len]) {
            Ok(request) if whole => Ok(request),
            Ok(_) => Err(Wrong::Malformed("it is too long, or has a descriptor")),
            Err(wrong) => Err(wrong),
        };
        let (number, made) = match request {
            Ok(request) => {
                // Whoever goes away meanwhile does not wait any more.
                let made = tokio::select! {
                    made = make(sockets, &request) => made,
                    () = hung_up(socket) => return,
                };
                (request.number, made.map_err(|why| (why, String::new())))
            }
            Err(wrong) => {
                let why = match wrong {
                    Wrong::Version(_) => Refused::Version,
                    Wrong::Malformed(_) => Refused::Malformed,
                };
                (0, Err((why, wrong.to_string())))
            }
        };
        if say(socket, number, &made).await.is_err() {
            return;
        }
    }
}

async fn make(sockets: &Sockets, request: &Request<'_>) -> Result<Made, Refused> {
    match request.ask {
        Ask::Offer { name } => sockets.offer(name, request.batches),
        Ask::Connect {
            name,
            host,
            within_ms,
        } => {
            let host = match host {
                0 => None,
                host => Some(HostId::try_from(host).map_err(|_| Refused::NoHost)?),
            };
            let within = Duration::from_millis(within_ms.into()).as_micros() as u64;
            let batches = request.batches;
            let wanted = Wanted {
                name,
                host,
                batches,
                within,
            };
            sockets.connect(&wanted).await
        }
    }
}

/// Waits until an application closes its end. What it says before its answer is there is
/// not listened to, and ends it.
async fn hung_up(socket: &Socket) {
    // One byte is enough to see that something came.
    let _ = socket.receive(&mut [0]).await;
}

async fn say(
    socket: &Socket,
    number: u32,
    made: &Result<Made, (Refused, String)>,
) -> std::io::Result<()> {
    let result: Result<Opened, (Refused, &str)> = match made {
        Ok(made) => Ok(made.opened),
        Err((why, text)) => Err((*why, text)),
    };
    let descriptor = made.as_ref().ok().map(|made| &made.descriptor);
    let answer = Answer { number, result }.encode();
    socket.send(&answer, descriptor.map(OwnedFd::as_fd)).await
}
