//! The configuration is read again while everything runs: all of it is put in force, or
//! nothing is, and no connection notices.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::HashMap;
use homing_common::net::Service;
use homing_tests::lab::{Lab, Node, node, unique, wait_until};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt},
    },
    unistd::Pid,
};
use serde_json::Value;

use super::common::{Churn, FORGOTTEN, PATIENCE, Pop, exchange, problems};

/// The port of a service that the lab's configuration does not name.
const NEW: u16 = 8444;
/// How long the end of a connection that nobody forwards may take to show.
const BROKEN: Duration = Duration::from_secs(5);

fn file(pop: &Pop, host: u16) -> PathBuf {
    pop.lab.folder_of(Node::Host(host)).join("homing.toml")
}

fn text(pop: &Pop, host: u16) -> String {
    fs::read_to_string(file(pop, host)).unwrap()
}

/// Puts other texts into a host's configuration.
fn edit(pop: &Pop, host: u16, edits: &[(&str, &str)]) {
    let mut text = text(pop, host);
    for (from, to) in edits {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    fs::write(file(pop, host), text).unwrap();
}

/// Adds a line to a section of a host's configuration.
fn add(pop: &Pop, host: u16, section: &str, line: &str) {
    let head = format!("[{section}]\n");
    edit(pop, host, &[(&head, &format!("{head}{line}\n"))]);
}

fn reload(pop: &Pop, host: u16) -> Value {
    pop.lab.homing_json(host, &["reload"]).unwrap()
}

/// Why a reload changes nothing.
fn refused(pop: &Pop, host: u16) -> String {
    let error = pop.lab.exec(Node::Host(host), "homing", &["reload"]);
    format!("{:#}", error.unwrap_err())
}

/// The keys that a reload changed, or would.
fn keys(reloaded: &Value) -> Vec<String> {
    let changes = reloaded["changes"].as_array().unwrap().iter();
    let keys = changes.map(|change| change["key"].as_str().unwrap().to_owned());
    keys.collect()
}

/// An answer of the agent at one of its sockets: its status and its body.
fn ask(socket: &Path, request: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "{request} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// What each key holds that is in force.
fn in_force(pop: &Pop, host: u16) -> Value {
    let (status, config) = ask(&pop.lab.sockets(host).admin, "GET /config");
    assert_eq!(status, 200);
    config["keys"].clone()
}

/// What the kernel side has as services.
fn services(pop: &Pop, host: u16) -> usize {
    let map = pop.lab.map(host, "SERVICES").unwrap();
    let map = HashMap::<_, Service, u32>::try_from(map).unwrap();
    map.keys().count()
}

/// Group and mode of a socket's file.
fn rights(path: &Path) -> (u32, u32) {
    let data = fs::metadata(path).unwrap();
    (data.gid(), data.permissions().mode() & 0o7777)
}

fn connect(pop: &Pop, service: SocketAddr) -> TcpStream {
    let client = pop.lab.namespace(Node::Client(1));
    let stream = node::in_namespace(&client, || Ok(TcpStream::connect(service)?));
    let mut stream = stream.unwrap();
    exchange(&mut stream);
    stream
}

/// Whether a connection that had an exchange has another one, or breaks.
fn lives(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(BROKEN)).unwrap();
    let sent = stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 50]);
    sent.is_ok() && stream.read_exact(&mut [0; 50]).is_ok()
}

/// The new service, as it stands in the file.
fn new_service(pop: &Pop) -> String {
    let sections = pop.lab.plan().service(NEW).map(|service| {
        let ip = service.ip();
        format!("\n[[services]]\naddress = \"{ip}\"\nport = {NEW}\n")
    });
    sections.concat()
}

/// Three hosts in two racks, with servers of the new service, too.
fn up(name: &str) -> Pop {
    let lab = Lab::builder().name(&unique(name)).hosts(3).racks(2);
    Pop::with_ports(lab.up().unwrap(), &[443, NEW])
}

#[test]
fn a_service_is_added_and_removed_while_connections_go_on() {
    let mut pop = up("services");
    let mut clients = pop.load(12);
    let new = pop.lab.plan().service(NEW);

    // Before: packets of its connections are forwarded by nobody.
    pop.lab.set_ecmp(&[1]).unwrap();
    let mut broken = connect(&pop, new[0]);
    pop.lab.set_ecmp(&[2]).unwrap();
    assert!(!lives(&mut broken), "it was forwarded");
    pop.lab.set_ecmp(&[1]).unwrap();
    let mut all: Vec<_> = new.map(|service| connect(&pop, service)).into();

    for host in 1..=3 {
        pop.lab.configure(host, &new_service(&pop)).unwrap();
        assert_eq!(keys(&reload(&pop, host)), ["services"]);
        // What is in force already changes nothing.
        assert_eq!(reload(&pop, host)["changed"], false);
    }
    // Connections that stood before are sessions now, like those that come. So is the broken
    // one: nobody has told its owner.
    all.extend(new.map(|service| connect(&pop, service)));
    pop.lab.wait_settled(12 + 4 + 1, PATIENCE).unwrap();
    let named = pop.lab.homing_json(2, &["status"]).unwrap();
    let named = named["services"].as_array().unwrap().clone();
    let is_named = |service: &SocketAddr| {
        let service = service.to_string();
        named.iter().any(|named| named["address"] == service)
    };
    assert!(new.iter().all(is_named), "{named:?}");
    for order in [vec![2], vec![3], vec![3, 1, 2]] {
        pop.lab.set_ecmp(&order).unwrap();
        for stream in &mut all {
            assert!(lives(stream), "ECMP chose {order:?}: {}", pop.outcomes());
        }
    }
    for host in 1..=3 {
        assert_eq!(problems(&pop.lab, host), [] as [&str; 0]);
    }

    // Without it: what comes to their owner goes on, and what comes to others does not. It
    // does again where ECMP brings it back.
    for host in 1..=3 {
        let without = text(&pop, host).replace(&new_service(&pop), "");
        fs::write(file(&pop, host), without).unwrap();
        assert_eq!(keys(&reload(&pop, host)), ["services"]);
    }
    pop.lab.set_ecmp(&[2]).unwrap();
    assert!(!lives(&mut all[0]), "it was forwarded");
    let dropped = pop.lab.outcomes(&["tunnel_not_service"]).unwrap();
    assert!(dropped > 0, "{}", pop.outcomes());
    pop.lab.set_ecmp(&[1]).unwrap();
    all[0].set_read_timeout(Some(PATIENCE)).unwrap();
    all[0].read_exact(&mut [0; 50]).expect("it goes on");
    for stream in &mut all {
        assert!(lives(stream), "{}", pop.outcomes());
    }
    let mut after = connect(&pop, new[0]);
    pop.lab.set_ecmp(&[2]).unwrap();
    assert!(!lives(&mut after), "it was forwarded");
    pop.lab.set_ecmp(&[1]).unwrap();
    drop((all, broken, after));
    // Their end is told of, too.
    pop.lab.wait_settled(12 + 1, FORGOTTEN).unwrap();
    clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn a_wrong_file_changes_nothing_and_all_that_is_wrong_is_named() {
    let mut pop = up("typos");
    let clients = pop.load(12);
    let (before, in_map) = (in_force(&pop, 2), services(&pop, 2));
    let right = text(&pop, 2);
    pop.lab.configure(2, &new_service(&pop)).unwrap();
    edit(
        &pop,
        2,
        &[
            ("id = 2", "id = 9999"),
            ("idle_timeout = \"6s\"", "idle_timeuot = \"6s\""),
            ("xdp_mode = \"native\"", "xdp_mode = \"nativ\""),
            ("port = 5201", "port = 520100"),
        ],
    );
    let why = refused(&pop, 2);
    let line_of = |what: &str| {
        let text = text(&pop, 2);
        let line = text.lines().position(|line| line.contains(what));
        format!("{}:{}: ", file(&pop, 2).display(), line.unwrap() + 1)
    };
    assert!(why.contains("exit status: 5"), "{why}");
    for (at, said) in [
        ("9999", "host.id: 9999 is out of range; fix: write one from"),
        (
            "timeuot",
            "udp.idle_timeuot: unknown key; fix: write idle_timeout",
        ),
        (
            "nativ\"",
            "host.xdp_mode: \"nativ\" is none of the choices; fix:",
        ),
        ("520100", "services[4].port: 520100 is out of range; fix:"),
    ] {
        let said = line_of(at) + said;
        assert!(why.contains(&said), "{said}\n{why}");
    }
    assert!(why.contains("nothing has changed"), "{why}");
    let (status, answer) = ask(&pop.lab.sockets(2).admin, "POST /reload?dry_run=true");
    assert_eq!(status, 422);
    assert_eq!(answer["problems"].as_array().unwrap().len(), 4, "{answer}");
    assert_eq!(
        (in_force(&pop, 2), services(&pop, 2)),
        (before.clone(), in_map)
    );

    // A key that needs a restart keeps the others from changing, and is named.
    fs::write(file(&pop, 2), &right).unwrap();
    pop.lab.configure(2, &new_service(&pop)).unwrap();
    add(&pop, 2, "pop", "leave_hold = \"90s\"");
    add(&pop, 2, "mux", "group = 4242");
    let rack = format!("domain = \"rack-{}\"", pop.lab.plan().rack_of(2));
    edit(&pop, 2, &[(&rack, "domain = \"rack-9\"")]);
    let why = refused(&pop, 2);
    let named = format!(
        "host.domain: from \"rack-{}\" to \"rack-9\"",
        pop.lab.plan().rack_of(2)
    );
    assert!(
        why.contains("exit status: 1") && why.contains(&named),
        "{why}"
    );
    assert!(why.contains("its sessions stay"), "{why}");
    assert_eq!(
        (in_force(&pop, 2), services(&pop, 2)),
        (before.clone(), in_map)
    );
    assert_eq!(rights(&pop.lab.sockets(2).mux), (0, 0o660));

    // Without it, what remains would be put in force; then it is.
    edit(&pop, 2, &[("domain = \"rack-9\"", &rack)]);
    let dry = pop.lab.homing_json(2, &["reload", "--dry-run"]).unwrap();
    assert_eq!(keys(&dry), ["pop.leave_hold", "services", "mux.group"]);
    assert_eq!((in_force(&pop, 2), services(&pop, 2)), (before, in_map));
    assert_eq!(reload(&pop, 2)["changes"], dry["changes"]);
    assert_eq!(in_force(&pop, 2)["pop.leave_hold"], "\"90s\"");
    assert_eq!(rights(&pop.lab.sockets(2).mux), (4242, 0o660));
    assert_eq!(services(&pop, 2), in_map + 2);

    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn all_services_are_exchanged_at_once_however_many_there_are() {
    let pop = up("exchange");
    let (right, before) = (text(&pop, 1), services(&pop, 1));
    let start = right.find("\n[[services]]").unwrap();
    let end = start + right[start..].find("\n[udp]").unwrap();
    let (head, rest) = (&right[..start], &right[end..]);
    // As many as there may be, twice over: the kernel side has room for one of both.
    for network in [18, 19] {
        let many = (0..1024).map(|n| {
            let (high, low) = (n / 256, n % 256);
            format!("\n[[services]]\naddress = \"198.{network}.{high}.{low}\"\nport = 443\n")
        });
        let many: String = many.collect();
        fs::write(file(&pop, 1), format!("{head}{many}{rest}")).unwrap();
        let told = reload(&pop, 1);
        assert_eq!(keys(&told), ["services"]);
        let to = told["changes"][0]["to"].as_str().unwrap();
        assert!(to.ends_with("and 992 more"), "{to}");
        // Of each its address, too.
        assert_eq!(services(&pop, 1), 2048);
    }
    fs::write(file(&pop, 1), &right).unwrap();
    reload(&pop, 1);
    assert_eq!(services(&pop, 1), before);
    pop.down();
}

#[test]
fn a_step_that_fails_takes_back_those_before_it() {
    let mut pop = up("halfway");
    let clients = pop.load(12);
    let (before, in_map) = (in_force(&pop, 1), services(&pop, 1));
    let right = text(&pop, 1);
    let unchanged = |pop: &Pop| {
        let sockets = pop.lab.sockets(1);
        for socket in [&sockets.apps, &sockets.mux, &sockets.admin] {
            assert_eq!(rights(socket), (0, 0o660), "{}", socket.display());
        }
        assert_eq!(
            (in_force(pop, 1), services(pop, 1)),
            (before.clone(), in_map)
        );
    };
    // The second of two groups is none.
    add(&pop, 1, "apps", "group = 4242");
    add(&pop, 1, "mux", "group = \"no-such-group-at-all\"");
    add(&pop, 1, "pop", "leave_hold = \"90s\"");
    let why = refused(&pop, 1);
    assert!(why.contains("exit status: 1"), "{why}");
    for said in ["nothing has changed", "mux.group", "there is no such group"] {
        assert!(why.contains(said), "{said}: {why}");
    }
    unchanged(&pop);

    // A socket for reading where there is a file in the way.
    fs::write(file(&pop, 1), &right).unwrap();
    add(&pop, 1, "apps", "group = 4242");
    add(&pop, 1, "mux", "group = 4243");
    let read_socket = pop.lab.folder().join("pop.key/read.sock");
    let read_socket = read_socket.to_str().unwrap();
    let read = format!("readers = 4243\nread_socket = \"{read_socket}\"");
    add(&pop, 1, "admin", &read);
    let why = refused(&pop, 1);
    assert!(why.contains("pop.key"), "{why}");
    unchanged(&pop);

    // A key file that is wrong changes nothing either.
    fs::write(file(&pop, 1), &right).unwrap();
    add(&pop, 1, "apps", "group = 4242");
    let key = pop.lab.folder().join("pop.key");
    edit(&pop, 1, &[(key.to_str().unwrap(), "/nonexistent/pop.key")]);
    let why = refused(&pop, 1);
    assert!(why.contains("/nonexistent/pop.key"), "{why}");
    unchanged(&pop);
    fs::write(file(&pop, 1), &right).unwrap();
    assert_eq!(reload(&pop, 1)["changed"], false);

    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn who_may_use_sockets_changes_and_the_one_for_reading_comes_and_goes() {
    let pop = up("groups");
    let sockets = pop.lab.sockets(1);
    for (n, (section, socket)) in [
        ("apps", &sockets.apps),
        ("mux", &sockets.mux),
        ("admin", &sockets.admin),
    ]
    .into_iter()
    .enumerate()
    {
        let group = 4242 + n as u32;
        add(&pop, 1, section, &format!("group = {group}"));
        assert_eq!(keys(&reload(&pop, 1)), [format!("{section}.group")]);
        assert_eq!(rights(socket), (group, 0o660));
    }
    let read_socket = sockets.admin.with_extension("read");
    let path = format!("read_socket = \"{}\"", read_socket.display());
    add(&pop, 1, "admin", &format!("readers = 4246\n{path}"));
    assert_eq!(
        keys(&reload(&pop, 1)),
        ["admin.read_socket", "admin.readers"]
    );
    assert_eq!(rights(&read_socket), (4246, 0o660));
    assert_eq!(ask(&read_socket, "GET /status").0, 200);
    assert_eq!(ask(&read_socket, "POST /reload").0, 403);
    assert_eq!(ask(&read_socket, "POST /reload?dry_run=true").0, 403);
    edit(&pop, 1, &[("readers = 4246", "readers = 4247")]);
    assert_eq!(keys(&reload(&pop, 1)), ["admin.readers"]);
    assert_eq!(rights(&read_socket), (4247, 0o660));
    // Elsewhere: the one before is gone.
    let other = sockets.admin.with_extension("other");
    let elsewhere = format!("read_socket = \"{}\"", other.display());
    edit(&pop, 1, &[(&path, &elsewhere)]);
    assert_eq!(keys(&reload(&pop, 1)), ["admin.read_socket"]);
    assert_eq!(ask(&other, "GET /status").0, 200);
    assert!(!read_socket.exists());
    edit(&pop, 1, &[("readers = 4247\n", "")]);
    assert_eq!(keys(&reload(&pop, 1)), ["admin.readers"]);
    assert!(!other.exists());
    // And back at once.
    add(&pop, 1, "admin", "readers = 4245");
    assert_eq!(keys(&reload(&pop, 1)), ["admin.readers"]);
    assert_eq!(rights(&other), (4245, 0o660));

    // The socket that the agent was given on the command line stays its own.
    let given = format!("socket = \"{}\"", sockets.admin.display());
    edit(
        &pop,
        1,
        &[(&given, "socket = \"/run/homing/elsewhere.sock\"")],
    );
    assert_eq!(reload(&pop, 1)["changed"], false);
    assert_eq!(rights(&sockets.admin).0, 4244);
    pop.down();
}

#[test]
fn what_is_looked_at_when_it_is_used_counts_from_the_reload_on() {
    const MSS: u32 = 1200;
    let pop = up("values");
    let service = pop.lab.plan().service(443)[0];
    let offered = || {
        let stream = connect(&pop, service);
        getsockopt(&stream, sockopt::TcpMaxSeg).unwrap()
    };
    assert!(offered() > MSS);
    let touched = pop.lab.folder_of(Node::Host(1)).join("drained");
    let command = format!("on_drain = [\"/usr/bin/touch\", \"{}\"]", touched.display());
    for host in 1..=3 {
        add(&pop, host, "tunnel", &format!("mss = {MSS}"));
        let section = format!("[drain]\n{command}\n[migration]\nmoves = 8\nmemory = \"32MiB\"");
        pop.lab.configure(host, &section).unwrap();
        let changed = [
            "tunnel.mss",
            "migration.moves",
            "migration.memory",
            "drain.on_drain",
        ];
        assert_eq!(keys(&reload(&pop, host)), changed);
    }
    // Who follows it is told at once, and does it as soon as it runs.
    let lower = wait_until(PATIENCE, || Ok(offered() <= MSS));
    assert!(lower.unwrap(), "{}", offered());
    pop.lab.homing_json(1, &["drain", "--no-move"]).unwrap();
    let ran = wait_until(PATIENCE, || Ok(touched.exists()));
    assert!(ran.unwrap(), "{}", pop.lab.last_words(1));
    pop.down();
}

#[test]
fn sighup_puts_a_shorter_hold_in_force_which_the_others_go_by() {
    let mut pop = up("hold");
    let clients = pop.load(30);
    let foreign = |pop: &Pop| {
        let status = pop.lab.homing_json(1, &["status"]).unwrap();
        status["foreign"]["count"].as_u64().unwrap()
    };
    let own = |pop: &Pop, host: u16| {
        let status = pop.lab.homing_json(host, &["status"]).unwrap();
        status["sessions"]["count"].as_u64().unwrap()
    };
    let (all, of_three) = (foreign(&pop), own(&pop, 3));
    assert!(of_three > 0);
    // Without this they keep its sessions for 30 s.
    add(&pop, 3, "pop", "leave_hold = \"1s\"");
    let agent = pop.lab.agent(3).unwrap();
    kill(Pid::from_raw(agent.pid), Signal::SIGHUP).unwrap();
    let heard = wait_until(PATIENCE, || {
        Ok(in_force(&pop, 3)["pop.leave_hold"] == "\"1s\"")
    });
    assert!(heard.unwrap(), "{}", pop.lab.last_words(3));
    let said = pop.lab.last_words(3);
    assert!(said.contains("pop.leave_hold"), "{said}");
    pop.lab.stop(3).unwrap();
    let let_go = wait_until(Duration::from_secs(8), || {
        Ok(foreign(&pop) == all - of_three)
    });
    assert!(
        let_go.unwrap(),
        "{} of {all}, {of_three} of it",
        foreign(&pop)
    );
    drop(clients);
    pop.down();
}

#[test]
fn however_often_it_is_reloaded_no_connection_breaks() {
    const ROUNDS: usize = 8;
    let mut pop = up("often");
    let mut clients = pop.load(20);
    let churn = Churn::start(&pop.lab);
    let with = |pop: &Pop, round: usize, host: u16, right: &str| {
        let section = match round % 2 {
            0 => new_service(pop),
            _ => String::new(),
        };
        let text = right.replace(
            "[pop]\n",
            &format!("[pop]\nleave_hold = \"{}s\"\n", 40 + round),
        );
        fs::write(file(pop, host), text + &section).unwrap();
    };
    let right: Vec<String> = (1..=3).map(|host| text(&pop, host)).collect();
    for round in 0..ROUNDS {
        for host in 1..=3 {
            with(&pop, round, host, &right[usize::from(host) - 1]);
            assert_eq!(keys(&reload(&pop, host)), ["pop.leave_hold", "services"]);
        }
        let order = [[1, 2, 3], [2, 3, 1], [3, 1, 2]][round % 3];
        pop.lab.set_ecmp(&order).unwrap();
        assert_eq!(clients.wait_rounds(2, PATIENCE).unwrap(), clients.total());
    }
    let went_well = churn.finish();
    assert!(went_well > 0);
    clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.down();
}
