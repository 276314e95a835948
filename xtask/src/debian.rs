//! What tests need of Debian's packages beyond what is installed: unpacked into
//! `target/tools`, or done without. Nothing of it is installed, so no service is started.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::run::{exists, must, output, root};

/// Sees to promtool, which judges metrics and alert rules, as far as that can be. Tests do
/// without, and say so.
pub fn provide() {
    if let Err(error) = promtool() {
        eprintln!("setup: no promtool to check alert rules with: {error:#}");
    }
}

/// Where this machine's Debian comes from.
pub fn mirror() -> Result<String> {
    let mirrors = output(
        "apt-get",
        &[
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Origin: Debian",
            "Label: Debian",
        ],
    );
    let mirrors = mirrors.unwrap_or_default();
    let mirror = mirrors.lines().next();
    Ok(mirror.context("apt has no mirror of Debian's")?.to_owned())
}

/// `target/tools/bin/promtool`. Its package is Prometheus itself; promtool needs no more
/// of it than the C library.
fn promtool() -> Result<()> {
    let program = root().join("target/tools/bin/promtool");
    if program.is_file() || exists("promtool") {
        return Ok(());
    }
    let folder = unpack("prometheus")?;
    fs::create_dir_all(root().join("target/tools/bin"))?;
    // Only what is whole gets the name.
    fs::rename(folder.join("usr/bin/promtool"), program)?;
    Ok(fs::remove_dir_all(folder)?)
}

/// Unpacks a package that is not installed; the folder it is in.
fn unpack(package: &str) -> Result<PathBuf> {
    if !exists("apt-get") || !exists("dpkg-deb") {
        bail!("this is no Debian or Ubuntu, which have it in the package {package}");
    }
    let folder = root().join("target/tools").join(package);
    eprintln!("setup: unpacking {package} into {}", folder.display());
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder)?;
    // Without an update there may be no list, or an old one.
    if download(package, &folder).is_err() {
        must(Command::new("apt-get").args(["-q", "-q", "update"]))?;
        download(package, &folder)?;
    }
    let file = fs::read_dir(&folder)?.next().context("no package")??;
    must(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(file.path())
            .arg(&folder),
    )?;
    Ok(folder)
}

fn download(package: &str, folder: &Path) -> Result<()> {
    must(
        Command::new("apt-get")
            .args(["-q", "-q", "-o", "APT::Sandbox::User=root"])
            .args(["download", package])
            .current_dir(folder)
            .stdout(Stdio::null()),
    )
}
