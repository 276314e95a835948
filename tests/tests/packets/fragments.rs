//! Fragments: those of one datagram meet on one host and go to its owner together.

use homing_common::{
    control::Control,
    host::Encapsulation,
    limit::{Limit, Room},
    outcome::{Hook, Outcome},
    park::{Datagram, PARKED_FRAME_MAX, Why},
    session::{SessionKey, Tuple},
};
use homing_tests::{
    packet::{ICMP, ICMPV6, Ip, Tcp, flags, icmp, segment, udp},
    program::{
        Action, Program, host, host_1, in_namespace, monotonic_ns, settings, tunnel_v4, tunnel_v6,
    },
    random::Random,
};

use super::{
    common::{TUNNELS, assert_end, outer},
    flows::UDP,
    local::Handshake,
    loops::Pop,
};

/// Hosts of a POP.
const HOSTS: u16 = 3;

/// The fragments of a segment with some payload.
fn pieces(v4: bool, flags: u8, id: u32) -> Vec<Ip> {
    let mut packet = segment(v4, flags).payload(vec![0x5a; 400]).ip();
    packet.frags = 0;
    packet.fragments(id, 128)
}

fn own(program: &mut Program, v4: bool, host: u16) {
    let session = segment(v4, 0);
    let (client, service) = (session.source.to_string(), session.destination.to_string());
    program.set_owner(&client, &service, host).unwrap();
}

#[test]
fn wherever_they_land_and_in_whatever_order_they_end_at_the_owner() {
    let seed = Random::fresh_seed();
    println!("seed {seed}");
    in_namespace(|| {
        let mut random = Random::new(seed);
        for (tunnel, encapsulation) in [
            (tunnel_v4(), Encapsulation::Ipip),
            (tunnel_v4(), Encapsulation::Gue),
            (tunnel_v6(), Encapsulation::Ipip),
            (tunnel_v6(), Encapsulation::Gue),
        ] {
            let mut pop = Pop::new(tunnel, encapsulation, HOSTS);
            // Each meets another way: every host is asked to agree on it.
            for meeting in 1..=HOSTS {
                for host in &mut pop.hosts {
                    host.set_rendezvous(meeting, meeting % HOSTS + 1).unwrap();
                }
                for owner in 1..=HOSTS {
                    for v4 in [true, false] {
                        gather(&mut pop, &mut random, meeting, owner, v4);
                    }
                }
            }
        }
    });
}

/// Lets the fragments of one datagram come in anywhere, in any order; what is held is
/// given back once it can go.
fn gather(pop: &mut Pop, random: &mut Random, meeting: u16, owner: u16, v4: bool) {
    // Only foreign sessions have entries; a SYN is taken by a host that knows no owner.
    for host in 1..=HOSTS {
        let program = pop.host(host);
        if host == owner {
            let session = segment(v4, 0);
            let (client, service) = (session.source.to_string(), session.destination.to_string());
            program.clear_owner(&client, &service).unwrap();
        } else {
            own(program, v4, owner);
        }
    }
    let mut pieces = pieces(v4, flags::SYN, random.below(1 << 16) as u32);
    random.shuffle(&mut pieces);
    let mut arrived = 0;
    for piece in &pieces {
        let first = 1 + random.below(u64::from(HOSTS)) as u16;
        let (way, outcome) = pop.follow(first, piece.frame(&[]));
        let what = format!("{way:?} {outcome:?}, meeting {meeting}, owner {owner}");
        if outcome == Outcome::FragmentHeld {
            assert_eq!(way.last(), Some(&meeting), "{what}");
            continue;
        }
        let local = [Outcome::FragmentLocal, Outcome::StrippedFragment];
        assert!(local.contains(&outcome), "{what}");
        assert_eq!(way.last(), Some(&owner), "{what}");
        assert!(way.len() <= 3 && way.contains(&meeting), "{what}");
        arrived += 1;
    }
    let parked = pop.host(meeting).parked().unwrap();
    let (decided, held): (Vec<_>, Vec<_>) = parked
        .into_iter()
        .partition(|(head, _)| head.why == Why::Decided as u16);
    assert_eq!(decided.len(), usize::from(!held.is_empty()));
    for (head, frame) in held {
        assert_eq!(head.why, Why::Fragment as u16);
        assert!(head.datagram == decided[0].0.datagram);
        let (way, _) = pop.follow(meeting, frame);
        assert_eq!(way.last(), Some(&owner));
        assert!(way.len() <= 2, "{way:?}");
        arrived += 1;
    }
    assert_eq!(arrived, pieces.len());
}

#[test]
fn what_goes_to_the_owner_is_marked_and_whole() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            for v4 in [true, false] {
                own(&mut program, v4, 3);
                for (n, piece) in pieces(v4, flags::ACK, 77).iter().enumerate() {
                    let run = program.run(&piece.frame(&[(0x8100, 5)])).unwrap();
                    assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
                    let entropy = entropy_of(&program, piece, 77) | 1;
                    let mut expected = outer(&program, 1, 3, piece, entropy);
                    expected.id = 1;
                    assert_eq!(run.frame[14..], expected.bytes(), "piece {n}");
                }
                // Elsewhere they are sent to where they meet, without a mark.
                program.set_rendezvous(2, 3).unwrap();
                for piece in pieces(v4, flags::ACK, 78) {
                    let run = program.run(&piece.frame(&[])).unwrap();
                    assert_end(&run, Action::Tx, Outcome::FragmentGathered);
                    let entropy = entropy_of(&program, &piece, 78) & !1;
                    let expected = outer(&program, 1, 2, &piece, entropy);
                    assert_eq!(run.frame[14..], expected.bytes());
                }
                program.set_rendezvous(1, 2).unwrap();
            }
        }
    });
}

fn entropy_of(program: &Program, piece: &Ip, id: u32) -> u64 {
    let protocol = if piece.source.is_ipv4() { 6 } else { 0 };
    let (source, destination) = (piece.source.into(), piece.destination.into());
    let key: &SessionKey = &program.settings().fragments_key;
    Datagram::new(source, destination, id, protocol, key).rest
}

#[test]
fn the_last_bytes_of_a_datagram_are_not_too_few() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            program.set_rendezvous(2, 3).unwrap();
            for v4 in [true, false] {
                for len in [1, 4, 8] {
                    let mut packet = segment(v4, flags::ACK).payload(vec![1; 44 + len]).ip();
                    packet.frags = 0;
                    let last = packet.fragments(3, 64).pop().unwrap();
                    assert_eq!(last.body.len(), len);
                    let run = program.run(&last.frame(&[])).unwrap();
                    assert_end(&run, Action::Tx, Outcome::FragmentGathered);
                    let entropy = entropy_of(&program, &last, 3) & !1;
                    let expected = outer(&program, 1, 2, &last, entropy);
                    assert_eq!(run.frame[14..], expected.bytes());
                }
            }
        }
    });
}

#[test]
fn marked_ones_are_taken_and_others_decided_on() {
    in_namespace(|| {
        for (tunnel, encapsulation) in TUNNELS {
            let mut program = host_1(tunnel(), encapsulation).unwrap();
            // Whatever this host thinks of the session or of where fragments meet.
            own(&mut program, true, 2);
            program.set_rendezvous(3, 2).unwrap();
            for piece in pieces(true, flags::ACK, 5) {
                let mut arriving = outer(&program, 2, 1, &piece, 1);
                arriving.id = 1;
                let run = program.run(&arriving.frame(&[])).unwrap();
                assert_end(&run, Action::Pass, Outcome::StrippedFragment);
                assert_eq!(run.frame, piece.frame(&[]));
            }
            // The owner sent them here to be decided on: back they go, marked.
            for piece in pieces(true, flags::ACK, 6) {
                let mut arriving = outer(&program, 2, 1, &piece, 0);
                let run = program.run(&arriving.frame(&[])).unwrap();
                assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
                arriving.ttl = 1;
                let run = program.run(&arriving.frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::TunnelHops);
            }
            let mut other = pieces(true, flags::ACK, 7)[0].clone();
            other.destination = "203.0.113.11".parse().unwrap();
            let run = program
                .run(&outer(&program, 2, 1, &other, 0).frame(&[]))
                .unwrap();
            assert_end(&run, Action::Drop, Outcome::TunnelNotService);
        }
    });
}

#[test]
fn a_datagram_of_an_unknown_session_is_neither_reset_nor_sent_about() {
    in_namespace(|| {
        for v4 in [true, false] {
            let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
            let pieces = pieces(v4, flags::ACK, 9);
            let run = program.run(&pieces[0].frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::FragmentUnknown);
            let run = program.run(&pieces[1].frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::FragmentHeld);
        }
        // With a socket of it here, they go up.
        let (_handshake, ack) = Handshake::by_request(true);
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let mut packet = ack.payload(vec![1; 64]).ip();
        packet.frags = 0;
        for piece in packet.fragments(9, 48) {
            let run = program.run(&piece.frame(&[])).unwrap();
            assert_end(&run, Action::Pass, Outcome::FragmentLocal);
        }
    });
}

#[test]
fn what_belongs_to_no_session_meets_and_goes_up() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let (source, destination) = {
            let session = segment(true, 0);
            (session.source.ip(), session.destination.ip())
        };
        let ping = icmp((source, destination), 8, 0, [0, 7, 0, 1], &[3; 300]);
        for (protocol, body, id) in [(ICMP, ping, 1), (132, vec![7; 300], 2)] {
            let packet = Ip::new(source, destination, protocol, body);
            for piece in packet.fragments(id, 128) {
                let run = program.run(&piece.frame(&[])).unwrap();
                assert_end(&run, Action::Pass, Outcome::FragmentLocal);
            }
        }
        // A datagram of a session of UDP, and an error about one of TCP.
        let session = segment(true, 0);
        let (client, service) = (session.source.to_string(), session.destination.to_string());
        let id = program.id_of(&client, &service, 17).unwrap();
        program.set_owner_of(id, 2).unwrap();
        own(&mut program, true, 3);
        let datagram = udp(session.source.port(), session.destination.port(), &[1; 300]);
        let back = Tcp::new(&service, &client, flags::ACK)
            .payload(vec![9; 300])
            .ip();
        let error = icmp((source, destination), 3, 1, [0; 4], &back.bytes());
        for (protocol, body, to) in [(17, datagram, 2), (ICMP, error, 3)] {
            let packet = Ip::new(source, destination, protocol, body);
            for piece in packet.fragments(3, 128) {
                let run = program.run(&piece.frame(&[])).unwrap();
                assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
                let at = 14 + 16;
                let address = program
                    .settings()
                    .tunnel
                    .address_of(homing_common::host::HostId(to));
                assert_eq!(run.frame[at..at + 4], address.as_v4().unwrap());
            }
        }
    });
}

#[test]
fn a_flow_of_fragments_comes_to_one_host_that_makes_it_its_own() {
    in_namespace(|| {
        for v4 in [true, false] {
            let mut pop = Pop::new(tunnel_v4(), Encapsulation::Ipip, HOSTS);
            let session = segment(v4, 0);
            let (client, service) = (session.source, session.destination);
            let key = pop.host(1).settings().fragments_key;
            let chosen = Tuple::between(client, service, UDP).id(&key);
            for host in &mut pop.hosts {
                host.add_service_of(&service.to_string(), UDP).unwrap();
                // Datagrams meet at 1 and 2, and the flow belongs to 3.
                host.set_rendezvous_of(chosen.0, 3, 1).unwrap();
            }
            for n in 0..6u32 {
                for host in &mut pop.hosts {
                    let entropy = |id| {
                        let protocol = if v4 { UDP } else { 0 };
                        let key = &host.settings().fragments_key;
                        let (source, destination) = (client.ip().into(), service.ip().into());
                        Datagram::new(source, destination, id, protocol, key).rest
                    };
                    let rest = entropy(n);
                    host.set_rendezvous_of(rest, 1 + n as u16 % 2, 3).unwrap();
                }
                let body = udp(client.port(), service.port(), &[5; 400]);
                let datagram = Ip::new(client.ip(), service.ip(), UDP, body);
                for piece in datagram.fragments(n, 128) {
                    let (way, outcome) = pop.follow(1, piece.frame(&[]));
                    assert_eq!(outcome, Outcome::StrippedFragment, "{way:?}");
                    assert_eq!(way.last(), Some(&3), "{way:?}");
                }
                let told = pop.host(3).hook(Hook::Opened).unwrap();
                assert_eq!(told, u64::from(n >= 3), "after {} datagrams", n + 1);
            }
            for host in [1, 2] {
                assert_eq!(pop.host(host).hook(Hook::Opened).unwrap(), 0);
            }
            // An error about a flow is none of its packets.
            let about = Ip::new(service.ip(), client.ip(), UDP, udp(443, 7, &[5; 400]));
            let between = (client.ip(), service.ip());
            let (kind, protocol) = if v4 { (3, ICMP) } else { (1, ICMPV6) };
            let body = icmp(between, kind, 1, [0; 4], &about.bytes());
            let error = Ip::new(between.0, between.1, protocol, body);
            for _ in 0..6 {
                let run = pop
                    .host(3)
                    .run(&error.fragments(99, 128)[0].frame(&[]))
                    .unwrap();
                assert_end(&run, Action::Pass, Outcome::FragmentLocal);
            }
            assert_eq!(pop.host(3).hook(Hook::Opened).unwrap(), 1);
        }
    });
}

#[test]
fn where_the_agent_has_gone_nothing_meets_unless_nowhere_else() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        own(&mut program, true, 3);
        let piece = &pieces(true, flags::ACK, 5)[0].frame(&[]);
        let silent = |program: &mut Program, ago_ns: u64| {
            let now_ns = monotonic_ns().unwrap();
            program
                .control(|control| control.beat_ns = now_ns - ago_ns)
                .unwrap();
        };
        for (rendezvous, ago_ns, outcome) in [
            ((1, 2), 0, Outcome::FragmentForwarded),
            // Restarting: the others have not noticed.
            ((1, 2), Control::BEAT_MAX_NS, Outcome::FragmentForwarded),
            ((1, 2), Control::AWAY_NS, Outcome::FragmentGathered),
            ((1, 0), Control::AWAY_NS, Outcome::FragmentForwarded),
            ((0, 0), Control::AWAY_NS, Outcome::FragmentForwarded),
        ] {
            program.set_rendezvous(rendezvous.0, rendezvous.1).unwrap();
            silent(&mut program, ago_ns);
            let run = program.run(piece).unwrap();
            assert_end(&run, Action::Tx, outcome);
        }
    });
}

#[test]
fn headers_must_be_in_the_first_fragment_and_not_in_the_next() {
    in_namespace(|| {
        for v4 in [true, false] {
            let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
            own(&mut program, v4, 2);
            let mut packet = segment(v4, flags::ACK).payload(vec![1; 64]).ip();
            packet.frags = 0;
            // 8 and 16 bytes hold no TCP header; what comes at byte 8 overlaps one.
            for len in [8, 16] {
                let pieces = packet.fragments(4, len);
                let run = program.run(&pieces[0].frame(&[])).unwrap();
                assert_end(&run, Action::Drop, Outcome::FragmentTiny);
            }
            let run = program.run(&packet.fragments(4, 8)[1].frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::FragmentTiny);
            let run = program.run(&packet.fragments(5, 24)[0].frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
        }
        // IPv6: a fragment header that is cut short, and one behind another.
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let mut cut = pieces(false, flags::ACK, 1)[0].clone();
        cut.body.clear();
        cut.options.truncate(4);
        let run = program.run(&cut.frame(&[])).unwrap();
        assert_end(&run, Action::Pass, Outcome::Malformed);
        let mut twice = pieces(false, flags::ACK, 1)[0].clone();
        twice.options[0] = 44;
        let run = program.run(&twice.frame(&[])).unwrap();
        assert_end(&run, Action::Drop, Outcome::FragmentTiny);
    });
}

#[test]
fn what_waits_is_handed_over_whole_and_within_limits() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        let later = &pieces(true, flags::ACK, 11)[1];
        let frame = outer(&program, 2, 1, later, 0).frame(&[(0x8100, 9)]);
        let run = program.run(&frame).unwrap();
        assert_end(&run, Action::Drop, Outcome::FragmentHeld);
        let parked = program.parked().unwrap();
        assert_eq!(parked.len(), 1);
        let (head, kept) = &parked[0];
        assert_eq!(*kept, frame);
        assert_eq!((head.why, head.from), (Why::Fragment as u16, 2));
        assert_eq!(head.datagram.rest, entropy_of(&program, later, 11));
        // The first one makes it known once, and the next needs no word.
        own(&mut program, true, 3);
        for (piece, records) in [(0, 1), (0, 1), (1, 0), (2, 0)] {
            let piece = &pieces(true, flags::ACK, 11)[piece];
            let run = program.run(&piece.frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
            let parked = program.parked().unwrap();
            if records == 0 {
                assert!(parked.is_empty());
            }
            for (head, frame) in parked {
                assert_eq!((head.why, frame.len()), (Why::Decided as u16, 0));
            }
        }
        // Longer than can be held, and over the limits.
        let mut long = later.clone();
        long.id = 12;
        long.body = vec![1; PARKED_FRAME_MAX];
        let run = program.run(&long.frame(&[])).unwrap();
        assert_end(&run, Action::Drop, Outcome::FragmentLimited);
        let limits = [
            Limit::Fragments,
            Limit::source(&later.source.into(), &program.settings().session_key),
        ];
        for (limit, id) in limits.into_iter().zip(13..) {
            let mut other = later.clone();
            other.id = id;
            loop {
                program.exhaust(limit).unwrap();
                if program.run(&other.frame(&[])).unwrap().outcome == Outcome::FragmentLimited {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_flood_neither_grows_anything_nor_stops_datagrams_in_order() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        own(&mut program, true, 2);
        for id in 0..3_000u32 {
            let mut piece = pieces(true, flags::ACK, id)[1].clone();
            piece.source = std::net::Ipv4Addr::from(0x0a00_0000 + id).into();
            let run = program.run(&piece.frame(&[])).unwrap();
            let ends = [Outcome::FragmentHeld, Outcome::FragmentLimited];
            assert!(ends.contains(&run.outcome), "{:?}", run.outcome);
        }
        for piece in pieces(true, flags::ACK, 9) {
            let run = program.run(&piece.frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::FragmentForwarded);
        }
    });
}

#[test]
fn datagrams_beyond_what_is_remembered_are_counted() {
    const ROOM: u32 = 64;
    const SENT: u32 = 100;
    in_namespace(|| {
        // Within one life of an entry, however busy the machine is.
        loop {
            let mut settings = settings(tunnel_v4(), Encapsulation::Ipip);
            settings.fragments_entries = ROOM;
            let mut program = host(settings).unwrap();
            own(&mut program, true, 2);
            let life = || monotonic_ns().unwrap() / Room::Fragments.life_ns();
            let before = life();
            for id in 0..SENT {
                // The same datagram again is the same entry.
                for _ in 0..2 {
                    let run = program.run(&pieces(true, flags::ACK, id)[0].frame(&[]));
                    assert_end(&run.unwrap(), Action::Tx, Outcome::FragmentForwarded);
                }
                if id + 1 == ROOM && life() == before {
                    assert_eq!(program.hook(Hook::FragmentsEvicted).unwrap(), 0);
                }
            }
            if life() != before {
                continue;
            }
            let counted = program.hook(Hook::FragmentsEvicted).unwrap();
            assert_eq!(counted, u64::from(SENT - ROOM));
            let kept = program.remembered_datagrams().unwrap();
            assert!(counted <= u64::from(SENT) - kept as u64, "{kept} are left");
            break;
        }
    });
}

#[test]
fn a_fragment_that_is_too_large_is_told_of_once_it_is_the_first() {
    in_namespace(|| {
        let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
        for v4 in [true, false] {
            own(&mut program, v4, 2);
            let mut packet = segment(v4, flags::ACK).payload(vec![1; 4000]).ip();
            packet.frags = 0;
            let pieces = packet.fragments(3, 1480);
            let run = program.run(&pieces[0].frame(&[])).unwrap();
            assert_end(&run, Action::Tx, Outcome::TooBigTold);
            let run = program.run(&pieces[1].frame(&[])).unwrap();
            assert_end(&run, Action::Drop, Outcome::TooBig);
        }
    });
}
