use std::net::{IpAddr, SocketAddr};

use homing_common::net::{Address, Port, TCP};

use super::*;
use crate::pop::{Domain, Fingerprint, SECOND};

fn member(host: u16, generation: u64) -> Member {
    Member {
        host: HostId(host),
        stream: Stream {
            incarnation: 100,
            generation,
        },
        renewal: 0,
        address: address(host),
        domain: Domain::try_from("rack-1").unwrap(),
        fingerprint: Fingerprint::default(),
        leaving: None,
        draining: false,
        offers: 0,
    }
}

fn address(host: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([10, 0, 0, host as u8]), 7946)
}

/// Hosts on a perfect network; those in `cut` are not heard and hear nothing.
struct Net {
    now: u64,
    nodes: BTreeMap<HostId, Membership>,
    cut: Vec<HostId>,
    changes: Vec<(HostId, u64, Change)>,
}

impl Net {
    fn new(hosts: u16) -> Self {
        let mut net = Self {
            now: 0,
            nodes: BTreeMap::new(),
            cut: Vec::new(),
            changes: Vec::new(),
        };
        for host in 1..=hosts {
            net.start(member(host, 1));
        }
        net
    }

    fn start(&mut self, me: Member) {
        let seed = Seed {
            host: HostId(1),
            address: address(1),
        };
        let random = [me.host.0 as u8; 32];
        let node = Membership::new(self.now, me, vec![seed], random);
        self.nodes.insert(me.host, node);
    }

    fn run(&mut self, for_us: u64) {
        let end = self.now + for_us;
        loop {
            self.deliver();
            let next = self.nodes.values().map(Membership::next_time).min();
            match next {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => break,
            }
            for node in self.nodes.values_mut() {
                node.on_time(self.now);
            }
        }
        self.now = end;
    }

    fn deliver(&mut self) {
        loop {
            let mut batch = Vec::new();
            for (host, node) in &mut self.nodes {
                while let Some(out) = node.poll_outgoing() {
                    batch.push((*host, node.me().stream, out));
                }
            }
            if batch.is_empty() {
                break;
            }
            for (from, stream, out) in batch {
                if self.cut.contains(&from) || self.cut.contains(&out.to) {
                    continue;
                }
                assert_eq!(out.address, address(out.to.0));
                if let Some(node) = self.nodes.get_mut(&out.to) {
                    node.receive(self.now, from, stream, &out.body);
                }
            }
        }
        for (host, node) in &mut self.nodes {
            let now = self.now;
            self.changes
                .extend(std::iter::from_fn(|| node.take_change()).map(|c| (*host, now, c)));
        }
    }

    fn state(&self, at: u16, of: u16) -> Option<State> {
        self.nodes[&HostId(at)].entry(HostId(of)).map(|e| e.state)
    }

    fn changes_about(&mut self, of: u16) -> Vec<(HostId, u64, Change)> {
        let (about, rest) = std::mem::take(&mut self.changes).into_iter().partition(
            |(_, _, change)| match change {
                Change::Up(m) | Change::Down(m) | Change::Left(m, _) | Change::Mismatched(m) => {
                    m.host == HostId(of)
                }
            },
        );
        self.changes = rest;
        about
    }
}

#[test]
fn hosts_find_each_other_through_one_seed() {
    let mut net = Net::new(40);
    net.run(3 * SECOND);
    for a in 1..=40 {
        for b in 1..=40 {
            assert_eq!(net.state(a, b), (a != b).then_some(State::Alive), "{a} {b}");
        }
    }
}

#[test]
fn vanished_host_is_down_everywhere_within_three_seconds() {
    let mut net = Net::new(5);
    net.run(3 * SECOND);
    net.changes.clear();
    net.cut = vec![HostId(3)];
    let start = net.now;
    net.run(4 * SECOND);
    for (at, when, change) in net.changes_about(3) {
        assert!(matches!(change, Change::Down(_)), "{at:?}: {change:?}");
        assert!(
            when - start <= 3_200 * MS,
            "{at:?} after {} ms",
            (when - start) / MS
        );
    }
    for at in [1, 2, 4, 5] {
        assert_eq!(net.state(at, 3), Some(State::Down));
    }
    // Back again: nobody restarted, and all are members as before.
    net.cut.clear();
    net.run(8 * SECOND);
    for at in [1, 2, 4, 5] {
        assert_eq!(net.state(at, 3), Some(State::Alive));
        assert_eq!(net.state(3, at), Some(State::Alive));
    }
}

#[test]
fn leaver_is_left_everywhere_at_once_and_may_return() {
    let mut net = Net::new(5);
    net.run(3 * SECOND);
    net.changes.clear();
    let hold = Duration::from_millis(1_500);
    let now = net.now;
    net.nodes.get_mut(&HostId(2)).unwrap().leave(now, hold);
    net.run(200 * MS);
    assert!(net.nodes[&HostId(2)].has_left());
    let told = net.changes_about(2);
    assert_eq!(told.len(), 4);
    for (_, when, change) in told {
        assert!(
            matches!(change, Change::Left(_, h) if h == hold),
            "{change:?}"
        );
        assert!(when - now < 100 * MS);
    }
    net.start(member(2, 2));
    net.run(2 * SECOND);
    for at in [1, 3, 4, 5] {
        assert_eq!(net.state(at, 2), Some(State::Alive));
        let entry = net.nodes[&HostId(at)].entry(HostId(2)).unwrap();
        assert_eq!(entry.member.stream.generation, 2);
    }
}

#[test]
fn leave_that_only_one_member_hears_reaches_all_with_its_hold() {
    let mut net = Net::new(6);
    net.run(3 * SECOND);
    net.changes.clear();
    let now = net.now;
    net.cut = vec![HostId(3), HostId(4), HostId(5), HostId(6)];
    net.nodes
        .get_mut(&HostId(2))
        .unwrap()
        .leave(now, Duration::from_secs(30));
    net.deliver();
    net.nodes.remove(&HostId(2));
    net.cut.clear();
    net.run(2 * SECOND);
    let told = net.changes_about(2);
    assert_eq!(told.len(), 5);
    for (at, _, change) in told {
        assert!(matches!(change, Change::Left(..)), "{at:?}: {change:?}");
    }
}

#[test]
fn restarted_agent_replaces_its_earlier_life_without_going_down() {
    let mut net = Net::new(4);
    net.run(3 * SECOND);
    net.changes.clear();
    net.start(member(3, 2));
    net.run(2 * SECOND);
    for (_, _, change) in net.changes_about(3) {
        assert!(
            matches!(change, Change::Up(m) if m.stream.generation == 2),
            "{change:?}"
        );
    }
    for at in [1, 2, 4] {
        assert_eq!(net.state(at, 3), Some(State::Alive));
    }
}

#[test]
fn new_life_begun_in_place_is_a_later_one() {
    let mut net = Net::new(4);
    net.run(3 * SECOND);
    net.changes.clear();
    let later = Stream {
        incarnation: 200,
        generation: 1,
    };
    let now = net.now;
    net.nodes.get_mut(&HostId(3)).unwrap().restart(now, later);
    net.run(2 * SECOND);
    for at in [1, 2, 4] {
        let entry = net.nodes[&HostId(at)].entry(HostId(3)).unwrap();
        assert_eq!((entry.state, entry.member.stream), (State::Alive, later));
    }
}

#[test]
fn what_a_host_offers_is_known_to_all_and_stays() {
    let mut net = Net::new(5);
    net.run(4 * SECOND);
    for (offers, told) in [(1, 1), (6, 7), (2, 7)] {
        let now = net.now;
        let host = net.nodes.get_mut(&HostId(3)).unwrap();
        host.add_offers(now, offers);
        net.run(2 * SECOND);
        for at in [1, 2, 4, 5] {
            let entry = net.nodes[&HostId(at)].entry(HostId(3)).unwrap();
            assert_eq!(entry.member.offers, told, "{at}");
        }
    }
}

#[test]
fn whether_a_host_drains_is_known_to_all_and_to_whom_joins_later() {
    let mut net = Net::new(12);
    net.run(4 * SECOND);
    net.changes.clear();
    for draining in [true, false, true] {
        let now = net.now;
        let host = net.nodes.get_mut(&HostId(5)).unwrap();
        host.set_draining(now, draining);
        net.run(2 * SECOND);
        for at in (1..=12).filter(|at| *at != 5) {
            let entry = net.nodes[&HostId(at)].entry(HostId(5)).unwrap();
            assert_eq!(entry.state, State::Alive, "{at}");
            assert_eq!(entry.member.draining, draining, "{at}");
        }
        let told = net.changes_about(5);
        let ups = told.iter().all(|(_, _, c)| matches!(c, Change::Up(_)));
        assert!(ups, "{told:?}");
    }
    net.start(member(13, 1));
    net.run(3 * SECOND);
    let entry = net.nodes[&HostId(13)].entry(HostId(5)).unwrap();
    assert!(entry.member.draining);
    // It goes on probing: it finds out when another vanishes.
    net.cut = vec![HostId(7)];
    net.run(6 * SECOND);
    assert_eq!(net.state(5, 7), Some(State::Down));
}

#[test]
fn host_with_other_tunnels_is_no_member() {
    let mut net = Net::new(3);
    net.start(Member {
        fingerprint: Fingerprint {
            network: 2,
            ..Fingerprint::default()
        },
        ..member(4, 1)
    });
    net.run(3 * SECOND);
    for at in 1..=3 {
        assert_eq!(net.state(at, 4), Some(State::Mismatched));
        assert_eq!(net.state(4, at), Some(State::Mismatched));
    }
    assert!(
        net.changes_about(4)
            .iter()
            .all(|(_, _, c)| matches!(c, Change::Mismatched(_)))
    );
}

/// All services are exchanged for others, host by host: whoever is ahead is no member to
/// the others, and they to it, until they have followed.
#[test]
fn hosts_that_exchange_their_services_one_after_the_other_meet_again() {
    let service = |last| Service::new(Address::v4([192, 0, 2, last]), Port::new(443), TCP);
    let mut net = Net::new(0);
    for host in 1..=3 {
        let one = member(host, 1);
        let fingerprint = one.fingerprint.with_services(&[service(1)]);
        net.start(Member { fingerprint, ..one });
    }
    net.run(3 * SECOND);
    let exchange = |net: &mut Net, host| {
        let node = net.nodes.get_mut(&HostId(host)).unwrap();
        node.set_services(net.now, &[service(2)]);
        net.run(3 * SECOND);
    };
    exchange(&mut net, 1);
    let states = |net: &Net| {
        [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)].map(|(at, of)| net.state(at, of).unwrap())
    };
    use State::{Alive, Mismatched};
    let first = [Mismatched, Mismatched, Mismatched, Mismatched, Alive, Alive];
    assert_eq!(states(&net), first);
    exchange(&mut net, 2);
    let second = [Alive, Alive, Mismatched, Mismatched, Mismatched, Mismatched];
    assert_eq!(states(&net), second);
    exchange(&mut net, 3);
    assert_eq!(states(&net), [Alive; 6]);
    assert!(
        net.changes
            .iter()
            .all(|(_, _, c)| !matches!(c, Change::Down(_)))
    );
}

#[test]
fn a_lone_host_joins_by_seeds_that_it_is_given_later() {
    let mut net = Net::new(1);
    let lone = Membership::new(0, member(2, 1), Vec::new(), [2; 32]);
    net.nodes.insert(HostId(2), lone);
    net.run(30 * SECOND);
    assert_eq!(net.state(2, 1), None);
    let seed = Seed {
        host: HostId(1),
        address: address(1),
    };
    let node = net.nodes.get_mut(&HostId(2)).unwrap();
    node.set_seeds(net.now, vec![seed]);
    net.run(SECOND / 2);
    assert_eq!(net.state(2, 1), Some(State::Alive));
    assert_eq!(net.state(1, 2), Some(State::Alive));
}

#[test]
fn halves_of_a_split_pop_find_each_other_again() {
    let mut net = Net::new(2);
    net.run(2 * SECOND);
    net.cut = vec![HostId(1)];
    net.run(20 * SECOND);
    assert_eq!(net.state(2, 1), Some(State::Down));
    assert!(net.nodes[&HostId(2)].is_alone());
    net.cut.clear();
    net.run(5 * SECOND);
    assert_eq!(net.state(2, 1), Some(State::Alive));
    assert_eq!(net.state(1, 2), Some(State::Alive));
}

#[test]
fn host_that_was_falsely_reported_down_goes_on_probing_at_once() {
    use foca::{Codec as _, Header, Message};
    let mut net = Net::new(3);
    net.run(3 * SECOND);
    // "You are down", says host 1, and is never heard again, nor is host 3.
    let [one, two] = [1, 2].map(|host| *net.nodes[&HostId(host)].me());
    let header = Header {
        src: one,
        src_incarnation: 0,
        dst: two,
        message: Message::TurnUndead,
    };
    let mut body = Vec::new();
    Wire.encode_header(&header, &mut body).unwrap();
    let now = net.now;
    net.cut = vec![HostId(1), HostId(3)];
    let node = net.nodes.get_mut(&HostId(2)).unwrap();
    node.receive(now, HostId(1), one.stream, &body);
    assert_eq!(node.counters.rejoins, 1);
    net.run(6 * SECOND);
    assert_eq!(net.state(2, 1), Some(State::Down));
    assert_eq!(net.state(2, 3), Some(State::Down));
}

#[test]
fn message_in_another_name_is_refused() {
    let mut net = Net::new(3);
    net.run(2 * SECOND);
    let node = net.nodes.get_mut(&HostId(2)).unwrap();
    node.leave(0, Duration::ZERO);
    let out = std::iter::from_fn(|| node.poll_outgoing())
        .find(|o| o.to == HostId(1))
        .unwrap();
    let stream = member(3, 1).stream;
    let one = net.nodes.get_mut(&HostId(1)).unwrap();
    one.receive(net.now, HostId(3), stream, &out.body);
    assert_eq!(one.counters.messages_refused, 1);
    assert_eq!(net.state(1, 2), Some(State::Alive));
}

#[test]
fn no_message_panics() {
    use proptest::prelude::*;
    let mut net = Net::new(2);
    net.run(2 * SECOND);
    let me = net.nodes.remove(&HostId(1)).unwrap();
    let me = std::cell::RefCell::new(me);
    let mut head = Vec::new();
    member(2, 1).encode(&mut head);
    head.extend_from_slice(&[0, 0]);
    me.borrow().me().encode(&mut head);
    proptest!(|(tail in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..120)| {
        let body = [&head[..head.len().min(cut)], &tail].concat();
        me.borrow_mut().receive(0, HostId(2), member(2, 1).stream, &body);
        let body = [&head[..], &tail].concat();
        me.borrow_mut().receive(0, HostId(2), member(2, 1).stream, &body);
    });
}

#[test]
fn a_host_that_speaks_without_being_known_is_asked_who_it_is() {
    let mut net = Net::new(2);
    let stranger = member(3, 1);
    let nobody = Membership::new(0, stranger, Vec::new(), [3; 32]);
    net.nodes.insert(stranger.host, nobody);
    net.run(SECOND);
    assert_eq!(net.state(1, 3), None, "it has no seeds");
    // It is heard by other ways than membership's own, again and again.
    let heard = |net: &mut Net| {
        let (now, host) = (net.now, stranger.host);
        let node = net.nodes.get_mut(&HostId(1)).unwrap();
        node.meet(now, host, stranger.stream, stranger.address);
        node.counters.spoken_to
    };
    assert_eq!((0..100).map(|_| heard(&mut net)).max(), Some(1));
    net.run(10 * MS);
    for (at, of) in [(1, 3), (3, 1)] {
        assert_eq!(net.state(at, of), Some(State::Alive), "{of} at {at}");
    }
    net.run(SECOND);
    assert_eq!(heard(&mut net), 1, "it is known by now");
    assert_eq!(net.state(2, 3), Some(State::Alive));
}

/// A host that knows host 2, and a message of host 2 with accounts of others.
fn gossip_of_two(accounts: &[foca::Member<Member>]) -> (Membership, Vec<u8>) {
    let mut net = Net::new(2);
    net.run(2 * SECOND);
    let one = net.nodes.remove(&HostId(1)).unwrap();
    let header = foca::Header {
        src: member(2, 1),
        src_incarnation: 0,
        dst: member(1, 1),
        message: foca::Message::Gossip,
    };
    let mut body = Vec::new();
    foca::Codec::encode_header(&mut Wire, &header, &mut body).unwrap();
    body.extend((accounts.len() as u16).to_be_bytes());
    for account in accounts {
        foca::Codec::encode_member(&mut Wire, account, &mut body).unwrap();
    }
    (one, body)
}

#[test]
fn what_is_said_of_a_second_machine_is_left_out_and_nothing_else() {
    let second = |host, state| {
        let mut second = member(host, 9);
        second.stream.incarnation = 900;
        second.address = address(77);
        foca::Member::new(second, 3, state)
    };
    let accounts = [
        foca::Member::new(member(3, 1), 1, foca::State::Alive),
        second(2, foca::State::Alive),
        second(1, foca::State::Alive),
        second(2, foca::State::Down),
        foca::Member::new(member(4, 1), 1, foca::State::Suspect),
    ];
    let (mut one, body) = gossip_of_two(&accounts);
    one.receive(3 * SECOND, HostId(2), member(2, 1).stream, &body);
    assert_eq!(one.counters.contested, 3);
    assert_eq!(one.counters.messages_refused, 0);
    let state = |host| {
        one.entry(HostId(host))
            .map(|entry| (entry.state, entry.member.address))
    };
    assert_eq!(state(2), Some((State::Alive, address(2))));
    assert_eq!(state(3), Some((State::Alive, address(3))));
    assert_eq!(state(4), Some((State::Alive, address(4))));
    assert_eq!(
        (one.me().address, one.me().stream),
        (address(1), member(1, 1).stream)
    );
    let contest = Contest {
        host: HostId(2),
        holder: address(2),
        other: address(77),
    };
    assert_eq!(one.take_contest(), Some(contest));
}

#[test]
fn a_host_that_has_moved_is_believed_once_its_old_life_has_ended() {
    let mut moved = member(2, 2);
    moved.address = address(77);
    let account = foca::Member::new(moved, 1, foca::State::Alive);
    let (mut one, body) = gossip_of_two(&[account]);
    // Another one tells of it, a moment before the old life is missed.
    let body = {
        let mut from_three = body.clone();
        let mut head = Vec::new();
        member(2, 1).encode(&mut head);
        let mut three = Vec::new();
        member(3, 1).encode(&mut three);
        from_three.splice(..head.len(), three);
        from_three
    };
    one.receive(2 * SECOND, HostId(3), member(3, 1).stream, &body);
    assert_eq!(one.entry(HostId(2)).unwrap().member.address, address(2));
    let known = |one: &Membership| {
        let entry = one.entry(HostId(2)).unwrap();
        (entry.state, entry.member.address)
    };
    while known(&one) == (State::Alive, address(2)) && one.next_time() < 8 * SECOND {
        one.on_time(one.next_time());
    }
    assert_eq!(known(&one), (State::Alive, address(77)));
}
