//! What a lab consists of, before any of it exists: names, addresses, routes.
//!
//! Pure: nothing here touches the machine.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The name of the lab that is meant when none is given.
pub const DEFAULT_NAME: &str = "main";
/// The most hosts a lab has: the addresses of one rack's network bound it.
pub const MAX_HOSTS: u16 = 200;
/// The most racks, and the most client machines.
pub const MAX_RACKS: u16 = 50;
/// MTU of the links between hosts and router: room for any tunnel header on
/// top of a client's 1500 bytes.
pub const FABRIC_MTU: u16 = 1600;
/// MTU of the clients' links.
pub const CLIENT_MTU: u16 = 1500;
/// The POP's service address, IPv4.
pub const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The POP's service address, IPv6.
pub const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
/// The ports that are services of the POP, on both addresses.
pub const SERVICE_PORTS: [u16; 5] = [80, 443, 5201, 8080, 9000];
/// The UDP port that is a service of the POP, on both addresses.
pub const UDP_PORT: u16 = 443;
/// The UDP port of agents.
pub const AGENT_PORT: u16 = 7946;
/// The UDP port of their multicast.
pub const GROUP_PORT: u16 = 7947;

/// How packets travel between hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// IP in UDP.
    Gue,
}

/// The address family that tunnels run over, and that agents talk over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Outer {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        })
    }
}

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// One machine of the lab.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Node {
    /// The router between clients and racks.
    Router,
    /// A host of the POP, by its host id.
    Host(u16),
    /// A client machine, from 1.
    Client(u16),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router => f.write_str("router"),
            Self::Host(n) => write!(f, "h{n}"),
            Self::Client(n) => write!(f, "c{n}"),
        }
    }
}

impl From<Node> for String {
    fn from(node: Node) -> Self {
        node.to_string()
    }
}

impl TryFrom<String> for Node {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Node {
    type Err = anyhow::Error;

    /// Accepts `h1` as well as the name of its namespace, `hm-h1`.
    fn from_str(text: &str) -> Result<Self> {
        let short = text.rsplit('-').next().unwrap_or(text);
        let number = |digits: &str| digits.parse::<u16>().ok().filter(|n| *n > 0);
        let node = match short.as_bytes().first() {
            _ if short == "router" => Some(Self::Router),
            Some(b'h') => number(&short[1..]).map(Self::Host),
            Some(b'c') => number(&short[1..]).map(Self::Client),
            _ => None,
        };
        node.ok_or_else(|| {
            anyhow::anyhow!(
                "\"{text}\" names no machine of a lab; use router, h1, h2, … or c1, c2, …"
            )
        })
    }
}

/// A lab as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name; several labs can stand side by side.
    pub name: String,
    /// Number of hosts.
    pub hosts: u16,
    /// Number of racks: broadcast domains.
    pub racks: u16,
    /// Number of client machines.
    pub clients: u16,
    /// How packets travel between hosts.
    pub tunnel: Tunnel,
    /// The family tunnels run over.
    pub outer: Outer,
    /// Messages of message sockets are encrypted between hosts.
    pub encryption: bool,
}

/// Paths of an agent's Unix sockets.
pub struct Sockets {
    /// Where operators' commands go.
    pub admin: PathBuf,
    /// Where applications register whose connections move.
    pub apps: PathBuf,
    /// Where applications ask for message sockets.
    pub mux: PathBuf,
}

impl Plan {
    /// Refuses what cannot be built.
    pub fn check(&self) -> Result<()> {
        let name = self.name.as_bytes();
        ensure!(
            !name.is_empty()
                && name.len() <= 16
                && name
                    .iter()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
                && Node::from_str(&self.name).is_err(),
            "\"{}\" cannot name a lab: use up to 16 of a-z and 0-9, and not the name of a machine (h1, c1, router)",
            self.name
        );
        let within = |what: &str, n: u16, max: u16| {
            ensure!((1..=max).contains(&n), "{n} {what}: a lab has 1 to {max}");
            Ok(())
        };
        within("hosts", self.hosts, MAX_HOSTS)?;
        within("racks", self.racks, MAX_RACKS)?;
        within("clients", self.clients, MAX_RACKS)?;
        if self.racks > self.hosts {
            bail!(
                "{} racks for {} hosts: give every rack a host",
                self.racks,
                self.hosts
            );
        }
        Ok(())
    }

    /// Every machine: the router first.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes = vec![Node::Router];
        nodes.extend((1..=self.hosts).map(Node::Host));
        nodes.extend((1..=self.clients).map(Node::Client));
        nodes
    }

    /// Whether the lab has this machine.
    pub fn has(&self, node: Node) -> bool {
        match node {
            Node::Router => true,
            Node::Host(n) => n <= self.hosts,
            Node::Client(n) => n <= self.clients,
        }
    }

    /// The name of a machine's network namespace: `hm-h1` in the default lab,
    /// `hm-NAME-h1` in any other.
    pub fn namespace(&self, node: Node) -> String {
        format!("{}{node}", namespace_prefix(&self.name))
    }

    /// The rack of a host: hosts stand in order, the first racks taking one more
    /// where the number does not divide.
    pub fn rack_of(&self, host: u16) -> u16 {
        let (each, over) = (self.hosts / self.racks, self.hosts % self.racks);
        let wide = over * (each + 1);
        let index = host - 1;
        if index < wide {
            index / (each + 1) + 1
        } else {
            over + (index - wide) / each + 1
        }
    }

    /// A host's fabric address, IPv4.
    pub fn host_v4(&self, host: u16) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, self.rack_of(host) as u8, 10 + host as u8)
    }

    /// A host's fabric address, IPv6. The last group reads like the last octet of
    /// the IPv4 address.
    pub fn host_v6(&self, host: u16) -> Ipv6Addr {
        let last = u16::from_str_radix(&(10 + host).to_string(), 16).unwrap_or(host);
        Ipv6Addr::new(
            0xfd00,
            1,
            decimal_looking(self.rack_of(host)),
            0,
            0,
            0,
            0,
            last,
        )
    }

    /// The address a host's agent and its tunnels go by.
    pub fn fabric_address(&self, host: u16) -> IpAddr {
        match self.outer {
            Outer::V4 => self.host_v4(host).into(),
            Outer::V6 => self.host_v6(host).into(),
        }
    }

    /// The router's addresses in a rack.
    pub fn gateway(&self, rack: u16) -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 1, rack as u8, 1),
            Ipv6Addr::new(0xfd00, 1, decimal_looking(rack), 0, 0, 0, 0, 1),
        )
    }

    /// A client's addresses; the router has the same ones ending in 1.
    pub fn client_addresses(&self, client: u16) -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 2, client as u8, 2),
            Ipv6Addr::new(0xfd00, 2, decimal_looking(client), 0, 0, 0, 0, 2),
        )
    }

    /// The network that tunnel prefixes are cut from, and their length.
    pub fn tunnel_network(&self) -> (&'static str, u8) {
        match self.outer {
            Outer::V4 => ("10.77.0.0/16", 28),
            Outer::V6 => ("fd77::/48", 64),
        }
    }

    /// A host's tunnel prefix.
    pub fn tunnel_prefix(&self, host: u16) -> String {
        match self.outer {
            Outer::V4 => {
                let bits = u32::from(Ipv4Addr::new(10, 77, 0, 0)) + (u32::from(host) << 4);
                format!("{}/28", Ipv4Addr::from(bits))
            }
            Outer::V6 => format!("{}/64", Ipv6Addr::new(0xfd77, 0, 0, host, 0, 0, 0, 0)),
        }
    }

    /// The service endpoints at one port: IPv4, then IPv6.
    pub fn service(&self, port: u16) -> [SocketAddr; 2] {
        [(SERVICE_V4, port).into(), (SERVICE_V6, port).into()]
    }

    /// The Ethernet address of a host's fabric interface, so that captures read
    /// easily: rack and host stand in it.
    pub fn host_mac(&self, host: u16) -> String {
        format!("02:68:6d:01:{:02x}:{:02x}", self.rack_of(host), 10 + host)
    }

    /// A host's configuration file, with the paths of its key file and its sockets.
    pub fn config(&self, host: u16, key_file: &Path, sockets: &Sockets) -> String {
        let (network, prefix_len) = self.tunnel_network();
        let multicast = match self.outer {
            Outer::V4 => format!("239.77.77.77:{GROUP_PORT}"),
            Outer::V6 => format!("[ff12::7777]:{GROUP_PORT}"),
        };
        let key_file = key_file.display();
        let rack = self.rack_of(host);
        let address = SocketAddr::new(self.fabric_address(host), AGENT_PORT);
        let mut text = format!(
            r#"# Written by the lab "{name}".
instance = "homing"

[host]
id = {host}
domain = "rack-{rack}"
interfaces = ["eth0"]
xdp_mode = "native"
cgroup = "/sys/fs/cgroup"

[pop]
key_file = "{key_file}"
address = "{address}"
multicast = "{multicast}"
"#,
            name = self.name,
        );
        // A few seeds in different racks are enough to find everybody.
        for seed in self.seeds().into_iter().filter(|seed| *seed != host) {
            let address = SocketAddr::new(self.fabric_address(seed), AGENT_PORT);
            text += &format!("\n[[pop.seeds]]\nhost = {seed}\naddress = \"{address}\"\n");
        }
        text += &format!(
            "\n[tunnel]\nencapsulation = \"{}\"\nnetwork = \"{network}\"\nhost_prefix_len = {prefix_len}\n",
            self.tunnel
        );
        let tcp = SERVICE_PORTS.map(|port| (port, "tcp"));
        for (port, protocol) in tcp.into_iter().chain([(UDP_PORT, "udp")]) {
            for service in self.service(port) {
                text += &format!(
                    "\n[[services]]\naddress = \"{}\"\nport = {port}\nprotocol = \"{protocol}\"\n",
                    service.ip()
                );
            }
        }
        text += "\n[udp]\nidle_timeout = \"6s\"\n";
        let Sockets { admin, apps, mux } = sockets;
        for (section, socket) in [("apps", apps), ("admin", admin), ("mux", mux)] {
            text += &format!("\n[{section}]\nsocket = \"{}\"\n", socket.display());
        }
        text + &format!("encryption = {}\n", self.encryption)
    }

    /// The hosts that others join through: the first of each rack, up to four.
    fn seeds(&self) -> Vec<u16> {
        let mut seeds: Vec<u16> = Vec::new();
        for host in 1..=self.hosts {
            let rack = self.rack_of(host);
            if seeds.len() < 4
                && (self.racks == 1 || seeds.iter().all(|s| self.rack_of(*s) != rack))
            {
                seeds.push(host);
            }
        }
        seeds
    }
}

/// What the namespaces of a lab begin with.
pub fn namespace_prefix(lab: &str) -> String {
    if lab == DEFAULT_NAME {
        "hm-".to_owned()
    } else {
        format!("hm-{lab}-")
    }
}

/// Whether a network namespace of this name belongs to the lab.
pub fn is_namespace_of(lab: &str, namespace: &str) -> bool {
    namespace
        .strip_prefix(&namespace_prefix(lab))
        .is_some_and(|rest| !rest.contains('-') && Node::from_str(rest).is_ok())
}

/// The number whose hexadecimal digits read like `n` in decimal.
fn decimal_looking(n: u16) -> u16 {
    u16::from_str_radix(&n.to_string(), 16).unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(hosts: u16, racks: u16) -> Plan {
        Plan {
            name: DEFAULT_NAME.to_owned(),
            hosts,
            racks,
            clients: 1,
            tunnel: Tunnel::Ipip,
            outer: Outer::V4,
            encryption: true,
        }
    }

    #[test]
    fn racks_are_filled_in_order_and_evenly() {
        let racks = |hosts, racks| {
            (1..=hosts)
                .map(|h| plan(hosts, racks).rack_of(h))
                .collect::<Vec<_>>()
        };
        assert_eq!(racks(4, 2), [1, 1, 2, 2]);
        assert_eq!(racks(5, 2), [1, 1, 1, 2, 2]);
        assert_eq!(racks(7, 3), [1, 1, 1, 2, 2, 3, 3]);
        assert_eq!(racks(3, 3), [1, 2, 3]);
        assert_eq!(racks(1, 1), [1]);
    }

    #[test]
    fn addresses_of_hosts_and_tunnels() {
        let mut plan = plan(4, 2);
        assert_eq!(plan.host_v4(3).to_string(), "10.1.2.13");
        assert_eq!(plan.host_v6(3).to_string(), "fd00:1:2::13");
        assert_eq!(plan.tunnel_prefix(1), "10.77.0.16/28");
        assert_eq!(plan.tunnel_prefix(17), "10.77.1.16/28");
        plan.outer = Outer::V6;
        assert_eq!(plan.tunnel_prefix(17), "fd77:0:0:11::/64");
        assert_eq!(plan.fabric_address(1).to_string(), "fd00:1:1::11");
    }

    #[test]
    fn no_two_machines_share_an_address() {
        let plan = plan(MAX_HOSTS, MAX_RACKS);
        let mut v4: Vec<_> = (1..=plan.hosts).map(|h| plan.host_v4(h)).collect();
        v4.extend((1..=plan.racks).map(|r| plan.gateway(r).0));
        let mut v6: Vec<_> = (1..=plan.hosts).map(|h| plan.host_v6(h)).collect();
        v6.extend((1..=plan.racks).map(|r| plan.gateway(r).1));
        let (all4, all6) = (v4.len(), v6.len());
        v4.sort();
        v4.dedup();
        v6.sort();
        v6.dedup();
        assert_eq!((v4.len(), v6.len()), (all4, all6));
    }

    #[test]
    fn names_of_namespaces_do_not_collide() {
        let mut plan = plan(2, 1);
        assert_eq!(plan.namespace(Node::Host(1)), "hm-h1");
        plan.name = "two".to_owned();
        assert_eq!(plan.namespace(Node::Router), "hm-two-router");
        assert!(is_namespace_of("main", "hm-h12"));
        assert!(is_namespace_of("two", "hm-two-c1"));
        assert!(!is_namespace_of("main", "hm-two-c1"));
        assert!(!is_namespace_of("two", "hm-c1"));
        assert!(!is_namespace_of("main", "hm-house"));
    }

    #[test]
    fn impossible_labs_are_refused() {
        let refused = |name: &str, hosts, racks| {
            let mut plan = plan(hosts, racks);
            plan.name = name.to_owned();
            plan.check().is_err()
        };
        assert!(!refused("main", 4, 2));
        assert!(refused("main", 0, 1));
        assert!(refused("main", 2, 3));
        assert!(refused("h1", 2, 1));
        assert!(refused("a-b", 2, 1));
        assert!(refused("", 2, 1));
        assert!(refused("main", MAX_HOSTS + 1, 1));
    }

    #[test]
    fn machines_are_named_both_ways() {
        for node in plan(2, 1).nodes() {
            assert_eq!(node.to_string().parse::<Node>().unwrap(), node);
            assert_eq!(format!("hm-{node}").parse::<Node>().unwrap(), node);
        }
        assert!("h0".parse::<Node>().is_err());
        assert!("x".parse::<Node>().is_err());
    }
}
