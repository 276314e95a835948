//! What the admin socket is told of message sockets.

use homing_common::host::HostId;

use super::AgentView;
use crate::{
    admin::api,
    mux::{
        MUX,
        sockets::{SocketStatus, Sockets, Status},
    },
};

impl AgentView {
    /// All message sockets.
    pub(super) fn all_messages(&self) -> api::Mux {
        let config = &self.reload.config().mux;
        let status = self.messages.status();
        let mut sockets: Vec<_> = status
            .sockets
            .iter()
            .map(|it| self.message_socket(it))
            .collect();
        sockets.sort_by_key(|socket| (socket.offers.is_none(), socket.host, socket.id));
        let peers = self.all_carriers().peers.into_iter().map(|mut peer| {
            peer.to
                .retain(|to| to.channel == super::bases::channel(MUX.number));
            peer
        });
        api::Mux {
            socket: config.socket.clone(),
            group: config.group.to_string(),
            encryption: config.encryption,
            message_max_bytes: config.message_max as u64,
            sum: self.mux_sum(&status),
            sockets,
            peers: peers.collect(),
        }
    }

    fn message_socket(&self, status: &SocketStatus) -> api::MuxSocket {
        let me: HostId = self.reload.config().host.id;
        api::MuxSocket {
            id: Sockets::address(me, status.id),
            offers: status.offers.as_deref().map(str::to_owned),
            host: status.connected.map(|(host, _)| host.0),
            peer: status
                .connected
                .map(|(host, peer)| Sockets::address(host, peer)),
            sent: status.sent,
            held_bytes: status.held_bytes as u64,
            blocked: status.blocked as u64,
            unread_bytes: status.unread_bytes as u64,
            waiting: status.waiting as u64,
            ending: status.ending,
        }
    }

    /// All message sockets in short.
    pub(super) fn mux_sum(&self, status: &Status) -> api::MuxSum {
        let count = |is: &dyn Fn(&SocketStatus) -> bool| {
            status.sockets.iter().filter(|socket| is(socket)).count() as u64
        };
        api::MuxSum {
            services: count(&|socket| socket.offers.is_some()),
            connected: count(&|socket| socket.connected.is_some()),
            connecting: status.connecting as u64,
            blocked: count(&|socket| socket.blocked > 0),
            starved: status.starved as u64,
            held_bytes: status.held_bytes as u64,
            unread_bytes: status.unread_bytes as u64,
            remembered: status.remembered as u64,
        }
    }
}
