//! Each outcome is reached by some packet, and reported under its own counter.

use std::net::{TcpListener, TcpStream};

use homing_common::{
    control::Control,
    host::{Encapsulation, HostId, Template},
    limit::Limit,
    moving::Phase,
    net::TCP,
    outcome::{Outcome, Verdict},
    session::Tuple,
};
use homing_tests::{
    packet::{CLIENT_V4, Ip, SERVICE_V4, Tcp, flags, segment},
    program::{self, Action, Program, Run, host_1, in_namespace, tunnel_v4},
};

use super::{
    ask,
    common::outer,
    echo, flows,
    local::Handshake,
    loops::{marked, marked_as},
    related::unreachable,
};

/// A packet whose way ends like this. A new outcome does not compile until it has
/// one.
fn reach(outcome: Outcome) -> Run {
    let mut program = host_1(tunnel_v4(), Encapsulation::Ipip).unwrap();
    let ack = segment(true, flags::ACK);
    let owned = |program: &mut Program, host| {
        program.set_owner(CLIENT_V4, SERVICE_V4, host).unwrap();
    };
    program.add_service_of(SERVICE_V4, flows::UDP).unwrap();
    let flow = flows::datagram(CLIENT_V4, SERVICE_V4);
    match outcome {
        Outcome::NotIp => program.run(&[0; 14]),
        Outcome::OwnerUnsure => {
            program.spoil_owners().unwrap();
            program.run(&ack.frame())
        }
        Outcome::NotService => {
            program.run(&Tcp::new(CLIENT_V4, "203.0.113.10:22", flags::SYN).frame())
        }
        Outcome::Malformed => program.run(&ack.frame()[..50]),
        Outcome::Fragment => {
            let mut packet = ack.ip();
            packet.destination = "203.0.113.11".parse().unwrap();
            packet.frags = 0x2000;
            program.run(&packet.frame(&[]))
        }
        Outcome::LocalSyn => program.run(&segment(true, flags::SYN).frame()),
        Outcome::LocalSocket => {
            let (service, source, _sockets) = connection();
            program.add_service(&service).unwrap();
            program.run(&Tcp::new(&source, &service, flags::ACK).frame())
        }
        Outcome::LocalCookie => {
            let (_handshake, ack) = Handshake::by_cookie(true);
            program.run(&ack.frame())
        }
        Outcome::Unknown => program.run(&segment(true, flags::RST).frame()),
        Outcome::StrippedSocket => {
            let (service, source, _sockets) = connection();
            program.add_service(&service).unwrap();
            let inner = Tcp::new(&source, &service, flags::ACK).ip();
            arrive(&mut program, 2, &inner)
        }
        Outcome::StrippedSyn => arrive(&mut program, 2, &segment(true, flags::SYN).ip()),
        Outcome::StrippedCookie => {
            let (_handshake, ack) = Handshake::by_cookie(true);
            arrive(&mut program, 2, &ack.ip())
        }
        Outcome::StrippedUnknown => arrive(&mut program, 2, &segment(true, flags::RST).ip()),
        Outcome::Forwarded => {
            owned(&mut program, 2);
            program.run(&ack.frame())
        }
        Outcome::Redirected => {
            owned(&mut program, 2);
            let elsewhere = program::template(program.settings(), 2, 7, None);
            program.add_host(2, elsewhere).unwrap();
            program.run(&ack.frame())
        }
        Outcome::SentOn => {
            owned(&mut program, 3);
            arrive(&mut program, 2, &ack.ip())
        }
        Outcome::TooBig => {
            owned(&mut program, 3);
            arrive(&mut program, 2, &ack.payload(vec![0; 1460]).ip())
        }
        Outcome::TooBigTold => {
            owned(&mut program, 2);
            program.run(&ack.payload(vec![0; 1460]).frame())
        }
        Outcome::NoWay => {
            owned(&mut program, 2);
            program.add_host(2, Template::NONE).unwrap();
            program.run(&ack.frame())
        }
        Outcome::NoHeadroom => {
            owned(&mut program, 2);
            program.run_with_metadata(&ack.frame(), 200)
        }
        Outcome::TunnelNotMember => arrive(&mut program, 9, &ack.ip()),
        Outcome::TunnelMalformed => {
            let mut packet = outer(&program, 2, 1, &ack.ip(), 0);
            packet.body.truncate(10);
            program.run(&packet.frame(&[]))
        }
        Outcome::TunnelNotService => {
            let inner = Tcp::new(CLIENT_V4, "203.0.113.10:22", flags::SYN).ip();
            arrive(&mut program, 2, &inner)
        }
        Outcome::TunnelNested => {
            let nested = outer(&program, 3, 1, &ack.ip(), 0);
            arrive(&mut program, 2, &nested)
        }
        Outcome::TunnelHops => {
            owned(&mut program, 3);
            let mut packet = outer(&program, 2, 1, &ack.ip(), 0);
            packet.ttl = 1;
            program.run(&packet.frame(&[]))
        }
        Outcome::TunnelAgain => {
            owned(&mut program, 3);
            let packet = marked(outer(&program, 2, 1, &ack.ip(), 0));
            program.run(&packet.frame(&[]))
        }
        Outcome::TunnelBounce => {
            owned(&mut program, 2);
            arrive(&mut program, 2, &ack.ip())
        }
        Outcome::LocalClosed => {
            program.set_closed(CLIENT_V4, SERVICE_V4, 0).unwrap();
            program.run(&ack.frame())
        }
        Outcome::StrippedClosed => {
            program.set_closed(CLIENT_V4, SERVICE_V4, 0).unwrap();
            arrive(&mut program, 2, &ack.ip())
        }
        Outcome::RendezvousSyn => {
            program.set_rendezvous(2, 3).unwrap();
            program.control(|it| it.flags |= Control::DRAINING).unwrap();
            program.run(&segment(true, flags::SYN).frame())
        }
        Outcome::Rendezvous => {
            program.set_rendezvous(2, 3).unwrap();
            program.control(|it| it.flags = 0).unwrap();
            program.run(&ack.frame())
        }
        Outcome::RendezvousNone => {
            program.control(|it| it.flags = 0).unwrap();
            program.run(&ack.frame())
        }
        Outcome::TunnelUnready => {
            program.control(|it| it.flags = 0).unwrap();
            arrive(&mut program, 2, &ack.ip())
        }
        Outcome::Asked => program.run(&ack.frame()),
        Outcome::AskTooLong => program.run(&ack.payload(vec![0; 3000]).frame()),
        Outcome::AskLimitedSource => until(outcome, || {
            program.exhaust(ask::limit(&program, CLIENT_V4))?;
            program.run(&ack.frame())
        }),
        Outcome::AskLimited => until(outcome, || {
            program.exhaust(Limit::Unknown)?;
            program.run(&ack.frame())
        }),
        Outcome::AskFull => {
            let mut source = 0;
            until(outcome, || {
                source += 1;
                program.run(&ask::from(source).payload(vec![0; 1200]).frame())
            })
        }
        Outcome::EchoAnswered => echo::ask(&mut program, |_| {}),
        Outcome::EchoRefused => echo::ask(&mut program, |echo| echo.tag[7] ^= 1),
        Outcome::EchoLimited => until(outcome, || {
            program.exhaust(Limit::Echo(HostId(2)))?;
            echo::ask(&mut program, |_| {})
        }),
        Outcome::IcmpLocal => program.run(&unreachable(true).frame(&[])),
        Outcome::StrippedIcmp => arrive(&mut program, 2, &unreachable(true)),
        Outcome::FragmentLocal => program.run(&pieces(flags::SYN)[0].frame(&[])),
        Outcome::StrippedFragment => arrive(&mut program, 2, &pieces(flags::SYN)[0]),
        Outcome::FragmentGathered => {
            program.set_rendezvous(2, 3).unwrap();
            program.run(&pieces(flags::SYN)[0].frame(&[]))
        }
        Outcome::FragmentForwarded => {
            owned(&mut program, 2);
            program.run(&pieces(flags::ACK)[0].frame(&[]))
        }
        Outcome::FragmentHeld => program.run(&pieces(flags::ACK)[1].frame(&[])),
        Outcome::FragmentLimited => until(outcome, || {
            program.exhaust(Limit::Fragments)?;
            program.run(&pieces(flags::ACK)[1].frame(&[]))
        }),
        Outcome::FragmentTiny => {
            let pieces = ack.payload(vec![0; 64]).ip().fragments(7, 16);
            program.run(&pieces[0].frame(&[]))
        }
        Outcome::FragmentUnknown => program.run(&pieces(flags::ACK)[0].frame(&[])),
        Outcome::LocalFlow => until(outcome, || program.run(&flow.frame(&[]))),
        Outcome::LocalFlowNew => program.run(&flow.frame(&[])),
        Outcome::StrippedFlow => until(outcome, || arrive(&mut program, 2, &flow)),
        Outcome::StrippedFlowNew => arrive(&mut program, 2, &flow),
        Outcome::Diverted => {
            moving(&mut program, Phase::Frozen);
            program.run(&ack.frame())
        }
        Outcome::Parked => {
            moving(&mut program, Phase::Awaiting);
            program.run(&ack.frame())
        }
        Outcome::ParkTooLong => {
            moving(&mut program, Phase::Awaiting);
            program.run(&ack.payload(vec![0; 3000]).frame())
        }
        Outcome::ParkFull => {
            moving(&mut program, Phase::Awaiting);
            until(outcome, || {
                program.exhaust(Limit::Moving)?;
                program.run(&ack.frame())
            })
        }
        Outcome::MovingFragment => {
            moving(&mut program, Phase::Awaiting);
            program.run(&pieces(flags::ACK)[0].frame(&[]))
        }
        Outcome::TunnelStray => {
            let packet = marked_as(outer(&program, 2, 1, &ack.ip(), 0), 4);
            program.run(&packet.frame(&[]))
        }
    }
    .unwrap()
}

/// Makes the test's session move between this host and host 2.
fn moving(program: &mut Program, phase: Phase) {
    let (client, service) = (CLIENT_V4.parse().unwrap(), SERVICE_V4.parse().unwrap());
    let session = Tuple::between(client, service, TCP);
    program.set_moving(session, phase, 2).unwrap();
}

/// The fragments of a segment.
fn pieces(flags: u8) -> Vec<Ip> {
    segment(true, flags)
        .payload(vec![0; 64])
        .ip()
        .fragments(7, 40)
}

fn arrive(program: &mut Program, from: u16, inner: &Ip) -> anyhow::Result<Run> {
    let packet = outer(program, from, 1, inner, 0);
    program.run(&packet.frame(&[]))
}

/// Repeats what in the end has this outcome.
fn until(outcome: Outcome, mut run: impl FnMut() -> anyhow::Result<Run>) -> anyhow::Result<Run> {
    loop {
        let run = run()?;
        if run.outcome == outcome {
            return Ok(run);
        }
    }
}

/// A service's endpoint, a client's, and the sockets that keep their session.
fn connection() -> (String, String, (TcpListener, TcpStream)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = listener.local_addr().unwrap();
    let client = TcpStream::connect(service).unwrap();
    let source = client.local_addr().unwrap();
    (service.to_string(), source.to_string(), (listener, client))
}

#[test]
fn every_outcome_has_a_packet() {
    for outcome in Outcome::ALL {
        let run = in_namespace(|| reach(*outcome));
        assert_eq!(run.outcome, *outcome);
        let action = match outcome.verdict() {
            Verdict::Pass => Action::Pass,
            Verdict::Drop => Action::Drop,
            Verdict::Forward if *outcome == Outcome::Redirected => Action::Redirect,
            Verdict::Forward => Action::Tx,
        };
        assert_eq!(run.action, action, "{outcome:?}");
    }
}
