//! Golden tests: the files in `broken/` say, behind `#!` at the end of a line,
//! which problem belongs to that line.

use std::{fs, path::Path, time::Duration};

use homing_common::{
    host::{Encapsulation, HostId},
    net::{Address, Port, Service, TCP},
};

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../../dist/homing.toml");

const LEAST: &str = r#"
[host]
id = 1
domain = "rack-1"
interfaces = ["eth0"]

[pop]
key_file = "/etc/homing/pop.key"
address = "10.1.1.11:7946"

[tunnel]
network = "10.77.0.0/16"
host_prefix_len = 28

[[services]]
address = "203.0.113.10"
port = 443
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(Path::new("test.toml"), text)
}

fn parsed(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn service(ip: &str) -> Service {
    let ip: std::net::IpAddr = ip.parse().expect("address");
    Service::new(ip.into(), Port::new(443), TCP)
}

#[test]
fn the_example_parses() {
    let config = parsed(EXAMPLE);
    assert_eq!(config.host.id, HostId(1));
    assert_eq!(config.pop.seeds.len(), 2);
    let both = vec![service("203.0.113.10"), service("2001:db8:113::10")];
    assert_eq!(config.services, both);
}

/// The example with its defaults as if they were set.
fn uncommented() -> String {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_the_example_comments_out_is_the_default() {
    let uncommented = uncommented();
    assert_eq!(parsed(&uncommented), parsed(EXAMPLE));
    assert!(uncommented.contains("\nowners = "));
}

#[test]
fn the_manual_names_every_key() {
    const MANUAL: &str = include_str!("../../../docs/operating.md");
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ") {
            let named = MANUAL.contains(&format!("| `{key}` |"));
            assert!(named, "docs/operating.md does not name {key}");
        }
    }
}

#[test]
fn the_manual_says_of_every_key_whether_a_reload_is_enough() {
    const MANUAL: &str = include_str!("../../../docs/operating.md");
    let table = MANUAL
        .lines()
        .skip_while(|line| !line.starts_with("| Key | Default | Takes a |"));
    let (mut section, mut list) = (String::new(), false);
    let mut said = std::collections::BTreeMap::new();
    for line in table.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (key, takes) = (cells[1].trim_matches(['*', '`']), cells[3]);
        if let Some(head) = key.strip_prefix('[') {
            list = head.starts_with('[');
            section = head.trim_matches(['[', ']']).to_owned();
            if !list {
                continue;
            }
        }
        let key = match (list, section.as_str()) {
            (true, section) => section.to_owned(),
            (false, "") => key.to_owned(),
            (false, section) => format!("{section}.{key}"),
        };
        // What stands at a list and at its keys is one thing.
        assert_eq!(*said.entry(key).or_insert(takes), takes, "{line}");
    }
    for key in &KEYS {
        let takes = match key.takes {
            Takes::Reload => "reload",
            Takes::Restart => "restart",
        };
        assert_eq!(said.remove(key.name), Some(takes), "{}", key.name);
    }
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn defaults() {
    let config = parsed(LEAST);
    assert_eq!(config.instance, "homing");
    assert_eq!(config.pin_dir(), Path::new("/sys/fs/bpf/homing/homing"));
    assert_eq!(config.admin.socket, Path::new("/run/homing/homing.sock"));
    let read_socket = Path::new("/run/homing/homing.read.sock");
    assert_eq!(config.admin.read_socket, read_socket);
    assert_eq!(
        (config.admin.group, config.admin.readers),
        (Group::Id(0), None)
    );
    assert_eq!(config.host.xdp_mode, XdpMode::Native);
    assert_eq!(config.host.cgroup, Path::new("/sys/fs/cgroup"));
    assert_eq!(config.pop.multicast, None);
    assert_eq!(config.pop.close_linger, Duration::from_secs(2));
    assert_eq!(config.pop.leave_hold, Duration::from_secs(30));
    assert_eq!(config.pop.kernel_dead_after, Duration::from_secs(3));
    assert_eq!(config.pop.void_after, Duration::from_secs(600));
    assert_eq!(config.tunnel.encapsulation, Encapsulation::Ipip);
    assert_eq!(config.tunnel.hop_limit, 8);
    assert_eq!(config.tunnel.mss, Mss::Auto);
    assert_eq!(
        (config.migration.moves, config.migration.memory),
        (64, 64 << 20)
    );
    assert_eq!(config.apps.socket, Path::new("/run/homing/homing.app.sock"));
    assert_eq!(config.apps.group, Group::Id(0));
    assert_eq!(config.apps.state_max, 1 << 20);
    assert_eq!(config.mux.socket, Path::new("/run/homing/homing.mux.sock"));
    assert_eq!((config.mux.encryption, config.mux.carriers), (true, None));
    assert_eq!(config.mux.message_max, 1 << 20);
    assert_eq!((config.mux.sockets, config.mux.memory), (16_384, 256 << 20));
    assert_eq!(config.drain.on_drain, [""; 0]);
    assert_eq!(config.drain.timeout, Duration::from_secs(10));
    assert_eq!(config.limits.owners, 1 << 20);
    assert_eq!(config.limits.sessions, 1 << 18);
    assert_eq!(config.limits.closed, 1 << 16);
    assert_eq!(config.limits.fragments, 1 << 13);
}

#[test]
fn an_instance_names_pins_and_socket() {
    let config = parsed(&format!("instance = \"h2\"\n{LEAST}"));
    assert_eq!(config.pin_dir(), Path::new("/sys/fs/bpf/homing/h2"));
    assert_eq!(config.admin.socket, Path::new("/run/homing/h2.sock"));
    let read_socket = Path::new("/run/homing/h2.read.sock");
    assert_eq!(config.admin.read_socket, read_socket);
    assert_eq!(config.apps.socket, Path::new("/run/homing/h2.app.sock"));
    assert_eq!(config.mux.socket, Path::new("/run/homing/h2.mux.sock"));
}

#[test]
fn carriers_are_a_number_or_automatic() {
    let with = |line: &str| parse(&format!("{LEAST}[mux]\n{line}\n")).map(|c| c.mux);
    assert_eq!(with("carriers = 8").expect("most").carriers, Some(8));
    assert_eq!(with("carriers = \"auto\"").expect("a word").carriers, None);
    assert!(!with("encryption = false").expect("off").encryption);
    for wrong in [
        "carriers = 0",
        "carriers = 9",
        "carriers = \"many\"",
        "encryption = \"off\"",
        "message_max = \"5MiB\"",
        "sockets = 15",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn sizes_and_groups() {
    let with = |line: &str| parse(&format!("{LEAST}[apps]\n{line}\n")).map(|c| c.apps);
    assert_eq!(
        with("state_max = \"4KiB\"").expect("least").state_max,
        4 << 10
    );
    assert_eq!(
        with("state_max = \"16MiB\"").expect("most").state_max,
        16 << 20
    );
    for wrong in [
        "",
        "MiB",
        "5",
        "-1MiB",
        "1.5MiB",
        "1MB",
        "18446744073709551615GiB",
    ] {
        assert!(
            with(&format!("state_max = \"{wrong}\"")).is_err(),
            "{wrong}"
        );
    }
    assert_eq!(with("group = 33").expect("number").group, Group::Id(33));
    let named = Group::Name("www-data".to_owned());
    assert_eq!(with("group = \"www-data\"").expect("name").group, named);
    for wrong in ["\"\"", "\"a b\"", "\"a:b\"", "-1", "true"] {
        assert!(with(&format!("group = {wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn a_tunnel_network_is_cut_by_host_id() {
    let v4 = parsed(LEAST).tunnel;
    assert_eq!((v4.network.shift, v4.network.id_mask), (4, 0xfff));
    assert_eq!(
        v4.network.address_of(HostId(3)),
        Address::v4([10, 77, 0, 48])
    );
    assert_eq!(v4.network.host_of(0x0a4d_003f), Some(HostId(3)));
    assert_eq!(v4.network.host_of(0x0a4e_0000), None);
    assert_eq!(v4.prefix_of(HostId(3)).to_string(), "10.77.0.48/28");

    let text = LEAST
        .replace("10.77.0.0/16", "fd77::/48")
        .replace("= 28", "= 64");
    let v6 = parsed(&text).tunnel;
    assert_eq!((v6.network.shift, v6.network.id_mask), (0, 0xffff));
    assert_eq!(
        v6.network.address_of(HostId(3)).to_string(),
        "fd77:0:0:3::1"
    );
    assert_eq!(v6.network.host_of(0xfd77_0000_0000_0003), Some(HostId(3)));
    assert_eq!(v6.network.host_of(0xfd77_0000_0001_0003), None);
    assert_eq!(v6.prefix_of(HostId(3)).to_string(), "fd77:0:0:3::/64");
}

#[test]
fn a_list_of_seeds_may_serve_all_hosts() {
    let seeds = "[[pop.seeds]]\nhost = 1\naddress = \"10.1.1.11:7946\"\n\
                 [[pop.seeds]]\nhost = 2\naddress = \"10.1.1.12:7946\"\n";
    let seeds = parsed(&format!("{LEAST}{seeds}")).pop.seeds;
    assert_eq!(
        seeds.iter().map(|seed| seed.host.0).collect::<Vec<_>>(),
        [2]
    );
}

#[test]
fn durations() {
    let with = |text: &str| {
        let key = format!("address = \"10.1.1.11:7946\"\nleave_hold = \"{text}\"");
        parse(&LEAST.replace("address = \"10.1.1.11:7946\"", &key)).map(|c| c.pop.leave_hold)
    };
    assert_eq!(with("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(with("0s"), Ok(Duration::ZERO));
    assert_eq!(with("1h"), Ok(Duration::from_secs(3600)));
    for wrong in [
        "",
        "s",
        "30",
        "-1s",
        "1.5s",
        "30 s",
        "2h",
        "30sec",
        "99999999999999999999s",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

/// What the markers of a broken file demand, in the form in which problems print.
fn expected(name: &str, text: &str) -> String {
    let marked = text.lines().enumerate().flat_map(|(i, line)| {
        let marks = line.split("#!").skip(1);
        marks.map(move |mark| format!("{name}:{}: {}\n", i + 1, mark.trim()))
    });
    marked.collect()
}

#[test]
fn every_broken_file_is_refused_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/broken");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    let mut wrong = String::new();
    for file in files {
        let name = file.file_name().expect("name").to_str().expect("UTF-8");
        let text = fs::read_to_string(&file).expect("text");
        let expected = expected(name, &text);
        assert!(!expected.is_empty(), "{name} expects nothing");
        let found = match Config::parse(Path::new(name), &text) {
            Ok(_) => "nothing\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        if found != expected {
            wrong += &format!("--- expected\n{expected}--- found\n{found}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_file_cut_anywhere_never_panics_and_says_why() {
    for end in (0..EXAMPLE.len()).filter(|end| EXAMPLE.is_char_boundary(*end)) {
        if let Err(problems) = parse(&EXAMPLE[..end]) {
            assert!(!problems.list.is_empty());
            let last = EXAMPLE[..end].lines().count().max(1);
            let lines = problems.list.iter().map(|problem| problem.line);
            assert!(
                lines.clone().all(|line| (1..=last).contains(&line)),
                "{problems}"
            );
        }
    }
}

proptest! {
    /// Broken in two places, a file is refused with a reason or read, and never
    /// leaves a hole that nobody has noticed (which would panic).
    #[test]
    fn a_broken_file_never_panics(
        breaks in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, "[a-z0-9 =\"#.:/\\[\\]\n-]{0,3}"), 1..3),
    ) {
        let mut text = uncommented().into_bytes();
        for (at, cut, put) in breaks {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, put.bytes());
        }
        let text = String::from_utf8_lossy(&text);
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.list.is_empty());
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/homing.toml")).expect_err("no file");
    let text = error.to_string();
    assert!(
        text.starts_with("/nonexistent/homing.toml: cannot read"),
        "{text}"
    );
    assert!(text.contains("; fix: "), "{text}");
}
