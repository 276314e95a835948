//! Puts the kernel programs in force: maps, programs, links, in that order, all
//! pinned.
//!
//! What is found pinned is used: maps keep their contents, links their place. Maps of
//! another build or another size give way to new ones that take over their entries
//! ([`steps`]). Nothing is changed before everything that can be checked has been. A
//! first load that fails half-way takes its links away again.

mod attach;
mod btf;
mod fill;
mod instance;
mod layout;
mod programs;
pub mod steps;
mod wanted;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, maps::Map};
use homing_common::settings::Settings;

pub use crate::config::XdpMode;

use super::{
    Error, OBJECT,
    answer::Answerer,
    control::ControlMap,
    events::Events,
    hosts::Hosts,
    identity::IdentityCell,
    inject::Injector,
    kernel_log::KernelLog,
    link::Attached,
    members::MembersMap,
    moving::{MovingMap, park::Park},
    owners::{self, Owners},
    parked::ParkedReader,
    pins::{Lock, Pins},
    rendezvous::RendezvousMap,
    services::Services,
    sessions::Sessions,
    stats::Stats,
};
pub(crate) use attach::cgroup;
pub(super) use attach::pin_of;
pub use instance::Ground;
pub(super) use instance::Own;
use programs::{ANSWER_PROGRAM, UP_PROGRAM};
pub(super) use programs::{EGRESS_PROGRAM, XDP_PROGRAM, fd, lacks};
use steps::{Load, Loaded};

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
    /// The members that an agent before this one knew.
    pub members: MembersMap,
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
    /// Sessions that are moving.
    pub moving: Arc<MovingMap>,
    /// Packets of those that are moving here.
    pub park: Park,
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
    /// The programs' places: first those of the cgroup, then the interfaces.
    pub attached: Vec<Attached>,
    /// Where it is pinned.
    pub pins: Pins,
    _lock: Lock,
}

impl Datapath {
    /// Loads, attaches and pins everything, or replaces what an agent before
    /// left. Blocks; needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let Loaded {
            mut ebpf,
            attached,
            pins,
            lock,
        } = Load::begin(options, OBJECT)?.finish()?;
        let injector =
            Injector::new(fd(&ebpf, XDP_PROGRAM)?, fd(&ebpf, UP_PROGRAM)?).map_err(|error| {
                Error::Load {
                    why: error.to_string(),
                }
            })?;
        let interface = options.interfaces.first().map_or("lo", String::as_str);
        let answerer =
            Answerer::new(fd(&ebpf, ANSWER_PROGRAM)?, interface).map_err(|error| Error::Load {
                why: error.to_string(),
            })?;
        let kernel_log = KernelLog::open(&mut ebpf);
        let mut maps = |name| take_map(&mut ebpf, name);
        let (outer, header) = (&maps("OWNERS")?, &maps("OWNERS_HEADER")?);
        let folder = pins.tables();
        let tables = owners::Maps::new(outer, header).pinned_in(&folder);
        let owners = Owners::open(&tables, options.owners_entries);
        let mut owners = owners.map_err(Error::map("OWNERS"))?;
        let hosts = Hosts::open(maps("HOSTS")?).map_err(Error::map("HOSTS"))?;
        finish_voiding(&mut owners, &hosts).map_err(Error::map("HOSTS"))?;
        let stats = Arc::new(Stats::open(maps("STATS")?).map_err(Error::map("STATS"))?);

        let mut sessions = Sessions::open(maps("SESSIONS")?).map_err(Error::map("SESSIONS"))?;
        let key = &options.settings.session_key;
        let rekeyed = sessions.rekey(key).map_err(Error::map("SESSIONS"))?;
        if rekeyed > 0 {
            tracing::info!(
                sessions = rekeyed,
                "the POP's key is another: sessions got new ids"
            );
        }
        let sessions = Arc::new(sessions);
        let control = ControlMap::open(maps("CONTROL")?).map_err(Error::map("CONTROL"))?;
        let moving = MovingMap::open(maps("MOVING")?, control.clone());
        let moving = Arc::new(moving.map_err(Error::map("MOVING"))?);
        let park = Park::open(
            maps("PARKED")?,
            moving.clone(),
            sessions.clone(),
            injector.clone(),
        );
        Ok(Self {
            owners,
            hosts,
            services: Services::open(maps("SERVICES")?).map_err(Error::map("SERVICES"))?,
            events: Events::open(maps("EVENTS")?, sessions.clone(), stats.clone())
                .map_err(Error::map("EVENTS"))?,
            kernel_log,
            identity: IdentityCell::open(maps("IDENTITY")?).map_err(Error::map("IDENTITY"))?,
            members: MembersMap::open(maps("MEMBERS")?).map_err(Error::map("MEMBERS"))?,
            control,
            rendezvous: RendezvousMap::open(maps("RENDEZVOUS")?)
                .map_err(Error::map("RENDEZVOUS"))?,
            closed: maps("CLOSED")?,
            parked: ParkedReader::open(maps("ASK")?).map_err(Error::map("ASK"))?,
            injector,
            moving,
            park: park.map_err(Error::map("PARKED"))?,
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

/// Removes the entries of hosts that an agent before this one found void, where it was
/// killed before it had.
fn finish_voiding(owners: &mut Owners, hosts: &Hosts) -> io::Result<()> {
    let voids = hosts.voids();
    for host in hosts.void() {
        let (entries, result) = voids.sweep(host, || owners.void(host));
        result?;
        tracing::info!(
            host = host.0,
            entries,
            "a host's entries are removed, as the agent before had begun"
        );
    }
    Ok(())
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| lacks(name))
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
