//! How hosts stand, and who is void: what moves of sessions rely on.

use super::*;

impl Pop {
    /// All that moves sessions could mind.
    fn mind_all(&mut self) {
        for host in self.running() {
            self.mind(host);
        }
    }

    fn mind(&mut self, host: u16) {
        let others = self.machines.keys().filter(|other| **other != host);
        let others = others.map(|other| HostId(*other)).collect();
        let now = self.now;
        let machine = self.machines.get_mut(&host).unwrap();
        let minded = Minded {
            reach: true,
            frozen_at: machine.frozen_at.map(|at| at as i64),
            kernels: others,
        };
        machine.agent.mind(now, minded);
    }

    /// A session is frozen here, and the one before is forgotten.
    fn freeze(&mut self, host: u16) {
        let now = self.now;
        self.machines.get_mut(&host).unwrap().frozen_at = Some(now);
        self.mind(host);
    }

    /// The agent ends, and another begins that remembers the members. Membership finds
    /// out later, here and elsewhere.
    fn restart_agent(&mut self, host: u16) {
        let incarnation = self.machines[&host].incarnation;
        let fresh = self.machine(host, incarnation).agent;
        let machine = self.machines.get_mut(&host).unwrap();
        machine.agent = fresh;
        machine.differs.clear();
        let others: Vec<_> = self
            .machines
            .keys()
            .copied()
            .filter(|&other| other != host)
            .collect();
        for other in others {
            self.tell(host, other, false);
            let other = self.machines.get_mut(&other).unwrap();
            other.up.insert(host, false);
            other.differs.remove(&host);
        }
        self.mind(host);
    }

    fn stands_since(&self, host: u16) -> Option<u64> {
        let reached = self.machines[&host].agent.own_standing().reached?;
        (reached.until >= self.now).then_some(reached.since)
    }

    fn judged_here(&self, host: u16) -> u16 {
        self.machines[&host].agent.own_standing().judged
    }

    fn void(&self, at: u16) -> Vec<u16> {
        let agent = &self.machines[&at].agent;
        let is_void = |of: &u16| agent.is_void(HostId(*of));
        self.machines.keys().copied().filter(is_void).collect()
    }
}

/// What anybody has acted on: the last judgement on each host since its session was
/// frozen.
#[derive(Default)]
struct Acted(BTreeMap<u16, u16>);

impl Acted {
    /// A while; at every moment nobody stands well who was void anywhere and has not
    /// heard of it.
    fn run(&mut self, pop: &mut Pop, time: u64) {
        let end = pop.now + time;
        while pop.now < end {
            pop.run(20 * MS);
            for at in pop.running() {
                for of in pop.void(at) {
                    let peer = pop.machines[&at].agent.peers.get(HostId(of)).unwrap();
                    if Some(peer.judged_at) > pop.machines[&of].frozen_at {
                        let last = self.0.entry(of).or_default();
                        *last = peer.standing.number.max(*last);
                    }
                }
            }
            for (&host, &number) in &self.0 {
                if pop.stands_since(host).is_some() {
                    let judged = pop.judged_here(host);
                    let now = pop.now;
                    assert!(
                        judged >= number,
                        "host {host}: {judged} of {number} at {now}"
                    );
                }
            }
        }
    }
}

#[test]
fn who_reaches_half_stands_from_the_first_poll_on_and_without_a_break() {
    for hosts in [1, 2, 3, 8] {
        let mut pop = warmed_up(7, hosts, 2);
        pop.run(DEAD_AFTER);
        assert_eq!(pop.stands_since(1), None, "nobody minds");
        let began = pop.now;
        pop.mind_all();
        pop.run(60 * SECOND);
        assert_eq!(pop.stands_since(1), Some(began), "of {hosts}");
        assert_eq!(pop.judged_here(1), 0);
        // Half of them are gone, and it is one of the others.
        let half: Vec<_> = (1..=hosts).rev().take(usize::from(hosts / 2)).collect();
        pop.part(&half);
        pop.run(10 * SECOND);
        assert_eq!(pop.stands_since(1), Some(began), "of {hosts}");
        let parted = pop.now;
        // One more is under half.
        if hosts > 2 {
            pop.part(&[1]);
            pop.run(SECOND);
            assert_eq!(pop.stands_since(1), None);
            pop.cut.clear();
            pop.run(10 * SECOND);
            assert!(
                pop.stands_since(1)
                    .is_some_and(|since| since > parted + SECOND / 2)
            );
        }
    }
}

#[test]
fn a_poll_that_is_not_answered_ends_it_and_the_next_begins_it_anew() {
    let mut pop = warmed_up(8, 5, 2);
    pop.run(DEAD_AFTER);
    pop.mind_all();
    pop.run(SECOND);
    let since = pop.stands_since(1);
    assert!(since.is_some());
    // Its datagrams to the others are lost for a moment.
    pop.part(&[1]);
    pop.run(DEAD_AFTER / 5);
    assert_eq!(pop.stands_since(1), None);
    pop.cut.clear();
    pop.run(SECOND);
    assert!(pop.stands_since(1) > since);
}

#[test]
fn who_is_cut_off_is_void_where_more_than_half_is_and_hears_of_it() {
    let mut pop = warmed_up(9, 5, 2);
    pop.run(DEAD_AFTER);
    pop.mind_all();
    pop.part(&[1]);
    pop.run(DEAD_AFTER + 2 * SECOND);
    for at in 2..=5 {
        assert_eq!(pop.void(at), [1], "at {at}");
        // Not before every answer to the other side has lost its worth.
        let when = |is: fn(&Event) -> bool| {
            let mut events = pop.machines[&at].events.iter();
            events.find(|(_, event)| is(event)).unwrap().0
        };
        let dead = when(|event| matches!(event, Event::Dead { .. }));
        let void = when(|event| matches!(event, Event::Void { .. }));
        assert!(void > dead + DEAD_AFTER / 5, "{dead} {void}");
    }
    assert_eq!((pop.void(1), pop.stands_since(1)), (vec![], None));
    // Its agent begins anew, and the cut ends: it hears of it before it stands.
    pop.restart_agent(1);
    pop.cut.clear();
    let mut acted = Acted([(1, 1)].into());
    acted.run(&mut pop, 10 * SECOND);
    assert!(pop.stands_since(1).is_some() && pop.judged_here(1) == 1);
    assert_eq!(pop.void(2), NOBODY);
    // The next judgement counts anew.
    pop.part(&[1]);
    pop.run(DEAD_AFTER + 2 * SECOND);
    pop.cut.clear();
    pop.run(5 * SECOND);
    assert!(pop.judged_here(1) >= 2);
}

/// The only one on both sides forgets what it has confirmed.
#[test]
fn an_agent_that_has_begun_since_the_freeze_cannot_say_that_nobody_acted() {
    let mut pop = warmed_up(12, 3, 1);
    pop.mind_all();
    pop.freeze(1);
    pop.part(&[1]);
    pop.run(DEAD_AFTER + 2 * SECOND);
    assert_eq!(pop.void(2), [1]);
    pop.restart_agent(3);
    pop.cut.clear();
    pop.part(&[2]);
    pop.run(30 * SECOND);
    assert_eq!((pop.judged_here(1), pop.stands_since(1)), (0, None));
    assert!(pop.counters(1).polls_answered_young > 0);
    // For a session that is frozen from now on it can.
    pop.freeze(1);
    pop.run(SECOND);
    assert!(pop.stands_since(1).is_some());
}

#[test]
fn half_of_a_pop_voids_nobody_for_good_though_it_judges() {
    for hosts in [2, 4] {
        let mut pop = warmed_up(10, hosts, 2);
        pop.run(DEAD_AFTER);
        pop.mind_all();
        let half: Vec<_> = (1..=hosts / 2).collect();
        pop.part(&half);
        pop.run(60 * SECOND);
        for at in 1..=hosts {
            assert!(!pop.dead(at).is_empty(), "it is judged");
            assert_eq!(pop.void(at), NOBODY);
            assert!(pop.stands_since(at).is_some());
        }
    }
}

#[test]
fn it_costs_nothing_while_nobody_minds() {
    let mut pop = warmed_up(11, 9, 3);
    pop.part(&[1]);
    pop.run(10 * SECOND);
    for host in 1..=9 {
        assert_eq!(pop.counters(host).polls, 0);
        assert_eq!(pop.void(host), NOBODY);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is cut off, however much is lost, and whichever agents begin anew: no host
    /// stands well, for a session that it has frozen, that another has taken for void since,
    /// unless it has heard of it.
    #[test]
    fn who_stands_has_heard_of_every_judgement_that_anybody_acted_on(
        seed: u64, hosts in 3u16..8, domains in 1u16..3, loss in 0u32..20
    ) {
        let mut pop = warmed_up(seed, hosts, domains);
        pop.run(DEAD_AFTER);
        pop.mind_all();
        pop.loss_percent = loss;
        let mut acted = Acted::default();
        for host in 1..=hosts {
            pop.freeze(host);
        }
        for _ in 0..10 {
            match pop.rng.random_range(0..7) {
                0 => pop.cut.clear(),
                3 => {
                    let one = pop.rng.random_range(1..=hosts);
                    pop.freeze(one);
                    acted.0.remove(&one);
                }
                1 => {
                    let one = pop.rng.random_range(1..=hosts);
                    pop.restart_agent(one);
                }
                2 => {
                    let from = pop.rng.random_range(1..=hosts);
                    let to = pop.rng.random_range(1..=hosts);
                    pop.cut.insert((from, to));
                }
                _ => {
                    pop.cut.clear();
                    let one = pop.rng.random_range(1..=2);
                    let some: Vec<_> = (1..=hosts).filter(|_| pop.rng.random_bool(0.2)).collect();
                    pop.part(&some);
                    pop.part(&[one]);
                }
            }
            let pause = pop.rng.random_range(0..2 * DEAD_AFTER);
            acted.run(&mut pop, pause);
        }
    }
}
