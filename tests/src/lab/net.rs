//! Links, addresses and routes of a lab, by way of iproute2 and ethtool.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
};

use super::{
    node,
    plan::{CLIENT_MTU, FABRIC_MTU, Node, Outer, Plan, SERVICE_V4, SERVICE_V6},
    wait_until,
};

/// The ids of the two nexthop groups: IPv4 and IPv6.
const GROUPS: [u32; 2] = [1, 2];
/// The id of host `n`'s nexthop is this plus `n`: IPv4 and IPv6.
const NEXTHOPS: [u32; 2] = [1000, 2000];

/// How long bridges may take to get a carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the network namespaces.
pub fn make_namespaces(plan: &Plan) -> Result<()> {
    let lines: Vec<String> = plan
        .nodes()
        .iter()
        .map(|node| format!("netns add {}", plan.namespace(*node)))
        .collect();
    ip(None, &lines)
}

/// Removes the network namespaces of a lab, and with them all links and routes.
pub fn remove_namespaces(lab: &str) -> Result<()> {
    let names = node::namespaces(lab);
    let lines: Vec<String> = names
        .iter()
        .map(|name| format!("netns delete {name}"))
        .collect();
    ip(None, &lines)
}

/// Builds links, addresses and routes in namespaces that are empty.
pub fn build(plan: &Plan, ecmp: &[u16]) -> Result<()> {
    for node in plan.nodes() {
        set_sysctls(plan, node)?;
    }
    ip(Some(&plan.namespace(Node::Router)), &router_links(plan))?;
    for host in 1..=plan.hosts {
        ip(
            Some(&plan.namespace(Node::Host(host))),
            &host_lines(plan, host),
        )?;
    }
    for client in 1..=plan.clients {
        ip(
            Some(&plan.namespace(Node::Client(client))),
            &client_lines(plan, client),
        )?;
    }
    wait_for_carrier(plan)?;
    let mut routes = router_routes(plan);
    routes.extend(ecmp_lines(ecmp));
    for (group, service) in GROUPS
        .iter()
        .zip([IpAddr::from(SERVICE_V4), SERVICE_V6.into()])
    {
        routes.push(format!(
            "{} route add {service} nhid {group}",
            family(&service)
        ));
    }
    ip(Some(&plan.namespace(Node::Router)), &routes)?;
    set_offloads(plan)
}

/// Waits until the racks' bridges have a carrier. They get it from their ports in the
/// kernel's own time, and no next hop can be made by one that has none.
fn wait_for_carrier(plan: &Plan) -> Result<()> {
    let have = wait_until(CARRIER_TIMEOUT, || {
        node::in_namespace(&plan.namespace(Node::Router), || {
            let up = |link: &InterfaceAddress| link.flags.contains(InterfaceFlags::IFF_LOWER_UP);
            let up: BTreeSet<String> = getifaddrs()?.filter(up).map(|l| l.interface_name).collect();
            Ok((1..=plan.racks).all(|rack| up.contains(&format!("rack{rack}"))))
        })
    });
    ensure!(have?, "the racks' bridges got no carrier");
    Ok(())
}

/// Puts another set of hosts, in another order, behind the service addresses.
pub fn set_ecmp(plan: &Plan, ecmp: &[u16]) -> Result<()> {
    ip(Some(&plan.namespace(Node::Router)), &ecmp_lines(ecmp))
}

fn router_links(plan: &Plan) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    for rack in 1..=plan.racks {
        let (v4, v6) = plan.gateway(rack);
        // Without snooping the bridge floods multicast: a plain broadcast domain.
        lines.extend([
            format!("link add rack{rack} mtu {FABRIC_MTU} address 02:68:6d:01:{rack:02x}:01 type bridge mcast_snooping 0 forward_delay 0"),
            format!("addr add {v4}/24 dev rack{rack}"),
            format!("addr add {v6}/64 dev rack{rack} nodad"),
            format!("link set rack{rack} up"),
        ]);
    }
    for host in 1..=plan.hosts {
        lines.extend(host_link(plan, host));
    }
    for client in 1..=plan.clients {
        let (v4, v6) = plan.client_addresses(client);
        let [a, b, c, _] = v4.octets();
        let mut router6 = v6.segments();
        router6[7] = 1;
        lines.extend([
            format!(
                "link add c{client} mtu {CLIENT_MTU} type veth peer name eth0 mtu {CLIENT_MTU} address 02:68:6d:02:{client:02x}:02 netns {}",
                plan.namespace(Node::Client(client))
            ),
            format!("addr add {a}.{b}.{c}.1/24 dev c{client}"),
            format!("addr add {}/64 dev c{client} nodad", std::net::Ipv6Addr::from(router6)),
            format!("link set c{client} up"),
        ]);
    }
    lines
}

/// The wire between the router and a host.
fn host_link(plan: &Plan, host: u16) -> [String; 2] {
    [
        format!(
            "link add h{host} mtu {FABRIC_MTU} type veth peer name eth0 mtu {FABRIC_MTU} address {} netns {}",
            plan.host_mac(host),
            plan.namespace(Node::Host(host))
        ),
        format!("link set h{host} master rack{} up", plan.rack_of(host)),
    ]
}

/// What can only be said once the hosts' ends are up: routes to tunnel prefixes.
fn router_routes(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for host in 1..=plan.hosts {
        let (prefix, via) = (plan.tunnel_prefix(host), plan.fabric_address(host));
        lines.push(format!("{} route add {prefix} via {via}", family(&via)));
        for (first, via) in NEXTHOPS
            .iter()
            .zip([IpAddr::from(plan.host_v4(host)), plan.host_v6(host).into()])
        {
            lines.push(format!(
                "nexthop add id {} via {via} dev rack{}",
                first + u32::from(host),
                plan.rack_of(host)
            ));
        }
    }
    // Nothing from outside reaches a tunnel prefix: the POP's edge.
    for client in 1..=plan.clients {
        let (network, _) = plan.tunnel_network();
        let family = if plan.outer == Outer::V4 { "" } else { "-6" };
        lines.push(format!(
            "{family} rule add iif c{client} to {network} blackhole"
        ));
    }
    lines
}

fn ecmp_lines(ecmp: &[u16]) -> Vec<String> {
    GROUPS
        .iter()
        .zip(NEXTHOPS)
        .map(|(group, first)| {
            let members: Vec<String> = ecmp
                .iter()
                .map(|host| (first + u32::from(*host)).to_string())
                .collect();
            format!("nexthop replace id {group} group {}", members.join("/"))
        })
        .collect()
}

fn host_lines(plan: &Plan, host: u16) -> Vec<String> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {SERVICE_V4}/32 dev lo"),
        format!("addr add {SERVICE_V6}/128 dev lo nodad"),
    ];
    lines.extend(host_interface(plan, host));
    lines
}

/// A host's end of its wire: addresses, and the routes by it.
fn host_interface(plan: &Plan, host: u16) -> [String; 5] {
    let (gateway4, gateway6) = plan.gateway(plan.rack_of(host));
    [
        format!("addr add {}/24 dev eth0", plan.host_v4(host)),
        format!("addr add {}/64 dev eth0 nodad", plan.host_v6(host)),
        "link set eth0 up".to_owned(),
        format!("route add default via {gateway4}"),
        format!("-6 route add default via {gateway6}"),
    ]
}

fn client_lines(plan: &Plan, client: u16) -> Vec<String> {
    let (v4, v6) = plan.client_addresses(client);
    let [a, b, c, _] = v4.octets();
    let mut gateway6 = v6.segments();
    gateway6[7] = 1;
    vec![
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {a}.{b}.{c}.1"),
        format!(
            "-6 route add default via {}",
            std::net::Ipv6Addr::from(gateway6)
        ),
    ]
}

/// Kernel settings of one machine. They are the namespace's own; written before
/// there are links, so that every link starts with them.
fn set_sysctls(plan: &Plan, node: Node) -> Result<()> {
    let mut settings = vec![
        // Addresses are unique by construction; waiting for proof costs seconds.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        // What came through a tunnel has a source that is routed elsewhere.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ];
    match node {
        Node::Router => settings.extend([
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            ("ipv4/fib_multipath_hash_policy", "1"),
            ("ipv6/fib_multipath_hash_policy", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ]),
        // All hosts have the service addresses: none may answer ARP for them, nor
        // ask in their name.
        Node::Host(_) => settings.extend([
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/arp_announce", "2"),
            ("ipv4/conf/default/arp_announce", "2"),
        ]),
        Node::Client(_) => {}
    }
    node::in_namespace(&plan.namespace(node), || {
        for (name, value) in settings {
            fs::write(format!("/proc/sys/net/{name}"), value)
                .with_context(|| format!("cannot set net/{name} to {value} on {node}"))?;
        }
        Ok(())
    })
}

/// Destroys a host's wire. Nothing is left of its interface.
pub fn unplug(plan: &Plan, host: u16) -> Result<()> {
    let lines = [format!("link delete h{host}")];
    ip(Some(&plan.namespace(Node::Router)), &lines)
}

/// Gives a host whose wire was destroyed a new one, with addresses and routes as at
/// first: its interface has the same name and is another one.
pub fn plug(plan: &Plan, host: u16) -> Result<()> {
    let router = plan.namespace(Node::Router);
    ip(Some(&router), &host_link(plan, host))?;
    ip(
        Some(&plan.namespace(Node::Host(host))),
        &host_interface(plan, host),
    )?;
    node::in_namespace(&router, || set_offload(host))
}

fn set_offloads(plan: &Plan) -> Result<()> {
    node::in_namespace(&plan.namespace(Node::Router), || {
        (1..=plan.hosts).try_for_each(set_offload)
    })
}

/// The router's ports that face hosts hand over whole packets with their
/// checksums filled in, as a wire would: XDP on the host's end sees raw frames
/// and the tunnel carries them on as they are.
fn set_offload(host: u16) -> Result<()> {
    let port = format!("h{host}");
    let mut command = Command::new("ethtool");
    command.args(["-K", &port, "tx", "off", "tso", "off"]);
    run(&mut command, None)
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

/// Runs lines of `ip` in one go, in a namespace if one is named.
fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    // `ip -batch` takes no family per line, so lines that name one go apart.
    let mut rest = lines;
    while let Some(first) = rest.first() {
        let (family, _) = split_family(first);
        let len = rest
            .iter()
            .take_while(|line| split_family(line).0 == family)
            .count();
        let (batch, others) = rest.split_at(len);
        rest = others;
        let mut command = Command::new("ip");
        if !family.is_empty() {
            command.arg(family);
        }
        if let Some(namespace) = namespace {
            command.args(["-netns", namespace]);
        }
        command.args(["-batch", "-"]);
        let text: Vec<&str> = batch.iter().map(|line| split_family(line).1).collect();
        run(&mut command, Some(&text.join("\n"))).with_context(|| {
            format!(
                "in {}: \n{}",
                namespace.unwrap_or("this machine"),
                text.join("\n")
            )
        })?;
    }
    Ok(())
}

fn split_family(line: &str) -> (&str, &str) {
    match line.split_once(' ') {
        Some((family @ ("-4" | "-6"), rest)) => (family, rest),
        _ => ("", line.trim_start()),
    }
}

/// Runs a program with `input`; what it complains of becomes the error.
pub(super) fn run(command: &mut Command, input: Option<&str>) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}; `cargo xtask setup` installs it"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{name} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
