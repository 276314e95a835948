//! The XDP program by `BPF_PROG_TEST_RUN`: packet in, outcome and packet out.

mod moving;

use std::{net::SocketAddr, thread};

use crate::packet;
use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use homing_agent::datapath::{
    owners::{self, Owners, Tables},
    template::{Hop, Mac, Outer},
};
use homing_common::{
    control::{Control, RENDEZVOUS_ENTRIES, Rendezvous},
    flow::Flow,
    host::{Encapsulation, Host, HostId, Template, TunnelNetwork},
    limit::{Limit, Room, WINDOW_SHIFT},
    maps::OWNERS_ENTRIES,
    net::{Address, Port, Service, TCP},
    outcome::{Hook, Outcome, STATS_ENTRIES},
    owners::{Memory as _, header, table::Writable as _},
    park::{CLOSED_ENTRIES, Course, Datagram, FRAGMENTS_ENTRIES, Parked},
    session::{Session, SessionId, SessionKey, Tuple},
    settings::Settings,
};
use nix::time::{ClockId, clock_gettime};

/// XDP's actions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

impl Action {
    fn from_number(number: u32) -> Result<Self> {
        Ok(match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            _ => bail!("the program returned {number}, which is no XDP action"),
        })
    }
}

/// What the egress program returns: other programs and the interface come next.
const TCX_NEXT: i32 = -1;

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What XDP does with it.
    pub action: Action,
    /// The outcome that was counted.
    pub outcome: Outcome,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The tunnel network of tests: `10.77.0.0/16`, one /28 for each host.
pub fn tunnel_v4() -> TunnelNetwork {
    TunnelNetwork {
        network: Address::v4([10, 77, 0, 0]),
        base: 0x0a4d_0000,
        shift: 4,
        id_mask: 0xfff,
    }
}

/// The tunnel network of tests over IPv6: `fd77::/48`, one /64 for each host.
pub fn tunnel_v6() -> TunnelNetwork {
    TunnelNetwork {
        network: "fd77::".parse::<std::net::IpAddr>().expect("valid").into(),
        base: 0xfd77 << 48,
        shift: 0,
        id_mask: 0xffff,
    }
}

/// The settings of tests: host 1 of a POP.
pub fn settings(tunnel: TunnelNetwork, encapsulation: Encapsulation) -> Settings {
    let host = HostId(1);
    Settings {
        session_key: SessionKey([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]),
        fragments_key: SessionKey([0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918]),
        tunnel,
        tunnel_address: tunnel.address_of(host),
        fabric: Address::v4([10, 1, 0, 1]),
        host,
        encapsulation: encapsulation as u8,
        hop_limit: 8,
        fabric_port: 7946,
        zero: 0,
        closed_entries: CLOSED_ENTRIES,
        fragments_entries: FRAGMENTS_ENTRIES,
    }
}

/// A loaded program with maps of its own.
pub struct Program {
    ebpf: Ebpf,
    settings: Settings,
    owners: Owners,
}

impl Program {
    /// Loads the object that the agent embeds.
    pub fn load(settings: Settings) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("SESSIONS", 4096)
            .map_max_entries("CLOSED", settings.closed_entries)
            .map_max_entries("FRAGMENTS", settings.fragments_entries)
            .load(homing_agent::datapath::OBJECT)
            .context("cannot load the kernel object; this needs root")?;
        let owners = Owners::open(&tables(&ebpf)?, OWNERS_ENTRIES)?;
        let xdp: &mut Xdp = ebpf
            .program_mut("homing_xdp")
            .context("the object has no program homing_xdp")?
            .try_into()?;
        xdp.load().context("the verifier refuses homing_xdp")?;
        let egress: &mut SchedClassifier = ebpf
            .program_mut("homing_egress")
            .context("the object has no program homing_egress")?
            .try_into()?;
        egress
            .load()
            .context("the verifier refuses homing_egress")?;
        Ok(Self {
            ebpf,
            settings,
            owners,
        })
    }

    /// Makes an endpoint a service of the POP, by TCP.
    pub fn add_service(&mut self, endpoint: &str) -> Result<()> {
        self.add_service_of(endpoint, TCP)
    }

    /// Makes an endpoint a service of the POP.
    pub fn add_service_of(&mut self, endpoint: &str, protocol: u8) -> Result<()> {
        let endpoint: SocketAddr = endpoint.parse()?;
        let service = Service::new(endpoint.ip().into(), Port::new(endpoint.port()), protocol);
        let mut services: HashMap<_, Service, u32> = self.map("SERVICES")?.try_into()?;
        services.insert(service, 0, 0)?;
        // Its address, as fragments are looked up by.
        let address = Service::new(endpoint.ip().into(), Port::new(0), 0);
        services.insert(address, 0, 0)?;
        Ok(())
    }

    /// Makes a host a member, reached by a template (or by none).
    pub fn add_host(&mut self, host: u16, template: Template) -> Result<()> {
        let mut hosts: Array<_, Host> = self.map("HOSTS")?.try_into()?;
        let entry = Host {
            flags: Host::MEMBER,
            active: 1,
            templates: [Template::NONE, template],
        };
        hosts.set(u32::from(host), entry, 0)?;
        Ok(())
    }

    /// Makes a member void: its entries are about to be removed.
    pub fn set_void(&mut self, host: u16) -> Result<()> {
        let mut hosts: Array<_, Host> = self.map("HOSTS")?.try_into()?;
        let mut entry = hosts.get(&host.into(), 0)?;
        entry.flags |= Host::VOID;
        Ok(hosts.set(u32::from(host), entry, 0)?)
    }

    /// Makes a host no member any more.
    pub fn remove_host(&mut self, host: u16) -> Result<()> {
        let mut hosts: Array<_, Host> = self.map("HOSTS")?.try_into()?;
        Ok(hosts.set(u32::from(host), Host::NONE, 0)?)
    }

    /// Makes a host the owner of a session.
    pub fn set_owner(&mut self, client: &str, service: &str, host: u16) -> Result<()> {
        let id = self.id(client, service)?;
        self.set_owner_of(id, host)
    }

    /// Makes a host the owner of the session with an id.
    pub fn set_owner_of(&mut self, id: u64, host: u16) -> Result<()> {
        Ok(self.owners.set(SessionId(id), HostId(host))?)
    }

    /// Makes a session nobody's.
    pub fn clear_owner(&mut self, client: &str, service: &str) -> Result<()> {
        let id = self.id(client, service)?;
        self.clear_owner_of(id)
    }

    /// Makes the session with an id nobody's.
    pub fn clear_owner_of(&mut self, id: u64) -> Result<()> {
        self.owners.clear(SessionId(id));
        Ok(())
    }

    /// Leaves no table of owners that the program could take for one.
    pub fn spoil_owners(&mut self) -> Result<()> {
        let tables = owners::read(&tables(&self.ebpf)?)?.context("no table of owners")?;
        let words = tables.header().context("no header")?;
        Tables::store(words, header::BUCKETS, 0);
        Ok(())
    }

    /// Another writer of the program's table of owners, for so many entries: let this be
    /// the only one from now on.
    pub fn owners(&self, entries: u32) -> Result<Owners> {
        Ok(Owners::open(&tables(&self.ebpf)?, entries)?)
    }

    /// The id of a TCP session under the test's key.
    pub fn id(&self, client: &str, service: &str) -> Result<u64> {
        self.id_of(client, service, TCP)
    }

    /// The id of a session under the test's key.
    pub fn id_of(&self, client: &str, service: &str, protocol: u8) -> Result<u64> {
        let tuple = Tuple::between(client.parse()?, service.parse()?, protocol);
        Ok(tuple.id(&self.settings.session_key).0)
    }

    /// What `SESSIONS` holds of a session.
    pub fn session(
        &mut self,
        client: &str,
        service: &str,
        protocol: u8,
    ) -> Result<Option<Session>> {
        let tuple = Tuple::between(client.parse()?, service.parse()?, protocol);
        let sessions: HashMap<_, Tuple, Session> = self.map("SESSIONS")?.try_into()?;
        Ok(sessions.get(&tuple, 0).ok())
    }

    /// Runs one frame through the program, as if it came in by the loopback
    /// interface of this thread's network namespace.
    pub fn run(&mut self, frame: &[u8]) -> Result<Run> {
        self.run_with(frame, None)
    }

    /// The same with `metadata` bytes of the headroom taken: at most 252, a
    /// multiple of four.
    pub fn run_with_metadata(&mut self, frame: &[u8], metadata: u32) -> Result<Run> {
        let data = [vec![0; metadata as usize], frame.to_vec()].concat();
        // `struct xdp_md`: data, data_end, data_meta, and three fields unused here.
        let words = [metadata, data.len() as u32, 0, 0, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.run_with(&data, Some(&context))
    }

    fn run_with(&mut self, data: &[u8], context: Option<&[u8]>) -> Result<Run> {
        let before = self.stats()?;
        let mut out = vec![0; data.len() + 256];
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut("homing_xdp")
            .context("loaded above")?
            .try_into()?;
        let result = xdp.test_run(TestRunOptions {
            data_in: Some(data),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let after = self.stats()?;
        let counted: Vec<Outcome> = Outcome::ALL
            .iter()
            .flat_map(|outcome| {
                let index = outcome.index() as usize;
                vec![*outcome; (after[index] - before[index]) as usize]
            })
            .collect();
        let [outcome] = counted[..] else {
            bail!("a packet must end in exactly one outcome, not in {counted:?}");
        };
        Ok(Run {
            action: Action::from_number(result.return_value)?,
            outcome,
            frame: out,
        })
    }

    /// Runs one frame so many times in a row, which must leave it as it was, and
    /// returns how often each outcome came.
    pub fn run_many(&mut self, frame: &[u8], times: u32) -> Result<Vec<(Outcome, u64)>> {
        let before = self.stats()?;
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut("homing_xdp")
            .context("loaded above")?
            .try_into()?;
        xdp.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: times,
            ..TestRunOptions::new()
        })?;
        let after = self.stats()?;
        let counted = Outcome::ALL.iter().map(|outcome| {
            let index = outcome.index() as usize;
            (*outcome, after[index] - before[index])
        });
        Ok(counted.filter(|(_, times)| *times > 0).collect())
    }

    /// Runs one frame through the egress program, as if this host sent it, and
    /// returns it as it would leave.
    pub fn leave(&mut self, frame: &[u8]) -> Result<Vec<u8>> {
        let (action, out) = self.egress(frame)?;
        if action != TCX_NEXT {
            bail!("the egress program returned {action}");
        }
        Ok(out)
    }

    /// What the egress program returns for a frame, and makes of it.
    fn egress(&mut self, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let egress: &mut SchedClassifier = self
            .ebpf
            .program_mut("homing_egress")
            .context("loaded above")?
            .try_into()?;
        let result = egress.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value as i32, out))
    }

    /// Changes what the agent tells the programs.
    pub fn control(&mut self, change: impl FnOnce(&mut Control)) -> Result<()> {
        let mut cell: Array<_, Control> = self.map("CONTROL")?.try_into()?;
        let mut control = cell.get(&0, 0)?;
        change(&mut control);
        Ok(cell.set(0, control, 0)?)
    }

    /// Makes it a host that knows the sessions of the whole POP, whose agent lives
    /// as long as the test does.
    pub fn know(&mut self) -> Result<()> {
        self.control(|control| {
            control.flags |= Control::SYNCED;
            control.beat_ns = u64::MAX;
        })
    }

    /// Names the hosts that all sessions' packets go to which this host may not
    /// decide on.
    pub fn set_rendezvous(&mut self, first: u16, second: u16) -> Result<()> {
        let mut table: Array<_, Rendezvous> = self.map("RENDEZVOUS")?.try_into()?;
        for slot in 0..RENDEZVOUS_ENTRIES {
            table.set(slot, Rendezvous { first, second }, 0)?;
        }
        Ok(())
    }

    /// Names the hosts that packets of the session with an id go to which this host
    /// may not decide on.
    pub fn set_rendezvous_of(&mut self, id: u64, first: u16, second: u16) -> Result<()> {
        let slot = id % u64::from(RENDEZVOUS_ENTRIES);
        let mut table: Array<_, Rendezvous> = self.map("RENDEZVOUS")?.try_into()?;
        table.set(slot as u32, Rendezvous { first, second }, 0)?;
        Ok(())
    }

    /// Records that this host closed a session so many nanoseconds ago.
    pub fn set_closed(&mut self, client: &str, service: &str, ago_ns: u64) -> Result<()> {
        let id = self.id(client, service)?;
        self.set_closed_of(id, ago_ns)
    }

    /// Records that this host closed the session with an id so many nanoseconds ago.
    pub fn set_closed_of(&mut self, id: u64, ago_ns: u64) -> Result<()> {
        let now_ns = monotonic_ns()?;
        let mut closed: HashMap<_, u64, u64> = self.map("CLOSED")?.try_into()?;
        closed.insert(id, now_ns - ago_ns, 0)?;
        Ok(())
    }

    /// Uses up a limit for the present window of time.
    pub fn exhaust(&mut self, limit: Limit) -> Result<()> {
        let window = monotonic_ns()? >> WINDOW_SHIFT & u64::from(u32::MAX);
        let mut limits: Array<_, u64> = self.map("LIMITS")?.try_into()?;
        limits.set(limit.index(), window << 32 | u64::from(limit.max()), 0)?;
        Ok(())
    }

    /// Takes the packets that were parked for the agent.
    pub fn parked(&mut self) -> Result<Vec<(Parked, Vec<u8>)>> {
        self.records("ASK")
    }

    fn records(&mut self, ring: &str) -> Result<Vec<(Parked, Vec<u8>)>> {
        let mut ring: RingBuf<_> = self.map(ring)?.try_into()?;
        let mut all = Vec::new();
        while let Some(record) = ring.next() {
            let (head, frame) = record.split_at(size_of::<Parked>());
            // SAFETY: a record begins with a head, and any bytes make one.
            let head = unsafe { head.as_ptr().cast::<Parked>().read_unaligned() };
            all.push((head, frame[..head.captured as usize].to_vec()));
        }
        Ok(all)
    }

    /// How many fragmented datagrams `FRAGMENTS` holds.
    pub fn remembered_datagrams(&mut self) -> Result<usize> {
        let courses: HashMap<_, Datagram, Course> = self.map("FRAGMENTS")?.try_into()?;
        let keys: Result<Vec<_>, _> = courses.keys().collect();
        Ok(keys?.len())
    }

    /// Sets how many entries have just been made in a map in which the oldest make
    /// room.
    pub fn set_made(&mut self, room: Room, count: u32) -> Result<()> {
        let window = (monotonic_ns()? / room.life_ns()) & u64::from(u32::MAX);
        let mut limits: Array<_, u64> = self.map("LIMITS")?.try_into()?;
        Ok(limits.set(room.index(), window << 32 | u64::from(count), 0)?)
    }

    /// Empties `FLOWS`.
    pub fn forget_flows(&mut self) -> Result<()> {
        let mut flows: HashMap<_, u64, Flow> = self.map("FLOWS")?.try_into()?;
        let keys: Result<Vec<u64>, _> = flows.keys().collect();
        for key in keys? {
            flows.remove(&key)?;
        }
        Ok(())
    }

    /// What a hook has counted.
    pub fn hook(&self, hook: Hook) -> Result<u64> {
        Ok(self.stats()?[hook.index() as usize])
    }

    /// The program's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn stats(&self) -> Result<Vec<u64>> {
        let stats: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("STATS").context("no map STATS")?)?;
        (0..STATS_ENTRIES)
            .map(|index| Ok(stats.get(&index, 0)?.iter().sum()))
            .collect()
    }

    /// A map of the program, by its name.
    pub fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))
    }
}

/// Host 1 with the services of the tests, and hosts 2 and 3 as members that are
/// reached by the interface that packets come in by. It knows the whole POP.
pub fn host_1(tunnel: TunnelNetwork, encapsulation: Encapsulation) -> Result<Program> {
    host(settings(tunnel, encapsulation))
}

/// The same host of another id or with other addresses; the other two of hosts 1,
/// 2 and 3 are the members.
pub fn host(settings: Settings) -> Result<Program> {
    let mut program = Program::load(settings)?;
    for service in [packet::SERVICE_V4, packet::SERVICE_V6] {
        program.add_service(service)?;
    }
    for host in [1, 2, 3] {
        if host == settings.host.0 {
            continue;
        }
        let template = template(&program.settings, host, LOOPBACK, None);
        program.add_host(host, template)?;
    }
    program.know()?;
    Ok(program)
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// Index of the loopback interface in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Runs `test` in a thread with a network namespace of its own, loopback up.
pub fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("cannot make a network namespace; this needs root");
                loopback_up();
                test()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn loopback_up() {
    let status = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .expect("cannot run ip (package iproute2)");
    assert!(status.success());
}

/// The template towards a host, by an interface of this thread's namespace.
pub fn template(settings: &Settings, host: u16, ifindex: u32, vlan: Option<u16>) -> Template {
    let encapsulation = match settings.encapsulation {
        0 => Encapsulation::Ipip,
        _ => Encapsulation::Gue,
    };
    let outer = Outer {
        encapsulation,
        tunnel: settings.tunnel,
        host: settings.host,
    };
    let hop = Hop {
        ifindex,
        vlan,
        source: Mac(packet::HOST_MAC),
        destination: Mac(packet::PEER_MAC),
        mtu: 1500,
    };
    outer.template(HostId(host), &hop)
}

/// The maps of an object in which tables of owners stand.
pub fn tables(ebpf: &Ebpf) -> Result<owners::Maps<'_>> {
    owners::Maps::find(|name| ebpf.map(name).with_context(|| format!("no map {name}")))
}
