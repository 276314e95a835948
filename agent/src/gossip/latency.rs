//! A histogram of latencies: fixed memory, quantiles within 7 %.

/// Buckets per power of two.
const STEPS: u64 = 16;
/// Powers of two covered, beyond the first `STEPS` microseconds.
const POWERS: usize = 32;

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: Box<[u64]>,
    samples: u64,
    sum_us: u64,
    max_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            buckets: vec![0; STEPS as usize * (POWERS + 1)].into_boxed_slice(),
            samples: 0,
            sum_us: 0,
            max_us: 0,
        }
    }
}

impl Latency {
    /// Adds a sample. What is beyond the last bucket counts in it.
    pub fn record(&mut self, us: u64) {
        let bucket = bucket(us).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.samples += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// How many samples there are.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sum of all samples, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The largest sample, in microseconds.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// The latency that a share of the samples do not exceed (0.5: the median),
    /// rounded up to its bucket's end; none without samples.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        if self.samples == 0 {
            return None;
        }
        let rank = (share.clamp(0.0, 1.0) * self.samples as f64)
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some((start(bucket + 1) - 1).min(self.max_us));
            }
        }
        Some(self.max_us)
    }

    /// Samples that do not exceed each of the given bounds (in microseconds, each
    /// taken up to its bucket's end), for a cumulative histogram.
    pub fn cumulative<const N: usize>(&self, bounds_us: [u64; N]) -> [u64; N] {
        bounds_us.map(|us| {
            let last = bucket(us).min(self.buckets.len() - 1);
            self.buckets[..=last].iter().sum()
        })
    }
}

/// Which bucket a latency falls into: the first `STEPS` are one microsecond
/// wide, then there are `STEPS` to each power of two.
fn bucket(us: u64) -> usize {
    if us < STEPS {
        return us as usize;
    }
    let power = us.ilog2() - STEPS.ilog2();
    (u64::from(power) * STEPS + (us >> power)) as usize
}

/// The smallest latency of a bucket.
fn start(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let power = bucket / STEPS - 1;
    (bucket % STEPS + STEPS) << power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantiles_are_close_and_never_too_low(
            mut samples in prop::collection::vec(0u64..10_000_000, 1..200),
            share in 0.0f64..=1.0,
        ) {
            let mut latency = Latency::default();
            samples.iter().for_each(|&us| latency.record(us));
            samples.sort_unstable();
            let rank = ((share * samples.len() as f64).ceil() as usize).max(1);
            let exact = samples[rank - 1];
            let got = latency.quantile_us(share).unwrap();
            prop_assert!(exact <= got && got <= exact + exact / 15 + 1, "{exact} {got}");
            prop_assert_eq!(latency.samples(), samples.len() as u64);
            prop_assert_eq!(latency.max_us(), samples[samples.len() - 1]);
        }

        #[test]
        fn every_latency_lies_within_its_bucket(us in 0u64..1 << 40) {
            prop_assert!(start(bucket(us)) <= us && us < start(bucket(us) + 1));
        }
    }

    #[test]
    fn empty_and_extreme_histograms_do_not_panic() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile_us(0.5), None);
        latency.record(u64::MAX);
        assert_eq!(latency.quantile_us(0.5), Some((1 << 36) - 1));
        assert_eq!(latency.cumulative([1, u64::MAX]), [0, 1]);
    }
}
