//! What an operator should look at, and what to do about it: one line each, for
//! `homing status`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use homing_common::{host::HostId, limit::Room};

use super::table::Usage;
use crate::{
    datapath::{
        owners::AGAIN_AFTER,
        resolver::{State as WayState, Way},
    },
    gossip::{alerts::Alert, task::HostStatus},
    migration::app::{TurnedAway, remedy},
    mux,
    pop::{Difference, liveness::Kernel, membership::State},
};

/// A member's kernel is heard within moments of its coming up.
const UNHEARD_FOR: Duration = Duration::from_secs(30);

/// Messages to a host are given up when no carrier could be opened for so long.
const FAILING_FOR: Duration = Duration::from_secs(10);

/// For how long what has happened once is named.
const LATELY: Duration = Duration::from_secs(60);

/// This host cannot know whose an unknown session is.
pub(super) const NOT_SYNCED: &str = "the sessions of the whole POP are not known here, so packets of unknown ones are sent to other hosts: this host reaches under half of the POP, does not follow all of it yet (`homing hosts`), or was held up for seconds";

/// What is wrong with other hosts, and the ways to them.
pub(super) fn of_hosts(
    now: SystemTime,
    hosts: &[HostStatus],
    ways: &BTreeMap<HostId, Way>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for host in hosts {
        let id = host.host;
        problems.extend(of_state(now, host));
        if host.state == Some(State::Alive) {
            problems.extend(
                host.difference
                    .and_then(|difference| of_member(id, difference)),
            );
        }
        if host.incomplete {
            problems.push(format!(
                "not all sessions of host {id} are known: there is no room; raise limits.owners"
            ));
        }
        let way = ways.get(&id).filter(|way| way.state != WayState::Resolved);
        if let Some(way) = way.filter(|_| host.routed) {
            problems.push(format!(
                "the way to host {id} is not known ({state}): its packets are dropped; look at `ip route get {address}` and `ip neigh show to {address}`",
                state = way.state,
                address = way.address,
            ));
        }
    }
    problems
}

/// How a host differs that is a member all the same.
fn of_member(id: HostId, difference: Difference) -> Option<String> {
    match difference {
        Difference::Services => Some(format!(
            "host {id} answers for other services than this host: make [[services]] the same on all hosts"
        )),
        Difference::SessionKeys => Some(format!(
            "host {id} and this host do not tell each other of sessions by the key that they look them up by, and ask for each: on the way to another session key one of them has left out a step; look at `homing key show` on both, and restart their agents with the file of the step that is next"
        )),
        Difference::FragmentsKey => Some(format!(
            "fragments that come to host {id} do not meet those that come to this host, and the datagrams are lost: make `fragments` in the key file the same on all hosts (`homing key show`), and restart their agents"
        )),
        Difference::Network | Difference::Addresses => None,
    }
}

/// What is wrong with a host's agent and kernel.
fn of_state(now: SystemTime, host: &HostStatus) -> Option<String> {
    let id = host.host;
    let kernel = host.kernel.map(|kernel| kernel.kernel);
    let for_long = || {
        let since = host.since.and_then(|since| now.duration_since(since).ok());
        since.is_some_and(|since| since >= UNHEARD_FOR)
    };
    Some(match (host.state?, kernel) {
        (State::Mismatched, _) if host.difference == Some(Difference::Addresses) => format!(
            "host {id} is refused, because it answers for none of this host's addresses: give another POP a pop.key_file of its own, or make [[services]] the same on all hosts"
        ),
        (State::Mismatched, _) => format!(
            "host {id} is refused, because it has another tunnel network: give another POP a pop.key_file of its own, or make tunnel.network the same on all hosts"
        ),
        (State::Left, _) | (State::Alive, None | Some(Kernel::Alive { .. })) => return None,
        (State::Alive, Some(Kernel::Unheard)) if !for_long() => return None,
        (State::Alive, Some(Kernel::Unheard)) => format!(
            "host {id}'s fast path has never answered this host: on host {id}, host.interfaces must name the interface of pop.address; look at `homing status` there"
        ),
        (State::Alive, Some(Kernel::Silent { .. })) => format!(
            "host {id}'s agent answers, its fast path does not: look at `homing status` on host {id}"
        ),
        (State::Down, Some(Kernel::Alive { .. })) => format!(
            "host {id} is down: its agent does not answer, but its fast path does, so its sessions stand; look at its agent's log"
        ),
        (_, Some(Kernel::Dead { .. })) => format!(
            "host {id} is dead: neither its agent nor its fast path answers anyone; its sessions are void"
        ),
        (State::Down, Some(Kernel::Silent { .. })) => format!(
            "host {id} is down: neither its agent nor its fast path answers this host, but it is not confirmed dead, so its sessions stand; look at the fabric between"
        ),
        (State::Down, None | Some(Kernel::Unheard)) => format!(
            "host {id} is down: its agent does not answer; look at its log, and at the fabric between"
        ),
    })
}

/// What is wrong in the POP, as a host at this address sees it.
pub(super) fn of_pop(alert: &Alert, address: SocketAddr) -> String {
    match *alert {
        Alert::Stranger { from } => format!(
            "datagrams from {from} have another POP's key or are forged, and are dropped: give each POP a multicast group or port of its own, and all hosts of this POP the same pop.key_file"
        ),
        Alert::TwoMachines { host, one, other } => format!(
            "host id {host} is used by two machines, {one} and {other}: give each a host.id of its own"
        ),
        Alert::Refused { by } => format!(
            "host {by} hears this host's id at another address than {address}, and refuses this host: give each machine a host.id of its own"
        ),
        Alert::Unheard { by } => format!(
            "host {by} does not hear this host's fast path: host.interfaces must name the interface of {address}"
        ),
        Alert::Minority { reached, of } => format!(
            "this host reaches {reached} of {of} hosts, under half of the POP: it voids nothing; look at the fabric"
        ),
        Alert::DoubleClaim { session } => format!(
            "two hosts claim session {session}: `homing owner` names them; packets go to one of them"
        ),
    }
}

/// Members that no carrier can be opened to, though something is to be told to them.
pub(super) fn of_carriers(carriers: &mux::Status, hosts: &[HostStatus]) -> Vec<String> {
    let is_alive = |id: HostId| {
        let alive = |host: &&HostStatus| host.state == Some(State::Alive);
        hosts.iter().filter(alive).any(|host| host.host == id)
    };
    let peers = carriers.peers.iter().filter(|peer| is_alive(peer.host));
    let failing = peers.filter_map(|peer| {
        let mut lines = peer.lines.iter();
        let line = lines.find(|line| {
            line.failing_for.is_some_and(|time| time >= FAILING_FOR)
                && line.failed_ago.is_some_and(|ago| ago < LATELY)
        })?;
        Some(format!(
            "host {id} is up, but no carrier to it can be opened ({why}), so no session can move there, and neither host can learn all sessions of the other: TCP between the hosts' pop.address must pass, and both must have the same keys (`homing carriers`)",
            id = peer.host,
            why = line.problem.as_deref().unwrap_or("no reason was given"),
        ))
    });
    failing.collect()
}

/// An application that was turned away lately.
pub(super) fn of_apps(now: SystemTime, away: Option<TurnedAway>) -> Option<String> {
    let TurnedAway { at, closed } = away?;
    // A clock that was set back makes it no older.
    let ago = now.duration_since(at).unwrap_or_default();
    if ago >= LATELY {
        return None;
    }
    let remedy = remedy(closed.closing);
    Some(format!(
        "an application (process {pid} of user {uid}) was turned away: {why}: {text}; {remedy}",
        pid = closed.peer.pid,
        uid = closed.peer.uid,
        why = closed.closing,
        text = closed.text,
    ))
}

/// What there is no memory for.
fn of_memory(owners: &Usage) -> Option<String> {
    let shortage = owners.growth.shortage.as_ref()?;
    Some(format!(
        "OWNERS cannot grow to {mib} MiB ({why}), and is full at {capacity} sessions of other hosts: give this host, or the agent's cgroup (MemoryMax= of its unit), more memory; it is tried again every {every} s",
        mib = shortage.bytes.div_ceil(1 << 20),
        why = shortage.why,
        capacity = owners.capacity,
        every = AGAIN_AFTER.as_secs(),
    ))
}

/// What does not fit into tables; `crowded` are those that had too little room lately.
pub(super) fn of_tables(
    unplaced: usize,
    owners: &Usage,
    unrecorded: u64,
    crowded: &[Room],
) -> Vec<String> {
    let mut problems = Vec::new();
    let no_memory = of_memory(owners);
    if unplaced > 0 {
        let remedy = match no_memory {
            Some(_) => "it cannot grow",
            None => "raise limits.owners",
        };
        problems.push(format!(
            "{unplaced} sessions have no entry: OWNERS is full; {remedy}"
        ));
    }
    problems.extend(no_memory);
    if unrecorded > 0 {
        problems.push(format!(
            "{unrecorded} sessions of this host are not recorded, and other hosts cannot find them: SESSIONS is full; raise limits.sessions"
        ));
    }
    problems.extend(crowded.iter().map(|room| match room {
        Room::Closed => "this host closes more sessions in a minute than CLOSED holds: the POP is asked about their last packets; raise limits.closed".to_owned(),
        Room::Fragments => "more fragmented datagrams come within seconds than FRAGMENTS holds: fragments of some are lost; raise limits.fragments, or look for a flood of fragments".to_owned(),
        Room::Flows => "more UDP flows begin within seconds than FLOWS holds, so other hosts are told late of those that go on: harmless where a flow is one exchange (DNS), else look for a flood of forged clients".to_owned(),
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::owners::{Growth, Shortage},
        migration::app::{Closed, Closing, Peer},
        pop::Stream,
    };

    #[test]
    fn a_full_table_is_told_from_one_that_lacks_memory() {
        let mut owners = Usage {
            entries: 900,
            capacity: 930_611,
            bytes: 8 << 20,
            growth: Growth {
                failures: 3,
                shortage: None,
            },
        };
        let of = |owners: &Usage, unplaced| of_tables(unplaced, owners, 0, &[]);
        assert_eq!(of(&owners, 0), [""; 0]);
        let full = of(&owners, 7);
        assert!(full.len() == 1 && full[0].ends_with("raise limits.owners"));
        owners.growth.shortage = Some(Shortage {
            bytes: 12 << 20,
            why: "Cannot allocate memory (os error 12)".to_owned(),
        });
        let problem = "OWNERS cannot grow to 12 MiB (Cannot allocate memory (os error 12)), and is full at 930611 sessions of other hosts";
        assert!(of(&owners, 0)[0].starts_with(problem));
        let both = of(&owners, 7);
        assert!(both.len() == 2 && both[1].starts_with(problem));
        assert!(!both.iter().any(|text| text.contains("limits.owners")));
    }

    #[test]
    fn a_member_is_named_that_no_carrier_can_be_opened_to() {
        let line = |failing_s: Option<u64>, failed_s| mux::LineStatus {
            channel: 1,
            carriers: 0,
            opening: false,
            queued: 1,
            ready: 0,
            queued_bytes: 300,
            messages_delivered: 0,
            bytes_delivered: 0,
            problem: failing_s.map(|_| "connection refused".into()),
            failing_for: failing_s.map(Duration::from_secs),
            failed_ago: failing_s.map(|_| Duration::from_secs(failed_s)),
        };
        let status = |lines: [mux::LineStatus; 2]| mux::Status {
            address: ([10, 0, 0, 1], 7946).into(),
            key: 1,
            queued_bytes: 0,
            handshakes: 0,
            accepted: 0,
            counters: mux::Counters::default(),
            peers: vec![mux::PeerStatus {
                host: HostId(2),
                stream: Stream::default(),
                accepted: 0,
                messages_received: 0,
                bytes_received: 0,
                lines: lines.into(),
            }],
        };
        let host = |state| HostStatus {
            state: Some(state),
            ..HostStatus::unheard(HostId(2))
        };
        let of = |failing_s, failed_s, state| {
            let status = status([line(None, 0), line(failing_s, failed_s)]);
            of_carriers(&status, &[host(state)])
        };
        let named = of(Some(11), 1, State::Alive);
        let wanted = "host 2 is up, but no carrier to it can be opened (connection refused)";
        assert!(
            named.len() == 1 && named[0].starts_with(wanted),
            "{named:?}"
        );
        // Not yet; no more; and who is down is named for that.
        for (failing_s, failed_s, state) in [
            (None, 0, State::Alive),
            (Some(9), 1, State::Alive),
            (Some(90), 60, State::Alive),
            (Some(11), 1, State::Down),
        ] {
            assert_eq!(of(failing_s, failed_s, state), [""; 0]);
        }
    }

    #[test]
    fn an_application_that_was_turned_away_is_named_for_a_minute() {
        let at = SystemTime::now();
        let away = |closing| TurnedAway {
            at,
            closed: Closed {
                peer: Peer {
                    pid: 4711,
                    uid: 33,
                    gid: 33,
                },
                closing,
                text: "this agent speaks version 1",
            },
        };
        let of = |closing, later_s| of_apps(at + Duration::from_secs(later_s), Some(away(closing)));
        let named = of(Closing::Version, 59).expect("named");
        let wanted = "an application (process 4711 of user 33) was turned away: another version of the protocol: this agent speaks version 1; ";
        assert!(named.starts_with(wanted), "{named}");
        assert_eq!(of(Closing::Version, 60), None);
        assert!(of(Closing::TooLarge, 0).is_some_and(|text| text.contains("apps.state_max")));
        assert_eq!(of_apps(at, None), None);
    }
}
