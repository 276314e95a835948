//! Puts the kernel programs in force: maps, programs, links, in that order, all
//! pinned.
//!
//! What is found pinned is used: maps keep their contents, links their place.
//! Nothing is changed before everything that can be checked has been. A first
//! load that fails half-way takes its links away again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapInfo},
    programs::{ProgramError, SchedClassifier, SockOps, Xdp},
};
use homing_common::settings::Settings;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

pub use crate::config::XdpMode;

use super::{
    Error, OBJECT,
    answer::Answerer,
    control::ControlMap,
    events::Events,
    hosts::Hosts,
    identity::IdentityCell,
    inject::Injector,
    interface,
    kernel_log::KernelLog,
    link::{self, Attached, How, Point},
    owners::Owners,
    parked::ParkedReader,
    pins::{EGRESS_PREFIX, Lock, Pins, XDP_PREFIX},
    rendezvous::RendezvousMap,
    services::Services,
    sessions::Sessions,
    stats::Stats,
    sys,
};

/// What to load, and where to.
#[derive(Clone)]
pub struct LoadOptions {
    /// The instance's folder on a BPF file system.
    pub pin_dir: PathBuf,
    /// The interfaces that packets of the services come in by.
    pub interfaces: Vec<String>,
    /// Where XDP runs on them.
    pub xdp_mode: XdpMode,
    /// The cgroup v2 that the services run under.
    pub cgroup: PathBuf,
    /// What the programs are to know.
    pub settings: Settings,
    /// Foreign sessions that can be known at most.
    pub owners_entries: u32,
    /// Own sessions that can be recorded at most.
    pub sessions_entries: u32,
}

/// The fast path in force, and its maps. Dropping it detaches nothing.
pub struct Datapath {
    /// Who owns foreign sessions.
    pub owners: Owners,
    /// The hosts of the POP.
    pub hosts: Hosts,
    /// The services of the POP.
    pub services: Services,
    /// This host's own sessions.
    pub sessions: Arc<Sessions>,
    /// The counters.
    pub stats: Arc<Stats>,
    /// What happens to this host's own sessions.
    pub events: Events,
    /// Which life this is.
    pub identity: IdentityCell,
    /// What the agent tells the programs while they run.
    pub control: ControlMap,
    /// Where packets go that nobody here may decide on.
    pub rendezvous: RendezvousMap,
    /// Sessions that this host closed lately.
    pub closed: Map,
    /// Packets that the programs cannot decide on.
    pub parked: ParkedReader,
    /// Gives them back.
    pub injector: Injector,
    /// Asks this host's kernel which sessions it knows.
    pub answerer: Answerer,
    /// Where the rest of fragmented datagrams goes.
    pub fragments: Map,
    /// What the programs have to say; none if they have nothing to say it with.
    pub kernel_log: Option<KernelLog>,
    /// What is attached to what, and the right to change it.
    pub attachment: Attachment,
}

/// What is attached, held against any other agent of the instance: keep it as
/// long as any part of the [`Datapath`] is in use.
#[derive(Debug)]
pub struct Attachment {
    /// The programs' places: first the cgroup, then the interfaces.
    pub attached: Vec<Attached>,
    /// Where it is pinned.
    pub pins: Pins,
    _lock: Lock,
}

impl Datapath {
    /// Loads, attaches and pins everything, or replaces what an agent before
    /// left. Blocks; needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let points = points(options)?;
        let pins = Pins::new(&options.pin_dir);
        let lock = pins.create()?;
        let wanted = wanted_maps(options)?;
        check_pinned_maps(&pins, &wanted)?;

        let mut ebpf = load_object(options, &pins, &wanted)?;
        load_programs(&mut ebpf)?;
        for name in [XDP_PROGRAM, EGRESS_PROGRAM, SOCKOPS_PROGRAM] {
            pin_program(&pins, name, program(&ebpf, name)?)?;
        }
        let attached = attach(&pins, &ebpf, points)?;
        remove_old(&pins, &attached, &wanted)?;

        let injector = Injector::new(program(&ebpf, XDP_PROGRAM)?, program(&ebpf, UP_PROGRAM)?)
            .map_err(|error| Error::Load {
                why: error.to_string(),
            })?;
        let ifindex = attached.iter().find_map(|link| match link.to {
            Point::Xdp { ifindex, .. } => Some(ifindex),
            Point::Egress { .. } | Point::Cgroup { .. } => None,
        });
        let answerer = Answerer::new(program(&ebpf, ANSWER_PROGRAM)?, ifindex.unwrap_or_default())
            .map_err(|error| Error::Load {
                why: error.to_string(),
            })?;
        let kernel_log = KernelLog::open(&mut ebpf);
        let mut maps = |name| take_map(&mut ebpf, name);
        let stats = Arc::new(Stats::open(maps("STATS")?).map_err(of_map("STATS"))?);

        let mut sessions = Sessions::open(maps("SESSIONS")?).map_err(of_map("SESSIONS"))?;
        let key = &options.settings.session_key;
        let rekeyed = sessions.rekey(key).map_err(of_map("SESSIONS"))?;
        if rekeyed > 0 {
            tracing::info!(
                sessions = rekeyed,
                "the POP's key is another: sessions got new ids"
            );
        }
        let sessions = Arc::new(sessions);
        Ok(Self {
            owners: Owners::open(maps("OWNERS")?).map_err(of_map("OWNERS"))?,
            hosts: Hosts::open(maps("HOSTS")?).map_err(of_map("HOSTS"))?,
            services: Services::open(maps("SERVICES")?).map_err(of_map("SERVICES"))?,
            events: Events::open(maps("EVENTS")?, sessions.clone(), stats.clone())
                .map_err(of_map("EVENTS"))?,
            kernel_log,
            identity: IdentityCell::open(maps("IDENTITY")?).map_err(of_map("IDENTITY"))?,
            control: ControlMap::open(maps("CONTROL")?).map_err(of_map("CONTROL"))?,
            rendezvous: RendezvousMap::open(maps("RENDEZVOUS")?).map_err(of_map("RENDEZVOUS"))?,
            closed: maps("CLOSED")?,
            parked: ParkedReader::open(maps("ASK")?).map_err(of_map("ASK"))?,
            injector,
            answerer,
            fragments: maps("FRAGMENTS")?,
            sessions,
            stats,
            attachment: Attachment {
                attached,
                pins,
                _lock: lock,
            },
        })
    }
}

const XDP_PROGRAM: &str = "homing_xdp";
const EGRESS_PROGRAM: &str = "homing_egress";
/// Attached to nothing: the agent runs it.
const UP_PROGRAM: &str = "homing_up";
/// Likewise.
const ANSWER_PROGRAM: &str = "homing_answer";
const SOCKOPS_PROGRAM: &str = "homing_sockops";

/// Everything to attach to, examined: the cgroup first, so that no session that
/// XDP lets pass goes unrecorded.
fn points(options: &LoadOptions) -> Result<Vec<Point>, Error> {
    let mut points = vec![cgroup_point(&options.cgroup)?];
    for name in &options.interfaces {
        let found = interface::look_up(name).map_err(|why| Error::NoInterface {
            interface: name.clone(),
            why,
        })?;
        points.push(Point::Xdp {
            interface: found.name.clone(),
            ifindex: found.index,
            mode: options.xdp_mode,
        });
        points.push(Point::Egress {
            interface: found.name,
            ifindex: found.index,
        });
    }
    Ok(points)
}

fn cgroup_point(path: &Path) -> Result<Point, Error> {
    let refused = |why: String| Error::AttachCgroup {
        cgroup: path.to_owned(),
        why: format!("{why}; set `cgroup` to the cgroup v2 that the services run under"),
    };
    let data = fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    let file_system = statfs(path).map_err(|error| refused(error.to_string()))?;
    if file_system.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(refused("it is no cgroup v2".into()));
    }
    Ok(Point::Cgroup {
        path: path.to_owned(),
        // A cgroup's id is the number of its folder's inode.
        id: data.ino(),
    })
}

/// What can be compared of a map without looking into it.
#[derive(PartialEq, Eq, Debug)]
struct Shape {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

impl Shape {
    fn describe(&self, other: &Self) -> String {
        if (self.map_type, self.key_size, self.value_size)
            == (other.map_type, other.key_size, other.value_size)
        {
            return format!("{} entries", self.entries);
        }
        format!(
            "type {}, keys of {} and values of {} bytes",
            self.map_type, self.key_size, self.value_size
        )
    }
}

/// The maps of the object that are pinned, in the sizes that are configured.
fn wanted_maps(options: &LoadOptions) -> Result<BTreeMap<String, Shape>, Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(|error| Error::Load {
        why: error.to_string(),
    })?;
    let maps = object
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.'));
    Ok(maps
        .map(|(name, map)| {
            let entries = match name.as_str() {
                "OWNERS" => options.owners_entries,
                "SESSIONS" => options.sessions_entries,
                _ => map.max_entries(),
            };
            let shape = Shape {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                entries,
            };
            (name.clone(), shape)
        })
        .collect())
}

fn check_pinned_maps(pins: &Pins, wanted: &BTreeMap<String, Shape>) -> Result<(), Error> {
    for (name, wanted) in wanted {
        let pin = pins.maps().join(name);
        if !pin.exists() {
            continue;
        }
        let differs = |found: String| Error::MapDiffers {
            name: name.clone(),
            found,
            wanted: "a map of this version".to_owned(),
        };
        let info = MapInfo::from_pin(&pin).map_err(|error| differs(error.to_string()))?;
        let map_type = info
            .map_type()
            .map_err(|error| differs(error.to_string()))?;
        let found = Shape {
            map_type: map_type as u32,
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: info.max_entries(),
        };
        if found != *wanted {
            return Err(Error::MapDiffers {
                name: name.clone(),
                found: found.describe(wanted),
                wanted: wanted.describe(&found),
            });
        }
    }
    Ok(())
}

fn load_object(
    options: &LoadOptions,
    pins: &Pins,
    wanted: &BTreeMap<String, Shape>,
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for (name, shape) in wanted {
        loader
            .map_pin_path(name, pins.maps().join(name))
            .map_max_entries(name, shape.entries);
    }
    loader
        .override_global("SETTINGS", &options.settings, true)
        .load(OBJECT)
        .map_err(|error| Error::Load { why: why(&error) })
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    let refused = |name: &str, error: ProgramError| Error::Load {
        why: format!("{name}: {}", why_program(&error)),
    };
    for name in [XDP_PROGRAM, UP_PROGRAM, ANSWER_PROGRAM] {
        let xdp: &mut Xdp = program_mut(ebpf, name)?
            .try_into()
            .map_err(|error| refused(name, error))?;
        xdp.load().map_err(|error| refused(name, error))?;
    }
    let egress: &mut SchedClassifier = program_mut(ebpf, EGRESS_PROGRAM)?
        .try_into()
        .map_err(|error| refused(EGRESS_PROGRAM, error))?;
    egress
        .load()
        .map_err(|error| refused(EGRESS_PROGRAM, error))?;
    let sockops: &mut SockOps = program_mut(ebpf, SOCKOPS_PROGRAM)?
        .try_into()
        .map_err(|error| refused(SOCKOPS_PROGRAM, error))?;
    sockops
        .load()
        .map_err(|error| refused(SOCKOPS_PROGRAM, error))
}

fn program_mut<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::Program, Error> {
    ebpf.program_mut(name).ok_or_else(|| lacks(name))
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).ok_or_else(|| lacks(name))?;
    let fd = program.fd().map_err(|error| Error::Load {
        why: why_program(&error),
    })?;
    Ok(fd.as_fd())
}

fn lacks(name: &str) -> Error {
    Error::Load {
        why: format!("the object has no {name}"),
    }
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| lacks(name))
}

/// Pins a program in the place of the one that was pinned there before.
fn pin_program(pins: &Pins, name: &str, program: BorrowedFd<'_>) -> Result<(), Error> {
    let pin = pins.programs().join(name);
    let new = pins.programs().join(format!("{name}-new"));
    // Left behind by an agent that was killed here.
    if new.exists() {
        fs::remove_file(&new).map_err(Error::pin("remove", &new))?;
    }
    sys::pin(program, &new).map_err(Error::pin("pin the program", &new))?;
    fs::rename(&new, &pin).map_err(Error::pin("rename to", &pin))
}

fn attach(pins: &Pins, ebpf: &Ebpf, points: Vec<Point>) -> Result<Vec<Attached>, Error> {
    let mut attached: Vec<Attached> = Vec::new();
    for point in points {
        let (pin, program) = match &point {
            Point::Cgroup { .. } => (pins.sockops_link(), program(ebpf, SOCKOPS_PROGRAM)?),
            Point::Xdp { interface, .. } => (pins.xdp_link(interface), program(ebpf, XDP_PROGRAM)?),
            Point::Egress { interface, .. } => {
                (pins.egress_link(interface), program(ebpf, EGRESS_PROGRAM)?)
            }
        };
        match link::ensure(&pin, point, program) {
            Ok(link) => {
                tracing::info!(to = ?link.to, link = link.link_id, how = ?link.how, "attached");
                attached.push(link);
            }
            // The fast path forwards without it.
            Err(error @ Error::NoEgress { .. }) => tracing::warn!(
                %error,
                "the MSS of new connections is not lowered to what fits into the tunnel, and \
                 answers of UDP services are not seen"
            ),
            Err(error) => {
                let new = attached.iter().filter(|link| link.how == How::New);
                for link in new {
                    // What matters is why attaching failed.
                    let _ = link::remove(&pin_of(pins, &link.to));
                }
                return Err(error);
            }
        }
    }
    Ok(attached)
}

fn pin_of(pins: &Pins, point: &Point) -> PathBuf {
    match point {
        Point::Cgroup { .. } => pins.sockops_link(),
        Point::Xdp { interface, .. } => pins.xdp_link(interface),
        Point::Egress { interface, .. } => pins.egress_link(interface),
    }
}

/// Removes links of interfaces that are no longer configured, and maps that no
/// program uses any more.
fn remove_old(
    pins: &Pins,
    attached: &[Attached],
    wanted: &BTreeMap<String, Shape>,
) -> Result<(), Error> {
    let current: BTreeSet<_> = attached.iter().map(|link| pin_of(pins, &link.to)).collect();
    for pin in list(&pins.links())? {
        let name = name_of(&pin);
        let of_interface = name.starts_with(XDP_PREFIX) || name.starts_with(EGRESS_PREFIX);
        if of_interface && !current.contains(&pin) {
            tracing::info!(pin = %pin.display(), "detaching from an interface that is not configured");
            link::remove(&pin)?;
        }
    }
    for pin in list(&pins.maps())? {
        if !wanted.contains_key(name_of(&pin)) {
            tracing::info!(pin = %pin.display(), "removing a map that is no longer used");
            fs::remove_file(&pin).map_err(Error::pin("remove", &pin))?;
        }
    }
    Ok(())
}

/// What is pinned in a folder, sorted. Nothing, if there is no such folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::pin("list", folder)(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths
        .collect::<io::Result<Vec<_>>>()
        .map_err(Error::pin("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn name_of(pin: &Path) -> &str {
    pin.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

fn of_map(name: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Map { name, error }
}

/// The reason behind aya's error, with the sources that its text leaves out.
fn why(error: &EbpfError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// The kernel's reason to refuse a program, with the end of the verifier's log,
/// where its complaint stands.
fn why_program(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
            let end = lines[lines.len().saturating_sub(8)..].join("\n");
            match end.is_empty() {
                true => io_error.to_string(),
                false => format!("{io_error}; the verifier's log ends:\n{end}\n"),
            }
        }
        error => error.to_string(),
    }
}
