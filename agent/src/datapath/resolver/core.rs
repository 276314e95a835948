//! What is known of each host's way, and what follows from it. Sans-IO: inputs
//! and the time in, actions out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use homing_common::host::{HostId, Template};

use super::model::{Action, Input, Link, Neighbour, NextHop, NoRoute, Route, State, Way, Ways};
use crate::datapath::{
    hosts::Change,
    template::{Hop, Mac, Outer},
};

/// How long changes are gathered before the kernel is asked.
pub const DEBOUNCE: Duration = Duration::from_millis(50);
/// The least time between two questions of the same kind about the same thing, so
/// that routes that keep changing cost a bounded share of the machine.
pub const SPACING: Duration = Duration::from_millis(250);
/// How often everything is asked anew, in case a notification was missed. Path
/// MTUs, which expire without one, are the main case.
pub const REFRESH: Duration = Duration::from_secs(30);
/// How often the kernel is told to resolve a next hop that does not answer.
pub const PROBE: Duration = Duration::from_secs(1);
/// How often it is told so, and to begin anew, at first: for a next hop that has not
/// been used, and when its link has just come up. The other end may not be ready for
/// the very first question, and the kernel asks but once a second.
pub const FIRST_PROBE: Duration = Duration::from_millis(200);
/// How many times that is. Then the kernel is left to come to its own conclusion.
const FIRST_PROBES: u8 = 4;

struct Entry {
    address: IpAddr,
    /// None: not answered yet.
    route: Option<Result<Route, NoRoute>>,
    route_due: Due,
    /// What was last written; none: unknown.
    written: Option<Template>,
    state: State,
}

/// When to ask for something.
#[derive(Default)]
struct Due {
    at: Option<Duration>,
    asked: Option<Duration>,
}

impl Due {
    /// What was asked for has changed.
    fn changed(&mut self, now: Duration) {
        let spaced = self.asked.map_or(now, |asked| asked + SPACING);
        let at = spaced.max(now + DEBOUNCE);
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Whether to ask now. If so, that is taken as done.
    fn take(&mut self, now: Duration) -> bool {
        let due = self.at.is_some_and(|at| now >= at);
        if due {
            self.at = None;
            self.asked = Some(now);
        }
        due
    }
}

impl Entry {
    fn next_hop(&self) -> Option<NextHop> {
        let route = self.route?.ok()?;
        Some((route.ifindex, route.gateway.unwrap_or(self.address)))
    }
}

/// A next hop that some host uses.
#[derive(Default)]
struct Hopped {
    hosts: BTreeSet<HostId>,
    /// None: not answered yet, or no entry.
    neighbour: Option<Neighbour>,
    /// The last Ethernet address that did not fail.
    mac: Option<Mac>,
    probe_at: Option<Duration>,
    /// First probes that are left.
    first_probes: u8,
}

impl Hopped {
    /// Resolves it quickly, from now on.
    fn begin(&mut self, now: Duration) {
        self.first_probes = FIRST_PROBES;
        self.probe_at = Some(now);
    }

    /// The kernel is at it: when to ask again.
    fn wait(&mut self, now: Duration) {
        let at = match self.first_probes {
            0 => now + PROBE,
            _ => now + FIRST_PROBE,
        };
        self.probe_at = Some(self.probe_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// What to ask of the kernel, if it is time to.
    fn probe(&mut self, now: Duration, hop: NextHop) -> Option<Action> {
        self.probe_at.take_if(|at| now >= *at)?;
        let first = self.first_probes > 0;
        self.first_probes = self.first_probes.saturating_sub(1);
        self.wait(now);
        Some(match self.neighbour {
            Some(Neighbour::Pending) if first => Action::Renew(hop),
            _ => Action::Probe(hop),
        })
    }
}

/// The state machine.
pub struct Machine {
    outer: Outer,
    hosts: BTreeMap<HostId, Entry>,
    links: HashMap<u32, Link>,
    next_hops: HashMap<NextHop, Hopped>,
    links_due: Due,
    refresh_due: Due,
    news: bool,
}

impl Machine {
    /// A machine that knows nothing and whose first refresh is due at once.
    pub fn new(outer: Outer) -> Self {
        Self {
            outer,
            hosts: BTreeMap::new(),
            links: HashMap::new(),
            next_hops: HashMap::new(),
            links_due: Due::default(),
            refresh_due: Due {
                at: Some(Duration::ZERO),
                asked: None,
            },
            news: false,
        }
    }

    /// Takes in one input.
    pub fn input(&mut self, now: Duration, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Member(id, address) => self.member(now, id, address, out),
            Input::Gone(id) => self.gone(id, out),
            Input::Route(id, address, route) => self.route(id, address, route, out),
            Input::Links(links) => self.links(now, links, out),
            Input::Neighbour(hop, neighbour) => self.neighbour(now, hop, neighbour, out),
            Input::LinksChanged => self.links_due.changed(now),
            Input::NeighbourChanged(hop) => {
                if self.next_hops.contains_key(&hop) {
                    out.push(Action::FindNeighbour(hop));
                }
            }
            Input::RouteChanged(prefix, len) => {
                for entry in self.hosts.values_mut() {
                    if contains(prefix, len, entry.address) {
                        entry.route_due.changed(now);
                    }
                }
            }
            Input::Refresh => self.refresh_due.changed(now),
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.refresh_due.take(now) {
            self.refresh_due.at = Some(now + REFRESH);
            self.links_due.at = Some(now);
            for (&hop, hopped) in &mut self.next_hops {
                out.push(Action::FindNeighbour(hop));
                // XDP uses the address without the kernel's knowledge, so the
                // kernel would never check it again by itself.
                if matches!(hopped.neighbour, Some(Neighbour::Known { stale: true, .. })) {
                    out.push(Action::Probe(hop));
                }
            }
            for entry in self.hosts.values_mut() {
                entry.route_due.at = Some(now);
            }
        }
        if self.links_due.take(now) {
            out.push(Action::ReadLinks);
        }
        for (&id, entry) in &mut self.hosts {
            if entry.route_due.take(now) {
                out.push(Action::FindRoute(id, entry.address));
            }
        }
        for (&hop, hopped) in &mut self.next_hops {
            out.extend(hopped.probe(now, hop));
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn deadline(&self) -> Duration {
        let routes = self.hosts.values().filter_map(|entry| entry.route_due.at);
        let probes = self.next_hops.values().filter_map(|hop| hop.probe_at);
        let own = [self.links_due.at, self.refresh_due.at];
        let all = routes.chain(probes).chain(own.into_iter().flatten());
        all.min().unwrap_or(Duration::MAX)
    }

    /// Whether the ways may have changed since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The ways to all members.
    pub fn ways(&self) -> Ways {
        let way = |entry: &Entry| {
            let route = entry.route.and_then(Result::ok);
            let link = route.and_then(|route| self.links.get(&route.ifindex));
            let hop = entry.next_hop();
            Way {
                address: entry.address,
                next_hop: hop.map(|(_, address)| address),
                mac: hop.and_then(|hop| self.next_hops.get(&hop)?.mac),
                interface: link.map(|link| link.name.clone()),
                mtu: route.zip(link).map(|(route, link)| mtu(&route, link)),
                state: entry.state,
            }
        };
        let hosts = self.hosts.iter();
        hosts.map(|(&id, entry)| (id, way(entry))).collect()
    }

    fn member(&mut self, now: Duration, id: HostId, address: IpAddr, out: &mut Vec<Action>) {
        if id == self.outer.host {
            return;
        }
        let member = Change {
            member: Some(true),
            template: None,
        };
        out.push(Action::Write(id, member));
        let known = self.hosts.get(&id);
        if known.is_some_and(|entry| entry.address == address) {
            return;
        }
        let written = known.and_then(|entry| entry.written);
        self.unhook(id);
        self.news = true;
        let entry = Entry {
            address,
            route: None,
            route_due: Due {
                at: Some(now),
                asked: None,
            },
            written,
            state: State::Resolving,
        };
        self.hosts.insert(id, entry);
    }

    fn gone(&mut self, id: HostId, out: &mut Vec<Action>) {
        if id == self.outer.host {
            return;
        }
        self.unhook(id);
        self.news |= self.hosts.remove(&id).is_some();
        out.push(Action::Write(id, Change::GONE));
    }

    fn route(
        &mut self,
        id: HostId,
        address: IpAddr,
        route: Result<Route, NoRoute>,
        out: &mut Vec<Action>,
    ) {
        // The answer may be to a question about an address the host had before.
        let Some(entry) = self.hosts.get(&id).filter(|entry| entry.address == address) else {
            return;
        };
        if entry.route != Some(route) {
            self.unhook(id);
            if let Some(entry) = self.hosts.get_mut(&id) {
                entry.route = Some(route);
                if let Some(hop) = entry.next_hop() {
                    let hopped = self.next_hops.entry(hop).or_default();
                    if hopped.hosts.is_empty() {
                        hopped.first_probes = FIRST_PROBES;
                        out.push(Action::FindNeighbour(hop));
                    }
                    hopped.hosts.insert(id);
                }
            }
        }
        self.evaluate(id, out);
    }

    fn links(&mut self, now: Duration, links: Vec<(u32, Link)>, out: &mut Vec<Action>) {
        let links: HashMap<_, _> = links.into_iter().collect();
        if self.links == links {
            return;
        }
        let came_up = |ifindex: &u32| {
            let up = |links: &HashMap<u32, Link>| links.get(ifindex).is_some_and(|link| link.up);
            up(&links) && !up(&self.links)
        };
        for ((ifindex, _), hopped) in &mut self.next_hops {
            let known = matches!(hopped.neighbour, Some(Neighbour::Known { .. }));
            if came_up(ifindex) && !known {
                hopped.begin(now);
            }
        }
        self.links = links;
        self.news = true;
        // Routes come and go with links, and not every such change is notified.
        for entry in self.hosts.values_mut() {
            entry.route_due.changed(now);
        }
        let ids: Vec<_> = self.hosts.keys().copied().collect();
        for id in ids {
            self.evaluate(id, out);
        }
    }

    fn neighbour(
        &mut self,
        now: Duration,
        hop: NextHop,
        neighbour: Option<Neighbour>,
        out: &mut Vec<Action>,
    ) {
        let Some(hopped) = self.next_hops.get_mut(&hop) else {
            return;
        };
        hopped.neighbour = neighbour;
        match neighbour {
            Some(Neighbour::Known { mac, .. }) => {
                hopped.mac = Some(mac);
                hopped.probe_at = None;
                hopped.first_probes = 0;
            }
            // The kernel is at it; it says how it ends.
            Some(Neighbour::Pending) => hopped.wait(now),
            Some(Neighbour::Failed) => {
                hopped.mac = None;
                hopped.probe_at = hopped.probe_at.or(Some(now + PROBE));
            }
            None => hopped.probe_at = Some(now),
        }
        let ids: Vec<_> = hopped.hosts.iter().copied().collect();
        for id in ids {
            self.evaluate(id, out);
        }
    }

    /// Removes a host from its next hop, and the next hop if nobody else uses it.
    fn unhook(&mut self, id: HostId) {
        let Some(hop) = self.hosts.get(&id).and_then(Entry::next_hop) else {
            return;
        };
        if let Some(hopped) = self.next_hops.get_mut(&hop) {
            hopped.hosts.remove(&id);
            if hopped.hosts.is_empty() {
                self.next_hops.remove(&hop);
            }
        }
    }

    /// Works out a host's way, and writes it if it has changed.
    fn evaluate(&mut self, id: HostId, out: &mut Vec<Action>) {
        self.news = true;
        let Some(entry) = self.hosts.get(&id) else {
            return;
        };
        let found = self.find(entry);
        let outer = self.outer;
        let Some(entry) = self.hosts.get_mut(&id) else {
            return;
        };
        let template = match found {
            Ok(hop) => {
                entry.state = State::Resolved;
                outer.template(id, &hop)
            }
            Err(state) => {
                entry.state = state;
                if state == State::Resolving {
                    return;
                }
                Template::NONE
            }
        };
        if entry.written != Some(template) {
            entry.written = Some(template);
            let change = Change {
                member: None,
                template: Some(template),
            };
            out.push(Action::Write(id, change));
        }
    }

    fn find(&self, entry: &Entry) -> Result<Hop, State> {
        let route = match entry.route {
            None => return Err(State::Resolving),
            Some(Err(NoRoute::Unreachable)) => return Err(State::NoRoute),
            Some(Err(NoRoute::Local)) => return Err(State::OwnAddress),
            Some(Ok(route)) => route,
        };
        let link = self.links.get(&route.ifindex).ok_or(State::Resolving)?;
        if !link.up {
            return Err(State::LinkDown);
        }
        let source = link.mac.ok_or(State::NotEthernet)?;
        let (ifindex, vlan) = match link.vlan {
            None => (route.ifindex, None),
            Some((below, vlan)) => {
                let lower = self.links.get(&below).ok_or(State::Resolving)?;
                if lower.vlan.is_some() {
                    return Err(State::NotEthernet);
                }
                (below, Some(vlan))
            }
        };
        let hopped = entry.next_hop().and_then(|hop| self.next_hops.get(&hop));
        let hopped = hopped.ok_or(State::Resolving)?;
        if hopped.neighbour == Some(Neighbour::Failed) {
            return Err(State::Unanswered);
        }
        Ok(Hop {
            ifindex,
            vlan,
            source,
            destination: hopped.mac.ok_or(State::Resolving)?,
            mtu: mtu(&route, link),
        })
    }
}

fn mtu(route: &Route, link: &Link) -> u16 {
    let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// Whether a prefix holds an address. One of the other family does not.
fn contains(prefix: IpAddr, len: u8, address: IpAddr) -> bool {
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => {
            let shift = 32u32.saturating_sub(len.into());
            let differ = u32::from(prefix) ^ u32::from(address);
            differ.checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(prefix), IpAddr::V6(address)) => {
            let shift = 128u32.saturating_sub(len.into());
            let differ = u128::from(prefix) ^ u128::from(address);
            differ.checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
