//! When something is said again, and by which way.

use homing_common::host::HostId;

use super::limits::REPEAT_MAX;

/// Something is said again and again until it is answered: ever less often, directly
/// and by way of other members in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat {
    first: u64,
    /// When it is said again.
    pub at: u64,
    tries: u32,
}

impl Repeat {
    /// It was said now, and is said again after this time first.
    pub fn new(now: u64, first: u64) -> Self {
        Self {
            first,
            at: now + first,
            tries: 0,
        }
    }

    /// It is said again now. Says which of the two hosts' other ways to take: none is
    /// the direct one.
    pub fn again(&mut self, now: u64) -> Option<usize> {
        self.tries += 1;
        self.at = now + (self.first << self.tries.min(10)).min(REPEAT_MAX);
        // Every other time by another member: whether a way is cut nobody can know.
        self.tries
            .is_multiple_of(2)
            .then(|| self.tries as usize / 2 - 1)
    }
}

/// The member by which to say it, if there is any that is neither of the two.
pub(super) fn member_by(members: &[HostId], way: usize, to: HostId) -> Option<HostId> {
    let mut others = members.iter().copied().filter(|&host| host != to);
    let count = others.clone().count();
    if count == 0 {
        return None;
    }
    others.nth(way % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pop::MS;

    #[test]
    fn repeats_grow_rarer_and_take_other_ways() {
        let mut repeat = Repeat::new(0, 50 * MS);
        let mut ways = Vec::new();
        let mut waits = Vec::new();
        let mut now = repeat.at;
        for _ in 0..7 {
            ways.push(repeat.again(now));
            waits.push((repeat.at - now) / MS);
            now = repeat.at;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(ways, [None, Some(0), None, Some(1), None, Some(2), None]);

        let [a, b, c] = [1, 2, 3].map(HostId);
        assert_eq!(member_by(&[a, b, c], 0, b), Some(a));
        assert_eq!(member_by(&[a, b, c], 3, b), Some(c));
        assert_eq!(member_by(&[b], 0, b), None);
    }
}
