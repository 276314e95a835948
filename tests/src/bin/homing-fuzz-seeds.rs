//! `homing-fuzz-seeds FOLDER`: writes the beginnings of the fuzzer's corpora.
//! `cargo xtask fuzz --seeds` runs it.

use std::path::Path;

use anyhow::{Context as _, Result};
use homing_tests::fuzz::seeds;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("name a folder")?;
    let count = seeds::write(Path::new(&folder))?;
    println!("{count} seeds in {folder}");
    Ok(())
}
