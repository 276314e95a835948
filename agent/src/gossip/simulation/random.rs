//! Random histories: whatever happens, all hosts converge.

use std::{collections::BTreeSet, time::Duration};

use homing_common::session::SessionId;
use proptest::prelude::*;

use super::{Faults, PERFECT, Pop, QUIET};
use crate::pop::{MS, SECOND};

#[derive(Clone, Debug)]
enum Op {
    Open(u16, u64),
    Close(u16, u64),
    Move(u16, u16, u64),
    Burst(u16, u64),
    Run(u64),
    Restart(u16),
    Kill(u16),
    Start(u16),
    Reboot(u16, i64),
    Leave(u16, u64),
    Faults(Faults),
    /// These hosts reach each other, and nobody else.
    Cut(BTreeSet<u16>),
}

const HOSTS: u16 = 7;

fn faults() -> impl Strategy<Value = Faults> {
    let deaf = prop::option::weighted(0.2, 0..2u16);
    let one_way = prop::option::weighted(0.2, (1..=HOSTS, 1..=HOSTS));
    let slow = prop::option::weighted(0.2, (1..=HOSTS, 0..100 * MS));
    let rates = (0u32..40, 0u32..30, 0..30 * MS, 0u32..40);
    (rates, deaf, one_way, slow).prop_map(
        |((loss, repeat, delay_max, broken), deaf_domain, one_way, slow)| Faults {
            loss_percent: loss,
            repeat_percent: repeat,
            delay_max,
            deaf_domain,
            one_way,
            slow,
            broken_percent: broken,
        },
    )
}

fn ops() -> impl Strategy<Value = Op> {
    let host = || 1..=HOSTS;
    // Few ids, so that tuples are reused and hosts claim the same session.
    let id = || 0u64..12;
    prop_oneof![
        12 => (host(), id()).prop_map(|(h, i)| Op::Open(h, i)),
        8 => (host(), id()).prop_map(|(h, i)| Op::Close(h, i)),
        4 => (host(), host(), id()).prop_map(|(a, b, i)| Op::Move(a, b, i)),
        2 => (host(), 1u64..400).prop_map(|(h, n)| Op::Burst(h, n)),
        8 => (0..200 * MS).prop_map(Op::Run),
        4 => (0..4 * SECOND).prop_map(Op::Run),
        2 => host().prop_map(Op::Restart),
        1 => host().prop_map(Op::Kill),
        2 => host().prop_map(Op::Start),
        1 => (host(), -500i64..500).prop_map(|(h, s)| Op::Reboot(h, s)),
        1 => (host(), 0..2 * SECOND).prop_map(|(h, t)| Op::Leave(h, t)),
        2 => faults().prop_map(Op::Faults),
        1 => prop::collection::btree_set(host(), 0..4).prop_map(Op::Cut),
    ]
}

fn perform(pop: &mut Pop, op: &Op) {
    match *op {
        Op::Open(host, id) => pop.open(host, id, 0),
        Op::Close(host, id) => pop.close(host, id),
        Op::Move(from, to, id) => {
            if let Some(&generation) = pop.machines[&from].sessions.get(&SessionId(id))
                && from != to
            {
                pop.open(to, id, generation + 1);
                pop.close(from, id);
            }
        }
        Op::Burst(host, n) => {
            for id in 0..n {
                pop.open(host, 1_000 + id, 0);
            }
            for id in (0..n).step_by(3) {
                pop.close(host, 1_000 + id);
            }
        }
        Op::Run(time) => pop.run(time),
        Op::Restart(host) => {
            pop.kill(host);
            pop.start(host);
        }
        Op::Kill(host) => pop.kill(host),
        Op::Start(host) => pop.start(host),
        Op::Reboot(host, step) => pop.reboot(host, step),
        Op::Leave(host, hold_us) => pop.leave(host, Duration::from_micros(hold_us)),
        Op::Faults(faults) => pop.faults = faults,
        Op::Cut(ref hosts) => pop.apart.clone_from(hosts),
    }
}

/// How many random histories are tried; more with `PROPTEST_CASES`, as
/// `cargo xtask test --full` sets it.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(48),
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn all_hosts_converge_to_one_owner_per_session(
        seed: u64,
        multicast: bool,
        domains in 1u16..4,
        first in faults(),
        ops in prop::collection::vec(ops(), 1..60),
    ) {
        let mut pop = Pop::new(seed, HOSTS, multicast);
        pop.domains = domains;
        pop.start_all();
        pop.run(SECOND);
        pop.faults = first;
        for op in &ops {
            perform(&mut pop, op);
        }
        pop.faults = PERFECT;
        pop.apart.clear();
        let (flown, carried) = (pop.flown, pop.carried);
        pop.run(QUIET);
        pop.assert_converged();
        let flown = pop.flown - flown;
        prop_assert!(flown < 10_000, "quiet, but {flown} datagrams flew");
        let carried = pop.carried - carried;
        prop_assert!(carried < 1_000, "quiet, but {carried} bulk messages were sent");
    }
}
