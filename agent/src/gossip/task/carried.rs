//! Gossip's bulk messages, on their way by carriers.

use homing_common::host::HostId;
use tokio::task::JoinSet;

use super::{Running, Table};
use crate::{
    gossip::wire::bulk::BULK_LEN_MAX,
    mux::{Carriers, Fate, GOSSIP, Inbox, Received},
    pop::Stream,
};

const _: () = assert!(BULK_LEN_MAX <= GOSSIP.message_max);

/// The carriers, what comes out of them, and what is on its way.
pub(super) struct Carried {
    carriers: Carriers,
    inbox: Inbox,
    fates: JoinSet<Told>,
}

/// The fate of a message.
pub(super) struct Told {
    to: HostId,
    number: u64,
    /// The life of its receiver that has it, if that is sure.
    has: Option<Stream>,
}

/// What carriers bring.
pub(super) enum Brought {
    Message(Received),
    Told(Told),
}

impl Carried {
    pub fn new(carriers: Carriers, inbox: Inbox) -> Self {
        Self {
            carriers,
            inbox,
            fates: JoinSet::new(),
        }
    }

    /// The next message or fate. May be dropped at any time.
    pub async fn next(&mut self) -> Brought {
        tokio::select! {
            Some(received) = self.inbox.next() => Brought::Message(received),
            Some(Ok(told)) = self.fates.join_next() => Brought::Told(told),
            // Carriers are being stopped.
            else => std::future::pending().await,
        }
    }

    /// The next message or fate, if it is there already.
    pub fn try_next(&mut self) -> Option<Brought> {
        let message = self.inbox.try_next().map(Brought::Message);
        message.or_else(|| Some(Brought::Told(self.fates.try_join_next()?.ok()?)))
    }
}

impl<T: Table> Running<T> {
    /// Takes in what carriers have brought.
    pub(super) fn carried(&mut self, brought: Brought) {
        let now = self.clock.now();
        match brought {
            Brought::Message(received) => {
                let Received { host, stream, .. } = received;
                self.node.receive_bulk(now, host, stream, &received.body);
            }
            Brought::Told(told) => self.node.bulk_told(now, told.to, told.number, told.has),
        }
    }

    /// Gives what is to be carried to the carriers.
    pub(super) fn carry(&mut self) {
        while let Some(bulk) = self.node.poll_bulk() {
            let carriers = self.carried.carriers.clone();
            self.carried.fates.spawn(async move {
                let fate = carriers.send(bulk.to, GOSSIP, bulk.body).await;
                let has = match fate {
                    Fate::Delivered(stream) => Some(stream),
                    Fate::NotSent(_) | Fate::Unknown(_) => None,
                };
                Told {
                    to: bulk.to,
                    number: bulk.number,
                    has,
                }
            });
        }
    }
}
