//! Chosen histories of kernels.

use super::*;

#[test]
fn two_halves_void_each_other_and_come_back() {
    let mut pop = warmed_up(1, 8, 2);
    pop.part(&[1, 2, 3, 4]);
    pop.run(DEAD_AFTER);
    assert_eq!(pop.dead(1), [5, 6, 7, 8]);
    assert_eq!(pop.dead(5), [1, 2, 3, 4]);
    pop.cut.clear();
    pop.run(2 * SECOND);
    for at in 1..=8 {
        assert_eq!(pop.dead(at), NOBODY, "at {at}");
    }
}

#[test]
fn the_last_host_of_a_pop_of_two_goes_on() {
    let mut pop = warmed_up(2, 2, 2);
    pop.stop(2);
    pop.run(DEAD_AFTER);
    assert_eq!(pop.dead(1), [2]);
}

#[test]
fn a_kernel_that_comes_and_goes_waits_longer_each_time() {
    let mut pop = warmed_up(3, 5, 2);
    let mut holds = Vec::new();
    for _ in 0..8 {
        pop.part(&[1]);
        pop.run(2 * DEAD_AFTER);
        pop.cut.clear();
        pop.run(2 * SECOND);
        assert_eq!(pop.dead(2), NOBODY);
        let (at, event) = pop.machines[&2]
            .events
            .iter()
            .rev()
            .find(|(_, event)| matches!(event, Event::Back { host, .. } if *host == HostId(1)))
            .unwrap();
        let Event::Back { from, .. } = event else {
            unreachable!()
        };
        holds.push((from - at) / MS);
    }
    assert_eq!(
        holds,
        [0, 1_500, 3_000, 6_000, 12_000, 24_000, 30_000, 30_000]
    );
    // Long enough without a flap, and it is forgotten.
    pop.run(DEAD_AFTER * 201);
    pop.part(&[1]);
    pop.run(2 * DEAD_AFTER);
    pop.cut.clear();
    pop.run(2 * SECOND);
    let last = pop.machines[&2]
        .events
        .iter()
        .rev()
        .find_map(|(at, event)| match event {
            Event::Back { from, .. } => Some(from - at),
            _ => None,
        });
    assert_eq!(last, Some(0));
}

#[test]
fn an_agent_that_lives_saves_its_host_although_its_fast_path_is_silent() {
    let mut pop = warmed_up(4, 6, 2);
    pop.machines.get_mut(&1).unwrap().kernel = false;
    pop.run(30 * SECOND);
    assert_eq!(pop.judged(), []);
    let told = pop.machines[&1]
        .events
        .iter()
        .any(|(_, e)| matches!(e, Event::Unheard { .. }));
    assert!(told, "nobody told host 1 that its kernel is not heard");
    // Until the agent goes as well.
    pop.kill_agent(1);
    pop.run(DEAD_AFTER);
    assert_eq!(pop.dead(2), [1]);
}

#[test]
fn a_hosts_questions_do_not_grow_with_the_pop() {
    let mut pop = warmed_up(5, 80, 5);
    let before: Vec<_> = (1..=80)
        .map(|host| pop.counters(host).echoes_asked)
        .collect();
    pop.run(10 * SECOND);
    let asked = (1..=80).map(|host| pop.counters(host).echoes_asked - before[host as usize - 1]);
    let asked: Vec<_> = asked.collect();
    let total: u64 = asked.iter().sum();
    // Three watchers, and one other in turn, four times a second.
    assert!(total / 80 <= 4 * 4 * 10 + 8, "{}", total / 80);
    assert!(
        asked.iter().max() <= Some(&(12 * 4 * 10)),
        "{:?}",
        asked.iter().max()
    );
    // A rack ends.
    let rack: Vec<_> = (1..=80).filter(|host| host % 5 == 0).collect();
    for &host in &rack {
        pop.stop(host);
    }
    pop.run(DEAD_AFTER);
    for at in pop.running() {
        assert_eq!(pop.dead(at), rack, "at {at}");
    }
    let most = pop
        .running()
        .into_iter()
        .map(|host| pop.counters(host).echoes_asked)
        .max();
    assert!(most < Some(10_000), "{most:?}");
}
