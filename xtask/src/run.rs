//! Other programs, run so that one sees what is being run.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn root() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Builds all programs.
pub fn build(release: bool) -> Result<()> {
    let mut command = cargo();
    command.args([
        "build",
        "--bins",
        "--package",
        "homing-agent",
        "--package",
        "homing-tests",
    ]);
    if release {
        command.arg("--release");
    }
    // Where nothing has changed there is nothing to say.
    if built(release) {
        command.arg("--quiet");
    }
    must(&mut command)
}

/// Turns this process into a program that [`build`] has built for speed.
pub fn become_program(name: &str, args: &[OsString]) -> Result<()> {
    let path = target().join("release").join(name);
    let error = Command::new(&path).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", path.display()))
}

/// Runs a program to its end, its output going where this one's goes.
pub fn must(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", words(command));
    }
    Ok(())
}

/// What a program prints, if it ends well.
pub fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(root())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program of this name is on the path, or where administrators' are.
pub fn exists(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}

fn built(release: bool) -> bool {
    let profile = if release { "release" } else { "debug" };
    ["homing", "homing-lab"]
        .iter()
        .all(|name| target().join(profile).join(name).is_file())
}

/// A command as one would type it.
pub fn words(command: &Command) -> String {
    let mut words: Vec<&OsStr> = vec![command.get_program()];
    words.extend(command.get_args());
    words
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
