//! What came of a demo, as JSON and as a table.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::download::Download;
use crate::{
    lab::{Lab, Outer, Tunnel, status::Table},
    workload,
};

/// The outcome of a demo; its JSON form is what `demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Number of hosts.
    pub hosts: u16,
    /// Number of racks.
    pub racks: u16,
    /// Number of client connections in each half.
    pub clients: u32,
    /// How often the ECMP set changed in each half.
    pub reshuffles: u32,
    /// How packets travelled between hosts.
    pub tunnel: Tunnel,
    /// The family of the outer header.
    pub outer: Outer,
    /// Repeats the same run with `--seed`.
    pub seed: u64,
    /// Without Homing.
    pub control: Half,
    /// With Homing; none in a run of the control only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub homing: Option<Half>,
    /// How fast ownership spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gossip: Option<Gossip>,
    /// How long all of it took.
    pub seconds: f64,
}

/// One half of a demo.
#[derive(Clone, Debug, Serialize)]
pub struct Half {
    /// Connections that broke.
    pub broken: u64,
    /// Connections whose client saw a reset.
    pub client_resets: u64,
    /// Packets that hosts encapsulated for their owner while the connections ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded_packets: Option<u64>,
    /// Whether all downloads arrived whole.
    pub download_sha256_ok: bool,
    /// The connections in detail.
    pub connections: workload::Report,
    /// The downloads in detail.
    pub downloads: Vec<Download>,
}

/// How fast ownership spread: from the kernel's event on the owner to the entry
/// on another host.
#[derive(Clone, Debug, Serialize)]
pub struct Gossip {
    /// Microseconds from open to applied, of the host where it took longest (by p99).
    pub open_to_applied_us: Latency,
}

/// Quantiles of a latency.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// How many were measured on that host.
    pub samples: u64,
    /// The host with the longest p99: the one these numbers are of.
    pub host: u16,
}

impl Half {
    pub(super) fn new(connections: workload::Report, downloads: Vec<Download>) -> Self {
        Self {
            broken: connections.broken,
            client_resets: connections.resets,
            forwarded_packets: None,
            download_sha256_ok: !downloads.is_empty()
                && downloads.iter().all(|download| download.sha256_ok),
            connections,
            downloads,
        }
    }
}

impl Gossip {
    /// Asks all agents and takes the host where it took longest.
    pub(super) fn worst_of(lab: &Lab) -> Result<Self> {
        let mut worst: Option<Latency> = None;
        for host in lab.running() {
            let status = lab.homing_json(host, &["status"])?;
            let latency = status
                .pointer("/gossip/open_to_applied_us")
                .context("`homing status` has no latency")?;
            let number = |key: &str| latency.get(key).and_then(Value::as_f64).unwrap_or_default();
            let samples = number("samples") as u64;
            if samples > 0 && worst.as_ref().is_none_or(|worst| number("p99") > worst.p99) {
                worst = Some(Latency {
                    p50: number("p50"),
                    p99: number("p99"),
                    samples,
                    host,
                });
            }
        }
        Ok(Self {
            open_to_applied_us: worst.context("no agent has measured a latency")?,
        })
    }
}

impl Outcome {
    /// What of the claim did not hold: the control loses most connections, Homing
    /// loses none and no client sees a reset.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.control.broken * 2 <= u64::from(self.clients) {
            failures.push(format!(
                "the control broke only {} of {} connections: it shows nothing",
                self.control.broken, self.clients
            ));
        }
        let Some(homing) = &self.homing else {
            return failures;
        };
        if homing.broken > 0 {
            failures.push(format!(
                "{} connections broke with Homing: {}",
                homing.broken,
                homing.connections.reasons.join("; ")
            ));
        }
        if homing.client_resets > 0 {
            failures.push(format!(
                "{} clients saw a reset with Homing",
                homing.client_resets
            ));
        }
        if homing.forwarded_packets == Some(0) {
            failures.push("no packet was forwarded: the reshuffles did nothing".to_owned());
        }
        if !homing.download_sha256_ok {
            failures.push("a download did not arrive whole with Homing".to_owned());
        }
        failures
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections on {} hosts in {} racks, {} reshuffles, tunnel {} over {}, seed {}, {:.0} s\n",
            self.clients,
            self.hosts,
            self.racks,
            self.reshuffles,
            self.tunnel,
            self.outer,
            self.seed,
            self.seconds
        )?;
        let column = |of: &dyn Fn(&Half) -> String| {
            [
                of(&self.control),
                self.homing.as_ref().map_or_else(|| "-".to_owned(), of),
            ]
        };
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
        let mut rows = vec![["", "without Homing", "with Homing"].map(str::to_owned)];
        let mut row = |name: &str, of: &dyn Fn(&Half) -> String| {
            let [control, homing] = column(of);
            rows.push([name.to_owned(), control, homing]);
        };
        row("connections broken", &|half| {
            format!("{} of {}", half.broken, half.connections.connections)
        });
        row("  client saw a reset", &|half| {
            half.client_resets.to_string()
        });
        row("  silence", &|half| half.connections.silences.to_string());
        row("  wrong bytes", &|half| {
            half.connections.mismatches.to_string()
        });
        row("exchanges checked", &|half| {
            half.connections.exchanges.to_string()
        });
        row("bytes checked", &|half| {
            mib(half.connections.bytes_up + half.connections.bytes_down)
        });
        row("exchanges over 0.5 s", &|half| {
            half.connections.stalls.to_string()
        });
        row("slowest exchange", &|half| {
            format!("{:.0} ms", half.connections.slowest_ms)
        });
        row("packets forwarded", &|half| {
            half.forwarded_packets
                .map_or_else(|| "-".to_owned(), |n| n.to_string())
        });
        for index in 0..self.control.downloads.len() {
            let family = if index == 0 {
                "download over IPv4"
            } else {
                "download over IPv6"
            };
            row(family, &|half| {
                half.downloads.get(index).map_or_else(
                    || "-".to_owned(),
                    |download| {
                        let verdict = if download.sha256_ok {
                            "SHA-256 right"
                        } else {
                            "broken"
                        };
                        format!(
                            "{verdict}, {}, {} reshuffles",
                            mib(download.bytes),
                            download.reshuffles
                        )
                    },
                )
            });
        }
        write!(f, "{}", Table(&rows))?;
        if let Some(Gossip {
            open_to_applied_us: latency,
        }) = &self.gossip
        {
            writeln!(
                f,
                "\nfrom open to applied on another host: p50 {:.0} µs, p99 {:.0} µs ({} samples, host {}, the slowest)",
                latency.p50, latency.p99, latency.samples, latency.host
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(control: u64, homing: u64) -> Outcome {
        let half = |broken: u64, ok: bool| {
            let report = workload::Report {
                connections: 10,
                broken,
                resets: broken,
                ..Default::default()
            };
            let download = Download {
                url: String::new(),
                bytes: 1,
                seconds: 1.0,
                sha256_ok: ok,
                curl: 0,
                reshuffles: 2,
            };
            Half {
                forwarded_packets: Some(5),
                ..Half::new(report, vec![download])
            }
        };
        Outcome {
            hosts: 4,
            racks: 2,
            clients: 10,
            reshuffles: 3,
            tunnel: Tunnel::Gue,
            outer: Outer::V4,
            seed: 1,
            control: half(control, false),
            homing: Some(half(homing, true)),
            gossip: Some(Gossip {
                open_to_applied_us: Latency {
                    p50: 1.0,
                    p99: 2.0,
                    samples: 3,
                    host: 1,
                },
            }),
            seconds: 1.0,
        }
    }

    #[test]
    fn a_claim_that_fails_is_named() {
        assert!(outcome(9, 0).failures().is_empty());
        assert_eq!(outcome(5, 0).failures().len(), 1);
        assert_eq!(outcome(9, 1).failures().len(), 2);
        let mut none = outcome(9, 0);
        none.homing.as_mut().unwrap().forwarded_packets = Some(0);
        assert_eq!(none.failures().len(), 1);
        none.homing.as_mut().unwrap().download_sha256_ok = false;
        assert_eq!(none.failures().len(), 2);
    }

    #[test]
    fn json_has_the_promised_fields() {
        let json = serde_json::to_value(outcome(9, 0)).unwrap();
        for pointer in [
            "/hosts",
            "/clients",
            "/reshuffles",
            "/control/broken",
            "/homing/broken",
            "/homing/forwarded_packets",
            "/homing/client_resets",
            "/homing/download_sha256_ok",
            "/gossip/open_to_applied_us/p50",
            "/gossip/open_to_applied_us/p99",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
