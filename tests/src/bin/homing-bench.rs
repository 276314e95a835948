//! `cargo xtask bench`: measures, and prints a table or JSON.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use clap::{Parser, Subcommand};
use homing_tests::bench::fastpath;

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
}

fn main() -> Result<()> {
    match Cli::parse().what {
        What::Fastpath { json } => {
            let tty = std::io::stderr().is_terminal();
            let report = fastpath::run(&mut |step| {
                if tty {
                    eprint!("\r\x1b[Kbench fastpath: {step}");
                    std::io::stderr().flush().ok();
                }
            })?;
            if tty {
                eprint!("\r\x1b[K");
            }
            if json {
                println!("{}", serde_json::to_string(&report.json())?);
            } else {
                print!("{}", report.table());
            }
        }
    }
    Ok(())
}
