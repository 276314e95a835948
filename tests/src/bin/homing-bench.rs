//! `cargo xtask bench`: measures, and prints a table or JSON.

use std::{
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use homing_tests::bench::{capture, fastpath, gossip, migration, mux, owners};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "Measure Homing; every figure is the minimum and the median of interleaved rounds",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What the XDP program costs a packet, in nanoseconds
    ///
    /// By BPF_PROG_TEST_RUN, on one CPU. `floor` is a program that does nothing but return
    /// XDP_TX; every other figure includes it. `pass` is a packet of a session of this host,
    /// `forward` one of a foreign session that is encapsulated, `strip` one that came through the
    /// tunnel. `200k` stands for 200,000 sessions, met at random; the others are for one hot
    /// session.
    Fastpath {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// What capturing packets costs those that come meanwhile, in nanoseconds
    ///
    /// By BPF_PROG_TEST_RUN, on one CPU: a SYN that goes up to the local stack, short and long.
    /// `usual` is the program when nobody captures; the others are the one that captures, which
    /// is told to want packets of other ends, of another outcome, and all; at last one that has
    /// reached the limit of records.
    Capture {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// What the table of foreign sessions' owners costs, beside BPF hashes
    ///
    /// The table, a BPF hash and an LRU hash hold the same 1,048,576 sessions. Look-ups are made
    /// by XDP, of sessions chosen by chance or of one; insertions from user space, in turn.
    /// `ratio` is that of the table to the hash, by minima. Then the table alone: how full it
    /// gets before it grows, how long it takes to void a host, and 10,000,000 sessions.
    Owners {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// What gossip costs and how soon everyone knows
    ///
    /// A POP of 1,000 hosts is simulated, deterministic by seed: minutes of one core's time. Bytes
    /// are those of gossip that a host receives per announcement that it learns, all copies,
    /// heartbeats and repairs counted; convergence is the time from an announcement (or from the
    /// end of an outage) until a host has applied it, over all announcements and hosts, after the
    /// worst of the single faults. On a lab of six hosts in two racks connections are opened at a steady
    /// rate: the figures are those of the host where it takes longest.
    Gossip(gossip::Options),
    /// What a move costs a client and the hosts
    ///
    /// Two hosts of a lab, a session that goes to and fro while its client exchanges small echoes
    /// with it. A stall is what a move adds to the longest gap between two echoes; windows without
    /// a move stand between the moves. Then thousands of idle sessions are drained from one host to
    /// the other and back. Beside it CRIU dumps and restores a process with one connection, if
    /// there is one that runs here.
    Migration(migration::Options),
    /// What messages between two hosts cost, by each transport
    ///
    /// Two hosts of a lab. Messages of 64 B, 1 KB, 64 KB and 1 MB, over one connection and over
    /// 64, one way and as request and reply; one by one and in batches of 64, where they are
    /// small; and small ones, two a millisecond, while large ones are sent as fast as it goes,
    /// over the same connection and apart. Plain TCP writes each message behind its length, with
    /// one write for each or for each batch; ZeroMQ is DEALER to ROUTER. One way, a latency is
    /// from sending to receiving. CPU is that of all that runs on both hosts.
    Mux(mux::Options),
    /// Serve connections that can move (what `migration` starts on each host)
    #[command(hide = true)]
    Serve {
        /// The agent's socket for applications
        agent: PathBuf,
        /// Where to listen
        addresses: Vec<SocketAddr>,
    },
    /// Have CRIU dump and restore a process (what `migration` starts, in namespaces of its own)
    #[command(hide = true)]
    Criu {
        /// The program
        criu: PathBuf,
        /// How often
        rounds: usize,
    },
    /// Send or receive messages (what `mux` starts on each host)
    #[command(hide = true)]
    MuxEnd,
    /// The process that CRIU dumps
    #[command(hide = true)]
    CriuVictim,
}

fn main() -> Result<()> {
    let tty = std::io::stderr().is_terminal();
    let mut progress = |step: &str| {
        if tty {
            eprint!("\r\x1b[Kbench: {step}");
            std::io::stderr().flush().ok();
        }
    };
    let clear = || {
        if tty {
            eprint!("\r\x1b[K");
        }
    };
    match Cli::parse().what {
        What::Gossip(options) => {
            let report = gossip::run(&options, &mut progress)?;
            clear();
            if options.json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
        What::Migration(options) => {
            let report = migration::run(&options, &mut progress)?;
            clear();
            if options.json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
        What::Mux(options) => {
            let report = mux::run(&options, &mut progress)?;
            clear();
            if options.json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
        What::MuxEnd => mux::end::obey()?,
        What::Serve { agent, addresses } => migration::application::serve(&agent, &addresses)?,
        What::Criu { criu, rounds } => migration::criu::inside(&criu, rounds)?,
        What::CriuVictim => migration::criu::victim()?,
        What::Owners { json } => {
            let report = owners::run(&mut progress)?;
            clear();
            if json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
        What::Capture { json } => {
            let report = capture::run(&mut progress)?;
            clear();
            if json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
        What::Fastpath { json } => {
            let report = fastpath::run(&mut progress)?;
            clear();
            if json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
    }
    Ok(())
}
