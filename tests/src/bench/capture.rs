//! What capturing costs the packets that come meanwhile.
//!
//! One packet, a SYN that goes up to the local stack, through the usual program and through
//! the one that captures: where the packet is not wanted by its ends, where it is but not by
//! its outcome, where it is captured, and where the limit of records is reached.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, RingBuf},
    programs::Xdp,
};
use homing_agent::datapath::{CAPTURE_OBJECT, OBJECT, owners};
use homing_common::{
    capture::{Capture, SNAP_MAX},
    host::Encapsulation,
    net::{Address, Port, Service, TCP},
};
use serde_json::{Value, json};

use super::measure::{REPEAT, ROUNDS, map, median, min, round, time, verdict};
use crate::{
    packet::{Tcp, flags},
    program::{self, in_namespace, tables},
};

const CLIENT: &str = "198.18.0.1:40000";
const SERVICE: &str = "203.0.113.10:443";
/// Bytes of payload of a short and a long packet.
const PAYLOADS: [(&str, usize); 2] = [("short", 6), ("long", 1_400)];
/// No limit.
const ALL: u32 = u32::MAX;

/// What is captured, in a case.
type Wanted = fn() -> Capture;

/// The cases beside the usual program.
const CASES: [(&str, Wanted); 4] = [
    ("other_ends", || Capture {
        client: Address::v4([192, 0, 2, 1]),
        flags: Capture::CLIENT,
        ..everything(ALL)
    }),
    ("other_outcome", || Capture {
        outcomes: [0; 4],
        ..everything(ALL)
    }),
    ("captured", || everything(ALL)),
    ("beyond_limit", || everything(1)),
];

fn everything(rate: u32) -> Capture {
    Capture {
        client: Address([0; 16]),
        service: Address([0; 16]),
        outcomes: [u64::MAX; 4],
        until_ns: u64::MAX,
        rate,
        snap: SNAP_MAX as u32,
        client_port: Port([0; 2]),
        service_port: Port([0; 2]),
        flags: 0,
        protocol: 0,
        zero: [0; 2],
    }
}

/// What was measured: by name, the least and the median, nanoseconds per packet.
pub struct Report(Vec<(String, f64, f64)>);

impl Report {
    /// One field per minimum, one with `_median` behind it per median, and the ratio of each
    /// minimum to the usual program's.
    pub fn json(&self) -> Value {
        let mut json = json!({"rounds": ROUNDS, "runs_per_round": REPEAT});
        for (name, min, median) in &self.0 {
            json[format!("{name}_ns")] = round(*min).into();
            json[format!("{name}_ns_median")] = round(*median).into();
            json[format!("{name}_ratio")] = round(min / self.usual(name)).into();
        }
        json
    }

    /// For a person to read.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<22}{:>9}{:>9}{:>16}\n",
            "ns per packet", "minimum", "median", "of the usual"
        );
        for (name, min, median) in &self.0 {
            let ratio = min / self.usual(name);
            table += &format!("{name:<22}{min:>9.1}{median:>9.1}{ratio:>16.2}\n");
        }
        table + &format!("{ROUNDS} rounds of {REPEAT} runs\n")
    }

    /// The usual program's minimum for a packet of the same length.
    fn usual(&self, name: &str) -> f64 {
        let length = name.split('_').next().unwrap_or_default();
        let usual = format!("{length}_usual");
        let found = self.0.iter().find(|(name, ..)| *name == usual);
        found.map_or(f64::NAN, |(_, min, _)| *min)
    }
}

/// A program and a packet.
struct Case {
    name: String,
    ebpf: Ebpf,
    program: &'static str,
    frame: Vec<u8>,
    samples: Vec<f64>,
}

/// Runs the benchmark.
pub fn run(progress: &mut (dyn FnMut(&str) + Send)) -> Result<Report> {
    in_namespace(|| measure(progress))
}

fn measure(progress: &mut dyn FnMut(&str)) -> Result<Report> {
    progress("loading");
    let mut cases = Vec::new();
    for (length, payload) in PAYLOADS {
        let segment = Tcp::new(CLIENT, SERVICE, flags::SYN).payload(vec![0; payload]);
        let frame = segment.frame();
        cases.push(Case::new(format!("{length}_usual"), None, &frame)?);
        for (name, capture) in CASES {
            let name = format!("{length}_{name}");
            cases.push(Case::new(name, Some(capture()), &frame)?);
        }
    }
    for round in 1..=ROUNDS {
        progress(&format!("round {round} of {ROUNDS}"));
        for case in &mut cases {
            case.sample()?;
        }
    }
    let figures = cases.into_iter().map(|case| {
        let (min, median) = (min(&case.samples), median(&case.samples));
        (case.name, min, median)
    });
    Ok(Report(figures.collect()))
}

impl Case {
    fn new(name: String, capture: Option<Capture>, frame: &[u8]) -> Result<Self> {
        let (object, program) = match capture {
            None => (OBJECT, "homing_xdp"),
            Some(_) => (CAPTURE_OBJECT, "homing_capture"),
        };
        let settings = program::settings(program::tunnel_v4(), Encapsulation::Ipip);
        let mut ebpf = EbpfLoader::new()
            .override_global("SETTINGS", &settings, true)
            .map_max_entries("SESSIONS", 1024)
            .load(object)?;
        owners::provide(&tables(&ebpf)?)?;
        let service: std::net::SocketAddr = SERVICE.parse()?;
        let service = Service::new(service.ip().into(), Port::new(service.port()), TCP);
        let mut services: HashMap<_, Service, u32> = map(&mut ebpf, "SERVICES")?.try_into()?;
        services.insert(service, 0, 0)?;
        if let Some(capture) = capture {
            let mut wanted: Array<_, Capture> = map(&mut ebpf, "CAPTURE")?.try_into()?;
            wanted.set(0, capture, 0)?;
        }
        let xdp: &mut Xdp = ebpf
            .program_mut(program)
            .context("no program")?
            .try_into()?;
        xdp.load()?;
        Ok(Self {
            name,
            ebpf,
            program,
            frame: frame.to_vec(),
            samples: Vec::new(),
        })
    }

    fn sample(&mut self) -> Result<()> {
        let time = time(&mut self.ebpf, self.program, &self.frame, verdict::PASS);
        self.samples.push(time.with_context(|| self.name.clone())?);
        if self.program == "homing_capture" {
            // So that the next round finds room.
            let mut ring = RingBuf::try_from(map(&mut self.ebpf, "CAPTURED")?)?;
            while ring.next().is_some() {}
        }
        Ok(())
    }
}
