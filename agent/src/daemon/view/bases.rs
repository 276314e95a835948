//! What the admin socket is told of moves, carriers and applications.

use std::time::UNIX_EPOCH;

use super::AgentView;
use crate::{
    admin::{api, page},
    daemon::reload,
    migration::{
        app::{AppStatus, TurnedAway},
        moves::Load,
    },
    mux::{LineStatus, PeerStatus, limits},
};

impl AgentView {
    /// All carriers.
    pub(super) fn all_carriers(&self) -> api::Carriers {
        let status = self.carriers.status();
        api::Carriers {
            address: status.address,
            key: reload::name(status.key),
            peers: status.peers.iter().map(peer).collect(),
        }
    }

    /// All carriers in short.
    pub(super) fn carriers_sum(&self) -> api::CarriersSum {
        let status = self.carriers.status();
        let lines = status.peers.iter().flat_map(|peer| &peer.lines);
        api::CarriersSum {
            to: lines.clone().map(|line| line.carriers as u64).sum(),
            from: status.accepted as u64,
            failing: lines
                .filter(|line| state(line) == api::CarrierState::Failing)
                .count() as u64,
            queued_bytes: status.queued_bytes as u64,
        }
    }

    /// All applications.
    pub(super) fn all_apps(&self) -> api::Apps {
        let config = &self.reload.config().apps;
        api::Apps {
            socket: config.socket.clone(),
            group: config.group.to_string(),
            state_max_bytes: config.state_max.into(),
            apps: self.apps.status().into_iter().map(app).collect(),
            turned_away: self.apps.turned_away().map(|away| turned_away(&away)),
        }
    }

    /// All moves in short.
    pub(super) fn moves_sum(&self, load: &Load) -> api::MovesSum {
        api::MovesSum {
            from_here: load.from_here as u64,
            to_here: load.to_here as u64,
            waiting: load.waiting as u64,
            state_bytes: (load.bytes_from_here + load.bytes_to_here) as u64,
            parked: self.park.waiting() as u64,
        }
    }

    /// All applications in short.
    pub(super) fn apps_sum(&self) -> api::AppsSum {
        let all = self.apps.status();
        let ready = all.iter().filter(|app| app.ready).count();
        let pending = |app: &AppStatus| (app.asked + app.pending) as u64;
        api::AppsSum {
            ready: ready as u64,
            connecting: (all.len() - ready) as u64,
            services: all.iter().map(|app| app.services.len() as u64).sum(),
            pending: all.iter().map(pending).sum(),
            state_bytes: self.apps.held_bytes() as u64,
        }
    }
}

fn peer(peer: &PeerStatus) -> api::CarrierPeer {
    api::CarrierPeer {
        host: peer.host.0,
        incarnation: peer.stream.incarnation,
        generation: peer.stream.generation,
        from: api::CarriersFrom {
            carriers: peer.accepted as u64,
            messages: peer.messages_received,
            bytes: peer.bytes_received,
        },
        to: peer.lines.iter().map(line).collect(),
    }
}

/// The name of a channel.
pub(super) fn channel(number: u8) -> String {
    match number {
        number if number == limits::MIGRATION.number => "migration".to_owned(),
        number if number == limits::MUX.number => "mux".to_owned(),
        number if number == limits::GOSSIP.number => "gossip".to_owned(),
        number => number.to_string(),
    }
}

fn line(line: &LineStatus) -> api::CarriersTo {
    api::CarriersTo {
        channel: channel(line.channel),
        state: state(line),
        carriers: line.carriers as u64,
        messages: line.messages_delivered,
        bytes: line.bytes_delivered,
        queued: (line.queued + line.ready) as u64,
        queued_bytes: line.queued_bytes as u64,
        problem: line.problem.as_deref().map(str::to_owned),
        failing_s: line.failing_for.map(|time| time.as_secs()),
    }
}

fn state(line: &LineStatus) -> api::CarrierState {
    match line {
        LineStatus { carriers: 1.., .. } => api::CarrierState::Open,
        LineStatus {
            problem: Some(_), ..
        } => api::CarrierState::Failing,
        LineStatus { opening: true, .. } => api::CarrierState::Opening,
        _ => api::CarrierState::Idle,
    }
}

fn app(status: AppStatus) -> api::App {
    let services = status.services.iter().map(|service| api::Service {
        address: service.endpoint(),
        protocol: page::protocol_label(service.protocol),
    });
    api::App {
        id: status.app.0,
        services: services.collect(),
        version: status.protocol.as_ref().map(|protocol| protocol.version),
        name: status.protocol.map(|protocol| protocol.name),
        ready: status.ready,
        pid: status.peer.pid,
        uid: status.peer.uid,
        gid: status.peer.gid,
        asked: status.asked as u64,
        pending: status.pending as u64,
    }
}

fn turned_away(away: &TurnedAway) -> api::TurnedAway {
    let since = away.at.duration_since(UNIX_EPOCH);
    let closed = &away.closed;
    api::TurnedAway {
        at_unix_ms: since.map_or(0, |since| since.as_millis() as u64),
        pid: closed.peer.pid,
        uid: closed.peer.uid,
        why: format!("{}: {}", closed.closing, closed.text),
    }
}
