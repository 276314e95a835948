//! Several hosts, each with tables of its own that may be wrong in any way and change
//! at any time: every packet comes to an end within two hops between hosts, and none
//! goes back to the host it came from.

use homing_common::{
    control::Control,
    host::{Encapsulation, TunnelNetwork},
    moving::Phase,
    net::TCP,
    outcome::{Outcome, Verdict},
    session::Tuple,
};
use homing_tests::{
    packet::{Ip, Tcp, flags, segment},
    program::{self, Action, LOOPBACK, Program, in_namespace},
    random::{Random, cases},
};

use super::{
    common::{TUNNELS, assert_end, outer},
    flows, related,
};

/// A POP's hosts, each with its own program and maps.
pub struct Pop {
    pub hosts: Vec<Program>,
    tunnel: TunnelNetwork,
}

impl Pop {
    pub fn new(tunnel: TunnelNetwork, encapsulation: Encapsulation, hosts: u16) -> Self {
        let host = |id| {
            let mut settings = program::settings(tunnel, encapsulation);
            settings.host.0 = id;
            settings.tunnel_address = tunnel.address_of(settings.host);
            let mut program = program::host(settings).unwrap();
            for other in (1..=hosts).filter(|other| *other != id) {
                let template = program::template(&settings, other, LOOPBACK, None);
                program.add_host(other, template).unwrap();
            }
            program
        };
        Self {
            hosts: (1..=hosts).map(host).collect(),
            tunnel,
        }
    }

    pub fn host(&mut self, id: u16) -> &mut Program {
        &mut self.hosts[usize::from(id) - 1]
    }

    /// Lets a frame come in at a host and follows it. Returns the hosts it came to,
    /// and how it ended.
    pub fn follow(&mut self, first: u16, frame: Vec<u8>) -> (Vec<u16>, Outcome) {
        self.follow_with(first, frame, |_, _, _| {})
    }

    /// The same, with a word before each host: its id, and the frame that comes to it.
    fn follow_with(
        &mut self,
        first: u16,
        frame: Vec<u8>,
        mut before: impl FnMut(&mut Self, u16, &mut Vec<u8>),
    ) -> (Vec<u16>, Outcome) {
        let (mut at, mut frame, mut way) = (first, frame, vec![first]);
        loop {
            before(self, at, &mut frame);
            let run = self.host(at).run(&frame).unwrap();
            if run.action != Action::Tx {
                return (way, run.outcome);
            }
            let (from, to) = self.ends(&run.frame);
            assert_eq!(from, at, "it does not say who sent it");
            (at, frame) = (to, run.frame);
            way.push(at);
        }
    }

    /// The hosts that an outer header leads from and to.
    fn ends(&self, frame: &[u8]) -> (u16, u16) {
        let id = |at: usize| {
            let bits = if self.tunnel.is_v4() {
                u64::from(u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()))
            } else {
                u64::from_be_bytes(frame[at..at + 8].try_into().unwrap())
            };
            self.tunnel.host_of(bits).unwrap().0
        };
        if self.tunnel.is_v4() {
            (id(26), id(30))
        } else {
            (id(22), id(38))
        }
    }

    /// Takes the mark from a tunnel packet that a host which does not know it would
    /// neither write nor read.
    fn unmark(&self, frame: &mut [u8]) {
        if self.tunnel.is_v4() {
            frame[14 + 5] &= !2;
        } else {
            frame[14 + 23] = 1;
        }
    }
}

/// What a host believes of the one session.
#[derive(Debug)]
struct Belief {
    owner: Option<u16>,
    closed: bool,
    flags: u32,
    alive: bool,
    rendezvous: (u16, u16),
    /// The phase and the other host of a move.
    moving: Option<(Phase, u16)>,
}

/// The one session.
#[derive(Clone, Copy)]
struct One {
    id: u64,
    tuple: Tuple,
}

/// `Control`'s flags are what `Belief` takes them to be.
const _: () = assert!(Control::SYNCED | Control::DRAINING == 3);

impl Belief {
    /// Anything, in a POP of so many hosts.
    fn any(random: &mut Random, hosts: u16) -> Self {
        let mut host = || random.below(u64::from(hosts) + 1) as u16;
        let (owner, rendezvous, peer) = (host(), (host(), host()), host());
        let phase = Phase::of(random.below(12) as u8);
        Self {
            owner: (owner > 0).then_some(owner),
            closed: random.below(4) == 0,
            flags: random.below(4) as u32,
            alive: random.below(4) > 0,
            rendezvous,
            moving: phase.map(|phase| (phase, peer)),
        }
    }

    fn tell(&self, program: &mut Program, one: One) {
        let id = one.id;
        match self.owner {
            Some(owner) => program.set_owner_of(id, owner).unwrap(),
            None => program.clear_owner_of(id).unwrap(),
        }
        // Long ago is as good as never.
        let ago_ns = if self.closed { 0 } else { 1 << 40 };
        program.set_closed_of(id, ago_ns).unwrap();
        let (first, second) = self.rendezvous;
        program.set_rendezvous_of(id, first, second).unwrap();
        let tell = |control: &mut Control| {
            control.flags = self.flags;
            control.beat_ns = if self.alive { u64::MAX } else { 0 };
        };
        program.control(tell).unwrap();
        match self.moving {
            Some((phase, peer)) => program.set_moving(one.tuple, phase, peer).unwrap(),
            None => program.clear_moving(&one.tuple).unwrap(),
        }
    }
}

/// A tunnel of each family and encapsulation.
const EACH_FAMILY: [Tunnel; 2] = [TUNNELS[0], TUNNELS[3]];

/// Hosts of the largest POP.
const MANY: u16 = 8;

/// A packet of a session of its own, and the session.
fn any_packet(random: &mut Random, program: &Program, session: u16) -> (Ip, One) {
    const FLAGS: [u8; 6] = [
        flags::ACK,
        flags::ACK,
        flags::SYN,
        flags::RST,
        flags::FIN | flags::ACK,
        flags::SYN | flags::ACK,
    ];
    let v4 = random.below(2) == 0;
    let mut segment = segment(v4, FLAGS[random.below(6) as usize]);
    segment.source.set_port(10_000 + session);
    let (client, service) = (segment.source.to_string(), segment.destination.to_string());
    let (packet, protocol) = match random.below(4) {
        0 => (flows::datagram(&client, &service), flows::UDP),
        1 => {
            let sent = Tcp::new(&service, &client, flags::ACK).payload([9; 64]);
            (related::unreachable_about(&sent.ip()), TCP)
        }
        _ => (segment.ip(), TCP),
    };
    let tuple = Tuple::between(segment.source, segment.destination, protocol);
    let id = tuple.id(&program.settings().session_key).0;
    (packet, One { id, tuple })
}

type Tunnel = (fn() -> TunnelNetwork, Encapsulation);

/// Lets `body` have a POP of each kind, so many times a random packet, and the hosts
/// that take part: from two to all.
fn with_sessions(
    tunnels: &[Tunnel],
    plain: u64,
    mut body: impl FnMut(&mut Pop, &mut Random, u16, Ip, One, &mut Vec<Belief>) + Send,
) {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(|| {
        let mut random = Random::new(seed);
        for (tunnel, encapsulation) in tunnels {
            let mut pop = Pop::new(tunnel(), *encapsulation, MANY);
            for program in &mut pop.hosts {
                for service in [
                    homing_tests::packet::SERVICE_V4,
                    homing_tests::packet::SERVICE_V6,
                ] {
                    program.add_service_of(service, flows::UDP).unwrap();
                }
            }
            for session in 0..cases(plain).min(50_000) as u16 {
                let hosts = 2 + random.below(u64::from(MANY) - 1) as u16;
                let (packet, one) = any_packet(&mut random, &pop.hosts[0], session);
                let belief = |_| Belief::any(&mut random, hosts);
                let mut beliefs: Vec<_> = (0..hosts).map(belief).collect();
                for (belief, program) in beliefs.iter().zip(&mut pop.hosts) {
                    belief.tell(program, one);
                }
                body(&mut pop, &mut random, hosts, packet, one, &mut beliefs);
                // The tables are for the next ones.
                for program in &mut pop.hosts {
                    program.clear_owner_of(one.id).unwrap();
                    program.clear_moving(&one.tuple).unwrap();
                }
            }
        }
    });
}

fn assert_never_back(way: &[u16], what: &str) {
    for pair in way.windows(2) {
        assert_ne!(pair[0], pair[1], "to itself: {what}");
    }
    for three in way.windows(3) {
        assert_ne!(three[0], three[2], "back: {what}");
    }
}

#[test]
fn no_belief_makes_a_loop() {
    with_sessions(&TUNNELS, 150, |pop, random, hosts, packet, one, beliefs| {
        let first = 1 + random.below(u64::from(hosts)) as u16;
        let (mut way, mut outcome) = pop.follow(first, packet.frame(&[]));
        if outcome == Outcome::Asked {
            // Held and given back, once somebody is known to own it.
            let at = *way.last().unwrap();
            let (_, held) = pop.host(at).parked().unwrap().pop().unwrap();
            let owner = 1 + random.below(u64::from(hosts)) as u16;
            pop.host(at).set_owner_of(one.id, owner).unwrap();
            beliefs[usize::from(at) - 1].owner = Some(owner);
            let (rest, end) = pop.follow(at, held);
            way.extend(&rest[1..]);
            outcome = end;
        }
        let what = format!("{packet:?} {way:?} {outcome:?} {beliefs:?}");
        assert_ne!(outcome.verdict(), Verdict::Forward, "{what}");
        assert!(way.len() <= 3, "more than two hops: {what}");
        assert_never_back(&way, &what);
        // The second hop is one that a table of owners led to, or a move.
        if let [_, between, _] = way[..] {
            let belief = &beliefs[usize::from(between) - 1];
            assert!(belief.owner.is_some() || belief.moving.is_some(), "{what}");
        }
        // Nothing of this needs the hop limit.
        assert_ne!(outcome, Outcome::TunnelHops, "{what}");
    });
}

#[test]
fn no_change_of_mind_makes_a_loop() {
    with_sessions(&EACH_FAMILY, 80, |pop, random, hosts, packet, one, _| {
        let first = 1 + random.below(u64::from(hosts)) as u16;
        let (way, outcome) = pop.follow_with(first, packet.frame(&[]), |pop, _, _| {
            let host = 1 + random.below(u64::from(hosts)) as u16;
            Belief::any(random, hosts).tell(pop.host(host), one);
        });
        let what = format!("{packet:?} {way:?} {outcome:?}");
        assert!(way.len() <= 3, "more than two hops: {what}");
        assert_never_back(&way, &what);
    });
}

#[test]
fn among_hosts_that_know_no_marks_the_hop_limit_ends_what_circles() {
    let mut longest = 0;
    with_sessions(&EACH_FAMILY, 80, |pop, random, hosts, packet, _, _| {
        let old: Vec<_> = (0..hosts).map(|_| random.below(2) == 0).collect();
        let is_old = |host: u16| old[usize::from(host) - 1];
        let first = 1 + random.below(u64::from(hosts)) as u16;
        let mut before_at = None;
        let (way, outcome) = pop.follow_with(first, packet.frame(&[]), |pop, at, frame| {
            if before_at.is_some_and(|before| is_old(before) || is_old(at)) {
                pop.unmark(frame);
            }
            before_at = Some(at);
        });
        let what = format!("{packet:?} {way:?} {outcome:?} {old:?}");
        let hop_limit = usize::from(pop.hosts[0].settings().hop_limit);
        assert!(way.len() <= 1 + hop_limit, "{what}");
        assert_never_back(&way, &what);
        // Two in a row that know marks end it.
        for (at, two) in way.windows(2).enumerate().skip(1) {
            let ends = at + 2 == way.len();
            assert!(is_old(two[0]) || is_old(two[1]) || ends, "{what}");
        }
        longest = longest.max(way.len());
    });
    assert!(longest > 3, "no old host made a difference");
}

#[test]
fn what_was_sent_on_once_says_so_and_is_not_sent_on_again() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut pop = Pop::new(tunnel(), encapsulation, 4);
            for v4 in [true, false] {
                for (packet, protocol) in [
                    (segment(v4, flags::ACK).ip(), 6),
                    (segment(v4, flags::SYN).ip(), 6),
                    (related::unreachable(v4), 6),
                    (datagram(v4), flows::UDP),
                ] {
                    let session = segment(v4, 0);
                    let (client, service) =
                        (session.source.to_string(), session.destination.to_string());
                    let id = pop.hosts[0].id_of(&client, &service, protocol).unwrap();
                    for (host, owner) in [(1, 2), (2, 3), (3, 4)] {
                        let program = pop.host(host);
                        program.add_service_of(&service, protocol).unwrap();
                        program.set_owner_of(id, owner).unwrap();
                    }
                    let (way, outcome) = pop.follow(1, packet.frame(&[]));
                    assert_eq!((way, outcome), (vec![1, 2, 3], Outcome::TunnelAgain));

                    // By whatever means it was marked, and with hops left.
                    let mut arriving = outer(pop.host(3), 2, 3, &packet, id);
                    let run = pop.host(3).run(&arriving.frame(&[])).unwrap();
                    assert_end(&run, Action::Tx, Outcome::SentOn);
                    arriving = marked(arriving);
                    arriving.ttl = 1;
                    let run = pop.host(3).run(&arriving.frame(&[(0x8100, 5)])).unwrap();
                    assert_end(&run, Action::Drop, Outcome::TunnelAgain);
                }
            }
        }
    });
}

fn datagram(v4: bool) -> Ip {
    let session = segment(v4, 0);
    let (client, service) = (session.source.to_string(), session.destination.to_string());
    flows::datagram(&client, &service)
}

/// A tunnel packet with the mark of one that was sent on.
pub fn marked(outer: Ip) -> Ip {
    marked_as(outer, 2)
}

/// A tunnel packet with a mark.
pub fn marked_as(mut outer: Ip, mark: u8) -> Ip {
    match &mut outer.source {
        std::net::IpAddr::V4(_) => outer.id = mark.into(),
        std::net::IpAddr::V6(source) => {
            let mut octets = source.octets();
            octets[15] = mark;
            *source = octets.into();
        }
    }
    outer
}
