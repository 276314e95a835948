//! Every key of the configuration: what it holds, and whether a running agent can take
//! another value.
//!
//! [`KEYS`] is the one place where that is decided. A reload changes all keys that differ or
//! none: so one that needs a restart keeps the others from changing, too.

use std::{collections::BTreeSet, fmt, path::Path, time::Duration};

use homing_common::{
    host::Encapsulation,
    net::{TCP, UDP},
};

use super::{
    Config, Group, Mss,
    values::{show_duration, show_size},
};

/// When another value of a key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// From a reload on.
    Reload,
    /// From the agent's next start on: what it says is built into maps, programs, sockets
    /// or what other hosts know this one by.
    Restart,
}

/// A key of the configuration, or a list of sections.
pub struct Key {
    /// Its name, with its section: `pop.leave_hold`.
    pub name: &'static str,
    /// When another value counts.
    pub takes: Takes,
    value: fn(&Config) -> Value,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// As it could stand in the file.
    One(String),
    /// Each of a list of sections, whose order says nothing.
    List(BTreeSet<String>),
}

/// A key that holds something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key's name.
    pub key: &'static str,
    /// When the new value counts.
    pub takes: Takes,
    /// What it held.
    pub from: String,
    /// What it holds now.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from {} to {}", self.key, self.from, self.to)
    }
}

/// All keys, in the order of the example.
pub const KEYS: [Key; 44] = [
    restart("instance", |c| text(&c.instance)),
    restart("host.id", |c| one(c.host.id)),
    restart("host.domain", |c| text(&c.host.domain)),
    restart("host.interfaces", |c| texts(&c.host.interfaces)),
    restart("host.xdp_mode", |c| text(c.host.xdp_mode.label())),
    restart("host.cgroup", |c| path(&c.host.cgroup)),
    live("pop.key_file", |c| path(&c.pop.key_file)),
    restart("pop.address", |c| text(&c.pop.address.to_string())),
    restart("pop.multicast", |c| {
        c.pop
            .multicast
            .map_or_else(none, |group| text(&group.to_string()))
    }),
    live("pop.close_linger", |c| time(c.pop.close_linger)),
    live("pop.leave_hold", |c| time(c.pop.leave_hold)),
    // The patience of moves that are under way goes by it.
    restart("pop.kernel_dead_after", |c| time(c.pop.kernel_dead_after)),
    live("pop.void_after", |c| time(c.pop.void_after)),
    live("pop.seeds", seeds),
    restart("tunnel.encapsulation", |c| {
        text(match c.tunnel.encapsulation {
            Encapsulation::Ipip => "ipip",
            Encapsulation::Gue => "gue",
        })
    }),
    restart("tunnel.network", |c| text(&c.tunnel.prefix.to_string())),
    restart("tunnel.host_prefix_len", |c| one(c.tunnel.host_prefix_len)),
    restart("tunnel.hop_limit", |c| one(c.tunnel.hop_limit)),
    live("tunnel.mss", |c| match c.tunnel.mss {
        Mss::Auto => text("auto"),
        Mss::Fixed(mss) => one(mss),
        Mss::Off => text("off"),
    }),
    live("services", services),
    live("udp.idle_timeout", |c| time(c.udp.idle_timeout)),
    // Maps are made once, with room for so many.
    restart("limits.owners", |c| one(c.limits.owners)),
    restart("limits.sessions", |c| one(c.limits.sessions)),
    restart("limits.closed", |c| one(c.limits.closed)),
    restart("limits.fragments", |c| one(c.limits.fragments)),
    live("migration.moves", |c| one(c.migration.moves)),
    live("migration.memory", |c| size(c.migration.memory)),
    restart("apps.socket", |c| path(&c.apps.socket)),
    live("apps.group", |c| group(&c.apps.group)),
    live("apps.state_max", |c| size(c.apps.state_max as usize)),
    restart("mux.socket", |c| path(&c.mux.socket)),
    live("mux.group", |c| group(&c.mux.group)),
    restart("mux.encryption", |c| one(c.mux.encryption)),
    // Carriers that there are were opened by it, and buffers made for the longest message.
    restart("mux.carriers", |c| {
        c.mux.carriers.map_or_else(|| text("auto"), one)
    }),
    restart("mux.message_max", |c| size(c.mux.message_max)),
    live("mux.sockets", |c| one(c.mux.sockets)),
    live("mux.memory", |c| size(c.mux.memory)),
    live("drain.on_drain", |c| texts(&c.drain.on_drain)),
    live("drain.on_undrain", |c| texts(&c.drain.on_undrain)),
    live("drain.timeout", |c| time(c.drain.timeout)),
    restart("admin.socket", |c| path(&c.admin.socket)),
    live("admin.group", |c| group(&c.admin.group)),
    live("admin.read_socket", |c| path(&c.admin.read_socket)),
    live("admin.readers", |c| {
        c.admin.readers.as_ref().map_or_else(none, group)
    }),
];

const fn live(name: &'static str, value: fn(&Config) -> Value) -> Key {
    Key {
        name,
        takes: Takes::Reload,
        value,
    }
}

const fn restart(name: &'static str, value: fn(&Config) -> Value) -> Key {
    Key {
        name,
        takes: Takes::Restart,
        value,
    }
}

impl Key {
    /// What it holds, as it could stand in the file; of a list of sections, one after the
    /// other.
    pub fn value(&self, config: &Config) -> String {
        match (self.value)(config) {
            Value::One(value) => value,
            Value::List(all) => list(&all),
        }
    }
}

impl Config {
    /// The keys that hold something else in `other`, and what.
    pub fn differences(&self, other: &Self) -> Vec<Change> {
        let changes = KEYS.iter().filter_map(|key| {
            let (from, to) = match ((key.value)(self), (key.value)(other)) {
                (from, to) if from == to => return None,
                (Value::List(from), Value::List(to)) => lists(from, to),
                _ => (key.value(self), key.value(other)),
            };
            Some(Change {
                key: key.name,
                takes: key.takes,
                from,
                to,
            })
        });
        changes.collect()
    }
}

/// Of two lists as much as a person can read: of long ones what they do not have in common.
fn lists(mut from: BTreeSet<String>, mut to: BTreeSet<String>) -> (String, String) {
    const LONG: usize = 8;
    if from.len().max(to.len()) <= LONG {
        return (list(&from), list(&to));
    }
    let common: BTreeSet<_> = from.intersection(&to).cloned().collect();
    from.retain(|one| !common.contains(one));
    to.retain(|one| !common.contains(one));
    let show = |rest: &BTreeSet<String>| match (rest.is_empty(), common.len()) {
        (_, 0) => list(rest),
        (true, stay) => format!("{stay} that stay"),
        (false, stay) => format!("{stay} that stay, {}", list(rest)),
    };
    (show(&from), show(&to))
}

/// Some of a list, and how many more there are: the file has all of them.
fn list(all: &BTreeSet<String>) -> String {
    const SHOWN: usize = 32;
    if all.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<_> = all.iter().take(SHOWN).map(String::as_str).collect();
    match all.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn none() -> Value {
    Value::One("none".to_owned())
}

fn one(value: impl ToString) -> Value {
    Value::One(value.to_string())
}

fn text(value: &str) -> Value {
    Value::One(format!("{value:?}"))
}

fn texts(values: &[String]) -> Value {
    Value::One(format!("{values:?}"))
}

fn path(path: &Path) -> Value {
    Value::One(format!("{path:?}"))
}

fn time(value: Duration) -> Value {
    text(&show_duration(value))
}

fn size(bytes: usize) -> Value {
    text(&show_size(bytes as u64))
}

fn group(group: &Group) -> Value {
    match group {
        Group::Id(id) => one(id),
        Group::Name(name) => text(name),
    }
}

fn seeds(config: &Config) -> Value {
    let seeds = config.pop.seeds.iter();
    Value::List(
        seeds
            .map(|seed| format!("{} at {}", seed.host, seed.address))
            .collect(),
    )
}

fn services(config: &Config) -> Value {
    let services = config.services.iter().map(|service| {
        let protocol = match service.protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            other => other.to_string(),
        };
        format!("{} {protocol}", service.endpoint())
    });
    Value::List(services.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_long_lists_a_person_reads_some() {
        let all = |range: std::ops::Range<u32>| range.map(|n| format!("{n:04}")).collect();
        let (from, to) = lists(all(0..1000), all(500..501));
        assert!(from.ends_with("0031 and 967 more"), "{from}");
        assert_eq!(to, "1 that stay");
        assert_eq!(
            lists(all(0..2), all(0..0)),
            ("0000, 0001".into(), "none".into())
        );
    }

    const EXAMPLE: &str = include_str!("../../../dist/homing.toml");

    /// For each key of the example another line than the one that it has, or is commented
    /// out with.
    const OTHERS: &[(&str, &str)] = &[
        ("instance", "\"other\""),
        ("host.id", "4"),
        ("host.domain", "\"rack-9\""),
        ("host.interfaces", "[\"eth0\", \"eth1\"]"),
        ("host.xdp_mode", "\"skb\""),
        ("host.cgroup", "\"/sys/fs/cgroup/services\""),
        ("pop.key_file", "\"/etc/homing/other.key\""),
        ("pop.address", "\"10.1.1.99:7946\""),
        ("pop.multicast", "\"239.77.77.78:7947\""),
        ("pop.close_linger", "\"3s\""),
        ("pop.leave_hold", "\"90s\""),
        ("pop.kernel_dead_after", "\"4s\""),
        ("pop.void_after", "\"5m\""),
        ("tunnel.encapsulation", "\"gue\""),
        ("tunnel.network", "\"10.78.0.0/16\""),
        ("tunnel.host_prefix_len", "29"),
        ("tunnel.hop_limit", "9"),
        ("tunnel.mss", "1400"),
        ("udp.idle_timeout", "\"61s\""),
        ("limits.owners", "1000"),
        ("limits.sessions", "1000"),
        ("limits.closed", "1000"),
        ("limits.fragments", "1000"),
        ("migration.moves", "65"),
        ("migration.memory", "\"65MiB\""),
        ("apps.socket", "\"/run/homing/a.sock\""),
        ("apps.group", "33"),
        ("apps.state_max", "\"2MiB\""),
        ("mux.socket", "\"/run/homing/m.sock\""),
        ("mux.group", "\"www-data\""),
        ("mux.encryption", "false"),
        ("mux.carriers", "3"),
        ("mux.message_max", "\"2MiB\""),
        ("mux.sockets", "17"),
        ("mux.memory", "\"257MiB\""),
        ("drain.on_drain", "[\"/bin/true\", \"1\"]"),
        ("drain.on_undrain", "[\"/bin/true\", \"2\"]"),
        ("drain.timeout", "\"11s\""),
        ("admin.socket", "\"/run/homing/s.sock\""),
        ("admin.group", "34"),
        ("admin.read_socket", "\"/run/homing/r.sock\""),
    ];

    fn parsed(text: &str) -> Config {
        Config::parse(Path::new("homing.toml"), text).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    /// The example with another value of each of these keys.
    fn with(others: &[(&str, &str)]) -> Config {
        let mut section = String::new();
        let lines = EXAMPLE.lines().map(|line| {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']).to_owned() + ".";
            }
            let bare = line.strip_prefix('#').unwrap_or(line);
            let name = bare
                .split_once(" = ")
                .map(|(key, _)| format!("{section}{key}"));
            match others.iter().find(|(key, _)| name.as_deref() == Some(key)) {
                Some((key, value)) => format!("{} = {value}", key.rsplit('.').next().unwrap()),
                None => line.to_owned(),
            }
        });
        parsed(&lines.collect::<Vec<_>>().join("\n"))
    }

    fn changed(from: &Config, to: &Config) -> Vec<&'static str> {
        from.differences(to)
            .iter()
            .map(|change| change.key)
            .collect()
    }

    /// The keys that a file may have, as the reader of one without any of them says.
    fn readable() -> BTreeSet<String> {
        const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzz";
        let known = |section: &str, text: &str| -> Option<Vec<String>> {
            let wrong = Config::parse(Path::new("homing.toml"), text).unwrap_err();
            let unknown = format!("{section}{UNKNOWN}");
            let problem = wrong
                .list
                .into_iter()
                .find(|problem| problem.key == unknown)?;
            let known = problem.fix.split_once("known here: ")?.1.to_owned();
            Some(known.split(", ").map(str::to_owned).collect())
        };
        let line = format!("{UNKNOWN} = 1\n");
        let mut readable = BTreeSet::new();
        for name in known("", &line).expect("an unknown key is named") {
            let section = format!("{name}.");
            match known(&section, &format!("[{name}]\n{line}")) {
                Some(keys) => readable.extend(keys.iter().map(|key| section.clone() + key)),
                None => drop(readable.insert(name)),
            }
        }
        readable
    }

    #[test]
    fn every_key_of_the_configuration_stands_in_the_table_once() {
        let listed: BTreeSet<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(listed, readable());
        assert_eq!(listed.len(), KEYS.len());
    }

    #[test]
    fn each_key_is_seen_to_differ_and_no_other() {
        let example = parsed(EXAMPLE);
        assert_eq!(example.differences(&example), []);
        for other in OTHERS {
            let changed = changed(&example, &with(&[*other]));
            match other.0 {
                // Sockets are named after it.
                "instance" => assert_eq!(changed[0], "instance"),
                key => assert_eq!(changed, [key]),
            }
        }
        let mut other = example.clone();
        other.admin.readers = Some(Group::Id(7));
        assert_eq!(changed(&example, &other), ["admin.readers"]);
        other = example.clone();
        other.services.pop();
        assert_eq!(changed(&example, &other), ["services"]);
        other = example.clone();
        other.pop.seeds[0].address = ([10, 1, 1, 77], 7946).into();
        assert_eq!(changed(&example, &other), ["pop.seeds"]);
        // The order of sections says nothing.
        other = example.clone();
        other.services.reverse();
        other.pop.seeds.reverse();
        assert_eq!(changed(&example, &other), [] as [&str; 0]);
        assert_eq!(OTHERS.len() + 3, KEYS.len());
    }

    #[test]
    fn a_change_is_told_in_the_words_of_the_file() {
        let example = parsed(EXAMPLE);
        let told = |key, value| example.differences(&with(&[(key, value)]))[0].to_string();
        assert_eq!(
            told("pop.leave_hold", "\"90s\""),
            "pop.leave_hold: from \"30s\" to \"90s\""
        );
        assert_eq!(told("mux.group", "33"), "mux.group: from 0 to 33");
        assert_eq!(
            told("mux.carriers", "3"),
            "mux.carriers: from \"auto\" to 3"
        );
        let mut less = example.clone();
        less.services.pop();
        assert_eq!(
            example.differences(&less)[0].to_string(),
            "services: from 203.0.113.10:443 tcp, [2001:db8:113::10]:443 tcp to 203.0.113.10:443 tcp"
        );
    }

    #[test]
    fn of_long_lists_what_they_do_not_have_in_common_is_told() {
        let list = |range: std::ops::Range<u32>| range.map(|n| format!("s{n:02}")).collect();
        let (from, to) = lists(list(0..20), list(1..21));
        assert_eq!((&*from, &*to), ("19 that stay, s00", "19 that stay, s20"));
        let (from, to) = lists(list(0..3), list(2..3));
        assert_eq!((&*from, &*to), ("s00, s01, s02", "s02"));
        let (from, to) = lists(list(0..20), list(0..19));
        assert_eq!((&*from, &*to), ("19 that stay, s19", "19 that stay"));
    }

    proptest! {
        /// Whatever differs, and nothing else, is told; and the way back is the same.
        #[test]
        fn what_differs_is_told_both_ways(
            others in prop::sample::subsequence(&OTHERS[1..], 0..OTHERS.len() - 1)
        ) {
            let (example, other) = (parsed(EXAMPLE), with(&others));
            let expected: BTreeSet<_> = others.iter().map(|(key, _)| *key).collect();
            let forth = example.differences(&other);
            prop_assert_eq!(forth.iter().map(|c| c.key).collect::<BTreeSet<_>>(), expected);
            for (forth, back) in forth.iter().zip(other.differences(&example)) {
                prop_assert_eq!((&forth.from, &forth.to), (&back.to, &back.from));
            }
        }
    }
}
