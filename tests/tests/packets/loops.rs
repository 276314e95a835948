//! Three hosts, each with tables of its own that may be wrong in any way: every
//! packet comes to an end, and none goes back to the host it came from.

use homing_common::{
    control::Control,
    host::{Encapsulation, TunnelNetwork},
    outcome::Outcome,
};
use homing_tests::{
    packet::{flags, segment},
    program::{self, Action, Program, in_namespace, tunnel_v4, tunnel_v6},
    random::Random,
};

pub const HOSTS: u16 = 3;

/// A POP's hosts, each with its own program and maps.
pub struct Pop {
    pub hosts: Vec<Program>,
    tunnel: TunnelNetwork,
}

impl Pop {
    pub fn new(tunnel: TunnelNetwork, encapsulation: Encapsulation) -> Self {
        let hosts = (1..=HOSTS).map(|id| {
            let mut settings = program::settings(tunnel, encapsulation);
            settings.host.0 = id;
            settings.tunnel_address = tunnel.address_of(settings.host);
            program::host(settings).unwrap()
        });
        Self {
            hosts: hosts.collect(),
            tunnel,
        }
    }

    pub fn host(&mut self, id: u16) -> &mut Program {
        &mut self.hosts[usize::from(id) - 1]
    }

    /// Lets a frame come in at a host and follows it. Returns the hosts it came to,
    /// and how it ended.
    pub fn follow(&mut self, first: u16, frame: Vec<u8>) -> (Vec<u16>, Outcome) {
        let (mut at, mut frame, mut way) = (first, frame, vec![first]);
        loop {
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
}

/// What a host believes of the one session.
#[derive(Debug)]
struct Belief {
    owner: Option<u16>,
    closed: bool,
    flags: u32,
    alive: bool,
    rendezvous: (u16, u16),
}

impl Belief {
    fn any(random: &mut Random) -> Self {
        let owner = random.below(u64::from(HOSTS) + 1) as u16;
        Self {
            owner: (owner > 0).then_some(owner),
            closed: random.below(4) == 0,
            flags: random.below(4) as u32,
            alive: random.below(4) > 0,
            rendezvous: (
                random.below(u64::from(HOSTS) + 1) as u16,
                random.below(u64::from(HOSTS) + 1) as u16,
            ),
        }
    }

    fn tell(&self, program: &mut Program, client: &str, service: &str) {
        if let Some(owner) = self.owner {
            program.set_owner(client, service, owner).unwrap();
        }
        if self.closed {
            program.set_closed(client, service, 0).unwrap();
        }
        let (first, second) = self.rendezvous;
        program
            .set_rendezvous_of(client, service, first, second)
            .unwrap();
        let tell = |control: &mut Control| {
            control.flags = self.flags;
            control.beat_ns = if self.alive { u64::MAX } else { 0 };
        };
        program.control(tell).unwrap();
    }
}

/// `Control`'s flags are what `Belief` takes them to be.
const _: () = assert!(Control::SYNCED | Control::DRAINING == 3);

#[test]
fn no_belief_makes_a_loop() {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(|| {
        let mut random = Random::new(seed);
        for (tunnel, encapsulation) in [
            (tunnel_v4(), Encapsulation::Ipip),
            (tunnel_v6(), Encapsulation::Gue),
        ] {
            let mut pop = Pop::new(tunnel, encapsulation);
            for session in 0..400 {
                one_session(&mut pop, &mut random, session);
            }
        }
    });
}

fn one_session(pop: &mut Pop, random: &mut Random, session: u16) {
    const FLAGS: [u8; 6] = [
        flags::ACK,
        flags::ACK,
        flags::SYN,
        flags::RST,
        flags::FIN | flags::ACK,
        flags::SYN | flags::ACK,
    ];
    let v4 = random.below(2) == 0;
    let mut packet = segment(v4, FLAGS[random.below(6) as usize]);
    packet.source.set_port(10_000 + session);
    let (client, service) = (packet.source.to_string(), packet.destination.to_string());
    let beliefs: Vec<_> = (0..HOSTS).map(|_| Belief::any(random)).collect();
    for (belief, program) in beliefs.iter().zip(&mut pop.hosts) {
        belief.tell(program, &client, &service);
    }
    let first = 1 + random.below(u64::from(HOSTS)) as u16;
    let (way, outcome) = pop.follow(first, packet.frame());
    let what = format!("{way:?} {outcome:?} {beliefs:?}");

    let hop_limit = usize::from(pop.hosts[0].settings().hop_limit);
    assert!(way.len() <= 1 + hop_limit, "{what}");
    assert!(!outcome_moves(outcome), "{what}");
    for pair in way.windows(2) {
        assert_ne!(pair[0], pair[1], "to itself: {what}");
    }
    for three in way.windows(3) {
        assert_ne!(three[0], three[2], "back: {what}");
    }
    // Each step after the first is one that a table of owners led to, and as long as
    // one host has no entry, none leads anywhere twice: it takes three that are
    // wrong to use up the hops.
    let owners = beliefs.iter().filter(|belief| belief.owner.is_some());
    let owners = owners.count();
    if owners < usize::from(HOSTS) {
        assert!(way.len() <= 2 + owners, "a pair made a loop: {what}");
    }
    let between = way.len().max(2) - 1;
    for at in way.iter().take(between).skip(1) {
        assert!(beliefs[usize::from(*at) - 1].owner.is_some(), "{what}");
    }
}

fn outcome_moves(outcome: Outcome) -> bool {
    use homing_common::outcome::Verdict;
    outcome.verdict() == Verdict::Forward
}
