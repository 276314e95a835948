//! Seeded pseudo-random numbers: the same seed gives the same run.

/// SplitMix64 (Steele, Lea and Flood, 2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator with this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed that differs from run to run.
    pub fn fresh_seed() -> u64 {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        mix(now.as_nanos() as u64 ^ u64::from(std::process::id()) << 32)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// `plain` random cases, or as many times more as `cargo xtask test --full` asks for:
/// it sets `PROPTEST_CASES`, of which simulations have [`PLAIN_CASES`] otherwise.
pub fn cases(plain: u64) -> u64 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    let asked = asked.and_then(|cases| cases.parse::<u64>().ok());
    (plain * asked.unwrap_or(PLAIN_CASES) / PLAIN_CASES).max(1)
}

const PLAIN_CASES: u64 = 48;

/// Fills `out` with the bytes that stand at `offset` of the endless stream of
/// this seed. Any part can be had without what comes before it, so both ends of
/// a connection can check what they get.
pub fn stream(seed: u64, mut offset: u64, out: &mut [u8]) {
    let mut out = out;
    while !out.is_empty() {
        let word = mix(seed.wrapping_add((offset / 8 + 1).wrapping_mul(STEP))).to_le_bytes();
        let rest = &word[(offset % 8) as usize..];
        let len = rest.len().min(out.len());
        let (head, tail) = out.split_at_mut(len);
        head.copy_from_slice(&rest[..len]);
        out = tail;
        offset += len as u64;
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_in_whatever_parts_it_is_read() {
        let mut whole = [0; 1000];
        stream(7, 0, &mut whole);
        let mut random = Random::new(1);
        for _ in 0..200 {
            let from = random.below(1000) as usize;
            let to = from + random.below(1001 - from as u64) as usize;
            let mut part = vec![0; to - from];
            stream(7, from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
        }
        let mut other = [0; 1000];
        stream(8, 0, &mut other);
        assert!(whole.iter().zip(other).filter(|(a, b)| **a == *b).count() < 50);
    }

    #[test]
    fn below_stays_below_and_reaches_everything() {
        let mut random = Random::new(3);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[random.below(5) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert_eq!(random.below(0), 0);
    }
}
