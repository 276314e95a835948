//! What the admin socket is told: snapshots of every part, put into the words of
//! the API.

mod bases;
mod capture;
mod explain;
mod hosts;
mod moving;
mod mux;
mod owner;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow};
use homing_common::{
    host::{Encapsulation, HostId},
    session::{SessionKey, Tuple},
};
use tokio::{sync::watch, task::spawn_blocking};

pub(super) use capture::Captures;

use super::{
    crowded::Crowded,
    drain::Drain,
    problems,
    reload::{self, Reload},
    table::{Shared, Usage},
};
use crate::{
    admin::{CaptureOrder, Captured, DrainOrder, Logs, Refusal, View, api, counts, page},
    datapath::{
        clock::monotonic_ns,
        flows::FlowCounters,
        held::HeldCounters,
        keeper::Places,
        link::Point,
        load::{Attachment, Ground},
        moving::{MovingMap, park::Park},
        resolver::Resolver,
        sessions::Sessions,
        sockets::WatchCounters,
        stats::Stats,
    },
    gossip::{
        Latency,
        alerts::Alert,
        task::{Handle, HostStatus, Status, Stopped},
    },
    migration::app::Apps,
    migration::task::{Handle as Moves, Stopped as MovesStopped},
    mux::{Carriers, sockets::Sockets},
};

/// How long an agent may take to know the sessions of the whole POP.
const SYNCED_WITHIN: Duration = Duration::from_secs(10);

/// Everything that questions are answered from.
pub(super) struct AgentView {
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
    pub carriers: Carriers,
    pub apps: Apps,
    pub messages: Sockets,
    /// Who captures packets.
    pub captures: Captures,
    /// Where packets are tried.
    pub ground: Arc<Ground>,
    /// One trial at a time.
    pub trial: Arc<tokio::sync::Mutex<()>>,
    /// The journal of moves.
    pub moving: Arc<MovingMap>,
    /// Packets of sessions that are moving here.
    pub park: Park,
    /// Sessions on their way from and to here.
    pub moves: Moves,
    /// The key of the session ids that this host looks up.
    pub session_key: SessionKey,
    /// This host's open sessions.
    pub open: Arc<AtomicU64>,
    /// The configuration, and what puts another one in force.
    pub reload: Reload,
    /// Whether new sessions go elsewhere, and the others move.
    pub drain: Drain,
    /// What is logged.
    pub logs: Arc<dyn Logs>,
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

impl From<MovesStopped> for Refusal {
    fn from(stopped: MovesStopped) -> Self {
        Self::Unavailable(stopped.to_string())
    }
}

impl AgentView {
    /// What an operator should look at, and what to do about it.
    fn problems(&self, status: &Status, hosts: &[HostStatus], owners: &Usage) -> Vec<String> {
        let unrecorded = self.watched.unrecorded.load(Ordering::Relaxed);
        let address = self.reload.config().pop.address;
        let now = SystemTime::now();
        let mut problems = problems::of_hosts(now, hosts, &self.resolver.ways());
        problems.extend(
            status
                .alerts
                .iter()
                .map(|alert| problems::of_pop(alert, address)),
        );
        problems.extend(self.unattached());
        let deaf = self.deaf(hosts);
        if !deaf.is_empty() {
            problems.push(format!(
                "{unheard} {deaf}, which get everything by unicast; look at IGMP and MLD snooping in the domain {domain}",
                unheard = api::UNHEARD,
                deaf = deaf.join(", "),
                domain = self.reload.config().host.domain,
            ));
        }
        if !status.synced && self.started.elapsed() > SYNCED_WITHIN {
            problems.push(problems::NOT_SYNCED.to_owned());
        }
        problems.extend(problems::of_carriers(&self.carriers.status(), hosts));
        problems.extend(problems::of_apps(now, self.apps.turned_away()));
        problems.extend(problems::of_tables(
            status.unplaced,
            owners,
            unrecorded,
            &self.crowded.lately(),
        ));
        problems
    }

    /// What keeps this very host from its work. That others are in trouble does not.
    fn failures(&self, status: &Status) -> Vec<String> {
        let refused = |alert: &&Alert| matches!(alert, Alert::Refused { .. });
        let refusals = status.alerts.iter().filter(refused);
        let refusals =
            refusals.map(|alert| problems::of_pop(alert, self.reload.config().pop.address));
        self.unattached().into_iter().chain(refusals).collect()
    }

    /// The interfaces that lack the programs.
    fn unattached(&self) -> Vec<String> {
        let places = self.places.borrow();
        let lacking = places.lacking.iter().map(|(interface, why)| {
            format!("nothing that comes by interface {interface} is forwarded: {why}; it is attached to as soon as that is possible")
        });
        lacking.collect()
    }
}

impl View for AgentView {
    async fn status(&self) -> Result<api::Status, Refusal> {
        let status = self.gossip.status().await?;
        let hosts = self.gossip.hosts().await?;
        let config = self.reload.config();
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
            drain: self.drain_run(),
            keys: reload::names(status.keys, status.session_keys),
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
            foreign_bytes: owners.bytes,
            foreign_growths_failed: owners.growth.failures,
            gossip: api::Gossip {
                in_sync: status.in_sync,
                synced: status.synced,
                full: status.full,
                announced: status.announced,
                applied: status.gossip.records_applied,
                open_to_applied_us: latency(&status.latency),
                asks: asks(&status),
            },
            carriers: self.carriers_sum(),
            apps: self.apps_sum(),
            mux: self.mux_sum(&self.messages.status()),
            moves: self.moves_sum(&self.moves.status().await?.load),
            problems: self.problems(&status, &hosts, &owners),
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
        self.owner_of(session).await
    }

    async fn explain(&self, order: api::ExplainOrder) -> Result<api::Explanations, Refusal> {
        self.explained(order).await
    }

    async fn capture(&self, order: CaptureOrder) -> Result<Captured, Refusal> {
        self.captured(order).await
    }

    fn end_capture(&self, number: Option<u64>) -> bool {
        self.capture_ended(number)
    }

    async fn carriers(&self) -> Result<api::Carriers, Refusal> {
        Ok(self.all_carriers())
    }

    async fn apps(&self) -> Result<api::Apps, Refusal> {
        Ok(self.all_apps())
    }

    async fn mux(&self) -> Result<api::Mux, Refusal> {
        Ok(self.all_messages())
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
                Point::Egress { .. } | Point::Cgroup { .. } | Point::CgroupEgress { .. } => None,
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
        let monotonic_us = monotonic_ns() / 1_000;
        let moves = self.moves.status().await?;
        Ok(api::Stats {
            monotonic_us,
            incarnation: status.stream.incarnation,
            generation: status.stream.generation,
            outcomes: counts::outcomes(&counts),
            hooks: {
                let mut hooks = counts::hooks(&counts);
                hooks.extend(counts::beside_hooks(&self.watched, &self.held, &self.flows));
                hooks
            },
            gossip: counts::named(status.counters()),
            carriers: counts::named(self.carriers.status().counters.iter()),
            apps: counts::named(self.apps.counters().iter()),
            mux: counts::named(self.messages.status().counters.iter()),
            moves: counts::named(moves.counters.iter()),
            steps: moves.steps.iter().map(counts::step).collect(),
            parked: counts::parked(self.park.counters()),
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
        let problems = self.failures(&status);
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

    fn log(&self) -> api::Log {
        self.logs.level()
    }

    fn set_log(&self, level: &str) -> Result<(), String> {
        self.logs.set_level(level)
    }

    async fn reload(&self, dry: bool) -> Result<api::Reloaded, Refusal> {
        self.reload.run(dry).await
    }

    fn config(&self) -> api::InForce {
        api::InForce::of(&self.reload.config())
    }

    async fn drain(&self) -> Result<api::Drain, Refusal> {
        self.drain_told().await
    }

    async fn begin_drain(&self, order: DrainOrder) -> Result<api::Drain, Refusal> {
        self.drain_begun(order).await
    }

    async fn end_drain(&self) -> Result<api::Drain, Refusal> {
        self.drain.end().await?;
        self.drain_told().await
    }

    async fn move_session(
        &self,
        session: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<api::Moved, Refusal> {
        self.session_moved(session, target, within).await
    }
}

fn asks(status: &Status) -> api::Asks {
    let counters = &status.asks;
    api::Asks {
        open: status.asking.sessions as u64,
        asked: counters.ask_sessions,
        found: counters.ask_answered
            + counters.ask_told
            + counters.ask_presumed
            + counters.ask_late
            + counters.ask_closing,
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
