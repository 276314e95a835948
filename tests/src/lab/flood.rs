//! A flood: packets of sessions that nobody has, each of another client, made in the
//! kernel, because a program that sends them one by one is slower than what it is to
//! test.
//!
//! They are made on the router and leave by its port towards one host. An XDP program
//! of a few instructions gives each a source address and a port by chance, and leaves
//! all checksums right: where a word of a header becomes `r`, another that the same
//! checksums cover becomes `!r`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Lab, Node,
    node::in_namespace,
    xdp::{Instruction, Program, instruction, verdict},
};
use crate::{
    packet::{Tcp, ethernet, flags},
    raw::index_of,
};

/// The first two bytes of all sources: of the networks for tests (RFC 2544).
const SOURCES: [u8; 2] = [198, 18];
/// How much is sent at once at the most, so that a flood that was held up does not make
/// up for it in one burst.
const AT_ONCE: u64 = 5_000;
/// How long to wait until there is something to send.
const TICK: Duration = Duration::from_millis(2);

/// The bytes from the start of a frame to words of its headers.
mod at {
    pub const IP_ID: i16 = 14 + 4;
    pub const SOURCE_LOW: i16 = 14 + 14;
    pub const PORT: i16 = 34;
    pub const ACK_HIGH: i16 = 34 + 8;
    pub const ACK_LOW: i16 = 34 + 10;
    pub const END: i32 = 34 + 20;
}

/// The program; `r6` is the frame, `r0` what chance gives.
#[rustfmt::skip]
const INSTRUCTIONS: [Instruction; 21] = [
    // r6 = data; r2 = r6 + END; if r2 > data_end, drop
    instruction(0x61, 6, 1, 0, 0),
    instruction(0x61, 3, 1, 4, 0),
    instruction(0xbf, 2, 6, 0, 0),
    instruction(0x07, 2, 0, 0, at::END),
    instruction(0x2d, 2, 3, 14, 0),
    // r0 = bpf_get_prandom_u32()
    instruction(0x85, 0, 0, 0, 7),
    // r1 = r0: the source's low word; ^ 0xffff: IP's id, and half of TCP's ack
    instruction(0xbf, 1, 0, 0, 0),
    instruction(0x6b, 6, 1, at::SOURCE_LOW, 0),
    instruction(0xa7, 1, 0, 0, 0xffff),
    instruction(0x6b, 6, 1, at::IP_ID, 0),
    instruction(0x6b, 6, 1, at::ACK_HIGH, 0),
    // r1 = r0 >> 16 | 4: the port, never 0; ^ 0xffff: the other half
    instruction(0xbf, 1, 0, 0, 0),
    instruction(0x77, 1, 0, 0, 16),
    instruction(0x47, 1, 0, 0, 4),
    instruction(0x6b, 6, 1, at::PORT, 0),
    instruction(0xa7, 1, 0, 0, 0xffff),
    instruction(0x6b, 6, 1, at::ACK_LOW, 0),
    instruction(0xb7, 0, 0, 0, verdict::TX),
    instruction(0x95, 0, 0, 0, 0),
    instruction(0xb7, 0, 0, 0, verdict::DROP),
    instruction(0x95, 0, 0, 0, 0),
];

/// A flood towards one host; it ends when this is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Sent>>>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// In how long.
    pub time: Duration,
}

impl Sent {
    /// Packets in a second.
    pub fn per_second(&self) -> f64 {
        self.packets as f64 / self.time.as_secs_f64()
    }
}

impl Flood {
    /// Starts one of so many packets a second, each an ACK to `service` (IPv4) with so
    /// many bytes of payload.
    pub fn start(
        lab: &Lab,
        host: u16,
        service: SocketAddr,
        per_second: u64,
        payload: usize,
    ) -> Result<Self> {
        ensure!(service.is_ipv4(), "{service} is not IPv4");
        let frame = frame(&lab.plan().host_mac(host), service, payload)?;
        let namespace = lab.namespace(Node::Router);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let program = Program::load("lab_flood", &INSTRUCTIONS).context("cannot load the flood")?;
        let thread = std::thread::spawn(move || {
            in_namespace(&namespace, || {
                let ifindex = index_of(&format!("h{host}"))?;
                Ok(send(&program, ifindex, &frame, per_second, &stopped)?)
            })
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Sent> {
        self.stop.store(true, Relaxed);
        let thread = self.thread.take().context("it has been ended")?;
        thread.join().expect("no panic")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The frame that all are made of: its words that change are 0, or `!0`.
fn frame(mac: &str, service: SocketAddr, payload: usize) -> Result<Vec<u8>> {
    let [a, b] = SOURCES;
    let mut segment = Tcp::new(&format!("{a}.{b}.0.0:0"), &service.to_string(), flags::ACK)
        .payload(vec![7; payload]);
    segment.ack = u32::MAX;
    let mut packet = segment.ip();
    packet.id = u16::MAX;
    let mut to = [0; 6];
    for (byte, text) in to.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let from = [2, 0, 0, 0, 0, 0xfe];
    Ok(ethernet(to, from, &[], true, &packet.bytes()))
}

fn send(
    program: &Program,
    ifindex: u32,
    frame: &[u8],
    per_second: u64,
    stop: &AtomicBool,
) -> io::Result<Sent> {
    let start = Instant::now();
    let mut packets = 0;
    while !stop.load(Relaxed) {
        let due = start.elapsed().as_micros() as u64 * per_second / 1_000_000 - packets;
        if due == 0 {
            std::thread::sleep(TICK);
            continue;
        }
        let count = due.min(AT_ONCE);
        program.run_live(ifindex, frame, count as u32)?;
        packets += count;
    }
    Ok(Sent {
        packets,
        time: start.elapsed(),
    })
}
