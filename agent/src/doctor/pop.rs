//! Checks of this host's place in its POP: addresses, multicast, agents.

use super::{
    Level, Said,
    facts::{Facts, Process, Whose},
};
use crate::admin::api::{self, HostState};

/// How long a host that is up may take to hear, and to say that it hears.
const HEARD_WITHIN_MS: u64 = 10_000;

pub(super) fn fabric_address(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let address = config.pop.address.ip();
    let file = config.path.display();
    let holder = match &host.fabric {
        Ok(Some(holder)) => holder,
        Ok(None) => {
            return vec![Said::bad(
                Level::Error,
                format!("no interface has {address}"),
                "the other hosts send gossip, carriers and tunnel packets to pop.address; the \
                 agent cannot bind it",
                format!(
                    "ip -brief address  # then give the interface {address}, or correct \
                     pop.address in {file}"
                ),
            )];
        }
        Err(reason) => return vec![Said::unknown("the host's addresses", reason)],
    };
    // Of a VLAN interface, the programs may be on the one below, which sees the tags.
    let below = host.vlans.get(&holder.name);
    let names = &config.host.interfaces;
    let covered = [Some(&holder.name), below];
    vec![if covered
        .into_iter()
        .flatten()
        .any(|name| names.contains(name))
    {
        Said::ok(format!("{address} on {}", holder.name))
    } else {
        Said::bad(
            Level::Error,
            format!(
                "{address} is on {}, host.interfaces names {}",
                holder.name,
                names.join(", ")
            ),
            "tunnel packets and the other hosts' echoes come in by the interface of pop.address, \
             where no program would see them: the others take this host's kernel for dead",
            format!(
                "in {file} add \"{}\" to host.interfaces; then `systemctl restart homing`",
                holder.name
            ),
        )
    }]
}

pub(super) fn service_addresses(facts: &Facts) -> Vec<Said> {
    let Some((_, host)) = facts.configured() else {
        return Vec::new();
    };
    let mut said = Vec::new();
    for (address, local) in &host.services {
        let len = if address.is_ipv4() { 32 } else { 128 };
        match local {
            Ok(true) => {}
            Ok(false) => said.push(Said::bad(
                Level::Error,
                format!("{address} is not an address of this host"),
                "the stack accepts no connection to it: packets that the routers send here are \
                 dropped or sent back",
                format!("ip address add {address}/{len} dev lo"),
            )),
            Err(reason) => said.push(Said::unknown(&address.to_string(), reason)),
        }
    }
    if said.is_empty() {
        let addresses = host.services.iter().map(|(address, _)| address.to_string());
        said.push(Said::ok(addresses.collect::<Vec<_>>().join(", ")));
    }
    said
}

pub(super) fn multicast(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let Some(group) = config.pop.multicast else {
        return vec![Said::ok("none: gossip goes by unicast")];
    };
    if let Ok(Some(holder)) = &host.fabric
        && !holder.multicast
    {
        return vec![Said::bad(
            Level::Error,
            format!("{} has multicast switched off", holder.name),
            format!("gossip within the domain goes to {group}, which cannot be joined by it"),
            format!("ip link set dev {} multicast on", holder.name),
        )];
    }
    let Ok(agent) = &facts.agent else {
        return vec![Said::ok(format!(
            "{group}; who hears it, a running agent knows"
        ))];
    };
    let now = facts.clock.as_ref().map_or(0, |clock| clock.now_unix_ms);
    let near = agent.hosts.hosts.iter().filter(|other| {
        let settled = now.saturating_sub(other.since_unix_ms) > HEARD_WITHIN_MS;
        other.state == HostState::Alive && !other.this_host && settled
    });
    let deaf = near.filter(|other| other.hears_us == Some(false));
    let deaf: Vec<_> = deaf.map(|other| other.host.to_string()).collect();
    vec![if deaf.is_empty() {
        Said::ok(group.to_string())
    } else {
        Said::bad(
            Level::Warning,
            format!("{group} does not reach host {}", deaf.join(", ")),
            "gossip goes to them by unicast instead: correct, but dearer; usually switches do IGMP \
             or MLD snooping, and nobody in the domain asks who listens",
            "ip link set dev BRIDGE type bridge mcast_querier 1  # where a Linux bridge connects the \
             domain; on other switches, switch a querier on or snooping off",
        )
    }]
}

pub(super) fn second_instance(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let agent = facts.agent.as_ref().ok();
    let ours = |process: &Process| agent.and_then(|agent| agent.pid) == Some(process.pid);
    let name = |process: &Process| format!("process {} ({})", process.pid, process.name);
    let file = config.path.display();
    let mut said = Vec::new();
    match &host.pins_held_by {
        Ok(Some(process)) if !ours(process) => said.push(Said::bad(
            Level::Error,
            format!(
                "{} holds the pins in {}, and is not the agent that answers at {}",
                name(process),
                config.pin_dir().display(),
                config.admin.socket.display()
            ),
            "one agent at a time can run with an instance's pins: another one does not start",
            format!(
                "kill {}  # or give this agent another `instance` in {file}",
                process.pid
            ),
        )),
        Err(reason) => said.push(Said::unknown("who holds the pins", reason)),
        Ok(_) => {}
    }
    for port in &host.ports {
        let fix = match &port.by {
            Some(process) if ours(process) => continue,
            Some(process) => format!(
                "kill {}  # or give this agent another port in pop.address in {file}",
                process.pid
            ),
            None if agent.is_some() => continue,
            None => "ss -lntup  # then stop that process, or give this agent another port".into(),
        };
        let by = port.by.as_ref().map_or("another process".to_owned(), name);
        let (protocol, address) = (port.protocol, config.pop.address);
        said.push(Said::bad(
            Level::Error,
            format!("{by} has {protocol} {address}"),
            "the agent needs the port of pop.address for itself, over UDP and TCP: it does not \
             start without",
            fix,
        ));
    }
    let links = host.interfaces.iter();
    let links =
        links.filter_map(|interface| Some((&interface.name, interface.link.as_ref().ok()?)));
    for (name, link) in links {
        if let Some(xdp) = &link.xdp
            && let Whose::Instance(other) = &xdp.whose
        {
            said.push(Said::bad(
                Level::Error,
                format!("{name} runs the program of instance {other}"),
                "an interface has room for one XDP program: this instance's cannot be attached",
                format!(
                    "homing unload --instance {other}  # or take {name} out of host.interfaces \
                     in {file}"
                ),
            ));
        }
    }
    if said.is_empty() {
        said.push(Said::ok("none"));
    }
    said
}

pub(super) fn agent(facts: &Facts) -> Vec<Said> {
    let agent = match &facts.agent {
        Ok(agent) => agent,
        Err(reason) => {
            return vec![Said::bad(
                Level::Note,
                reason,
                "what only a running agent knows was not checked: other hosts, who hears whom",
                "systemctl start homing",
            )];
        }
    };
    let (theirs, ours) = (&agent.status.version, env!("CARGO_PKG_VERSION"));
    vec![if theirs != ours {
        Said::bad(
            Level::Note,
            format!("version {theirs} runs, this is {ours}"),
            "a new version was installed since the agent's start",
            "systemctl restart homing",
        )
    } else {
        let api::Members { alive, down, .. } = agent.status.members;
        Said::ok(format!(
            "version {theirs}, {alive} hosts alive, {down} down"
        ))
    }]
}

pub(super) fn problem(facts: &Facts) -> Vec<Said> {
    let Ok(agent) = &facts.agent else {
        return Vec::new();
    };
    // What has a check of its own here is not told twice.
    let problems = agent.status.problems.iter();
    let problems = problems.filter(|problem| !problem.starts_with(api::UNHEARD));
    let said = problems.map(|problem| {
        let (seen, fix) = problem
            .split_once("; ")
            .unwrap_or((problem, "homing status"));
        Said::bad(
            Level::Warning,
            seen,
            "the running agent says so (`homing status`)",
            fix,
        )
    });
    said.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        facts::{Port, Xdp},
        sample,
        sample::{host, link, one},
    };

    #[test]
    fn the_fabric_address_is_here_and_where_programs_are() {
        let mut facts = sample::facts();
        assert_eq!(one(fabric_address(&facts)).level, Level::Ok);
        let holder = host(&mut facts).fabric.clone().unwrap().unwrap();
        host(&mut facts).fabric = Ok(None);
        let said = one(fabric_address(&facts));
        assert_eq!(said.level, Level::Error);
        assert_eq!(said.seen, "no interface has 10.1.1.11");

        let mut elsewhere = holder.clone();
        elsewhere.name = "eth1".to_owned();
        host(&mut facts).fabric = Ok(Some(elsewhere));
        let said = one(fabric_address(&facts));
        assert_eq!(said.level, Level::Error);
        assert!(
            said.fix
                .unwrap()
                .contains("add \"eth1\" to host.interfaces")
        );
        // Above an interface with programs.
        host(&mut facts).vlans = [("eth1".into(), "eth0".into())].into();
        assert_eq!(one(fabric_address(&facts)).level, Level::Ok);
        host(&mut facts).fabric = Err("not permitted".into());
        assert_eq!(one(fabric_address(&facts)).level, Level::Note);
    }

    #[test]
    fn each_service_address_that_is_missing_is_named() {
        let mut facts = sample::facts();
        assert_eq!(one(service_addresses(&facts)).level, Level::Ok);
        host(&mut facts).services = vec![
            ([203, 0, 113, 10].into(), Ok(true)),
            ("2001:db8:113::10".parse().unwrap(), Ok(false)),
        ];
        let said = one(service_addresses(&facts));
        assert_eq!(said.level, Level::Error);
        let fix = "ip address add 2001:db8:113::10/128 dev lo";
        assert_eq!(said.fix.as_deref(), Some(fix));
    }

    #[test]
    fn multicast_that_is_off_or_reaches_nobody() {
        let mut facts = sample::facts();
        assert_eq!(one(multicast(&facts)).level, Level::Ok);
        let hosts = &mut facts.agent.as_mut().unwrap().hosts.hosts;
        hosts[1].hears_us = Some(false);
        let said = one(multicast(&facts));
        assert_eq!(said.level, Level::Warning);
        assert_eq!(said.seen, "239.77.77.77:7947 does not reach host 2");
        // It came up a moment ago.
        let now = facts.clock.as_ref().unwrap().now_unix_ms;
        facts.agent.as_mut().unwrap().hosts.hosts[1].since_unix_ms = now - HEARD_WITHIN_MS;
        assert_eq!(one(multicast(&facts)).level, Level::Ok);
        if let Ok(Some(holder)) = &mut host(&mut facts).fabric {
            holder.multicast = false;
        }
        let said = one(multicast(&facts));
        assert_eq!(said.level, Level::Error);
        assert_eq!(
            said.fix.as_deref(),
            Some("ip link set dev eth0 multicast on")
        );
        facts.config.as_mut().unwrap().pop.multicast = None;
        assert_eq!(one(multicast(&facts)).level, Level::Ok);
    }

    #[test]
    fn another_agent_has_the_pins_the_port_or_the_interface() {
        let mut facts = sample::facts();
        assert_eq!(one(second_instance(&facts)).level, Level::Ok);
        let other = Process {
            pid: 99,
            name: "homing".to_owned(),
        };
        host(&mut facts).pins_held_by = Ok(Some(other.clone()));
        let said = one(second_instance(&facts));
        assert_eq!(said.level, Level::Error);
        assert!(
            said.seen.starts_with("process 99 (homing) holds the pins"),
            "{said:?}"
        );
        host(&mut facts).pins_held_by = Ok(None);

        host(&mut facts).ports = vec![Port {
            protocol: "udp",
            by: Some(other),
        }];
        let said = one(second_instance(&facts));
        assert_eq!(said.seen, "process 99 (homing) has udp 10.1.1.11:7946");
        assert!(said.fix.unwrap().starts_with("kill 99 "));
        // Whose it is cannot be told: the agent's own, if one answers.
        host(&mut facts).ports[0].by = None;
        assert_eq!(one(second_instance(&facts)).level, Level::Ok);
        let agent = std::mem::replace(&mut facts.agent, Err("it does not run".into()));
        assert_eq!(one(second_instance(&facts)).level, Level::Error);
        facts.agent = agent;
        host(&mut facts).ports.clear();

        link(&mut facts).xdp = Some(Xdp {
            program_id: 7,
            mode: None,
            whose: Whose::Instance("blue".to_owned()),
        });
        let said = one(second_instance(&facts));
        assert_eq!(said.seen, "eth0 runs the program of instance blue");
        assert!(
            said.fix
                .unwrap()
                .starts_with("homing unload --instance blue ")
        );
    }

    #[test]
    fn no_agent_and_another_version_are_worth_a_note() {
        let mut facts = sample::facts();
        assert_eq!(one(agent(&facts)).level, Level::Ok);
        facts.agent.as_mut().unwrap().status.version = "0.0.1".to_owned();
        assert_eq!(one(agent(&facts)).level, Level::Note);
        facts.agent = Err("no agent answers".to_owned());
        assert_eq!(one(agent(&facts)).level, Level::Note);
        assert_eq!(problem(&facts), []);
    }

    #[test]
    fn the_agents_own_problems_are_told_but_not_twice() {
        let mut facts = sample::facts();
        assert_eq!(problem(&facts), []);
        facts.agent.as_mut().unwrap().status.problems = vec![
            "host 3 is down: its agent does not answer; look at its log".to_owned(),
            format!(
                "{} host 2, which get everything by unicast; look",
                api::UNHEARD
            ),
            "the key is torn".to_owned(),
        ];
        let said = problem(&facts);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0].seen, "host 3 is down: its agent does not answer");
        assert_eq!(said[0].fix.as_deref(), Some("look at its log"));
        assert_eq!(said[1].fix.as_deref(), Some("homing status"));
        assert!(said.iter().all(|said| said.level == Level::Warning));
    }
}
