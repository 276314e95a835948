//! Latencies, as far as they are told.

use serde::{Deserialize, Serialize};

use crate::bench::migration::figures::Distribution;

/// Of some samples, by nearest rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them take no longer.
    pub p50_ns: u64,
    /// All but one in a hundred take no longer.
    pub p99_ns: u64,
    /// How many there are.
    pub samples: usize,
}

impl Latency {
    /// Of samples in nanoseconds; none of none.
    pub fn of(samples_ns: Vec<u64>) -> Option<Self> {
        let all: Distribution = samples_ns.into_iter().collect();
        Some(Self {
            p50_ns: all.quantile(0.5)?,
            p99_ns: all.quantile(0.99)?,
            samples: all.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        assert_eq!(Latency::of(Vec::new()), None);
        let latency = Latency::of((1..=1_000).rev().collect()).unwrap();
        assert_eq!((latency.p50_ns, latency.p99_ns), (500, 990));
        assert_eq!(latency.samples, 1_000);
    }
}
