//! What benchmarks of kernel programs share.

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions, Xdp},
};

/// Runs in one call into the kernel.
pub const REPEAT: u32 = 20_000;
/// Rounds over all cases; of each case's figures the minimum and median count.
pub const ROUNDS: usize = 25;

/// The object with the benchmarks' programs, built beside the product's own.
pub const OBJECT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/ebpf/bpfel-unknown-none/release/homing-bench"
);

/// XDP's verdicts, as programs return them.
pub mod verdict {
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
}

/// What a run of a program on a frame takes, in nanoseconds.
pub fn time(ebpf: &mut Ebpf, program: &str, frame: &[u8], expected: u32) -> Result<f64> {
    let xdp: &mut Xdp = ebpf
        .program_mut(program)
        .with_context(|| format!("no program {program}"))?
        .try_into()?;
    let result = xdp.test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: REPEAT,
        ..TestRunOptions::new()
    })?;
    if result.return_value != expected {
        bail!(
            "{program} returned {}, not {expected}: it did not take the path to be measured",
            result.return_value
        );
    }
    Ok(result.duration.as_nanos() as f64)
}

/// Loads all XDP programs of an object.
pub fn load_all(ebpf: &mut Ebpf) -> Result<()> {
    for (name, program) in ebpf.programs_mut() {
        let xdp: &mut Xdp = program.try_into()?;
        xdp.load()
            .with_context(|| format!("the verifier refuses {name}"))?;
    }
    Ok(())
}

/// A map of an object.
pub fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name)
        .with_context(|| format!("the object has no map {name}"))
}

/// The least of some figures.
pub fn min(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The one in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// To a tenth.
pub fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
