//! The machine against a scripted kernel.

use homing_common::{
    host::{Encapsulation, TunnelNetwork},
    net::Address,
};

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const ETH0: u32 = 2;
const VLAN: u32 = 3;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn outer() -> Outer {
    Outer {
        encapsulation: Encapsulation::Ipip,
        tunnel: TunnelNetwork {
            network: Address::v4([10, 77, 0, 0]),
            base: 0x0a4d_0000,
            shift: 4,
            id_mask: 0xfff,
        },
        host: HostId(1),
    }
}

fn eth0() -> Link {
    Link {
        name: "eth0".into(),
        up: true,
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: 1600,
        vlan: None,
    }
}

fn vlan() -> Link {
    Link {
        name: "eth0.7".into(),
        mtu: 1500,
        vlan: Some((ETH0, 7)),
        ..eth0()
    }
}

fn route(gateway: Option<&str>) -> Result<Route, NoRoute> {
    Ok(Route {
        ifindex: ETH0,
        gateway: gateway.map(ip),
        mtu: None,
    })
}

fn known(mac: Mac) -> Neighbour {
    Neighbour::Known { mac, stale: false }
}

/// The kernel's side: what it would answer to each question.
#[derive(Clone, Default)]
struct Kernel {
    links: BTreeMap<u32, Link>,
    routes: BTreeMap<IpAddr, Result<Route, NoRoute>>,
    neighbours: BTreeMap<NextHop, Neighbour>,
}

struct World {
    kernel: Kernel,
    machine: Machine,
    now: Duration,
    written: BTreeMap<HostId, Change>,
    probes: Vec<NextHop>,
    renewals: Vec<Duration>,
    writes: usize,
}

impl World {
    /// One host, 2, on the link, with a neighbour entry.
    fn new() -> Self {
        let mut world = Self {
            kernel: Kernel::default(),
            machine: Machine::new(outer()),
            now: Duration::ZERO,
            written: BTreeMap::new(),
            probes: Vec::new(),
            renewals: Vec::new(),
            writes: 0,
        };
        world.kernel.links.insert(ETH0, eth0());
        world.kernel.routes.insert(ip("10.1.1.12"), route(None));
        world
            .kernel
            .neighbours
            .insert((ETH0, ip("10.1.1.12")), known(MAC));
        world.input(Input::Member(HostId(2), ip("10.1.1.12")));
        world.settle();
        world
    }

    fn input(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.machine.input(self.now, input, &mut actions);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let answer = match action {
                Action::FindRoute(host, address) => {
                    let route = self.kernel.routes.get(&address).copied();
                    Input::Route(host, address, route.unwrap_or(Err(NoRoute::Unreachable)))
                }
                Action::FindNeighbour(hop) => {
                    Input::Neighbour(hop, self.kernel.neighbours.get(&hop).copied())
                }
                Action::ReadLinks => {
                    let links = self.kernel.links.clone();
                    Input::Links(links.into_iter().collect())
                }
                Action::Probe(hop) => {
                    self.probes.push(hop);
                    continue;
                }
                Action::Renew(_) => {
                    self.renewals.push(self.now);
                    continue;
                }
                Action::Write(host, change) => {
                    self.writes += 1;
                    self.written.entry(host).or_default().merge(change);
                    continue;
                }
            };
            self.input(answer);
        }
    }

    /// Lets time pass to the machine's next deadline, if that is near.
    fn settle(&mut self) {
        let until = self.now + Duration::from_millis(400);
        while self.machine.deadline() <= until {
            self.now = self.now.max(self.machine.deadline());
            self.tick();
        }
    }

    fn sleep(&mut self, time: Duration) {
        let until = self.now + time;
        while self.machine.deadline() <= until {
            self.now = self.now.max(self.machine.deadline());
            self.tick();
        }
        self.now = until;
    }

    fn tick(&mut self) {
        let mut actions = Vec::new();
        self.machine.tick(self.now, &mut actions);
        self.act(actions);
    }

    fn template(&self, host: u16) -> Option<Template> {
        self.written.get(&HostId(host))?.template
    }

    fn state(&self, host: u16) -> State {
        self.machine.ways()[&HostId(host)].state
    }

    fn destination(&self, host: u16) -> [u8; 6] {
        self.template(host).unwrap().header[..6].try_into().unwrap()
    }
}

#[test]
fn a_host_on_the_link_is_reached_by_its_own_address() {
    let world = World::new();
    let hop = Hop {
        ifindex: ETH0,
        vlan: None,
        source: Mac([2, 0, 0, 0, 0, 9]),
        destination: MAC,
        mtu: 1600,
    };
    assert!(world.template(2) == Some(outer().template(HostId(2), &hop)));
    assert_eq!(world.written[&HostId(2)].member, Some(true));
    let way = &world.machine.ways()[&HostId(2)];
    assert_eq!(way.state, State::Resolved);
    assert_eq!(way.next_hop, Some(ip("10.1.1.12")));
    assert_eq!((way.mac, way.mtu), (Some(MAC), Some(1600)));
    assert_eq!(way.interface.as_deref(), Some("eth0"));
}

#[test]
fn a_host_behind_a_gateway_is_reached_by_the_gateways_address() {
    let mut world = World::new();
    world
        .kernel
        .routes
        .insert(ip("10.1.2.13"), route(Some("10.1.1.1")));
    world
        .kernel
        .neighbours
        .insert((ETH0, ip("10.1.1.1")), known(OTHER));
    world.input(Input::Member(HostId(3), ip("10.1.2.13")));
    world.settle();
    assert_eq!(world.destination(3), OTHER.0);
    assert_eq!(
        world.machine.ways()[&HostId(3)].next_hop,
        Some(ip("10.1.1.1"))
    );
}

#[test]
fn by_a_vlan_device_frames_leave_tagged_by_the_interface_below() {
    let mut world = World::new();
    world.kernel.links.insert(VLAN, vlan());
    let route = Route {
        ifindex: VLAN,
        gateway: None,
        mtu: None,
    };
    world.kernel.routes.insert(ip("10.1.1.12"), Ok(route));
    world
        .kernel
        .neighbours
        .insert((VLAN, ip("10.1.1.12")), known(MAC));
    world.input(Input::Refresh);
    world.settle();
    let template = world.template(2).unwrap();
    assert_eq!((template.ifindex, template.l2_len), (ETH0, 18));
    assert_eq!(template.header[12..16], [0x81, 0, 0, 7]);
    assert_eq!(template.mtu, 1500);
    assert_eq!(
        world.machine.ways()[&HostId(2)].interface.as_deref(),
        Some("eth0.7")
    );

    // A tag within a tag does not fit in a template.
    let stacked = Link {
        vlan: Some((9, 8)),
        ..eth0()
    };
    world.kernel.links.insert(ETH0, stacked);
    world.input(Input::LinksChanged);
    world.settle();
    assert_eq!(world.state(2), State::NotEthernet);
    assert!(world.template(2) == Some(Template::NONE));
}

#[test]
fn the_routes_mtu_counts_if_it_is_less() {
    let mut world = World::new();
    for (mtu, expected) in [(1400, 1400), (9000, 1600)] {
        let route = Route {
            ifindex: ETH0,
            gateway: None,
            mtu: Some(mtu),
        };
        world.kernel.routes.insert(ip("10.1.1.12"), Ok(route));
        world.input(Input::RouteChanged(ip("10.1.1.0"), 24));
        world.settle();
        assert_eq!(world.template(2).unwrap().mtu, expected);
    }
    world.kernel.links.get_mut(&ETH0).unwrap().mtu = 100_000;
    let lo = &mut world.kernel.routes;
    lo.insert(ip("10.1.1.12"), route(None));
    world.input(Input::LinksChanged);
    world.settle();
    assert_eq!(world.template(2).unwrap().mtu, u16::MAX);
}

#[test]
fn a_new_ethernet_address_comes_into_force_at_once() {
    let mut world = World::new();
    let hop = (ETH0, ip("10.1.1.12"));
    world.kernel.neighbours.insert(hop, known(OTHER));
    world.input(Input::NeighbourChanged(hop));
    assert_eq!(world.destination(2), OTHER.0);
}

#[test]
fn what_does_not_change_is_not_written() {
    let mut world = World::new();
    let writes = world.writes;
    world.input(Input::NeighbourChanged((ETH0, ip("10.1.1.12"))));
    world.input(Input::LinksChanged);
    world.input(Input::Refresh);
    world.sleep(REFRESH * 3);
    assert_eq!(world.writes, writes);
}

#[test]
fn an_entry_that_vanishes_is_probed_while_its_address_stays_in_force() {
    let mut world = World::new();
    let hop = (ETH0, ip("10.1.1.12"));
    world.kernel.neighbours.remove(&hop);
    world.input(Input::NeighbourChanged(hop));
    world.settle();
    assert_eq!(world.probes, [hop]);
    assert_eq!(world.destination(2), MAC.0);

    // Pending, and then without answer: no way, but asked again and again.
    world.kernel.neighbours.insert(hop, Neighbour::Pending);
    world.input(Input::NeighbourChanged(hop));
    assert_eq!(world.destination(2), MAC.0);
    world.kernel.neighbours.insert(hop, Neighbour::Failed);
    world.input(Input::NeighbourChanged(hop));
    assert!(world.template(2) == Some(Template::NONE));
    assert_eq!(world.state(2), State::Unanswered);
    world.probes.clear();
    world.sleep(PROBE * 5);
    assert!((4..=6).contains(&world.probes.len()), "{:?}", world.probes);

    // What failed once is not believed before it answers.
    world.kernel.neighbours.insert(hop, Neighbour::Pending);
    world.input(Input::NeighbourChanged(hop));
    assert_eq!(world.state(2), State::Resolving);
    world.kernel.neighbours.insert(hop, known(OTHER));
    world.input(Input::NeighbourChanged(hop));
    assert_eq!(world.destination(2), OTHER.0);
    world.probes.clear();
    world.sleep(PROBE * 5);
    assert_eq!(world.probes, []);
}

#[test]
fn a_next_hop_that_is_slow_at_first_is_asked_for_more_often() {
    let mut world = World::new();
    let hop = (ETH0, ip("10.1.1.99"));
    world
        .kernel
        .routes
        .insert(ip("10.9.9.9"), route(Some("10.1.1.99")));
    world.kernel.neighbours.insert(hop, Neighbour::Pending);
    world.input(Input::Member(HostId(9), ip("10.9.9.9")));
    let start = world.now;
    world.sleep(Duration::from_millis(900));
    let at = |n: u32| start + FIRST_PROBE * n;
    assert_eq!(world.renewals, [at(1), at(2), at(3), at(4)]);
    // Then the kernel may say that it has failed.
    world.sleep(PROBE * 5);
    assert_eq!(world.renewals.len(), 4);
    world.kernel.neighbours.insert(hop, Neighbour::Failed);
    world.input(Input::NeighbourChanged(hop));
    assert_eq!(world.state(9), State::Unanswered);

    // A link that comes up is a new start.
    for up in [false, true] {
        world.kernel.links.get_mut(&ETH0).unwrap().up = up;
        world.input(Input::LinksChanged);
        world.sleep(PROBE * 3);
    }
    world.probes.clear();
    for up in [false, true] {
        world.kernel.links.get_mut(&ETH0).unwrap().up = up;
        world.input(Input::LinksChanged);
        world.sleep(Duration::from_millis(300));
    }
    world.sleep(Duration::from_millis(500));
    assert!(world.probes.len() >= 4, "{:?}", world.probes);
    assert!(
        !world.probes.contains(&(ETH0, ip("10.1.1.12"))),
        "it answers"
    );
}

#[test]
fn a_stale_entry_is_checked_now_and_then() {
    let mut world = World::new();
    let hop = (ETH0, ip("10.1.1.12"));
    let stale = Neighbour::Known {
        mac: MAC,
        stale: true,
    };
    world.kernel.neighbours.insert(hop, stale);
    world.input(Input::NeighbourChanged(hop));
    world.sleep(REFRESH * 2);
    assert_eq!(world.probes, [hop, hop]);
    assert_eq!(world.state(2), State::Resolved);
}

#[test]
fn without_route_or_link_there_is_no_way() {
    let mut world = World::new();
    world.kernel.links.get_mut(&ETH0).unwrap().up = false;
    world.input(Input::LinksChanged);
    world.settle();
    assert_eq!(world.state(2), State::LinkDown);
    assert!(world.template(2) == Some(Template::NONE));

    world.kernel.links.get_mut(&ETH0).unwrap().up = true;
    world.input(Input::LinksChanged);
    world.settle();
    assert_eq!(world.destination(2), MAC.0);

    for (answer, state) in [
        (NoRoute::Unreachable, State::NoRoute),
        (NoRoute::Local, State::OwnAddress),
    ] {
        world.kernel.routes.insert(ip("10.1.1.12"), Err(answer));
        world.input(Input::RouteChanged(ip("0.0.0.0"), 0));
        world.settle();
        assert_eq!(world.state(2), state);
        assert!(world.template(2) == Some(Template::NONE));
    }

    world.kernel.links.get_mut(&ETH0).unwrap().mac = None;
    world.kernel.routes.insert(ip("10.1.1.12"), route(None));
    world.input(Input::LinksChanged);
    world.settle();
    assert_eq!(world.state(2), State::NotEthernet);
}

#[test]
fn a_host_that_is_gone_is_no_member_and_a_late_answer_changes_nothing() {
    let mut world = World::new();
    world.input(Input::Gone(HostId(2)));
    assert!(world.written[&HostId(2)] == Change::GONE);
    let writes = world.writes;
    world.input(Input::Route(HostId(2), ip("10.1.1.12"), route(None)));
    world.input(Input::Neighbour((ETH0, ip("10.1.1.12")), Some(known(MAC))));
    assert_eq!(world.writes, writes);
    assert!(world.machine.next_hops.is_empty());
}

#[test]
fn an_answer_about_a_former_address_changes_nothing() {
    let mut world = World::new();
    world.kernel.routes.insert(ip("10.1.1.99"), route(None));
    let hop = (ETH0, ip("10.1.1.99"));
    world.kernel.neighbours.insert(hop, known(OTHER));
    world.input(Input::Member(HostId(2), ip("10.1.1.99")));
    world.input(Input::Route(HostId(2), ip("10.1.1.12"), route(None)));
    assert_eq!(world.state(2), State::Resolving);
    assert_eq!(world.destination(2), MAC.0, "the old way serves until then");
    world.settle();
    assert_eq!(world.destination(2), OTHER.0);
    assert_eq!(world.machine.next_hops.len(), 1);
}

#[test]
fn this_host_itself_is_none_of_the_hosts() {
    let mut world = World::new();
    world.input(Input::Member(HostId(1), ip("10.1.1.11")));
    world.input(Input::Gone(HostId(1)));
    assert!(!world.written.contains_key(&HostId(1)));
}

#[test]
fn a_storm_of_route_changes_costs_a_bounded_number_of_questions() {
    let mut machine = Machine::new(outer());
    let mut out = Vec::new();
    machine.input(
        Duration::ZERO,
        Input::Member(HostId(2), ip("10.1.1.12")),
        &mut out,
    );
    let mut questions = 0;
    for ms in 0..2000 {
        let now = Duration::from_millis(ms);
        machine.input(now, Input::RouteChanged(ip("10.0.0.0"), 8), &mut out);
        machine.input(now, Input::LinksChanged, &mut out);
        machine.input(now, Input::Refresh, &mut out);
        out.clear();
        if machine.deadline() <= now {
            machine.tick(now, &mut out);
            questions += out.len();
        }
    }
    assert!((8..40).contains(&questions), "{questions} questions");
}

#[test]
fn prefixes_hold_what_they_should() {
    let holds = |prefix, len, address| contains(ip(prefix), len, ip(address));
    assert!(holds("10.1.0.0", 16, "10.1.255.1"));
    assert!(!holds("10.1.0.0", 16, "10.2.0.1"));
    assert!(holds("0.0.0.0", 0, "10.2.0.1"));
    assert!(holds("10.1.1.1", 32, "10.1.1.1"));
    assert!(!holds("10.1.1.1", 32, "10.1.1.0"));
    assert!(holds("fd00::", 8, "fd12::1"));
    assert!(!holds("fd00::", 64, "fd00:0:0:1::1"));
    assert!(holds("::", 0, "fd00::1"));
    assert!(!holds("::", 0, "10.0.0.1"));
}

mod property;
