//! Drives a drain: begins moves, looks at this host, and tells how it goes.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    io,
    sync::Arc,
    time::Duration,
};

use homing_common::{host::HostId, session::Tuple};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Begin, Here, Look, Options, Plan, Progress, Wanted};
use crate::{
    gossip::task::HostStatus,
    migration::{
        Ended, Outcome, Reason, Step,
        task::{Handle, Report, Stopped},
    },
};

/// How often progress is told while something happens all the time.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Carries moves out.
pub trait Mover: Clone + Send + Sync + 'static {
    /// Moves a session, and says what came of it once that is certain. If this is dropped,
    /// the move goes on.
    ///
    /// # Errors
    ///
    /// The agent is stopping; what becomes of the move, the next one will know.
    fn move_session(
        &self,
        tuple: Tuple,
        target: HostId,
        within: Duration,
    ) -> impl Future<Output = Result<Report, Stopped>> + Send;

    /// Has a session's move given up, if it is not released. How that ends, who waits for
    /// the move is told.
    fn call_off(&self, tuple: Tuple) -> impl Future<Output = ()> + Send;

    /// How many sessions are on their way to this host.
    ///
    /// # Errors
    ///
    /// The agent is stopping.
    fn arriving(&self) -> impl Future<Output = Result<usize, Stopped>> + Send;
}

impl Mover for Handle {
    async fn move_session(
        &self,
        tuple: Tuple,
        target: HostId,
        within: Duration,
    ) -> Result<Report, Stopped> {
        Self::move_session(self, tuple, target, within).await
    }

    async fn call_off(&self, tuple: Tuple) {
        // Whether there was one that could be, its end tells.
        let _ = Self::call_off(self, tuple).await;
    }

    async fn arriving(&self) -> Result<usize, Stopped> {
        Ok(self.status().await?.load.to_here)
    }
}

/// A drain that goes on, or has ended.
pub struct Run {
    commands: mpsc::UnboundedSender<Command>,
    progress: watch::Receiver<Arc<Progress>>,
}

enum Command {
    /// Other options, and whether their deadline is new.
    Replace(Options, bool),
    Stop,
}

impl Run {
    /// Begins. `hosts` are the others as membership knows them; `at_once` says how many moves
    /// may be under way, and is asked again and again; for the rest see [`Plan::new`].
    pub fn start(
        mover: impl Mover,
        here: impl Here,
        hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
        options: Options,
        at_once: impl Fn() -> usize + Send + 'static,
        settled_in: Duration,
    ) -> Self {
        let plan = Plan::new(0, options, at_once(), settled_in.as_micros() as u64);
        let (tell, progress) = watch::channel(Arc::new(plan.progress(0)));
        let (commands, inbox) = mpsc::unbounded_channel();
        let driver = Driver {
            begun: Instant::now(),
            plan,
            at_once: Box::new(at_once),
            mover,
            here: Arc::new(here),
            moves: JoinSet::new(),
            sessions: HashMap::new(),
            looks: JoinSet::new(),
            tell,
        };
        tokio::spawn(driver.run(hosts, inbox));
        Self { commands, progress }
    }

    /// How it is going, and how it ended.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.borrow().clone()
    }

    /// Whether it goes on.
    pub fn is_live(&self) -> bool {
        self.progress.borrow().end.is_none() && self.progress.has_changed().is_ok()
    }

    /// Goes on with what is wanted; a deadline that is given counts from now on.
    pub fn replace(&self, wanted: Wanted) {
        let (options, is_new) = wanted.over(Some(&self.progress.borrow().options));
        // One that has ended is over.
        let _ = self.commands.send(Command::Replace(options, is_new));
    }

    /// Ends it. Moves that are not released are called off.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> Arc<Progress> {
        let mut progress = self.progress.clone();
        // An error means that the agent is stopping.
        let _ = progress.wait_for(|progress| progress.end.is_some()).await;
        self.progress()
    }
}

struct Driver<M, H> {
    begun: Instant,
    plan: Plan,
    at_once: Box<dyn Fn() -> usize + Send>,
    mover: M,
    here: Arc<H>,
    moves: JoinSet<Result<Report, Stopped>>,
    /// By the task that waits for its move.
    sessions: HashMap<Id, Begin>,
    looks: JoinSet<io::Result<Look>>,
    tell: watch::Sender<Arc<Progress>>,
}

impl<M: Mover, H: Here> Driver<M, H> {
    async fn run(
        mut self,
        mut hosts: watch::Receiver<Arc<Vec<HostStatus>>>,
        mut inbox: mpsc::UnboundedReceiver<Command>,
    ) {
        self.plan.hosts(takers(&hosts.borrow_and_update()));
        let mut told = Instant::now();
        loop {
            self.begin();
            let end = self.plan.end(self.now());
            if end.is_some() || told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell
                    .send_replace(Arc::new(self.plan.progress(self.now())));
            }
            if end.is_some() {
                return;
            }
            let due = Duration::from_micros(self.plan.next_time(self.now()));
            let due = self.begun + due.min(Duration::from_secs(3600));
            tokio::select! {
                Some(done) = self.moves.join_next_with_id() => {
                    if !self.done(done) {
                        return;
                    }
                }
                Some(look) = self.looks.join_next() => self.looked(look),
                command = inbox.recv() => match command {
                    Some(Command::Replace(options, is_new)) => {
                        self.plan.replace(self.now(), options, is_new);
                    }
                    Some(Command::Stop) => self.stop().await,
                    // Nobody can ask any more.
                    None => return,
                },
                changed = hosts.changed() => match changed {
                    Ok(()) => self.plan.hosts(takers(&hosts.borrow_and_update())),
                    Err(_) => return,
                },
                () = sleep_until(due) => {}
                // What has happened is told, also if nothing more does.
                () = sleep_until(told + TELL_EVERY) => {}
            }
        }
    }

    /// Microseconds since the beginning.
    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn begin(&mut self) {
        self.plan.set_at_once((self.at_once)());
        while let Some(begin) = self.plan.poll(self.now()) {
            let mover = self.mover.clone();
            let Begin {
                tuple,
                target,
                within,
            } = begin;
            let task = self
                .moves
                .spawn(async move { mover.move_session(tuple, target, within).await });
            self.sessions.insert(task.id(), begin);
        }
        if self.plan.begin_look(self.now()) {
            let (here, mover) = (self.here.clone(), self.mover.clone());
            self.looks.spawn(async move {
                // Who arrives after this was counted as arriving.
                let arriving = mover.arriving().await.map_err(io::Error::other)?;
                let look = here.look().await?;
                Ok(Look { arriving, ..look })
            });
        }
    }

    /// A move is over. Says whether the agent goes on.
    fn done(&mut self, done: Result<(Id, Result<Report, Stopped>), JoinError>) -> bool {
        let (id, ended) = match done {
            Ok((id, Ok(report))) => (id, Some(report.ended)),
            Ok((_, Err(Stopped))) => return false,
            Err(error) => (error.id(), None),
        };
        let Some(begin) = self.sessions.remove(&id) else {
            return true;
        };
        // Of a task that has died nobody knows how far it came: the next look will tell.
        let ended = ended.unwrap_or(Ended {
            tuple: begin.tuple,
            target: begin.target,
            number: Some(0),
            outcome: Outcome::Aborted(Step::Asking, Reason::Restarted),
            frozen_us: 0,
        });
        self.plan.ended(self.now(), &ended);
        true
    }

    fn looked(&mut self, look: Result<io::Result<Look>, JoinError>) {
        let now = self.now();
        match look.map_err(io::Error::other).flatten() {
            Ok(look) => self.plan.looked(now, &look),
            Err(error) => {
                tracing::warn!(
                    %error,
                    fix = "nothing at once: it is looked again; if the drain does not go on, restart the agent and repeat it",
                    "cannot tell which sessions are left to be moved"
                );
                self.plan.looked_in_vain(now);
            }
        }
    }

    async fn stop(&mut self) {
        for tuple in self.plan.stop() {
            self.mover.call_off(tuple).await;
        }
    }
}

/// The hosts that take sessions.
fn takers(hosts: &[HostStatus]) -> BTreeSet<HostId> {
    let takers = hosts.iter().filter(|host| host.takes_sessions());
    takers.map(|host| host.host).collect()
}
