//! ECMP: how the router spreads connections over hosts, and how that changes.

use crate::random::Random;

/// Size of the space that the kernel's hash of a flow falls into
/// (`net/ipv4/nexthop.c`, hash-threshold groups).
const HASH_SPACE: u64 = 1 << 31;

/// The share of all flows, 0 to 1, that go to another host once `old` has
/// become `new`.
///
/// A hash-threshold group gives its members equal slices of the hash space, in
/// the order in which they stand.
pub fn remapped_share(old: &[u16], new: &[u16]) -> f64 {
    if old.is_empty() || new.is_empty() {
        return if old == new { 0.0 } else { 1.0 };
    }
    let bound = |i: usize, n: usize| HASH_SPACE * (i as u64 + 1) / n as u64;
    let (mut i, mut j, mut at, mut same) = (0, 0, 0, 0);
    while at < HASH_SPACE {
        let next = bound(i, old.len()).min(bound(j, new.len()));
        if old[i] == new[j] {
            same += next - at;
        }
        at = next;
        i += usize::from(bound(i, old.len()) <= at);
        j += usize::from(bound(j, new.len()) <= at);
    }
    1.0 - same as f64 / HASH_SPACE as f64
}

/// Chooses the next set: some or all of `hosts` hosts in a new order, so that
/// most flows go elsewhere. `keep` says how many are in it; otherwise chance
/// does, from half of them up. The search ends with the first set that moves a
/// share of `enough`, or with the best of many.
pub fn choose(
    random: &mut Random,
    hosts: u16,
    now: &[u16],
    keep: Option<u16>,
    enough: f64,
) -> Vec<u16> {
    let mut best: (f64, Vec<u16>) = (-1.0, now.to_vec());
    for _ in 0..500 {
        let mut set: Vec<u16> = (1..=hosts).collect();
        random.shuffle(&mut set);
        let least = hosts.div_ceil(2);
        let len = keep.unwrap_or(least + random.below(u64::from(hosts - least) + 1) as u16);
        set.truncate(usize::from(len.clamp(1, hosts)));
        let share = remapped_share(now, &set);
        if share > best.0 {
            best = (share, set);
        }
        if best.0 >= enough {
            break;
        }
    }
    best.1
}

/// Enough for a reshuffle among many flows. A search for the very best would find
/// the same few sets always.
pub const MOST: f64 = 0.6;
/// Every flow goes elsewhere.
pub const ALL: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(remapped_share(&[1, 2], &[1, 2]), 0.0);
        assert_eq!(remapped_share(&[1, 2], &[2, 1]), 1.0);
        assert_eq!(remapped_share(&[1, 2, 3, 4], &[2, 1, 3, 4]), 0.5);
        assert_eq!(remapped_share(&[1, 2], &[1]), 0.5);
        let third = remapped_share(&[1, 2, 3], &[1, 2]);
        assert!((third - 0.5).abs() < 1e-6, "{third}");
    }

    #[test]
    fn every_choice_moves_most_flows_where_it_can() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            for hosts in 2..9 {
                let mut now: Vec<u16> = (1..=hosts).collect();
                for _ in 0..10 {
                    let next = choose(&mut random, hosts, &now, None, MOST);
                    assert!(remapped_share(&now, &next) >= 0.5, "{now:?} to {next:?}");
                    let mut unique = next.clone();
                    unique.sort();
                    unique.dedup();
                    assert_eq!(unique.len(), next.len());
                    now = next;
                }
                assert_eq!(choose(&mut random, hosts, &now, Some(1), MOST).len(), 1);
            }
        }
    }

    #[test]
    fn all_flows_can_be_moved() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            for hosts in 2..6 {
                let mut now: Vec<u16> = (1..=hosts).collect();
                for _ in 0..10 {
                    let next = choose(&mut random, hosts, &now, None, ALL);
                    assert_eq!(remapped_share(&now, &next), 1.0, "{now:?} to {next:?}");
                    now = next;
                }
            }
        }
    }
}
