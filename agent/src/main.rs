//! The `homing` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    homing_agent::cli::main(homing_agent::daemon::run)
}
