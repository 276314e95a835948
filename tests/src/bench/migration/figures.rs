//! The arithmetic: distributions, gaps in a stream, and what a move adds to them.

use std::ops::Range;

use serde_json::{Value, json};

/// Samples of one kind; microseconds, where they are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// From the least to the greatest.
    sorted: Vec<u64>,
}

impl FromIterator<u64> for Distribution {
    fn from_iter<I: IntoIterator<Item = u64>>(samples: I) -> Self {
        let mut sorted: Vec<u64> = samples.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

impl Distribution {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The least sample that a share of all do not exceed (nearest rank); none without
    /// samples.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (share.clamp(0.0, 1.0) * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).copied()
    }

    /// The least.
    pub fn min(&self) -> Option<u64> {
        self.sorted.first().copied()
    }

    /// The greatest.
    pub fn max(&self) -> Option<u64> {
        self.sorted.last().copied()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "min": self.min(),
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "max": self.max(),
            "samples": self.len(),
        })
    }

    /// For a line of a table.
    pub fn words(&self) -> String {
        let us = |sample: Option<u64>| sample.map_or("-".to_owned(), |us| us.to_string());
        format!(
            "min {}, p50 {}, p99 {}, max {} µs ({} samples)",
            us(self.min()),
            us(self.quantile(0.5)),
            us(self.quantile(0.99)),
            us(self.max()),
            self.len()
        )
    }
}

/// The longest time between two arrivals one after the other, of those times that reach
/// into the window. None unless something arrived before the window and after it: a gap
/// that did not end cannot be measured.
///
/// `arrivals` ascend; all are of one clock.
pub fn longest_gap(arrivals: &[u64], window: &Range<u64>) -> Option<u64> {
    let before = arrivals.partition_point(|at| *at <= window.start);
    let after = arrivals.partition_point(|at| *at < window.end);
    let pairs = arrivals.get(before.checked_sub(1)?..=after)?.windows(2);
    pairs.map(|pair| pair[1] - pair[0]).max()
}

/// What moves add to the longest gap: each move's, less the one in the middle of those
/// without a move; not below nothing.
pub fn stalls(moved: &Distribution, undisturbed: &Distribution) -> Distribution {
    let usual = undisturbed.quantile(0.5).unwrap_or(0);
    let stalls = moved.sorted.iter().map(|gap| gap.saturating_sub(usual));
    stalls.collect()
}

/// So many in so many microseconds, per second.
pub fn per_second(count: u64, us: u64) -> f64 {
    count as f64 * 1e6 / us.max(1) as f64
}

/// So many in so many moves, per thousand.
pub fn per_thousand(count: u64, moves: u64) -> f64 {
    count as f64 * 1e3 / moves.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let hundred: Distribution = (1..=100).rev().collect();
        let of = |share| hundred.quantile(share);
        assert_eq!([of(0.5), of(0.99)], [Some(50), Some(99)]);
        assert_eq!([of(0.0), of(1.0)], [Some(1), Some(100)]);
        let one: Distribution = [7].into_iter().collect();
        assert_eq!([one.quantile(0.0), one.quantile(0.99)], [Some(7), Some(7)]);
        assert_eq!(Distribution::default().quantile(0.5), None);
        assert_eq!((hundred.min(), hundred.max()), (Some(1), Some(100)));
    }

    #[test]
    fn a_gap_counts_as_a_whole_if_it_reaches_into_the_window() {
        let arrivals = [100, 200, 300, 900, 1_000, 1_100];
        let gap = |window| longest_gap(&arrivals, &window);
        // Within, over the beginning, over the end, around all of it.
        assert_eq!(gap(250..1_050), Some(600));
        assert_eq!(gap(800..1_050), Some(600));
        assert_eq!(gap(150..400), Some(600));
        assert_eq!(gap(400..500), Some(600));
        // Beside it, to the arrival itself.
        assert_eq!(gap(900..1_050), Some(100));
        assert_eq!(gap(100..300), Some(100));
    }

    #[test]
    fn a_gap_that_did_not_begin_or_end_is_none() {
        let gap = |arrivals: &[u64], window| longest_gap(arrivals, &window);
        assert_eq!(gap(&[], 0..10), None);
        assert_eq!(gap(&[5], 0..10), None);
        assert_eq!(gap(&[5, 6], 20..30), None);
        assert_eq!(gap(&[5, 6, 25], 20..30), None);
        assert_eq!(gap(&[50, 60], 20..30), None);
    }

    #[test]
    fn a_stall_is_what_a_move_adds() {
        let of = |samples: &[u64]| samples.iter().copied().collect::<Distribution>();
        let undisturbed = of(&[90, 110, 100, 5_000]);
        let stalls = stalls(&of(&[400, 80, 1_100]), &undisturbed);
        assert_eq!(stalls, of(&[0, 300, 1_000]));
        assert_eq!(super::stalls(&of(&[3]), &of(&[])), of(&[3]));
    }

    #[test]
    fn rates_are_by_time_and_by_moves() {
        assert_eq!(per_second(3_000, 500_000), 6_000.0);
        assert_eq!(per_second(0, 0), 0.0);
        assert_eq!(per_thousand(3, 1_500), 2.0);
        assert_eq!(per_thousand(0, 0), 0.0);
    }
}
