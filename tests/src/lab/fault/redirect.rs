//! Sends the frames that leave by the router's ports to the TAP devices instead, by
//! the kernel's traffic control (`u32` and `mirred`).
//!
//! Only what some fault may concern makes the detour: a program that a busy machine
//! holds up holds up what goes through it, which then looks like a fault.

use std::process::Command;

use anyhow::Result;

use super::{
    super::{
        net,
        plan::{Node, Plan},
    },
    Fault, Faults, ports, tap,
};

/// Replaces what makes the detour, at all ports.
pub fn set(plan: &Plan, faults: &Faults) -> Result<()> {
    let mut lines = Vec::new();
    for node in ports(plan) {
        // Removing the hook removes its filters; adding it first makes sure that
        // there is one to remove.
        lines.push(format!("qdisc replace dev {node} clsact"));
        lines.push(format!("qdisc del dev {node} clsact"));
        let filters = filters(plan, faults, node);
        if filters.is_empty() {
            continue;
        }
        lines.push(format!("qdisc add dev {node} clsact"));
        // A number each: filters of one number are for one protocol. The first that
        // matches decides.
        for (filter, number) in filters.iter().zip(1..) {
            lines.push(format!(
                "filter add dev {node} egress prio {number} {filter}"
            ));
        }
    }
    let mut command = Command::new("tc");
    command.args(["-netns", &plan.namespace(Node::Router), "-batch", "-"]);
    net::run(&mut command, Some(&lines.join("\n")))
}

/// What decides at the port towards a machine, in order; nothing if no fault concerns
/// what is sent to it.
fn filters(plan: &Plan, faults: &Faults, to: Node) -> Vec<String> {
    let faults: Vec<&Fault> = faults.list.iter().filter(|fault| fault.is_to(to)).collect();
    if faults.is_empty() {
        return Vec::new();
    }
    let mut filters = Vec::new();
    for client in 1..=plan.clients {
        if faults
            .iter()
            .any(|fault| fault.is_from(Node::Client(client)))
        {
            continue;
        }
        let (v4, v6) = plan.client_addresses(client);
        // A class, whichever: decided on, without the action that would say so and that
        // not every kernel has.
        filters.push(format!("protocol ip u32 match ip src {v4}/32 flowid 1:1"));
        filters.push(format!(
            "protocol ipv6 u32 match ip6 src {v6}/128 flowid 1:1"
        ));
    }
    let detour: &[&str] = match Faults::concern_all(&faults) {
        true => &["protocol all u32 match u32 0 0"],
        false => &[
            "protocol ip u32 match ip protocol 17 0xff",
            "protocol ipv6 u32 match ip6 protocol 17 0xff",
        ],
    };
    let redirect = format!("action mirred egress redirect dev {}", tap(to));
    filters.extend(detour.iter().map(|what| format!("{what} {redirect}")));
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Outer, Tunnel};

    fn plan() -> Plan {
        Plan {
            name: "x".to_owned(),
            hosts: 3,
            racks: 1,
            clients: 1,
            tunnel: Tunnel::Ipip,
            outer: Outer::V4,
            encryption: true,
        }
    }

    /// How many filters let frames by at the port towards a machine, and how many
    /// redirect them.
    fn count(list: Vec<Fault>, to: Node) -> (usize, usize) {
        let faults = Faults { seed: 0, list };
        let filters = filters(&plan(), &faults, to);
        let of = |end: &str| filters.iter().filter(|filter| filter.contains(end)).count();
        (of("flowid 1:1"), of("redirect dev x"))
    }

    #[test]
    fn only_what_a_fault_may_concern_makes_the_detour() {
        assert_eq!(count(Vec::new(), Node::Host(1)), (0, 0));
        let cut = Fault::all().cut().from(&[1]).to(&[2]);
        assert_eq!(count(vec![cut.clone()], Node::Host(2)), (2, 1));
        for to in [Node::Host(1), Node::Host(3), Node::Client(1)] {
            assert_eq!(count(vec![cut.clone()], to), (0, 0));
        }
        // From whomever: clients, too.
        let loss = Fault::all().loss(10.0);
        assert_eq!(count(vec![loss.clone()], Node::Client(1)), (0, 1));
        assert_eq!(count(vec![cut, loss], Node::Host(2)), (0, 1));
        // What agents say is UDP, and no client says it.
        let gossip = Fault::gossip().loss(10.0).to(&[1]);
        assert_eq!(count(vec![gossip], Node::Host(1)), (2, 2));
    }
}
