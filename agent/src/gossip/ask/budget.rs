//! A bound on how much is done in a second.

use crate::pop::SECOND;

/// So much in a second, and so much at once.
pub(super) struct Budget {
    per_second: u64,
    burst: u64,
    /// In millionths. May be overdrawn, by what was begun while it was not.
    level: i64,
    at: u64,
}

const UNIT: u64 = SECOND;

impl Budget {
    pub(super) fn new(per_second: u64, burst: u64) -> Self {
        Self {
            per_second,
            burst,
            level: (burst * UNIT) as i64,
            at: 0,
        }
    }

    /// Takes so much, if anything is left.
    pub(super) fn take(&mut self, now: u64, amount: u64) -> bool {
        let gained = now.saturating_sub(self.at).min(self.burst * UNIT) * self.per_second;
        self.at = self.at.max(now);
        let full = (self.burst * UNIT) as i64;
        self.level = full.min(self.level.saturating_add(gained as i64));
        if self.level <= 0 {
            return false;
        }
        self.spend(amount);
        true
    }

    /// Takes so much, whatever is left.
    pub(super) fn spend(&mut self, amount: u64) {
        self.level -= (amount * UNIT) as i64;
    }

    /// When something will be left, if nothing is taken until then.
    pub(super) fn free_at(&self) -> u64 {
        match u64::try_from(-self.level) {
            Ok(missing) => self.at + missing / self.per_second + 1,
            Err(_) => self.at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_over_time() {
        let mut budget = Budget::new(100, 10);
        let taken = |budget: &mut Budget, now| (0..50).filter(|_| budget.take(now, 1)).count();
        assert_eq!(taken(&mut budget, 5 * SECOND), 10);
        assert_eq!(budget.free_at(), 5 * SECOND + 1);
        assert_eq!(taken(&mut budget, 5 * SECOND + 20_000), 2);
        assert_eq!(taken(&mut budget, 3600 * SECOND), 10);
        // What is overdrawn is paid back first.
        assert!(budget.take(3601 * SECOND, 60));
        assert!(!budget.take(3601 * SECOND + 400_000, 1));
        let free_at = budget.free_at();
        assert!(!budget.take(free_at - 2, 1));
        assert!(budget.take(free_at, 1));
    }
}
