//! Gossip: a POP of the size the design is meant for, simulated; announcements
//! applied per second and core; the memory that claims take; and, on a lab, how soon a
//! session that opens is known everywhere.

pub(super) mod apply;
mod lab;

use anyhow::Result;
use serde_json::{Value, json};

use self::{apply::Applied, lab::Run};
use crate::scale::{self, Size, Story};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Hosts of the simulated POP
    #[arg(long, default_value_t = scale::DESIGN.hosts)]
    pub hosts: u16,
    /// Its domains
    #[arg(long, default_value_t = scale::DESIGN.domains)]
    pub domains: u16,
    /// Sessions opened in it per second; as many are closed
    #[arg(long, default_value_t = scale::DESIGN.opens_per_s)]
    pub opens: u64,
    /// Decides everything that happens in it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Runs on the lab, of which the median counts
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Connections opened on the lab per second
    #[arg(long, default_value_t = lab::RATE, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub lab_opens: u32,
    /// Leave the simulation out
    #[arg(long)]
    pub no_sim: bool,
}

/// What was measured.
pub struct Report {
    story: Option<Story>,
    applied: Applied,
    /// Bytes that an agent takes for each session of others, by how many there are.
    claim_bytes: [(u64, f64); 2],
    runs: Vec<Run>,
    /// How many processes wanted a processor during the runs on the lab.
    load: f64,
}

/// Runs the benchmark.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    progress("announcements applied");
    let applied = apply::run()?;
    progress("memory of claims");
    let [million, ten_million] = [1_000_000, 10_000_000];
    let claim_bytes = [
        (million, apply::claim_bytes(million)?),
        (ten_million, apply::claim_bytes(ten_million)?),
    ];
    let mut runs = Vec::new();
    for number in 1..=options.runs {
        progress(&format!("lab, run {number} of {}", options.runs));
        runs.push(lab::run(options.lab_opens)?);
    }
    let load = super::load();
    let size = Size {
        hosts: options.hosts,
        domains: options.domains,
        opens_per_s: options.opens,
    };
    let story = if options.no_sim {
        None
    } else {
        let mut progress = |step: &str| progress(&format!("simulation: {step}"));
        Some(scale::play(size, options.seed, &mut progress)?)
    };
    Ok(Report {
        story,
        applied,
        claim_bytes,
        runs,
        load,
    })
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

impl Report {
    fn p50_us(&self) -> Option<u64> {
        median(self.runs.iter().map(|run| run.p50_us))
    }

    fn p99_us(&self) -> Option<u64> {
        median(self.runs.iter().map(|run| run.p99_us))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "open_to_applied_us": { "p50": self.p50_us(), "p99": self.p99_us() },
            "opens_per_s": self.runs.iter().map(|run| run.opens_per_s.round()).collect::<Vec<_>>(),
            "load": self.load,
            "applied_per_s_per_core": self.applied.with_table.round(),
            "applied_per_s_per_core_without_table": self.applied.without_table.round(),
            "claim_bytes_per_session": self.claim_bytes.iter().map(|(sessions, bytes)| json!({
                "sessions": sessions,
                "bytes": (bytes * 10.0).round() / 10.0,
            })).collect::<Vec<_>>(),
        });
        if let Some(story) = &self.story {
            let round = |number: f64| (number * 100.0).round() / 100.0;
            json["sim"] = json!({
                "hosts": story.size.hosts,
                "domains": story.size.domains,
                "announcements_per_s": 2 * story.size.opens_per_s,
                "convergence_ms": {
                    "p50": story.convergence_ms(0.5),
                    "p99": story.convergence_ms(0.99),
                    "max": story.convergence_ms(1.0),
                },
                "bytes_per_announcement": round(story.bytes_per_announcement()),
                "payload_bytes_per_announcement": round(story.payload_per_announcement()),
                "datagrams_per_host_per_s": story.steady.rates.max(),
                "datagrams_per_host_per_s_mean": round(story.steady.rates.mean()),
                "datagrams_per_host_per_s_ever": story.datagrams_max,
                "carried_at_once_ever": story.carried_max,
                "joined_s": round(story.joined_s),
                "agreed_s": round(story.agreed_s),
                "faults": story.faults.iter().map(|(name, measured)| json!({
                    "fault": name,
                    "p50_ms": measured.delays.quantile(0.5),
                    "p99_ms": measured.delays.quantile(0.99),
                    "max_ms": measured.delays.max(),
                    "datagrams_per_host_per_s": measured.rates.max(),
                })).collect::<Vec<_>>(),
            });
        }
        json
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let us = |us: Option<u64>| us.map_or("-".to_owned(), |us| format!("{us} µs"));
        let mut table = format!(
            "from opened to applied  p50 {}, p99 {} (median of {} runs; load {})\n\
             applied per s and core  {:.0}, without the kernel's table {:.0}\n",
            us(self.p50_us()),
            us(self.p99_us()),
            self.runs.len(),
            self.load,
            self.applied.with_table,
            self.applied.without_table,
        );
        for (sessions, bytes) in self.claim_bytes {
            table += &format!(
                "memory of claims        {bytes:.1} bytes for each of {sessions} sessions of others\n"
            );
        }
        let Some(story) = &self.story else {
            return table;
        };
        table += &format!(
            "simulated               {} hosts in {} domains, {} announcements a second; joined in {:.1} s, agreed {:.1} s after the end\n\
             bytes per announcement  {:.1} with IP and UDP headers, {:.1} without\n\
             datagrams per host, s   mean {:.0}, most {}, ever {}\n\
             bulk messages at once   ever {}\n\
             without a fault         p50 {} ms, p99 {} ms, most {} ms\n",
            story.size.hosts,
            story.size.domains,
            2 * story.size.opens_per_s,
            story.joined_s,
            story.agreed_s,
            story.bytes_per_announcement(),
            story.payload_per_announcement(),
            story.steady.rates.mean(),
            story.steady.rates.max(),
            story.datagrams_max,
            story.carried_max,
            story.steady.delays.quantile(0.5),
            story.steady.delays.quantile(0.99),
            story.steady.delays.max(),
        );
        for (name, measured) in &story.faults {
            table += &format!(
                "{name:<28}p50 {} ms, p99 {} ms, most {} ms\n",
                measured.delays.quantile(0.5),
                measured.delays.quantile(0.99),
                measured.delays.max(),
            );
        }
        table
    }
}
