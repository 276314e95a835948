//! Sends the frames that leave by the router's ports to the TAP devices instead, by
//! the kernel's traffic control (`u32` and `mirred`).

use std::process::Command;

use anyhow::Result;

use super::{
    super::{
        net,
        plan::{Node, Plan},
    },
    ports, tap,
};

/// What makes the detour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Nothing.
    Nothing,
    /// UDP packets, gossip among them.
    Udp,
    /// All frames.
    Everything,
}

/// Replaces what makes the detour, at all ports.
pub fn set(plan: &Plan, which: Which) -> Result<()> {
    let mut lines = Vec::new();
    for node in ports(plan) {
        // Removing the hook removes its filters; adding it first makes sure that
        // there is one to remove.
        lines.push(format!("qdisc replace dev {node} clsact"));
        lines.push(format!("qdisc del dev {node} clsact"));
        let matches: &[(&str, &str)] = match which {
            Which::Nothing => continue,
            Which::Udp => &[
                ("ip", "match ip protocol 17 0xff"),
                ("ipv6", "match ip6 protocol 17 0xff"),
            ],
            Which::Everything => &[("all", "match u32 0 0")],
        };
        lines.push(format!("qdisc add dev {node} clsact"));
        for (number, (protocol, condition)) in matches.iter().enumerate() {
            lines.push(format!(
                "filter add dev {node} egress prio {} protocol {protocol} u32 {condition} action mirred egress redirect dev {}",
                number + 1,
                tap(node)
            ));
        }
    }
    let mut command = Command::new("tc");
    command.args(["-netns", &plan.namespace(Node::Router), "-batch", "-"]);
    net::run(&mut command, Some(&lines.join("\n")))
}
