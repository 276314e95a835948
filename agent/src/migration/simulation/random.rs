//! Random histories.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Move(u16, u16),
    CallOff(u16, u16),
    Events(usize),
    Run(u64),
    KillAgent(u16),
    StartAgent(u16),
    KillApplication(u16),
    KillKernel(u16),
    Hang(u16),
    Cut(u16, u16),
    Isolate(u16),
    Heal,
    Faults(Faults),
}

const HOSTS: u16 = 4;

fn faults() -> impl Strategy<Value = Faults> {
    (0u32..40, 0u32..40, 0..60 * MS).prop_map(|(loss_percent, repeat_percent, delay_max)| Faults {
        loss_percent,
        repeat_percent,
        delay_max,
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let host = || 1..=HOSTS;
    prop_oneof![
        12 => (host(), 1..4u16).prop_map(|(h, n)| Op::Move(h, n)),
        2 => (host(), 1..4u16).prop_map(|(h, n)| Op::CallOff(h, n)),
        12 => (0usize..30).prop_map(Op::Events),
        4 => (0..300 * MS).prop_map(Op::Run),
        3 => (0..9 * SECOND).prop_map(Op::Run),
        1 => (0..60 * SECOND).prop_map(Op::Run),
        5 => host().prop_map(Op::KillAgent),
        5 => host().prop_map(Op::StartAgent),
        1 => host().prop_map(Op::KillApplication),
        1 => host().prop_map(Op::KillKernel),
        1 => host().prop_map(Op::Hang),
        2 => (host(), host()).prop_map(|(a, b)| Op::Cut(a, b)),
        2 => host().prop_map(Op::Isolate),
        3 => Just(Op::Heal),
        2 => faults().prop_map(Op::Faults),
    ]
}

fn perform(pop: &mut Pop, op: &Op) {
    match *op {
        Op::Move(to, n) => {
            // From wherever it is.
            if let Some(from) = pop.served_at(n) {
                pop.command(from, to, n);
            }
        }
        Op::CallOff(host, n) => pop.with_agent(host, |agent, now, view| {
            agent.call_off(now, view, &tuple(n));
        }),
        Op::Events(events) => pop.run_events(events),
        Op::Run(time) => pop.run(time),
        Op::KillAgent(host) => pop.kill_agent(host),
        Op::StartAgent(host) => pop.start_agent(host),
        Op::KillApplication(host) => pop.kill_application(host),
        Op::KillKernel(host) => pop.kill_kernel(host),
        Op::Hang(host) => pop.host(host).hangs ^= true,
        Op::Cut(a, b) => pop.cut(a, b),
        Op::Isolate(host) => pop.isolate(host),
        Op::Heal => pop.heal(),
        Op::Faults(faults) => pop.faults = faults,
    }
}

/// How many random histories are tried; more with `PROPTEST_CASES`, as
/// `cargo xtask test --full` sets it.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(100),
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn one_host_answers_whatever_happens_and_nothing_is_left(
        seed: u64,
        first in faults(),
        ops in prop::collection::vec(ops(), 1..80),
    ) {
        let mut pop = Pop::new(seed, HOSTS);
        for n in 1..4 {
            pop.open(n, n);
        }
        pop.faults = first;
        for op in &ops {
            perform(&mut pop, op);
        }
        pop.faults = PERFECT;
        for host in pop.hosts.values_mut() {
            host.hangs = false;
        }
        pop.heal();
        pop.run(QUIET);
        pop.assert_settled();
    }
}
