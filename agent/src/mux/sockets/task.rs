//! Drives the machine with descriptors and carriers.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use homing_client::message::wire::{Opened, Refused};
use homing_common::host::HostId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv,
        sendmsg, socketpair, sockopt,
    },
};
use tokio::{
    io::unix::AsyncFd,
    runtime::Handle,
    select,
    sync::{Notify, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Limits, PeerInfo, Status,
    bundle::SocketId,
    core::{Core, Output, Progress, Wanted, Wants},
    datagram_max,
    port::{Came, Port},
};
use crate::{
    bound::Bound,
    mux::{Answer, Carriers, Exchange, Fate, Hint, MUX, Outcome, Pulled, Size},
    pop::Stream,
};

/// The pause before a message is repeated that has to arrive.
const INSIST_EVERY: Duration = Duration::from_millis(200);

/// What applications could repeat.
static NOT_MADE: Bound = Bound::new();

/// A message socket that was made.
#[derive(Debug)]
pub struct Made {
    /// The application's end.
    pub descriptor: OwnedFd,
    /// What it is told with it.
    pub opened: Opened,
}

/// The message sockets of a host. A handle: clones are the same.
#[derive(Clone)]
pub struct Sockets(Arc<Inner>);

struct Inner {
    me: HostId,
    limits: Limits,
    core: Mutex<Core<End>>,
    carriers: OnceLock<Carriers>,
    connecting: Mutex<Connecting>,
    offers: watch::Sender<u64>,
    began: Instant,
    runtime: Handle,
    tasks: TaskTracker,
    stopped: CancellationToken,
}

/// Who waits for the answers to requests.
type Connecting = HashMap<u32, oneshot::Sender<Result<(SocketId, Opened), Refused>>>;

/// The agent's end of a message socket; its task has the other handle.
struct End(Arc<Descriptor>);

struct Descriptor {
    fd: AsyncFd<OwnedFd>,
    wake: Notify,
    gone: AtomicBool,
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

impl Port for End {
    fn receive(&self, into: &mut [u8]) -> io::Result<Came> {
        let max = into.len();
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (_, len) = recv(&self.0.fd, into, flags)?;
        Ok(match len {
            // An empty datagram looks the same.
            0 if self.is_hung_up() => Came::End,
            len if len >= max => Came::TooLong,
            len => Came::Datagram(len),
        })
    }

    fn send(&self, parts: [&[u8]; 2]) -> io::Result<()> {
        match send(self.0.fd.as_fd(), parts) {
            // Longer than what may ever be unread: allow for it, and one more.
            Err(Errno::MSGSIZE) => {
                let len = parts[0].len() + parts[1].len();
                grow(self.0.fd.as_fd(), len)?;
                Ok(send(self.0.fd.as_fd(), parts)?)
            }
            sent => Ok(sent?),
        }
    }

    fn is_hung_up(&self) -> bool {
        // That much poll(2) always says.
        let mut polled = [PollFd::new(self.0.fd.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled[0]
                .revents()
                .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    }
}

fn send(fd: BorrowedFd<'_>, parts: [&[u8]; 2]) -> Result<(), Errno> {
    let parts = parts.map(io::IoSlice::new);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(fd, &parts, &mut SendAncillaryBuffer::default(), flags)?;
    Ok(())
}

/// Lets a descriptor carry datagrams of that length: the kernel counts its own overhead
/// against the same bound, and doubles what is asked for because of that.
fn grow(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let wanted = len + 4096;
    if sockopt::set_socket_send_buffer_size_force(fd, wanted).is_err() {
        // Without CAP_NET_ADMIN as far as net.core.wmem_max allows.
        sockopt::set_socket_send_buffer_size(fd, wanted)?;
    }
    Ok(())
}

impl Sockets {
    /// No message sockets yet. Must be called within a tokio runtime: it drives them.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn new(me: HostId, limits: Limits) -> io::Result<Self> {
        let (offers, _) = watch::channel(0);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let mut random = Xoshiro256PlusPlus::from_seed(seed);
        let inner = Inner {
            me,
            limits,
            core: Mutex::new(Core::new(me, limits, move || random.random())),
            carriers: OnceLock::new(),
            connecting: Mutex::default(),
            offers,
            began: Instant::now(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
        };
        let sockets = Self(Arc::new(inner));
        let ticking = sockets.clone().tick();
        sockets.0.tasks.spawn_on(ticking, &sockets.0.runtime);
        Ok(sockets)
    }

    /// Goes by other limits from now on: of message sockets, and of the bytes that are held
    /// for all of them. Where there is more than they allow, nothing new finds room.
    pub fn set_room(&self, sockets: usize, memory: usize) {
        self.0.with(|core, _| core.set_room(sockets, memory));
    }

    /// A message socket as applications name it.
    pub fn address(host: HostId, socket: SocketId) -> u64 {
        Core::<End>::address(host, socket)
    }

    /// What carriers pull from and hand over to.
    pub fn exchange(&self) -> Arc<dyn Exchange> {
        self.0.clone()
    }

    /// The carriers that messages travel by. Before, they travel within the host alone.
    pub fn travel_by(&self, carriers: Carriers) {
        // There is one set of carriers in an agent.
        let _ = self.0.carriers.set(carriers);
    }

    /// Makes a message socket that offers a service.
    ///
    /// # Errors
    ///
    /// There are too many, or the system refuses.
    pub fn offer(&self, name: &str, batches: bool) -> Result<Made, Refused> {
        let (ours, descriptor, end) = self.pair()?;
        let made = self.0.with(|core, _| core.offer(end, name, batches));
        let (id, opened) = made?;
        self.serve(id, ours);
        Ok(Made { descriptor, opened })
    }

    /// Makes a message socket that is connected to a service, within the time that is
    /// wanted.
    ///
    /// # Errors
    ///
    /// Nobody offers it, there are too many, or the system refuses.
    pub async fn connect(&self, wanted: &Wanted<'_>) -> Result<Made, Refused> {
        let (ours, descriptor, end) = self.pair()?;
        let (tell, told) = oneshot::channel();
        let request = self.0.with(|core, now| {
            let request = core.connect(end, wanted, now)?;
            // Before the answer can be looked for.
            self.0.connecting().insert(request, tell);
            Ok(request)
        })?;
        let _forget = Forget(&self.0, request);
        let (id, opened) = told.await.unwrap_or(Err(Refused::Stopping))?;
        self.serve(id, ours);
        Ok(Made { descriptor, opened })
    }

    /// A new pair of descriptors: the agent's for its task, the application's, and the
    /// agent's for the machine.
    fn pair(&self) -> Result<(Arc<Descriptor>, OwnedFd, End), Refused> {
        if self.0.stopped.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let made = || -> io::Result<_> {
            let flags = SocketFlags::CLOEXEC;
            let kind = SocketType::SEQPACKET;
            let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            grow(theirs.as_fd(), datagram_max(&self.0.limits))?;
            let _runtime = self.0.runtime.enter();
            // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the
            // `AsyncFd` owns it.
            let fd = unsafe { AsyncFd::register(ours) }?;
            let descriptor = Arc::new(Descriptor {
                fd,
                wake: Notify::new(),
                gone: AtomicBool::new(false),
            });
            Ok((descriptor.clone(), theirs, End(descriptor)))
        };
        made().map_err(|error| {
            if let Some(left_out) = NOT_MADE.take() {
                tracing::warn!(
                    %error, left_out,
                    fix = "the application was refused and may ask again; if it goes on, raise LimitNOFILE= of the unit (one for each message socket: mux.sockets)",
                    "cannot make a message socket"
                );
            }
            Refused::Failed
        })
    }

    fn serve(&self, id: SocketId, descriptor: Arc<Descriptor>) {
        let task = serve(self.0.clone(), id, descriptor);
        self.0.tasks.spawn_on(task, &self.0.runtime);
    }

    /// Says who the other hosts are.
    pub fn set_peers(&self, peers: BTreeMap<HostId, PeerInfo>) {
        self.0.with(|core, _| core.set_peers(peers));
    }

    /// The filter of the services that are offered here, whenever it changes.
    pub fn offers(&self) -> watch::Receiver<u64> {
        self.0.offers.subscribe()
    }

    /// How message sockets are.
    pub fn status(&self) -> Status {
        self.0.core().status()
    }

    /// Closes all message sockets.
    pub async fn stop(&self) {
        self.0.stopped.cancel();
        self.0.with(|core, _| core.stop());
        self.0.connecting().clear();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn tick(self) {
        let mut ticks = interval(Duration::from_millis(Core::<End>::TICK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                _ = ticks.tick() => self.0.with(|core, now| core.tick(now)),
                () = self.0.stopped.cancelled() => return,
            }
        }
    }
}

/// Forgets a request when nobody waits for it any more.
struct Forget<'a>(&'a Inner, u32);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.0.connecting().remove(&self.1).is_some() {
            self.0.with(|core, _| core.forget(self.1));
        }
    }
}

/// The task of a message socket: watches its descriptor.
async fn serve(inner: Arc<Inner>, id: SocketId, descriptor: Arc<Descriptor>) {
    let mut stopped = pin!(inner.stopped.cancelled());
    let mut woken = pin!(descriptor.wake.notified());
    let fd = &descriptor.fd;
    while !descriptor.gone.load(Ordering::Relaxed) {
        let Wants { read, write } = inner.core().wants(id);
        select! {
            biased;
            () = &mut stopped => return,
            () = &mut woken => woken.set(descriptor.wake.notified()),
            ready = poll_fn(|cx| fd.poll_write_ready(cx)), if write => {
                let Ok(mut ready) = ready else { return };
                if inner.with(|core, _| core.writable(id)) == Progress::Blocked {
                    ready.clear_ready();
                }
            }
            ready = poll_fn(|cx| fd.poll_read_ready(cx)), if read => {
                let Ok(mut ready) = ready else { return };
                match inner.with(|core, now| core.readable(id, now)) {
                    Progress::Blocked => ready.clear_ready(),
                    Progress::More => tokio::task::yield_now().await,
                    Progress::Waits => {}
                }
            }
        }
    }
}

impl Inner {
    fn core(&self) -> MutexGuard<'_, Core<End>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connecting(&self) -> MutexGuard<'_, Connecting> {
        self.connecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, in microseconds.
    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Does something with the machine, and then what that wants done.
    fn with<R>(&self, act: impl FnOnce(&mut Core<End>, u64) -> R) -> R {
        let now = self.now();
        let mut core = self.core();
        let result = act(&mut core, now);
        let mut later = Vec::new();
        loop {
            let outputs = core.outputs();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                match output {
                    Output::Ready(host, id, size) if host == self.me => {
                        core.loop_back(id, size, now);
                    }
                    Output::Wake(id) => {
                        if let Some(end) = core.port(id) {
                            end.0.wake.notify_one();
                        }
                    }
                    // Its task has seen that its end is gone.
                    Output::Gone(_) => {}
                    output => later.push(output),
                }
            }
        }
        let offers = core.offers();
        drop(core);
        self.offers
            .send_if_modified(|told| std::mem::replace(told, offers) != offers);
        for output in later {
            self.carry_out(output);
        }
        result
    }

    fn carry_out(&self, output: Output) {
        if let Output::Connected(request, result) = output {
            if let Some(tell) = self.connecting().remove(&request) {
                // Who does not wait any more has dropped its end: that is seen.
                let _ = tell.send(result);
            }
            return;
        }
        let Some(carriers) = self.carriers.get() else {
            return;
        };
        match output {
            // Who is no member any more has left: what was for it is given up then.
            Output::Ready(host, id, size) => drop(carriers.ready(host, MUX, id.0, size)),
            // What is said without insisting is asked for again.
            Output::Say(host, said) => drop(carriers.try_queue(host, MUX, said)),
            Output::Insist(host, said) => {
                let task = insist(carriers.clone(), host, said, self.stopped.clone());
                self.tasks.spawn_on(task, &self.runtime);
            }
            Output::Wake(_) | Output::Gone(_) | Output::Connected(..) => {}
        }
    }
}

/// Says something until it arrives, or the host is gone.
async fn insist(carriers: Carriers, host: HostId, said: Bytes, stopped: CancellationToken) {
    let insist = async {
        loop {
            match carriers.send(host, MUX, said.clone()).await {
                Fate::Unknown(_) | Fate::NotSent(crate::mux::NotSent::Unreachable { .. }) => {}
                Fate::Delivered(_) | Fate::NotSent(_) => return,
            }
            tokio::time::sleep(INSIST_EVERY).await;
        }
    };
    select! {
        () = insist => {}
        () = stopped.cancelled() => {}
    }
}

impl Exchange for Inner {
    fn runtime(&self) -> Option<&Handle> {
        Some(&self.runtime)
    }

    fn pull(&self, host: HostId, source: u64, size: Size) -> Option<Pulled> {
        self.core().pull(host, SocketId(source), size)
    }

    fn ended(&self, host: HostId, source: u64, body: Bytes, outcome: Outcome) {
        self.with(|core, now| core.ended(host, SocketId(source), &body, outcome, now));
    }

    fn offered(&self, host: HostId, hint: &Hint, len: usize) -> bool {
        self.with(|core, _| core.offered(host, hint, len))
    }

    fn withdrawn(&self, hint: &Hint, len: usize) {
        self.with(|core, _| core.withdrawn(hint, len));
    }

    fn receive(&self, host: HostId, _stream: Stream, body: Bytes) -> Answer {
        self.with(|core, now| core.receive(host, &body, now))
    }

    fn left(&self, host: HostId) {
        self.with(|core, _| core.left(host));
    }
}
