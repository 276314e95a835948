//! Another build or another configuration takes over: maps of other layouts and sizes
//! are filled before they come into force, and whenever the way is broken off, the
//! next start goes on.

use std::{
    collections::BTreeSet,
    fs,
    mem::offset_of,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo},
};
use homing_agent::datapath::{
    Datapath, LoadOptions, OBJECT,
    load::steps::{Load, Step},
    owners::{Maps, Owners},
    sockets::Watcher,
};
use homing_common::{
    bench::session_id,
    control::Control,
    host::HostId,
    maps::KnownMember,
    moving::{Moving, Phase},
    net::{Address, Port, Service, TCP},
    outcome::Hook,
    session::{Session, Tuple},
};
use homing_tests::{
    object::Object,
    sandbox::{self, ip},
};
use tokio::sync::watch;

/// Entries that `MEMBERS` and the table of owners have before.
const ENTRIES: u16 = 300;

/// The object as an older build has it: `SESSIONS` and `MOVING` of the same size with two
/// fields exchanged, `MEMBERS` with longer values, and other records in `EVENTS`.
fn older() -> Vec<u8> {
    let mut object = Object::parse(OBJECT).unwrap();
    object.append("KnownMember", "since").unwrap();
    object.exchange("Session", "generation", "flags").unwrap();
    object.exchange("Moving", "number", "since_ns").unwrap();
    object.exchange("Event", "kind", "zero").unwrap();
    object.build()
}

fn map_id(options: &LoadOptions, name: &str) -> u32 {
    MapInfo::from_pin(options.pin_dir.join("maps").join(name))
        .unwrap()
        .id()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A service, and open sessions of it.
struct Server {
    listener: TcpListener,
    open: Vec<(TcpStream, TcpStream)>,
}

const SERVICES: [Service; 1] = [Service::new(
    Address::v4(Ipv4Addr::LOCALHOST.octets()),
    Port::new(8080),
    TCP,
)];

impl Server {
    fn new() -> Self {
        Self {
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).unwrap(),
            open: Vec::new(),
        }
    }

    fn connect(&mut self) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        self.open.push((client, server));
    }

    /// Opens two and closes the oldest.
    fn change(&mut self) {
        self.connect();
        self.connect();
        self.open.remove(0);
    }

    fn tuples(&self) -> BTreeSet<Tuple> {
        let ends = self.open.iter().map(|(client, _)| {
            Tuple::between(
                client.local_addr().unwrap(),
                client.peer_addr().unwrap(),
                TCP,
            )
        });
        ends.collect()
    }
}

/// Compares with the kernel's sockets, as an agent does at its start.
fn audit(datapath: &Datapath, options: &LoadOptions) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut watcher = Watcher::open(
            datapath.sessions.clone(),
            datapath.moving.clone(),
            datapath.stats.clone(),
            options.settings.session_key,
            watch::Sender::new(Arc::new(SERVICES.into())).subscribe(),
            datapath.events.finder(),
        )
        .unwrap();
        watcher.audit().await.unwrap();
    });
}

fn sessions(datapath: &Datapath) -> Vec<(Tuple, Session)> {
    let mut sessions = Vec::new();
    datapath
        .sessions
        .scan(|tuple, session| sessions.push((tuple, session)))
        .unwrap();
    sessions
}

/// All that an older build leaves is there.
fn check_all(datapath: &mut Datapath, options: &LoadOptions, server: &Server) {
    audit(datapath, options);
    let found = sessions(datapath);
    let tuples: BTreeSet<_> = found.iter().map(|(tuple, _)| *tuple).collect();
    assert_eq!(tuples, server.tuples());
    for (tuple, session) in found {
        assert_eq!(session.id, tuple.id(&options.settings.session_key));
        assert_eq!(session.generation, 0);
    }
    let members = datapath.members.read().unwrap();
    let members = members
        .iter()
        .map(|(host, member)| (host.0, member.incarnation));
    assert!(members.eq((1..=ENTRIES).map(|host| (host, host.into()))));
    for number in 1..=ENTRIES {
        let owner = datapath.owners.get(session_id(number.into()));
        assert_eq!(owner, Some(HostId(number)));
    }
    assert_eq!(datapath.owners.len(), u32::from(ENTRIES));
    assert_eq!(datapath.services.list().unwrap(), SERVICES.into());
    assert_eq!(datapath.moving.list().unwrap(), [(MOVES, MOVING)]);
    assert!(datapath.control.is_moving());
    assert!(names(&options.pin_dir.join("new_maps")).is_empty());
}

/// A session that is in doubt while builds change.
const MOVES: Tuple = Tuple::new(
    Address::v4([198, 51, 100, 7]),
    Port::new(40_312),
    SERVICES[0].address,
    SERVICES[0].port,
    TCP,
);

const MOVING: Moving = Moving {
    number: 7,
    since_ns: 11,
    generation: 3,
    peer: 2,
    phase: Phase::Prepared as u8,
    zero: 0,
};

/// All steps of a load: what an agent of that build does, but for opening the maps.
fn load(options: &LoadOptions, object: &[u8]) {
    let mut load = Load::begin(options, object).unwrap();
    while load.step().unwrap().is_some() {}
}

/// A pinned hash map of any types.
fn pinned<K: Pod, V: Pod>(options: &LoadOptions, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(options.pin_dir.join("maps").join(name)).unwrap();
    HashMap::try_from(Map::HashMap(data)).unwrap()
}

/// A member as the older build has it.
type OlderMember = [u8; size_of::<KnownMember>() + 8];

fn older_member(host: u16) -> OlderMember {
    let mut member = [0; size_of::<OlderMember>()];
    member[..2].copy_from_slice(&host.to_le_bytes());
    member[size_of::<KnownMember>()] = 7;
    member
}

fn older_members(options: &LoadOptions) -> Array<MapData, OlderMember> {
    let data = MapData::from_pin(options.pin_dir.join("maps/MEMBERS")).unwrap();
    Array::try_from(Map::Array(data)).unwrap()
}

fn owners(options: &LoadOptions) -> Owners {
    let pin = |name| MapData::from_pin(options.pin_dir.join("maps").join(name)).unwrap();
    let outer = &Map::ArrayOfMaps(pin("OWNERS"));
    let header = &Map::Array(pin("OWNERS_HEADER"));
    let folder = options.pin_dir.join("tables");
    let maps = Maps::new(outer, header).pinned_in(&folder);
    Owners::open(&maps, options.owners_entries).unwrap()
}

/// An agent of the older build has run, and runs no more.
fn older_ran(options: &LoadOptions, server: &mut Server) {
    load(options, &older());
    let (mut members, mut owners) = (older_members(options), owners(options));
    for host in 1..=ENTRIES {
        members.set(host.into(), older_member(host), 0).unwrap();
        owners.set(session_id(host.into()), HostId(host)).unwrap();
    }
    let mut services = pinned::<Service, u32>(options, "SERVICES");
    services.insert(SERVICES[0], 1, 0).unwrap();
    let mut moving = pinned::<Tuple, Moving>(options, "MOVING");
    let older_moving = Moving {
        number: MOVING.since_ns,
        since_ns: MOVING.number,
        ..MOVING
    };
    moving.insert(MOVES, older_moving, 0).unwrap();
    for _ in 0..5 {
        server.connect();
    }
}

/// The link that keeps XDP attached.
fn xdp_link(options: &LoadOptions) -> u32 {
    let output = std::process::Command::new("bpftool")
        .args(["--json", "link", "show", "pinned"])
        .arg(options.pin_dir.join("links/xdp_eth0"))
        .output()
        .unwrap();
    let text: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    text["id"].as_u64().unwrap() as u32
}

#[test]
fn layouts_of_equal_size_are_told_apart_and_entries_carried_over_by_name() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        // To the older build, the cookie that its programs write is the time.
        let mut object = Object::parse(OBJECT).unwrap();
        object.exchange("Session", "opened_ns", "cookie").unwrap();
        load(&options, &object.build());
        let mut services = pinned::<Service, u32>(&options, "SERVICES");
        services.insert(SERVICES[0], 1, 0).unwrap();
        server.connect();
        let written = pinned::<Tuple, Session>(&options, "SESSIONS");
        let before: Vec<_> = written.iter().map(Result::unwrap).collect();
        let ids = || ["SESSIONS", "OWNERS", "STATS", "EVENTS"].map(|name| map_id(&options, name));
        let older = ids();

        let datapath = Datapath::load(&options).unwrap();
        let after = sessions(&datapath);
        assert_eq!((before.len(), after.len()), (1, 1));
        assert_eq!(after[0].0, before[0].0);
        assert_eq!(after[0].1.id, before[0].1.id);
        assert_eq!(after[0].1.opened_ns, before[0].1.cookie);
        assert_eq!(after[0].1.cookie, before[0].1.opened_ns);
        // Events carry a session: that buffer is another, too.
        let newer = ids();
        assert_ne!(newer[0], older[0]);
        assert_eq!(newer[1..3], older[1..3]);
        assert_ne!(newer[3], older[3]);
        assert_eq!(datapath.stats.hook(Hook::Opened).unwrap(), 1);
        drop(datapath);

        // The same build once more: nothing is changed.
        drop(Datapath::load(&options).unwrap());
        assert_eq!(ids(), newer);
    });
}

#[test]
fn another_build_finds_everything_and_the_links_stay() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name peer0");
        let options = sandbox.options(&["eth0"]);
        let mut server = Server::new();
        older_ran(&options, &mut server);
        let link = xdp_link(&options);
        server.change();
        let mut newer = Datapath::load(&options).unwrap();
        check_all(&mut newer, &options, &server);
        assert_eq!(newer.identity.begin().unwrap().generation, 1);
        drop(newer);
        server.change();

        // And back: an operator may want the old build again.
        load(&options, &older());
        server.change();
        let member = older_members(&options).get(&7, 0).unwrap();
        let (known, added) = member.split_at(size_of::<KnownMember>());
        assert_eq!(known, &older_member(7)[..known.len()]);
        assert_eq!(added, [0; 8], "what the newer build did not have");
        assert_eq!(owners(&options).len(), u32::from(ENTRIES));
        assert_eq!(xdp_link(&options), link);

        let mut newer = Datapath::load(&options).unwrap();
        check_all(&mut newer, &options, &server);
        assert_eq!(newer.identity.begin().unwrap().generation, 2);
        assert_eq!(xdp_link(&options), link);
    });
}

#[test]
fn other_limits_come_into_force_without_unloading() {
    sandbox::run(|sandbox| {
        let mut options = sandbox.options(&[]);
        let mut server = Server::new();
        older_ran(&options, &mut server);
        options.owners_entries = 5000;
        options.sessions_entries = 100;
        let mut datapath = Datapath::load(&options).unwrap();
        check_all(&mut datapath, &options, &server);
        assert_eq!(datapath.owners.capacity(), 5000);
        drop(datapath);
        // Less than there is: that stays, and nothing comes to it.
        options.owners_entries = 100;
        let mut datapath = Datapath::load(&options).unwrap();
        assert_eq!(datapath.owners.capacity(), 100);
        check_all(&mut datapath, &options, &server);
        let full = datapath.owners.set(session_id(0), HostId(2));
        assert!(full.is_err());
    });
}

/// Takes `count` steps and dies. Returns the last one.
fn interrupted(options: &LoadOptions, object: &[u8], count: usize) -> Option<Step> {
    let mut load = Load::begin(options, object).unwrap();
    let mut last = None;
    for _ in 0..count {
        last = load.step().unwrap();
        last.as_ref()?;
    }
    last
}

/// Dies after each of the steps in turn, and starts again, if it is said so with
/// another build first.
fn dies_anywhere(next: Option<&[u8]>) {
    let mut seen = BTreeSet::new();
    for count in 1.. {
        let mut over = false;
        sandbox::run(|sandbox| {
            ip("link add eth0 type veth peer name peer0");
            let options = sandbox.options(&["eth0"]);
            let mut server = Server::new();
            older_ran(&options, &mut server);
            let link = xdp_link(&options);
            let Some(step) = interrupted(&options, OBJECT, count) else {
                over = true;
                return;
            };
            seen.insert(format!("{step:?}"));
            server.change();
            if let Some(next) = next {
                load(&options, next);
                server.change();
            }
            let mut datapath = Datapath::load(&options).unwrap();
            assert_eq!(xdp_link(&options), link, "after {step:?}");
            check_all(&mut datapath, &options, &server);
            server.change();
            check_all(&mut datapath, &options, &server);
        });
        if over {
            break;
        }
    }
    for step in ["Create", "Load", "Attach(2)", "Clean"] {
        assert!(seen.contains(step), "{step} is not among {seen:?}");
    }
    for step in [
        "Fill(\"MEMBERS\")",
        "Refill(\"SESSIONS\")",
        "Settle(\"LAYOUT\")",
    ] {
        assert!(seen.contains(step), "{step} is not among {seen:?}");
    }
}

#[test]
fn a_start_that_dies_anywhere_is_ended_by_the_next() {
    dies_anywhere(None);
}

#[test]
#[ignore = "takes long: `cargo xtask test --full`"]
fn a_start_that_dies_anywhere_can_be_given_up_for_the_old_build() {
    dies_anywhere(Some(&older()));
}

/// Dies while new maps take their places, the last of which no program uses.
#[test]
fn a_start_that_dies_among_its_last_steps_converts_nothing_twice() {
    let mut object = Object::parse(OBJECT).unwrap();
    object.exchange("Control", "mss_v4", "mss_v6").unwrap();
    object
        .exchange("Identity", "incarnation", "generation")
        .unwrap();
    let older = object.build();
    let control = |options: &LoadOptions| {
        let pin = options.pin_dir.join("maps/CONTROL");
        let map = Map::Array(MapData::from_pin(pin).unwrap());
        Array::<_, [u8; size_of::<Control>()]>::try_from(map).unwrap()
    };
    for settled in 1..=3 {
        sandbox::run(|sandbox| {
            ip("link add eth0 type veth peer name peer0");
            let options = sandbox.options(&["eth0"]);
            load(&options, &older);
            let mut bytes = [0; size_of::<Control>()];
            bytes[offset_of!(Control, mss_v4)] = 6;
            bytes[offset_of!(Control, mss_v6)] = 4;
            control(&options).set(0, bytes, 0).unwrap();

            let mut load = Load::begin(&options, OBJECT).unwrap();
            let mut count = 0;
            while count < settled {
                let step = load.step().unwrap().unwrap();
                count += usize::from(matches!(step, Step::Settle(_)));
            }
            drop(load);
            drop(Datapath::load(&options).unwrap());
            let bytes = control(&options).get(&0, 0).unwrap();
            assert_eq!(bytes[offset_of!(Control, mss_v4)], 4, "{settled} settled");
            assert_eq!(bytes[offset_of!(Control, mss_v6)], 6, "{settled} settled");
        });
    }
}

#[test]
fn what_the_old_programs_record_until_the_last_moment_is_carried_over() {
    sandbox::run(|sandbox| {
        let options = sandbox.options(&[]);
        let mut server = Server::new();
        older_ran(&options, &mut server);
        let mut load = Load::begin(&options, OBJECT).unwrap();
        // Sessions come and go between any two steps.
        while let Some(step) = load.step().unwrap() {
            server.change();
            // Nobody compares with the sockets here: SESSIONS alone must know what is
            // open once the old programs are out of force and all is carried over.
            if step == Step::Clean {
                break;
            }
        }
        drop(load);
        let mut datapath = Datapath::load(&options).unwrap();
        let recorded: BTreeSet<_> = sessions(&datapath).into_iter().map(|(t, _)| t).collect();
        let missing: Vec<_> = server.tuples().difference(&recorded).copied().collect();
        assert!(missing.is_empty(), "{missing:?}");
        check_all(&mut datapath, &options, &server);
    });
}
