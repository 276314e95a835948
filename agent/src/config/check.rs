//! The sections of the file, and what must hold between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use homing_common::{
    host::{Encapsulation, GUE_PORT, HostId},
    maps::{OWNERS_ENTRIES, SERVICES_MAX, SESSIONS_ENTRIES},
    net::{Port, Service, TCP, UDP},
    park::{CLOSED_ENTRIES, FRAGMENTS_ENTRIES},
};
use toml::de::DeTable;

use super::{
    Admin, Apps, Config, DEFAULT_INSTANCE, Drain, Group, Host, Limits, Migration, Mss, Mux, Pop,
    Problems, Seed, Tunnel, Udp, XdpMode, default_apps_socket, default_mux_socket,
    default_read_socket, default_socket,
    read::{At, Bad, Notes, Section},
    relations, values,
};

/// Reads the whole file.
pub(super) fn config(path: &Path, text: &str) -> Result<Config, Problems> {
    let notes = Notes::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What is read around a syntax error is guesswork: say only the error.
        for error in &errors {
            syntax(&notes, text, error);
        }
        return Err(problems(path, notes));
    }
    let config = read(path, &notes, document.get_ref());
    match (config, problems(path, notes)) {
        (Some(config), problems) if problems.list.is_empty() => Ok(config),
        (_, problems) => {
            assert!(!problems.list.is_empty(), "a value is missing unnoticed");
            Err(problems)
        }
    }
}

fn problems(path: &Path, notes: Notes<'_>) -> Problems {
    Problems {
        path: path.to_owned(),
        list: notes.finish(),
    }
}

fn syntax(notes: &Notes<'_>, text: &str, error: &toml::de::Error) {
    let offset = error.span().map_or(text.len(), |span| span.start);
    let line = notes.line_at(offset);
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let key = written.split(['=', '#']).next().unwrap_or_default();
    let key = key.trim().trim_matches(['[', ']']).trim();
    let fix = if error.message().contains("duplicate key") {
        "remove one of the two"
    } else {
        "write key = value, with text in quotes, or [section]"
    };
    let what = format!("not TOML: {}", error.message());
    notes.add(line, key, Bad::new(what, fix));
}

/// None if anything has been noted that leaves a hole; what is only wrong in
/// relation to something else is noted without leaving one.
fn read(path: &Path, notes: &Notes<'_>, document: &DeTable<'_>) -> Option<Config> {
    let root = Section::root(notes, document);
    let instance = root.default("instance", DEFAULT_INSTANCE.to_owned(), values::name);
    let host = host(&root, notes);
    let pop = pop(&root, notes);
    let tunnel = tunnel(&root, notes);
    let services = services(&root, notes);
    let udp = udp(&root);
    let limits = limits(&root);
    let migration = migration(&root);
    let apps = apps(&root, instance.as_deref());
    let mux = mux(&root, instance.as_deref());
    let drain = drain(&root);
    let admin = admin(&root, instance.as_deref());
    root.close();

    if let (Some(host), Some(pop)) = (&host, &pop) {
        relations::seeds(notes, &host.id, pop);
    }
    if let (Some(tunnel), Some(host), Some(pop)) = (&tunnel, &host, &pop) {
        relations::ids_fit(notes, tunnel, &host.id, pop);
    }
    if let (Some(services), Some(pop)) = (&services, &pop) {
        relations::fabric_apart(notes, services, pop);
    }
    let sockets = [
        apps.as_ref().map(|apps| &apps.socket),
        mux.as_ref().map(|mux| &mux.socket),
        admin.as_ref().map(|admin| &admin.socket),
        admin.as_ref().map(|admin| &admin.read_socket),
    ];
    relations::sockets_apart(notes, &sockets);
    if let Some(tunnel) = &tunnel {
        relations::overlap(notes, tunnel, services.as_deref(), pop.as_ref());
    }

    let (host, pop) = (host?, pop?);
    let own = host.id.value;
    let seeds = pop.seeds.into_iter().map(|(host, address)| Seed {
        host: host.value,
        address: address.value,
    });
    Some(Config {
        path: path.to_owned(),
        socket_given: false,
        instance: instance?,
        host: Host {
            id: own,
            domain: host.domain,
            interfaces: host.interfaces,
            xdp_mode: host.xdp_mode,
            cgroup: host.cgroup,
        },
        pop: Pop {
            key_file: pop.key_file,
            address: pop.address.value,
            multicast: pop.multicast,
            close_linger: pop.close_linger,
            leave_hold: pop.leave_hold,
            kernel_dead_after: pop.kernel_dead_after,
            void_after: pop.void_after,
            // One list of seeds may serve all hosts, so it may name this one.
            seeds: seeds.filter(|seed| seed.host != own).collect(),
        },
        tunnel: tunnel?.value,
        services: services?.into_iter().map(|service| service.value).collect(),
        udp: udp?,
        limits: limits?,
        migration: migration?,
        apps: apps?.finish(),
        mux: mux?.finish(),
        drain: drain?,
        admin: admin?.finish(),
    })
}

struct RawHost {
    id: At<HostId>,
    domain: String,
    interfaces: Vec<String>,
    xdp_mode: XdpMode,
    cgroup: PathBuf,
}

fn host(root: &Section<'_>, notes: &Notes<'_>) -> Option<RawHost> {
    let section = root.section("host", Some("add [host] with id, domain and interfaces"));
    let id = section.required("id", "add id = 1, unique in the POP", values::host_id);
    let domain = section.required(
        "domain",
        "add domain = \"rack-1\", the same on all hosts of one broadcast domain",
        values::name,
    );
    let interfaces_fix =
        "write interfaces = [\"eth0\"], those that packets for the services come in by";
    let interfaces = section.list("interfaces", interfaces_fix, values::interface);
    let modes = [("native", XdpMode::Native), ("skb", XdpMode::Skb)];
    let xdp_mode = section.default("xdp_mode", XdpMode::Native, |v| values::word(v, &modes));
    let cgroup = section.default("cgroup", "/sys/fs/cgroup".into(), values::path);
    section.close();

    if let Some(interfaces) = &interfaces {
        relations::unique(notes, interfaces, |interface| {
            format!("interface {interface}")
        });
    }
    Some(RawHost {
        id: id?,
        domain: domain?.value,
        interfaces: interfaces?.into_iter().map(|at| at.value).collect(),
        xdp_mode: xdp_mode?,
        cgroup: cgroup?,
    })
}

/// `[pop]` with the places of what is compared with other sections.
pub(super) struct RawPop {
    key_file: PathBuf,
    pub address: At<SocketAddr>,
    multicast: Option<SocketAddr>,
    close_linger: Duration,
    leave_hold: Duration,
    kernel_dead_after: Duration,
    void_after: Duration,
    pub seeds: Vec<(At<HostId>, At<SocketAddr>)>,
}

fn pop(root: &Section<'_>, notes: &Notes<'_>) -> Option<RawPop> {
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    let section = root.section("pop", Some("add [pop] with key_file and address"));
    let key_file = section.required(
        "key_file",
        "add key_file = \"/etc/homing/pop.key\"",
        values::path,
    );
    let address = section.required(
        "address",
        "add address = \"10.1.1.11:7946\", this host's own address in the fabric",
        values::fabric_address,
    );
    let multicast = section.optional("multicast", values::group);
    let close_linger = section.default("close_linger", 2 * SECOND, |v| {
        values::duration(v, Duration::ZERO..=60 * SECOND)
    });
    let leave_hold = section.default("leave_hold", 30 * SECOND, |v| {
        values::duration(v, Duration::ZERO..=HOUR)
    });
    let kernel_dead_after = section.default("kernel_dead_after", 3 * SECOND, |v| {
        values::duration(v, SECOND..=60 * SECOND)
    });
    let void_after = section.default("void_after", 600 * SECOND, |v| {
        values::duration(v, SECOND..=24 * HOUR)
    });
    let seeds = section.sections("seeds").and_then(|seeds| {
        let seeds: Vec<_> = seeds.into_iter().map(seed).collect();
        seeds.into_iter().collect::<Option<Vec<_>>>()
    });
    section.close();

    if let (Some(address), Some(Some(group))) = (&address, &multicast)
        && address.value.is_ipv4() != group.value.is_ipv4()
    {
        let (other, example) = if address.value.is_ipv4() {
            (
                "an IPv6 group, but pop.address is IPv4",
                "239.77.77.77:7947",
            )
        } else {
            ("an IPv4 group, but pop.address is IPv6", "[ff12::77]:7947")
        };
        let fix = format!("write one of the same family, such as \"{example}\"");
        group.wrong(notes, Bad::new(format!("{} is {other}", group.value), fix));
    }
    Some(RawPop {
        key_file: key_file?.value,
        address: address?,
        multicast: multicast?.map(|group| group.value),
        close_linger: close_linger?,
        leave_hold: leave_hold?,
        kernel_dead_after: kernel_dead_after?,
        void_after: void_after?,
        seeds: seeds?,
    })
}

fn seed(section: Section<'_>) -> Option<(At<HostId>, At<SocketAddr>)> {
    let host = section.required("host", "add host = 2, the seed's id", values::host_id);
    let address = section.required(
        "address",
        "add address = \"10.1.1.12:7946\", the seed's pop.address",
        values::fabric_address,
    );
    section.close();
    Some((host?, address?))
}

fn tunnel(root: &Section<'_>, notes: &Notes<'_>) -> Option<At<Tunnel>> {
    let section = root.section(
        "tunnel",
        Some("add [tunnel] with network and host_prefix_len"),
    );
    let words = [("ipip", Encapsulation::Ipip), ("gue", Encapsulation::Gue)];
    let encapsulation = section.default("encapsulation", Encapsulation::Ipip, |v| {
        values::word(v, &words)
    });
    let network = section.required(
        "network",
        "add network = \"10.77.0.0/16\", the same on all hosts",
        values::network,
    );
    let len = section.required(
        "host_prefix_len",
        "add host_prefix_len = 28 (IPv6: 64), the same on all hosts",
        |v| values::number(v, 0..=128),
    );
    let hop_limit = section.default("hop_limit", 8, |v| values::number(v, 1..=255));
    let mss = section.default("mss", Mss::Auto, values::mss);
    section.close();

    let (network, len) = (network?, len?);
    let parts = relations::tunnel_network(network.value, len.value)
        .map_err(|bad| len.wrong(notes, bad))
        .ok()?;
    Some(At {
        value: Tunnel {
            encapsulation: encapsulation?,
            network: parts,
            prefix: network.value,
            host_prefix_len: len.value as u8,
            hop_limit: hop_limit? as u8,
            mss: mss?,
        },
        line: network.line,
        key: network.key,
    })
}

fn services(root: &Section<'_>, notes: &Notes<'_>) -> Option<Vec<At<Service>>> {
    let sections = root.sections("services")?;
    let fix = "add [[services]] with address and port";
    if sections.is_empty() {
        let what = "there is no service: nothing would be homed";
        notes.add(root.line(), "services", Bad::new(what, fix));
    }
    if sections.len() > SERVICES_MAX as usize {
        let what = format!("{} are more than {SERVICES_MAX}", sections.len());
        let bad = Bad::new(what, "use fewer addresses and ports");
        notes.add(sections[0].line(), "services", bad);
    }
    let services: Vec<_> = sections.into_iter().map(service).collect();
    let services = services.into_iter().collect::<Option<Vec<_>>>()?;
    relations::unique(notes, &services, |service| {
        format!("duplicate service: {}", service.endpoint())
    });
    for service in &services {
        let Service { port, protocol, .. } = service.value;
        if protocol == UDP && port.number() == GUE_PORT {
            let what = format!("port {GUE_PORT} over UDP is that of tunnel packets");
            service.wrong(notes, Bad::new(what, "use another port"));
        }
    }
    Some(services)
}

fn service(section: Section<'_>) -> Option<At<Service>> {
    let address = section.required(
        "address",
        "add address = \"203.0.113.10\"",
        values::service_address,
    );
    let port = section.required("port", "add port = 443", |v| values::number(v, 1..=65535));
    let protocol = section.default("protocol", TCP, |v| {
        values::word(v, &[("tcp", TCP), ("udp", UDP)])
    });
    section.close();
    let (address, port) = (address?, port?);
    let port = Port::new(port.value as u16);
    Some(At {
        value: Service::new(address.value.into(), port, protocol?),
        line: address.line,
        key: address.key,
    })
}

fn udp(root: &Section<'_>) -> Option<Udp> {
    let section = root.section("udp", None);
    let idle_timeout = section.default("idle_timeout", Duration::from_secs(60), |v| {
        values::duration(v, Duration::from_secs(1)..=Duration::from_secs(3600))
    });
    section.close();
    Some(Udp {
        idle_timeout: idle_timeout?,
    })
}

fn limits(root: &Section<'_>) -> Option<Limits> {
    let section = root.section("limits", None);
    let owners = section.default("owners", OWNERS_ENTRIES, values::limit);
    let sessions = section.default("sessions", SESSIONS_ENTRIES, values::limit);
    let closed = section.default("closed", CLOSED_ENTRIES, values::limit);
    let fragments = section.default("fragments", FRAGMENTS_ENTRIES, values::limit);
    section.close();
    Some(Limits {
        owners: owners?,
        sessions: sessions?,
        closed: closed?,
        fragments: fragments?,
    })
}

fn migration(root: &Section<'_>) -> Option<Migration> {
    let section = root.section("migration", None);
    let moves = section.default("moves", 64, |v| {
        values::number(v, 1..=u32::from(values::MOVES_MAX))
    });
    let memory = section.default("memory", 64 << 20, |v| {
        // A state has 16 MiB at most: each way there is room for more than one.
        values::size(v, 32 << 20..=4 << 30)
    });
    section.close();
    Some(Migration {
        // The range keeps it within 16 bits.
        moves: moves? as u16,
        memory: usize::try_from(memory?).unwrap_or(usize::MAX),
    })
}

/// `[apps]` with the place of what is compared with other sections.
struct RawApps {
    socket: At<PathBuf>,
    group: Group,
    state_max: u32,
}

impl RawApps {
    fn finish(self) -> Apps {
        Apps {
            socket: self.socket.value,
            group: self.group,
            state_max: self.state_max,
        }
    }
}

fn apps(root: &Section<'_>, instance: Option<&str>) -> Option<RawApps> {
    let section = root.section("apps", None);
    let default = default_apps_socket(instance.unwrap_or(DEFAULT_INSTANCE));
    let socket = section.default_at("socket", default, values::socket_path);
    let group = section.default("group", Group::Id(0), values::user_group);
    let state_max = section.default("state_max", 1 << 20, |v| {
        values::size(v, 4 << 10..=16 << 20)
    });
    section.close();
    Some(RawApps {
        socket: socket?,
        group: group?,
        // The range keeps it within 32 bits.
        state_max: state_max? as u32,
    })
}

/// `[mux]` with the place of what is compared with other sections.
struct RawMux {
    socket: At<PathBuf>,
    mux: Mux,
}

impl RawMux {
    fn finish(self) -> Mux {
        Mux {
            socket: self.socket.value,
            ..self.mux
        }
    }
}

fn mux(root: &Section<'_>, instance: Option<&str>) -> Option<RawMux> {
    let section = root.section("mux", None);
    let default = default_mux_socket(instance.unwrap_or(DEFAULT_INSTANCE));
    let socket = section.default_at("socket", default, values::socket_path);
    let group = section.default("group", Group::Id(0), values::user_group);
    let encryption = section.default("encryption", true, values::boolean);
    let carriers = section.default("carriers", None, values::carriers);
    let message_max = section.default("message_max", 1 << 20, |v| {
        values::size(v, 64 << 10..=4 << 20)
    });
    let sockets = section.default("sockets", 16_384, |v| values::number(v, 16..=65_536));
    let memory = section.default("memory", 256 << 20, |v| values::size(v, 32 << 20..=4 << 30));
    section.close();
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Some(RawMux {
        socket: socket?,
        mux: Mux {
            socket: PathBuf::new(),
            group: group?,
            encryption: encryption?,
            carriers: carriers?,
            message_max: bytes(message_max?),
            sockets: sockets? as usize,
            memory: bytes(memory?),
        },
    })
}

/// `[admin]` with the places of what is compared with other sections.
struct RawAdmin {
    socket: At<PathBuf>,
    group: Group,
    read_socket: At<PathBuf>,
    readers: Option<Group>,
}

impl RawAdmin {
    fn finish(self) -> Admin {
        Admin {
            socket: self.socket.value,
            group: self.group,
            read_socket: self.read_socket.value,
            readers: self.readers,
        }
    }
}

fn drain(root: &Section<'_>) -> Option<Drain> {
    let section = root.section("drain", None);
    let on_drain = section.default("on_drain", Vec::new(), values::command);
    let on_undrain = section.default("on_undrain", Vec::new(), values::command);
    let timeout = section.default("timeout", Duration::from_secs(10), |v| {
        values::duration(v, Duration::from_millis(100)..=Duration::from_secs(300))
    });
    section.close();
    Some(Drain {
        on_drain: on_drain?,
        on_undrain: on_undrain?,
        timeout: timeout?,
    })
}

fn admin(root: &Section<'_>, instance: Option<&str>) -> Option<RawAdmin> {
    let section = root.section("admin", None);
    let instance = instance.unwrap_or(DEFAULT_INSTANCE);
    let socket = section.default_at("socket", default_socket(instance), values::socket_path);
    let group = section.default("group", Group::Id(0), values::user_group);
    let default = default_read_socket(instance);
    let read_socket = section.default_at("read_socket", default, values::socket_path);
    let readers = section.default("readers", None, |value| values::user_group(value).map(Some));
    section.close();
    Some(RawAdmin {
        socket: socket?,
        group: group?,
        read_socket: read_socket?,
        readers: readers?,
    })
}
