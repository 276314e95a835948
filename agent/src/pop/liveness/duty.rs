//! Who watches whom, and who is asked to confirm a silence.
//!
//! All hosts stand on one ring. A host is watched by the next two on it, and by
//! the next one of another domain; while its agent is down, by the next eight. So
//! each is watched by a few and watches a few, whatever the size of the POP, and
//! everybody computes the same without a word.

use std::collections::BTreeMap;

use homing_common::host::HostId;

use super::peers::Peers;
use crate::pop::{Domain, rendezvous::weight};

/// Hosts that watch another one.
const WATCHERS: usize = 2;
/// The same while its agent is down.
const WATCHERS_OF_DOWN: usize = 8;
/// Hosts that one host watches by duty at most. It is reached only where it alone
/// is of another domain than many others: some of these then go without a watcher
/// of another domain, and leave that to the confirmation.
pub(super) const TARGETS_MAX: usize = 32;

/// The hosts that this one watches.
pub(super) fn targets(peers: &Peers, me: HostId, domain: Domain) -> Vec<HostId> {
    let mut targets = Vec::new();
    // Hosts between a target and this one that could watch it instead, and
    // whether they are of one domain.
    let mut between = 0;
    let mut passed: Option<Domain> = None;
    let mut mixed = false;
    for (host, peer) in peers.before(me) {
        let watchers = if peer.agent_up {
            WATCHERS
        } else {
            WATCHERS_OF_DOWN
        };
        let is_first_foreign =
            peer.domain != domain && !mixed && passed.is_none_or(|passed| passed == peer.domain);
        if between < watchers || is_first_foreign {
            targets.push(host);
        }
        if peer.is_able() {
            between += 1;
            mixed |= passed.is_some_and(|passed| passed != peer.domain);
            passed = Some(peer.domain);
        }
        let no_more_foreign = mixed || passed == Some(domain);
        if targets.len() >= TARGETS_MAX || between >= WATCHERS_OF_DOWN && no_more_foreign {
            break;
        }
    }
    targets
}

/// Out of these hosts the `n` that are asked about a host of a domain: spread over
/// as many domains as there are, its own first, and another choice for each key.
pub(super) fn confirmers(
    key: u64,
    of: Domain,
    able: impl Iterator<Item = (HostId, Domain)>,
    n: usize,
) -> Vec<HostId> {
    let mut by_domain: BTreeMap<Domain, Vec<(u64, HostId)>> = BTreeMap::new();
    for (host, domain) in able {
        by_domain.entry(domain).or_default().push(weight(key, host));
    }
    for hosts in by_domain.values_mut() {
        hosts.sort_unstable();
    }
    let mut chosen = Vec::new();
    while chosen.len() < n {
        // One from each domain per round; the domains that are drawn most first.
        let mut round: Vec<_> = by_domain
            .iter_mut()
            .filter_map(|(&domain, hosts)| Some((domain == of, hosts.pop()?)))
            .collect();
        if round.is_empty() {
            break;
        }
        round.sort_unstable_by(|a, b| b.cmp(a));
        chosen.extend(round.into_iter().map(|(_, (_, host))| host));
    }
    chosen.truncate(n);
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{super::peers::Peer, *};

    fn domain(n: u16) -> Domain {
        Domain::try_from(format!("d{n}").as_str()).unwrap()
    }

    /// The POP as one host sees it.
    fn seen_by(me: u16, hosts: &BTreeMap<u16, (u16, bool)>) -> Peers {
        let mut peers = Peers::new();
        for (&host, &(d, up)) in hosts.iter().filter(|(host, _)| **host != me) {
            let mut peer = Peer::new("10.0.0.1:1".parse().unwrap(), domain(d), 1);
            peer.agent_up = up;
            peers.insert(HostId(host), peer);
        }
        peers
    }

    proptest! {
        /// Everyone is watched, by another domain too where there is one that has
        /// room, and nobody watches many.
        #[test]
        fn everyone_is_watched_by_a_few(
            hosts in prop::collection::btree_map(1u16..4096, (0u16..4, prop::bool::weighted(0.9)), 2..40)
        ) {
            let mut watchers: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
            for (&me, &(d, _)) in hosts.iter().filter(|(_, (_, up))| *up) {
                let targets = targets(&seen_by(me, &hosts), HostId(me), domain(d));
                prop_assert!(targets.len() <= TARGETS_MAX);
                for target in targets {
                    watchers.entry(target.0).or_default().insert(me);
                }
            }
            for (host, (d, up)) in &hosts {
                let others = hosts.iter().filter(|(other, (_, up))| *other != host && *up);
                let others: Vec<_> = others.collect();
                let watchers = watchers.remove(host).unwrap_or_default();
                let wanted = if *up { WATCHERS } else { WATCHERS_OF_DOWN };
                prop_assert!(watchers.len() >= wanted.min(others.len()), "{host}: {watchers:?}");
                prop_assert!(watchers.len() <= wanted + 1);
                let is_foreign = |other: &u16| hosts[other].0 != *d;
                let has_foreign = others.iter().any(|(other, _)| is_foreign(other));
                prop_assert_eq!(watchers.iter().any(is_foreign), has_foreign);
            }
        }

        #[test]
        fn confirmers_are_of_all_domains_and_as_many_as_asked_for(
            hosts in prop::collection::btree_map(1u16..4096, 0u16..6, 0..30), key: u64, of in 0u16..6
        ) {
            let able = hosts.iter().map(|(&host, &d)| (HostId(host), domain(d)));
            let chosen = confirmers(key, domain(of), able, 4);
            prop_assert_eq!(chosen.len(), hosts.len().min(4));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            let domains: BTreeSet<_> = hosts.values().collect();
            let asked: BTreeSet<_> = chosen.iter().map(|host| hosts[&host.0]).collect();
            prop_assert_eq!(asked.len(), domains.len().min(4));
            prop_assert_eq!(asked.contains(&of), domains.contains(&of));
        }
    }

    #[test]
    fn one_host_alone_in_its_domain_does_not_watch_all_others() {
        let mut hosts: BTreeMap<_, _> = (1..=500).map(|host| (host, (0, true))).collect();
        hosts.insert(501, (1, true));
        let targets = targets(&seen_by(501, &hosts), HostId(501), domain(1));
        assert_eq!(targets.len(), TARGETS_MAX);
    }
}
