//! The fuzzer: cargo-fuzz on `fuzz/`, with the toolchain of this workspace.
//!
//! What it finds worth keeping goes to `target/fuzz-corpus`; the corpora in
//! `fuzz/corpus` are read only.

use std::{fs, num::NonZeroUsize, path::PathBuf, process::Command, sync::Mutex, thread};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    run::{self, must, root},
    setup,
};

/// How long each target runs unless told otherwise.
const SECONDS: u64 = 60;
/// Memory that a target may take: the sanitizer's own is in it.
const MEMORY_MIB: u64 = 2048;
/// Targets that run at once, at most: as many as there are processors, if that is
/// less.
const AT_ONCE: usize = 4;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Only this target (default: all of them)
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Write the beginnings of the corpora anew, and run nothing
    #[arg(long)]
    seeds: bool,
}

/// Does what the options say.
pub fn perform(options: &Options) -> Result<()> {
    setup::for_build()?;
    if options.seeds {
        let mut command = run::cargo();
        command.args(["run", "--quiet", "--package", "homing-tests"]);
        command.args(["--bin", "homing-fuzz-seeds", "--", "fuzz/corpus"]);
        return must(&mut command);
    }
    let targets = targets()?;
    match &options.target {
        None => {
            let failed: Vec<_> = run_all(options.seconds)?
                .into_iter()
                .filter_map(|(target, result)| Some(format!("{target}: {:#}", result.err()?)))
                .collect();
            match failed.is_empty() {
                true => Ok(()),
                false => bail!("{}", failed.join("\n")),
            }
        }
        Some(target) if targets.contains(target) => run(target, options.seconds),
        Some(target) => bail!("no target {target}; there are {}", targets.join(", ")),
    }
}

/// The targets: the corpora's folders.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/corpus");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Runs every target for so long, and says of each what came of it.
pub fn run_all(seconds: u64) -> Result<Vec<(String, Result<()>)>> {
    // What is missing is installed once, before anything runs beside something else.
    setup::fuzzer()?;
    let waiting = Mutex::new(targets()?.into_iter());
    let done = Mutex::new(Vec::new());
    let next = || waiting.lock().ok()?.next();
    let at_once = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..at_once.min(AT_ONCE) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let result = run(&target, seconds);
                    if let Ok(mut done) = done.lock() {
                        done.push((target, result));
                    }
                }
            });
        }
    });
    done.into_inner()
        .map_err(|_| anyhow!("a fuzzing thread panicked"))
}

/// Runs a target for so long. What it finds is an error, and stands on the screen.
fn run(target: &str, seconds: u64) -> Result<()> {
    let fuzzer = setup::fuzzer()?;
    let found = scratch().join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    eprintln!("fuzz: {target} for {seconds} s");
    let mut command = Command::new(fuzzer);
    command
        .current_dir(root())
        .args(["run", "--fuzz-dir", "fuzz", "--target-dir"])
        .arg(run::target().join("fuzz"))
        .arg(target)
        .arg(&found)
        .arg(root().join("fuzz/corpus").join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .args([
            "-timeout=10",
            "-max_len=4096",
            "-print_funcs=0",
            "-verbosity=0",
        ])
        // Instrumentation needs unstable flags; a stable compiler takes them when
        // it is told that it builds itself.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTFLAGS");
    must(&mut command)
}

/// What the fuzzer has found worth keeping on this machine.
fn scratch() -> PathBuf {
    run::target().join("fuzz-corpus")
}
