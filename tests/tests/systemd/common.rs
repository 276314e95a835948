//! A POP of two hosts, the first of which is run by systemd, and its package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use homing_tests::{
    contained::Contained,
    demo::Servers,
    lab::{Lab, Node, Sockets, unique, wait_until},
    workload::{Clients, Options, Report},
};
use serde_json::Value;

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection without progress for so long is broken.
const DEADLINE: Duration = Duration::from_secs(8);

/// Two packages of the same version, the second with the higher revision; nothing where they
/// cannot be made.
pub fn packages() -> Option<&'static [PathBuf; 2]> {
    static MADE: OnceLock<Option<[PathBuf; 2]>> = OnceLock::new();
    MADE.get_or_init(|| {
        let tools = ["dpkg", "dpkg-deb", "dpkg-shlibdeps", "strip"];
        let there = |tool: &&str| Path::new("/usr/bin").join(tool).is_file();
        if let Some(missing) = tools.iter().find(|tool| !there(tool)) {
            eprintln!(
                "skipped: there is no {missing}; on Debian: apt-get install dpkg-dev binutils"
            );
            return None;
        }
        Some(["1", "2"].map(package))
    })
    .as_ref()
}

/// The package as `cargo xtask package --debug` makes it.
fn package(revision: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(["package", "--debug", "--revision", revision])
        .arg("--out")
        .arg(out)
        .stdin(Stdio::null())
        .output()
        .expect("cargo");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{error}");
    PathBuf::from(text.trim())
}

/// What the unit says of the service.
pub struct Shown(String);

impl Shown {
    /// A property's value.
    pub fn get(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// Its process, as the root calls it.
    pub fn pid(&self) -> u32 {
        self.get("MainPID").parse().expect("a number")
    }
}

/// The POP.
pub struct Site {
    pub root: Contained,
    pub lab: Lab,
    _servers: Servers,
}

impl Site {
    /// Starts systemd on the first of two hosts, and an agent on the second; a server on each.
    pub fn up(name: &str) -> Self {
        let lab = Lab::builder().name(&unique(name)).hosts(2).racks(2);
        let mut lab = lab.no_homing().up().unwrap();
        let servers = Servers::start(&lab).unwrap();
        lab.launch(2).unwrap();
        let root = Contained::systemd(&lab, 1).unwrap();
        Self {
            root,
            lab,
            _servers: servers,
        }
    }

    /// The same with the package installed, and what an operator of the host does then: its
    /// configuration and the key of the POP.
    pub fn installed(name: &str, package: &Path) -> Self {
        let site = Self::up(name);
        site.install(package);
        site.configure();
        site
    }

    /// `dpkg -i` of a package; what it said.
    pub fn install(&self, package: &Path) -> String {
        install(&self.root, package)
    }

    /// What an operator of the host writes.
    pub fn configure(&self) {
        configure(&self.lab, &self.root);
    }

    /// Enables the unit, starts it, and waits until both hosts have found each other.
    pub fn start(&self) {
        self.systemctl(&["enable", "--now", "homing"]);
        self.wait_found();
    }

    /// `systemctl ARGS`, which must end well.
    pub fn systemctl(&self, args: &[&str]) {
        if let Err(error) = self.root.run("systemctl", args) {
            panic!("{error:#}\n{}", self.journal());
        }
    }

    /// Puts a drop-in beside the unit, or takes it away again.
    pub fn drop_in(&self, text: &str) {
        let path = "/etc/systemd/system/homing.service.d/test.conf";
        self.root.write(path, text.as_bytes()).unwrap();
        self.systemctl(&["daemon-reload"]);
    }

    /// What systemd says of the service.
    pub fn show(&self) -> Shown {
        Shown(self.root.run("systemctl", &["show", "homing"]).unwrap())
    }

    /// Waits until the service is as it should be.
    pub fn wait(&self, what: &str, mut holds: impl FnMut(&Shown) -> bool) -> Shown {
        let mut shown = self.show();
        let held = wait_until(PATIENCE, || {
            shown = self.show();
            Ok(holds(&shown))
        });
        assert!(
            held.unwrap(),
            "not {what}: {} {} {}\n{}",
            shown.get("ActiveState"),
            shown.get("SubState"),
            shown.get("Result"),
            self.journal()
        );
        shown
    }

    /// Waits until each host sees the other's agent alive and knows the way.
    pub fn wait_found(&self) {
        let sees = |hosts: &Value, other: u16| {
            let mut hosts = hosts["hosts"].as_array().into_iter().flatten();
            hosts.any(|host| {
                host["host"] == other
                    && host["state"] == "alive"
                    && host["next_hop"]["resolved"] == true
            })
        };
        let found = wait_until(PATIENCE, || {
            let (Ok(first), Ok(second)) = (
                self.root.homing(&["hosts"]),
                self.lab.homing_json(2, &["hosts"]),
            ) else {
                return Ok(false);
            };
            Ok(sees(&first, 2) && sees(&second, 1))
        });
        assert!(found.unwrap(), "{}", self.journal());
    }

    /// How the second host sees the first: `alive`, `down` or `left`.
    pub fn seen(&self) -> String {
        let hosts = self.lab.homing_json(2, &["hosts"]).unwrap();
        let hosts = hosts["hosts"].as_array().unwrap();
        let first = hosts.iter().find(|host| host["host"] == 1);
        first.unwrap()["state"].as_str().unwrap().to_owned()
    }

    /// The unit's journal.
    pub fn journal(&self) -> String {
        let args = ["--unit=homing", "--output=cat", "--no-pager"];
        let output = self.root.output("journalctl", &args).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The number of the XDP program that is in force on the host's wire; none if there is
    /// none.
    pub fn program(&self) -> Option<u64> {
        let text = self.lab.exec(
            Node::Host(1),
            "ip",
            &["-json", "link", "show", "dev", "eth0"],
        );
        let links: Value = serde_json::from_str(&text.unwrap()).unwrap();
        links.pointer("/0/xdp/prog/id").and_then(Value::as_u64)
    }

    /// What is pinned in the host's BPF file system.
    pub fn pinned(&self) -> Vec<String> {
        let found = self.root.run("find", &["/sys/fs/bpf", "-type", "f"]);
        found.unwrap().lines().map(str::to_owned).collect()
    }

    /// Opens connections, and once both hosts know of them all, lets every packet come to the
    /// host that does not have its session: each depends on the programs of both.
    pub fn traffic(&mut self, connections: u32) -> Clients {
        let options = Options {
            connections,
            targets: self.lab.plan().service(443).to_vec(),
            seed: 31,
            interval: Duration::from_millis(50),
            deadline: DEADLINE,
        };
        let clients = Clients::start(&self.lab, Node::Client(1), options).unwrap();
        clients.wait_open(PATIENCE).unwrap();
        let all = u64::from(connections);
        let known = wait_until(PATIENCE, || {
            let first = self.root.homing(&["status"])?;
            let second = self.lab.homing_json(2, &["status"])?;
            let sum = |kind: &str| {
                let count = |status: &Value| status[kind]["count"].as_u64().unwrap_or_default();
                count(&first) + count(&second)
            };
            Ok(sum("sessions") == all && sum("foreign") == all)
        });
        assert!(known.unwrap(), "{}", self.journal());
        assert_eq!(
            self.lab.set_ecmp(&[2, 1]).unwrap(),
            1.0,
            "not all have moved"
        );
        goes_on(&clients);
        clients
    }

    /// Ends everything. The machine must be as it was.
    pub fn down(self) {
        self.root.down().unwrap();
        self.lab.down().unwrap();
    }
}

/// `dpkg -i` of a package; what it said.
pub fn install(root: &Contained, package: &Path) -> String {
    let name = package.file_name().expect("a name").to_string_lossy();
    let path = format!("/srv/{name}");
    root.write(&path, &fs::read(package).unwrap()).unwrap();
    // What was changed by hand stays, without a question.
    root.shell(&format!("dpkg --force-confold -i {path} 2>&1"))
        .unwrap()
}

/// Writes the first host's configuration and the POP's key.
pub fn configure(lab: &Lab, root: &Contained) {
    let socket = |of: &str| PathBuf::from(format!("/run/homing/homing{of}.sock"));
    let sockets = Sockets {
        admin: socket(""),
        apps: socket(".app"),
        mux: socket(".mux"),
    };
    let key = "/etc/homing/pop.key";
    let config = lab.plan().config(1, Path::new(key), &sockets);
    root.write("/etc/homing/homing.toml", config.as_bytes())
        .unwrap();
    let content = fs::read(lab.folder().join("pop.key")).unwrap();
    root.write(key, &content).unwrap();
}

/// Every connection has more exchanges.
pub fn goes_on(clients: &Clients) {
    let live = clients.wait_rounds(3, PATIENCE).unwrap();
    assert_eq!(live, clients.total(), "connections broke");
}

/// Ends connections; none may have broken, or stood for longer than `bound`.
pub fn unbroken(clients: Clients, bound: Duration) -> Report {
    let report = clients.finish().unwrap();
    assert_eq!((report.broken, report.not_opened), (0, 0), "{report:?}");
    let slowest = Duration::from_secs_f64(report.slowest_ms / 1000.0);
    assert!(slowest < bound, "{report:?}");
    report
}
