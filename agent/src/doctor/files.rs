//! Checks of files and file systems that the configuration names, and of itself.

use std::net::SocketAddr;

use super::{
    Level, Said,
    facts::{Facts, KeyFault},
};
use crate::config::Config;

pub(super) fn configuration(facts: &Facts) -> Vec<Said> {
    let config = match &facts.config {
        Ok(config) => config,
        Err(problems) => {
            let path = problems.path.display();
            let said = problems.list.iter().map(|problem| {
                let line = match problem.line {
                    0 => String::new(),
                    line => format!(":{line}"),
                };
                let key = match problem.key.as_str() {
                    "" => String::new(),
                    key => format!(" {key}:"),
                };
                Said::bad(
                    Level::Error,
                    format!("{path}{line}:{key} {}", problem.what),
                    "the agent does not start with it",
                    problem.fix.clone(),
                )
            });
            return said.collect();
        }
    };
    let file = config.path.display().to_string();
    let other = other_than_running(facts, config);
    vec![if other.is_empty() {
        Said::ok(file)
    } else {
        Said::bad(
            Level::Warning,
            format!("{file}: {} not as the agent has it", other.join(", ")),
            "the agent reads it at its start only, and goes on with what stood there then",
            "systemctl restart homing",
        )
    }]
}

/// What the agent was started with otherwise, of what it tells.
fn other_than_running(facts: &Facts, config: &Config) -> Vec<&'static str> {
    let Ok(agent) = &facts.agent else {
        return Vec::new();
    };
    let status = &agent.status;
    let interfaces = status.interfaces.iter().map(|interface| &interface.name);
    let mut running: Vec<_> = status.services.iter().map(|s| s.address).collect();
    let mut written: Vec<_> = config.services.iter().map(address_of).collect();
    running.sort();
    written.sort();
    let same = [
        ("instance", status.instance == config.instance),
        ("host.id", status.host == config.host.id.0),
        ("host.domain", status.domain == config.host.domain),
        ("host.interfaces", interfaces.eq(&config.host.interfaces)),
        ("host.cgroup", status.cgroup == config.host.cgroup),
        ("pop.address", status.address == config.pop.address),
        ("pop.multicast", status.multicast == config.pop.multicast),
        (
            "tunnel.network",
            status.tunnel.network == config.tunnel.prefix.to_string(),
        ),
        ("services", running == written),
    ];
    let other = same.into_iter().filter(|(_, same)| !same);
    other.map(|(key, _)| key).collect()
}

fn address_of(service: &homing_common::net::Service) -> SocketAddr {
    SocketAddr::new(service.address.into(), service.port.number())
}

pub(super) fn bpffs(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let at = host.bpffs_at.display();
    vec![match &host.bpffs {
        Ok(()) => Said::ok(config.pin_dir().display().to_string()),
        Err(_) => Said::bad(
            Level::Error,
            format!("{at} is no BPF file system"),
            "programs, links and maps are pinned there, so that they outlast the agent; it does \
             not start without",
            "mount -t bpf bpf /sys/fs/bpf",
        ),
    }]
}

pub(super) fn cgroup(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let path = config.host.cgroup.display();
    let Err(reason) = &host.cgroup else {
        return vec![Said::ok(path.to_string())];
    };
    let file = config.path.display();
    let fix = match host.cgroup_mounts.first() {
        Some(mount) => format!(
            "in {file} set host.cgroup = \"{}\", or the cgroup below it that the services run \
             under; then `systemctl restart homing`",
            mount.display()
        ),
        None => format!(
            "mount -t cgroup2 cgroup2 {path}  # for good: boot with \
             systemd.unified_cgroup_hierarchy=1"
        ),
    };
    vec![Said::bad(
        Level::Error,
        reason,
        "the hooks on sockets, by which the agent learns of sessions, are attached to a cgroup of \
         version 2; it does not start without",
        fix,
    )]
}

pub(super) fn key_file(facts: &Facts) -> Vec<Said> {
    let Some((config, host)) = facts.configured() else {
        return Vec::new();
    };
    let file = config.pop.key_file.display().to_string();
    let mut said = Vec::new();
    if let Some(owner) = host.key.owner.filter(|owner| *owner != 0) {
        said.push(Said::bad(
            Level::Error,
            format!("{file} belongs to user {owner}"),
            "the agent runs as root without the capability to read other users' files, and who \
             owns the file can change the POP's key",
            format!("chown root:root {file}"),
        ));
    }
    match &host.key.usable {
        Ok(()) => {}
        Err(KeyFault::Open(seen)) => said.push(Said::bad(
            Level::Error,
            seen,
            "whoever has the POP's key can speak for any host; the agent refuses a key that \
             others can read",
            format!("chmod 600 {file}"),
        )),
        Err(KeyFault::Unreadable(seen)) => said.push(Said::bad(
            Level::Error,
            seen,
            "without the POP's key the agent does not start",
            format!(
                "copy it from another host of the POP; for a new POP: `homing key new --file {file}`"
            ),
        )),
        Err(KeyFault::Content(seen)) => said.push(Said::bad(
            Level::Error,
            seen,
            "without the POP's key the agent does not start",
            "copy the file from another host of the POP; `homing key show` reads it",
        )),
    }
    if said.is_empty() {
        said.push(Said::ok(file));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::sample, doctor::sample::host};

    #[test]
    fn what_is_wrong_in_the_file_is_said_with_its_line() {
        let mut facts = sample::facts();
        assert_eq!(configuration(&facts)[0].level, Level::Ok);
        let text = include_str!("../../../dist/homing.toml").replace("id = 1\n", "id = 9999\n");
        facts.config = Err(Config::parse("homing.toml".as_ref(), &text).unwrap_err());
        let said = configuration(&facts);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].level, Level::Error);
        assert!(
            said[0].seen.starts_with("homing.toml:11: host.id: 9999"),
            "{said:?}"
        );
        assert!(said[0].fix.is_some());
    }

    #[test]
    fn what_was_changed_since_the_agents_start_is_named() {
        let mut facts = sample::facts();
        let agent = facts.agent.as_mut().unwrap();
        agent.status.services.pop();
        agent.status.multicast = None;
        let said = configuration(&facts);
        assert_eq!(said[0].level, Level::Warning);
        assert!(said[0].seen.contains("pop.multicast, services"), "{said:?}");
        facts.agent = Err("it does not run".to_owned());
        assert_eq!(configuration(&facts)[0].level, Level::Ok);
    }

    #[test]
    fn a_place_that_is_no_bpf_file_system() {
        let mut facts = sample::facts();
        assert_eq!(bpffs(&facts)[0].level, Level::Ok);
        host(&mut facts).bpffs = Err("no".to_owned());
        let said = bpffs(&facts);
        assert_eq!(said[0].level, Level::Error);
        assert_eq!(said[0].seen, "/sys/fs/bpf is no BPF file system");
        assert_eq!(said[0].fix.as_deref(), Some("mount -t bpf bpf /sys/fs/bpf"));
    }

    #[test]
    fn a_cgroup_of_version_1_and_where_the_other_is() {
        let mut facts = sample::facts();
        assert_eq!(cgroup(&facts)[0].level, Level::Ok);
        host(&mut facts).cgroup = Err("it is no cgroup v2".to_owned());
        host(&mut facts).cgroup_mounts = vec!["/sys/fs/cgroup/unified".into()];
        let said = cgroup(&facts);
        assert_eq!(
            (said[0].level, said[0].seen.as_str()),
            (Level::Error, "it is no cgroup v2")
        );
        let wanted = "host.cgroup = \"/sys/fs/cgroup/unified\"";
        assert!(said[0].fix.as_ref().unwrap().contains(wanted), "{said:?}");
        host(&mut facts).cgroup_mounts.clear();
        let fix = cgroup(&facts).remove(0).fix.unwrap();
        assert!(
            fix.starts_with("mount -t cgroup2 cgroup2 /sys/fs/cgroup "),
            "{fix}"
        );
    }

    #[test]
    fn a_key_file_of_another_owner_open_missing_or_of_something_else() {
        let mut facts = sample::facts();
        assert_eq!(key_file(&facts)[0].level, Level::Ok);
        host(&mut facts).key.owner = Some(33);
        let said = key_file(&facts);
        assert_eq!((said.len(), said[0].level), (1, Level::Error));
        assert_eq!(said[0].seen, "/etc/homing/pop.key belongs to user 33");
        assert_eq!(
            said[0].fix.as_deref(),
            Some("chown root:root /etc/homing/pop.key")
        );
        host(&mut facts).key.owner = Some(0);
        for (fault, fix) in [
            (
                KeyFault::Open("mode 0644".into()),
                "chmod 600 /etc/homing/pop.key",
            ),
            (
                KeyFault::Unreadable("no such file".into()),
                "copy it from another host",
            ),
            (
                KeyFault::Content("it is empty".into()),
                "copy the file from another",
            ),
        ] {
            host(&mut facts).key.usable = Err(fault);
            let said = key_file(&facts);
            assert_eq!((said.len(), said[0].level), (1, Level::Error), "{said:?}");
            assert!(said[0].fix.as_ref().unwrap().starts_with(fix), "{said:?}");
        }
    }
}
