//! A fabric without spare MTU: how rare it is that a packet does not fit into the
//! tunnel, and what its sender hears.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use homing_tests::{
    lab::{
        Lab, Node,
        node::in_namespace,
        plan::{Outer, Tunnel, UDP_PORT},
        unique, wait_until,
    },
    workload::{FlowServers, MAX_LEN},
};

use super::{
    bulk::Detour,
    common::{PATIENCE, Pop},
    mtu::{NARROW, set_mtu},
    watch::Watch,
};

/// Connections at a time, half of them over IPv6.
const CONNECTIONS: usize = 16;
/// Requests of each, and as many answers: 32 MiB both ways.
const REQUESTS: u64 = 32;
const ETHERNET_LEN: usize = 14;
/// Of the TCP header, options left out.
const TCP_LEN: usize = 20;
const TCP: u8 = 6;
/// How Linux begins the options of a segment with timestamps (RFC 7323, appendix A).
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Segments that left a host through the tunnel and filled the way's MTU to the last
/// byte.
#[derive(Clone, Copy, Debug, Default)]
struct Full {
    v4: u64,
    v6: u64,
    /// … of both, those with timestamps.
    timestamps: u64,
    /// Bytes of the longest tunnel packet.
    longest: usize,
}

impl Full {
    /// Looks at a frame that came from a host.
    fn see(&mut self, frame: &[u8], outer_len: usize) {
        let (ethernet, outer) = frame.split_at(ETHERNET_LEN);
        let through_the_tunnel = match ethernet[12..14] {
            [0x08, 0x00] => outer[16..18] == [10, 77],
            [0x86, 0xdd] => outer[24..26] == [0xfd, 0x77],
            _ => false,
        };
        if !through_the_tunnel {
            return;
        }
        self.longest = self.longest.max(outer.len());
        if outer.len() != usize::from(NARROW) {
            return;
        }
        let inner = &outer[outer_len..];
        let (count, ip_len, protocol) = match inner[0] >> 4 {
            4 => (&mut self.v4, 20, inner[9]),
            _ => (&mut self.v6, 40, inner[6]),
        };
        if protocol == TCP {
            *count += 1;
            let options = &inner[ip_len + TCP_LEN..];
            self.timestamps += u64::from(options.starts_with(&TIMESTAMPS));
        }
    }
}

/// Watches what a host sends through the tunnel, at the router's port.
fn watch(lab: &Lab, host: u16, outer_len: usize) -> Watch<Full> {
    let port = format!("h{host}");
    // Joined, segments would be longer than the wire carries.
    lab.exec(Node::Router, "ethtool", &["-K", &port, "gro", "off"])
        .unwrap();
    let see = move |full: &mut Full, frame: &[u8]| full.see(frame, outer_len);
    Watch::start(lab, Node::Router, &port, see)
}

/// How packets of other hosts' sessions ended.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// Sent through the tunnel.
    forwarded: u64,
    /// Too large for it, whether their sender was told or not.
    too_big: u64,
}

impl Share {
    fn of(lab: &Lab) -> Self {
        Self {
            forwarded: lab.outcomes(&["forwarded"]).unwrap(),
            too_big: lab.outcomes(&["too_big", "too_big_told"]).unwrap(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            forwarded: self.forwarded - before.forwarded,
            too_big: self.too_big - before.too_big,
        }
    }
}

/// Bulk data both ways over connections of one host, while ECMP sends all of their
/// packets to the others and changes again and again. Returns how they ended, and the
/// full ones among those that were forwarded.
fn carry(pop: &mut Pop, timestamps: bool, outer_len: usize) -> (Share, Full) {
    in_namespace(&pop.lab.namespace(Node::Client(1)), || {
        let value = if timestamps { "1" } else { "0" };
        Ok(fs::write("/proc/sys/net/ipv4/tcp_timestamps", value)?)
    })
    .unwrap();
    let before = Share::of(&pop.lab);
    let detour = Detour::open(pop, CONNECTIONS, REQUESTS);
    let watches = [1, 3].map(|host| watch(&pop.lab, host, outer_len));
    detour.run(pop);
    let mut full = Full::default();
    for seen in watches.map(Watch::finish) {
        full.v4 += seen.v4;
        full.v6 += seen.v6;
        full.timestamps += seen.timestamps;
        full.longest = full.longest.max(seen.longest);
    }
    (Share::of(&pop.lab).since(before), full)
}

/// Starts all agents anew, with something else in their configuration.
fn reconfigure(lab: &mut Lab, old: &str, new: &str) {
    for host in 1..=lab.plan().hosts {
        let file = lab.folder_of(Node::Host(host)).join("homing.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(&file, text.replace(old, new)).unwrap();
        lab.stop(host).unwrap();
        lab.start(host).unwrap();
    }
    lab.wait_ready(PATIENCE).unwrap();
}

/// Of the sessions whose handshake left through the programs, not one packet is too
/// large: with each header that the tunnel may have, over both IP versions, with and
/// without the option that most segments have. Without the lowering the same traffic
/// does not fit; it comes through all the same, because its senders are told.
fn no_segment_is_too_large(name: &str, tunnel: Tunnel, outer: Outer, outer_len: usize) {
    let lab = Lab::builder().name(&unique(name)).hosts(3).racks(2);
    let mut pop = Pop::from(lab.tunnel(tunnel).outer(outer).up().unwrap());
    set_mtu(&pop.lab, NARROW);
    for timestamps in [true, false] {
        let (share, full) = carry(&mut pop, timestamps, outer_len);
        println!("{tunnel:?} over {outer:?}, timestamps {timestamps}: {share:?}, {full:?}");
        assert_eq!(share.too_big, 0, "{share:?}\n{}", pop.outcomes());
        // At least half of what came up did so in segments that fill the MTU exactly:
        // the MSS was lowered no further than it had to be.
        let bytes = CONNECTIONS as u64 / 2 * REQUESTS * u64::from(MAX_LEN);
        let half = bytes / u64::from(NARROW) / 2;
        assert!(full.v4 > half && full.v6 > half, "{full:?}, {share:?}");
        assert_eq!(full.longest, usize::from(NARROW));
        let with = if timestamps { full.v4 + full.v6 } else { 0 };
        assert_eq!(full.timestamps, with, "{full:?}");
    }
    reconfigure(&mut pop.lab, "[tunnel]", "[tunnel]\nmss = \"off\"");
    let (share, _) = carry(&mut pop, true, outer_len);
    println!("{tunnel:?} over {outer:?}, not lowered: {share:?}");
    assert!(share.too_big > 0, "all fits anyway: the test shows nothing");
    pop.down();
}

#[test]
fn a_fabric_without_spare_mtu_carries_full_size_segments() {
    no_segment_is_too_large("narrow", Tunnel::Ipip, Outer::V4, 20);
}

#[test]
fn so_does_one_whose_tunnel_has_the_longest_header() {
    no_segment_is_too_large("narrowgue", Tunnel::Gue, Outer::V6, 40 + 8);
}

/// Datagrams are as large as their sender likes, whatever is said in a handshake: one
/// that does not fit is dropped, and its sender told the size that does. Those of that
/// size come through.
#[test]
fn who_sends_datagrams_that_do_not_fit_is_told_what_does() {
    let mut lab = Lab::builder()
        .name(&unique("narrowudp"))
        .hosts(3)
        .racks(2)
        .up()
        .unwrap();
    // So that flows do not end while this looks elsewhere.
    reconfigure(&mut lab, "idle_timeout = \"6s\"", "idle_timeout = \"10m\"");
    let servers = FlowServers::start(&lab, &lab.plan().service(UDP_PORT)).unwrap();
    set_mtu(&lab, NARROW);
    lab.set_ecmp(&[Detour::OWNER]).unwrap();
    let services = lab.plan().service(UDP_PORT);
    let clients = services.map(|service| talking(&lab, service));
    lab.wait_settled(2, PATIENCE).unwrap();
    let room = NARROW - 20;
    for (client, headers) in clients.iter().zip([20 + 8, 40 + 8]) {
        // An agent that has just started sends new flows to another host.
        let other = owner(&lab, client) % lab.plan().hosts + 1;
        lab.set_ecmp(&[other]).unwrap();
        let before = Share::of(&lab);
        let full = usize::from(NARROW - headers);
        client.send(&vec![0; full]).unwrap();
        let told = wait_until(PATIENCE, || Ok(path_mtu(client) == room)).unwrap();
        let (believed, ends) = (path_mtu(client), ends(&lab));
        assert!(told, "{believed} and not {room}: {ends}");
        assert_eq!(Share::of(&lab).since(before).too_big, 1);
        // From now on the sender's own kernel says so.
        while let Err(error) = client.send(&vec![0; usize::from(room - headers)]) {
            // What it was told, which the socket still has to say.
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        }
        let larger = client.send(&vec![0; full]).unwrap_err();
        assert_eq!(larger.raw_os_error(), Some(libc::EMSGSIZE), "{larger}");
        let sent = || Ok(Share::of(&lab).since(before).forwarded == 1);
        assert!(wait_until(PATIENCE, sent).unwrap());
        assert_eq!(Share::of(&lab).since(before).too_big, 1);
    }
    drop(servers);
    lab.down().unwrap();
}

/// A client's flow that the service has answered often enough to be told of. Its
/// packets may not be cut up.
fn talking(lab: &Lab, service: SocketAddr) -> UdpSocket {
    let any = if service.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let client = in_namespace(&lab.namespace(Node::Client(1)), || {
        Ok(UdpSocket::bind(any)?)
    });
    let client = client.unwrap();
    client.connect(service).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (level, option, whole) = if service.is_ipv4() {
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        )
    } else {
        let whole = libc::IPV6_PMTUDISC_DO;
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, whole)
    };
    // SAFETY: the value is an int, as its length says, and outlives the call.
    let set = unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            level,
            option,
            (&raw const whole).cast(),
            size_of_val(&whole) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    for _ in 0..4 {
        client.send(&[0; 64]).unwrap();
        assert_eq!(client.recv(&mut [0; 64]).unwrap(), 64);
    }
    client
}

/// The host that has a client's flow.
fn owner(lab: &Lab, client: &UdpSocket) -> u16 {
    let service = client.peer_addr().unwrap().to_string();
    let client = client.local_addr().unwrap().to_string();
    let args = ["owner", &client, &service, "--protocol", "udp"];
    let owner = lab.homing_json(Detour::OWNER, &args).unwrap();
    owner["owner"].as_u64().unwrap() as u16
}

/// What the kernel believes of a connected socket's path.
fn path_mtu(client: &UdpSocket) -> u16 {
    let (level, option) = if client.peer_addr().unwrap().is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let mut mtu: libc::c_int = 0;
    let mut len = size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: value and length are as told, and outlive the call.
    let got = unsafe {
        libc::getsockopt(
            client.as_raw_fd(),
            level,
            option,
            (&raw mut mtu).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    mtu as u16
}

/// How packets ended on each host.
fn ends(lab: &Lab) -> String {
    let stats = |host| lab.exec(Node::Host(host), "homing", &["stats"]).unwrap();
    lab.running().into_iter().map(stats).collect()
}
