//! One move, and at every single event of it something is killed or cut, and comes back
//! after a while.

use super::*;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blow {
    Agent(u16),
    Agents,
    Application(u16),
    AgentAndApplication(u16),
    Kernel(u16),
    Link,
    Isolated(u16),
    KernelBehindCut,
}

impl Blow {
    const ALL: [Self; 14] = [
        Self::Agent(1),
        Self::Agent(2),
        Self::Agents,
        Self::Application(1),
        Self::Application(2),
        Self::AgentAndApplication(1),
        Self::AgentAndApplication(2),
        Self::Kernel(1),
        Self::Kernel(2),
        Self::Link,
        Self::Isolated(1),
        Self::Isolated(2),
        Self::KernelBehindCut,
        Self::Isolated(3),
    ];

    fn strike(self, pop: &mut Pop) {
        match self {
            Self::Agent(host) => pop.kill_agent(host),
            Self::Agents => [1, 2].into_iter().for_each(|host| pop.kill_agent(host)),
            Self::Application(host) => pop.kill_application(host),
            Self::AgentAndApplication(host) => {
                pop.kill_agent(host);
                pop.kill_application(host);
            }
            Self::Kernel(host) => pop.kill_kernel(host),
            Self::Link => pop.cut(1, 2),
            Self::Isolated(host) => pop.isolate(host),
            // The source's last words are lost.
            Self::KernelBehindCut => {
                pop.isolate(1);
                pop.run(1_500 * MS);
                pop.kill_kernel(1);
            }
        }
    }

    /// Whether a session may end by this.
    fn is_deadly(self) -> bool {
        !matches!(
            self,
            Self::Agent(_) | Self::Agents | Self::Link | Self::Isolated(_)
        )
    }
}

/// Events of a move in which nothing goes wrong.
fn events(hosts: u16) -> usize {
    let mut pop = Pop::new(0, hosts);
    pop.open(1, 1);
    let before = pop.worked;
    pop.command(1, 2, 1);
    pop.run(500 * MS);
    assert_eq!(pop.served_at(1), Some(2));
    pop.worked - before
}

fn strike_at(event: usize, blow: Blow, back_after: u64, hosts: u16) -> Pop {
    let mut pop = Pop::new(event as u64, hosts);
    pop.open(1, 1);
    pop.command(1, 2, 1);
    pop.run_events(event);
    blow.strike(&mut pop);
    pop.run(back_after);
    pop.heal();
    pop
}

/// Whatever is killed or cut at whatever event, and whenever it comes back: never two
/// hosts answer, no copy is stale, nothing is left in the end, and a session that nobody
/// serves has gone with its kernel or application, or is counted.
#[test]
fn whatever_dies_at_any_step_one_host_answers_and_nothing_is_left() {
    for hosts in [2, 3] {
        for event in 0..=events(hosts) {
            for blow in Blow::ALL {
                if blow == Blow::Isolated(3) && hosts == 2 {
                    continue;
                }
                for back_after in [0, 30 * MS, 1_200 * MS, 6 * SECOND, 70 * SECOND] {
                    eprintln!("{hosts} hosts, event {event}, {blow:?}, back after {back_after}");
                    let mut pop = strike_at(event, blow, back_after, hosts);
                    pop.run(QUIET);
                    pop.assert_settled();
                    if !blow.is_deadly() && back_after < pop.limits.doubt / 2 {
                        assert!(pop.served_at(1).is_some(), "{:?}", pop.outcomes());
                        assert!(!pop.is_lost(&tuple(1)));
                    }
                }
            }
        }
    }
}

/// As soon as the two hosts reach each other again, the session is served.
#[test]
fn service_goes_on_as_soon_as_there_is_a_path() {
    let blows = Blow::ALL.into_iter().filter(|blow| !blow.is_deadly());
    for blow in blows {
        for event in 0..=events(3) {
            for back_after in [30 * MS, 1_200 * MS, 6 * SECOND] {
                eprintln!("event {event}, {blow:?}, back after {back_after}");
                let mut pop = strike_at(event, blow, back_after, 3);
                // A step's bound, and the longest time until something is repeated.
                pop.run(pop.limits.step + 2 * SECOND);
                assert!(pop.served_at(1).is_some(), "{:?}", pop.outcomes());
            }
        }
    }
}

/// A cut between the two that is never healed costs a moment, while a third host reaches
/// both.
#[test]
fn a_third_host_is_path_enough() {
    for event in 0..=events(3) {
        eprintln!("event {event}");
        let mut pop = Pop::new(event as u64, 3);
        pop.open(1, 1);
        pop.command(1, 2, 1);
        pop.run_events(event);
        pop.cut(1, 2);
        pop.run(pop.limits.step + SECOND);
        assert!(pop.served_at(1).is_some(), "{:?}", pop.outcomes());
        pop.run(QUIET);
        pop.assert_settled();
        assert!(!pop.is_lost(&tuple(1)));
    }
}

/// The source's kernel dies once the target is prepared and before the release: the
/// target serves as soon as the POP knows.
#[test]
fn a_prepared_target_serves_once_the_source_is_void() {
    let mut served = 0;
    for event in 0..=events(3) {
        let mut pop = strike_at(event, Blow::Kernel(1), 10 * SECOND, 3);
        served += u32::from(pop.counters(2).taken_over_void > 0);
        let is_served = pop.served_at(1) == Some(2);
        assert!(pop.counters(2).taken_over_void == 0 || is_served);
        pop.run(QUIET);
        pop.assert_settled();
    }
    assert!(served > 1, "{served}");
}
