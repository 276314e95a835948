//! Hosts, in the words of the API.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use homing_common::host::HostId;

use super::AgentView;
use crate::{
    admin::api,
    daemon::reload,
    datapath::resolver::{State as WayState, Way},
    gossip::{
        machine::Progress,
        task::{HostStatus, Status},
    },
    pop::{Domain, liveness::Kernel, membership::State},
};

/// How long a host that is up may take to hear, and to say that it hears.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

impl AgentView {
    /// The hosts of this domain that have been up for a while and do not hear this
    /// host's multicast.
    pub(super) fn deaf(&self, hosts: &[HostStatus]) -> Vec<String> {
        let settled = |host: &&HostStatus| {
            let since = host.since.and_then(|since| since.elapsed().ok());
            host.state == Some(State::Alive) && since.is_some_and(|since| since > HEARD_WITHIN)
        };
        let deaf = hosts.iter().filter(settled);
        deaf.filter(|host| self.hears_us(host) == Some(false))
            .map(|host| format!("host {}", host.host))
            .collect()
    }

    /// Whether a host hears this host's multicast; none, if it is not to.
    fn hears_us(&self, host: &HostStatus) -> Option<bool> {
        let near = |domain: &Domain| domain.to_string() == self.reload.config().host.domain;
        let near = host.member.is_some_and(|member| near(&member.domain));
        (near && self.reload.config().pop.multicast.is_some()).then_some(host.hears_us)
    }

    pub(super) fn this_host(&self, status: &Status) -> api::Host {
        let config = self.reload.config();
        api::Host {
            host: config.host.id.0,
            this_host: true,
            domain: Some(config.host.domain.clone()),
            state: api::HostState::Alive,
            kernel: api::KernelState::Alive,
            kernel_heard_unix_ms: None,
            draining: self.drain.is_on(),
            key: Some(reload::name(status.keys.0)),
            session_keys: reload::session_keys(status.session_keys),
            since_unix_ms: unix_ms(SystemTime::now() - self.started.elapsed()),
            incarnation: status.stream.incarnation,
            generation: status.stream.generation,
            address: Some(config.pop.address),
            tunnel_address: self.tunnel_address(config.host.id),
            next_hop: None,
            claims: status.sessions,
            applied_seq: status.announced,
            sync: api::SyncState::InSync,
            hears_us: None,
        }
    }

    pub(super) fn other_host(&self, host: &HostStatus, way: Option<&Way>) -> api::Host {
        let stream = host.member.map_or_else(Default::default, |m| m.stream);
        api::Host {
            host: host.host.0,
            this_host: false,
            domain: host.member.map(|member| member.domain.to_string()),
            state: match host.state {
                Some(State::Alive) => api::HostState::Alive,
                Some(State::Left) => api::HostState::Left,
                Some(State::Down | State::Mismatched) | None => api::HostState::Down,
            },
            kernel: match host.kernel.map(|kernel| kernel.kernel) {
                Some(Kernel::Alive { .. }) => api::KernelState::Alive,
                Some(Kernel::Silent { .. }) => api::KernelState::Silent,
                Some(Kernel::Dead { .. }) => api::KernelState::Voided,
                Some(Kernel::Unheard) | None => api::KernelState::Unheard,
            },
            kernel_heard_unix_ms: host.kernel.and_then(|k| k.heard).map(unix_ms),
            draining: host.member.is_some_and(|member| member.draining),
            key: host.key.map(reload::name),
            session_keys: host.member.map_or_else(Vec::new, |member| {
                reload::session_keys(member.fingerprint.session_keys)
            }),
            since_unix_ms: host.since.map_or(0, unix_ms),
            incarnation: stream.incarnation,
            generation: stream.generation,
            address: host.member.map(|member| member.address),
            tunnel_address: self.tunnel_address(host.host),
            next_hop: way.map(next_hop),
            claims: host.claims,
            applied_seq: host.applied,
            sync: match host.progress {
                Some(Progress::Following) => api::SyncState::InSync,
                Some(Progress::Gap { missing }) => api::SyncState::Gap { missing },
                Some(Progress::Syncing) => api::SyncState::Syncing,
                Some(Progress::Waiting) | None => api::SyncState::Waiting,
            },
            hears_us: self.hears_us(host),
        }
    }

    fn tunnel_address(&self, host: HostId) -> IpAddr {
        self.reload.config().tunnel.network.address_of(host).into()
    }
}

fn next_hop(way: &Way) -> api::NextHop {
    api::NextHop {
        resolved: way.state == WayState::Resolved,
        via: way.next_hop,
        mac: way.mac.map(|mac| mac.to_string()),
        interface: way.interface.clone(),
        vlan: None,
        mtu: way.mtu,
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    // Before 1970 there was no POP.
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
