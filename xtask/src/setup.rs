//! What building and testing need: found, or installed, or named.
//!
//! Nothing is done twice: what is in place is left alone.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run::{self, exists, must, output, root};

/// The linker of BPF programs. This version finds the LLVM of the Rust toolchain
/// that runs it; later ones need LLVM's development packages.
const BPF_LINKER: &str = "0.10.3";

/// The fuzzer. This version builds with the pinned toolchain.
const CARGO_FUZZ: &str = "0.13.1";

/// Programs of the lab and the packages that have them: Debian's, and Ubuntu's
/// where it calls them something else.
const PROGRAMS: [(&str, &str, Option<&str>); 10] = [
    ("ip", "iproute2", None),
    ("ethtool", "ethtool", None),
    (
        "bpftool",
        "bpftool",
        Some("linux-tools-common linux-tools-generic"),
    ),
    ("nginx", "nginx", None),
    ("curl", "curl", None),
    // A client of TLS that says what it sees.
    ("openssl", "openssl", None),
    ("tcpdump", "tcpdump", None),
    // With the library that gives a process another time of day.
    ("faketime", "faketime", None),
    // An application in another language than Rust.
    ("python3", "python3", None),
    // It does not run on this machine for that: only `systemd-sysv` makes it do so. To
    // install it adds users, a machine id and empty folders, and starts nothing.
    ("systemd-analyze", "systemd", None),
];

/// Debian's Rust compiler with the library sources of the same version.
const DEBIAN_RUST: [&str; 2] = ["rustc-web", "rust-web-src"];

/// What a build needs: a C compiler to link with and for TLS, sources of `core` for the BPF
/// target, and the BPF linker.
pub fn for_build() -> Result<()> {
    if !exists("cc") {
        install(
            &["gcc", "libc6-dev"],
            "a C compiler to link with, and for TLS",
        )?;
    }
    library_sources()?;
    bpf_linker()
}

/// What packing needs: Debian's own tools.
pub fn for_package() -> Result<()> {
    let programs = [
        ("dpkg-deb", "dpkg"),
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("strip", "binutils"),
    ];
    let missing = programs.iter().filter(|(program, _)| !exists(program));
    let missing: Vec<_> = missing.map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, "Debian's tools for making packages")
}

/// What a lab needs: root, and a few programs.
pub fn for_lab() -> Result<()> {
    if !is_root() {
        let args: Vec<String> = env::args().skip(1).collect();
        bail!(
            "this makes network namespaces and loads kernel programs, which needs root; run\n  sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {}",
            args.join(" ")
        );
    }
    let ubuntu =
        fs::read_to_string("/etc/os-release").is_ok_and(|text| text.contains("\nID=ubuntu"));
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, ..)| !exists(program))
        .flat_map(|(_, debian, other)| {
            if ubuntu {
                other.unwrap_or(debian)
            } else {
                debian
            }
            .split(' ')
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let had_nginx = exists("nginx");
    install(&missing, "programs of the lab")?;
    if !had_nginx {
        keep_nginx_off();
    }
    Ok(())
}

/// Sees to sources of `core`, and notes in `target/tools/bpf-rustc` which compiler
/// they belong to: an empty file stands for the toolchain's own.
fn library_sources() -> Result<()> {
    let note = root().join("target/tools/bpf-rustc");
    let own = || has_sources("rustc");
    let debian = || has_sources("/usr/bin/rustc");
    if !own() && !debian() {
        say("fetching library sources for the BPF target: rustup component add rust-src");
        let fetched = exists("rustup")
            && Command::new("rustup")
                .args(["component", "add", "rust-src"])
                .current_dir(root())
                .status()?
                .success();
        if !fetched || !own() {
            say(
                "rustup cannot fetch them; taking Debian's compiler and sources for the kernel programs",
            );
            install(&DEBIAN_RUST, "a Rust compiler with library sources")?;
        }
    }
    let compiler = match (own(), debian()) {
        (true, _) => "",
        (false, true) => "/usr/bin/rustc",
        (false, false) => bail!(
            "there are no library sources for the BPF target: neither `rustup component add rust-src` nor Debian's packages {} gave them",
            DEBIAN_RUST.join(" and ")
        ),
    };
    // Written only when it changes, for the build looks at the file's time.
    if fs::read_to_string(&note).ok().as_deref() != Some(compiler) {
        fs::create_dir_all(root().join("target/tools"))?;
        fs::write(&note, compiler).with_context(|| format!("cannot write {}", note.display()))?;
    }
    Ok(())
}

/// Whether a compiler has the library sources of its own version beside it.
fn has_sources(rustc: &str) -> bool {
    output(rustc, &["--print", "sysroot"]).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    })
}

fn bpf_linker() -> Result<()> {
    tool("bpf-linker", BPF_LINKER).map(drop)
}

/// The program `cargo-fuzz`.
pub fn fuzzer() -> Result<PathBuf> {
    // The fuzzer's runtime is C++.
    if !exists("c++") {
        install(&["g++"], "a C++ compiler for the fuzzer's runtime")?;
    }
    tool("cargo-fuzz", CARGO_FUZZ)
}

/// Sees to ZeroMQ's library, which `bench mux` compares with, as far as that can be. The
/// benchmark finds it as it runs, or does without it and says so.
pub fn zeromq() {
    let known = output("/sbin/ldconfig", &["-p"]).unwrap_or_default();
    if !known.contains("libzmq.so.5")
        && let Err(error) = install(&["libzmq5"], "ZeroMQ's library, to compare with")
    {
        say(&format!("no ZeroMQ to compare with: {error:#}"));
    }
}

/// Sees to tshark, which reads what was captured, as far as that can be. Tests do without,
/// and say so.
pub fn tshark() {
    if !exists("tshark")
        && let Err(error) = install(&["tshark"], "a reader of captures")
    {
        say(&format!("no tshark to read captures with: {error:#}"));
    }
}

/// A program that cargo installs: the path to it, in this version.
fn tool(name: &str, version: &str) -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let program = tools.join("bin").join(name);
    let installed = fs::read_to_string(tools.join(".crates.toml"))
        .is_ok_and(|text| text.contains(&format!("{name} {version} ")));
    if installed && program.is_file() {
        return Ok(program);
    }
    say(&format!(
        "building {name} {version} into {} (a minute or two)",
        tools.display()
    ));
    let build = tools.join("build");
    must(
        run::cargo()
            .args([
                "install",
                name,
                "--version",
                version,
                "--locked",
                "--force",
                "--root",
            ])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", &build)
            // cargo warns of a folder for programs that is not on the path.
            .env("PATH", path_with(&tools.join("bin"))?)
            // Flags of this workspace are not meant for it.
            .env_remove("RUSTFLAGS"),
    )?;
    // Only the program is of use from here on.
    fs::remove_dir_all(&build).ok();
    Ok(program)
}

fn path_with(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(
        env::split_paths(&path).chain([folder.to_owned()]),
    )?)
}

/// Installs Debian packages, or says which ones are missing.
fn install(packages: &[&str], what: &str) -> Result<()> {
    let list = packages.join(" ");
    if !exists("apt-get") {
        bail!("missing: {what}. This is no Debian or Ubuntu: install what they call {list}");
    }
    if !is_root() {
        bail!("missing: {what}. Install it with: sudo apt-get install {list}");
    }
    say(&format!("installing {what}: {list}"));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"])
            .args(args);
        // What this command itself prints may be for programs.
        command.stdout(io::stderr());
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Without an update there may be no list, or an old one.
    if let Err(error) = must(&mut apt(&["update"])) {
        say(&format!(
            "{error:#}; going on with the package lists that are there"
        ));
    }
    let mut args = vec!["install", "--no-install-recommends"];
    args.extend(packages);
    must(&mut apt(&args))
}

/// Debian starts a service as soon as it is installed. This one is wanted as a
/// program only.
fn keep_nginx_off() {
    say("stopping the nginx service that came with the package");
    let (program, args): (_, &[&str]) = if Path::new("/run/systemd/system").exists() {
        ("systemctl", &["disable", "--now", "nginx"])
    } else {
        ("service", &["nginx", "stop"])
    };
    // It may never have been started.
    let mut command = Command::new(program);
    command.args(args).stdout(io::stderr()).status().ok();
}

fn is_root() -> bool {
    // The second number is the effective user id (proc_pid_status(5)).
    fs::read_to_string("/proc/self/status").is_ok_and(|text| {
        text.lines().any(|line| {
            line.starts_with("Uid:") && line.split_ascii_whitespace().nth(2) == Some("0")
        })
    })
}

fn say(text: &str) {
    eprintln!("setup: {text}");
}
