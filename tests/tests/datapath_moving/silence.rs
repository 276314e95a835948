//! What sockets of moving sessions send: nothing, whatever makes them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use homing_common::{moving::Phase, outcome::Hook, session::Tuple};
use homing_tests::{
    lab::port,
    packet::{flags, segment},
    raw::{Raw, index_of},
    sandbox::{self, eventually, ip},
};

use crate::common::{MOVE, connect, hook, load, reset, session};

/// The same connection as if the client's end were the service.
fn reverse(session: &Tuple) -> Tuple {
    Tuple::new(
        session.service,
        session.service_port,
        session.client,
        session.client_port,
        session.protocol,
    )
}

fn nothing_comes(client: &mut TcpStream) {
    client.set_nonblocking(true).unwrap();
    let error = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
}

#[test]
fn a_socket_that_retransmits_sends_nothing_until_its_move_is_over() {
    // An IPv4 session of a listener for both is an IPv4 session.
    for (listen, to) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[::1]:8080"),
        ("[::]:8080", "127.0.0.1:8080"),
    ] {
        sandbox::run(|sandbox| {
            let to: SocketAddr = to.parse().unwrap();
            let datapath = load(sandbox, to);
            let listener = TcpListener::bind(listen).unwrap();
            let (mut client, mut server) = connect(&listener, to);
            let (mut other, mut other_server) = connect(&listener, to);
            let silenced = || hook(&datapath, Hook::MovingSilenced);
            let it = session(&client);
            let moving = &datapath.moving;

            // The client's acknowledgements are lost, so the server sends again.
            moving.begin(reverse(&it), MOVE, Phase::Frozen).unwrap();
            server.write_all(b"sent once ").unwrap();
            eventually("an acknowledgement is dropped", || silenced() > 0);
            client.read_exact(&mut [0; 10]).unwrap();
            // From now on nobody but the server has anything to say.
            for phase in [Phase::Frozen, Phase::Awaiting] {
                moving.begin(it, MOVE, phase).unwrap();
                let before = silenced();
                eventually("retransmissions are dropped", || silenced() >= before + 2);
                moving.end(&it, MOVE.number).unwrap();
            }
            moving.begin(it, MOVE, Phase::Frozen).unwrap();
            server.write_all(b"and new data").unwrap();
            nothing_comes(&mut client);
            // Other sessions go on.
            other_server.write_all(b"hello").unwrap();
            other.read_exact(&mut [0; 5]).unwrap();

            moving.end(&reverse(&it), MOVE.number).unwrap();
            moving.end(&it, MOVE.number).unwrap();
            let after = silenced();
            let mut rest = [0; 12];
            client
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            client.read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"and new data");
            assert_eq!(silenced(), after);
            reset(client);
        });
    }
}

#[test]
fn the_stack_resets_nothing_that_moves() {
    sandbox::run(|sandbox| {
        let packet = segment(true, flags::ACK);
        let datapath = load(sandbox, packet.destination);
        let pass = sandbox.bpf.join("pass");
        port::pin(&pass).unwrap();
        ip(&format!("link set dev peer0 xdp pinned {}", pass.display()));
        ip("addr add 203.0.113.10/24 dev eth0");
        ip("route add default via 203.0.113.1 dev eth0");
        ip("neigh add 203.0.113.1 lladdr 02:00:00:00:00:fe dev eth0");
        let ifindex = index_of("eth0").unwrap();
        let it = Tuple::between(packet.source, packet.destination, 6);
        let wire = Raw::listener(index_of("peer0").unwrap()).unwrap();
        // A reset has no sequence number but the one that was acknowledged.
        let stray = |number: u32| {
            let mut packet = packet.clone();
            packet.ack = number;
            datapath.injector.up(ifindex, &packet.frame()).unwrap();
        };
        let is_reset = |frame: &[u8]| frame.len() >= 54 && frame[47] & flags::RST != 0;

        datapath.moving.begin(it, MOVE, Phase::Released).unwrap();
        stray(1);
        eventually("the reset is dropped", || {
            hook(&datapath, Hook::MovingSilenced) == 1
        });
        datapath.moving.end(&it, MOVE.number).unwrap();
        // What comes next is the first that leaves.
        stray(2);
        let mut buffer = [0; 4096];
        let number = loop {
            let patience = Duration::from_secs(5);
            let frame = wire
                .receive(&mut buffer, patience)
                .unwrap()
                .expect("no reset");
            if is_reset(frame) {
                break u32::from_be_bytes(frame[38..42].try_into().unwrap());
            }
        };
        assert_eq!(number, 2);
        assert_eq!(hook(&datapath, Hook::MovingSilenced), 1);
    });
}
