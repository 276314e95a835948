//! Chosen histories: what is lost and how it is found, how long things take and
//! what they cost.

use std::time::Duration;

use homing_common::{host::HostId, session::SessionId};

use super::Pop;
use crate::{
    gossip::{log::LOG_RECORDS, wire::bulk::PART_RECORDS_MAX},
    pop::{MS, SECOND},
};

/// A POP in which nothing goes wrong, with its windows open.
fn settled(hosts: u16) -> Pop {
    let mut pop = Pop::new(1, hosts, true);
    pop.start_all();
    // Not on a full second, when heartbeats fly.
    pop.run(4 * SECOND + 321 * MS);
    pop
}

#[test]
fn announcement_arrives_at_once_and_costs_two_kinds_of_datagrams() {
    let mut pop = settled(4);
    let before = pop.flown;
    pop.open(1, 77, 0);
    pop.run(150);
    for host in 2..=4 {
        assert_eq!(pop.routes(host).get(&SessionId(77)), Some(&HostId(1)));
    }
    // One copy to the neighbour by multicast, one each to the two elsewhere.
    assert_eq!(pop.flown - before, 3);
    let (node, _) = pop.machines[&2].agent.as_ref().unwrap();
    assert_eq!(node.gossip().latency().samples(), 1);
    assert!(node.gossip().latency().max_us() <= 100);
}

#[test]
fn announcements_close_together_share_a_datagram() {
    let mut pop = settled(2);
    for id in 0..100 {
        pop.open(1, id, 0);
        pop.run(2);
    }
    let before = pop.counters(1).batches_sent;
    pop.run(MS);
    pop.assert_converged();
    assert!(before <= 2 && pop.counters(1).batches_sent <= 3, "{before}");
}

#[test]
fn lost_announcements_are_repaired_within_a_blink() {
    let mut pop = settled(4);
    // Lost in the middle: the next batch shows the gap.
    pop.faults.loss_percent = 100;
    pop.open(1, 1, 0);
    pop.run(MS);
    pop.faults.loss_percent = 0;
    pop.open(1, 2, 0);
    pop.run(10 * MS);
    pop.assert_converged();
    // Lost at the end: the heartbeat after the batch does.
    pop.faults.loss_percent = 100;
    pop.open(1, 3, 0);
    pop.run(MS);
    pop.faults.loss_percent = 0;
    pop.run(40 * MS);
    pop.assert_converged();
    assert_eq!(pop.counters(2).repairs_asked, 2);
    assert_eq!(pop.counters(2).syncs_done, 3, "only the first ones");
}

#[test]
fn gap_beyond_the_log_ends_in_a_full_sync() {
    let mut pop = settled(2);
    pop.faults.loss_percent = 100;
    for n in 0..LOG_RECORDS {
        pop.open(1, n % 1_000, 0);
        if n % 500 == 0 {
            pop.run(MS);
        }
    }
    pop.close(1, 5);
    pop.faults.loss_percent = 0;
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).syncs_done, 2);
}

#[test]
fn difference_that_no_gap_shows_is_found_by_the_digest() {
    let mut pop = settled(2);
    pop.open(1, 5, 0);
    pop.run(3 * SECOND);
    let (node, _) = pop.machines.get_mut(&2).unwrap().agent.as_mut().unwrap();
    node.corrupt_for_test(HostId(1), SessionId(5));
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).digest_mismatches, 1);
}

#[test]
fn joining_host_learns_a_large_set_though_carriers_break() {
    // Two parts.
    const SESSIONS: u64 = PART_RECORDS_MAX as u64 + 4_000;
    let mut pop = Pop::new(1, 3, true);
    let sessions = (0..SESSIONS).map(|id| (SessionId(id), (id % 3) as u16));
    pop.machines.get_mut(&1).unwrap().sessions = sessions.collect();
    pop.start(1);
    pop.start(2);
    pop.run(SECOND);
    pop.faults.loss_percent = 5;
    pop.faults.broken_percent = 30;
    pop.start(3);
    let mut routes = 0;
    for _ in 0..200 {
        pop.run(100 * MS);
        routes = pop.routes(3).len() as u64;
        assert!(routes == 0 || routes == SESSIONS, "a part of a snapshot");
    }
    assert_eq!(routes, SESSIONS);
    pop.assert_converged();
    let lost = pop.counters(1).snapshots_lost;
    assert!(lost > 0 && pop.counters(3).syncs_failed > 0, "{lost}");
}

#[test]
fn agent_that_restarts_keeps_all_routes_meanwhile_here_and_elsewhere() {
    let mut pop = settled(3);
    for id in 0..50 {
        pop.open(1, id, 0);
        pop.open(2, 100 + id, 0);
    }
    pop.run(SECOND);
    let hold = Duration::from_secs(2);
    pop.leave(1, hold);
    for step in 0..40 {
        pop.run(100 * MS);
        if step == 10 {
            assert!(pop.machines[&1].agent.is_none());
            pop.close(1, 7);
            pop.start(1);
        }
        let expected = if step <= 10 { 100 } else { 99 };
        let found = pop.routes(3).len();
        assert!(found == 100 || found == expected, "step {step}: {found}");
        assert_eq!(pop.routes(1).len(), 50);
    }
    pop.run(SECOND);
    pop.assert_converged();
}

#[test]
fn claims_of_a_leaver_are_void_once_its_hold_is_over() {
    for (hold, kept) in [(Duration::ZERO, false), (Duration::from_secs(2), true)] {
        let mut pop = settled(4);
        pop.open(1, 5, 0);
        pop.run(SECOND);
        pop.leave(1, hold);
        pop.run(SECOND);
        for host in 2..=4 {
            assert_eq!(pop.routes(host).contains_key(&SessionId(5)), kept);
        }
        pop.run(2 * SECOND);
        pop.assert_converged();
    }
}

#[test]
fn claims_of_a_vanished_agent_stand_until_void_after() {
    let mut pop = settled(4);
    pop.open(1, 5, 0);
    pop.run(SECOND);
    pop.kill(1);
    // Down after some two seconds, void three later.
    pop.run(4 * SECOND);
    assert!(pop.routes(2).contains_key(&SessionId(5)));
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert_eq!(pop.counters(2).voided_claims, 1);
}

#[test]
fn new_incarnation_voids_at_once_and_an_old_one_is_raised() {
    for step in [10, -10] {
        let mut pop = settled(4);
        for id in 0..10 {
            pop.open(1, id, 0);
        }
        pop.run(SECOND);
        pop.reboot(1, step);
        pop.open(1, 3, 0);
        pop.run(SECOND);
        pop.assert_converged();
        assert!(pop.machines[&1].stream.incarnation > 1_000);
    }
}

#[test]
fn claims_are_void_as_soon_as_the_new_incarnation_is_known() {
    let mut pop = settled(3);
    pop.open(1, 5, 0);
    pop.run(SECOND);
    // A restarted agent in the same kernel life is another matter.
    for (is_new, left) in [(false, 1), (true, 0)] {
        if is_new {
            pop.reboot(1, 10);
        } else {
            pop.kill(1);
            pop.start(1);
        }
        let stream = pop.machines[&1].stream;
        for host in 2..=3 {
            let knows = |pop: &Pop| {
                let seen = pop.seen(host, 1).and_then(|view| view.member);
                seen.is_some_and(|member| member.stream == stream)
            };
            while !knows(&pop) {
                pop.run(5);
            }
            // No snapshot can have come in less than a round trip.
            assert_eq!(pop.routes(host).len(), left);
        }
        pop.run(SECOND);
    }
}

#[test]
fn life_that_only_hearsay_knows_to_be_outdated_is_raised_without_a_storm() {
    let mut pop = settled(5);
    pop.kill(1);
    // Agents that restart one by one never hear host 1 themselves: they learn of
    // it from each other, and then that it is down.
    for host in 2..=5 {
        pop.kill(host);
        pop.start(host);
        pop.run(200 * MS);
    }
    pop.run(4 * SECOND);
    pop.reboot(1, -10);
    let flown = pop.flown;
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.machines[&1].stream.incarnation, 1_001);
    assert!(pop.flown - flown < 1_000);
}

#[test]
fn domain_without_working_multicast_falls_back_to_unicast() {
    let mut pop = Pop::new(3, 4, true);
    pop.faults.deaf_domain = Some(1);
    pop.start_all();
    pop.run(4 * SECOND);
    pop.open(1, 9, 0);
    pop.run(MS);
    pop.assert_converged();
    assert!(pop.counters(1).multicast_unheard > 0);
}

#[test]
fn table_that_was_full_heals_when_room_appears() {
    let mut pop = Pop::new(2, 3, true);
    pop.table_limit = 20;
    for host in 1..=3 {
        let table = pop.new_table();
        pop.machines.get_mut(&host).unwrap().table = Some(table);
    }
    pop.start_all();
    pop.run(2 * SECOND);
    for id in 0..40 {
        pop.open(1, id, 0);
    }
    pop.run(SECOND);
    assert_eq!(pop.routes(2).len(), 20);
    for id in 0..20 {
        pop.close(1, id);
    }
    pop.run(SECOND);
    pop.assert_converged();
    assert_eq!(pop.routes(2).len(), 20);
}

#[test]
fn claims_that_did_not_fit_are_fetched_when_there_is_room() {
    let mut pop = Pop::new(2, 2, true);
    pop.claims_max = 20;
    pop.start_all();
    pop.run(2 * SECOND);
    for id in 0..40 {
        pop.open(1, id, 0);
    }
    pop.run(5 * SECOND);
    assert_eq!(pop.routes(2).len(), 20);
    let syncs = pop.counters(2).syncs_done;
    for id in 0..25 {
        pop.close(1, id);
    }
    pop.run(3 * SECOND);
    pop.assert_converged();
    assert!(pop.counters(2).syncs_done - syncs <= 2, "no storm of syncs");
}

#[test]
fn forty_hosts_join_and_agree() {
    let mut pop = Pop::new(4, 40, true);
    for host in 1..=40 {
        for n in 0..20 {
            pop.open(host, u64::from(host) * 100 + n, 0);
        }
    }
    pop.start_all();
    pop.run(6 * SECOND);
    pop.assert_converged();
}
