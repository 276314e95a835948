//! Benchmarks: each compares in one run, interleaved, and reports minimum and
//! median. None is a test, and none fails for being slow.

pub mod capture;
pub mod fastpath;
pub mod gossip;
mod measure;
pub mod migration;
pub mod mux;
pub mod owners;

/// How many processes want a processor, as the kernel says.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_ascii_whitespace().next();
    first.and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
