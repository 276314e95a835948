//! Frames given back through real interfaces: to the main program, which sends
//! what belongs to another host and passes what does not, and to the local stack.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::Ordering,
    time::Duration,
};

use homing_agent::datapath::{
    Datapath,
    hosts::Change,
    template::{Hop, Mac, Outer},
};
use homing_common::{
    host::{Encapsulation, HostId},
    net::TCP,
    outcome::Outcome,
    session::Tuple,
};
use homing_tests::{
    lab::port,
    packet::{self, Ip, flags, segment},
    sandbox::{self, Sandbox, ip},
};
use socket2::{Domain, Socket, Type};

const ETH_P_ALL: u16 = 3;

/// The link `eth0` of host 1, its other end `peer0`, and the fast path on it.
fn host_1(sandbox: &Sandbox) -> (Datapath, u32) {
    ip("link add eth0 address 02:00:00:00:00:01 type veth \
         peer name peer0 address 02:00:00:00:00:fe");
    let pass = sandbox.bpf.join("pass");
    port::pin(&pass).unwrap();
    ip(&format!("link set dev peer0 xdp pinned {}", pass.display()));
    ip("addr add 203.0.113.10/24 dev eth0");
    ip("link set eth0 up");
    ip("link set peer0 up");
    let datapath = Datapath::load(&sandbox.options(&["eth0"])).unwrap();
    let ifindex = nix::net::if_::if_nametoindex("eth0").unwrap();
    (datapath, ifindex)
}

/// Hears every frame that arrives at an interface.
struct Tap(Socket);

impl Tap {
    fn on(interface: &str) -> Self {
        let protocol = i32::from(ETH_P_ALL.to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol.into())).unwrap();
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETH_P_ALL.to_be(),
            sll_ifindex: nix::net::if_::if_nametoindex(interface).unwrap() as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is one of the socket's family, of the size told.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(bound, 0);
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Self(socket)
    }

    /// The next frame that ends with these bytes.
    fn next_with(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            let mut buffer = [0; 4096];
            let len = std::io::Read::read(&mut self.0, &mut buffer).expect("no such frame");
            if buffer[..len].ends_with(end) {
                return buffer[..len].to_vec();
            }
        }
    }
}

#[test]
fn a_frame_of_a_foreign_session_is_sent_to_its_owner() {
    sandbox::run(|sandbox| {
        let (mut datapath, ifindex) = host_1(sandbox);
        let settings = sandbox.options(&["eth0"]).settings;
        let outer = Outer {
            encapsulation: Encapsulation::Ipip,
            tunnel: settings.tunnel,
            host: settings.host,
        };
        let hop = Hop {
            ifindex,
            vlan: None,
            source: Mac(packet::HOST_MAC),
            destination: Mac(packet::ROUTER_MAC),
            mtu: 1500,
        };
        let change = Change {
            member: Some(true),
            template: Some(outer.template(HostId(2), &hop)),
        };
        let changes = BTreeMap::from([(HostId(2), change)]);
        datapath.hosts.commit(&changes).unwrap();
        let tuple = Tuple::between(
            packet::CLIENT_V4.parse().unwrap(),
            packet::SERVICE_V4.parse().unwrap(),
            TCP,
        );
        let id = tuple.id(&settings.session_key);
        datapath.owners.set(id, HostId(2)).unwrap();

        let mut tap = Tap::on("peer0");
        let frame = segment(true, flags::ACK)
            .payload("held for a moment")
            .frame();
        datapath.injector.reenter(ifindex, &frame).unwrap();
        let sent = tap.next_with(&frame[14..]);
        assert_eq!(sent.len(), frame.len() + 20);
        assert_eq!(sent[..6], packet::ROUTER_MAC);
        assert_eq!(
            datapath.stats.read().unwrap().outcome(Outcome::Forwarded),
            1
        );
        let counters = datapath.injector.counters();
        assert_eq!(counters.reentered.load(Ordering::Relaxed), 1);
        assert_eq!(counters.refused.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_frame_goes_up_to_the_stack_by_either_program() {
    sandbox::run(|sandbox| {
        let (datapath, ifindex) = host_1(sandbox);
        let socket = UdpSocket::bind("203.0.113.10:9000").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sender: SocketAddr = "203.0.113.7:1234".parse().unwrap();
        let frame = |payload: &[u8]| {
            let datagram = packet::udp(1234, 9000, payload);
            let bytes = Ip::new(sender.ip(), "203.0.113.10".parse().unwrap(), 17, datagram).bytes();
            packet::frame(&[], true, &bytes)
        };
        let longest = vec![7; homing_common::park::PARKED_FRAME_MAX - 42];
        datapath.injector.up(ifindex, &frame(b"first")).unwrap();
        datapath
            .injector
            .reenter(ifindex, &frame(b"second"))
            .unwrap();
        datapath.injector.up(ifindex, &frame(&longest)).unwrap();
        let mut buffer = [0; 4096];
        for expected in [&b"first"[..], b"second", &longest] {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (expected, sender));
        }
        let counters = datapath.injector.counters();
        assert_eq!(counters.up.load(Ordering::Relaxed), 2);
        assert_eq!(counters.reentered.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn what_the_kernel_refuses_is_counted_and_told() {
    sandbox::run(|sandbox| {
        let (datapath, ifindex) = host_1(sandbox);
        let frame = segment(true, flags::ACK).frame();
        let no_such = datapath.injector.up(ifindex + 1000, &frame).unwrap_err();
        assert_eq!(no_such.raw_os_error(), Some(libc::ENODEV));
        let short = datapath.injector.up(ifindex, &frame[..10]).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::InvalidInput);
        assert_eq!(
            datapath.injector.counters().refused.load(Ordering::Relaxed),
            2
        );
    });
}
