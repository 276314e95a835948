//! The places that programs are attached to.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{
    LoadOptions, list,
    programs::{self, EGRESS_PROGRAM, SILENCE_PROGRAM, SOCKOPS_PROGRAM, XDP_PROGRAM},
};
use crate::datapath::{
    Error, interface,
    link::{self, Attached, Point},
    pins::{EGRESS_PREFIX, Pins, XDP_PREFIX},
};

/// Everything to attach to, examined: the cgroup first, so that no session that
/// XDP lets pass goes unrecorded.
pub(super) fn points(options: &LoadOptions) -> Result<Vec<Point>, Error> {
    let (path, id) = cgroup(&options.cgroup)?;
    let mut points = vec![
        Point::Cgroup {
            path: path.clone(),
            id,
        },
        Point::CgroupEgress { path, id },
    ];
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

/// A cgroup's folder and id.
pub(crate) fn cgroup(path: &Path) -> Result<(PathBuf, u64), Error> {
    let refused = |why: String| Error::AttachCgroup {
        cgroup: path.to_owned(),
        why: format!("{why}; set `cgroup` to the cgroup v2 that the services run under"),
    };
    let data = fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    let file_system = statfs(path).map_err(|error| refused(error.to_string()))?;
    if file_system.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(refused("it is no cgroup v2".into()));
    }
    // A cgroup's id is the number of its folder's inode.
    Ok((path.to_owned(), data.ino()))
}

/// Attaches what belongs to `point`, in the place of what is attached there. `None`:
/// it is not attached, and the fast path can do without.
pub(super) fn attach(pins: &Pins, ebpf: &Ebpf, point: Point) -> Result<Option<Attached>, Error> {
    let program = match &point {
        Point::Cgroup { .. } => SOCKOPS_PROGRAM,
        Point::CgroupEgress { .. } => SILENCE_PROGRAM,
        Point::Xdp { .. } => XDP_PROGRAM,
        Point::Egress { .. } => EGRESS_PROGRAM,
    };
    let pin = pin_of(pins, &point);
    match link::ensure(&pin, point, programs::fd(ebpf, program)?) {
        Ok(link) => {
            tracing::info!(to = ?link.to, link = link.link_id, how = ?link.how, "attached");
            Ok(Some(link))
        }
        Err(error @ Error::NoEgress { .. }) => {
            tracing::warn!(
                %error,
                fix = "give the fabric an MTU with room for the outer header, or run Linux 6.6 or later",
                "the MSS of new connections is not lowered to what fits into the tunnel, and answers of UDP services are not seen"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Where the link to a point is pinned.
pub(in crate::datapath) fn pin_of(pins: &Pins, point: &Point) -> PathBuf {
    match point {
        Point::Cgroup { .. } => pins.sockops_link(),
        Point::CgroupEgress { .. } => pins.silence_link(),
        Point::Xdp { interface, .. } => pins.xdp_link(interface),
        Point::Egress { interface, .. } => pins.egress_link(interface),
    }
}

/// Removes links of interfaces that are no longer configured, and maps that are
/// not wanted any more.
pub(super) fn remove_old(
    pins: &Pins,
    attached: &[Attached],
    is_wanted: impl Fn(&str) -> bool,
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
        if !is_wanted(name_of(&pin)) {
            tracing::info!(pin = %pin.display(), "removing a map that is no longer used");
            fs::remove_file(&pin).map_err(Error::pin("remove", &pin))?;
        }
    }
    Ok(())
}

pub(super) fn name_of(pin: &Path) -> &str {
    pin.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
