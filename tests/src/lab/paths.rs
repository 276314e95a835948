//! Where the project's own programs are, and what labs leave.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where labs keep configurations and logs: `lab/` in cargo's target folder.
pub(super) fn labs_folder() -> Result<PathBuf> {
    let target = build_folder()?.parent().map(Path::to_owned);
    Ok(target
        .context("this program stands in the root folder")?
        .join("lab"))
}

/// The program `homing-lab`: this one, or the one built along with a test program.
pub fn own_program() -> Result<PathBuf> {
    program("homing-lab")
}

/// A program of this package, which was built along with this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = build_folder()?.join(name);
    ensure!(
        path.is_file(),
        "the program {} is not built: `cargo build --package homing-tests` builds it",
        path.display()
    );
    Ok(path)
}

/// The folder that cargo put this program in, and the others with it:
/// `target/PROFILE`. Test programs are in `deps/` below.
pub(super) fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = program.parent().map(|folder| {
        if folder.ends_with("deps") {
            folder.parent()
        } else {
            Some(folder)
        }
    });
    Ok(folder
        .flatten()
        .context("this program stands in the root folder")?
        .to_owned())
}
