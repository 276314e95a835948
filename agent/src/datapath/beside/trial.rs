//! What becomes of a packet here: the XDP program is run on it, and nothing comes of that.
//!
//! It is the very program that is in force, with the same settings and on the same maps, but
//! for those that it writes to: of these it has copies, made when the trial begins. So a
//! packet that is tried is not counted, asks nobody, is held nowhere, and uses up no limit,
//! and it ends as it would have ended then. Packets that are tried one after the other meet
//! what those before them have left in the copies, as the fragments of a datagram must.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{Ebpf, maps::MapInfo};
use homing_common::{
    net::UDP,
    outcome::Outcome,
    session::{Session, Tuple},
};

use super::map;
use crate::datapath::{
    Error, OBJECT,
    load::{self, Ground, Own, XDP_PROGRAM, lacks},
    map_io,
    sessions::Sessions,
    stats::{Counts, Stats},
    sys,
};

/// Maps that the XDP program writes to, whose contents it also goes by: they are copied.
const COPIED: [&str; 3] = ["FLOWS", "FRAGMENTS", "LIMITS"];
/// Maps that it only writes to, and those that no program of its object is to share.
const EMPTY: [&str; 5] = ["STATS", "SCRATCH", "ASK", "PARKED", "EVENTS"];
/// Of this one it goes by the entries of UDP alone, and adds to them.
const SESSIONS: &str = "SESSIONS";
/// Entries that a copy of [`SESSIONS`] has room for beside those that are copied.
const ROOM: u32 = 1024;

/// The longest frame that can be tried, bytes: what fits into a page beside the headroom and
/// what the kernel keeps behind a frame.
pub const FRAME_MAX: usize = 3_072;
/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Bytes that the program may put before a frame.
const GROWTH: usize = 256;

/// A trial.
pub struct Trial {
    ebpf: Ebpf,
    stats: Stats,
    counts: Counts,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tried {
    /// The outcome that it ended in.
    pub outcome: Outcome,
    /// The frame as it went.
    pub frame: Vec<u8>,
}

impl Trial {
    /// Begins one. Takes some tens of milliseconds, most of them for the verifier, and
    /// some megabytes until it is dropped.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn begin(ground: &Ground, sessions: &Sessions) -> Result<Self, Error> {
        let mut flows = Vec::new();
        sessions
            .scan(|tuple, session| {
                if tuple.protocol == UDP {
                    flows.push((tuple, session));
                }
            })
            .map_err(Error::map(SESSIONS))?;
        let room = u32::try_from(flows.len()).unwrap_or(u32::MAX);
        let mut own: Own = COPIED
            .iter()
            .chain(&EMPTY)
            .map(|name| (*name, None))
            .collect();
        own.insert(SESSIONS, Some(room.saturating_add(ROOM)));
        let mut ebpf = ground.instance(OBJECT, XDP_PROGRAM, &own)?;
        for name in COPIED {
            let from = ground.pins.maps().join(name);
            copy(&from, map(&ebpf, name)?).map_err(Error::map(name))?;
        }
        for (tuple, session) in &flows {
            sys::update::<Tuple, Session>(map(&ebpf, SESSIONS)?, tuple, session, 0)
                .map_err(Error::map(SESSIONS))?;
        }
        let stats = ebpf.take_map("STATS").ok_or_else(|| lacks("STATS"))?;
        let stats = Stats::open(stats).map_err(Error::map("STATS"))?;
        let counts = stats.read().map_err(Error::map("STATS"))?;
        Ok(Self {
            ebpf,
            stats,
            counts,
        })
    }

    /// Tries a frame, as if it had come by an interface of this thread's network namespace.
    ///
    /// # Errors
    ///
    /// The frame is shorter than an Ethernet header or longer than [`FRAME_MAX`], there is
    /// no such interface, or the program did not end it in one outcome.
    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<Tried> {
        if frame.len() > FRAME_MAX {
            let why = format!(
                "it is longer than the {FRAME_MAX} bytes that can be tried; as a rule it was \
                 joined of several behind XDP: capture with `ethtool -K INTERFACE gro off`, or on \
                 the way"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if frame.len() < ETHERNET_LEN {
            let why = "it is shorter than an Ethernet header, which no driver hands on";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let program = load::fd(&self.ebpf, XDP_PROGRAM).map_err(io::Error::other)?;
        let mut out = vec![0; frame.len() + GROWTH];
        let len = sys::run(program, ifindex, frame, &mut out)?;
        out.truncate(len);
        let counts = self.stats.read()?;
        let before = std::mem::replace(&mut self.counts, counts);
        let counted =
            |outcome: &&Outcome| self.counts.outcome(**outcome) != before.outcome(**outcome);
        let mut outcomes = Outcome::ALL.iter().filter(counted);
        match (outcomes.next(), outcomes.next()) {
            (Some(outcome), None) => Ok(Tried {
                outcome: *outcome,
                frame: out,
            }),
            _ => Err(io::Error::other("the program has not counted one outcome")),
        }
    }
}

/// Copies the entries of the map pinned at `from` that are not zero.
fn copy(from: &Path, to: BorrowedFd<'_>) -> io::Result<()> {
    let info = MapInfo::from_pin(from).map_err(map_io)?;
    let (key_size, value_size) = (info.key_size() as usize, info.value_size() as usize);
    let mut failure = Ok(());
    sys::scan_bytes(
        sys::open_pin(from)?.as_fd(),
        key_size,
        value_size,
        |key, value| {
            if failure.is_ok() && value.iter().any(|byte| *byte != 0) {
                failure = sys::update_bytes(to, key, value, 0);
            }
        },
    )?;
    failure
}
