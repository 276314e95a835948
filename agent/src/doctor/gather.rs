//! Reads what there is to know of this host. Nothing is judged here, and nothing changed.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use aya::{
    maps::MapType,
    programs::{ProgramInfo, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::{
    facts::{
        AgentFacts, Clock, Facts, Holder, Host, Interface, Jit, Kernel, Key, KeyFault, Link, Port,
        Process, Read, Whose, Xdp,
    },
    procfs,
};
use crate::{
    config::{self, Config, Problems},
    datapath::{Error, ethtool, interface, link, load, pins::Pins, sockets::Diag, xdp_features},
    pop::keys::{KeyError, KeyFile},
};

/// Reads everything. `agent`: what the running agent has said.
pub(crate) fn gather(config: Result<Config, Problems>, agent: Read<AgentFacts>) -> Facts {
    let pins = match &config {
        Ok(config) => config.pin_dir(),
        Err(_) => config::pin_dir(config::DEFAULT_INSTANCE),
    };
    Facts {
        is_root: nix::unistd::geteuid().is_root(),
        kernel: kernel(&Pins::new(pins)),
        clock: clock(),
        agent,
        host: config.as_ref().ok().map(host),
        config,
    }
}

/// A value as it was read, or the reason in words.
fn read<T, E: ToString>(result: Result<T, E>) -> Read<T> {
    result.map_err(|error| error.to_string())
}

fn file(path: impl AsRef<Path>) -> Read<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn setting<T: std::str::FromStr>(path: &str) -> Read<T> {
    let text = file(path)?;
    let value = text.trim().parse();
    value.map_err(|_| format!("{path} holds `{}`", text.trim()))
}

fn kernel(pins: &Pins) -> Kernel {
    let release = file("/proc/sys/kernel/osrelease");
    Kernel {
        release: release.unwrap_or_else(|reason| reason).trim().to_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        features: features(),
        jit: jit(pins),
    }
}

/// What the kernel programs and the agent need. Programs and maps are probed by making some
/// that nobody uses, and that go at once.
fn features() -> Vec<(&'static str, Read<bool>)> {
    let programs = [
        ("program type xdp", ProgramType::Xdp),
        ("program type sock_ops", ProgramType::SockOps),
        ("program type cgroup_skb", ProgramType::CgroupSkb),
        ("program type sched_cls", ProgramType::SchedClassifier),
    ];
    let maps = [
        ("map type hash", MapType::Hash),
        ("map type lru_hash", MapType::LruHash),
        ("map type percpu_array", MapType::PerCpuArray),
        ("map type array_of_maps", MapType::ArrayOfMaps),
        ("map type ringbuf", MapType::RingBuf),
    ];
    let helpers = [
        ("helper skc_lookup_tcp", BpfHelper::BPF_FUNC_skc_lookup_tcp),
        (
            "helper tcp_check_syncookie",
            BpfHelper::BPF_FUNC_tcp_check_syncookie,
        ),
        ("helper xdp_load_bytes", BpfHelper::BPF_FUNC_xdp_load_bytes),
        (
            "helper xdp_get_buff_len",
            BpfHelper::BPF_FUNC_xdp_get_buff_len,
        ),
    ];
    let mut features = Vec::new();
    features.extend(programs.map(|(name, kind)| (name, read(is_program_supported(kind)))));
    features.extend(maps.map(|(name, kind)| (name, read(is_map_supported(kind)))));
    features.extend(helpers.map(|(name, helper)| {
        let there = is_helper_supported(ProgramType::Xdp, helper);
        (name, read(there))
    }));
    let sockets = match Diag::open().and_then(|mut diag| diag.probe()) {
        Ok(()) => Ok(true),
        // Nobody answers for this family: the module is not there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.to_string()),
    };
    features.push(("diagnosis of TCP sockets (tcp_diag)", sockets));
    features
}

/// How programs are run. Only the machine's own network namespace has the setting; elsewhere
/// a program of the agent's tells.
fn jit(pins: &Pins) -> Read<Jit> {
    let setting = setting::<u8>("/proc/sys/net/core/bpf_jit_enable");
    let on = match setting {
        Ok(value) => value != 0,
        Err(_) => {
            let programs = fs::read_dir(pins.programs()).into_iter().flatten();
            let pin = programs.flatten().next().ok_or(
                "this network namespace does not have it, and no program is loaded that would tell",
            )?;
            read(ProgramInfo::from_pin(pin.path()))?.size_jitted() > 0
        }
    };
    Ok(if on { Jit::On } else { Jit::Off })
}

fn clock() -> Read<Clock> {
    // SAFETY: a `timex` is plain data, for which zeros are a value; with no modes nothing is
    // changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and fills the structure, which lives until the call returns.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(Clock {
        synchronized: timex.status & libc::STA_UNSYNC == 0,
        now_unix_ms: since.map_or(0, |since| since.as_millis() as u64),
    })
}

fn host(config: &Config) -> Host {
    let pins = Pins::new(config.pin_dir());
    let (bpffs, bpffs_at) = match pins.check_file_system() {
        Ok(()) => (Ok(()), PathBuf::new()),
        Err(Error::NoBpfFs { mount_point, .. }) => (Err("no BPF file system".into()), mount_point),
        Err(error) => (Err(error.to_string()), pins.root().to_owned()),
    };
    let mounts = file("/proc/self/mountinfo").unwrap_or_default();
    let key = &config.pop.key_file;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in config.services.iter().map(|service| service.address.into()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let local = |address| (address, read(interface::is_local(address)));
    Host {
        bpffs,
        bpffs_at,
        cgroup: read(load::cgroup(&config.host.cgroup)).map(drop),
        cgroup_mounts: procfs::cgroup2_mounts(&mounts),
        key: Key {
            usable: KeyFile::read(key).map(drop).map_err(|error| match &error {
                KeyError::Permissions { path, mode } => KeyFault::Open(format!(
                    "{} is open to other users (mode {mode:04o})",
                    path.display()
                )),
                KeyError::Content { .. } => KeyFault::Content(error.to_string()),
                KeyError::Read { .. } | KeyError::Write { .. } => {
                    KeyFault::Unreadable(error.to_string())
                }
            }),
            owner: fs::metadata(key).ok().map(|data| data.uid()),
        },
        interfaces: config
            .host
            .interfaces
            .iter()
            .map(|name| on(config, name))
            .collect(),
        rp_filter_all: setting("/proc/sys/net/ipv4/conf/all/rp_filter"),
        checksum_errors: checksum_errors(),
        vlans: procfs::vlans(&file("/proc/net/vlan/config").unwrap_or_default()),
        fabric: holder(config.pop.address.ip()),
        services: addresses.into_iter().map(local).collect(),
        pins_held_by: pins_held_by(&pins),
        ports: ports(config),
    }
}

/// An interface that the programs belong on.
fn on(config: &Config, name: &str) -> Interface {
    let found = interface::look_up(name);
    let link = found.map(|found| Link {
        up: is_up(name),
        mtu: found.mtu,
        driver: read(ethtool::driver(name)),
        native: read(xdp_features::is_native(found.index)),
        xdp: found.xdp.map(|running| Xdp {
            program_id: running.program_id,
            mode: running.mode,
            whose: whose(config, name, running.program_id),
        }),
        rp_filter: setting(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")),
        features: read(ethtool::features(name)),
        peer: found.tied_to.and_then(peer),
    });
    Interface {
        name: name.to_owned(),
        link: read(link),
    }
}

fn is_up(name: &str) -> bool {
    let all = getifaddrs().into_iter().flatten();
    let flags = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let mut all = all.filter(|address| address.interface_name == name);
    all.any(|address| address.flags.contains(flags))
}

/// The interface with this index, and whether it leaves checksums for later.
fn peer(index: u32) -> Option<(String, Read<bool>)> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    let name = name.into_string().ok()?;
    // A veth's own index stands here where it has no other end.
    let features = ethtool::features(&name).map(|features| {
        let kinds = [
            "tx-checksum-ip-generic",
            "tx-checksum-ipv4",
            "tx-checksum-ipv6",
        ];
        kinds.iter().any(|kind| features.get(*kind) == Some(&true))
    });
    Some((name, read(features)))
}

/// Whose program an interface runs, by the links that are pinned.
fn whose(config: &Config, interface: &str, program_id: u32) -> Whose {
    let runs = |root: PathBuf| {
        let pin = Pins::new(root).xdp_link(interface);
        link::program_of(&pin) == Some(program_id)
    };
    if runs(config.pin_dir()) {
        return Whose::Ours;
    }
    let all = config.pin_dir().parent().map(fs::read_dir);
    let all = all.into_iter().flatten().flatten().flatten();
    let mut others = all.filter(|instance| runs(instance.path()));
    match others
        .next()
        .and_then(|instance| instance.file_name().into_string().ok())
    {
        Some(instance) => Whose::Instance(instance),
        None => Whose::Other,
    }
}

fn checksum_errors() -> Read<u64> {
    let text = file("/proc/net/snmp")?;
    let of = |group| procfs::snmp(&text, group, "InCsumErrors").unwrap_or(0);
    Ok(of("Tcp") + of("Udp"))
}

/// The interface that has an address.
fn holder(address: IpAddr) -> Read<Option<Holder>> {
    let mut all = read(getifaddrs())?;
    let found = all.find(|candidate| {
        let address_of = candidate.address.as_ref();
        let v4 = || Some(IpAddr::from(address_of?.as_sockaddr_in()?.ip()));
        let v6 = || Some(IpAddr::from(address_of?.as_sockaddr_in6()?.ip()));
        v4().or_else(v6) == Some(address)
    });
    Ok(found.map(|found| Holder {
        multicast: found.flags.contains(InterfaceFlags::IFF_MULTICAST),
        name: found.interface_name,
    }))
}

/// Who holds an instance's pins. The lock is not tried: an agent that starts at this moment
/// must find it free.
fn pins_held_by(pins: &Pins) -> Read<Option<Process>> {
    let Ok(data) = fs::metadata(pins.root()) else {
        return Ok(None);
    };
    let pid = procfs::lock_holder(&file("/proc/locks")?, data.dev(), data.ino());
    Ok(pid.map(process))
}

fn process(pid: u32) -> Process {
    let name = file(format!("/proc/{pid}/comm")).unwrap_or_default();
    Process {
        pid,
        name: name.trim().to_owned(),
    }
}

/// The sockets that have the port of the fabric address.
fn ports(config: &Config) -> Vec<Port> {
    // Of TCP, those that listen: connections from that port are somebody's own business.
    const LISTEN: Option<&str> = Some("0A");
    let address = config.pop.address;
    let mut ports = Vec::new();
    for (protocol, names, state) in [
        ("tcp", ["tcp", "tcp6"], LISTEN),
        ("udp", ["udp", "udp6"], None),
    ] {
        let texts = names.map(|name| file(format!("/proc/net/{name}")).unwrap_or_default());
        let sockets = texts
            .iter()
            .flat_map(|text| procfs::sockets_at(text, address, state));
        ports.extend(sockets.map(|inode| Port {
            protocol,
            by: owner_of(inode),
        }));
    }
    ports.dedup();
    ports
}

/// The process that has a socket, as far as this one may see it.
fn owner_of(inode: u64) -> Option<Process> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let mut targets = descriptors
            .flatten()
            .map(|entry| fs::read_link(entry.path()));
        targets.any(|target| target.is_ok_and(|target| target == wanted))
    };
    pids.find(has).map(process)
}
