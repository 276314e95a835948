//! What stands where: `lab status`.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{Lab, Node};

/// A lab at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The lab's name.
    pub lab: String,
    /// The tunnel between hosts: kind and outer family.
    pub tunnel: String,
    /// The hosts behind the service addresses, in order.
    pub ecmp: Vec<u16>,
    /// The machines.
    pub machines: Vec<Machine>,
}

/// A machine of the lab.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its rack, of a host.
    pub rack: Option<u16>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// The process id of its agent, if one runs.
    pub agent: Option<i32>,
    /// Sessions of its own, as its agent says.
    pub sessions: Option<u64>,
    /// Entries for sessions of others, as its agent says.
    pub owners: Option<u64>,
}

impl Status {
    /// Asks every agent of the lab.
    pub fn of(lab: &Lab) -> Self {
        let plan = lab.plan();
        Self {
            lab: plan.name.clone(),
            tunnel: format!("{} over {}", plan.tunnel, plan.outer),
            ecmp: lab.ecmp().to_vec(),
            machines: plan
                .nodes()
                .into_iter()
                .map(|node| Machine::of(lab, node))
                .collect(),
        }
    }
}

impl Machine {
    fn of(lab: &Lab, node: Node) -> Self {
        let plan = lab.plan();
        let mut machine = Self {
            name: node.to_string(),
            namespace: lab.namespace(node),
            rack: None,
            addresses: Vec::new(),
            agent: None,
            sessions: None,
            owners: None,
        };
        match node {
            Node::Router => {}
            Node::Client(client) => {
                let (v4, v6) = plan.client_addresses(client);
                machine.addresses = vec![v4.to_string(), v6.to_string()];
            }
            Node::Host(host) => {
                machine.rack = Some(plan.rack_of(host));
                machine.addresses = vec![
                    plan.host_v4(host).to_string(),
                    plan.host_v6(host).to_string(),
                ];
                machine.agent = lab.agent(host).map(|process| process.pid);
                let status = machine
                    .agent
                    .and_then(|_| lab.homing_json(host, &["status"]).ok());
                let number = |pointer| status.as_ref()?.pointer(pointer).and_then(Value::as_u64);
                machine.sessions = number(super::agent::SESSIONS);
                machine.owners = number(super::agent::OWNERS);
            }
        }
        machine
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ecmp: Vec<String> = self.ecmp.iter().map(|host| format!("h{host}")).collect();
        writeln!(
            f,
            "lab \"{}\", tunnel {}, ECMP set: {}",
            self.lab,
            self.tunnel,
            ecmp.join(" ")
        )?;
        let mut rows = vec![
            [
                "MACHINE",
                "NAMESPACE",
                "RACK",
                "ADDRESSES",
                "AGENT",
                "SESSIONS",
                "OWNERS",
            ]
            .map(str::to_owned),
        ];
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for machine in &self.machines {
            rows.push([
                machine.name.clone(),
                machine.namespace.clone(),
                or_dash(machine.rack.map(|n| n.to_string())),
                if machine.addresses.is_empty() {
                    "-".to_owned()
                } else {
                    machine.addresses.join(" ")
                },
                or_dash(machine.agent.map(|n| n.to_string())),
                or_dash(machine.sessions.map(|n| n.to_string())),
                or_dash(machine.owners.map(|n| n.to_string())),
            ]);
        }
        write!(f, "{}", Table(&rows))
    }
}

/// Rows in columns, two spaces apart.
pub struct Table<'a, const N: usize>(pub &'a [[String; N]]);

impl<const N: usize> fmt::Display for Table<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in self.0 {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in self.0 {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}
