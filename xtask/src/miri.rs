//! Miri: an interpreter of Rust that finds undefined behaviour and data races, and lets
//! threads read as late a value as the memory ordering allows. It comes with nightly
//! toolchains only.
//!
//! Run are the tests of what the kernel programs and the agent have in common, and those
//! of the agent's that touch mapped memory without a kernel behind it.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run::{exists, must, root, words};

/// The toolchain that is installed where there is none.
const TOOLCHAIN: &str = "nightly-2026-05-20";
/// One that does as well.
const ANY: &str = "nightly";

/// Miri is slow: so many random cases where a test does not say.
const CASES: &str = "8";

/// Tests of the agent, by their modules.
const AGENT: [&str; 3] = [
    "datapath::owners::memory",
    "datapath::control",
    "datapath::rendezvous",
];

/// What is to be run.
///
/// # Errors
///
/// There is no Miri, and it cannot be installed: says with which command it can.
pub fn commands() -> Result<Vec<Command>> {
    let toolchain = toolchain()?;
    let mut common = miri(toolchain);
    common.args(["test", "--package", "homing-common", "--tests"]);
    let mut agent = miri(toolchain);
    agent.args(["test", "--package", "homing-agent", "--lib", "--"]);
    agent.args(AGENT);
    Ok(vec![common, agent])
}

/// A toolchain that has Miri.
fn toolchain() -> Result<&'static str> {
    let found = [TOOLCHAIN, ANY].into_iter().find(|name| has_miri(name));
    if let Some(name) = found {
        return Ok(name);
    }
    let mut install = Command::new("rustup");
    install
        .args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal"])
        .args(["--component", "miri", "--component", "rust-src"]);
    let by_hand = words(&install);
    if !exists("rustup") {
        bail!("there is no rustup; where there is: {by_hand}");
    }
    eprintln!("setup: installing Miri: {by_hand}");
    if must(&mut install).is_err() || !has_miri(TOOLCHAIN) {
        bail!("rustup cannot install it now; once it can: {by_hand}");
    }
    Ok(TOOLCHAIN)
}

fn has_miri(toolchain: &str) -> bool {
    let mut command = Command::new("rustup");
    command
        .args(["run", toolchain, "cargo", "miri", "--version"])
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Miri's cargo.
fn miri(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    // What runs is cut off from the machine, so it sees no variables but these.
    let flags = [
        format!("-Zmiri-env-set=PROPTEST_CASES={CASES}"),
        "-Zmiri-env-set=PROPTEST_DISABLE_FAILURE_PERSISTENCE=1".to_owned(),
    ];
    command
        .args(["run", toolchain, "cargo", "miri"])
        .current_dir(root())
        .env("MIRIFLAGS", flags.join(" "))
        .env_remove("RUSTFLAGS")
        // The cargo that runs this is that of another toolchain.
        .env_remove("CARGO");
    command
}
