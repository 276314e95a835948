//! `cargo xtask package`: a Debian package of the agent, `target/package/homing_*.deb`.
//!
//! The contents are laid out in a folder and packed by `dpkg-deb`. What a package needs
//! to say is in `dist/debian` as Debian has it (maintainer scripts, changelog, copyright);
//! man pages and completions come from the binary, dependencies from what it links.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{self, Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::run::{self, must, root, target};

const MAINTAINER: (&str, &str) = ("Homing developers", "homing@packages.invalid");

const DESCRIPTION: &str = "\
keeps every packet going to the host that owns its session
 Many hosts answer for the same service addresses, and a router spreads
 connections over them by stateless ECMP. When the set of hosts changes, the
 router sends packets of open connections to hosts that have never heard of
 them. With Homing such a host sends them on, in the kernel, to the host that
 owns the connection; and connections can be moved to other hosts, so that a
 host can be taken out of service while its clients notice nothing.
 .
 This package has the agent with its kernel programs, its systemd unit, and
 alert rules for Prometheus and a dashboard for Grafana. The unit is enabled
 once the host's configuration is written.
";

/// Options of `cargo xtask package`.
#[derive(Args)]
pub struct Options {
    /// Package a build for debugging: sooner there, for tests
    #[arg(long)]
    debug: bool,
    /// Debian's revision: which package of this version
    #[arg(long, value_name = "TEXT", default_value = "1")]
    revision: String,
    /// The folder for the package
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Builds the package, and prints where it is.
pub fn perform(options: &Options) -> Result<()> {
    if options.debug {
        // What the tests use, so that nothing is built anew under them.
        run::build(false)?;
    } else {
        // By itself: with the tests, libraries would get features that only those need.
        let mut build = run::cargo();
        build.args(["build", "--release", "--package", "homing-agent"]);
        must(build.args(["--bin", "homing"]))?;
    }
    let profile = if options.debug { "debug" } else { "release" };
    let binary = target().join(profile).join("homing");

    let out = options.out.clone();
    let out = out.unwrap_or_else(|| target().join("package"));
    // Some programs run in other folders.
    let out = path::absolute(out)?;
    let work = out.join("work");
    fs::remove_dir_all(&work).ok();
    let staged = Staged {
        root: work.join("homing"),
    };
    staged.binary(&binary)?;
    staged.unit_and_configuration()?;
    staged.manual(&binary)?;
    staged.documents(&options.revision)?;
    let package = staged.control(&work, &options.revision)?;
    let path = out.join(package);
    for folder in all_folders(&staged.root)? {
        // Whatever the umask is here.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let mut pack = Command::new("dpkg-deb");
    // A test unpacks it at once.
    let level = if options.debug { "-z0" } else { "-z6" };
    pack.args(["--root-owner-group", "-Zxz", level, "--build"]);
    pack.arg(&staged.root).arg(&path);
    // The same sources make the same package, byte by byte.
    pack.env("SOURCE_DATE_EPOCH", epoch());
    must(pack.stdout(Stdio::null()))?;
    fs::remove_dir_all(&work)?;
    println!("{}", path.display());
    Ok(())
}

/// When the sources were made: what the caller says, or the time of the last commit.
fn epoch() -> String {
    let given = env::var("SOURCE_DATE_EPOCH").ok();
    let committed = || run::output("git", &["log", "-1", "--format=%ct"]);
    given.or_else(committed).unwrap_or_else(|| "0".to_owned())
}

/// The folder that is packed.
struct Staged {
    root: PathBuf,
}

impl Staged {
    /// The file for a path of the package, with its folder.
    fn at(&self, path: &str) -> Result<PathBuf> {
        let at = self.root.join(path);
        let folder = at.parent().context("a path within the package")?;
        fs::create_dir_all(folder)?;
        Ok(at)
    }

    fn write(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let at = self.at(path)?;
        fs::write(&at, content).with_context(|| format!("cannot write {}", at.display()))?;
        Ok(fs::set_permissions(at, fs::Permissions::from_mode(mode))?)
    }

    fn copy(&self, from: &str, path: &str, mode: u32) -> Result<()> {
        let from = root().join(from);
        let content = fs::read(&from);
        let content = content.with_context(|| format!("cannot read {}", from.display()))?;
        self.write(path, &content, mode)
    }

    fn binary(&self, binary: &Path) -> Result<()> {
        let at = self.at("usr/bin/homing")?;
        must(
            Command::new("strip")
                .args(["--strip-unneeded", "--remove-section=.comment", "-o"])
                .arg(&at)
                .arg(binary),
        )?;
        Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o755))?)
    }

    fn unit_and_configuration(&self) -> Result<()> {
        self.copy(
            "dist/homing.service",
            "usr/lib/systemd/system/homing.service",
            0o644,
        )?;
        self.copy("dist/homing.toml", "etc/homing/homing.toml", 0o644)?;
        for path in [
            "prometheus/homing.rules.yml",
            "prometheus/homing.rules.test.yml",
            "grafana/homing.json",
        ] {
            let to = format!("usr/share/homing/{path}");
            self.copy(&format!("dist/{path}"), &to, 0o644)?;
        }
        Ok(())
    }

    /// Man pages and completions.
    fn manual(&self, binary: &Path) -> Result<()> {
        let folder = self.root.join("usr/share/man/man1");
        fs::create_dir_all(&folder)?;
        must(Command::new(binary).arg("man").arg(&folder))?;
        for page in files(&folder)? {
            must(Command::new("gzip").args(["-9", "-n"]).arg(&page))?;
            let mode = fs::Permissions::from_mode(0o644);
            fs::set_permissions(page.with_added_extension("gz"), mode)?;
        }
        for (shell, path) in [
            ("bash", "usr/share/bash-completion/completions/homing"),
            ("zsh", "usr/share/zsh/vendor-completions/_homing"),
            ("fish", "usr/share/fish/vendor_completions.d/homing.fish"),
        ] {
            let script = printed(Command::new(binary).args(["completions", shell]))?;
            self.write(path, &script, 0o644)?;
        }
        Ok(())
    }

    fn documents(&self, revision: &str) -> Result<()> {
        const FOLDER: &str = "usr/share/doc/homing";
        for path in files(&root().join("docs"))? {
            let name = path.file_name().context("a name")?.to_string_lossy();
            self.copy(&format!("docs/{name}"), &format!("{FOLDER}/{name}"), 0o644)?;
        }
        self.copy(
            "client/examples/messages.py",
            &format!("{FOLDER}/examples/messages.py"),
            0o644,
        )?;
        self.copy(
            "dist/debian/copyright",
            &format!("{FOLDER}/copyright"),
            0o644,
        )?;
        self.write(&format!("{FOLDER}/libraries.txt"), &libraries()?, 0o644)?;
        let mut changelog = fs::read_to_string(root().join("dist/debian/changelog"))?;
        let newest = changelog.lines().next().unwrap_or_default();
        let version = format!("({})", version(revision));
        if !newest.contains(&version) {
            // A package that is built apart from releases.
            let (_, rest) = changelog.split_once(')').context("a version")?;
            changelog = format!("homing {version}{rest}");
        }
        let path = self.at(&format!("{FOLDER}/changelog.Debian"))?;
        fs::write(&path, changelog)?;
        must(Command::new("gzip").args(["-9", "-n"]).arg(&path))?;
        self.copy(
            "dist/debian/lintian-overrides",
            "usr/share/lintian/overrides/homing",
            0o644,
        )
    }

    /// What dpkg reads; the name of the package's file.
    fn control(&self, work: &Path, revision: &str) -> Result<String> {
        let depends = depends(work, &self.root.join("usr/bin/homing"))?;
        let architecture = run::output("dpkg", &["--print-architecture"]);
        let architecture = architecture.context("dpkg does not say what machine this is")?;
        let version = version(revision);
        let name = env::var("DEBFULLNAME").unwrap_or_else(|_| MAINTAINER.0.to_owned());
        let mail = env::var("DEBEMAIL").unwrap_or_else(|_| MAINTAINER.1.to_owned());
        let mut size = 0;
        let mut sums = String::new();
        let mut paths = Vec::new();
        for folder in all_folders(&self.root)? {
            paths.extend(files(&folder)?);
        }
        paths.sort();
        for path in &paths {
            size += fs::metadata(path)?.len().div_ceil(1024);
            let within = path.strip_prefix(&self.root)?.display();
            // Of a configuration file, what the operator makes of it counts.
            if !path.starts_with(self.root.join("etc")) {
                let sum = printed(Command::new("md5sum").arg(path))?;
                let sum = String::from_utf8_lossy(&sum[..32]).into_owned();
                sums += &format!("{sum}  {within}\n");
            }
        }
        let control = format!(
            "Package: homing\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {name} <{mail}>\nInstalled-Size: {size}\nPre-Depends: init-system-helpers (>= 1.54~)\nDepends: {depends}\nSuggests: bpftool, prometheus\nSection: net\nPriority: optional\nDescription: {DESCRIPTION}"
        );
        self.write("DEBIAN/control", control.as_bytes(), 0o644)?;
        self.write("DEBIAN/md5sums", sums.as_bytes(), 0o644)?;
        self.write("DEBIAN/conffiles", b"/etc/homing/homing.toml\n", 0o644)?;
        for script in ["postinst", "prerm", "postrm"] {
            self.copy(
                &format!("dist/debian/{script}"),
                &format!("DEBIAN/{script}"),
                0o755,
            )?;
        }
        Ok(format!("homing_{version}_{architecture}.deb"))
    }
}

/// The package's version: the workspace's and Debian's revision.
fn version(revision: &str) -> String {
    format!("{}-{revision}", env!("CARGO_PKG_VERSION"))
}

/// Packages that have the libraries that the binary links, as `dpkg-shlibdeps` finds them.
fn depends(work: &Path, binary: &Path) -> Result<String> {
    // It wants to be in a folder of sources.
    fs::create_dir_all(work.join("debian"))?;
    fs::write(
        work.join("debian/control"),
        "Source: homing\n\nPackage: homing\nArchitecture: any\n",
    )?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.arg("-O").arg(binary).current_dir(work);
    let found = String::from_utf8(printed(&mut command)?)?;
    let found = found.trim().strip_prefix("shlibs:Depends=");
    Ok(found.context("no dependencies were found")?.to_owned())
}

/// The libraries within the binary: name, version, licence.
fn libraries() -> Result<Vec<u8>> {
    let mut tree = run::cargo();
    tree.args(["tree", "--quiet", "--locked", "--package", "homing-agent"]);
    tree.args(["--edges", "normal", "--prefix", "none", "--format"]);
    tree.arg("{p}: {l}");
    let text = String::from_utf8(printed(&mut tree)?)?;
    let own = |line: &&str| !line.starts_with("homing-");
    let lines = text.lines().map(|line| line.trim_end_matches(" (*)"));
    let mut lines: Vec<_> = lines.filter(own).map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    Ok((lines.join("\n") + "\n").into_bytes())
}

/// What a program prints; it must end well.
fn printed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", run::words(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", run::words(command), output.status);
    }
    Ok(output.stdout)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A folder and all below it.
fn all_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(all_folders(&path)?);
        }
    }
    Ok(all)
}
