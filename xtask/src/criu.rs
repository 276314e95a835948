//! CRIU, which `bench migration` measures beside the project's own moves: found, or
//! unpacked from Debian's packages, or done without.
//!
//! Kernels from 6.16 on need CRIU 4.2 (before, it asks every socket for `SO_PASSCRED`,
//! which TCP has refused since), and the machine's own Debian may have an older one.
//! So a newer Debian's packages are unpacked into `target/tools/criu`, with all the
//! libraries that they need, and nothing of the machine's own is touched.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian,
    run::{exists, must, root},
};

/// The release whose packages are taken: the first with 4.2.
const RELEASE: &str = "forky";
/// Who signs it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Sees to a CRIU in `target/tools/bin`, as far as that can be. The benchmark does
/// without it, and says so.
pub fn provide() {
    if let Err(error) = try_to_provide() {
        eprintln!("setup: no CRIU to compare with: {error:#}");
    }
}

fn try_to_provide() -> Result<()> {
    let tools = root().join("target/tools");
    let program = tools.join("bin/criu");
    if program.is_file() {
        return Ok(());
    }
    if !exists("apt-get") || !exists("dpkg-deb") {
        bail!("this is no Debian; a `criu` on the path is used if there is one");
    }
    let folder = tools.join("criu");
    eprintln!(
        "setup: unpacking CRIU from Debian's {RELEASE} into {}",
        folder.display()
    );
    fs::remove_dir_all(&folder).ok();
    let unpacked = folder.join("root");
    fs::create_dir_all(&unpacked)?;
    for package in fetch(&folder.join("apt"))? {
        must(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(package)
                .arg(&unpacked),
        )?;
    }
    fs::remove_dir_all(folder.join("apt"))?;
    fs::remove_dir_all(unpacked.join("usr/share")).ok();
    wrap(&program, &unpacked)
}

/// Fetches CRIU's packages and all that they need, by an apt that knows nothing of this
/// machine's packages but where they come from.
fn fetch(folder: &Path) -> Result<Vec<PathBuf>> {
    let mirror = debian::mirror()?;
    let archives = folder.join("cache/archives");
    for part in [folder.join("lists/partial"), archives.join("partial")] {
        fs::create_dir_all(part)?;
    }
    fs::write(folder.join("status"), "")?;
    let sources = format!("deb [signed-by={KEYRING}] {mirror} {RELEASE} main\n");
    fs::write(folder.join("sources.list"), sources)?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y"]);
        for (name, value) in [
            ("Dir::State", folder.to_path_buf()),
            ("Dir::State::status", folder.join("status")),
            ("Dir::Cache", folder.join("cache")),
            ("Dir::Etc::SourceList", folder.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            // Its own user may not see this folder.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        must(command.args(args).stdout(std::process::Stdio::null()))
    };
    apt(&["update"])?;
    apt(&[
        "install",
        "--no-install-recommends",
        "--download-only",
        "criu",
    ])?;
    let mut packages = Vec::new();
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    Ok(packages)
}

/// Makes `program` a script that runs CRIU with the libraries that were unpacked beside
/// it, and no others.
fn wrap(program: &Path, unpacked: &Path) -> Result<()> {
    let libraries = unpacked.join("usr/lib");
    let own = |path: &Path| path.join("libc.so.6").is_file();
    let triplet = fs::read_dir(&libraries)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| own(path))
        .context("the packages have no C library")?;
    let loader = ["usr/lib64", "usr/lib"]
        .iter()
        .filter_map(|folder| fs::read_dir(unpacked.join(folder)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with("ld-linux"))
        })
        .context("the packages have no loader")?;
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
        loader.display(),
        triplet.display(),
        unpacked.join("usr/sbin/criu").display()
    );
    let bin = program.parent().context("no folder")?;
    fs::create_dir_all(bin)?;
    // Only what is whole gets the name.
    let new = bin.join("criu.new");
    fs::write(&new, script)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, program)?)
}
