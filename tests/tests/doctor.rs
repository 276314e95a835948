//! `homing doctor` on hosts of a lab that are broken on purpose: it names that cause and no
//! other, and its fix, pasted, mends it. What cannot be broken here (a kernel's version, its
//! JIT, the clock, LRO, VLANs) is shown by the checks' own tests. Needs root.

use std::{
    fs,
    io::Write as _,
    net::{TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use homing_agent::doctor::{Finding, Level, Report};
use homing_tests::{
    demo::Servers,
    lab::{Lab, Node, Outer, Tunnel, fault::Fault, node::in_namespace, port, unique, wait_until},
};

/// The host that is examined.
const HOST: Node = Node::Host(1);

/// How long what passes by itself may take: unheard multicast is named after ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `homing doctor --json ARGS` exits with and prints on the host.
fn doctor(lab: &Lab, args: &[&str]) -> (i32, Report) {
    let mut command = Command::new("homing");
    command.args(["doctor", "--json"]).args(args);
    lab.place(HOST, &mut command).unwrap();
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), report)
}

/// What a report warns of.
fn bad(report: &Report) -> Vec<&Finding> {
    let bad = report.findings.iter();
    bad.filter(|finding| finding.level >= Level::Warning)
        .collect()
}

/// A host as one who examines it finds it.
struct Patient<'a> {
    lab: &'a Lab,
    /// What the command is given.
    args: Vec<String>,
}

impl<'a> Patient<'a> {
    /// With the host's own configuration.
    fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            args: Vec::new(),
        }
    }

    /// With this one.
    fn with_config(lab: &'a Lab, path: &Path) -> Self {
        Self {
            lab,
            args: vec!["--config".to_owned(), path.display().to_string()],
        }
    }

    fn examine(&self) -> (i32, Report) {
        let args: Vec<_> = self.args.iter().map(String::as_str).collect();
        doctor(self.lab, &args)
    }

    /// Nothing is warned of, as soon as the agent has seen what has changed.
    #[track_caller]
    fn is_well(&self) {
        wait_until(PATIENCE, || Ok(bad(&self.examine().1).is_empty())).unwrap();
        let (code, report) = self.examine();
        assert_eq!(bad(&report), [] as [&Finding; 0]);
        assert_eq!(code, 0);
    }

    /// This is warned of, as soon as the agent has seen it.
    #[track_caller]
    fn falls_ill_with(&self, name: &str) {
        let named = wait_until(PATIENCE, || {
            Ok(bad(&self.examine().1).iter().any(|f| f.name == name))
        });
        assert!(named.unwrap(), "{:#?}", self.examine().1);
    }

    /// Just this is warned of, `times` over, at this level.
    #[track_caller]
    fn suffers(&self, name: &str, level: Level, times: usize) -> Vec<Finding> {
        let (code, report) = self.examine();
        let bad = bad(&report);
        let found: Vec<_> = bad.iter().map(|f| (f.name.as_str(), f.level)).collect();
        assert_eq!(found, vec![(name, level); times], "{bad:#?}");
        assert_eq!(report.worst, level);
        assert_eq!(code, if name == "configuration" { 5 } else { 1 });
        for finding in &bad {
            assert!(
                finding.why.is_some() && finding.fix.is_some(),
                "{finding:?}"
            );
        }
        bad.into_iter().cloned().collect()
    }

    /// Just this is warned of, once, and what is said mends it.
    #[track_caller]
    fn is_cured_of(&self, name: &str, level: Level, fix: &str) {
        let finding = self.suffers(name, level, 1).remove(0);
        let said = finding.fix.unwrap();
        assert!(said.starts_with(fix), "{said}");
        self.lab.exec(HOST, "sh", &["-c", &said]).unwrap();
        self.is_well();
    }
}

/// Runs a command on the host.
#[track_caller]
fn on_host(lab: &Lab, line: &str) {
    lab.exec(HOST, "sh", &["-ec", line]).unwrap();
}

/// The file with the POP's key.
fn key_file(lab: &Lab) -> PathBuf {
    lab.folder().join("pop.key")
}

/// The host's configuration with a change, in a file of its own.
fn changed(lab: &Lab, from: &str, to: &str) -> PathBuf {
    let folder = lab.folder_of(HOST);
    let text = fs::read_to_string(folder.join("homing.toml")).unwrap();
    assert!(text.contains(from), "no {from} in\n{text}");
    let path = folder.join("changed.toml");
    fs::write(&path, text.replace(from, to)).unwrap();
    path
}

#[test]
fn a_host_without_an_agent_is_broken_and_each_time_the_cause_is_named() {
    let lab = Lab::builder().name(&unique("doc")).hosts(2).racks(1);
    let lab = lab.no_homing().up().unwrap();
    let host = Patient::new(&lab);
    host.is_well();
    let (_, report) = host.examine();
    let agent = report.findings.iter().find(|f| f.name == "agent").unwrap();
    assert_eq!(agent.level, Level::Note);

    // Settings of the kernel.
    on_host(&lab, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1");
    let fix = "sysctl -w net.ipv4.conf.all.rp_filter=2";
    host.is_cured_of("rp_filter", Level::Warning, fix);

    // File systems.
    on_host(&lab, "umount /sys/fs/bpf");
    host.is_cured_of("bpffs", Level::Error, "mount -t bpf bpf /sys/fs/bpf");
    let config = changed(&lab, "cgroup = \"/sys/fs/cgroup\"", "cgroup = \"/sys/fs\"");
    let found = Patient::with_config(&lab, &config).suffers("cgroup", Level::Error, 1);
    let fix = found[0].fix.as_ref().unwrap();
    assert!(
        fix.contains("set host.cgroup = \"/sys/fs/cgroup\""),
        "{fix}"
    );

    // The key.
    let key = key_file(&lab);
    on_host(&lab, &format!("chmod 644 {}", key.display()));
    let fix = format!("chmod 600 {}", key.display());
    host.is_cured_of("key_file", Level::Error, &fix);
    on_host(&lab, &format!("chown 33 {}", key.display()));
    let fix = format!("chown root:root {}", key.display());
    host.is_cured_of("key_file", Level::Error, &fix);
    let config = changed(&lab, "pop.key", "no.key");
    Patient::with_config(&lab, &config).suffers("key_file", Level::Error, 1);

    // The configuration.
    let config = changed(&lab, "xdp_mode", "xdp-mode");
    let found = Patient::with_config(&lab, &config).suffers("configuration", Level::Error, 1);
    assert!(
        found[0].seen.contains("changed.toml:8: host.xdp-mode"),
        "{found:?}"
    );

    // The link.
    on_host(&lab, "ip link set eth0 mtu 1500");
    host.is_cured_of("mtu", Level::Warning, "ip link set dev eth0 mtu 1520");
    on_host(&lab, "ip link set eth0 mtu 1299");
    let found = host.suffers("mtu", Level::Error, 1);
    assert!(found[0].seen.starts_with("eth0 has 1299"), "{found:?}");
    on_host(&lab, "ip link set eth0 mtu 1600");
    on_host(&lab, "ip link set eth0 multicast off");
    let fix = "ip link set dev eth0 multicast on";
    host.is_cured_of("multicast", Level::Error, fix);

    // Addresses.
    on_host(&lab, "ip address del 203.0.113.10/32 dev lo");
    let fix = "ip address add 203.0.113.10/32 dev lo";
    host.is_cured_of("service_addresses", Level::Error, fix);
    on_host(&lab, "ip address del 2001:db8:113::10/128 dev lo");
    let fix = "ip address add 2001:db8:113::10/128 dev lo";
    host.is_cured_of("service_addresses", Level::Error, fix);

    // Somebody else has the port.
    let address = (lab.plan().host_v4(1), 7946);
    let taken = in_namespace(&lab.namespace(HOST), || Ok(UdpSocket::bind(address)?)).unwrap();
    let found = host.suffers("second_instance", Level::Error, 1);
    let by = format!("process {} (", std::process::id());
    assert!(found[0].seen.starts_with(&by), "{found:?}");
    drop(taken);
    host.is_well();

    // Interfaces and what their devices do.
    let eth0 = "interfaces = [\"eth0\"]";
    let config = changed(&lab, eth0, "interfaces = [\"eth0\", \"eth7\"]");
    let found = Patient::with_config(&lab, &config).suffers("interface", Level::Error, 1);
    assert!(found[0].seen.starts_with("eth7: "), "{found:?}");

    on_host(
        &lab,
        "ip link add va mtu 1600 type veth peer name vb mtu 1600
         ethtool -K va tx off >/dev/null
         ip link add br9 mtu 1600 type bridge
         ip link set vb master br9 up
         ip link set va up
         ip link set br9 up",
    );
    let config = changed(&lab, eth0, "interfaces = [\"eth0\", \"va\"]");
    let with_va = Patient::with_config(&lab, &config);
    let fix = "ethtool -K vb tx off tso off";
    with_va.is_cured_of("checksum_offload", Level::Warning, fix);

    // Somebody else's program; the pin is made by way of a process on the host.
    let mut process = Command::new("sleep");
    let mut process = lab.spawn(HOST, process.arg("infinity")).unwrap();
    let pin = format!("/proc/{}/root/sys/fs/bpf/other", process.id());
    port::pin(Path::new(&pin)).unwrap();
    for mode in ["xdpdrv", "xdpgeneric"] {
        let attach = format!("ip link set dev eth0 {mode} pinned /sys/fs/bpf/other");
        on_host(&lab, &attach);
        let fix = format!("ip link set dev eth0 {mode} off");
        host.is_cured_of("xdp_program", Level::Error, &fix);
    }
    process.kill().unwrap();
    process.wait().unwrap();

    let config = changed(&lab, eth0, "interfaces = [\"eth0\", \"br9\"]");
    let found = Patient::with_config(&lab, &config).suffers("native_xdp", Level::Error, 1);
    assert_eq!(found[0].seen, "br9 (driver bridge) has no native XDP");
    let fix = found[0].fix.as_ref().unwrap();
    assert!(fix.contains("set host.xdp_mode = \"skb\""), "{fix}");

    let config = changed(&lab, "xdp_mode = \"native\"", "xdp_mode = \"skb\"");
    let generic = Patient::with_config(&lab, &config);
    on_host(&lab, "ethtool -K eth0 gro off");
    generic.is_well();
    on_host(&lab, "ethtool -K eth0 gro on");
    // Behind XDP in the driver it does no harm.
    host.is_well();
    generic.is_cured_of("gro", Level::Warning, "ethtool -K eth0 gro off");

    // Last, because the routes go with it.
    let address = lab.plan().host_v4(1);
    on_host(&lab, &format!("ip address del {address}/24 dev eth0"));
    let found = host.suffers("fabric_address", Level::Error, 1);
    assert_eq!(found[0].seen, format!("no interface has {address}"));
    lab.down().unwrap();
}

#[test]
fn a_host_whose_tunnel_is_of_the_other_kind_is_well() {
    let lab = Lab::builder().name(&unique("dog")).hosts(2).racks(1);
    let lab = lab.tunnel(Tunnel::Gue).outer(Outer::V6).no_homing();
    let lab = lab.up().unwrap();
    let host = Patient::new(&lab);
    host.is_well();
    let taken = in_namespace(&lab.namespace(HOST), || Ok(UdpSocket::bind(("::", 7946))?));
    host.suffers("second_instance", Level::Error, 1);
    drop(taken);
    // 48 bytes are the longest of headers.
    on_host(&lab, "ip link set eth0 mtu 1547");
    host.is_cured_of("mtu", Level::Warning, "ip link set dev eth0 mtu 1548");
    lab.down().unwrap();
}

#[test]
fn a_host_with_an_agent_is_broken_and_each_time_the_cause_is_named() {
    let lab = Lab::builder().name(&unique("doa")).hosts(2).racks(1);
    let mut lab = lab.up().unwrap();
    let servers = Servers::start_ports(&lab, &[443]).unwrap();
    let host = Patient::new(&lab);
    host.is_well();
    // What only a loaded program tells here, and only a running agent.
    let (_, report) = host.examine();
    for name in [
        "jit",
        "native_xdp",
        "xdp_program",
        "second_instance",
        "agent",
    ] {
        let finding = report.findings.iter().find(|f| f.name == name).unwrap();
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
    }

    // The agent follows, and is asked about the ways to others.
    let follows = |mtu: u64| {
        let knows = wait_until(PATIENCE, || {
            let hosts = lab.homing_json(1, &["hosts"])?;
            Ok(hosts["hosts"][1]["next_hop"]["mtu"] == mtu)
        });
        assert!(knows.unwrap(), "{mtu}");
    };
    on_host(&lab, "ip link set eth0 mtu 1500");
    follows(1500);
    let said = host
        .suffers("mtu", Level::Warning, 1)
        .remove(0)
        .fix
        .unwrap();
    assert!(said.starts_with("ip link set dev eth0 mtu 1520"), "{said}");
    on_host(&lab, &said);
    follows(1520);
    host.is_well();
    on_host(&lab, "ip link set eth0 mtu 1600");
    follows(1600);

    // Written since the agent's start.
    let config = changed(&lab, "domain = \"rack-1\"", "domain = \"rack-9\"");
    let (code, report) = doctor(&lab, &["--config", config.to_str().unwrap()]);
    let found = bad(&report);
    assert_eq!((code, found.len()), (1, 1), "{found:?}");
    assert_eq!(found[0].name, "configuration");
    assert!(found[0].seen.contains("host.domain not as"), "{found:?}");

    // An agent beside the one that runs would find its pins, its port, its interface taken.
    let socket = lab.folder_of(HOST).join("nobody.sock");
    let beside = |config: &Path| {
        let mut host = Patient::with_config(&lab, config);
        let socket = ["--socket".to_owned(), socket.display().to_string()];
        host.args.extend(socket);
        host
    };
    let pid = lab.agent(1).unwrap().pid;
    let by = format!("process {pid} (homing) ");
    let same = lab.folder_of(HOST).join("homing.toml");
    let found = beside(&same).suffers("second_instance", Level::Error, 3);
    assert!(found.iter().all(|f| f.seen.starts_with(&by)), "{found:?}");
    assert!(found[0].seen.contains("holds the pins"), "{found:?}");
    let config = changed(&lab, "instance = \"homing\"", "instance = \"blue\"");
    let found = beside(&config).suffers("second_instance", Level::Error, 3);
    assert!(found[..2].iter().all(|f| f.seen.starts_with(&by)));
    assert_eq!(found[2].seen, "eth0 runs the program of instance homing");

    // Multicast is lost on its way.
    lab.fault(Fault::multicast().from(&[1]).cut()).unwrap();
    let host = Patient::new(&lab);
    host.falls_ill_with("multicast");
    let found = host.suffers("multicast", Level::Warning, 1);
    assert!(
        found[0].seen.ends_with("does not reach host 2"),
        "{found:?}"
    );
    lab.heal().unwrap();
    Patient::new(&lab).is_well();

    // The other host's agent is gone.
    lab.kill(2).unwrap();
    let host = Patient::new(&lab);
    host.falls_ill_with("problem");
    let found = host.suffers("problem", Level::Warning, 1);
    assert!(found[0].seen.starts_with("host 2 is down"), "{found:?}");
    lab.start(2).unwrap();
    Patient::new(&lab).is_well();

    // The link to the other host leaves checksums for later, so what that host forwards is
    // damaged. Last, because the kernel's counter stays.
    lab.set_ecmp(&[1]).unwrap();
    let service = lab.plan().service(443)[0];
    let client = lab.namespace(Node::Client(1));
    let stream = in_namespace(&client, || Ok(TcpStream::connect(service)?));
    let mut stream = stream.unwrap();
    lab.wait_settled(1, PATIENCE).unwrap();
    lab.exec(Node::Router, "ethtool", &["-K", "h2", "tx", "on"])
        .unwrap();
    lab.set_ecmp(&[2]).unwrap();
    stream.write_all(&[0; 100]).unwrap();
    let host = Patient::new(&lab);
    host.falls_ill_with("checksum_offload");
    let found = host.suffers("checksum_offload", Level::Warning, 1);
    let fix = found[0].fix.as_ref().unwrap();
    assert!(fix.starts_with("ethtool -K PORT tx off tso off"), "{fix}");
    drop((stream, servers));
    lab.down().unwrap();
}
