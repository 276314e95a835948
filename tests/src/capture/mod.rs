//! Who answers whom, as it stands on the wires: all TCP segments of services that leave
//! a lab's hosts, and all that leave and reach its clients.
//!
//! Each host is heard where its segments leave it, at the moment they do. So whatever
//! the order in which they arrive somewhere, it is certain which host spoke when.
//! [`judge`] says what of a session is as it must be.

mod judge;
pub mod segment;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{
        Lab, Node,
        node::in_namespace,
        plan::{SERVICE_V4, SERVICE_V6},
    },
    raw::{Raw, Tapped, index_of},
};
pub use judge::{Report, Talk};
use segment::{HEADERS, Header};

/// How long the capture waits for frames before it looks whether it is to end.
const WAIT_MS: i32 = 20;

/// Where a segment was heard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// It left this host.
    Host(u16),
    /// It left its client.
    Client,
    /// It reached its client.
    AtClient,
}

/// A segment that was heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Where.
    pub place: Place,
    /// What.
    pub header: Header,
}

/// Listens until it is ended.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Heard>>>,
}

impl Capture {
    /// Listens to all hosts and clients of a lab.
    pub fn start(lab: &Lab) -> Result<Self> {
        let hosts = (1..=lab.plan().hosts).map(Node::Host);
        let clients = (1..=lab.plan().clients).map(Node::Client);
        let taps = hosts
            .chain(clients)
            .map(|node| {
                let arriving = matches!(node, Node::Client(_));
                in_namespace(&lab.namespace(node), || {
                    Ok(Raw::tap(index_of("eth0")?, arriving, HEADERS as u32)?)
                })
                .map(|tap| (node, tap))
                .with_context(|| format!("cannot listen to {node}"))
            })
            .collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("capture".into())
            .spawn(move || listen(&taps, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends it; gives what was heard, by client.
    ///
    /// # Errors
    ///
    /// Frames were lost, so that nothing can be said.
    pub fn finish(self) -> Result<Trace> {
        self.stop.store(true, Relaxed);
        let joined = self.thread.join();
        let mut all = joined.map_err(|_| anyhow::anyhow!("the capture panicked"))??;
        // Two places never hear one segment at the same nanosecond; those of one place
        // stay in order.
        all.sort_by_key(|heard| heard.time_ns);
        let mut talks = BTreeMap::new();
        for heard in all {
            let client = match heard.place {
                Place::Client => heard.header.from,
                Place::Host(_) | Place::AtClient => heard.header.to,
            };
            talks
                .entry(client)
                .or_insert_with(|| Talk::new(client))
                .push(heard);
        }
        Ok(Trace(talks))
    }
}

/// All that was heard, by the client's address.
#[derive(Debug)]
pub struct Trace(BTreeMap<SocketAddr, Talk>);

impl Trace {
    /// All that was heard of a client's session.
    pub fn of(&self, client: SocketAddr) -> Result<&Talk> {
        self.0
            .get(&client)
            .with_context(|| format!("nothing was heard of {client}"))
    }

    /// All of them.
    pub fn talks(&self) -> impl Iterator<Item = &Talk> {
        self.0.values()
    }
}

/// The next frame that is there. An interface that has gone has none.
fn next<'a>(tap: &Raw, buffer: &'a mut [u8]) -> io::Result<Option<Tapped<'a>>> {
    match tap.next(buffer) {
        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
        other => other,
    }
}

fn listen(taps: &[(Node, Raw)], stop: &AtomicBool) -> Result<Vec<Heard>> {
    use std::os::fd::AsRawFd as _;
    let mut all = Vec::new();
    let mut buffer = [0; HEADERS];
    let mut ready: Vec<libc::pollfd> = taps
        .iter()
        .map(|(_, tap)| libc::pollfd {
            fd: tap.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    loop {
        // What was there before the end was asked for is heard.
        let last = stop.load(Relaxed);
        // SAFETY: as many structures as told, that outlive the call.
        unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, WAIT_MS) };
        for (node, tap) in taps {
            while let Some(tapped) = next(tap, &mut buffer)? {
                let Some(header) = segment::read(tapped.frame) else {
                    continue;
                };
                let place = match node {
                    Node::Host(host) => Place::Host(*host),
                    _ if tapped.leaves => Place::Client,
                    _ => Place::AtClient,
                };
                let service = match place {
                    Place::Client => header.to,
                    Place::Host(_) | Place::AtClient => header.from,
                };
                if service.ip() == SERVICE_V4 || service.ip() == SERVICE_V6 {
                    all.push(Heard {
                        time_ns: tapped.time_ns,
                        place,
                        header,
                    });
                }
            }
        }
        if last {
            break;
        }
    }
    for (node, tap) in taps {
        let lost = tap.lost()?;
        ensure!(lost == 0, "{lost} frames of {node} were not heard");
    }
    Ok(all)
}
