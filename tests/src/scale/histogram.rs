//! Counts of small numbers.

/// How often each number was added; numbers beyond a bound count as the bound.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
}

/// The largest number told apart.
const MAX: u64 = 100_000;

impl Histogram {
    /// Adds a number.
    pub fn add(&mut self, number: u64) {
        let number = number.min(MAX) as usize;
        if self.counts.len() <= number {
            self.counts.resize(number + 1, 0);
        }
        self.counts[number] += 1;
        self.total += 1;
        self.sum += number as u64;
    }

    /// How many numbers were added.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Their mean; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.total.max(1) as f64
    }

    /// The largest; 0 without any.
    pub fn max(&self) -> u64 {
        self.counts.len().saturating_sub(1) as u64
    }

    /// The number that a share of them do not exceed; 0 without any.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (number, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return number as u64;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        for number in 1..=100 {
            histogram.add(number);
        }
        assert_eq!(histogram.quantile(0.5), 50);
        assert_eq!(histogram.quantile(0.99), 99);
        assert_eq!((histogram.quantile(1.0), histogram.max()), (100, 100));
        assert_eq!((histogram.mean(), histogram.total()), (50.5, 100));
    }
}
