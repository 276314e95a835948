//! Messages between two hosts: how many, how fast, and at what cost, by each transport.
//!
//! Two hosts of a lab with agents, and on each a process ([`end`]) that is told what to
//! send and to receive ([`case`]) and what with ([`transport`]). Each case is done by one
//! transport after the other, over the same links, and all cases in each of some rounds.

mod case;
mod client;
pub mod end;
mod homing;
mod latency;
mod message;
mod report;
mod server;
mod site;
mod tcp;
mod transport;
mod zmq;

use anyhow::{Context as _, Result, ensure};

use self::{
    case::Case,
    site::{Round, Site},
    transport::Transport,
};
pub use report::Report;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Rounds over all cases
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub runs: u32,
    /// How long each case lasts in each of them
    #[arg(long, default_value_t = 0.4)]
    pub seconds: f64,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub only: String,
}

/// A case, and what each transport made of it, round by round.
pub(crate) struct Measured {
    pub case: Case,
    pub by: Vec<(Transport, Vec<Round>)>,
}

/// Runs the benchmark.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let zmq = zmq::version().map_err(|why| format!("{why:#}"));
    let mut transports = vec![Transport::Homing, Transport::Tcp];
    if zmq.is_ok() {
        transports.push(Transport::Zmq);
    }
    Ok(Report {
        runs: options.runs,
        seconds: options.seconds,
        cases: measure(options, &transports, false, progress)?,
        encrypted: measure(options, &[Transport::Homing], true, progress)?,
        zmq,
        load: super::load(),
    })
}

/// Has these transports do all cases, one after the other, again and again.
fn measure(
    options: &Options,
    transports: &[Transport],
    encryption: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Measured>> {
    let wanted = |case: &Case| case.to_string().contains(&options.only);
    let cases = Case::all().into_iter().filter(wanted);
    let cases = cases.map(|case| Measured {
        case,
        by: transports.iter().map(|by| (*by, Vec::new())).collect(),
    });
    let mut cases: Vec<Measured> = cases.collect();
    ensure!(
        !cases.is_empty(),
        "no case's name contains {:?}",
        options.only
    );
    let how = if encryption { ", encrypted" } else { "" };
    progress(&format!("lab{how}"));
    let mut site = Site::build(encryption)?;
    for number in 1..=options.runs {
        for Measured { case, by } in &mut cases {
            for (transport, rounds) in by {
                let what = || format!("{case} by {}{how}", transport.name());
                progress(&format!("round {number} of {}, {}", options.runs, what()));
                let round = site.round(*transport, *case, options.seconds);
                rounds.push(round.with_context(what)?);
            }
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, thread, time::Duration};

    use super::{case::Work, *};

    /// All kinds of work, over loopback, in one process.
    fn exchange_all(transport: Transport) {
        for (work, connections) in [
            (Work::OneWay, 1),
            (Work::OneWay, 3),
            (Work::OneWayBatched, 2),
            (Work::RequestReply, 1),
            (Work::RequestReply, 3),
            (Work::SmallUnderBulk, 1),
            (Work::SmallUnderBulk, 2),
        ] {
            for len in [64, 100_000] {
                let case = Case {
                    work,
                    len,
                    connections,
                };
                let listener = transport.listen(Ipv4Addr::LOCALHOST.into(), &case).unwrap();
                let to = listener.address();
                let (sent, arrived) = thread::scope(|scope| {
                    let client = scope.spawn(|| {
                        let pipes = transport.connect(&to, &case).unwrap();
                        client::run(pipes, &case, Duration::from_millis(20)).unwrap()
                    });
                    let arrived = server::serve(listener, &case, true).unwrap();
                    (client.join().unwrap(), arrived)
                });
                assert!(sent.messages > 0, "{transport:?} {case:?}");
                assert_eq!(sent.messages, arrived.messages, "{transport:?} {case:?}");
                // One of the two has them.
                let timed = sent.latency.or(arrived.latency);
                assert!(timed.is_some(), "{transport:?} {case:?}");
            }
        }
    }

    #[test]
    fn plain_tcp_does_every_kind_of_work() {
        exchange_all(Transport::Tcp);
    }

    #[test]
    fn zeromq_does_every_kind_of_work_where_there_is_one() {
        if zmq::version().is_ok() {
            exchange_all(Transport::Zmq);
        }
    }
}
