//! Keeps the programs attached to interfaces that vanish and come back: a driver
//! that is loaded anew, a bond or a bridge that is rebuilt, an SR-IOV function that
//! is moved. What comes back under the same name is another interface to the
//! kernel, with no programs.
//!
//! From the moment that such an interface is up until the programs are attached,
//! some milliseconds, what comes by it goes up to the local stack, which resets the
//! sessions of other hosts. Nothing here can prevent that: routers should not lead
//! packets to it at once, and as a rule they cannot.
//!
//! The keeper hears of changes by netlink, and looks at everything every
//! [`REFRESH`] besides. It attaches the programs that are pinned, so it never
//! changes which build is in force.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Error, XdpMode, interface,
    link::{self, Attached, Point},
    load::{EGRESS_PROGRAM, XDP_PROGRAM, pin_of},
    pins::Pins,
    sys,
};

/// How often the interfaces are looked at without a cause.
const REFRESH: Duration = Duration::from_secs(30);
/// … and while something could not be attached.
const RETRY: Duration = Duration::from_secs(1);
/// The least time between two looks. The first news of an interface is acted on at
/// once, because until its programs are attached the local stack gets what comes by
/// it, and resets the sessions of others.
const SPACING: Duration = Duration::from_millis(20);

/// What is attached to what, as of now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// What is attached.
    pub attached: Vec<Attached>,
    /// Interfaces that lack a program, and why.
    pub lacking: BTreeMap<String, String>,
}

/// Keeps the programs attached.
pub struct Keeper {
    pins: Pins,
    interfaces: Vec<String>,
    mode: XdpMode,
    /// Whether there is to be an egress program: the kernel may know none.
    egress: bool,
    places: watch::Sender<Arc<Places>>,
}

impl Keeper {
    /// A keeper of what [`super::Datapath::load`] has attached. It does nothing
    /// until it is run.
    pub fn new(
        pins: Pins,
        interfaces: Vec<String>,
        mode: XdpMode,
        attached: Vec<Attached>,
    ) -> (Self, watch::Receiver<Arc<Places>>) {
        let egress = |attached: &Attached| matches!(attached.to, Point::Egress { .. });
        let egress = attached.iter().any(egress);
        let (places, seen) = watch::channel(Arc::new(Places {
            attached,
            lacking: BTreeMap::new(),
        }));
        let keeper = Self {
            pins,
            interfaces,
            mode,
            egress,
            places,
        };
        (keeper, seen)
    }

    /// Runs for ever. Listens in the network namespace of the thread that calls it.
    pub async fn run(mut self) -> io::Result<()> {
        let (connection, _handle, mut changes) = new_multicast_connection(&[MulticastGroup::Link])?;
        let _listener = Listener(tokio::spawn(connection).abort_handle());
        loop {
            let looked = Instant::now();
            self = spawn_blocking(move || {
                self.tend();
                self
            })
            .await
            .map_err(io::Error::other)?;
            let whole = self.places.borrow().lacking.is_empty();
            let wait = if whole { REFRESH } else { RETRY };
            match timeout(wait, changes.next()).await {
                Ok(None) => return Err(io::Error::other("the netlink socket was closed")),
                Ok(Some(_)) => {
                    sleep_until(looked + SPACING).await;
                    // What is waiting now is answered by the look that follows.
                    while let Some(Some(_)) = changes.next().now_or_never() {}
                }
                Err(_) => {}
            }
        }
    }

    /// Looks at every interface, and attaches what is missing. Blocks.
    fn tend(&mut self) {
        let before = self.places.borrow().clone();
        let mut now = Places {
            attached: before.attached.clone(),
            lacking: BTreeMap::new(),
        };
        now.attached.retain(|attached| match &attached.to {
            Point::Cgroup { .. } | Point::CgroupEgress { .. } => true,
            Point::Xdp { interface, .. } | Point::Egress { interface, .. } => {
                !self.interfaces.contains(interface)
            }
        });
        for name in &self.interfaces {
            let had = before.attached.iter();
            match self.attach(name, had) {
                Ok(attached) => now.attached.extend(attached),
                Err(why) => {
                    if before.lacking.get(name) != Some(&why) {
                        tracing::error!(
                            interface = name,
                            why,
                            fix = "bring the interface back, or undo what made it refuse XDP (a larger MTU, say); XDP is attached as soon as that is possible",
                            "nothing that comes by this interface is forwarded"
                        );
                    }
                    now.lacking.insert(name.clone(), why);
                }
            }
        }
        if now != *before {
            self.places.send_replace(Arc::new(now));
        }
    }

    /// What is attached to an interface, if need be from now on.
    fn attach<'a>(
        &self,
        name: &str,
        had: impl Iterator<Item = &'a Attached> + Clone,
    ) -> Result<Vec<Attached>, String> {
        let found = interface::look_up(name).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => "there is no such interface".to_owned(),
            _ => error.to_string(),
        })?;
        let (interface, ifindex) = (found.name, found.index);
        let egress = Point::Egress {
            interface: interface.clone(),
            ifindex,
        };
        let xdp = Point::Xdp {
            interface,
            ifindex,
            mode: self.mode,
        };
        let mut all = Vec::new();
        let egress = self.egress.then_some((egress, EGRESS_PROGRAM));
        for (point, program) in [Some((xdp, XDP_PROGRAM)), egress].into_iter().flatten() {
            let pin = pin_of(&self.pins, &point);
            let held = had.clone().find(|attached| attached.to == point);
            if let Some(held) = held
                && link::holds(&pin, held)
            {
                all.push(held.clone());
                continue;
            }
            let attached = self
                .attach_pinned(&pin, point, program)
                .map_err(|error| error.to_string())?;
            tracing::warn!(
                to = ?attached.to, link = attached.link_id,
                fix = "nothing: XDP is on it again; packets that came in between were not forwarded",
                "the interface is another one than before: attached anew"
            );
            all.push(attached);
        }
        Ok(all)
    }

    fn attach_pinned(
        &self,
        pin: &std::path::Path,
        point: Point,
        program: &str,
    ) -> Result<Attached, Error> {
        let path = self.pins.programs().join(program);
        let program = sys::open_pin(&path).map_err(Error::pin("open the program", &path))?;
        link::ensure(pin, point, program.as_fd())
    }
}

/// Ends the background task with its owner.
struct Listener(tokio::task::AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}
