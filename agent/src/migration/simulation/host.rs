//! One host: its kernel's sockets and journal, which outlive the agent; its
//! application, which outlives it too; and its agent.

use std::collections::{BTreeMap, BTreeSet};

use homing_common::{host::HostId, net::Service, session::Tuple};

use super::{
    super::{Entry, Local, Phase},
    Answer, Application, MoveId, Moves, Order, Reason,
};

/// Whether an order is one that is meant.
pub(super) type Is = fn(&Order) -> bool;

/// A connection's socket.
pub(super) struct Socket {
    /// How far the session had come when this socket last served it.
    pub progress: u64,
    /// It is in repair mode.
    pub repair: bool,
    /// Who has a descriptor of it.
    pub agent: bool,
    pub application: bool,
}

pub(super) struct Host {
    pub kernel_up: bool,
    pub incarnation: u64,
    pub sockets: BTreeMap<Tuple, Socket>,
    pub journal: BTreeMap<Tuple, Entry>,
    pub sessions: BTreeMap<Tuple, u32>,
    pub application_up: bool,
    /// What the application reads and writes.
    pub serving: BTreeSet<Tuple>,
    /// What it has quiesced, made a socket for, and taken a state in for.
    exported: BTreeSet<Tuple>,
    opened: BTreeSet<Tuple>,
    imported: BTreeSet<Tuple>,
    /// It does not answer.
    pub hangs: bool,
    pub drains: bool,
    /// What cannot be done here, why, and how often it is said.
    pub refuses: Option<(Is, Reason, u32)>,
    pub agent: Option<Moves>,
    /// Counts the agent's starts.
    pub life: u64,
    pub busy_until: BTreeMap<Tuple, u64>,
}

impl Host {
    pub fn new(incarnation: u64) -> Self {
        Self {
            kernel_up: true,
            incarnation,
            sockets: BTreeMap::new(),
            journal: BTreeMap::new(),
            sessions: BTreeMap::new(),
            application_up: true,
            serving: BTreeSet::new(),
            exported: BTreeSet::new(),
            opened: BTreeSet::new(),
            imported: BTreeSet::new(),
            hangs: false,
            drains: false,
            refuses: None,
            agent: None,
            life: 0,
            busy_until: BTreeMap::new(),
        }
    }

    /// A client connects.
    pub fn open(&mut self, tuple: Tuple, progress: u64) {
        let socket = Socket {
            progress,
            repair: false,
            agent: false,
            application: true,
        };
        self.sockets.insert(tuple, socket);
        self.sessions.insert(tuple, 0);
        self.serving.insert(tuple);
    }

    /// Whether this kernel answers for a session: it has a socket, and no entry in the
    /// journal drops what that sends.
    pub fn answers(&self, tuple: &Tuple) -> bool {
        let socket = self.sockets.get(tuple);
        socket.is_some_and(|socket| !socket.repair) && !self.journal.contains_key(tuple)
    }

    pub fn kill_agent(&mut self) -> Vec<Tuple> {
        self.agent = None;
        for socket in self.sockets.values_mut() {
            socket.agent = false;
        }
        self.close()
    }

    /// An application and an agent that has started anew agree on what there is: what
    /// the journal knows nothing of is in no move.
    pub fn reconcile(&mut self) {
        let in_move = |tuple: &Tuple| self.journal.contains_key(tuple);
        self.opened.retain(in_move);
        let imported = std::mem::take(&mut self.imported);
        let (kept, rest): (BTreeSet<_>, _) = imported.into_iter().partition(in_move);
        self.imported = kept;
        let exported = std::mem::take(&mut self.exported);
        let (kept, resumed): (BTreeSet<_>, _) = exported.into_iter().partition(in_move);
        self.exported = kept;
        for tuple in rest.into_iter().chain(resumed) {
            if self.sessions.contains_key(&tuple) && self.sockets.contains_key(&tuple) {
                self.serving.insert(tuple);
            } else if let Some(socket) = self.sockets.get_mut(&tuple) {
                socket.application = false;
            }
        }
        self.close();
    }

    pub fn kill_application(&mut self) -> Vec<Tuple> {
        self.application_up = false;
        self.serving.clear();
        self.exported.clear();
        self.opened.clear();
        self.imported.clear();
        for socket in self.sockets.values_mut() {
            socket.application = false;
        }
        self.close()
    }

    /// Sockets that nobody holds are closed. Names the sessions that end by that: those
    /// that were served here, and those that were to go on here.
    fn close(&mut self) -> Vec<Tuple> {
        let is_held = |socket: &Socket| socket.agent || socket.application;
        let gone: Vec<_> = self
            .sockets
            .iter()
            .filter(|(_, socket)| !is_held(socket))
            .map(|(tuple, _)| *tuple)
            .collect();
        for tuple in &gone {
            self.sockets.remove(tuple);
            if !self.journal.contains_key(tuple) {
                self.sessions.remove(tuple);
            }
        }
        gone
    }

    pub fn kill_kernel(&mut self) -> Vec<Tuple> {
        // What it alone knew to be released goes with it, too.
        let over = self.sockets.keys().chain(self.journal.keys());
        let over = over.copied().collect();
        *self = Self {
            kernel_up: false,
            application_up: false,
            incarnation: self.incarnation,
            life: self.life,
            ..Self::new(0)
        };
        over
    }

    pub fn boot(&mut self) {
        self.kernel_up = true;
        self.incarnation += 1_000;
    }

    /// Carries an order out. Gives the answer, if there is one, and whether the session
    /// has ended by it.
    pub fn carry_out(
        &mut self,
        id: MoveId,
        tuple: Tuple,
        order: &Order,
        now: u64,
    ) -> (Option<Answer>, bool) {
        if let Some((is_meant, reason, times)) = &mut self.refuses
            && *times > 0
            && is_meant(order)
        {
            *times -= 1;
            return (Some(Answer::Cannot(*reason)), false);
        }
        let is_applications = matches!(
            order,
            Order::Export
                | Order::GiveBack { .. }
                | Order::Open
                | Order::Import { .. }
                | Order::HandOver { .. }
                | Order::Recover
        );
        if self.hangs && is_applications {
            return (None, false);
        }
        let gone = Answer::Cannot(Reason::Gone);
        let no_application = Answer::Cannot(Reason::ApplicationGone);
        let up = self.application_up;
        let socket = self.sockets.get_mut(&tuple);
        let done = |is_done: bool| if is_done { Answer::Done } else { gone.clone() };
        let answer = match order {
            Order::Export => match socket.filter(|_| self.serving.remove(&tuple)) {
                Some(socket) => {
                    socket.agent = true;
                    self.exported.insert(tuple);
                    let blob = b"state".to_vec().into();
                    Answer::Exported { blob }
                }
                None if up => gone,
                None => no_application,
            },
            Order::Check => done(socket.is_some()),
            Order::Journal {
                phase,
                generation,
                peer,
            } => {
                let entry = Entry {
                    tuple,
                    number: id.number,
                    since: now,
                    generation: *generation,
                    peer: *peer,
                    phase: *phase,
                };
                self.journal.insert(tuple, entry);
                Answer::Done
            }
            Order::Read => match socket {
                Some(socket) => {
                    socket.repair = true;
                    let tcp = socket.progress.to_be_bytes().to_vec();
                    Answer::Read { tcp }
                }
                None => gone,
            },
            Order::Recheck => done(socket.is_some()),
            Order::Destroy => {
                self.sockets.remove(&tuple);
                self.sessions.remove(&tuple);
                Answer::Done
            }
            Order::Resume => {
                let is_held = socket.map(|socket| socket.repair = false).is_some();
                if is_held {
                    let phase = self.journal.remove(&tuple).map(|entry| entry.phase);
                    assert_ne!(phase, Some(Phase::Released), "resumed after the release");
                }
                done(is_held)
            }
            Order::GiveBack { .. } => {
                let holds = socket.is_some_and(|socket| {
                    socket.agent = false;
                    socket.application
                });
                self.exported.remove(&tuple);
                let over = self.close().contains(&tuple);
                if holds {
                    self.serving.insert(tuple);
                    return (Some(Answer::Done), false);
                }
                return (Some(no_application), over);
            }
            Order::Committed => {
                self.exported.remove(&tuple);
                return (None, false);
            }
            Order::Settle => {
                let entry = self.journal.remove(&tuple);
                assert!(entry.is_none_or(|entry| entry.number == id.number));
                return (None, false);
            }
            Order::Recover => {
                let socket = socket.filter(|socket| socket.application);
                let is_here = socket.map(|socket| socket.agent = true).is_some();
                if is_here {
                    Answer::Done
                } else {
                    no_application
                }
            }
            Order::Open if up => {
                self.opened.insert(tuple);
                Answer::Done
            }
            Order::Restore { tcp } if self.opened.contains(&tuple) => {
                assert!(socket.is_none(), "restored over a socket");
                let progress = u64::from_be_bytes(tcp[..].try_into().unwrap());
                let socket = Socket {
                    progress,
                    repair: true,
                    agent: true,
                    application: true,
                };
                self.sockets.insert(tuple, socket);
                Answer::Done
            }
            Order::Import { .. } if self.opened.remove(&tuple) => {
                self.imported.insert(tuple);
                Answer::Done
            }
            Order::Activate => done(socket.map(|socket| socket.repair = false).is_some()),
            Order::HandOver { blob }
                if up && (self.imported.contains(&tuple) || !blob.is_empty()) =>
            {
                if let Some(socket) = socket {
                    socket.application = true;
                }
                self.imported.insert(tuple);
                Answer::Done
            }
            Order::Adopt { generation } => {
                self.sessions.insert(tuple, *generation);
                self.journal.remove(&tuple);
                Answer::Done
            }
            Order::Serve => {
                if self.imported.remove(&tuple) {
                    self.serving.insert(tuple);
                }
                if let Some(socket) = socket {
                    socket.agent = false;
                }
                let over = self.close().contains(&tuple);
                return (None, over);
            }
            Order::Drop => {
                self.sockets.remove(&tuple);
                self.opened.remove(&tuple);
                self.imported.remove(&tuple);
                let entry = self.journal.remove(&tuple);
                assert!(entry.is_none_or(|entry| entry.number == id.number));
                Answer::Done
            }
            Order::Open | Order::Restore { .. } | Order::Import { .. } | Order::HandOver { .. } => {
                no_application
            }
        };
        (Some(answer), false)
    }
}

/// What a host's machines see of it.
pub(super) struct View {
    pub sessions: BTreeMap<Tuple, u32>,
    pub drains: bool,
    pub application: Option<Application>,
    pub members: Vec<HostId>,
    pub reached: Option<u64>,
}

impl Local for View {
    fn has_service(&self, service: &Service) -> bool {
        service.port.number() == 80
    }

    fn drains(&self) -> bool {
        self.drains
    }

    fn application(&self, _: &Service) -> Option<Application> {
        self.application.clone()
    }

    fn session(&self, tuple: &Tuple) -> Option<u32> {
        self.sessions.get(tuple).copied()
    }

    fn members(&self) -> Vec<HostId> {
        self.members.clone()
    }

    fn reached_since(&self) -> Option<u64> {
        self.reached
    }
}
