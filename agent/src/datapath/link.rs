//! Links: what keeps a program attached while nobody holds it, and lets it be
//! replaced in place.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    Error, XdpMode,
    interface::{self, Interface},
    sys::{self, LinkInfo, Target},
};

/// An attached program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// To what.
    pub to: Point,
    /// The kernel's id of the link.
    pub link_id: u32,
    /// How it came about.
    pub how: How,
}

/// What a program is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Point {
    /// To an interface's XDP hook.
    Xdp {
        /// The interface's name.
        interface: String,
        /// Its index.
        ifindex: u32,
        /// In the driver or in the stack.
        mode: XdpMode,
    },
    /// To what leaves by an interface (tcx).
    Egress {
        /// The interface's name.
        interface: String,
        /// Its index.
        ifindex: u32,
    },
    /// To the sockets of a cgroup.
    Cgroup {
        /// The cgroup's folder.
        path: PathBuf,
        /// Its id.
        id: u64,
    },
    /// To what the sockets of a cgroup send.
    CgroupEgress {
        /// The cgroup's folder.
        path: PathBuf,
        /// Its id.
        id: u64,
    },
}

/// How a program came to be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Nothing was there: a new link.
    New,
    /// In the place of an older program, on the same link.
    Replaced,
    /// By a new link instead of one that led elsewhere.
    Moved,
}

/// Attaches `program` to `point` by the link pinned at `pin`, whatever is there.
pub(super) fn ensure(pin: &Path, point: Point, program: BorrowedFd<'_>) -> Result<Attached, Error> {
    let mut how = How::New;
    if let Some(link) = open(pin)? {
        match check(&link, &point) {
            Ok(link_id) => {
                sys::link_update(link.as_fd(), program)
                    .map_err(Error::pin("replace the program of the link", pin))?;
                return Ok(Attached {
                    to: point,
                    link_id,
                    how: How::Replaced,
                });
            }
            Err(why) => {
                tracing::warn!(
                    pin = %pin.display(), reason = %why,
                    fix = "nothing: the program is attached anew; packets that come meanwhile are not forwarded",
                    "a pinned link does not fit any more"
                );
                remove(pin)?;
                how = How::Moved;
            }
        }
    }
    let link = create(&point, program)?;
    sys::pin(link.as_fd(), pin).map_err(Error::pin("pin the link", pin))?;
    let link_id = info(&link, pin)?.id;
    Ok(Attached {
        to: point,
        link_id,
        how,
    })
}

/// Whether the link at `pin` is still what was attached.
pub(super) fn holds(pin: &Path, attached: &Attached) -> bool {
    let link = open(pin).ok().flatten();
    link.is_some_and(|link| check(&link, &attached.to) == Ok(attached.link_id))
}

/// The id of the program that the link at `pin` runs; none without such a link.
pub(crate) fn program_of(pin: &Path) -> Option<u32> {
    let link = open(pin).ok().flatten()?;
    Some(info(&link, pin).ok()?.program_id)
}

/// Detaches and unpins the link at `pin`.
pub(super) fn remove(pin: &Path) -> Result<(), Error> {
    if let Some(link) = open(pin)? {
        // Detached by hand, because the kernel drops what was pinned only some
        // time after the file is gone. A link that has lost its interface or its
        // cgroup is detached already, and says so in one of two ways.
        match sys::link_detach(link.as_fd()) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::EINVAL)) => {
                return Err(Error::pin("detach the link", pin)(error));
            }
            _ => {}
        }
    }
    fs::remove_file(pin).map_err(Error::pin("remove", pin))
}

fn open(pin: &Path) -> Result<Option<OwnedFd>, Error> {
    match sys::open_pin(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::pin("open the link", pin)(error)),
    }
}

fn info(link: &OwnedFd, pin: &Path) -> Result<LinkInfo, Error> {
    sys::link_info(link.as_fd()).map_err(Error::pin("examine the link", pin))
}

/// The id of an existing link, if that link leads to `point`. Otherwise says why
/// not.
fn check(link: &OwnedFd, point: &Point) -> Result<u32, String> {
    let info = sys::link_info(link.as_fd()).map_err(|error| error.to_string())?;
    match (info.target, point) {
        (Target::Interface(0) | Target::Egress(0) | Target::Cgroup(0), _) => {
            return Err("what it was attached to has gone".into());
        }
        (
            Target::Interface(index),
            Point::Xdp {
                interface,
                ifindex,
                mode,
            },
        ) => {
            if index != *ifindex {
                return Err(format!(
                    "it is attached to interface {index}, but {interface} is interface {ifindex}"
                ));
            }
            // Interfaces of different network namespaces can have one index; the
            // program that the interface runs tells them apart.
            let running = interface::look_up(interface)
                .map_err(|error| error.to_string())?
                .xdp;
            match running {
                Some(running) if running.program_id == info.program_id => {
                    if running.mode != Some(*mode) {
                        return Err(format!("{interface} is to run it in another mode"));
                    }
                }
                _ => return Err(format!("{interface} does not run its program")),
            }
        }
        (Target::Egress(index), Point::Egress { interface, ifindex }) => {
            if index != *ifindex {
                return Err(format!(
                    "it is attached to interface {index}, but {interface} is interface {ifindex}"
                ));
            }
            // As above: the interface tells which links it has.
            let links = sys::egress_links(index).map_err(|error| error.to_string())?;
            if !links.contains(&info.id) {
                return Err(format!("it is not among the links of {interface}"));
            }
        }
        (Target::Cgroup(found), Point::Cgroup { id, path } | Point::CgroupEgress { id, path }) => {
            if found != *id {
                return Err(format!(
                    "it is attached to cgroup {found}, but {} is cgroup {id}",
                    path.display()
                ));
            }
        }
        _ => return Err("it is a link of another kind".into()),
    }
    Ok(info.id)
}

fn create(point: &Point, program: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    match point {
        Point::Xdp {
            interface,
            ifindex,
            mode,
        } => {
            let flags = match mode {
                XdpMode::Native => XDP_FLAGS_DRV_MODE,
                XdpMode::Skb => XDP_FLAGS_SKB_MODE,
            };
            sys::link_xdp(program, *ifindex, flags).map_err(|error| Error::AttachXdp {
                interface: interface.clone(),
                why: explain_xdp(&error, interface, *mode),
            })
        }
        Point::Egress { interface, ifindex } => {
            sys::link_egress(program, *ifindex).map_err(|error| match error.raw_os_error() {
                // An attach type that the kernel has never heard of.
                Some(libc::EINVAL) => Error::NoEgress {
                    interface: interface.clone(),
                },
                _ => Error::AttachEgress {
                    interface: interface.clone(),
                    why: error,
                },
            })
        }
        Point::Cgroup { path, .. } | Point::CgroupEgress { path, .. } => {
            let refused = |error: io::Error| Error::AttachCgroup {
                cgroup: path.clone(),
                why: explain_cgroup(&error),
            };
            let cgroup = fs::File::open(path).map_err(refused)?;
            let link = match point {
                Point::Cgroup { .. } => sys::link_sockops,
                _ => sys::link_cgroup_egress,
            };
            link(program, cgroup.as_fd()).map_err(refused)
        }
    }
}

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

fn explain_xdp(error: &io::Error, name: &str, mode: XdpMode) -> String {
    let interface = interface::look_up(name);
    let running = match &interface {
        Ok(Interface { xdp: Some(xdp), .. }) => Some(xdp.program_id),
        _ => None,
    };
    match (error.raw_os_error(), running) {
        (Some(libc::EBUSY | libc::EEXIST), Some(id)) => format!(
            "it runs another XDP program (id {id}); remove that one (`bpftool net`, `ip link set \
             dev {name} xdp off`) or use another interface"
        ),
        (Some(libc::EOPNOTSUPP), _) if mode == XdpMode::Native => "its driver has no native XDP; \
             set `xdp_mode = \"skb\"` or use another interface"
            .into(),
        (Some(libc::EINVAL | libc::ERANGE), _) if mode == XdpMode::Native => format!(
            "its driver refuses ({error}); often its MTU{} is too large for XDP or large receive \
             offload is on: change that, or set `xdp_mode = \"skb\"`",
            interface.map_or(String::new(), |interface| format!(" of {}", interface.mtu))
        ),
        (Some(libc::EPERM), _) => {
            format!("{error}; the agent needs CAP_BPF and CAP_NET_ADMIN, or root")
        }
        _ => error.to_string(),
    }
}

fn explain_cgroup(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "it does not exist; set `cgroup` to the cgroup v2 that the services run under".into()
        }
        Some(libc::EBADF) => {
            "it is no cgroup v2; `mount -t cgroup2` shows where one is mounted".into()
        }
        Some(libc::EPERM) => format!(
            "{error}; either the agent lacks CAP_BPF and CAP_NET_ADMIN, or a program of another \
             owner claims this cgroup for itself (`bpftool cgroup tree`)"
        ),
        _ => error.to_string(),
    }
}
