//! Checks of files and file systems that the configuration names, and of itself.

use super::{
    Level, Said,
    facts::{Facts, KeyFault},
};
use crate::config::{Config, KEYS, Key, Takes};

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
                    "the agent does not start with it, and a reload changes nothing",
                    problem.fix.clone(),
                )
            });
            return said.collect();
        }
    };
    let file = config.path.display().to_string();
    let other = other_than_in_force(facts, config);
    if other.is_empty() {
        return vec![Said::ok(file)];
    }
    let names: Vec<_> = other.iter().map(|key| key.name).collect();
    let (why, fix) = match other.iter().any(|key| key.takes == Takes::Restart) {
        true => (
            "the agent goes on with what it read before, and a reload changes nothing: some of \
             these keys need a restart, by which no session is lost",
            "systemctl restart homing",
        ),
        false => (
            "the agent goes on with what it read before until it is told to reload",
            "homing reload",
        ),
    };
    let seen = format!("{file}: {} not as the agent has it", names.join(", "));
    vec![Said::bad(Level::Warning, seen, why, fix)]
}

/// The keys that hold something else than what the running agent has in force.
fn other_than_in_force(facts: &Facts, config: &Config) -> Vec<&'static Key> {
    let agent = facts.agent.as_ref().ok();
    let Some(in_force) = agent.and_then(|agent| agent.in_force.as_ref()) else {
        return Vec::new();
    };
    let differs = |key: &&Key| {
        let given = in_force.socket_given && key.name == "admin.socket";
        let value = in_force.keys.get(key.name);
        !given && value.is_some_and(|value| *value != key.value(config))
    };
    KEYS.iter().filter(differs).collect()
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
    use crate::{
        admin::api,
        doctor::{sample, sample::host},
    };

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
    fn what_differs_from_what_is_in_force_is_named_and_how_it_gets_there() {
        let mut facts = sample::facts();
        let mut agent = facts.config.clone().unwrap();
        let in_force = |facts: &mut Facts, config: &Config| {
            let told = Some(api::InForce::of(config));
            facts.agent.as_mut().unwrap().in_force = told;
        };
        agent.services.pop();
        in_force(&mut facts, &agent);
        let said = configuration(&facts).remove(0);
        assert_eq!(said.level, Level::Warning);
        assert!(said.seen.contains(": services not as"), "{said:?}");
        assert_eq!(said.fix.as_deref(), Some("homing reload"));
        agent.pop.multicast = None;
        in_force(&mut facts, &agent);
        let said = configuration(&facts).remove(0);
        assert!(said.seen.contains("pop.multicast, services"), "{said:?}");
        assert_eq!(said.fix.as_deref(), Some("systemctl restart homing"));
        // A socket that was given on the command line is not looked for in the file.
        let mut given = facts.config.clone().unwrap();
        given.give_socket("/elsewhere".into());
        in_force(&mut facts, &given);
        assert_eq!(configuration(&facts)[0].level, Level::Ok);
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
