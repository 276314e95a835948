//! All tests, and one line at the end that sums them up.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use crate::{fuzz, miri, run};

/// What the runners' summaries add up to.
#[derive(Default, Debug, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// How many random histories each simulation goes through with `--full`; the plain
/// run does 48.
const FULL_CASES: &str = "300";

/// How long each target of the fuzzer runs, and with `--full`.
const FUZZ_SECONDS: u64 = 5;
const FULL_FUZZ_SECONDS: u64 = 300;

/// Runs every test of the workspace, with `full` also those that take long; then, if
/// no filter asks for some tests only, the fuzzer for a while, and with `full` Miri.
pub fn all(full: bool, filter: Option<&str>) -> Result<ExitCode> {
    // The lab's tests run the programs.
    run::build(false)?;
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(filter);
    if full {
        // Property tests and simulated POPs, over and over.
        command
            .args(["--", "--include-ignored"])
            .env("PROPTEST_CASES", FULL_CASES);
    }
    let mut sum = Sum::default();
    sum.run(&mut command, "cargo test")?;
    if filter.is_none() {
        let seconds = if full {
            FULL_FUZZ_SECONDS
        } else {
            FUZZ_SECONDS
        };
        if full {
            sum.miri()?;
        }
        sum.fuzz(seconds)?;
    }
    Ok(sum.tell())
}

/// Runs the tests that Miri can run, in it.
pub fn in_miri() -> Result<ExitCode> {
    let mut sum = Sum::default();
    sum.miri()?;
    Ok(sum.tell())
}

impl Sum {
    /// Runs tests, shows what they print, and adds their summaries up.
    fn run(&mut self, command: &mut Command, name: &str) -> Result<()> {
        let failed = self.failed;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = child.stdout.take();
        let stdout = stdout.with_context(|| format!("{name} has no output"))?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("cannot read what {name} prints"))?;
            let line = String::from_utf8_lossy(&line);
            writeln!(std::io::stdout(), "{line}").ok();
            self.add(&line);
        }
        let status = child.wait()?;
        // What does not compile, or dies, has no summary of its own.
        if !status.success() && self.failed == failed {
            self.failed += 1;
            println!("{name} failed without a failed test: {status}");
        }
        Ok(())
    }

    /// Runs tests in Miri. What it does not run there has been run natively, and is not
    /// counted as skipped.
    fn miri(&mut self) -> Result<()> {
        let skipped = self.skipped;
        match miri::commands() {
            Ok(commands) => {
                for mut command in commands {
                    self.run(&mut command, "Miri")?;
                }
                self.skipped = skipped;
            }
            Err(why) => {
                println!("skipped: the tests in Miri: {why:#}");
                self.skipped += 1;
            }
        }
        Ok(())
    }

    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((count, what)) = part.split_once(' ') else {
                continue;
            };
            let count = count.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.skipped += count,
                _ => {}
            }
        }
    }

    /// Runs every target of the fuzzer: each counts as a test.
    fn fuzz(&mut self, seconds: u64) -> Result<()> {
        for (target, result) in fuzz::run_all(seconds)? {
            match result {
                Ok(()) => self.passed += 1,
                Err(error) => {
                    println!("fuzz: {target} failed: {error:#}");
                    self.failed += 1;
                }
            }
        }
        Ok(())
    }

    /// Tells how it all went.
    fn tell(mut self) -> ExitCode {
        if self.passed + self.failed == 0 {
            println!("no test was run");
            self.failed = 1;
        }
        println!("\n{}", self.line());
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn line(&self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        match skipped {
            0 => format!("{passed} passed, {failed} failed"),
            _ => format!("{passed} passed, {failed} failed, {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let mut sum = Sum::default();
        sum.add("test result: ok. 15 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.64s");
        sum.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        sum.add("test lab ... ok");
        assert_eq!(
            sum,
            Sum {
                passed: 18,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(sum.line(), "18 passed, 2 failed, 1 skipped");
    }
}
