//! Sessions that move from host to host: who is believed to own them meanwhile.

use homing_common::{host::HostId, session::SessionId};
use proptest::prelude::*;

use super::Pop;
use crate::{gossip::machine::Owner, pop::SECOND};

const SESSION: SessionId = SessionId(77);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A session goes round; each source closes its own claim a while after the next host
    /// has announced its own. Whatever is lost, repeated or late meanwhile: no host leads
    /// packets away from where it is claimed, and in the end all lead to where it is.
    #[test]
    fn a_session_is_led_to_where_it_moved_last(
        seed: u64, hosts in 3u16..6, moves in 1u16..6, loss in 0u32..20
    ) {
        let mut pop = Pop::new(seed, hosts, true);
        pop.start_all();
        pop.run(4 * SECOND);
        pop.open(1, SESSION.0, 0);
        pop.run(SECOND);
        pop.faults.loss_percent = loss;
        let mut at = 1;
        for generation in 1..=moves {
            let next = at % hosts + 1;
            pop.open(next, SESSION.0, generation);
            pop.run(SECOND / 10);
            for of in [at, next] {
                let (node, _) = pop.machines[&of].agent.as_ref().unwrap();
                let owner = node.gossip().owner(SESSION);
                prop_assert!(matches!(owner, Some(Owner::Here(_))), "{}: {:?}", of, owner);
                prop_assert_eq!(pop.routes(of).get(&SESSION), None);
            }
            pop.run(SECOND);
            pop.close(at, SESSION.0);
            at = next;
        }
        pop.faults.loss_percent = 0;
        pop.run(10 * SECOND);
        pop.assert_converged();
        for host in (1..=hosts).filter(|host| *host != at) {
            prop_assert_eq!(pop.routes(host).get(&SESSION), Some(&HostId(at)), "at {}", host);
            prop_assert_eq!(pop.counters(host).conflicts, 0);
        }
    }
}

/// The greater generation holds against the greater host id, whichever comes first.
#[test]
fn the_new_hosts_claim_holds_at_once_and_an_older_one_that_comes_late_does_not() {
    let mut pop = Pop::new(3, 4, true);
    pop.start_all();
    pop.run(5 * SECOND);
    pop.open(4, SESSION.0, 6);
    pop.run(SECOND);
    pop.open(2, SESSION.0, 7);
    pop.run(SECOND / 10);
    for host in [1, 3] {
        assert_eq!(pop.routes(host).get(&SESSION), Some(&HostId(2)));
    }
    // The former owner's log says it again.
    pop.open(4, SESSION.0, 6);
    pop.run(SECOND);
    for host in [1, 3] {
        assert_eq!(pop.routes(host).get(&SESSION), Some(&HostId(2)));
    }
    pop.close(4, SESSION.0);
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.routes(4).get(&SESSION), Some(&HostId(2)));
}
