//! Random histories, by seed.

use super::*;

/// Packets of sessions land on hosts that do not know them, while datagrams are
/// lost, repeated and delayed, and hosts fall silent or are down. At no time is a
/// session reset that somebody owns; once the network is quiet, all is found, and
/// what nobody owns is reset, or sent to the one host that cannot be asked.
fn history(seed: u64) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let domains: Vec<u16> = (0..rng.random_range(1..=4))
        .map(|_| rng.random_range(1..=6))
        .collect();
    let hosts: u16 = domains.iter().sum();
    let mut pop = Pop::new(seed, &domains);
    pop.multicast = rng.random_range(0..4) > 0;
    pop.faults = Faults {
        loss_percent: rng.random_range(0..=50),
        repeat_percent: rng.random_range(0..=30),
        delay_max: [200, 5 * MS, 150 * MS, 400 * MS][rng.random_range(0..4)],
    };
    for host in 2..=hosts {
        pop.host(host).dead = rng.random_range(0..10) == 0;
        pop.host(host).down = rng.random_range(0..20) == 0;
    }
    pop.look_around();
    let kinds = [Found::Socket, Found::Cookie, Found::Closing, Found::Closed];
    let mut owned = BTreeSet::new();
    for session in 0..20 {
        if hosts > 1 && rng.random_range(0..3) > 0 {
            let kind = kinds[rng.random_range(0..4)];
            let owner = rng.random_range(2..=hosts);
            pop.own(owner, session, kind);
            // Of a host's sessions the others have heard, or not.
            if kind == Found::Socket && pop.host(owner).down {
                pop.host(1 + owner % hosts)
                    .heard
                    .insert(id(session), HostId(owner));
            }
            if kind != Found::Closed {
                owned.insert(id(session));
            }
        }
    }
    // Clients send and send again.
    for _ in 0..12 {
        for session in 0..20 {
            if rng.random_range(0..3) > 0 {
                pop.packet(1, session);
            }
            if rng.random_range(0..4) == 0 {
                let between = rng.random_range(0..10);
                pop.wait(between);
            }
        }
        let pause = rng.random_range(50..400);
        pop.wait(pause);
    }
    assert_no_owned_up(&mut pop, &owned, seed);

    pop.faults = PERFECT;
    for host in pop.hosts.values_mut() {
        host.dead = false;
    }
    pop.wait(1_000);
    for host in pop.hosts.values_mut() {
        host.returned.clear();
        host.routes.clear();
    }
    for _ in 0..3 {
        for session in 0..20 {
            pop.packet(1, session);
        }
        pop.wait(201);
    }
    assert_no_owned_up(&mut pop, &owned, seed);
    let down: Vec<HostId> = pop.down().collect();
    for session in 0..20 {
        let (ways, id) = (pop.ways(1, session), id(session));
        let expected = match (pop.owner(id), down.len()) {
            (Some((_, Found::Closed)), _) => Some(Way::Up),
            (Some(_), _) => Some(Way::Reenter),
            (None, 0) => Some(Way::Up),
            (None, 1) => Some(Way::Reenter),
            (None, _) => None,
        };
        assert!(
            match expected {
                Some(way) => ways.contains(&way),
                None => ways.is_empty(),
            },
            "seed {seed}, session {session} is not {expected:?}: {ways:?}; {domains:?}, {:?}",
            pop.host(1).asks.counters
        );
        if let Some(route) = pop.host(1).routes.get(&id).copied() {
            let owner = pop
                .owner(id)
                .map_or(down.first().copied(), |owner| Some(owner.0));
            assert_eq!(Some(route), owner, "seed {seed}, session {session}");
        }
    }
    pop.wait(500);
    assert_eq!(pop.host(1).asks.load(), Load::default(), "seed {seed}");
}

fn assert_no_owned_up(pop: &mut Pop, owned: &BTreeSet<SessionId>, seed: u64) {
    for &(at, session, way) in &pop.host(1).returned {
        assert!(
            way != Way::Up || !owned.contains(&session),
            "seed {seed}: {session} was reset at {at}, and is owned"
        );
    }
}

#[test]
fn no_session_is_reset_that_somebody_owns() {
    // More with `PROPTEST_CASES`, as `cargo xtask test --full` sets it.
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|n| n.parse().ok()).unwrap_or(100);
    for seed in 0..cases {
        history(seed);
    }
}
