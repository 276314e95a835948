//! The agent's state as Prometheus metrics.
//!
//! All of them come from one snapshot, so a scrape is consistent in itself.
//! Counters end in `_total`, units are base units (seconds). What is asked for as
//! OpenMetrics is that; anything else gets the older text format (0.0.4), which
//! `promtool check metrics` and every scraper read.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, LabelSetEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::api::{Counter, Host, HostState, KernelState, Latency, Stats, Status, SyncState, Why};

/// Media type of the text format 0.0.4.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Media type of OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that metrics are made of.
#[derive(Debug)]
pub struct Snapshot {
    /// `/status`.
    pub status: Status,
    /// `/hosts`.
    pub hosts: Vec<Host>,
    /// `/stats`.
    pub stats: Stats,
}

/// The metrics in the OpenMetrics format.
pub fn openmetrics(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("homing");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a String takes all that is written");
    text
}

/// OpenMetrics as text format 0.0.4: there a counter's family is named with
/// `_total`, as its samples are, and units and the end are not marked.
pub fn to_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let total = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                out += &format!("# HELP {name}{total} {help}\n");
            }
            out += &format!("# TYPE {name}{total} {kind}\n");
        } else if !line.starts_with("# ") {
            out += line;
            out.push('\n');
        }
    }
    out
}

type Labels<'a> = &'a [(&'static str, &'a str)];

/// Writes families, each with its samples.
struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'l str)>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter();
        let samples = samples.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, None, MetricType::Counter, samples)
    }

    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'l str)>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter();
        let samples = samples.map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, None, MetricType::Gauge, samples)
    }

    fn family<'l, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Vec<(&'static str, &'l str)>, M)>,
    ) -> fmt::Result {
        // A line feed would end the comment.
        let help = help.replace(['\n', '\\'], " ");
        let mut family = self.encoder.encode_descriptor(name, &help, unit, kind)?;
        for (labels, metric) in samples {
            let labels: Labels<'_> = &labels;
            if labels.is_empty() {
                // The family is this one sample.
                return metric.encode(family);
            }
            metric.encode(family.encode_family(&LabelList(labels))?)?;
        }
        Ok(())
    }

    fn one(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauge(name, help, [(vec![], value)])
    }

    fn counters(&mut self, prefix: &str, counters: &[Counter]) -> fmt::Result {
        for counter in counters {
            let name = format!("{prefix}{}", metric_name(&counter.name));
            self.counter(&name, &counter.help, [(vec![], counter.count)])?;
        }
        Ok(())
    }

    fn latency(&mut self, name: &str, help: &str, latency: &Latency) -> fmt::Result {
        let mut buckets: Vec<_> = latency
            .buckets
            .iter()
            .map(|bucket| (bucket.le_us as f64 / 1e6, bucket.count))
            .collect();
        let counted: u64 = buckets.iter().map(|(_, count)| count).sum();
        let beyond = latency.samples.saturating_sub(counted);
        buckets.push((f64::INFINITY, beyond));
        let mut family = self.encoder.encode_descriptor(
            name,
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        let sum_s = latency.sum_us as f64 / 1e6;
        family.encode_histogram::<NoLabelSet>(sum_s, latency.samples, &buckets, None)
    }
}

#[derive(Debug)]
struct LabelList<'a>(Labels<'a>);

impl prometheus_client::encoding::EncodeLabelSet for LabelList<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// A name as metrics may have it.
fn metric_name(name: &str) -> String {
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    name.chars().map(fits).collect()
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families { encoder };
        self.agent(&mut out)?;
        self.fast_path(&mut out)?;
        self.sessions(&mut out)?;
        self.drain(&mut out)?;
        self.pop(&mut out)?;
        self.gossip(&mut out)?;
        self.bases(&mut out)
    }
}

impl Snapshot {
    fn agent(&self, out: &mut Families<'_>) -> fmt::Result {
        let status = &self.status;
        let host = status.host.to_string();
        let info = vec![
            ("version", status.version.as_str()),
            // Not `instance`: Prometheus gives every target a label of that name.
            ("agent", &status.instance),
            ("host", &host),
            ("domain", &status.domain),
            ("encapsulation", &status.tunnel.encapsulation),
        ];
        out.gauge(
            "agent_info",
            "Always 1; the labels say which agent this is",
            [(info, 1)],
        )?;
        out.family(
            "agent_uptime",
            "How long the agent runs",
            Some(&Unit::Seconds),
            MetricType::Gauge,
            [(vec![], ConstGauge::new(status.uptime_s))],
        )?;
        let help = "How often the agent was started in this life of the kernel";
        out.one("agent_generation", help, status.generation)?;
        let help = "Whether this host takes no new sessions";
        out.one("draining", help, status.draining.into())?;
        let help = "How many things an operator should look at: see homing status";
        out.one("problems", help, status.problems.len() as u64)
    }

    fn fast_path(&self, out: &mut Families<'_>) -> fmt::Result {
        let packets = self.stats.outcomes.iter().map(|outcome| {
            let labels = vec![
                ("outcome", outcome.name.as_str()),
                ("verdict", outcome.verdict.as_str()),
            ];
            (labels, outcome.packets)
        });
        let help = "Packets by how their way through XDP ended";
        out.counter("packets", help, packets)?;
        let errors = self
            .stats
            .interfaces
            .iter()
            .flat_map(|(interface, counters)| {
                counters.iter().map(move |(counter, count)| {
                    let labels = vec![
                        ("interface", interface.as_str()),
                        ("counter", counter.as_str()),
                    ];
                    (labels, *count)
                })
            });
        let help = "The drivers' own counters of packets that XDP could not send";
        out.counter("interface_xdp_errors", help, errors)?;
        out.counters("", &self.stats.hooks)
    }

    fn sessions(&self, out: &mut Families<'_>) -> fmt::Result {
        let (own, foreign) = (self.status.sessions, self.status.foreign);
        out.one("sessions", "Open sessions of this host", own.count)?;
        out.one(
            "sessions_limit",
            "Room for sessions of this host",
            own.limit,
        )?;
        let help = "Sessions of other hosts that this host forwards";
        out.one("foreign_sessions", help, foreign.count)?;
        let help = "Room for sessions of other hosts";
        out.one("foreign_sessions_limit", help, foreign.limit)?;
        let help = "Memory of the table of sessions of other hosts";
        out.one("foreign_sessions_bytes", help, self.status.foreign_bytes)?;
        let help = "Times that there was no memory for that table to grow";
        let failed = self.status.foreign_growths_failed;
        out.counter("foreign_sessions_growths_failed", help, [(vec![], failed)])
    }

    fn drain(&self, out: &mut Families<'_>) -> fmt::Result {
        let Some(run) = &self.status.drain else {
            return Ok(());
        };
        let help = "Whether sessions of this host are being moved to others";
        out.one("drain_running", help, run.end.is_none().into())?;
        let sum = |whys: &[Why]| whys.iter().map(|why| why.sessions).sum();
        let states = [
            ("queued", run.queued),
            ("moving", run.moving),
            ("left", run.left()),
            ("moved", run.moved),
            ("ended", run.ended),
            ("gone", sum(&run.gone)),
            ("lost", sum(&run.lost)),
        ];
        let states = states.map(|(state, count)| (vec![("state", state)], count));
        let help = "What has become of the sessions that this host had in its last drain";
        out.gauge("drain_sessions", help, states)?;
        let left = run.left.iter();
        let left = left.map(|why| (vec![("reason", why.reason.as_str())], why.sessions));
        out.gauge("drain_left", "Sessions that do not move, by why", left)
    }

    fn pop(&self, out: &mut Families<'_>) -> fmt::Result {
        let gossip = &self.status.gossip;
        let members = self.status.members;
        let states = [
            (HostState::Alive, members.alive),
            (HostState::Down, members.down),
            (HostState::Left, members.left),
        ];
        let states = states.map(|(state, count)| (vec![("state", state.label())], count.into()));
        out.gauge(
            "hosts",
            "Hosts of the POP by the state of their agent",
            states,
        )?;

        out.one(
            "synced",
            "Whether this host knows the sessions of the whole POP",
            gossip.synced.into(),
        )?;
        out.one(
            "owners_full",
            "Whether sessions of other hosts found no room here",
            gossip.full.into(),
        )?;

        let ids: Vec<_> = self
            .hosts
            .iter()
            .map(|host| host.host.to_string())
            .collect();
        let per_host = |value: fn(&Host) -> Option<u64>| {
            let hosts = ids.iter().zip(&self.hosts);
            let values = hosts.filter_map(move |(id, host)| Some((id, value(host)?)));
            values
                .map(|(id, value)| (vec![("host", id.as_str())], value))
                .collect::<Vec<_>>()
        };
        let up = per_host(|host| {
            // Who left on purpose is nothing to be woken for.
            let has_left = host.state == HostState::Left;
            (!has_left).then_some((host.state == HostState::Alive).into())
        });
        let help = "Whether a host's agent is alive; absent of one that has left";
        out.gauge("host_up", help, up)?;
        let kernel = per_host(|host| {
            let is_known = !host.this_host && host.kernel != KernelState::Unheard;
            is_known.then_some((host.kernel == KernelState::Alive).into())
        });
        let help = "Whether a host's kernel answers this host; absent until it first did";
        out.gauge("host_kernel_up", help, kernel)?;
        let draining = per_host(|host| Some(host.draining.into()));
        let help = "Whether a host takes no new sessions";
        out.gauge("host_draining", help, draining)?;
        let resolved = per_host(|host| Some(host.next_hop.as_ref()?.resolved.into()));
        let help = "Whether the way to a host is known, so that packets can be sent";
        out.gauge("host_next_hop_resolved", help, resolved)?;
        let claims = per_host(|host| Some(host.claims));
        out.gauge("host_claims", "Sessions that a host claims", claims)?;
        let in_sync = per_host(|host| Some((host.sync == SyncState::InSync).into()));
        let help = "Whether all known announcements of a host have been applied";
        out.gauge("host_in_sync", help, in_sync)
    }

    fn gossip(&self, out: &mut Families<'_>) -> fmt::Result {
        out.latency(
            "gossip_open_to_applied",
            "From the opening of a session on another host to its entry here",
            &self.status.gossip.open_to_applied_us,
        )?;
        let wrong = self.stats.wrong_keys.iter();
        let wrong = wrong.map(|(id, count)| (vec![("key", id.as_str())], *count));
        let help = "Datagrams dropped because the key they are signed with is not accepted, by its public id";
        out.counter("gossip_wrong_keys", help, wrong)?;
        out.counters("gossip_", &self.stats.gossip)
    }

    fn bases(&self, out: &mut Families<'_>) -> fmt::Result {
        let carriers = &self.status.carriers;
        let open = [("to", carriers.to), ("from", carriers.from)];
        let open = open.map(|(way, count)| (vec![("way", way)], count));
        let help = "Carriers that this host has to others, and they to this host";
        out.gauge("carriers", help, open)?;
        let help = "Channels to hosts on which no carrier could be opened";
        out.one("carriers_failing", help, carriers.failing)?;
        let help = "Bytes that wait or are under way to other hosts";
        out.one("carriers_queued_bytes", help, carriers.queued_bytes)?;
        out.counters("carriers_", &self.stats.carriers)?;

        let apps = &self.status.apps;
        let states = [("ready", apps.ready), ("connecting", apps.connecting)];
        let states = states.map(|(state, count)| (vec![("state", state)], count));
        let help = "Applications whose connections can move, by how far they are";
        out.gauge("apps", help, states)?;
        let help = "Services that applications have registered";
        out.one("apps_services", help, apps.services)?;
        let help = "Moves that are pending with applications";
        out.one("apps_moves_pending", help, apps.pending)?;
        let help = "Bytes of states of connections that are held for applications";
        out.one("apps_state_bytes", help, apps.state_bytes)?;
        out.counters("apps_", &self.stats.apps)?;

        let mux = &self.status.mux;
        let kinds = [("service", mux.services), ("connected", mux.connected)];
        let kinds = kinds.map(|(kind, count)| (vec![("kind", kind)], count));
        out.gauge("mux_sockets", "Message sockets", kinds)?;
        let help = "Requests for message sockets that have no answer yet";
        out.one("mux_connecting", help, mux.connecting)?;
        let help = "Message sockets whose messages others have no room for";
        out.one("mux_blocked", help, mux.blocked)?;
        let help = "Message sockets that wait for memory";
        out.one("mux_waiting_for_memory", help, mux.starved)?;
        let help = "Bytes of messages that have no fate yet";
        out.one("mux_held_bytes", help, mux.held_bytes)?;
        let help = "Bytes of messages that wait for applications to read them";
        out.one("mux_unread_bytes", help, mux.unread_bytes)?;
        out.counters("mux_", &self.stats.mux)?;

        let moves = &self.status.moves;
        let ways = [("from_here", moves.from_here), ("to_here", moves.to_here)];
        let ways = ways.map(|(way, count)| (vec![("way", way)], count));
        out.gauge("moves", "Moves of sessions that are under way", ways)?;
        let help = "Moves that wait for their turn";
        out.one("moves_waiting", help, moves.waiting)?;
        let help = "Bytes of states that are held for moves";
        out.one("moves_state_bytes", help, moves.state_bytes)?;
        out.counters("moves_", &self.stats.moves)?;
        self.steps(out)?;
        let help = "Packets that wait for their session, which is moving here, to be served";
        out.one("parked_waiting", help, moves.parked)?;
        out.counters("parked_", &self.stats.parked)
    }

    fn steps(&self, out: &mut Families<'_>) -> fmt::Result {
        let steps = self.stats.steps.iter().map(|step| {
            let labels = vec![("side", step.side.as_str()), ("step", step.step.as_str())];
            (labels, step)
        });
        let times = steps.clone().map(|(labels, step)| (labels, step.times));
        out.counter("moves_steps", "Moves that have passed a step", times)?;
        let spent = steps.map(|(labels, step)| {
            let spent = Duration::from_micros(step.sum_us).as_secs_f64();
            (labels, ConstCounter::new(spent))
        });
        let help = "Time that moves stood at a step";
        let unit = Some(&Unit::Seconds);
        out.family("moves_step", help, unit, MetricType::Counter, spent)
    }
}
