//! How message sockets come to be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
};

use bytes::BytesMut;
use homing_client::message::wire::{Opened, Refused};
use homing_common::host::HostId;

use super::{Core, Output, Role, Socket};
use crate::mux::sockets::{
    PeerInfo,
    bundle::{Said, SocketId},
    offers,
    port::Port,
    table::PLACES,
};

/// A message socket that is to be connected.
pub(super) struct Connecting<P> {
    port: P,
    batches: bool,
    name: Arc<str>,
    /// The only host to ask, if there is one.
    host: Option<HostId>,
    /// Hosts that are still to be asked in this round, the next one last.
    round: Vec<HostId>,
    /// Hosts that were asked, and have not answered.
    asked: Vec<HostId>,
    until: u64,
    /// When the next round begins, and when the next host of this one is asked although
    /// the one before has not answered.
    round_at: u64,
    next_at: u64,
    /// What the last answer was.
    last: Refused,
}

/// What an application wants to be connected to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The service.
    pub name: &'a str,
    /// The host, unless any will do.
    pub host: Option<HostId>,
    /// It takes several records in one datagram.
    pub batches: bool,
    /// For how long to try, in microseconds.
    pub within: u64,
}

impl<P: Port> Core<P> {
    /// Makes a message socket that offers a service.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn offer(
        &mut self,
        port: P,
        name: &str,
        batches: bool,
    ) -> Result<(SocketId, Opened), Refused> {
        if self.is_full() {
            self.counters.refused += 1;
            return Err(Refused::TooMany);
        }
        let name = self.service(name).unwrap_or_else(|| name.into());
        let hosts = BTreeSet::new();
        let role = Role::Service {
            name: name.clone(),
            hosts,
        };
        let id = self.sockets.insert(Socket::new(port, role, batches));
        self.services.entry(name).or_default().push_back(id);
        self.count_offers();
        self.counters.offered += 1;
        let opened = Opened {
            message_max: self.limits.message_max as u32,
            peer: 0,
        };
        Ok((id, opened))
    }

    fn is_full(&self) -> bool {
        self.sockets.len() + self.connecting.len() >= self.limits.sockets.min(PLACES)
    }

    /// Begins to connect a message socket: [`Output::Connected`] says what came of it.
    ///
    /// # Errors
    ///
    /// There are too many, or there is no such host.
    pub fn connect(&mut self, port: P, wanted: &Wanted<'_>, now: u64) -> Result<u32, Refused> {
        let is_there = |host| host == self.me || self.peers.contains_key(&host);
        let refused = if self.is_full() || self.connecting.len() >= self.limits.connecting {
            Some(Refused::TooMany)
        } else {
            let unknown = wanted.host.is_some_and(|host| !is_there(host));
            unknown.then_some(Refused::NoHost)
        };
        if let Some(why) = refused {
            self.counters.refused += 1;
            return Err(why);
        }
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let request = self.next_request;
        let one = Connecting {
            port,
            batches: wanted.batches,
            name: wanted.name.into(),
            host: wanted.host,
            round: Vec::new(),
            asked: Vec::new(),
            // Time for an answer there must be.
            until: now + wanted.within.max(Self::TICK * 1000),
            round_at: now,
            next_at: now,
            last: Refused::NoService,
        };
        self.connecting.insert(request, one);
        self.ask(request, now);
        Ok(request)
    }

    /// The application no longer waits for it.
    pub fn forget(&mut self, request: u32) {
        self.connecting.remove(&request);
    }

    /// Begins a round of asking.
    fn ask(&mut self, request: u32, now: u64) {
        let Some(one) = self.connecting.get(&request) else {
            return;
        };
        let (host, name) = (one.host, one.name.clone());
        let round = host.map_or_else(|| self.who_may_offer(&name), |host| vec![host]);
        if let Some(one) = self.connecting.get_mut(&request) {
            one.round = round;
            one.round_at = now + self.limits.ask_every.as_micros() as u64;
        }
        self.ask_next(request, now);
    }

    /// Those who seem to offer a service, the first choice last: hosts that drain come
    /// last, else chance decides.
    fn who_may_offer(&mut self, name: &str) -> Vec<HostId> {
        let may = |info: &PeerInfo| offers::may_be_in(info.offers, name);
        let peers = self.peers.iter().filter(|(_, info)| may(info));
        let mut hosts: Vec<_> = peers.map(|(host, info)| (info.draining, *host)).collect();
        if self.services.contains_key(name) {
            hosts.push((false, self.me));
        }
        let mut keyed: Vec<_> = hosts
            .into_iter()
            .map(|(draining, host)| (draining, self.sockets.random(), host))
            .collect();
        keyed.sort_unstable();
        keyed.into_iter().rev().map(|(.., host)| host).collect()
    }

    /// Asks the host whose turn it is.
    fn ask_next(&mut self, request: u32, now: u64) {
        let Some(one) = self.connecting.get_mut(&request) else {
            return;
        };
        let Some(host) = one.round.pop() else {
            return;
        };
        one.next_at = now + Self::TICK * 1000;
        if !one.asked.contains(&host) {
            one.asked.push(host);
        }
        let name = &one.name.clone();
        if host == self.me {
            let result = self.choose(name);
            let result = result.map(|id| (id, self.limits.message_max as u32));
            return self.opened(host, request, result, now);
        }
        self.say(host, &Said::Open { request, name });
    }

    /// The message socket of a service whose turn it is.
    fn choose(&mut self, name: &str) -> Result<SocketId, Refused> {
        let all = self.services.get_mut(name).ok_or(Refused::NoService)?;
        all.rotate_left(1);
        all.back().copied().ok_or(Refused::NoService)
    }

    /// Another host wants to be connected to a service.
    pub(super) fn opens(&mut self, host: HostId, request: u32, name: &str) {
        let result = self.choose(name);
        if let Ok(id) = result
            && let Some(socket) = self.sockets.get_mut(id)
            && let Role::Service { hosts, .. } = &mut socket.role
        {
            hosts.insert(host);
        }
        let result = result.map(|id| (id, self.limits.message_max as u32));
        self.say(host, &Said::Opened { request, result });
    }

    /// A host has answered.
    pub(super) fn opened(
        &mut self,
        host: HostId,
        request: u32,
        result: Result<(SocketId, u32), Refused>,
        now: u64,
    ) {
        let Entry::Occupied(mut one) = self.connecting.entry(request) else {
            return;
        };
        let asked = &mut one.get_mut().asked;
        let Some(at) = asked.iter().position(|asked| *asked == host) else {
            return;
        };
        asked.swap_remove(at);
        match result {
            Ok((service, message_max)) => {
                let one = one.remove();
                let role = Role::Client { host, service };
                let id = self
                    .sockets
                    .insert(Socket::new(one.port, role, one.batches));
                let all = self.connected.entry((host, service));
                all.or_default().insert(id);
                self.counters.connected += 1;
                let opened = Opened {
                    message_max: message_max.min(self.limits.message_max as u32),
                    peer: Self::address(host, service),
                };
                self.outputs
                    .push(Output::Connected(request, Ok((id, opened))));
            }
            Err(why) => {
                one.get_mut().last = why;
                self.ask_next(request, now);
            }
        }
    }

    /// Goes on with requests that have no answer, and ends those whose time is over.
    pub(super) fn hurry(&mut self, now: u64) {
        let mut all: Vec<_> = self.connecting.keys().copied().collect();
        all.sort_unstable();
        for request in all {
            let Some(one) = self.connecting.get(&request) else {
                continue;
            };
            if !one.round.is_empty() {
                if now >= one.next_at {
                    self.ask_next(request, now);
                }
            } else if now >= one.until {
                let why = match one.asked.is_empty() {
                    true => one.last,
                    false => Refused::Timeout,
                };
                self.connecting.remove(&request);
                self.counters.refused += 1;
                self.outputs.push(Output::Connected(request, Err(why)));
            } else if now >= one.round_at {
                self.ask(request, now);
            }
        }
    }

    /// Says who the other hosts are.
    pub fn set_peers(&mut self, peers: BTreeMap<HostId, PeerInfo>) {
        self.peers = peers;
        self.peers.remove(&self.me);
    }

    /// A filter of the services that are offered here.
    pub fn offers(&self) -> u64 {
        self.offers
    }

    /// The services have changed.
    pub(super) fn count_offers(&mut self) {
        self.offers = offers::of(self.services.keys().map(|name| &**name));
    }
}

impl<P> Socket<P> {
    fn new(port: P, role: Role, batches: bool) -> Self {
        Self {
            port,
            role,
            batches,
            sent: 0,
            held: 0,
            pending: BTreeMap::new(),
            turn: 0,
            blocked: HashMap::new(),
            let_on: HashMap::new(),
            open: BTreeSet::new(),
            starved: false,
            outbox: VecDeque::new(),
            outbox_len: 0,
            batch: BytesMut::new(),
            expected: 0,
            waiting: VecDeque::new(),
            waits: HashSet::new(),
            ending: None,
        }
    }
}
