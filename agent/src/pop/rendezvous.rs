//! Rendezvous hashing: who of many hosts a key belongs to, the same on every host
//! that knows the same members, and with as few changes as possible when one comes
//! or goes (Thaler and Ravishankar, "Using name-based mappings to increase hit
//! rates", 1998).

use homing_common::host::HostId;

/// How strongly a host is drawn to a key: the greatest wins. No two hosts weigh
/// the same.
pub fn weight(key: u64, host: HostId) -> (u64, HostId) {
    let mut x = key ^ u64::from(host.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The finalizer of MurmurHash3, twice, because neighbouring keys and hosts
    // must not give related weights.
    for _ in 0..2 {
        x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^= x >> 33;
    }
    (x, host)
}

/// The `n` hosts that a key is drawn to most, the strongest first; fewer if there
/// are fewer.
pub fn choose(key: u64, hosts: impl IntoIterator<Item = HostId>, n: usize) -> Vec<HostId> {
    let mut ranked: Vec<_> = hosts.into_iter().map(|host| weight(key, host)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.truncate(n);
    ranked.into_iter().map(|(_, host)| host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_and_move_only_when_their_host_goes() {
        let hosts: Vec<_> = (1..=10).map(HostId).collect();
        let before: Vec<_> = (0..10_000)
            .map(|key| choose(key, hosts.iter().copied(), 2))
            .collect();
        for host in &hosts {
            let share = before.iter().filter(|chosen| chosen[0] == *host).count();
            assert!((850..1150).contains(&share), "{host:?}: {share}");
        }
        let gone = HostId(4);
        for (key, chosen) in before.iter().enumerate() {
            let rest = hosts.iter().copied().filter(|host| *host != gone);
            let now = choose(key as u64, rest, 1)[0];
            let expected = if chosen[0] == gone {
                chosen[1]
            } else {
                chosen[0]
            };
            assert_eq!(now, expected);
        }
    }
}
