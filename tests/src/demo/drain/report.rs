//! What came of draining, as JSON and as a table.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::Value;

use super::Options;
use crate::{
    lab::{Outer, Tunnel, status::Table},
    movable::{NetCounts, Report},
};

/// The outcome; its JSON form is what `demo drain --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Client sessions that were held at the same time.
    pub sessions: u64,
    /// Moves that drains made.
    pub moved: u64,
    /// Sessions that broke, or could not be opened.
    pub broken: u64,
    /// Resets that the clients saw: by their kernel's count or their own, whichever is
    /// more.
    pub client_resets: u64,
    /// Segments that the clients' kernel sent again, of all sessions from beginning to end.
    pub client_retransmits: u64,
    /// Bytes that clients or servers compared with what they should be.
    pub bytes_verified: u64,
    /// How long it took until no session was left on the host where it took longest, in
    /// seconds.
    pub drain_s: f64,
    /// Number of hosts.
    pub hosts: u16,
    /// Number of racks.
    pub racks: u16,
    /// How packets travelled between hosts.
    pub tunnel: Tunnel,
    /// The family of the outer header.
    pub outer: Outer,
    /// Repeats the same run with `--seed`.
    pub seed: u64,
    /// The agents' version.
    pub version: String,
    /// Each host's drain.
    pub drains: Vec<Drained>,
    /// The sessions of plain TCP.
    pub plain: Report,
    /// The downloads by curl.
    pub downloads: Downloads,
    /// The sessions over TLS.
    pub tls: Downloads,
    /// What the clients' kernel counted.
    pub client_kernel: NetCounts,
    /// How long all of it took.
    pub seconds: f64,
}

/// One host's drain.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Drained {
    /// The host.
    pub host: u16,
    /// How it ended: `drained`, or `left`.
    pub end: String,
    /// Sessions that were there.
    pub seen: u64,
    /// Sessions that went on elsewhere.
    pub moved: u64,
    /// Sessions that came to their end there.
    pub ended: u64,
    /// Sessions that were lost, or gone in the middle of their move.
    pub lost: u64,
    /// Sessions that were left, by reason.
    pub left: BTreeMap<String, u64>,
    /// Moves that failed, by reason; most are tried again.
    pub failed: BTreeMap<String, u64>,
    /// How long it took until no session was left, in seconds.
    pub drain_s: f64,
    /// … and until the drain had ended: it waits for connections in TIME_WAIT, too.
    pub quiet_s: f64,
    /// How long half of the sessions were frozen at most, in microseconds.
    pub frozen_p50_us: Option<u64>,
    /// The same of 99 in 100.
    pub frozen_p99_us: Option<u64>,
    /// Connections that clients opened while it went on.
    pub opened_meanwhile: u64,
    /// Segments that the clients' kernel sent again while it went on.
    pub client_retransmits: u64,
    /// … and from then on until the host was back.
    pub client_retransmits_after: u64,
}

/// What became of downloads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Downloads {
    /// How many there were at the same time.
    pub connections: u64,
    /// How many there were, one after another.
    pub opened: u64,
    /// Those that ended in any other way than whole and right.
    pub broken: u64,
    /// … because of a reset.
    pub resets: u64,
    /// Bytes that were compared, and right.
    pub bytes: u64,
    /// The first few reasons in words.
    pub reasons: Vec<String>,
}

impl Drained {
    /// Reads what `homing drain` says in the end, and since when it had said that no session
    /// was left.
    pub(super) fn read(host: u16, answer: &Value, empty_s: Option<f64>) -> Option<Self> {
        let run = answer.get("run")?;
        let number = |name: &str| run.get(name).and_then(Value::as_u64);
        let why = |name: &str| -> Option<BTreeMap<String, u64>> {
            let all = run.get(name)?.as_array()?.iter();
            all.map(|one| {
                let reason = one.get("reason")?.as_str()?.to_owned();
                Some((reason, one.get("sessions")?.as_u64()?))
            })
            .collect()
        };
        let quiet_s = run.get("elapsed_s")?.as_f64()?;
        let sum = |name: &str| Some(why(name)?.values().sum::<u64>());
        Some(Self {
            host,
            end: run.get("end")?.as_str()?.to_owned(),
            seen: number("seen")?,
            moved: number("moved")?,
            ended: number("ended")?,
            lost: sum("lost")? + sum("gone")?,
            left: why("left")?,
            failed: why("failed")?,
            drain_s: empty_s.unwrap_or(quiet_s),
            quiet_s,
            frozen_p50_us: run.pointer("/frozen_us/p50").and_then(Value::as_u64),
            frozen_p99_us: run.pointer("/frozen_us/p99").and_then(Value::as_u64),
            ..Self::default()
        })
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} after {:.2} s: {} sessions moved, {} ended, {} opened elsewhere meanwhile",
            self.end, self.drain_s, self.moved, self.ended, self.opened_meanwhile
        )?;
        if self.quiet_s > self.drain_s + 1.0 {
            write!(f, "; nothing in TIME_WAIT after {:.0} s", self.quiet_s)?;
        }
        if let (Some(p50), Some(p99)) = (self.frozen_p50_us, self.frozen_p99_us) {
            write!(f, "; frozen for {p50} µs, p99 {p99} µs")?;
        }
        for (what, why) in [("left", &self.left), ("failed", &self.failed)] {
            for (reason, count) in why {
                write!(f, "; {what}: {count} {reason}")?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    pub(super) fn new(
        options: &Options,
        seed: u64,
        plain: Report,
        downloads: Downloads,
        tls: Downloads,
        counts: NetCounts,
        drains: Vec<Drained>,
    ) -> Self {
        let resets = plain.resets + downloads.resets + tls.resets;
        let longest = drains.iter().map(|drained| drained.drain_s);
        Self {
            sessions: plain.connections + downloads.connections + tls.connections,
            moved: drains.iter().map(|drained| drained.moved).sum(),
            broken: plain.broken + plain.not_opened + downloads.broken + tls.broken,
            client_resets: resets.max(counts.resets_seen()),
            client_retransmits: counts.retransmits,
            bytes_verified: plain.bytes_up + plain.bytes_down + downloads.bytes + tls.bytes,
            drain_s: longest.fold(0.0, f64::max),
            hosts: options.hosts,
            racks: options.racks,
            tunnel: options.tunnel,
            outer: options.outer,
            seed,
            version: String::new(),
            drains,
            plain,
            downloads,
            tls,
            client_kernel: counts,
            seconds: 0.0,
        }
    }

    /// What of the claim did not hold: every host was emptied, and no client noticed.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.broken > 0 {
            let all = [
                &self.plain.reasons,
                &self.downloads.reasons,
                &self.tls.reasons,
            ];
            let reasons: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
            let reasons = reasons.join("; ");
            failures.push(format!("{} sessions broke: {reasons}", self.broken));
        }
        if self.client_resets > 0 {
            failures.push(format!("clients saw {} resets", self.client_resets));
        }
        for drained in &self.drains {
            if drained.end != "drained" {
                failures.push(format!("h{}: {drained}", drained.host));
            } else if drained.moved == 0 {
                failures.push(format!("no session moved from h{}", drained.host));
            }
        }
        failures
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} sessions on {} hosts in {} racks, each host drained, without power and back; tunnel {} over {}, seed {}, {:.0} s\n",
            self.sessions, self.hosts, self.racks, self.tunnel, self.outer, self.seed, self.seconds
        )?;
        let head = ["", "plain TCP", "curl", "TLS", "all"].map(str::to_owned);
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
        let (plain, curl, tls) = (&self.plain, &self.downloads, &self.tls);
        let row = |name: &str, of: [u64; 3], all: u64| {
            let [plain, curl, tls] = of.map(|number| number.to_string());
            [name.to_owned(), plain, curl, tls, all.to_string()]
        };
        let bytes = [plain.bytes_up + plain.bytes_down, curl.bytes, tls.bytes];
        let [plain_bytes, curl_bytes, tls_bytes] = bytes.map(mib);
        let rows = [
            head,
            row(
                "sessions at a time",
                [plain.connections, curl.connections, tls.connections],
                self.sessions,
            ),
            row(
                "opened in all",
                [plain.opened, curl.opened, tls.opened],
                plain.opened + curl.opened + tls.opened,
            ),
            row(
                "broken",
                [plain.broken + plain.not_opened, curl.broken, tls.broken],
                self.broken,
            ),
            row(
                "clients saw a reset",
                [plain.resets, curl.resets, tls.resets],
                self.client_resets,
            ),
            [
                "bytes checked".to_owned(),
                plain_bytes,
                curl_bytes,
                tls_bytes,
                mib(self.bytes_verified),
            ],
        ];
        write!(f, "{}", Table(&rows))?;
        writeln!(f)?;
        let mut rows = vec![
            [
                "",
                "sessions",
                "moved",
                "left",
                "drained in",
                "frozen, p50",
                "p99",
                "retransmits",
            ]
            .map(str::to_owned),
        ];
        let us = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us} µs"));
        for drained in &self.drains {
            rows.push([
                format!("h{}", drained.host),
                drained.seen.to_string(),
                drained.moved.to_string(),
                drained.left.values().sum::<u64>().to_string(),
                format!("{:.2} s", drained.drain_s),
                us(drained.frozen_p50_us),
                us(drained.frozen_p99_us),
                drained.client_retransmits.to_string(),
            ]);
        }
        write!(f, "{}", Table(&rows))?;
        writeln!(
            f,
            "\n{} moves; the clients' kernel sent {} segments again; the longest wait for bytes was {:.0} ms",
            self.moved, self.client_retransmits, self.plain.longest_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn answer(end: &str) -> Value {
        json!({"draining": true, "run": {
            "end": end, "seen": 9, "moved": 7, "ended": 1, "elapsed_s": 1.5,
            "gone": [], "lost": [], "failed": [{"reason": "busy", "meaning": "", "sessions": 3}],
            "left": [{"reason": "udp", "meaning": "", "sessions": 1}],
            "frozen_us": {"p50": 80, "p99": null},
        }})
    }

    fn outcome(end: &str, broken: u64, resets: u64) -> Outcome {
        let options = Cli::parse_from(["demo"]).options;
        let plain = Report {
            connections: 10,
            broken,
            ..Report::default()
        };
        let counts = NetCounts {
            retransmits: 2,
            resets: resets + 4,
            own_resets: 4,
            failed: 0,
        };
        let drains = vec![Drained::read(2, &answer(end), None).unwrap()];
        let none = Downloads::default();
        Outcome::new(&options, 1, plain, none.clone(), none, counts, drains)
    }

    #[test]
    fn what_homing_says_is_read() {
        let drained = Drained::read(2, &answer("left"), Some(0.5)).unwrap();
        assert_eq!((drained.moved, drained.frozen_p50_us), (7, Some(80)));
        assert_eq!((drained.drain_s, drained.quiet_s), (0.5, 1.5));
        assert_eq!((drained.left["udp"], drained.failed["busy"]), (1, 3));
        assert!(Drained::read(2, &json!({"draining": true, "run": null}), None).is_none());
    }

    #[test]
    fn a_claim_that_fails_is_named() {
        assert!(outcome("drained", 0, 0).failures().is_empty());
        assert_eq!(outcome("drained", 1, 0).failures().len(), 1);
        // A reset that only the kernel has seen is one.
        assert_eq!(outcome("drained", 0, 1).failures().len(), 1);
        assert_eq!(outcome("left", 1, 1).failures().len(), 3);
        let mut none = outcome("drained", 0, 0);
        none.drains[0].moved = 0;
        assert_eq!(none.failures().len(), 1);
    }

    #[test]
    fn json_has_the_promised_fields() {
        let json = serde_json::to_value(outcome("drained", 0, 0)).unwrap();
        for name in [
            "sessions",
            "moved",
            "broken",
            "client_resets",
            "client_retransmits",
            "bytes_verified",
            "drain_s",
        ] {
            assert!(json[name].is_number(), "{name}");
        }
        assert_eq!(json["drains"][0]["drain_s"], 1.5);
    }
}
