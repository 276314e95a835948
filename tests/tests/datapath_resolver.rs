//! The way to each host, against a real kernel: what changes in its tables is in
//! `HOSTS` within a second, and never half of it.

use std::{
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use homing_agent::datapath::{
    Datapath,
    hosts::Change,
    resolver::{Resolver, State, Task, resolver},
    template::{Hop, Mac, Outer},
};
use homing_common::host::{Encapsulation, Host, HostId, Template};
use homing_tests::{
    program::tunnel_v4,
    sandbox::{self, Sandbox, ip},
};
use tokio::runtime;

const OUTER: Encapsulation = Encapsulation::Ipip;
/// The bound that the design gives to a change's way into the fast path.
const FOLLOWED: Duration = Duration::from_secs(1);

/// A wire to a host `peer`, in a namespace of its own, with two addresses.
fn wire() {
    ip("netns add peer");
    ip("link add eth0 type veth peer name peer0 netns peer");
    // The kernel's own link-local address would hold up IPv6 until its check for
    // duplicates is over.
    ip("link set eth0 addrgenmode none");
    ip("-n peer link set peer0 addrgenmode none");
    ip("link set eth0 address 02:00:00:00:00:01 mtu 1600 up");
    ip("addr add 10.9.0.1/24 dev eth0");
    ip("addr add fe80::1/64 dev eth0 nodad");
    ip("addr add fd09::1/64 dev eth0 nodad");
    ip("-n peer link set peer0 address 02:00:00:00:00:02 mtu 1600 up");
    ip("-n peer addr add 10.9.0.2/24 dev peer0");
    ip("-n peer addr add 10.9.0.3/24 dev peer0");
    ip("-n peer addr add fe80::2/64 dev peer0 nodad");
    ip("-n peer addr add fd09::2/64 dev peer0 nodad");
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn outer() -> Outer {
    Outer {
        encapsulation: OUTER,
        tunnel: tunnel_v4(),
        host: HostId(1),
    }
}

fn template(host: u16, destination: u8, mtu: u16) -> Template {
    let hop = Hop {
        // The index that `eth0` has in every sandbox is the kernel's business.
        ifindex: nix::net::if_::if_nametoindex("eth0").unwrap(),
        vlan: None,
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: Mac([2, 0, 0, 0, 0, destination]),
        mtu,
    };
    outer().template(HostId(host), &hop)
}

/// `HOSTS` as anybody may read it.
struct Reader(Array<MapData, Host>);

impl Reader {
    fn open(pin_dir: &Path) -> Self {
        let map = MapData::from_pin(pin_dir.join("maps/HOSTS")).unwrap();
        Self(Array::try_from(Map::from_map_data(map).unwrap()).unwrap())
    }

    fn host(&self, id: u16) -> Host {
        self.0.get(&u32::from(id), 0).unwrap()
    }

    fn in_force(&self, id: u16) -> Template {
        let host = self.host(id);
        host.templates[host.active as usize]
    }

    /// Waits until a template is in force; panics if that takes too long.
    async fn expect(&self, id: u16, what: &str, template: Template) {
        let start = Instant::now();
        while self.in_force(id) != template {
            let in_time = start.elapsed() < FOLLOWED;
            assert!(in_time, "not within a second: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Runs `test` with a resolver at work in a sandbox.
fn with_resolver<F: Future<Output = ()>>(test: impl Send + FnOnce(Resolver, Reader) -> F) {
    sandbox::run(|sandbox: &Sandbox| {
        wire();
        let options = sandbox.options(&["eth0"]);
        let datapath = Datapath::load(&options).unwrap();
        let reader = Reader::open(&options.pin_dir);
        let (resolver, task): (_, Task) = resolver(outer(), datapath.hosts);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let task = tokio::spawn(task.run());
            test(resolver, reader).await;
            task.await.unwrap().expect("the task ends when nobody asks");
        });
    });
}

async fn expect_state(resolver: &mut Resolver, host: u16, state: State) {
    let start = Instant::now();
    loop {
        let ways = resolver.ways();
        if ways
            .get(&HostId(host))
            .is_some_and(|way| way.state == state)
        {
            return;
        }
        let left = FOLLOWED.saturating_sub(start.elapsed());
        let changed = tokio::time::timeout(left, resolver.changed()).await;
        assert!(changed.is_ok(), "never {state}: {ways:?}");
    }
}

#[test]
fn an_unknown_neighbour_is_resolved_and_its_changes_are_followed() {
    with_resolver(async |mut resolver, reader| {
        resolver.add(HostId(2), address("10.9.0.2")).await;
        reader.expect(2, "resolution", template(2, 2, 1600)).await;
        let first = reader.host(2);
        assert_eq!(first.flags, Host::MEMBER);
        expect_state(&mut resolver, 2, State::Resolved).await;
        let way = resolver.ways()[&HostId(2)].clone();
        assert_eq!(way.next_hop, Some(address("10.9.0.2")));
        assert_eq!(way.mac, Some(Mac([2, 0, 0, 0, 0, 2])));
        assert_eq!(way.interface.as_deref(), Some("eth0"));
        assert_eq!(way.mtu, Some(1600));

        ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
        reader.expect(2, "a new MAC", template(2, 0x77, 1600)).await;
        assert_ne!(reader.host(2).active, first.active);

        ip("link set eth0 mtu 1500");
        reader.expect(2, "a new MTU", template(2, 0x77, 1500)).await;

        resolver.remove(HostId(2)).await;
        reader.expect(2, "removal", Template::NONE).await;
        assert_eq!(reader.host(2).flags, 0);
    });
}

#[test]
fn the_entry_that_the_kernel_forgets_is_resolved_anew_without_a_gap() {
    with_resolver(async |resolver, reader| {
        resolver.add(HostId(2), address("10.9.0.2")).await;
        reader.expect(2, "resolution", template(2, 2, 1600)).await;
        ip("-n peer link set peer0 address 02:00:00:00:00:05");
        ip("neigh flush dev eth0");
        let start = Instant::now();
        loop {
            let now = reader.in_force(2);
            if now == template(2, 5, 1600) {
                break;
            }
            assert!(now == template(2, 2, 1600), "a gap");
            assert!(start.elapsed() < FOLLOWED, "not within a second");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn hosts_behind_a_gateway_follow_the_route() {
    with_resolver(async |mut resolver, reader| {
        resolver.add(HostId(3), address("10.10.0.9")).await;
        expect_state(&mut resolver, 3, State::NoRoute).await;
        assert!(reader.in_force(3) == Template::NONE);

        ip("route add 10.10.0.0/24 via 10.9.0.2");
        reader.expect(3, "a route", template(3, 2, 1600)).await;
        ip("neigh replace 10.9.0.3 lladdr 02:00:00:00:00:33 dev eth0 nud permanent");
        ip("route replace 10.10.0.0/24 via 10.9.0.3 mtu 1450");
        reader
            .expect(3, "another gateway", template(3, 0x33, 1450))
            .await;
        expect_state(&mut resolver, 3, State::Resolved).await;
        assert_eq!(
            resolver.ways()[&HostId(3)].next_hop,
            Some(address("10.9.0.3"))
        );
        ip("route del 10.10.0.0/24");
        reader.expect(3, "no route", Template::NONE).await;
    });
}

#[test]
fn next_hop_objects_and_rules_are_followed_too() {
    with_resolver(async |resolver, reader| {
        ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:22 dev eth0 nud permanent");
        ip("neigh replace 10.9.0.3 lladdr 02:00:00:00:00:33 dev eth0 nud permanent");
        ip("nexthop add id 7 via 10.9.0.2 dev eth0");
        ip("route add 10.10.0.0/24 nhid 7");
        resolver.add(HostId(3), address("10.10.0.9")).await;
        reader
            .expect(3, "by an object", template(3, 0x22, 1600))
            .await;
        ip("nexthop replace id 7 via 10.9.0.3 dev eth0");
        reader
            .expect(3, "object replaced", template(3, 0x33, 1600))
            .await;

        ip("route add 10.10.0.0/24 via 10.9.0.2 table 99");
        ip("rule add to 10.10.0.0/24 table 99");
        reader.expect(3, "a rule", template(3, 0x22, 1600)).await;
    });
}

#[test]
fn ipv6_next_hops_resolve() {
    with_resolver(async |resolver, reader| {
        resolver.add(HostId(4), address("fd09::2")).await;
        reader.expect(4, "resolution", template(4, 2, 1600)).await;
    });
}

#[test]
fn failure_and_recovery_of_link_and_neighbour() {
    with_resolver(async |mut resolver, reader| {
        resolver.add(HostId(2), address("10.9.0.2")).await;
        reader.expect(2, "resolution", template(2, 2, 1600)).await;
        ip("neigh replace 10.9.0.2 dev eth0 nud failed");
        expect_state(&mut resolver, 2, State::Unanswered).await;
        assert!(reader.in_force(2) == Template::NONE);
        // The resolver itself makes the kernel ask again, within a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
        reader.expect(2, "recovery", template(2, 2, 1600)).await;

        ip("-n peer link set peer0 down");
        expect_state(&mut resolver, 2, State::LinkDown).await;
        assert!(reader.in_force(2) == Template::NONE);
        ip("-n peer link set peer0 up");
        reader.expect(2, "link up", template(2, 2, 1600)).await;
    });
}

#[test]
fn members_of_a_former_life_stay_until_the_membership_is_set() {
    sandbox::run(|sandbox| {
        wire();
        let options = sandbox.options(&["eth0"]);
        let mut former = Datapath::load(&options).unwrap();
        let change = Change {
            member: Some(true),
            template: Some(template(2, 9, 1600)),
        };
        let changes = [(HostId(2), change), (HostId(5), change)];
        former.hosts.commit(&changes.into()).unwrap();
        drop(former);

        let datapath = Datapath::load(&options).unwrap();
        let reader = Reader::open(&options.pin_dir);
        let (resolver, task) = resolver(outer(), datapath.hosts);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::spawn(task.run());
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(reader.in_force(5) == template(2, 9, 1600));
            resolver.set([(HostId(2), address("10.9.0.2"))]).await;
            reader.expect(2, "resolution", template(2, 2, 1600)).await;
            reader.expect(5, "removal", Template::NONE).await;
            assert_eq!(reader.host(5).flags, 0);
        });
    });
}

#[test]
fn a_reader_never_sees_half_of_a_template() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut hosts = Datapath::load(&options).unwrap().hosts;
        let reader = Reader::open(&options.pin_dir);
        let uniform = |n: u8| Template {
            header: [n; 72],
            ifindex: u32::from_ne_bytes([n; 4]),
            mtu: u16::from_ne_bytes([n; 2]),
            l2_len: n,
            l3_len: n,
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reads = scope.spawn(|| {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) {
                    let template = reader.in_force(2);
                    assert!(template == uniform(template.l2_len), "torn");
                    reads += 1;
                }
                reads
            });
            for n in 1..=100 {
                let change = Change {
                    member: None,
                    template: Some(uniform(n)),
                };
                hosts.commit(&[(HostId(2), change)].into()).unwrap();
                if reads.is_finished() {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            assert!(reads.join().unwrap() > 1000);
        });
    });
}
