//! What came out, for a program or a person.

use serde_json::{Value, json};

use super::{
    super::measure::{median, min},
    Measured,
    case::{Case, Work},
    site::Round,
    transport::Transport,
};

/// What was measured.
pub struct Report {
    pub(super) runs: u32,
    pub(super) seconds: f64,
    pub(super) cases: Vec<Measured>,
    /// With encryption between the hosts: of transports that have it.
    pub(super) encrypted: Vec<Measured>,
    /// ZeroMQ's version, or why it is not available.
    pub(super) zmq: Result<String, String>,
    /// How many processes wanted a processor at the end.
    pub(super) load: f64,
}

/// What is told of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Figure {
    PerSecond,
    GbitPerSecond,
    P50Us,
    P99Us,
    CpuUs,
}

impl Figure {
    const ALL: [Self; 5] = [
        Self::PerSecond,
        Self::GbitPerSecond,
        Self::P50Us,
        Self::P99Us,
        Self::CpuUs,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "per_s",
            Self::GbitPerSecond => "gbit_per_s",
            Self::P50Us => "p50_us",
            Self::P99Us => "p99_us",
            Self::CpuUs => "cpu_us_per_message",
        }
    }

    fn of(self, round: &Round) -> f64 {
        let Round { sent, arrived, cpu } = round;
        let latency = sent.latency.or(arrived.latency);
        let us = |ns: Option<u64>| ns.map_or(f64::NAN, |ns| ns as f64 / 1e3);
        let elapsed_ns = sent.elapsed_ns as f64;
        match self {
            Self::PerSecond => sent.messages as f64 * 1e9 / elapsed_ns,
            Self::GbitPerSecond => sent.bytes as f64 * 8.0 / elapsed_ns,
            Self::P50Us => us(latency.map(|latency| latency.p50_ns)),
            Self::P99Us => us(latency.map(|latency| latency.p99_ns)),
            Self::CpuUs => cpu.as_secs_f64() * 1e6 / sent.messages as f64,
        }
    }

    /// Of all rounds.
    fn all(self, rounds: &[Round]) -> Vec<f64> {
        rounds.iter().map(|round| self.of(round)).collect()
    }

    /// The round that was disturbed least: the highest rate, the least time.
    fn best(self, all: &[f64]) -> f64 {
        match self {
            Self::PerSecond | Self::GbitPerSecond => all.iter().copied().fold(0.0, f64::max),
            Self::P50Us | Self::P99Us | Self::CpuUs => min(all),
        }
    }

    /// As many places as mean something.
    fn round(self, value: f64) -> f64 {
        match self {
            Self::PerSecond => value.round(),
            Self::P50Us | Self::P99Us => (value * 10.0).round() / 10.0,
            Self::GbitPerSecond | Self::CpuUs => (value * 1000.0).round() / 1000.0,
        }
    }

    fn json(self, rounds: &[Round]) -> Value {
        let all = self.all(rounds);
        json!({ "best": self.round(self.best(&all)), "median": self.round(median(&all)) })
    }

    fn words(self, rounds: &[Round]) -> String {
        let all = self.all(rounds);
        let words = |value: f64| match value {
            _ if self == Self::PerSecond => format!("{value:.0}"),
            100.0.. => format!("{value:.0}"),
            _ => format!("{value:.2}"),
        };
        format!("{}/{}", words(self.best(&all)), words(median(&all)))
    }
}

/// The figures that targets name: their names, without what stands for the transport, and
/// where they come from.
fn named(transport: Transport) -> [(&'static str, Case, Figure); 5] {
    let case = |work, len, connections| Case {
        work,
        len,
        connections,
    };
    let (short, long) = (64, 1 << 20);
    [
        (
            "one_way_64b_per_s",
            case(Work::OneWay, short, 1),
            Figure::PerSecond,
        ),
        (
            "one_way_64b_batched_per_s",
            case(Work::OneWayBatched, short, 1),
            Figure::PerSecond,
        ),
        (
            "request_reply_p99_us",
            case(Work::RequestReply, short, 1),
            Figure::P99Us,
        ),
        (
            "small_p99_us_under_bulk",
            case(Work::SmallUnderBulk, long, transport.lanes()),
            Figure::P99Us,
        ),
        (
            "bulk_gbit_per_s",
            case(Work::OneWay, long, 1),
            Figure::GbitPerSecond,
        ),
    ]
}

/// Puts what was measured into an object: named figures, and all by case.
fn put(cases: &[Measured], json: &mut Value) {
    for Measured { case, by } in cases {
        let mut of_case = json!({});
        for (transport, rounds) in by {
            for (name, source, figure) in named(*transport) {
                if source == *case {
                    let value = median(&figure.all(rounds));
                    let name = format!("{name}{}", transport.suffix());
                    json[name] = figure.round(value).into();
                }
            }
            let figures = Figure::ALL.map(|figure| (figure.name(), figure.json(rounds)));
            of_case[transport.key()] = figures.into_iter().collect();
        }
        json["cases"][case.to_string()] = of_case;
    }
}

impl Report {
    /// For programs.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "runs": self.runs,
            "seconds": self.seconds,
            "load": self.load,
            "zmq": match &self.zmq {
                Ok(version) => json!({ "version": version }),
                Err(why) => json!({ "not_available": why }),
            },
        });
        put(&self.cases, &mut json);
        put(&self.encrypted, &mut json["encrypted"]);
        json
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let line = |case: &str, by: &str, figures: [String; 5]| {
            let [per_s, gbit, p50, p99, cpu] = figures;
            format!("{case:<26}{by:<12}{per_s:>16}{gbit:>12}{p50:>16}{p99:>16}{cpu:>16}\n")
        };
        let heads = ["messages/s", "Gbit/s", "p50 µs", "p99 µs", "CPU µs/message"];
        let mut table = line("best/median", "", heads.map(str::to_owned));
        for (cases, how) in [(&self.cases, ""), (&self.encrypted, ", TLS")] {
            for Measured { case, by } in cases {
                for (index, (transport, rounds)) in by.iter().enumerate() {
                    let case = match index {
                        0 => case.to_string(),
                        _ => String::new(),
                    };
                    let figures = Figure::ALL.map(|figure| figure.words(rounds));
                    table += &line(&case, &format!("{}{how}", transport.name()), figures);
                }
            }
        }
        let zmq = match &self.zmq {
            Ok(version) => format!("ZeroMQ {version}"),
            Err(why) => format!("ZeroMQ: not available: {why}"),
        };
        table
            + &format!(
                "{} rounds of {} s; {zmq}; load {}\n",
                self.runs, self.seconds, self.load
            )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{client::Sent, latency::Latency, server::Arrived};
    use super::*;

    /// A round of a second.
    fn round(messages: u64, p99_ns: u64) -> Round {
        let latency = Latency {
            p50_ns: p99_ns / 2,
            p99_ns,
            samples: 100,
        };
        Round {
            sent: Sent {
                messages,
                bytes: messages * 64,
                elapsed_ns: 1_000_000_000,
                latency: None,
            },
            arrived: Arrived {
                messages,
                latency: Some(latency),
            },
            cpu: Duration::from_millis(500),
        }
    }

    #[test]
    fn targets_are_named_at_the_top_and_all_is_told_by_case() {
        let rounds = || {
            vec![
                round(1_000, 30_000),
                round(4_000, 10_000),
                round(2_000, 20_000),
            ]
        };
        let cases = Case::all().into_iter().map(|case| Measured {
            case,
            by: vec![(Transport::Tcp, rounds()), (Transport::Zmq, rounds())],
        });
        let report = Report {
            runs: 3,
            seconds: 1.0,
            cases: cases.collect(),
            encrypted: vec![Measured {
                case: Case {
                    work: Work::OneWay,
                    len: 64,
                    connections: 1,
                },
                by: vec![(Transport::Homing, rounds())],
            }],
            zmq: Ok("4.3.4".to_owned()),
            load: 0.0,
        };
        let json = report.json();
        for (name, value) in [
            ("one_way_64b_per_s", 2_000.0),
            ("one_way_64b_batched_per_s", 2_000.0),
            ("request_reply_p99_us", 20.0),
            ("small_p99_us_under_bulk", 20.0),
            ("bulk_gbit_per_s", 0.001),
        ] {
            for suffix in ["_tcp", "_zmq"] {
                assert_eq!(json[format!("{name}{suffix}")], value, "{name}{suffix}");
            }
        }
        let case = &json["cases"]["one_way_1kb_x64"]["zmq"];
        assert_eq!(case["per_s"], json!({ "best": 4_000.0, "median": 2_000.0 }));
        assert_eq!(case["p99_us"]["best"], 10.0);
        assert_eq!(case["cpu_us_per_message"]["best"], 125.0);
        let lines = report.table().lines().count();
        assert_eq!(lines, 3 + 2 * report.cases.len());
        assert_eq!(json["encrypted"]["one_way_64b_per_s"], 2_000.0);
    }
}
