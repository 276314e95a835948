//! Capturing: packets as they came and as they went, with their outcomes.
//!
//! While somebody captures, the program `homing_capture` has the place of the XDP program on
//! every interface: it decides by the same function, on the same maps, and hands over what
//! is wanted beside that. Programs change places by an update of the pinned links, so no
//! packet passes by in between; and nobody captures at no cost, because then the program is
//! not there.
//!
//! What it costs is bounded: a packet that is not wanted by its ends costs reading its
//! headers, one that is a copy of `snap` bytes and, if its outcome is wanted too and the
//! limit of records is not reached, a second one and a record. What is beyond the limit, or
//! finds the ring full, is counted and not captured; what becomes of the packet does not
//! depend on it. If the agent dies, capturing ends a few seconds later, and the next agent puts
//! the other program back.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use homing_common::{
    capture::{CAPTURE_STATS_ENTRIES, Capture, CaptureCount, Captured, SNAP_MAX},
    net::{Address, Port},
    outcome::Outcome,
};
use tokio::{io::unix::AsyncFd, task::spawn_blocking};

use super::map;
use crate::datapath::{
    CAPTURE_OBJECT, Error,
    clock::monotonic_ns,
    inject::Injector,
    link,
    load::{self, Ground, Own, XDP_PROGRAM, lacks},
    map_io, sys,
};

const PROGRAM: &str = "homing_capture";
const OWN: [&str; 5] = [
    "CAPTURE",
    "CAPTURED",
    "CAPTURE_LIMIT",
    "CAPTURE_STATS",
    "CAPTURE_ROOM",
];

/// Capturing goes on for so long after it was last said that somebody reads.
const LASTS: Duration = Duration::from_secs(5);
/// How often that is said.
const SAYS_EVERY: Duration = Duration::from_secs(1);
/// Packets that are read together at most.
const BATCH: usize = 256;

/// The most records within a window of 134 ms: some 30,000 a second.
pub const RATE: u32 = 4096;

/// Which packets are wanted, and how much of them; what is `None` may be anything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Outcomes; any, if there are none.
    pub outcomes: Vec<Outcome>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The client's port.
    pub client_port: Option<u16>,
    /// The service's address.
    pub service: Option<IpAddr>,
    /// The service's port.
    pub service_port: Option<u16>,
    /// The IP protocol number.
    pub protocol: Option<u8>,
    /// Bytes of each frame at most, `1..=`[`SNAP_MAX`].
    pub snap: u32,
}

/// A packet that was captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// When it came.
    pub at: SystemTime,
    /// The interface that it came by.
    pub ifindex: u32,
    /// The interface that it went by, where that is another; zero otherwise.
    pub out_ifindex: u32,
    /// Its outcome.
    pub outcome: Outcome,
    /// The frame as it came.
    pub came: Snapped,
    /// The frame as it went; none if the program has not changed it.
    pub went: Option<Snapped>,
}

/// The first bytes of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapped {
    /// The bytes that were captured.
    pub bytes: Vec<u8>,
    /// Length of the whole frame.
    pub len: u32,
}

/// What capturing counted since it began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Packets that were wanted.
    pub wanted: u64,
    /// Of these, not captured because there were too many at once.
    pub limited: u64,
    /// Of these, not captured because they were not read in time.
    pub full: u64,
    /// How often an interface was found with the usual program, because it had been replaced
    /// or had come back: for a second at most each time, what came by it was not looked at.
    pub away: u64,
    /// For how long altogether nothing was looked at, because the agent stood still.
    pub blind: Duration,
}

/// Capturing, for as long as this is kept.
pub struct Capturing {
    /// Puts the XDP program back; before the maps of the one that captures go.
    place: Arc<Mutex<Place>>,
    ring: AsyncFd<RingBuf<MapData>>,
    stats: PerCpuArray<MapData, u64>,
    ebpf: Ebpf,
    capture: Capture,
    /// When the interfaces were looked at last.
    looked: Instant,
    away: u64,
    blind: Duration,
}

impl Capturing {
    /// Begins. Takes some tens of milliseconds, most of them for the verifier. In a Tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; then all is as it was.
    pub fn begin(ground: &Ground, injector: Injector, wanted: &Wanted) -> Result<Self, Error> {
        let own: Own = OWN.iter().map(|name| (*name, None)).collect();
        let mut ebpf = ground.instance(CAPTURE_OBJECT, PROGRAM, &own)?;
        let capture = wanted.capture();
        let ring = ebpf.take_map("CAPTURED").ok_or_else(|| lacks("CAPTURED"))?;
        let ring = RingBuf::try_from(ring)
            .map_err(map_io)
            .map_err(Error::map("CAPTURED"))?;
        // SAFETY: the ring owns its file descriptor, keeps it open, and always returns that
        // same one.
        let ring = unsafe { AsyncFd::register(ring) };
        let ring = ring
            .map_err(io::Error::from)
            .map_err(Error::map("CAPTURED"))?;
        let stats = ebpf.take_map("CAPTURE_STATS");
        let stats = PerCpuArray::try_from(stats.ok_or_else(|| lacks("CAPTURE_STATS"))?);
        let stats = stats.map_err(map_io).map_err(Error::map("CAPTURE_STATS"))?;
        let program = load::fd(&ebpf, PROGRAM)?.try_clone_to_owned();
        let program = program.map_err(Error::map("CAPTURED"))?;
        let mut capturing = Self {
            place: Arc::new(Mutex::new(Place::new(ground, injector, program)?)),
            ring,
            stats,
            ebpf,
            capture,
            looked: Instant::now(),
            away: 0,
            blind: Duration::ZERO,
        };
        capturing.go_on().map_err(Error::map("CAPTURE"))?;
        locked(&capturing.place).take()?;
        Ok(capturing)
    }

    /// The packets that have come since, once there are some; none every now and then. Must
    /// be called again within a few seconds, or capturing ends.
    pub async fn next(&mut self) -> io::Result<Vec<Packet>> {
        self.go_on()?;
        if self.looked.elapsed() >= SAYS_EVERY {
            self.looked = Instant::now();
            let place = self.place.clone();
            // The kernel's lock of interfaces may be long to get.
            let away = spawn_blocking(move || locked(&place).look()).await;
            self.away += away.map_err(io::Error::other)?;
        }
        let Ok(readable) = tokio::time::timeout(SAYS_EVERY, self.ring.readable_mut()).await else {
            return Ok(Vec::new());
        };
        let mut guard = readable?;
        let packets = read(guard.get_inner_mut());
        if packets.len() < BATCH {
            guard.clear_ready();
        }
        Ok(packets)
    }

    /// Some of the packets that are left after [`Capturing::stop`]; none once there are none.
    pub fn rest(&mut self) -> Vec<Packet> {
        read(self.ring.get_mut())
    }

    /// What was counted.
    pub fn counts(&self) -> io::Result<Counts> {
        let sum = |what: CaptureCount| {
            let per_cpu = self.stats.get(&(what as u32), 0).map_err(map_io)?;
            Ok::<u64, io::Error>(per_cpu.iter().sum())
        };
        Ok(Counts {
            wanted: sum(CaptureCount::Wanted)?,
            limited: sum(CaptureCount::Limited)?,
            full: sum(CaptureCount::Full)?,
            away: self.away,
            blind: self.blind,
        })
    }

    /// Stops handing over, so that what was can be read to its end.
    pub async fn stop(&mut self) {
        let place = self.place.clone();
        // If this thread ends first, so does the agent.
        let _ = spawn_blocking(move || locked(&place).give_back()).await;
    }

    /// Says that somebody reads.
    fn go_on(&mut self) -> io::Result<()> {
        let (now_ns, until_ns) = (monotonic_ns(), self.capture.until_ns);
        if until_ns != 0 {
            self.blind += Duration::from_nanos(now_ns.saturating_sub(until_ns));
        }
        self.capture.until_ns = now_ns + LASTS.as_nanos() as u64;
        let map = map(&self.ebpf, "CAPTURE").map_err(io::Error::other)?;
        sys::update(map, &0u32, &self.capture, 0)
    }
}

/// Packets, until there are no more or a batch is full.
fn read(ring: &mut RingBuf<MapData>) -> Vec<Packet> {
    let mut packets = Vec::new();
    let (now, now_ns) = (SystemTime::now(), monotonic_ns());
    while packets.len() < BATCH
        && let Some(record) = ring.next()
    {
        // What is not understood is of another build, and there is none: the object is
        // this agent's own.
        packets.extend(Packet::parse(&record, now, now_ns));
    }
    packets
}

impl Wanted {
    fn capture(&self) -> Capture {
        let mut outcomes = [0u64; 4];
        let all: &[Outcome] = match self.outcomes.is_empty() {
            true => Outcome::ALL,
            false => &self.outcomes,
        };
        for outcome in all {
            let index = outcome.index();
            outcomes[(index >> 6) as usize] |= 1 << (index & 63);
        }
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let address = |ip: Option<IpAddr>| ip.map_or(Address([0; 16]), Address::from);
        let port = |port: Option<u16>| Port(port.unwrap_or_default().to_be_bytes());
        Capture {
            client: address(self.client),
            service: address(self.service),
            outcomes,
            until_ns: 0,
            rate: RATE,
            snap: self.snap.clamp(1, SNAP_MAX as u32),
            client_port: port(self.client_port),
            service_port: port(self.service_port),
            flags: flag(self.client.is_some(), Capture::CLIENT)
                | flag(self.client_port.is_some(), Capture::CLIENT_PORT)
                | flag(self.service.is_some(), Capture::SERVICE)
                | flag(self.service_port.is_some(), Capture::SERVICE_PORT)
                | flag(self.protocol.is_some(), Capture::PROTOCOL),
            protocol: self.protocol.unwrap_or_default(),
            zero: [0; 2],
        }
    }
}

impl Packet {
    fn parse(record: &[u8], now: SystemTime, now_ns: u64) -> Option<Self> {
        let (head, bytes) = record.split_at_checked(size_of::<Captured>())?;
        // SAFETY: there are as many bytes, and any bytes are a `Captured`.
        let head: Captured = unsafe { head.as_ptr().cast::<Captured>().read_unaligned() };
        let (came, bytes) = bytes.split_at_checked(head.came as usize)?;
        let went = bytes.get(..head.went as usize)?;
        let snapped = |bytes: &[u8], len| Snapped {
            bytes: bytes.to_vec(),
            len,
        };
        Some(Self {
            at: now - Duration::from_nanos(now_ns.saturating_sub(head.at_ns)),
            ifindex: head.ifindex,
            out_ifindex: head.out_ifindex,
            outcome: Outcome::of_index(head.outcome)?,
            came: snapped(came, head.came_len),
            went: (head.went > 0).then(|| snapped(went, head.went_len)),
        })
    }
}

fn locked(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    // Whoever panicked with it was about to update a link, which is done or not.
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of the XDP program: the links of all interfaces, and what the agent gives back.
struct Place {
    /// The usual program.
    main: OwnedFd,
    /// The one that captures.
    capturing: OwnedFd,
    injector: Injector,
    links: Vec<PathBuf>,
}

impl Place {
    fn new(ground: &Ground, injector: Injector, capturing: OwnedFd) -> Result<Self, Error> {
        let pin = ground.pins.programs().join(XDP_PROGRAM);
        let main = sys::open_pin(&pin).map_err(Error::pin("open the program", &pin))?;
        let interfaces = ground.options.interfaces.iter();
        Ok(Self {
            main,
            capturing,
            injector,
            links: interfaces
                .map(|interface| ground.pins.xdp_link(interface))
                .collect(),
        })
    }

    /// Gives it to the program that captures, on every interface that there is.
    fn take(&self) -> Result<(), Error> {
        for pin in &self.links {
            match update(pin, self.capturing.as_fd()) {
                Err(error) if !is_gone(&error) => {
                    return Err(Error::pin("replace the program of the link", pin)(error));
                }
                _ => {}
            }
        }
        let program = self.capturing.try_clone();
        self.injector
            .run_by(program.map_err(Error::map("CAPTURED"))?);
        Ok(())
    }

    /// Takes it again on interfaces that have been replaced or have come back, and says how
    /// many there were. None once it was given back.
    fn look(&self) -> u64 {
        let Ok((wanted, _)) = sys::id_and_maps_of(self.capturing.as_fd()) else {
            return 0;
        };
        let away = self.links.iter().filter(|pin| {
            link::program_of(pin).is_some_and(|program| program != wanted)
                && update(pin, self.capturing.as_fd()).is_ok()
        });
        away.count() as u64
    }

    /// Gives it back to the usual program.
    fn give_back(&mut self) {
        if let Ok(main) = self.main.try_clone() {
            self.injector.run_by(main);
        }
        for pin in self.links.drain(..) {
            match update(&pin, self.main.as_fd()) {
                Ok(()) => {}
                // Who attaches to it again takes the pinned program, which is the usual one.
                Err(error) if is_gone(&error) => {}
                Err(error) => tracing::error!(
                    pin = %pin.display(), %error,
                    fix = "restart the agent, which puts the usual program back; until then the one that captures decides just as it does",
                    "the program that captured packets keeps its place"
                ),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Whether a link has lost its interface, or was never made.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENOLINK)
}

fn update(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    sys::link_update(sys::open_pin(pin)?.as_fd(), program)
}

const _: () = assert!(CaptureCount::Full as u32 + 1 == CAPTURE_STATS_ENTRIES);
