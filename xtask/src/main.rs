//! Homing's tasks: `cargo xtask TASK`.
//!
//! Each task first sees to what it needs ([`setup`]), builds, and then hands over
//! to the program that does the work.

mod criu;
mod debian;
mod fuzz;
mod miri;
mod package;
mod run;
mod setup;
mod test;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Homing's tasks", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need; harmless to repeat
    Setup,
    /// Build everything
    Build {
        /// For speed rather than for debugging
        #[arg(long)]
        release: bool,
    },
    /// Make a Debian package of the agent
    Package(package::Options),
    /// Run all tests
    Test {
        /// Try several times as many histories of simulated POPs, fuzz for longer, and run
        /// in Miri what it can run
        #[arg(long)]
        full: bool,
        /// Only tests with this in their name
        filter: Option<String>,
    },
    /// Fuzz what reads the network: every target, or one
    Fuzz(fuzz::Options),
    /// Run in Miri, an interpreter that finds undefined behaviour, the tests that it can run
    Miri,
    /// Show the main job: connections that survive ECMP reshuffles; `demo drain`: hosts that
    /// are drained one by one
    #[command(disable_help_flag = true)]
    Demo {
        /// Options of the demo (`cargo xtask demo --help` lists them)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// A POP in network namespaces: up, exec, status, reshuffle, fault, start, kill, down
    #[command(disable_help_flag = true)]
    Lab {
        /// What to do (`cargo xtask lab --help` lists it)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measure: `bench fastpath`, `bench owners`, `bench gossip`, `bench migration`,
    /// `bench mux`
    #[command(disable_help_flag = true)]
    Bench {
        /// What to measure (`cargo xtask bench --help` lists it)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => {
            setup::for_build()?;
            setup::for_lab()?;
            debian::provide();
            setup::tshark();
            eprintln!("setup: everything is in place");
        }
        Task::Build { release } => {
            setup::for_build()?;
            run::build(release)?;
        }
        Task::Package(options) => {
            setup::for_build()?;
            setup::for_package()?;
            package::perform(&options)?;
        }
        Task::Test { full, filter } => {
            setup::for_build()?;
            setup::for_lab()?;
            debian::provide();
            setup::tshark();
            return test::all(full, filter.as_deref());
        }
        Task::Fuzz(options) => fuzz::perform(&options)?,
        Task::Miri => {
            setup::for_build()?;
            return test::in_miri();
        }
        Task::Demo { mut args } => {
            args.insert(0, "demo".into());
            hand_over("homing-lab", &args)?;
        }
        Task::Lab { args } => hand_over("homing-lab", &args)?,
        Task::Bench { args } => {
            match args.first().and_then(|what| what.to_str()) {
                Some("migration") => criu::provide(),
                Some("mux") => setup::zeromq(),
                _ => {}
            }
            hand_over("homing-bench", &args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds for speed and becomes the program `name`.
fn hand_over(name: &str, args: &[OsString]) -> Result<()> {
    setup::for_build()?;
    setup::for_lab()?;
    run::build(true)?;
    run::become_program(name, args)
}
