//! What the admin socket is told: snapshots of every part, put into the words of
//! the API.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use homing_common::{
    host::{Encapsulation, HostId},
    session::{SessionKey, Tuple},
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    crowded::Crowded,
    drain::Drain,
    problems,
    reload::{self, Reload},
    rendezvous::takes_sessions,
    table::{Shared, monotonic_ns},
};
use crate::{
    admin::{Refusal, View, api, counts, page},
    config::Config,
    datapath::{
        flows::FlowCounters,
        held::HeldCounters,
        keeper::Places,
        link::Point,
        load::Attachment,
        resolver::{Resolver, State as WayState, Way},
        sessions::Sessions,
        sockets::WatchCounters,
        stats::Stats,
    },
    gossip::{
        Latency,
        machine::Progress,
        task::{Handle, HostStatus, Status, Stopped},
    },
    pop::{Domain, liveness::Kernel, membership::State},
};

/// How long a host that is up may take to hear, and to say that it hears.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Everything that questions are answered from.
pub(super) struct AgentView {
    pub config: Config,
    /// Held against other agents for as long as this one runs.
    #[expect(dead_code, reason = "held, not used")]
    pub attachment: Attachment,
    /// What is attached to what.
    pub places: watch::Receiver<Arc<Places>>,
    pub started: Instant,
    pub gossip: Handle,
    pub resolver: Resolver,
    pub sessions: Arc<Sessions>,
    pub stats: Arc<Stats>,
    /// Which tables let entries go before their time.
    pub crowded: Crowded,
    /// What comparisons with the kernel's sockets found.
    pub watched: Arc<WatchCounters>,
    /// What holding fragments counted.
    pub held: Arc<HeldCounters>,
    /// What the search for idle UDP flows found.
    pub flows: Arc<FlowCounters>,
    pub owners: Shared,
    /// The key of session ids.
    pub session_key: SessionKey,
    /// This host's open sessions.
    pub open: Arc<AtomicU64>,
    /// Reads the key file again.
    pub reload: Reload,
    /// Whether new sessions go elsewhere.
    pub drain: Drain,
    /// Asks for a graceful stop, with a hold of its own or the configured one.
    pub leave: watch::Sender<Option<Option<Duration>>>,
}

/// Reads of maps wait for the kernel: off the threads that gossip runs on.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    read: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let read = spawn_blocking(read).await.context(what)?;
    Ok(read.with_context(|| format!("cannot read {what}"))?)
}

impl From<Stopped> for Refusal {
    fn from(_: Stopped) -> Self {
        Self::Unavailable("the agent is stopping".into())
    }
}

impl AgentView {
    /// What an operator should look at, and what to do about it.
    fn problems(&self, status: &Status, hosts: &[HostStatus]) -> Vec<String> {
        let unrecorded = self.watched.unrecorded.load(Ordering::Relaxed);
        let address = self.config.pop.address;
        let now = SystemTime::now();
        let mut problems = problems::of_hosts(now, hosts, &self.resolver.ways());
        problems.extend(
            status
                .alerts
                .iter()
                .map(|alert| problems::of_pop(alert, address)),
        );
        for (interface, why) in &self.places.borrow().lacking {
            problems.push(format!(
                "nothing that comes by interface {interface} is forwarded: {why}; it is attached to as soon as that is possible"
            ));
        }
        let deaf = self.deaf(hosts);
        if !deaf.is_empty() {
            problems.push(format!(
                "the multicast of this host does not reach {deaf}, which get everything by unicast; look at IGMP and MLD snooping in the domain {domain}",
                deaf = deaf.join(", "),
                domain = self.config.host.domain,
            ));
        }
        problems.extend(problems::of_tables(
            status.unplaced,
            unrecorded,
            &self.crowded.lately(),
        ));
        problems
    }

    /// The hosts of this domain that have been up for a while and do not hear this
    /// host's multicast.
    fn deaf(&self, hosts: &[HostStatus]) -> Vec<String> {
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
        let near = |domain: &Domain| domain.to_string() == self.config.host.domain;
        let near = host.member.is_some_and(|member| near(&member.domain));
        (near && self.config.pop.multicast.is_some()).then_some(host.hears_us)
    }

    fn this_host(&self, status: &Status) -> api::Host {
        let config = &self.config;
        api::Host {
            host: config.host.id.0,
            this_host: true,
            domain: Some(config.host.domain.clone()),
            state: api::HostState::Alive,
            kernel: api::KernelState::Alive,
            kernel_heard_unix_ms: None,
            draining: self.drain.is_on(),
            key: Some(reload::name(status.keys.0)),
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

    fn other_host(&self, host: &HostStatus, way: Option<&Way>) -> api::Host {
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
        self.config.tunnel.network.address_of(host).into()
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

impl View for AgentView {
    async fn status(&self) -> Result<api::Status, Refusal> {
        let status = self.gossip.status().await?;
        let hosts = self.gossip.hosts().await?;
        let config = &self.config;
        let owners = self.owners.usage();
        let mut interfaces = Vec::new();
        let places = self.places.borrow().clone();
        for attached in &places.attached {
            if let Point::Xdp {
                interface,
                ifindex,
                mode,
            } = &attached.to
            {
                let all = &places.attached;
                interfaces.push(api::Interface {
                    name: interface.clone(),
                    ifindex: *ifindex,
                    mode: mode.label().to_owned(),
                    egress: all.iter().any(|attached| {
                        matches!(attached.to, Point::Egress { ifindex: index, .. } if index == *ifindex)
                    }),
                });
            }
        }
        Ok(api::Status {
            instance: config.instance.clone(),
            host: config.host.id.0,
            domain: config.host.domain.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: status.stream.incarnation,
            generation: status.stream.generation,
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            address: config.pop.address,
            multicast: config.pop.multicast,
            tunnel: api::Tunnel {
                encapsulation: match config.tunnel.encapsulation {
                    Encapsulation::Ipip => "ipip",
                    Encapsulation::Gue => "gue",
                }
                .to_owned(),
                network: config.tunnel.prefix.to_string(),
                prefix: config.tunnel.prefix_of(config.host.id).to_string(),
                address: config.tunnel_address().into(),
                hop_limit: config.tunnel.hop_limit,
            },
            interfaces,
            cgroup: config.host.cgroup.clone(),
            services: config
                .services
                .iter()
                .map(|service| api::Service {
                    address: service.endpoint(),
                    protocol: page::protocol_label(service.protocol),
                })
                .collect(),
            draining: self.drain.is_on(),
            keys: reload::names(status.keys.0, status.keys.1),
            members: api::Members {
                alive: 1 + status.alive as u32,
                down: (status.down + status.mismatched) as u32,
                left: status.left as u32,
            },
            sessions: api::Usage {
                count: self.open.load(Ordering::Relaxed),
                limit: config.limits.sessions.into(),
            },
            foreign: api::Usage {
                count: owners.entries.into(),
                limit: owners.capacity.into(),
            },
            gossip: api::Gossip {
                in_sync: status.in_sync,
                announced: status.announced,
                applied: status.gossip.records_applied,
                open_to_applied_us: latency(&status.latency),
                asks: asks(&status),
            },
            problems: self.problems(&status, &hosts),
        })
    }

    async fn hosts(&self) -> Result<Vec<api::Host>, Refusal> {
        let status = self.gossip.status().await?;
        let others = self.gossip.hosts().await?;
        let ways = self.resolver.ways();
        let mut hosts = vec![self.this_host(&status)];
        hosts.extend(
            others
                .iter()
                .map(|host| self.other_host(host, ways.get(&host.host))),
        );
        hosts.sort_by_key(|host| host.host);
        Ok(hosts)
    }

    async fn sessions(&self, after: Option<Tuple>, limit: usize) -> Result<api::Sessions, Refusal> {
        let sessions = self.sessions.clone();
        blocking("SESSIONS", move || {
            let mut page = page::Page::new(after, limit);
            sessions.scan(|tuple, session| page.offer(tuple, session))?;
            Ok(page.finish(monotonic_ns()))
        })
        .await
    }

    async fn owner(&self, session: Tuple) -> Result<api::Owner, Refusal> {
        let (sessions, owners) = (self.sessions.clone(), self.owners.clone());
        let id = session.id(&self.session_key);
        let (local, entry) = blocking("SESSIONS and OWNERS", move || {
            Ok((sessions.get(&session)?, owners.get(id)?))
        })
        .await?;
        let known = self.gossip.owner(id).await?;
        let claims: Vec<_> = known
            .claims
            .iter()
            .map(|claim| api::Claim {
                host: claim.host.0,
                generation: claim.generation.into(),
            })
            .collect();
        let me = self.config.host.id.0;
        let (answer, owner, how) = match (local, entry, claims.first()) {
            (Some(local), _, _) => (
                api::Answer::ThisHost,
                Some(me),
                format!(
                    "its socket is recorded in SESSIONS here (generation {})",
                    local.generation
                ),
            ),
            (None, Some(host), Some(claim)) if claim.host == host.0 => (
                api::Answer::OtherHost,
                Some(host.0),
                format!(
                    "host {host} claims it (generation {}); OWNERS here says so too",
                    claim.generation
                ),
            ),
            (None, Some(host), _) => (
                api::Answer::OtherHost,
                Some(host.0),
                format!("OWNERS here says host {host}; its claim is about to change"),
            ),
            (None, None, Some(claim)) => (
                api::Answer::OtherHost,
                Some(claim.host),
                format!(
                    "host {} claims it (generation {}), but OWNERS here has no entry for it",
                    claim.host, claim.generation
                ),
            ),
            (None, None, None) => (
                api::Answer::Unknown,
                None,
                "it is not in SESSIONS here and nobody claims it".to_owned(),
            ),
        };
        Ok(api::Owner {
            name: page::name(&session, id),
            answer,
            owner,
            how,
            claims,
        })
    }

    async fn stats(&self) -> Result<api::Stats, Refusal> {
        let status = self.gossip.status().await?;
        let stats = self.stats.clone();
        let places = self.places.borrow().clone();
        let names: Vec<_> = places
            .attached
            .iter()
            .filter_map(|attached| match &attached.to {
                Point::Xdp { interface, .. } => Some(interface.clone()),
                Point::Egress { .. } | Point::Cgroup { .. } => None,
            })
            .collect();
        let (counts, interfaces) = blocking("STATS", move || {
            let mut interfaces = BTreeMap::new();
            for name in names {
                // An interface that is gone has no errors to show.
                let errors = counts::xdp_errors(&name).unwrap_or_default();
                interfaces.insert(name, errors);
            }
            Ok((stats.read()?, interfaces))
        })
        .await?;
        let gossip = status.counters().map(|(name, help, count)| api::Counter {
            name: name.to_owned(),
            count,
            help: help.trim_end_matches('.').to_owned(),
        });
        Ok(api::Stats {
            outcomes: counts::outcomes(&counts),
            hooks: {
                let mut hooks = counts::hooks(&counts);
                hooks.extend(counts::watched(&self.watched));
                hooks.extend(counts::held(&self.held));
                hooks.extend(counts::flows(&self.flows));
                hooks
            },
            gossip: gossip.collect(),
            wrong_keys: status
                .wrong_keys
                .iter()
                .map(|&(id, count)| (reload::name(id), count))
                .collect(),
            interfaces,
        })
    }

    async fn health(&self) -> Result<api::Health, Refusal> {
        // The loop that owns gossip has answered: that is what is asked.
        let status = self.gossip.status().await?;
        let hosts = self.gossip.hosts().await?;
        let problems = self.problems(&status, &hosts);
        Ok(api::Health {
            healthy: problems.is_empty(),
            problems,
        })
    }

    async fn leave(&self, hold: Option<Duration>) -> Result<(), Refusal> {
        self.leave
            .send(Some(hold))
            .map_err(|_| Refusal::Failed(anyhow!("the agent is stopping already")))
    }

    async fn reload(&self) -> Result<api::Reloaded, Refusal> {
        Ok(self.reload.run().await?)
    }

    async fn drain(&self, draining: bool) -> Result<api::Draining, Refusal> {
        self.drain.set(draining).await?;
        let hosts = self.gossip.hosts().await?;
        Ok(api::Draining {
            draining,
            sessions: self.open.load(Ordering::Relaxed),
            takers: hosts.iter().filter(|host| takes_sessions(host)).count() as u32,
        })
    }
}

fn asks(status: &Status) -> api::Asks {
    let counters = &status.asks;
    api::Asks {
        open: status.asking.sessions as u64,
        asked: counters.ask_sessions,
        found: counters.ask_answered + counters.ask_late + counters.ask_closing,
        reset: counters.ask_closed + counters.ask_nobody,
        provisional: status.provisional as u64,
    }
}

/// Upper bounds of the histogram's buckets, in microseconds.
const BOUNDS_US: [u64; 14] = [
    50, 100, 200, 300, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000,
    10_000_000,
];

fn latency(latency: &Latency) -> api::Latency {
    let mut below = 0;
    let buckets = BOUNDS_US.iter().zip(latency.cumulative(BOUNDS_US));
    let buckets = buckets.map(|(&le_us, cumulative)| {
        let count = cumulative - below;
        below = cumulative;
        api::Bucket { le_us, count }
    });
    api::Latency {
        p50: latency.quantile_us(0.5),
        p99: latency.quantile_us(0.99),
        samples: latency.samples(),
        sum_us: latency.sum_us(),
        buckets: buckets.collect(),
    }
}
