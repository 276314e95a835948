//! Loading, replacing and unloading the fast path: pins, links, locks, and the
//! errors that an operator meets.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use aya::programs::{SchedClassifier, TcAttachType};
use homing_agent::datapath::{
    Datapath, Error, LoadOptions, XdpMode,
    link::{How, Point},
    unload,
};
use homing_common::{
    bench::session_id,
    host::HostId,
    net::{Address, Port, Service, TCP},
};
use homing_tests::sandbox::{self, ip};

const MAPS: [&str; 21] = [
    "ASK",
    "AYA_LOGS",
    "CLOSED",
    "CONTROL",
    "EVENTS",
    "FLOWS",
    "FRAGMENTS",
    "HOSTS",
    "IDENTITY",
    "LAYOUT",
    "LIMITS",
    "MEMBERS",
    "MOVING",
    "OWNERS",
    "OWNERS_HEADER",
    "PARKED",
    "RENDEZVOUS",
    "SCRATCH",
    "SERVICES",
    "SESSIONS",
    "STATS",
];

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn link_ids(datapath: &Datapath) -> Vec<u32> {
    let attached = &datapath.attachment.attached;
    attached.iter().map(|link| link.link_id).collect()
}

fn hows(datapath: &Datapath) -> Vec<How> {
    let attached = &datapath.attachment.attached;
    attached.iter().map(|link| link.how).collect()
}

/// The program that an interface runs, as `ip` tells.
fn running(interface: &str) -> Option<String> {
    let output = std::process::Command::new("ip")
        .args(["-d", "link", "show", "dev", interface])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("prog/xdp"))?;
    Some(words[at + 2].to_owned())
}

/// The program that runs on what leaves by an interface.
fn egress(interface: &str) -> Option<u32> {
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Egress).unwrap();
    let names = programs
        .iter()
        .map(|program| program.name_as_str().unwrap());
    assert!(names.eq(programs.iter().map(|_| "homing_egress")));
    assert!(programs.len() <= 1);
    Some(programs.first()?.id())
}

fn refused(options: &LoadOptions) -> Error {
    match Datapath::load(options) {
        Ok(_) => panic!("was loaded"),
        Err(error) => error,
    }
}

#[test]
fn everything_is_pinned_and_outlives_the_agent() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        let datapath = Datapath::load(&options).unwrap();
        assert_eq!(hows(&datapath), [How::New; 4]);
        assert!(matches!(
            &datapath.attachment.attached[2].to,
            Point::Xdp { interface, mode: XdpMode::Native, .. } if interface == "eth0"
        ));
        assert_eq!(names(&options.pin_dir.join("maps")), MAPS);
        assert_eq!(
            names(&options.pin_dir.join("links")),
            ["egress_eth0", "silence", "sockops", "xdp_eth0"]
        );
        assert_eq!(
            names(&options.pin_dir.join("programs")),
            [
                "homing_egress",
                "homing_silence",
                "homing_sockops",
                "homing_xdp"
            ]
        );
        let program = running("eth0").expect("XDP runs");
        let leaving = egress("eth0").expect("the egress program runs");
        drop(datapath);
        assert_eq!(running("eth0"), Some(program));
        assert_eq!(egress("eth0"), Some(leaving));
    });
}

#[test]
fn a_second_load_replaces_programs_in_place_and_finds_what_the_first_wrote() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        let mut first = Datapath::load(&options).unwrap();
        let ids = link_ids(&first);
        let program = running("eth0");
        let leaving = egress("eth0");
        first.owners.set(session_id(7), HostId(3)).unwrap();
        assert_eq!(first.identity.begin().unwrap().generation, 1);
        drop(first);

        let mut second = Datapath::load(&options).unwrap();
        assert_eq!(hows(&second), [How::Replaced; 4]);
        assert_eq!(link_ids(&second), ids);
        assert_ne!(running("eth0"), program, "the program is another");
        assert_ne!(egress("eth0"), leaving);
        assert_eq!(second.owners.get(session_id(7)), Some(HostId(3)));
        assert_eq!(second.owners.len(), 1);
        assert_eq!(second.identity.begin().unwrap().generation, 2);
        assert_eq!(names(&options.pin_dir.join("programs")).len(), 4);
    });
}

#[test]
fn unload_removes_everything_and_may_be_called_again() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        drop(Datapath::load(&options).unwrap());
        let report = unload(&options.pin_dir).unwrap();
        assert_eq!(report.links.len(), 4);
        assert_eq!(report.programs.len(), 4);
        // With the table that OWNERS holds.
        assert_eq!(report.maps.len(), MAPS.len() + 1);
        assert!(!sandbox.bpf.join("homing").exists());
        assert_eq!(running("eth0"), None);
        assert_eq!(egress("eth0"), None);
        assert!(unload(&options.pin_dir).unwrap().is_empty());
    });
}

#[test]
fn a_running_agent_keeps_others_out() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        let running = Datapath::load(&options).unwrap();
        assert!(matches!(refused(&options), Error::Busy { .. }));
        assert!(matches!(unload(&options.pin_dir), Err(Error::Busy { .. })));
        let mut other = options.clone();
        other.pin_dir = sandbox.bpf.join("homing/other");
        other.interfaces.clear();
        drop(Datapath::load(&other).unwrap());
        drop(running);
        drop(Datapath::load(&options).unwrap());
        // The folder of all instances stays while there is another one.
        unload(&options.pin_dir).unwrap();
        assert_eq!(names(&sandbox.bpf.join("homing")), ["other"]);
    });
}

#[test]
fn an_interface_that_is_dropped_from_the_configuration_is_let_go() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        ip("link add eth1.7 type veth peer name peer1");
        let both = sandbox.options(&["eth0", "eth1.7"]);
        drop(Datapath::load(&both).unwrap());
        assert!(running("eth1.7").is_some());
        let one = sandbox.options(&["eth0"]);
        drop(Datapath::load(&one).unwrap());
        assert_eq!(running("eth1.7"), None);
        assert!(running("eth0").is_some());
        assert!(egress("eth0").is_some());
        assert_eq!(egress("eth1.7"), None);
        let links = names(&one.pin_dir.join("links"));
        assert_eq!(links, ["egress_eth0", "silence", "sockops", "xdp_eth0"]);
    });
}

#[test]
fn an_interface_that_was_made_anew_is_attached_anew() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        drop(Datapath::load(&options).unwrap());
        ip("link del eth0");
        ip("link add eth0 type veth peer name peer0");
        let datapath = Datapath::load(&options).unwrap();
        assert_eq!(
            hows(&datapath),
            [How::Replaced, How::Replaced, How::Moved, How::Moved]
        );
        assert!(running("eth0").is_some());
        assert!(egress("eth0").is_some());
    });
}

#[test]
fn another_xdp_mode_comes_into_force() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let mut options = sandbox.options(&["eth0"]);
        drop(Datapath::load(&options).unwrap());
        options.xdp_mode = XdpMode::Skb;
        let datapath = Datapath::load(&options).unwrap();
        assert_eq!(
            hows(&datapath),
            [How::Replaced, How::Replaced, How::Moved, How::Replaced]
        );
        assert!(running("eth0").is_some());
    });
}

#[test]
fn errors_say_what_to_do() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        ip("link add br0 type bridge");
        let good = sandbox.options(&["eth0"]);

        let error = refused(&sandbox.options(&["eth9"])).to_string();
        assert!(error.contains("cannot attach XDP to eth9"), "{error}");

        let error = refused(&sandbox.options(&["eth0", "br0"])).to_string();
        assert!(error.contains("cannot attach XDP to br0"), "{error}");
        assert!(error.contains("xdp_mode = \"skb\""), "{error}");
        assert_eq!(running("eth0"), None, "what failed half-way is undone");

        let mut options = good.clone();
        options.pin_dir = PathBuf::from("/run/files/homing/test");
        let error = refused(&options).to_string();
        assert!(error.contains("mount -t bpf bpf /run/files"), "{error}");

        let mut options = good.clone();
        options.cgroup = sandbox.files.clone();
        let error = refused(&options).to_string();
        assert!(error.contains("no cgroup v2"), "{error}");

        drop(Datapath::load(&good).unwrap());
        let mut options = good.clone();
        options.pin_dir = sandbox.bpf.join("homing/second");
        let error = refused(&options).to_string();
        assert!(error.contains("it runs another XDP program"), "{error}");
    });
}

#[test]
fn services_follow_the_configuration() {
    sandbox::run(|sandbox| {
        let service = |port| Service::new(Address::v4([203, 0, 113, 10]), Port::new(port), TCP);
        let mut datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        let services = &mut datapath.services;
        let synced = services.sync(&[service(80), service(443)]).unwrap();
        assert_eq!((synced.added, synced.removed), (2, 0));
        let synced = services.sync(&[service(443), service(8443)]).unwrap();
        assert_eq!((synced.added, synced.removed), (1, 1));
        let expected = [service(443), service(8443)].into();
        assert_eq!(services.list().unwrap(), expected);
        let too_many: Vec<_> = (1..3000).map(service).collect();
        let error = services.sync(&too_many).unwrap_err().to_string();
        assert!(error.contains("SERVICES is full"), "{error}");
    });
}

#[test]
fn owners_are_counted_and_bounded() {
    sandbox::run(|sandbox| {
        let mut datapath = Datapath::load(&sandbox.options(&[])).unwrap();
        let owners = &mut datapath.owners;
        assert_eq!((owners.len(), owners.capacity()), (0, 1000));
        for id in 0..1000 {
            owners.set(session_id(id), HostId(2)).unwrap();
        }
        let error = owners.set(session_id(1000), HostId(2)).unwrap_err();
        assert!(error.to_string().contains("full (1000 entries)"), "{error}");
        owners.set(session_id(5), HostId(3)).unwrap();
        assert_eq!(owners.len(), 1000);
        let mut seen = std::collections::BTreeMap::new();
        owners.scan(|id, host| assert!(seen.insert(id, host).is_none()));
        assert_eq!(seen.len(), 1000);
        assert_eq!(seen[&session_id(5)], HostId(3));
        for id in 0..1001 {
            owners.clear(session_id(id));
        }
        assert!(owners.is_empty());
        assert_eq!(owners.get(session_id(5)), None);
    });
}

#[test]
fn the_one_table_of_owners_is_pinned_and_the_next_start_finds_it() {
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        // The smallest table has 1,048,576 slots.
        options.owners_entries = 2_000_000;
        let pinned = || names(&options.pin_dir.join("tables"));
        let mut datapath = Datapath::load(&options).unwrap();
        let first = pinned();
        assert_eq!(first.len(), 1, "{first:?}");
        let mut sessions = 0;
        while pinned() == first {
            for _ in 0..20_000 {
                datapath
                    .owners
                    .set(session_id(sessions), HostId(2))
                    .unwrap();
                sessions += 1;
            }
            assert!(sessions < 1_100_000, "it has not grown");
        }
        let second = pinned();
        assert_eq!(second.len(), 1, "{second:?}");
        drop(datapath);
        // Only by its pin: nothing else opens it without CAP_SYS_ADMIN.
        let datapath = Datapath::load(&options).unwrap();
        assert_eq!(u64::from(datapath.owners.len()), sessions);
        assert_eq!(pinned(), second);
        drop(datapath);
        unload(&options.pin_dir).unwrap();
        assert!(!options.pin_dir.exists());
    });
}

#[test]
fn a_full_table_of_owners_has_room_for_those_whose_packets_come() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut datapath = Datapath::load(&options).unwrap();
        let owners = &mut datapath.owners;
        let (one, two) = (HostId(1), HostId(2));
        owners.keep(10);
        assert_eq!(owners.capacity(), 990);
        for id in 0..990 {
            owners.set(session_id(id), two).unwrap();
        }
        assert!(owners.set(session_id(2000), two).is_err());
        // Of those whose packets come, the first make way for the last.
        for id in 2000..2015 {
            let made_way = owners.set_asked(session_id(id), two).unwrap();
            assert_eq!(made_way, id >= 2010);
        }
        assert_eq!(owners.len(), 1000);
        assert_eq!(owners.get(session_id(2004)), None);
        assert_eq!(owners.get(session_id(2005)), Some(two));
        // One of them has another owner now; it still has no place of its own.
        assert!(owners.set(session_id(2005), one).is_err());
        assert_eq!(owners.get(session_id(2005)), Some(one));
        // A place is free.
        owners.clear(session_id(7));
        owners.set(session_id(2006), two).unwrap();
        assert!(owners.set(session_id(2007), two).is_err());
        assert!(!owners.set_asked(session_id(3000), two).unwrap());
        assert!(owners.set_asked(session_id(3001), two).unwrap());
        assert_eq!(owners.get(session_id(2006)), Some(two));

        // The next agent finds more than its own limit, and goes on with that.
        drop(datapath);
        let mut datapath = Datapath::load(&options).unwrap();
        let owners = &mut datapath.owners;
        assert_eq!(owners.len(), 1000);
        owners.keep(10);
        assert!(owners.set(session_id(4000), two).is_err());
        assert!(owners.set_asked(session_id(4000), two).unwrap());
        assert_eq!(owners.len(), 1000);
    });
}

#[test]
fn what_an_agent_did_not_come_to_remove_of_a_void_host_goes_with_the_next_start() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut datapath = Datapath::load(&options).unwrap();
        for (session, host) in [(1, 2), (2, 2), (3, 3)] {
            datapath
                .owners
                .set(session_id(session), HostId(host))
                .unwrap();
        }
        let voids = datapath.hosts.voids();
        let died = catch_unwind(AssertUnwindSafe(|| {
            voids.sweep(HostId(2), || panic!("dies here"))
        }));
        died.unwrap_err();
        drop((datapath, voids));
        let datapath = Datapath::load(&options).unwrap();
        assert!(datapath.hosts.void().is_empty());
        let owners = [1, 2, 3].map(|session| datapath.owners.get(session_id(session)));
        assert_eq!(owners, [None, None, Some(HostId(3))]);
    });
}
