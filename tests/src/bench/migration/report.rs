//! What came out, for a program or a person.

use serde_json::{Value, json};

use super::{
    super::measure::{median, min, round},
    Bulk, Cost, Full, Streamed,
    criu::Rounds,
    figures::{Distribution, per_thousand},
};

/// What was measured.
pub struct Report {
    pub(super) interval_us: u32,
    /// The first without data in queues.
    pub(super) streamed: Vec<Streamed>,
    pub(super) full: Vec<Full>,
    pub(super) bulk: Bulk,
    /// Or why it is not available.
    pub(super) criu: Result<Rounds, String>,
    /// How many processes wanted a processor at the end.
    pub(super) load: f64,
}

impl Cost {
    fn json(&self) -> Value {
        let moves = self.freeze.len() as u64;
        json!({
            "moves": moves,
            "freeze_us": self.freeze.json(),
            "took_us": self.took.json(),
            "split_us": self.steps.json(),
            "retransmits_per_1000_moves": round(per_thousand(self.retransmits, moves)),
        })
    }

    fn lines(&self) -> String {
        let moves = self.freeze.len() as u64;
        let split: Vec<String> = self
            .steps
            .means()
            .into_iter()
            .map(|(step, mean)| format!("{step} {mean:.0}"))
            .collect();
        format!(
            "  frozen        {}\n  whole move    {}\n  split, mean   {}\n  retransmits   {:.1} in 1,000 moves\n",
            self.freeze.words(),
            self.took.words(),
            split.join(", "),
            per_thousand(self.retransmits, moves)
        )
    }
}

impl Streamed {
    fn json(&self) -> Value {
        let mut json = self.cost.json();
        json["unread_bytes"] = self.unread.into();
        json["stall_us"] = self.stalls.json();
        json["gap_us"] = self.moved.json();
        json["undisturbed_gap_us"] = self.undisturbed.json();
        json
    }
}

impl Full {
    fn json(&self) -> Value {
        let mut json = self.cost.json();
        json["unsent_bytes"] = self.unsent.into();
        json
    }
}

impl Bulk {
    fn retransmits_per_thousand(&self) -> f64 {
        let moves = u64::from(self.sessions) * self.per_s.len() as u64;
        per_thousand(self.retransmits, moves)
    }
}

impl Report {
    /// For programs.
    pub fn json(&self) -> Value {
        let plain = &self.streamed[0];
        json!({
            "interval_us": self.interval_us,
            "stall_us": plain.stalls.json(),
            "freeze_us": plain.cost.freeze.json(),
            "moves_per_s": median(&self.bulk.per_s).round(),
            "retransmits_per_1000_moves": round(self.bulk.retransmits_per_thousand()),
            "split_us": plain.cost.steps.json(),
            "streams": self.streamed.iter().map(Streamed::json).collect::<Vec<_>>(),
            "full": self.full.iter().map(Full::json).collect::<Vec<_>>(),
            "bulk": {
                "sessions": self.bulk.sessions,
                "moves_per_s": self.bulk.per_s.iter().map(|rate| rate.round()).collect::<Vec<_>>(),
                "freeze_us": self.bulk.freeze_us.iter().map(freeze).collect::<Vec<_>>(),
                "split_us": self.bulk.steps.json(),
            },
            "criu": match &self.criu {
                Ok(rounds) => json!({
                    "version": rounds.version,
                    "network_lock": rounds.lock,
                    "dump_us": of(&rounds.dump_us).json(),
                    "restore_us": of(&rounds.restore_us).json(),
                    "gap_us": of(&rounds.gap_us).json(),
                }),
                Err(why) => json!({ "not_available": why }),
            },
            "load": self.load,
        })
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for case in &self.streamed {
            table += &format!(
                "echoes every {} µs, {} bytes unread at the server\n  \
                 client stalls {}\n  longest gap   {}\n  without moves {}\n{}",
                self.interval_us,
                case.unread,
                case.stalls.words(),
                case.moved.words(),
                case.undisturbed.words(),
                case.cost.lines()
            );
        }
        for case in &self.full {
            table += &format!(
                "{} bytes in the send queue\n{}",
                case.unsent,
                case.cost.lines()
            );
        }
        let rates: Vec<String> = self
            .bulk
            .per_s
            .iter()
            .map(|rate| format!("{rate:.0}"))
            .collect();
        table += &format!(
            "{} idle sessions, drained to and fro\n  \
             moves per s   {:.0} (least {:.0}; {})\n  \
             retransmits   {:.1} in 1,000 moves\n",
            self.bulk.sessions,
            median(&self.bulk.per_s),
            min(&self.bulk.per_s),
            rates.join(", "),
            self.bulk.retransmits_per_thousand()
        );
        table += &match &self.criu {
            Ok(rounds) => format!(
                "CRIU {} (network lock {}), a process with one connection, on one machine\n  \
                 dump          {}\n  restore       {}\n  client's gap  {}\n",
                rounds.version,
                rounds.lock,
                of(&rounds.dump_us).words(),
                of(&rounds.restore_us).words(),
                of(&rounds.gap_us).words()
            ),
            Err(why) => format!("CRIU: not available: {why}\n"),
        };
        table + &format!("load {}\n", self.load)
    }
}

fn of(samples: &[u64]) -> Distribution {
    samples.iter().copied().collect()
}

/// A latency as the agent tells it, without its buckets.
fn freeze(latency: &Value) -> Value {
    json!({ "p50": latency["p50"], "p99": latency["p99"], "samples": latency["samples"] })
}
