//! The lab: a POP in network namespaces of one machine.
//!
//! Hosts stand in racks, each a broadcast domain of its own, around one router
//! that spreads clients' connections over them by stateless ECMP. All hosts
//! answer for the same service addresses. Each machine has its own network
//! namespace, mounts, host name and cgroup ([`node`]); each host runs its own
//! agent.
//!
//! What it promises:
//! - it touches nothing but its own namespaces (`hm-…`), cgroup
//!   (`homing-lab-NAME`) and folders ([`state::RUN`] and the lab's folder);
//! - labs of different names do not meet;
//! - [`Lab::down`] leaves nothing, whatever state the lab was in; what a crash
//!   left is cleared by the next `up` or `down`;
//! - a [`Lab`] that a program has built goes when the value is dropped, and if
//!   the program is killed, by its [`guard`] or at the next `up` of any lab.
//!
//! It does not lose, delay or reorder packets by itself; [`fault`] makes it.

mod agent;
mod clear;
mod clock;
pub mod ecmp;
pub mod fault;
pub mod flood;
pub mod guard;
mod net;
pub mod node;
mod paths;
pub mod plan;
pub mod port;
mod power;
pub mod state;
pub mod status;
mod truth;
mod wires;
mod xdp;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::random::Random;
pub use agent::{READY_TIMEOUT, Settled};
pub use clear::down;
use clear::{clear, clear_dead_labs};
use paths::{build_folder, labs_folder};
pub use paths::{own_program, program};
pub use plan::{Node, Outer, Plan, Sockets, Tunnel};
use state::{Process, State};
pub use truth::Tables;

/// How a lab is to be; [`Builder::up`] builds it.
#[derive(Clone, Debug)]
pub struct Builder {
    plan: Plan,
    agents: bool,
    homing: Option<PathBuf>,
    stays: bool,
}

impl Builder {
    /// The lab's name: 1 to 16 of `a-z` and `0-9`.
    pub fn name(mut self, name: &str) -> Self {
        self.plan.name = name.to_owned();
        self
    }

    /// What the lab is to consist of.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many hosts. Default: 4.
    pub fn hosts(mut self, hosts: u16) -> Self {
        self.plan.hosts = hosts;
        self
    }

    /// How many racks. Default: 2.
    pub fn racks(mut self, racks: u16) -> Self {
        self.plan.racks = racks;
        self
    }

    /// How many client machines. Default: 1.
    pub fn clients(mut self, clients: u16) -> Self {
        self.plan.clients = clients;
        self
    }

    /// Whether messages of message sockets are encrypted between hosts. Default: they are.
    pub fn encryption(mut self, encryption: bool) -> Self {
        self.plan.encryption = encryption;
        self
    }

    /// How packets travel between hosts. Default: IP in IP.
    pub fn tunnel(mut self, tunnel: Tunnel) -> Self {
        self.plan.tunnel = tunnel;
        self
    }

    /// The family that tunnels and agents use. Default: IPv4.
    pub fn outer(mut self, outer: Outer) -> Self {
        self.plan.outer = outer;
        self
    }

    /// Without agents: plain hosts. [`Lab::start_all`] can start them later.
    pub fn no_homing(mut self) -> Self {
        self.agents = false;
        self
    }

    /// The program `homing`. Default: `HOMING_BIN`, or the one built along with
    /// this program.
    pub fn homing(mut self, path: &Path) -> Self {
        self.homing = Some(path.to_owned());
        self
    }

    /// The lab stays until it is taken down, rather than going with the value
    /// that [`Builder::up`] returns.
    pub fn stays(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Builds the lab, and starts its agents and waits until they have found each
    /// other, unless it is to have none.
    pub fn up(self) -> Result<Lab> {
        self.plan.check()?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root: it makes network namespaces"
        );
        let homing = match self.homing {
            Some(path) => Some(path),
            None => agent::find_homing(),
        };
        if self.agents {
            agent::check_homing(homing.as_deref())?;
        }
        clear_dead_labs()?;
        let name = self.plan.name.clone();
        let lock = state::lock(&name)?;
        if State::read(&name)?.is_some_and(|state| state.stands()) {
            bail!(
                "a lab \"{name}\" is up already; take it down with `cargo xtask lab down{}`, or give this one another --name",
                if name == plan::DEFAULT_NAME {
                    String::new()
                } else {
                    format!(" --name {name}")
                }
            );
        }
        clear(&name)?;
        let mut lab = Lab {
            state: State {
                ecmp: (1..=self.plan.hosts).collect(),
                folder: labs_folder()?.join(&name),
                plan: self.plan,
                homing,
                keepers: Default::default(),
                agents: Default::default(),
                faults: Default::default(),
                shim: None,
                owner: Process::own(),
                guard: None,
            },
            children: Vec::new(),
            goes: true,
            guard: None,
        };
        // From here on, an error drops `lab` and so clears what was built; which needs
        // the lock.
        if let Err(error) = lab.build() {
            drop(lock);
            return Err(error);
        }
        lab.state.write()?;
        drop(lock);
        if self.agents {
            lab.start_all()?;
        }
        if self.stays {
            lab.keep()?;
        }
        Ok(lab)
    }
}

/// A lab that stands.
#[derive(Debug)]
pub struct Lab {
    state: State,
    /// What was started by this value, to be waited for.
    children: Vec<Child>,
    /// Whether the lab goes with this value.
    goes: bool,
    /// Clears the lab when this process dies.
    guard: Option<guard::Guard>,
}

impl Lab {
    /// A lab of four hosts in two racks with one client machine, unless told
    /// otherwise.
    pub fn builder() -> Builder {
        Builder {
            plan: Plan {
                name: plan::DEFAULT_NAME.to_owned(),
                hosts: 4,
                racks: 2,
                clients: 1,
                tunnel: Tunnel::Ipip,
                outer: Outer::V4,
                encryption: true,
            },
            agents: true,
            homing: None,
            stays: false,
        }
    }

    /// The lab of this name, which another process has built. It stays when the
    /// value goes.
    pub fn open(name: &str) -> Result<Self> {
        match State::read(name)? {
            Some(state) if state.stands() => Ok(Self {
                state,
                children: Vec::new(),
                goes: false,
                guard: None,
            }),
            Some(_) => {
                bail!("the lab \"{name}\" has died; `cargo xtask lab down` clears what it left")
            }
            None => bail!("there is no lab \"{name}\"; `cargo xtask lab up` builds one"),
        }
    }

    /// What the lab consists of.
    pub fn plan(&self) -> &Plan {
        &self.state.plan
    }

    /// The hosts that the router spreads connections over, in order.
    pub fn ecmp(&self) -> &[u16] {
        &self.state.ecmp
    }

    /// Where configurations, keys and logs are. A host's are in `hN/`.
    pub fn folder(&self) -> &Path {
        &self.state.folder
    }

    /// A machine's folder.
    pub fn folder_of(&self, node: Node) -> PathBuf {
        self.state.folder.join(node.to_string())
    }

    /// The name of a machine's network namespace.
    pub fn namespace(&self, node: Node) -> String {
        self.state.plan.namespace(node)
    }

    /// Puts `command` on a machine: its namespaces and its cgroup, with `homing`
    /// on the path and told of the host's agent.
    pub fn place(&self, node: Node, command: &mut Command) -> Result<()> {
        let keeper = self.state.keepers.get(&node.to_string()).with_context(|| {
            let names: Vec<String> = self
                .state
                .plan
                .nodes()
                .iter()
                .map(Node::to_string)
                .collect();
            format!("the lab has no machine {node}; it has {}", names.join(", "))
        })?;
        node::enter(command, *keeper)?;
        if let Some(folder) = self.state.homing.as_deref().and_then(Path::parent) {
            let path = std::env::var("PATH")
                .unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
            command.env("PATH", format!("{}:{path}", folder.display()));
        }
        if let Node::Host(host) = node {
            let name = &self.state.plan.name;
            let sockets = state::sockets(name, host);
            command.env("HOMING_SOCKET", sockets.admin);
            command.env("HOMING_APPS_SOCKET", sockets.apps);
            command.env("HOMING_MUX_SOCKET", sockets.mux);
            command.env("HOMING_CONFIG", self.folder_of(node).join("homing.toml"));
        }
        Ok(())
    }

    /// The sockets of a host's agent.
    pub fn sockets(&self, host: u16) -> Sockets {
        state::sockets(&self.state.plan.name, host)
    }

    /// Runs a program on a machine to its end and returns its standard output. A
    /// failure is an error with what it said.
    pub fn exec(&self, node: Node, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        self.place(node, &mut command)?;
        let output = command
            .output()
            .with_context(|| format!("cannot run {program} on {node}"))?;
        if !output.status.success() {
            bail!(
                "`{program} {}` on {node}: {}: {}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts `command` on a machine. It ends with the lab at the latest.
    pub fn spawn(&self, node: Node, command: &mut Command) -> Result<Child> {
        self.place(node, command)?;
        command.spawn().with_context(|| {
            format!(
                "cannot run {} on {node}",
                command.get_program().to_string_lossy()
            )
        })
    }

    /// Puts another set of hosts, or another order of them, behind the service
    /// addresses, IPv4 and IPv6 alike, so that most flows go elsewhere. Returns their
    /// share (0 to 1). `keep`: how many hosts are in the set.
    pub fn reshuffle(&mut self, random: &mut Random, keep: Option<u16>) -> Result<f64> {
        self.choose_ecmp(random, keep, ecmp::MOST)
    }

    /// The same, so that all flows go elsewhere, as far as that can be.
    pub fn reshuffle_all(&mut self, random: &mut Random) -> Result<f64> {
        self.choose_ecmp(random, None, ecmp::ALL)
    }

    fn choose_ecmp(&mut self, random: &mut Random, keep: Option<u16>, enough: f64) -> Result<f64> {
        let _lock = state::lock(&self.state.plan.name)?;
        let hosts = self.state.plan.hosts;
        let next = ecmp::choose(random, hosts, &self.state.ecmp, keep, enough);
        self.change_ecmp(next)
    }

    /// Puts just these hosts, in this order, behind the service addresses.
    pub fn set_ecmp(&mut self, hosts: &[u16]) -> Result<f64> {
        let _lock = state::lock(&self.state.plan.name)?;
        for host in hosts {
            ensure!(
                self.state.plan.has(Node::Host(*host)),
                "the lab has no host {host}"
            );
        }
        self.change_ecmp(hosts.to_vec())
    }

    fn change_ecmp(&mut self, next: Vec<u16>) -> Result<f64> {
        net::set_ecmp(&self.state.plan, &next)?;
        let share = ecmp::remapped_share(&self.state.ecmp, &next);
        self.state.ecmp = next;
        self.state.write()?;
        Ok(share)
    }

    /// Takes the lab down: everything that runs in it is killed and nothing is
    /// left but its folder with the logs.
    pub fn down(mut self) -> Result<()> {
        self.goes = false;
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let _lock = state::lock(&self.state.plan.name)?;
        let result = clear(&self.state.plan.name);
        for child in &mut self.children {
            child.wait().ok();
        }
        result
    }

    /// From here on the lab stands until it is taken down.
    fn keep(&mut self) -> Result<()> {
        let _lock = state::lock(&self.state.plan.name)?;
        self.goes = false;
        self.state.owner = None;
        self.state.guard = None;
        self.state.write()?;
        self.guard.take().map_or(Ok(()), guard::Guard::dismiss)
    }

    fn build(&mut self) -> Result<()> {
        let plan = self.state.plan.clone();
        fs::create_dir_all(state::run_folder(&plan.name))
            .with_context(|| format!("cannot make {}", state::run_folder(&plan.name).display()))?;
        let guard = guard::Guard::set(&plan.name)?;
        self.state.guard = Process::find(guard.pid());
        self.guard = Some(guard);
        self.write_files()?;
        net::make_namespaces(&plan)?;
        net::build(&plan, &self.state.ecmp)?;
        node::make_cgroups(&plan)?;
        for node in plan.nodes() {
            let (process, child) = node::keep(&plan, node)?;
            self.state.keepers.insert(node.to_string(), process);
            self.children.push(child);
        }
        self.open_ports()
    }

    /// Writes each host's configuration, and the POP's key with a new value.
    fn write_files(&self) -> Result<()> {
        let folder = &self.state.folder;
        if folder.exists() {
            fs::remove_dir_all(folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let key_file = folder.join("pop.key");
        let mut random = Random::new(Random::fresh_seed());
        let key: String = (0..4).map(|_| format!("{:016x}", random.next())).collect();
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&key_file)
            .and_then(|mut file| writeln!(file, "{key}"))
            .with_context(|| format!("cannot write {}", key_file.display()))?;
        for node in self.state.plan.nodes() {
            let folder = self.folder_of(node);
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            if let Node::Host(host) = node {
                let name = &self.state.plan.name;
                let sockets = state::sockets(name, host);
                let text = self.state.plan.config(host, &key_file, &sockets);
                fs::write(folder.join("homing.toml"), text)?;
            }
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.goes
            && let Err(error) = self.take_down()
        {
            eprintln!(
                "the lab \"{}\" was not cleared: {error:#}",
                self.state.plan.name
            );
        }
    }
}

/// A name that begins like this one and that no other process's lab has: for tests,
/// which may run twice at the same time on one machine.
pub fn unique(name: &str) -> String {
    format!("{name}{:x}", std::process::id())
}

/// Calls `done` until it says so, or returns false once `timeout` has passed.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        if done()? {
            return Ok(true);
        }
        if std::time::Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}
