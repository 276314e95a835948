//! No packet leaves with half of an old header and half of a new one: the ways to a
//! hundred hosts flip thousands of times under a stream of packets, and every header
//! on the wire is one of the two. Needs root.

use std::{
    fs::File,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use homing_agent::datapath::{
    Datapath,
    hosts::{Change, Changes},
    template::{Hop, Mac, Outer},
};
use homing_common::{
    host::{Encapsulation, HostId},
    net::TCP,
    session::Tuple,
};
use homing_tests::{
    lab::port,
    packet::{self, Tcp, flags},
    program::tunnel_v4,
    raw::{Raw, index_of},
    sandbox::{self, Sandbox, ip},
};
use nix::sched::{CloneFlags, setns};

/// Hosts whose way flips: one grace period of the kernel serves them all.
const HOSTS: u16 = 100;
/// How long they flip, and how often at least.
const FLIPPING: Duration = Duration::from_secs(4);
const ROUNDS: u32 = 100;

/// One of the two ways. All bytes that tell them apart differ.
fn way(ifindex: u32, host: u16, second: bool) -> Change {
    let (mine, theirs, from, to) = if second {
        (0xb5, 0xba, HostId(0xbbb), HostId(0xb00 + host))
    } else {
        (0x51, 0x5e, HostId(0x555), HostId(0x500 + host))
    };
    let outer = Outer {
        encapsulation: Encapsulation::Ipip,
        tunnel: tunnel_v4(),
        host: from,
    };
    let hop = Hop {
        ifindex,
        vlan: None,
        source: Mac([2, mine, mine, mine, mine, mine]),
        destination: Mac([2, theirs, theirs, theirs, theirs, theirs]),
        mtu: 1600,
    };
    Change {
        member: Some(true),
        template: Some(outer.template(to, &hop)),
    }
}

/// Whose way a frame went: the host, and whether by the second way. Panics if it is
/// a mixture.
fn read(frame: &[u8]) -> Option<(u16, bool)> {
    // What the kernel says by itself (neighbour discovery, say) is no tunnel packet.
    if frame.len() < 34 || frame[12..14] != [0x08, 0x00] || frame[23] != 4 {
        return None;
    }
    let second = frame[1] == 0xba;
    let (mine, theirs, from, to) = if second {
        (0xb5, 0xba, 0xbbb, 0xb00)
    } else {
        (0x51, 0x5e, 0x555, 0x500)
    };
    let prefix = |at: usize| u16::from_be_bytes([frame[at + 2], frame[at + 3]]) >> 4;
    let host = prefix(30).wrapping_sub(to);
    let whole = frame[..6] == [2, theirs, theirs, theirs, theirs, theirs]
        && frame[6..12] == [2, mine, mine, mine, mine, mine]
        && prefix(26) == from
        && (2..2 + HOSTS).contains(&host);
    assert!(whole, "a header of two halves: {:02x?}", &frame[..34]);
    Some((host, second))
}

/// In the namespace of the wire's other end, on a thread of its own.
fn at_peer<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let namespace = File::open("/run/netns/peer").unwrap();
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

static DONE: AtomicBool = AtomicBool::new(false);

#[test]
fn every_header_on_the_wire_is_whole() {
    sandbox::run(|sandbox: &Sandbox| {
        ip("netns add peer");
        ip("link add eth0 type veth peer name peer0 netns peer");
        ip("link set eth0 address 02:00:00:00:00:01 mtu 1600 up");
        ip("-n peer link set peer0 address 02:00:00:00:00:02 mtu 1600 up");
        // What XDP sends arrives only where there is XDP too.
        let program = sandbox.bpf.join("port");
        port::pin(Path::new(&program)).unwrap();
        let program = program.display();
        ip(&format!("-n peer link set peer0 xdpdrv pinned {program}"));

        let options = sandbox.options(&["eth0"]);
        let mut datapath = Datapath::load(&options).unwrap();
        let ifindex = index_of("eth0").unwrap();
        let mut frames = Vec::new();
        for host in 2..2 + HOSTS {
            let client = format!("198.51.100.7:{}", 10_000 + host);
            let tuple = Tuple::between(
                client.parse().unwrap(),
                packet::SERVICE_V4.parse().unwrap(),
                TCP,
            );
            let id = tuple.id(&options.settings.session_key);
            datapath.owners.set(id, HostId(host)).unwrap();
            frames.push(Tcp::new(&client, packet::SERVICE_V4, flags::ACK).frame());
        }
        let changes = |second| -> Changes {
            let all = 2..2 + HOSTS;
            all.map(|host| (HostId(host), way(ifindex, host, second)))
                .collect()
        };
        datapath.hosts.commit(&changes(false)).unwrap();

        let sending = at_peer(move || {
            let socket = Raw::sender().unwrap();
            let peer0 = index_of("peer0").unwrap();
            while !DONE.load(Ordering::Relaxed) {
                for frame in &frames {
                    // A full ring loses frames, as everywhere.
                    socket.send(peer0, frame).ok();
                }
            }
        });
        let checking = at_peer(|| {
            let socket = Raw::listener(index_of("peer0").unwrap()).unwrap();
            let mut seen = [0u64; 2];
            let mut changes = 0u64;
            let mut last = [false; 2 + HOSTS as usize];
            let mut buffer = [0; 2048];
            while !DONE.load(Ordering::Relaxed) {
                let frame = socket.receive(&mut buffer, Duration::from_millis(100));
                if let Some((host, second)) = frame.unwrap().and_then(read) {
                    seen[usize::from(second)] += 1;
                    let last = &mut last[usize::from(host)];
                    changes += u64::from(*last != second);
                    *last = second;
                }
            }
            (seen, changes)
        });

        let start = Instant::now();
        let mut round = 0;
        while round < ROUNDS || start.elapsed() < FLIPPING {
            round += 1;
            datapath.hosts.commit(&changes(round % 2 == 1)).unwrap();
            if checking.is_finished() || sending.is_finished() {
                break;
            }
        }
        let took = start.elapsed();
        DONE.store(true, Ordering::Relaxed);
        sending.join().unwrap();
        let (seen, changes) = checking.join().unwrap();
        println!(
            "{} flips in {took:?}, {changes} of them seen on the wire; headers: {seen:?}",
            u32::from(HOSTS) * round
        );
        assert!(seen.iter().all(|&count| count > 10_000), "{seen:?}");
        assert!(changes > 1000, "{changes}");
    });
}
