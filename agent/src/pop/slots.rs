//! The rendezvous hosts of every slot, kept as hosts come and go.
//!
//! Each slot belongs to the two hosts that weigh most for it ([`weight`]), so
//! all hosts that know the same members have the same table. A host that comes is
//! weighed against the two of each slot; only the slots of a host that goes are
//! chosen anew.

use std::collections::BTreeSet;

use homing_common::{
    control::{RENDEZVOUS_ENTRIES, Rendezvous},
    host::HostId,
};

use super::rendezvous::weight;

/// A host and what it weighs for a slot. Host 0, nobody, with weight 0 is the
/// lightest of all.
type Weighed = (u64, HostId);

/// The table of slots.
pub struct Slots {
    hosts: BTreeSet<HostId>,
    slots: Vec<[Weighed; 2]>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            hosts: BTreeSet::new(),
            slots: vec![[Weighed::default(); 2]; RENDEZVOUS_ENTRIES as usize],
        }
    }
}

impl Slots {
    /// Makes `hosts` the ones to choose from.
    pub fn set(&mut self, hosts: &BTreeSet<HostId>) {
        let gone: BTreeSet<_> = self.hosts.difference(hosts).copied().collect();
        let new: Vec<_> = hosts.difference(&self.hosts).copied().collect();
        let left: Vec<_> = self.hosts.intersection(hosts).copied().collect();
        for (slot, chosen) in self.slots.iter_mut().enumerate() {
            if chosen.iter().any(|(_, host)| gone.contains(host)) {
                *chosen = Default::default();
                offer(chosen, slot, &left);
            }
            offer(chosen, slot, &new);
        }
        self.hosts.clone_from(hosts);
    }

    /// The hosts of each slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Rendezvous)> {
        self.slots.iter().enumerate().map(|(slot, chosen)| {
            let [(_, first), (_, second)] = *chosen;
            let hosts = Rendezvous {
                first: first.0,
                second: second.0,
            };
            (slot as u32, hosts)
        })
    }
}

fn offer(chosen: &mut [Weighed; 2], slot: usize, hosts: &[HostId]) {
    for &host in hosts {
        let weighed = weight(slot as u64, host);
        if weighed > chosen[0] {
            *chosen = [weighed, chosen[0]];
        } else if weighed > chosen[1] {
            chosen[1] = weighed;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pop::rendezvous::choose;

    fn expected(slot: u32, hosts: &BTreeSet<HostId>) -> Rendezvous {
        let chosen = choose(u64::from(slot), hosts.iter().copied(), 2);
        let id = |n: usize| chosen.get(n).map_or(0, |host: &HostId| host.0);
        Rendezvous {
            first: id(0),
            second: id(1),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However the set came about, the table is that of the set.
        #[test]
        fn the_way_to_a_set_of_hosts_does_not_matter(
            steps in prop::collection::vec(prop::collection::btree_set(1u16..12, 0..9), 1..5)
        ) {
            let mut slots = Slots::default();
            for hosts in steps {
                let hosts: BTreeSet<_> = hosts.into_iter().map(HostId).collect();
                slots.set(&hosts);
                for (slot, found) in slots.iter().step_by(37) {
                    prop_assert_eq!(found, expected(slot, &hosts));
                }
            }
        }
    }

    #[test]
    fn a_thousand_hosts_change_in_little_time() {
        let mut hosts: BTreeSet<_> = (1..=1000).map(HostId).collect();
        let mut slots = Slots::default();
        let start = std::time::Instant::now();
        slots.set(&hosts);
        let all = start.elapsed();
        hosts.remove(&HostId(500));
        let start = std::time::Instant::now();
        slots.set(&hosts);
        let one_goes = start.elapsed();
        hosts.insert(HostId(500));
        let start = std::time::Instant::now();
        slots.set(&hosts);
        println!(
            "all {all:?}, one goes {one_goes:?}, one comes {:?}",
            start.elapsed()
        );
        let found: Vec<_> = slots.iter().map(|(_, chosen)| chosen.first).collect();
        assert!((1..=1000).all(|host| found.contains(&host)));
        // A change costs a small part of the whole; how small, the output says.
        assert!(one_goes < all);
    }
}
