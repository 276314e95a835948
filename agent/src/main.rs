//! The `homing` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    homing_agent::cli::main(async |_config| anyhow::bail!("this build has no daemon"))
}
