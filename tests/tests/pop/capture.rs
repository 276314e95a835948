//! `homing capture` in a running POP: what it writes is what happened, tshark reads it,
//! `homing explain` says the same of it, and nobody else notices that it is there.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use anyhow::ensure;
use homing_common::capture::SNAP_MAX;
use homing_tests::{
    lab::{Lab, Node, node::in_namespace, wait_until},
    packet::{Tcp, flags},
    raw::{Raw, index_of},
};
use pcap_file::pcapng::{
    Block, PcapNgReader,
    blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
};
use serde_json::Value;

use super::common::{PATIENCE, Pop};

/// The host that captures.
const HERE: u16 = 2;

/// What `homing capture -w FILE ARGS` writes on a host, and how it ends.
struct Capture {
    file: PathBuf,
    child: Child,
}

impl Capture {
    fn start(lab: &Lab, host: u16, name: &str, args: &[&str]) -> Self {
        let file = lab.folder().join(name);
        // Of an earlier one of this name.
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new("homing");
        command.args(["capture", "-w"]).arg(&file).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = lab.spawn(Node::Host(host), &mut command).unwrap();
        Self { file, child }
    }

    /// Waits until it has begun: the file's head is written.
    fn has_begun(self) -> Self {
        let written = || Ok(self.file.metadata().is_ok_and(|file| file.len() > 0));
        assert!(wait_until(PATIENCE, written).unwrap());
        self
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn ends(self) -> (Output, PathBuf) {
        (self.child.wait_with_output().unwrap(), self.file)
    }

    /// Ends by itself, well; gives the packets, and what it says at the end.
    #[track_caller]
    fn packets(self) -> (BTreeMap<u64, Packet>, String) {
        let (output, file) = self.ends();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        (read(&file), said)
    }
}

/// A packet in the file.
#[derive(Debug, Default)]
struct Packet {
    outcome: String,
    came: Vec<u8>,
    went: Option<Vec<u8>>,
}

/// The packets of a file, by their numbers.
fn read(path: &Path) -> BTreeMap<u64, Packet> {
    let mut packets = BTreeMap::<u64, Packet>::new();
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(block) = block.unwrap() else {
            continue;
        };
        let (number, what, outcome) = comment(&block);
        let packet = packets.entry(number).or_default();
        packet.outcome = outcome;
        match what.as_str() {
            "as it came" => packet.came = block.data.to_vec(),
            "as it went" => packet.went = Some(block.data.to_vec()),
            _ => panic!("{what}"),
        }
    }
    packets
}

/// The number, the side and the outcome in `homing: packet 7, as it came; forwarded: …`.
fn comment(block: &EnhancedPacketBlock<'_>) -> (u64, String, String) {
    let comment = block.options.iter().find_map(|option| match option {
        EnhancedPacketOption::Comment(text) => Some(text.to_string()),
        _ => None,
    });
    let comment = comment.expect("a comment");
    let rest = comment.strip_prefix("homing: packet ").expect("of Homing");
    let (number, rest) = rest.split_once(", ").unwrap();
    let (what, rest) = rest.split_once("; ").unwrap();
    let (outcome, _) = rest.split_once(": ").unwrap();
    (number.parse().unwrap(), what.into(), outcome.into())
}

/// The XDP program that runs on the host's interface to the fabric: its id and name.
fn program(lab: &Lab, host: u16) -> (u64, String) {
    program_on(lab, host, "eth0")
}

fn program_on(lab: &Lab, host: u16, interface: &str) -> (u64, String) {
    let text = lab.exec(
        Node::Host(host),
        "ip",
        &["-details", "-json", "link", "show", interface],
    );
    let links: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let program = &links[0]["xdp"]["prog"];
    let name = program["name"].as_str().unwrap_or_default().to_owned();
    (program["id"].as_u64().unwrap_or_default(), name)
}

const USUAL: &str = "homing_xdp";
const CAPTURING: &str = "homing_capture";

/// Waits until this program runs.
#[track_caller]
fn comes_to_run(lab: &Lab, host: u16, name: &str) {
    let runs = wait_until(PATIENCE, || Ok(program(lab, host).1 == name));
    assert!(runs.unwrap(), "{:?}", program(lab, host));
}

/// What `homing ARGS` exits with and prints on a host, by standard output and error.
fn homing(lab: &Lab, host: u16, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("homing");
    command.args(args);
    lab.place(Node::Host(host), &mut command).unwrap();
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn what_is_captured_is_what_happened_and_what_explain_says_of_it() {
    let mut pop = Pop::up("told");
    let clients = pop.load(30);
    pop.lab.set_ecmp(&[HERE]).unwrap();
    clients.wait_rounds(2, PATIENCE).unwrap();

    // All that comes: sessions of other hosts are forwarded, this host's go up.
    let all = Capture::start(&pop.lab, HERE, "all.pcapng", &["--count", "300"]);
    let path = all.file.clone();
    let (packets, said) = all.packets();
    assert!(
        said.contains("homing captured 300 packets; 0 more"),
        "{said}"
    );
    assert_eq!(packets.len(), 300);
    let of = |outcome: &str| {
        packets
            .values()
            .filter(|packet| packet.outcome == outcome)
            .count()
    };
    assert!(of("forwarded") > 0 && of("local_socket") > 0, "{packets:?}");
    for packet in packets.values() {
        let link = 14;
        match (packet.outcome.as_str(), &packet.went) {
            // An outer header, and the packet as it came.
            ("forwarded", Some(went)) => {
                assert_eq!(
                    went[went.len() - packet.came.len() + link..],
                    packet.came[link..]
                );
                assert!(went.len() > packet.came.len());
            }
            ("forwarded", None) => panic!("nothing is said of how it went: {packet:?}"),
            ("local_socket", went) => assert_eq!(*went, None),
            _ => {}
        }
    }

    // A reader that has nothing to do with this project finds the same.
    let mut shark = Command::new("tshark");
    shark.arg("-r").arg(&path).args([
        "-Y",
        "frame.comment contains \"as it went; forwarded\"",
        "-T",
        "fields",
        "-e",
        "ip.dst",
        "-e",
        "ipv6.dst",
    ]);
    match shark.output() {
        Err(_) => eprintln!("tshark is not looked at: it is not there; cargo xtask setup"),
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.lines().count(), of("forwarded"), "{text}");
            // To another host's tunnel address first.
            assert!(
                text.lines().all(|line| line.starts_with("10.77.0.")),
                "{text}"
            );
        }
    }

    // What is said of them, packet for packet: the same outcome, and the same bytes.
    let args = ["explain", path.to_str().unwrap()];
    let told = pop.lab.homing_json(HERE, &args).unwrap();
    let told = told["packets"].as_array().unwrap();
    let mut told = told.iter();
    let mut compared = 0;
    for packet in packets.values() {
        let Some(came) = told.next() else {
            // There is a limit to how many are explained at once.
            break;
        };
        if !["forwarded", "local_socket"].contains(&packet.outcome.as_str()) {
            continue;
        }
        assert_eq!(
            came["outcome"],
            Value::from(packet.outcome.as_str()),
            "{came}"
        );
        let went = came["frame"].as_str().map(str::to_owned);
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(went, packet.went.as_ref().map(hex), "{came}");
        compared += 1;
    }
    assert!(compared > 200, "{compared}");

    // One session, at the host that has it and at the one that its packets come to.
    let sessions = pop.lab.homing_json(1, &["sessions"]).unwrap();
    let session = &sessions["sessions"][0];
    let [client, service] = ["client", "service"].map(|end| session[end].as_str().unwrap());
    let one = ["--session", client, service, "--count", "6"];
    let (packets, _) = Capture::start(&pop.lab, HERE, "one.pcapng", &one).packets();
    assert_eq!(packets.len(), 6);
    assert!(
        packets.values().all(|packet| packet.outcome == "forwarded"),
        "{packets:?}"
    );
    let (packets, _) = Capture::start(&pop.lab, 1, "there.pcapng", &one).packets();
    for packet in packets.values() {
        assert_eq!(packet.outcome, "stripped_socket");
        let went = packet.went.as_ref().expect("it is stripped");
        assert_eq!(
            went[14..],
            packet.came[packet.came.len() - went.len() + 14..]
        );
    }

    // By outcome, and by the first bytes.
    let local = [
        "--outcome",
        "local_socket",
        "--outcome",
        "local_syn",
        "--snap",
        "40",
    ];
    let args = [&local[..], &["--count", "20"]].concat();
    let (packets, _) = Capture::start(&pop.lab, HERE, "local.pcapng", &args).packets();
    for packet in packets.values() {
        assert_eq!(
            (packet.outcome.as_str(), packet.came.len()),
            ("local_socket", 40)
        );
    }
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn nobody_notices_a_capture_and_nothing_is_left_of_it() {
    let mut pop = Pop::up("cap");
    let clients = pop.load(30);
    pop.lab.set_ecmp(&[HERE]).unwrap();
    let usual = program(&pop.lab, HERE);
    assert_eq!(usual.1, USUAL);
    let here = Node::Host(HERE);
    let maps = |lab: &Lab| {
        let maps = lab.exec(here, "bpftool", &["-j", "map", "show"]).unwrap();
        let maps: Value = serde_json::from_str(&maps).unwrap();
        let names = maps.as_array().unwrap().iter();
        names.filter(|map| map["name"] == "CAPTURED").count()
    };

    // It comes and goes under traffic.
    for round in 0..10 {
        let args = ["--count", "20"];
        let capture = Capture::start(&pop.lab, HERE, "again.pcapng", &args);
        let (packets, _) = capture.packets();
        assert_eq!(packets.len(), 20, "round {round}");
        assert_eq!(program(&pop.lab, HERE), usual, "round {round}");
    }

    // One at a time; an interrupted one ends well.
    let first = Capture::start(&pop.lab, HERE, "first.pcapng", &[]).has_begun();
    comes_to_run(&pop.lab, HERE, CAPTURING);
    let file = pop.lab.folder().join("second.pcapng");
    let (code, _, said) = homing(&pop.lab, HERE, &["capture", "-w", file.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("one at a time"), "{said}");
    assert!(!file.exists());
    clients.wait_rounds(2, PATIENCE).unwrap();
    first.signal(nix::sys::signal::Signal::SIGINT);
    let (packets, said) = first.packets();
    assert!(!packets.is_empty() && said.contains("; 0 more"), "{said}");
    assert_eq!(program(&pop.lab, HERE), usual);

    // One that is killed; one that waits for what never comes.
    let killed = Capture::start(&pop.lab, HERE, "killed.pcapng", &[]).has_begun();
    comes_to_run(&pop.lab, HERE, CAPTURING);
    killed.signal(nix::sys::signal::Signal::SIGKILL);
    killed.ends();
    comes_to_run(&pop.lab, HERE, USUAL);
    let idle = ["--client", "192.0.2.1", "--duration", "1s"];
    let (packets, said) = Capture::start(&pop.lab, HERE, "idle.pcapng", &idle).packets();
    assert!(
        packets.is_empty() && said.contains("captured 0 packets; 0 more"),
        "{said}"
    );

    // The agent is killed: the next one puts the usual program back.
    let orphan = Capture::start(&pop.lab, HERE, "orphan.pcapng", &[]).has_begun();
    comes_to_run(&pop.lab, HERE, CAPTURING);
    pop.lab.kill(HERE).unwrap();
    let (output, file) = orphan.ends();
    assert_eq!(output.status.code(), Some(1));
    assert!(!read(&file).is_empty());
    clients.wait_rounds(2, PATIENCE).unwrap();
    assert_eq!(program(&pop.lab, HERE).1, CAPTURING);
    pop.lab.start(HERE).unwrap();
    comes_to_run(&pop.lab, HERE, USUAL);
    assert!(wait_until(PATIENCE, || Ok(maps(&pop.lab) == 0)).unwrap());

    assert_eq!(clients.wait_rounds(2, PATIENCE).unwrap(), clients.total());
    pop.unbroken(clients);
    pop.down();
}

#[test]
fn what_is_beyond_the_limit_is_counted() {
    const SENT: u64 = 60_000;
    let pop = Pop::up("capflood");
    let lab = &pop.lab;
    // Packets for no service, from the router's end of the host's link.
    let service: SocketAddr = lab.plan().service(443)[0];
    let frame = Tcp::new(
        "198.51.100.9:4711",
        &format!("{}:22", service.ip()),
        flags::SYN,
    )
    .frame();
    let args = [
        "--client",
        "198.51.100.9",
        "--service",
        &format!("{}:22", service.ip()),
    ];
    let capture = Capture::start(lab, HERE, "flood.pcapng", &args).has_begun();
    comes_to_run(lab, HERE, CAPTURING);
    let before = lab.outcomes(&["not_service"]).unwrap();
    in_namespace(&lab.namespace(Node::Router), || {
        let (raw, port) = (Raw::sender()?, index_of(&format!("h{HERE}"))?);
        for _ in 0..SENT {
            // As fast as the kernel takes them.
            while let Err(error) = raw.send(port, &frame) {
                ensure!(error.raw_os_error() == Some(libc::ENOBUFS), "{error}");
                thread::yield_now();
            }
        }
        Ok(())
    })
    .unwrap();
    let counted = || Ok(lab.outcomes(&["not_service"]).unwrap() - before >= SENT);
    assert!(wait_until(PATIENCE, counted).unwrap());
    capture.signal(nix::sys::signal::Signal::SIGINT);
    let (packets, said) = capture.packets();
    let more = said
        .split("packets; ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let more: u64 = more.parse().unwrap();
    // Each one that was sent was captured, or counted.
    assert_eq!(packets.len() as u64 + more, SENT, "{said}");
    assert!(packets.len() > 1_000, "{said}");
    assert!(
        packets.values().all(|packet| packet.came == frame),
        "{said}"
    );
    assert!(frame.len() < SNAP_MAX);
    pop.down();
}

#[test]
fn an_interface_that_comes_back_is_captured_at_again() {
    const CLIENT: &str = "198.51.100.9";
    let mut pop = Pop::up("capback");
    let here = Node::Host(HERE);
    let on_host = |pop: &Pop, line: &str| pop.lab.exec(here, "sh", &["-ec", line]).unwrap();
    let add = "ip link add va type veth peer name vb && ip link set vb up && ip link set va up";
    on_host(&pop, add);
    let file = pop.lab.folder_of(here).join("homing.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let both = config.replace("[\"eth0\"]", "[\"eth0\", \"va\"]");
    assert_ne!(both, config);
    pop.lab.stop(HERE).unwrap();
    std::fs::write(&file, both).unwrap();
    pop.lab.start(HERE).unwrap();

    let frame = Tcp::new(&format!("{CLIENT}:4711"), "203.0.113.10:22", flags::SYN).frame();
    let send = |pop: &Pop| {
        in_namespace(&pop.lab.namespace(here), || {
            let (raw, port) = (Raw::sender()?, index_of("vb")?);
            for _ in 0..10 {
                raw.send(port, &frame)?;
            }
            Ok(())
        })
        .unwrap();
    };
    let runs = |pop: &Pop, name: &str| {
        let runs = wait_until(PATIENCE, || Ok(program_on(&pop.lab, HERE, "va").1 == name));
        assert!(runs.unwrap(), "{name}");
    };
    let of_client = ["--client", CLIENT];
    let capture = Capture::start(&pop.lab, HERE, "back.pcapng", &of_client).has_begun();
    runs(&pop, CAPTURING);
    send(&pop);
    on_host(&pop, "ip link del va");
    on_host(&pop, add);
    runs(&pop, CAPTURING);
    send(&pop);
    capture.signal(nix::sys::signal::Signal::SIGTERM);
    let (packets, said) = capture.packets();
    assert_eq!(packets.len(), 20, "{said}");
    assert!(said.contains("an interface had come back"), "{said}");
    runs(&pop, USUAL);

    // One that has gone is no reason not to capture at the others.
    on_host(&pop, "ip link del va");
    let clients = pop.unsettled(6);
    pop.lab.set_ecmp(&[HERE]).unwrap();
    let (packets, _) = Capture::start(&pop.lab, HERE, "gone.pcapng", &["--count", "5"]).packets();
    assert_eq!(packets.len(), 5);
    comes_to_run(&pop.lab, HERE, USUAL);
    pop.unbroken(clients);
    pop.down();
}
