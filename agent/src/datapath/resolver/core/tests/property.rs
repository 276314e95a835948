//! Any sequence of changes, in any order.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Route(u8, Option<u8>),
    Neighbour(u8, Option<Neighbour>),
    Up(bool),
    Member(u8),
    Gone(u8),
    Sleep(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let neighbour = prop_oneof![
        Just(None),
        Just(Some(Neighbour::Failed)),
        Just(Some(Neighbour::Pending)),
        any::<(bool, u8)>().prop_map(|(stale, n)| {
            let mac = Mac([2, 0, 0, 0, 0, n]);
            Some(Neighbour::Known { mac, stale })
        }),
    ];
    let step = prop_oneof![
        (0u8..4, prop::option::of(0u8..2)).prop_map(|(host, gw)| Step::Route(host, gw)),
        (0u8..6, neighbour).prop_map(|(n, neighbour)| Step::Neighbour(n, neighbour)),
        any::<bool>().prop_map(Step::Up),
        (0u8..4).prop_map(Step::Member),
        (0u8..4).prop_map(Step::Gone),
        (0u16..400).prop_map(Step::Sleep),
    ];
    prop::collection::vec(step, 0..60)
}

/// Hosts have 10.0.0.0 to .3, gateways .4 and .5.
fn numbered(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

proptest! {
    /// Whatever happened, in the end what is written is what the kernel says.
    #[test]
    fn in_the_end_the_kernel_is_followed(steps in steps()) {
        let mut world = World::new();
        world.input(Input::Gone(HostId(2)));
        let mut members = BTreeSet::new();
        for step in steps {
            match step {
                Step::Route(host, gateway) => {
                    let gateway = gateway.map(|gateway| numbered(4 + gateway));
                    let route = Route { ifindex: ETH0, gateway, mtu: None };
                    world.kernel.routes.insert(numbered(host), Ok(route));
                    world.input(Input::RouteChanged(numbered(host), 32));
                }
                Step::Neighbour(n, neighbour) => {
                    let hop = (ETH0, numbered(n));
                    match neighbour {
                        Some(neighbour) => world.kernel.neighbours.insert(hop, neighbour),
                        None => world.kernel.neighbours.remove(&hop),
                    };
                    world.input(Input::NeighbourChanged(hop));
                }
                Step::Up(up) => {
                    world.kernel.links.get_mut(&ETH0).unwrap().up = up;
                    world.input(Input::LinksChanged);
                }
                Step::Member(host) => {
                    members.insert(host);
                    world.input(Input::Member(HostId(10 + u16::from(host)), numbered(host)));
                }
                Step::Gone(host) => {
                    members.remove(&host);
                    world.input(Input::Gone(HostId(10 + u16::from(host))));
                }
                Step::Sleep(ms) => world.sleep(Duration::from_millis(ms.into())),
            }
        }
        // The simulated world's own clock: long enough for every retry.
        world.sleep(Duration::from_secs(2));
        for host in 0..4 {
            let id = 10 + u16::from(host);
            let written = world.written.get(&HostId(id)).copied().unwrap_or(Change::GONE);
            prop_assert_eq!(written.member, Some(members.contains(&host)));
            if !members.contains(&host) {
                prop_assert!(written.template == Some(Template::NONE));
                continue;
            }
            let route = world.kernel.routes.get(&numbered(host));
            let next_hop = route.map(|route| route.unwrap().gateway.unwrap_or(numbered(host)));
            let neighbour = next_hop.and_then(|hop| world.kernel.neighbours.get(&(ETH0, hop)));
            let up = world.kernel.links[&ETH0].up;
            match (next_hop, neighbour) {
                _ if !up || next_hop.is_none() => {
                    prop_assert!(written.template == Some(Template::NONE));
                }
                (_, Some(Neighbour::Known { mac, .. })) => {
                    prop_assert_eq!(world.destination(id), mac.0);
                }
                (_, Some(Neighbour::Failed)) => {
                    prop_assert!(written.template == Some(Template::NONE));
                }
                // Whatever was there before may serve for now.
                _ => prop_assert_ne!(world.probes.len() + world.renewals.len(), 0),
            }
        }
    }
}
