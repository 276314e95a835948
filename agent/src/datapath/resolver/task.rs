//! The task that asks the kernel, listens to it, and writes `HOSTS`, as the
//! machine says.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use homing_common::host::HostId;
use rtnetlink::{Error, Handle, new_connection, new_multicast_connection};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use super::{
    core::Machine,
    model::{Action, Input, Ways},
    netlink,
};
use crate::{
    bound::Bound,
    datapath::{
        hosts::{Changes, Hosts},
        template::Outer,
    },
};

/// What each question could repeat.
static UNANSWERED: Bound = Bound::new();

/// Questions to the kernel that are out at a time. What is more waits in a queue
/// that is bounded by three for each host.
const QUESTIONS: usize = 64;
/// Notifications that are taken in together at most.
const NOTIFICATIONS: usize = 256;
/// Commands that wait to be taken in.
const COMMANDS: usize = 1024;
/// How long an answer of the kernel is waited for. It comes in microseconds, if it
/// comes; otherwise the next refresh asks again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long after a failed write of `HOSTS` the next is tried.
const RETRY: Duration = Duration::from_secs(1);

/// Tells the resolver which hosts there are, and shows the ways to them.
#[derive(Clone)]
pub struct Resolver {
    commands: mpsc::Sender<Command>,
    ways: watch::Receiver<Arc<Ways>>,
}

enum Command {
    Input(Input),
    Retain(BTreeSet<HostId>),
}

/// The resolver itself, to be run.
pub struct Task {
    commands: mpsc::Receiver<Command>,
    ways: watch::Sender<Arc<Ways>>,
    machine: Machine,
    hosts: Hosts,
}

/// A resolver that writes the ways of `outer` to `hosts`. It does nothing until
/// the task is run.
pub fn resolver(outer: Outer, hosts: Hosts) -> (Resolver, Task) {
    let (to_commands, commands) = mpsc::channel(COMMANDS);
    let (to_ways, ways) = watch::channel(Arc::default());
    let handle = Resolver {
        commands: to_commands,
        ways,
    };
    let task = Task {
        commands,
        ways: to_ways,
        machine: Machine::new(outer),
        hosts,
    };
    (handle, task)
}

impl Resolver {
    /// A host is a member, with this fabric address: its tunnel packets are
    /// accepted, and a way to it is kept. To be called again when the address
    /// changes. This host itself is ignored.
    pub async fn add(&self, host: HostId, address: IpAddr) {
        self.send(Command::Input(Input::Member(host, address)))
            .await;
    }

    /// A host is no member any more.
    pub async fn remove(&self, host: HostId) {
        self.send(Command::Input(Input::Gone(host))).await;
    }

    /// The members are these and no others. What a former agent has left in
    /// `HOSTS` of other hosts is removed, so this is to be called once the
    /// membership has settled after a start, not before.
    pub async fn set(&self, members: impl IntoIterator<Item = (HostId, IpAddr)>) {
        let mut known = BTreeSet::new();
        for (host, address) in members {
            known.insert(host);
            self.add(host, address).await;
        }
        self.send(Command::Retain(known)).await;
    }

    /// The ways to all members, as they are in force.
    pub fn ways(&self) -> Arc<Ways> {
        self.ways.borrow().clone()
    }

    /// Waits until the ways in force have changed since the last call.
    pub async fn changed(&mut self) -> Arc<Ways> {
        // An error means that the task has ended: nothing will change any more.
        if self.ways.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.ways.borrow_and_update().clone()
    }

    async fn send(&self, command: Command) {
        // Only a task that has ended does not receive; whoever runs it knows.
        let _ = self.commands.send(command).await;
    }
}

/// A question to the kernel, and what it came to.
type Answer = (Action, Result<Option<Input>, Error>);

impl Task {
    /// Runs until every [`Resolver`] is dropped. Listens in the network namespace
    /// of the thread that calls it.
    pub async fn run(self) -> io::Result<()> {
        let (connection, handle, _) = new_connection()?;
        let _connection = Aborting(tokio::spawn(connection).abort_handle());
        // The connection ends when its handle is dropped, even if it is not used.
        let (connection, _handle, notifications) = new_multicast_connection(&netlink::GROUPS)?;
        let mut notifications = notifications.ready_chunks(NOTIFICATIONS);
        let _listener = Aborting(tokio::spawn(connection).abort_handle());

        let mut commands = self.commands;
        let mut running = Running {
            start: Instant::now(),
            machine: self.machine,
            handle,
            queue: VecDeque::new(),
            questions: FuturesUnordered::new(),
            asked: Vec::new(),
            writer: Writer {
                hosts: Some(self.hosts),
                pending: Changes::new(),
                retain: None,
                not_before: None,
            },
        };
        let mut write: Option<JoinHandle<Written>> = None;

        loop {
            running.tick();
            running.ask();
            if write.is_none() {
                write = running.writer.begin();
            }
            if write.is_none() && running.writer.is_idle() && running.machine.take_news() {
                publish(&self.ways, running.machine.ways());
            }
            let deadline = running.deadline();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Input(input)) => running.input(input),
                    Some(Command::Retain(known)) => running.retain(known),
                    None => break,
                },
                notification = notifications.next() => match notification {
                    Some(messages) => {
                        for (message, _) in messages {
                            if let Some(input) = netlink::notification(message) {
                                running.input(input);
                            }
                        }
                    }
                    None => return Err(io::Error::other("the netlink socket was closed")),
                },
                Some(answer) = running.questions.next() => running.answer(answer)?,
                written = join(&mut write) => {
                    write = None;
                    running.writer.end(written?);
                }
                () = sleep_until(deadline) => {}
            }
        }
        // What is being written must be complete before the maps may be used by
        // another agent.
        if let Some(write) = write {
            write.await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// What the task holds while it runs.
struct Running {
    start: Instant,
    machine: Machine,
    handle: Handle,
    queue: VecDeque<Action>,
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// The questions that are out.
    asked: Vec<Action>,
    writer: Writer,
}

impl Running {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn deadline(&self) -> Instant {
        let machine = self.start + self.machine.deadline();
        self.writer
            .not_before
            .map_or(machine, |retry| retry.min(machine))
    }

    fn input(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.machine.input(self.now(), input, &mut actions);
        self.act(actions);
    }

    fn tick(&mut self) {
        let mut actions = Vec::new();
        self.machine.tick(self.now(), &mut actions);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Write(host, change) => {
                    self.writer.pending.entry(host).or_default().merge(change);
                }
                // A question that is waiting to be asked need not wait twice.
                question if !self.queue.contains(&question) => self.queue.push_back(question),
                _ => {}
            }
        }
    }

    fn retain(&mut self, known: BTreeSet<HostId>) {
        let mut gone = self.machine.ways();
        gone.retain(|host, _| !known.contains(host));
        for &host in gone.keys() {
            self.input(Input::Gone(host));
        }
        self.writer.retain = Some(known);
    }

    /// Asks what is waiting, but nothing that is being asked already: the machine
    /// relies on answers that come in the order of their questions.
    fn ask(&mut self) {
        for _ in 0..self.queue.len() {
            if self.questions.len() >= QUESTIONS {
                break;
            }
            let Some(question) = self.queue.pop_front() else {
                break;
            };
            if self.asked.contains(&question) {
                self.queue.push_back(question);
                continue;
            }
            self.asked.push(question);
            let handle = self.handle.clone();
            let answer = async move {
                let answer = timeout(PATIENCE, ask(handle, question)).await;
                (question, answer.unwrap_or(Ok(None)))
            };
            self.questions.push(Box::pin(answer));
        }
    }

    fn answer(&mut self, (question, answer): Answer) -> io::Result<()> {
        self.asked.retain(|&asked| asked != question);
        match answer {
            Ok(Some(input)) => self.input(input),
            Ok(None) => {}
            Err(Error::RequestFailed) => {
                return Err(io::Error::other("the netlink socket was closed"));
            }
            // The next refresh asks again.
            Err(error) => {
                if let Some(left_out) = UNANSWERED.take() {
                    tracing::warn!(
                        %error, left_out,
                        fix = "nothing: it is asked again at the next refresh; if a way stays unknown, `homing status` names it",
                        "the kernel did not answer a question about routes or neighbours"
                    );
                }
            }
        }
        Ok(())
    }
}

async fn ask(handle: Handle, question: Action) -> Result<Option<Input>, Error> {
    Ok(match question {
        Action::FindRoute(host, address) => {
            let route = netlink::find_route(&handle, address).await?;
            route.map(|route| Input::Route(host, address, route))
        }
        Action::FindNeighbour(hop) => {
            let neighbour = netlink::find_neighbour(&handle, hop).await?;
            neighbour.map(|neighbour| Input::Neighbour(hop, neighbour))
        }
        Action::Probe(hop) => {
            netlink::probe(&handle, hop).await?;
            None
        }
        Action::Renew(hop) => {
            netlink::forget(&handle, hop).await?;
            netlink::probe(&handle, hop).await?;
            None
        }
        Action::ReadLinks => Some(Input::Links(netlink::read_links(&handle).await?)),
        Action::Write(..) => None,
    })
}

/// Writes `HOSTS` on a thread that may block, a batch at a time. What comes
/// meanwhile is merged, so it is bounded by the number of hosts.
struct Writer {
    /// None: they are with the thread.
    hosts: Option<Hosts>,
    pending: Changes,
    /// Hosts that stay; all others are to be removed.
    retain: Option<BTreeSet<HostId>>,
    /// After a failure.
    not_before: Option<Instant>,
}

/// What comes back from the thread.
struct Written {
    hosts: Hosts,
    changes: Changes,
    retain: Option<BTreeSet<HostId>>,
    result: io::Result<()>,
}

impl Writer {
    fn is_idle(&self) -> bool {
        self.hosts.is_some() && self.pending.is_empty() && self.retain.is_none()
    }

    fn begin(&mut self) -> Option<JoinHandle<Written>> {
        let wait = self.not_before.is_some_and(|at| Instant::now() < at);
        if self.is_idle() || wait {
            return None;
        }
        self.not_before = None;
        let mut hosts = self.hosts.take()?;
        let changes = std::mem::take(&mut self.pending);
        let retain = self.retain.take();
        Some(spawn_blocking(move || {
            let mut result = hosts.commit(&changes);
            if let Some(known) = &retain {
                result = result.and(hosts.retain(known));
            }
            Written {
                hosts,
                changes,
                retain,
                result,
            }
        }))
    }

    fn end(&mut self, written: Written) {
        self.hosts = Some(written.hosts);
        if let Err(error) = written.result {
            tracing::error!(
                %error, again_in = ?RETRY,
                fix = "nothing at once: tried again, and the ways stay as they were; if it goes on, restart the agent, and keep this log",
                "cannot write HOSTS"
            );
            let later = std::mem::replace(&mut self.pending, written.changes);
            for (host, change) in later {
                self.pending.entry(host).or_default().merge(change);
            }
            self.retain = self.retain.take().or(written.retain);
            self.not_before = Some(Instant::now() + RETRY);
        }
    }
}

async fn join(write: &mut Option<JoinHandle<Written>>) -> io::Result<Written> {
    match write {
        Some(write) => write.await.map_err(io::Error::other),
        None => std::future::pending().await,
    }
}

fn publish(to: &watch::Sender<Arc<Ways>>, ways: Ways) {
    to.send_if_modified(|current| {
        let changed = **current != ways;
        if changed {
            *current = Arc::new(ways);
        }
        changed
    });
}

/// Ends a background task with its owner.
struct Aborting(AbortHandle);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
