//! The ways between hosts change on real links under traffic: templates follow
//! within a second, and no connection breaks.

use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use homing_common::host::{Host, Template};
use homing_tests::{
    lab::{Lab, Node, wait_until},
    workload::Clients,
};

use super::common::{PATIENCE, Pop};

/// How soon a change must be in force.
const FOLLOWED: Duration = Duration::from_secs(1);

fn ip(lab: &Lab, node: Node, arguments: &str) {
    let arguments: Vec<&str> = arguments.split_ascii_whitespace().collect();
    lab.exec(node, "ip", &arguments).unwrap();
}

fn sysctl(lab: &Lab, node: Node, setting: &str) {
    let (name, value) = setting.split_once('=').unwrap();
    let command = format!("echo {value} > /proc/sys/net/{name}");
    lab.exec(node, "sh", &["-c", &command]).unwrap();
}

fn ifindex(lab: &Lab, host: u16, interface: &str) -> u32 {
    let path = format!("/sys/class/net/{interface}/ifindex");
    let text = lab.exec(Node::Host(host), "cat", &[&path]).unwrap();
    text.trim().parse().unwrap()
}

/// The map `HOSTS` of one host's kernel.
struct Hosts(Array<MapData, Host>);

impl Hosts {
    fn of(lab: &Lab, host: u16) -> Self {
        let map: Map = lab.map(host, "HOSTS").unwrap();
        Self(Array::try_from(map).unwrap())
    }

    fn in_force(&self, host: u16) -> Template {
        let host = self.0.get(&host.into(), 0).unwrap();
        host.templates[(host.active & 1) as usize]
    }

    /// Waits until the template towards a host is as it should be.
    fn follow(&self, host: u16, what: &str, holds: impl Fn(&Template) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            let template = self.in_force(host);
            let took = start.elapsed();
            if holds(&template) {
                println!("{what}: in force after {took:?}");
                return took;
            }
            assert!(
                took < FOLLOWED,
                "{what}: not within {FOLLOWED:?}; by interface {}, MTU {}, header {:02x?}",
                template.ifindex,
                template.mtu,
                &template.header[..34]
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn leads_to(mac: [u8; 6]) -> impl Fn(&Template) -> bool {
    move |template| template.header[..6] == mac && template.ifindex != 0
}

fn leads_nowhere(template: &Template) -> bool {
    template.ifindex == 0
}

/// All packets reach host 1 first, which must send on those of the others.
fn flows(pop: &Pop, clients: Clients, what: &str) -> Clients {
    let live = clients.wait_rounds(2, PATIENCE).unwrap();
    if live != clients.total() {
        let outcomes = pop.outcomes();
        panic!(
            "connections broke: {what}: {:#?}\n{outcomes}",
            clients.finish()
        );
    }
    clients
}

fn pop_with_load(name: &str) -> (Pop, Clients, Hosts) {
    let mut pop = Pop::up(name, 3, 2);
    let clients = pop.load(45);
    pop.converges();
    // Hosts 1 and 2 are in one rack, host 3 is in the other.
    pop.lab.set_ecmp(&[1]).unwrap();
    let clients = flows(&pop, clients, "at first");
    let hosts = Hosts::of(&pop.lab, 1);
    (pop, clients, hosts)
}

const MAC_2: [u8; 6] = [0x02, 0x68, 0x6d, 0x01, 0x01, 12];
const ROUTER: [u8; 6] = [0x02, 0x68, 0x6d, 0x01, 0x01, 1];
const OTHER: [u8; 6] = [0x02, 0x68, 0x6d, 0xff, 0xff, 0xff];
const OTHER_TEXT: &str = "02:68:6d:ff:ff:ff";
const THIRD: [u8; 6] = [0x02, 0x68, 0x6d, 0xee, 0xee, 0xee];
const THIRD_TEXT: &str = "02:68:6d:ee:ee:ee";

#[test]
fn a_neighbours_mac_and_the_gateway_change() {
    let (pop, clients, hosts) = pop_with_load("fltmac");
    let lab = &pop.lab;
    assert!(leads_to(MAC_2)(&hosts.in_force(2)));
    assert!(leads_to(ROUTER)(&hosts.in_force(3)));
    // A host that gets another interface says so (gratuitous ARP, unsolicited neighbour advertisements).
    sysctl(lab, Node::Host(2), "ipv4/conf/eth0/arp_notify=1");
    sysctl(lab, Node::Host(2), "ipv6/conf/eth0/ndisc_notify=1");
    ip(
        lab,
        Node::Host(2),
        &format!("link set eth0 address {OTHER_TEXT}"),
    );
    hosts.follow(2, "a neighbour's new MAC", leads_to(OTHER));
    let clients = flows(&pop, clients, "a neighbour's new MAC");

    // So does a router that takes over the gateway's address.
    sysctl(lab, Node::Router, "ipv4/conf/rack1/arp_notify=1");
    sysctl(lab, Node::Router, "ipv6/conf/rack1/ndisc_notify=1");
    ip(
        lab,
        Node::Router,
        &format!("link set rack1 address {THIRD_TEXT}"),
    );
    hosts.follow(3, "the gateway's new MAC", leads_to(THIRD));
    let clients = flows(&pop, clients, "the gateway's new MAC");
    ip(
        lab,
        Node::Router,
        "link set rack1 address 02:68:6d:01:01:01",
    );
    hosts.follow(3, "the gateway's old MAC", leads_to(ROUTER));

    // Another gateway.
    ip(
        lab,
        Node::Router,
        "link add other type veth peer name otherport",
    );
    ip(
        lab,
        Node::Router,
        "link set otherport mtu 1600 master rack1 up",
    );
    ip(
        lab,
        Node::Router,
        &format!("link set other address {THIRD_TEXT} mtu 1600 up"),
    );
    sysctl(lab, Node::Router, "ipv4/conf/all/arp_ignore=1");
    ip(lab, Node::Router, "addr add 10.1.1.254/32 dev other");
    ip(lab, Node::Host(1), "route replace default via 10.1.1.254");
    hosts.follow(3, "another gateway", leads_to(THIRD));
    assert!(leads_to(OTHER)(&hosts.in_force(2)));
    let clients = flows(&pop, clients, "another gateway");
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn the_interface_goes_down_and_up_and_its_mtu_changes() {
    let (pop, clients, hosts) = pop_with_load("fltlink");
    let lab = &pop.lab;
    ip(lab, Node::Host(1), "link set eth0 mtu 1550");
    hosts.follow(2, "another MTU", |template| template.mtu == 1550);
    hosts.follow(3, "another MTU", |template| template.mtu == 1550);
    let clients = flows(&pop, clients, "another MTU");

    // The carrier goes, and comes back: the cable.
    ip(lab, Node::Router, "link set h1 down");
    hosts.follow(2, "no carrier", leads_nowhere);
    hosts.follow(3, "no carrier", leads_nowhere);
    ip(lab, Node::Router, "link set h1 up");
    hosts.follow(2, "the carrier is back", leads_to(MAC_2));
    hosts.follow(3, "the carrier is back", leads_to(ROUTER));
    let clients = flows(&pop, clients, "the carrier is back");

    // The interface goes down, and with it all its routes.
    ip(lab, Node::Host(1), "link set eth0 down");
    hosts.follow(2, "the interface is down", leads_nowhere);
    hosts.follow(3, "the interface is down", leads_nowhere);
    ip(lab, Node::Host(1), "link set eth0 up");
    ip(lab, Node::Host(1), "route add default via 10.1.1.1");
    ip(
        lab,
        Node::Host(1),
        "-6 addr add fd00:1:1::11/64 dev eth0 nodad",
    );
    ip(lab, Node::Host(1), "-6 route add default via fd00:1:1::1");
    hosts.follow(2, "the interface is up", leads_to(MAC_2));
    hosts.follow(3, "the interface is up", leads_to(ROUTER));
    let clients = flows(&pop, clients, "the interface is up");
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn another_interface_takes_over() {
    let (pop, clients, hosts) = pop_with_load("fltsecond");
    let lab = &pop.lab;
    // A second wire of host 1, which leads to the other rack at first.
    let namespace = lab.namespace(Node::Host(1));
    ip(
        lab,
        Node::Router,
        &format!(
            "link add second mtu 1600 address {OTHER_TEXT} type veth peer name eth1 mtu 1600 netns {namespace}"
        ),
    );
    ip(lab, Node::Router, "addr add 10.3.1.1/24 dev second");
    ip(lab, Node::Router, "link set second up");
    lab.open_port("second").unwrap();
    lab.exec(
        Node::Router,
        "ethtool",
        &["-K", "second", "tx", "off", "tso", "off"],
    )
    .unwrap();
    ip(lab, Node::Host(1), "addr add 10.3.1.2/24 dev eth1");
    ip(lab, Node::Host(1), "link set eth1 up");
    ip(lab, Node::Host(1), "route add 10.1.2.0/24 via 10.3.1.1");
    let [first, second] = ["eth0", "eth1"].map(|name| ifindex(lab, 1, name));
    let by = |index| move |template: &Template| template.ifindex == index;
    hosts.follow(3, "by the second interface", by(second));
    assert!(by(first)(&hosts.in_force(2)));
    let before = lab.outcomes(&["redirected"]).unwrap();
    let clients = flows(&pop, clients, "by the second interface");
    assert!(lab.outcomes(&["redirected"]).unwrap() > before);

    ip(lab, Node::Host(1), "link set eth1 down");
    hosts.follow(3, "by the first interface again", by(first));
    let clients = flows(&pop, clients, "by the first interface again");

    ip(lab, Node::Host(1), "link set eth1 up");
    ip(lab, Node::Host(1), "route add 10.1.2.0/24 via 10.3.1.1");
    hosts.follow(3, "by the second interface again", by(second));
    let clients = flows(&pop, clients, "by the second interface again");
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn the_interface_is_destroyed_and_made_anew() {
    let (mut pop, clients, hosts) = pop_with_load("fltgone");
    pop.wait_hears(true);
    let before = ifindex(&pop.lab, 1, "eth0");
    pop.lab.unplug(1).unwrap();
    // Routing notices that, too.
    pop.lab.set_ecmp(&[2, 3]).unwrap();
    hosts.follow(2, "the interface is gone", leads_nowhere);
    hosts.follow(3, "the interface is gone", leads_nowhere);
    let problems = |pop: &Pop| {
        let status = pop.lab.homing_json(1, &["status"]).unwrap();
        status["problems"].to_string()
    };
    let said = wait_until(FOLLOWED, || {
        Ok(problems(&pop).contains("by interface eth0 is forwarded"))
    });
    assert!(said.unwrap(), "{}", problems(&pop));

    pop.lab.plug(1).unwrap();
    let after = ifindex(&pop.lab, 1, "eth0");
    assert_ne!(after, before);
    hosts.follow(2, "the interface is back", |template| {
        leads_to(MAC_2)(template) && template.ifindex == after
    });
    hosts.follow(3, "the interface is back", |template| {
        leads_to(ROUTER)(template) && template.ifindex == after
    });
    let quiet = wait_until(FOLLOWED, || Ok(!problems(&pop).contains("eth0")));
    assert!(quiet.unwrap(), "{}", problems(&pop));
    // Host 1 forwards by the new interface: its programs are attached to it.
    pop.lab.set_ecmp(&[1]).unwrap();
    let clients = flows(&pop, clients, "the interface is back");
    // It hears its rack, and its rack hears it.
    pop.wait_hears(true);
    let more = pop.load(12);
    pop.converges();
    pop.tour(&more);
    pop.unbroken(more);
    pop.unbroken(clients);
    pop.down();
}
