//! What the XDP program costs a packet, by `BPF_PROG_TEST_RUN`.
//!
//! The kernel does not reset the packet between the runs of one call, so each
//! path but `pass` runs in a wrapper (`ebpf/src/bench.rs`) that undoes what the
//! path did. The wrapper's cost is measured around nothing, in the same rounds,
//! and subtracted; one moving of the head, which belongs to the path, is given
//! back. What is reported for a path is the floor plus the path's own cost.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap},
    programs::{ProgramInfo, Xdp},
};
use homing_agent::datapath::owners::{self, Owners};
use homing_common::{
    bench::{Bench, HEADER_LEN},
    host::{Encapsulation, Host, HostId, TunnelNetwork},
    maps::OWNERS_ENTRIES,
    net::{Address, Port, Service, TCP},
    session::Tuple,
    settings::Settings,
};
use serde_json::{Value, json};

use super::measure::{OBJECT, REPEAT, ROUNDS, load_all, map, median, min, round, time, verdict};
use crate::{
    packet::{Ip, Tcp, flags, udp},
    program::{self, in_namespace, tables},
};

const MANY_FLOWS: u32 = 200_000;

/// One path of one packet.
struct Case {
    name: &'static str,
    ebpf: Ebpf,
    frame: Vec<u8>,
    samples: Vec<Sample>,
}

/// Nanoseconds per packet, from one round.
struct Sample {
    path: f64,
    /// The wrapper around nothing.
    choose: f64,
    /// The wrapper around moving the head there and back.
    adjust: f64,
}

/// The path's own cost: without the wrapper, without the undoing. Of minima or of medians:
/// what another program took from the machine in a single round is in neither.
fn own(samples: &[Sample], of: impl Fn(&[f64]) -> f64) -> f64 {
    let of = |time: fn(&Sample) -> f64| of(&samples.iter().map(time).collect::<Vec<_>>());
    let (path, choose) = (of(|sample| sample.path), of(|sample| sample.choose));
    let undo = (of(|sample| sample.adjust) - choose) / 2.0;
    path - choose - undo
}

/// A minimum and a median, nanoseconds per packet.
struct Figure {
    min: f64,
    median: f64,
}

impl Figure {
    fn of(samples: &[f64]) -> Self {
        Self {
            min: min(samples),
            median: median(samples),
        }
    }
}

/// What the packets of a case are.
#[derive(Clone, Copy)]
enum Way {
    Forward,
    Strip,
}

/// What was measured.
pub struct Report {
    /// By name.
    figures: Vec<(&'static str, Figure)>,
    /// Instructions that the verifier looked at to accept the program.
    verified_insns: u32,
    /// Size of the program in machine code.
    jit_bytes: u32,
}

impl Report {
    /// One field per minimum, and one with `_median` behind it per median.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "verified_insns": self.verified_insns,
            "jit_bytes": self.jit_bytes,
            "rounds": ROUNDS,
            "runs_per_round": REPEAT,
        });
        for (name, figure) in &self.figures {
            json[format!("{name}_ns")] = round(figure.min).into();
            json[format!("{name}_ns_median")] = round(figure.median).into();
        }
        json
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<22}{:>9}{:>9}{:>13}\n",
            "ns per packet", "minimum", "median", "above floor"
        );
        let floor = self.figures.first().map_or(0.0, |(_, floor)| floor.min);
        for (name, Figure { min, median }) in &self.figures {
            let above = min - floor;
            table += &format!("{name:<22}{min:>9.1}{median:>9.1}{above:>13.1}\n");
        }
        table
            + &format!(
                "{ROUNDS} rounds of {REPEAT} runs; {} instructions verified, {} bytes of machine code\n",
                self.verified_insns, self.jit_bytes
            )
    }
}

/// Runs the benchmark.
pub fn run(progress: &mut (dyn FnMut(&str) + Send)) -> Result<Report> {
    in_namespace(|| measure(progress))
}

fn measure(progress: &mut dyn FnMut(&str)) -> Result<Report> {
    progress("loading");
    let (ipip, gue) = (Encapsulation::Ipip, Encapsulation::Gue);
    let (v4, v6) = (program::tunnel_v4(), program::tunnel_v6());
    let (forward, strip) = (Way::Forward, Way::Strip);
    let mut cases = Vec::new();
    for (name, way, tunnel, encapsulation, v4_inner, flows) in [
        ("forward_ipip", forward, v4, ipip, true, 1),
        ("forward_gue", forward, v4, gue, true, 1),
        ("strip", strip, v4, ipip, true, 1),
        ("forward_ipip_200k", forward, v4, ipip, true, MANY_FLOWS),
        ("forward_gue_200k", forward, v4, gue, true, MANY_FLOWS),
        ("strip_200k", strip, v4, ipip, true, MANY_FLOWS),
        ("forward_ipip_v6", forward, v6, ipip, false, 1),
        ("forward_gue_v6", forward, v6, gue, false, 1),
        ("strip_v6", strip, v6, ipip, false, 1),
        ("forward_ipip_v6_200k", forward, v6, ipip, false, MANY_FLOWS),
    ] {
        cases.push(Case::new(
            name,
            way,
            tunnel,
            encapsulation,
            v4_inner,
            flows,
        )?);
    }
    let mut pass = Pass::new(v4, "127.0.0.1:0")?;
    let mut pass_v6 = Pass::new(v4, "[::1]:0")?;
    let (mut floor, mut pass_ns, mut pass_v6_ns) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}"));
        floor.push(cases[0].time("bench_floor")?);
        pass_ns.push(pass.time()?);
        pass_v6_ns.push(pass_v6.time()?);
        for case in &mut cases {
            let sample = Sample {
                choose: case.time("bench_choose")?,
                adjust: case.time("bench_adjust")?,
                path: case.time("bench_fastpath")?,
            };
            case.samples.push(sample);
        }
    }

    let floor = Figure::of(&floor);
    let info = pass.info()?;
    let paths = cases.iter().map(|case| {
        let figure = Figure {
            min: floor.min + own(&case.samples, min),
            median: floor.min + own(&case.samples, median),
        };
        (case.name, figure)
    });
    let paths: Vec<_> = paths.collect();
    let mut figures = vec![
        ("floor", floor),
        ("pass", Figure::of(&pass_ns)),
        ("pass_v6", Figure::of(&pass_v6_ns)),
    ];
    figures.extend(paths);
    Ok(Report {
        figures,
        verified_insns: info
            .verified_instruction_count()
            .context("the kernel does not say how many instructions it verified")?,
        jit_bytes: info.size_jitted(),
    })
}

const CLIENT_V4: &str = "198.18.0.0:40000";
const CLIENT_V6: &str = "[2001:db8:c::]:40000";
const SERVICE_V4: &str = "203.0.113.10:443";
const SERVICE_V6: &str = "[2001:db8:113::10]:443";

impl Case {
    fn new(
        name: &'static str,
        way: Way,
        tunnel: TunnelNetwork,
        encapsulation: Encapsulation,
        v4: bool,
        flows: u32,
    ) -> Result<Self> {
        let settings = program::settings(tunnel, encapsulation);
        let object =
            fs::read(Path::new(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
        let mut ebpf = EbpfLoader::new()
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("SESSIONS", 1024)
            .load(&object)?;
        owners::provide(&tables(&ebpf)?)?;
        load_all(&mut ebpf)?;

        let (client, service) = if v4 {
            (CLIENT_V4, SERVICE_V4)
        } else {
            (CLIENT_V6, SERVICE_V6)
        };
        // Of a session without a socket, only a SYN is stripped: about any other
        // segment the POP would be asked.
        let flags = match way {
            Way::Forward => flags::ACK,
            Way::Strip => flags::SYN,
        };
        let segment = Tcp::new(client, service, flags).payload([0; 6]).ip();
        let template = program::template(&settings, 2, 1, None);
        let outer_len = i32::from(template.l3_len);
        let (frame, undo) = match way {
            Way::Forward => (segment.frame(&[]), outer_len),
            Way::Strip => (outer(&settings, HostId(2), &segment).frame(&[]), -outer_len),
        };
        let address_len = if v4 { 4 } else { 16 };
        let source_offset = if v4 { 12 } else { 8 };
        let inner_offset = match way {
            Way::Forward => 14,
            Way::Strip => 14 + outer_len as usize,
        };
        let bench = Bench {
            state: 1,
            flows,
            address_offset: (inner_offset + source_offset + address_len - 4) as u32,
            undo,
            header: frame[..HEADER_LEN]
                .try_into()
                .context("a frame is longer")?,
            zero: [0; 6],
        };
        let mut benches: Array<_, Bench> = map(&mut ebpf, "BENCH")?.try_into()?;
        benches.set(0, bench, 0)?;

        let mut hosts: Array<_, Host> = map(&mut ebpf, "HOSTS")?.try_into()?;
        let entry = Host {
            flags: Host::MEMBER,
            active: 0,
            templates: [template; 2],
        };
        hosts.set(2, entry, 0)?;
        let endpoint: std::net::SocketAddr = service.parse()?;
        let key = Service::new(endpoint.ip().into(), Port::new(endpoint.port()), TCP);
        let mut services: HashMap<_, Service, u32> = map(&mut ebpf, "SERVICES")?.try_into()?;
        services.insert(key, 0, 0)?;
        if let Way::Forward = way {
            let mut owners = Owners::open(&tables(&ebpf)?, OWNERS_ENTRIES)?;
            let tuple = Tuple::between(client.parse()?, endpoint, TCP);
            for flow in 0..flows {
                let id = flow_tuple(tuple, flow).id(&settings.session_key);
                owners.set(id, HostId(2))?;
            }
        }
        Ok(Self {
            name,
            ebpf,
            frame,
            samples: Vec::new(),
        })
    }

    fn time(&mut self, program: &str) -> Result<f64> {
        let time = time(&mut self.ebpf, program, &self.frame, verdict::TX);
        time.with_context(|| format!("{} in {program}", self.name))
    }
}

/// The tuple of a flow, as the wrapper writes it into the packet.
fn flow_tuple(mut tuple: Tuple, flow: u32) -> Tuple {
    let mut address = tuple.client.0;
    address[12..].copy_from_slice(&flow.to_le_bytes());
    tuple.client = Address(address);
    tuple
}

/// The tunnel packet from a host to host 1 that carries a packet.
fn outer(settings: &Settings, from: HostId, inner: &Ip) -> Ip {
    let source = settings.tunnel.address_of(from).into();
    let destination = settings.tunnel_address.into();
    let protocol = if inner.source.is_ipv4() { 4 } else { 41 };
    if settings.encapsulation == Encapsulation::Gue as u8 {
        Ip::new(source, destination, 17, udp(50_000, 6080, &inner.bytes()))
    } else {
        Ip::new(source, destination, protocol, inner.bytes())
    }
}

/// A packet of a local session: the product's own program and a real socket.
struct Pass {
    ebpf: Ebpf,
    frame: Vec<u8>,
    _sockets: (TcpListener, TcpStream, TcpStream),
}

impl Pass {
    fn new(tunnel: TunnelNetwork, endpoint: &str) -> Result<Self> {
        let settings = program::settings(tunnel, Encapsulation::Ipip);
        let mut ebpf = EbpfLoader::new()
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("SESSIONS", 1024)
            .load(homing_agent::datapath::OBJECT)?;
        owners::provide(&tables(&ebpf)?)?;
        let listener = TcpListener::bind(endpoint)?;
        let service = listener.local_addr()?;
        let client = TcpStream::connect(service)?;
        let server = listener.accept()?.0;
        let source = client.local_addr()?;
        let frame = Tcp::new(&source.to_string(), &service.to_string(), flags::ACK)
            .payload([0; 6])
            .frame();
        let key = Service::new(service.ip().into(), Port::new(service.port()), TCP);
        let mut services: HashMap<_, Service, u32> = map(&mut ebpf, "SERVICES")?.try_into()?;
        services.insert(key, 0, 0)?;
        let xdp: &mut Xdp = ebpf
            .program_mut("homing_xdp")
            .context("no program homing_xdp")?
            .try_into()?;
        xdp.load()?;
        Ok(Self {
            ebpf,
            frame,
            _sockets: (listener, client, server),
        })
    }

    fn time(&mut self) -> Result<f64> {
        time(&mut self.ebpf, "homing_xdp", &self.frame, verdict::PASS)
    }

    fn info(&self) -> Result<ProgramInfo> {
        let program = self.ebpf.program("homing_xdp").context("no homing_xdp")?;
        Ok(program.info()?)
    }
}
