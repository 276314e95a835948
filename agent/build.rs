//! Builds the kernel programs and hands their object to the agent, which embeds
//! it: `homing` is one self-contained binary.
//!
//! What this needs (`bpf-linker`, library sources for the BPF target) is put in
//! place by `cargo xtask setup`, which leaves it under `target/tools`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    if let Err(error) = build() {
        eprintln!("cannot build the kernel programs: {error}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let root = manifest_dir.parent().expect("the workspace is above us");
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let tools = root.join("target/tools");
    for input in [
        &root.join("ebpf"),
        &root.join("common/src"),
        &root.join("Cargo.lock"),
        &tools.join("bpf-rustc"),
        &tools.join("bin/bpf-linker"),
    ] {
        println!("cargo:rerun-if-changed={}", input.display());
    }

    let linker = tools.join("bin/bpf-linker");
    if !linker.exists() {
        return Err(format!(
            "{} is missing; run `cargo xtask setup`, which builds it",
            linker.display()
        ));
    }
    // A compiler other than the toolchain's own, where the toolchain has no
    // library sources. Empty or absent: the toolchain's own.
    let rustc = fs::read_to_string(tools.join("bpf-rustc")).unwrap_or_default();
    let rustc = rustc.trim();

    // `OUT_DIR` is `<target>/<profile>/build/<package>/out`. One folder serves
    // all profiles, because the programs are always built for release.
    let target_dir = out_dir
        .ancestors()
        .nth(4)
        .expect("cargo's layout")
        .join("ebpf");
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // Packets are not aligned and the kernels we run on do not mind; without
        // this every access becomes a row of byte accesses.
        // Linux 5.1 and later. Not only for speed: without 32-bit jumps LLVM 22
        // selects by `x == C` as if `C` were a signed number, which never holds for
        // a `C` whose highest bit is set.
        "-Ctarget-cpu=v3",
        "-Ctarget-feature=+alu32,+allows-misaligned-mem-access",
        &format!("-Clinker={}", linker.display()),
        &format!(
            "--cfg=bpf_target_arch=\"{}\"",
            var("CARGO_CFG_TARGET_ARCH")?
        ),
        &format!("--remap-path-prefix={}=.", root.display()),
    ]
    .join("\x1f");
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .current_dir(root)
        .args(["build", "--release", "--bins", "--package", "homing-ebpf"])
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        // A stable compiler refuses `-Z` unless it is told that it builds itself.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    // What cargo sets for this build script is not meant for another target.
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    if !rustc.is_empty() {
        cargo.env("RUSTC", rustc);
    }
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{}\n(if sources of `core` are missing: `cargo xtask setup` installs them)",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let built = target_dir.join(TARGET).join("release/homing");
    copy(&built, &out_dir.join("homing.bpf.o"))?;
    let built = target_dir.join(TARGET).join("release/homing-capture");
    copy(&built, &out_dir.join("capture.bpf.o"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| {
        format!(
            "cannot copy {} to {}: {error}",
            from.display(),
            to.display()
        )
    })
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
