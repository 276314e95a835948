//! The sliding window that tells a fresh sequence number from a used one.

/// Sequence numbers below the newest that are still told apart.
pub(super) const WINDOW: u64 = 1024;

const WORDS: usize = (WINDOW / 64) as usize;

/// Which sequence numbers of one sender were used: everything below the window
/// counts as used.
pub(super) struct Window {
    /// One more than the newest number used.
    next: u64,
    /// Bit `n % WINDOW` says whether `n` was used, for the last `WINDOW` numbers.
    bits: [u64; WORDS],
}

/// What a window says of a sequence number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Freshness {
    /// Not used before; now it is.
    Fresh,
    /// Used before.
    Replayed,
    /// Below the window: nobody knows.
    TooOld,
}

impl Window {
    /// A window in which every number below `next` counts as used.
    pub(super) fn new(next: u64) -> Self {
        Self {
            next,
            bits: [u64::MAX; WORDS],
        }
    }

    /// Uses a number.
    pub(super) fn take(&mut self, number: u64) -> Freshness {
        if number >= self.next {
            let skipped = number - self.next;
            if skipped >= WINDOW {
                self.bits = [0; WORDS];
            } else {
                for n in self.next..number {
                    self.clear(n);
                }
            }
            // The newest number a sender can use is one below the largest, so
            // this cannot wrap in any life of a POP; saturating, it fails closed.
            self.next = number.saturating_add(1);
            self.set(number);
            return Freshness::Fresh;
        }
        if self.next - number > WINDOW {
            return Freshness::TooOld;
        }
        if self.is_set(number) {
            return Freshness::Replayed;
        }
        self.set(number);
        Freshness::Fresh
    }

    fn is_set(&self, number: u64) -> bool {
        self.bits[Self::word(number)] & Self::bit(number) != 0
    }

    fn set(&mut self, number: u64) {
        self.bits[Self::word(number)] |= Self::bit(number);
    }

    fn clear(&mut self, number: u64) {
        self.bits[Self::word(number)] &= !Self::bit(number);
    }

    fn word(number: u64) -> usize {
        (number % WINDOW / 64) as usize
    }

    fn bit(number: u64) -> u64 {
        1 << (number % 64)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set: no number is ever fresh twice, and every number
        /// within the window that was not used is fresh.
        #[test]
        fn window_agrees_with_a_set(
            start in 0u64..5_000,
            steps in prop::collection::vec((0u64..3_000, any::<bool>()), 1..400),
        ) {
            let mut window = Window::new(start);
            let mut used = HashSet::new();
            let mut top = start;
            for (delta, forward) in steps {
                let number = if forward { top + delta } else { top.saturating_sub(delta) };
                let expected = if number < start && number + WINDOW >= top || used.contains(&number) && number + WINDOW >= top {
                    Freshness::Replayed
                } else if number + WINDOW < top {
                    Freshness::TooOld
                } else {
                    Freshness::Fresh
                };
                prop_assert_eq!(window.take(number), expected);
                used.insert(number);
                top = top.max(number + 1);
            }
        }
    }
}
