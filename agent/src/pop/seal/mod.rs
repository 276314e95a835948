//! Sealed datagrams: every UDP datagram between hosts, membership and gossip
//! alike, is authenticated and safe against replay.
//!
//! A datagram is a header, a body and a tag (keyed BLAKE3, 16 bytes) over both.
//! The header names origin, destination, the life of the origin's agent
//! ([`Stream`]) and a sequence number that grows by one per destination. A
//! receiver keeps a sliding window per origin for what is addressed to it and
//! one for what is multicast.
//!
//! **A receiver without a window** has no way to tell a fresh datagram from a
//! recorded one. So it drops the datagram and sends a *challenge* with a nonce;
//! only the origin's *answer*, which carries the nonce and the origin's present
//! sequence numbers, opens the windows. Nonces are made from a secret, the
//! origin, its address and the time, so that challenges need no memory and
//! nobody can fill any.
//!
//! **One life at a time.** An answer from an older life than the one known is
//! refused, and the origin is told the known incarnation, bound to a nonce in
//! its answer, so that it can begin a life above it. While a host is heard at one
//! address, or has its id by membership ([`Holder`]), an answer for its id from
//! another address is refused too, and reported: two machines have been given the
//! same id.
//!
//! Limits: challenges, answers and refusals are limited per host and altogether;
//! a reply is never larger than what caused it; tables have one entry per host id.
//! Replies to the address that a host is known at have limits of their own: who
//! sends recorded datagrams from elsewhere cannot use them up.

mod frame;
mod guard;
mod view;

use std::net::SocketAddr;

use homing_common::host::{HostId, MAX_HOSTS};

pub use self::{
    frame::{Channel, OVERHEAD_LEN, VERSION},
    view::{Counters, Dropped, Received, To},
};
use self::{
    frame::{Control, Header, Refusal},
    guard::{Limiter, Nonces, Purpose},
};
use super::{
    MS, SECOND, Stream,
    keys::Keys,
    membership::Holder,
    window::{Freshness, Window},
};

/// A challenge to one host is repeated at most this often.
const CHALLENGE_INTERVAL: u64 = 50 * MS;
/// One host's challenges are answered, and its answers refused, at most this often.
const REPLY_INTERVAL: u64 = 25 * MS;
/// A host id stays with the address it was heard from for this long.
const ADDRESS_HOLD: u64 = 5 * SECOND;

/// Who this host is to the seal.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its id.
    pub host: HostId,
    /// The present life of its agent.
    pub stream: Stream,
    /// Its fabric address.
    pub address: SocketAddr,
}

/// Seals what this host sends, and opens what it hears.
pub struct Seal {
    keys: Keys,
    nonces: Nonces,
    me: Identity,
    /// The next sequence number per destination.
    next_unicast: Vec<u64>,
    next_multicast: u64,
    hosts: Vec<HostState>,
    /// Datagrams dropped because of their key, by its id.
    wrong_keys: [u64; 256],
    /// For replies to where hosts are known, and elsewhere.
    home: Limiter,
    elsewhere: Limiter,
    /// What happened so far.
    pub counters: Counters,
}

/// What is kept per host id.
#[derive(Default)]
struct HostState {
    windows: Option<Box<Windows>>,
    /// The machine that has the id by membership: no other is let in.
    holder: Option<Holder>,
    /// What was last sent to it where it is known, and elsewhere.
    home: Replies,
    elsewhere: Replies,
}

/// When a host was last challenged, answered and refused.
#[derive(Default)]
struct Replies {
    challenged_at: Option<u64>,
    answered_at: Option<u64>,
    refused_at: Option<u64>,
}

struct Windows {
    stream: Stream,
    address: SocketAddr,
    unicast: Window,
    multicast: Window,
    heard_at: u64,
    /// The key that it signs with.
    key_id: u8,
}

impl Seal {
    /// A seal for a host. `secret` must be random and new for each process.
    pub fn new(keys: Keys, me: Identity, secret: [u8; 32]) -> Self {
        Self {
            keys,
            nonces: Nonces::new(secret),
            me,
            next_unicast: vec![1; MAX_HOSTS as usize],
            next_multicast: 1,
            hosts: std::iter::repeat_with(HostState::default)
                .take(MAX_HOSTS as usize)
                .collect(),
            wrong_keys: [0; 256],
            home: Limiter::new(),
            elsewhere: Limiter::new(),
            counters: Counters::default(),
        }
    }

    /// Begins another life of this host: sequence numbers start over.
    pub fn restart(&mut self, stream: Stream) {
        self.me.stream = stream;
        self.next_unicast.fill(1);
        self.next_multicast = 1;
    }

    /// The machine that has an id, by membership; none while any may have it.
    pub fn set_holder(&mut self, host: HostId, holder: Option<Holder>) {
        if let Some(state) = self.hosts.get_mut(usize::from(host.0)) {
            state.holder = holder;
        }
    }

    /// Goes on with other keys. Windows stay: what a host is known by is its life,
    /// not its key.
    pub fn rekey(&mut self, keys: Keys) {
        self.keys = keys;
    }

    /// The keys in use.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The id of the key that a host signs with, once it was heard.
    pub fn key_of(&self, host: HostId) -> Option<u8> {
        let windows = self.hosts[usize::from(host.0)].windows.as_ref();
        windows.map(|windows| windows.key_id)
    }

    /// Datagrams dropped because their key is not accepted, by its id.
    pub fn wrong_keys(&self) -> impl Iterator<Item = (u8, u64)> {
        let counts = self.wrong_keys.iter().enumerate();
        counts
            .filter(|(_, count)| **count > 0)
            .map(|(id, &count)| (id as u8, count))
    }

    /// Seals a message into a new datagram. The body must not be longer than
    /// [`super::BODY_LEN_MAX`].
    pub fn seal(&mut self, channel: Channel, to: To, body: &[u8]) -> Vec<u8> {
        let (destination, sequence) = match to {
            To::Host(host) => (host.0, &mut self.next_unicast[usize::from(host.0)]),
            To::Domain => (frame::MULTICAST, &mut self.next_multicast),
        };
        let header = Header {
            channel,
            origin: self.me.host,
            destination,
            stream: self.me.stream,
            sequence: *sequence,
        };
        *sequence += 1;
        self.counters.sealed += 1;
        frame::write(&self.keys, &header, body)
    }

    /// Opens a datagram that came from an address.
    pub fn open<'a>(
        &mut self,
        now: u64,
        from: SocketAddr,
        datagram: &'a [u8],
    ) -> Result<Received<'a>, Dropped> {
        let (header, body, key_id) = match frame::read(&self.keys, datagram) {
            Ok(parts) => parts,
            Err(error) => {
                let c = &mut self.counters;
                if let frame::Error::Key(id) = error {
                    self.wrong_keys[usize::from(id)] += 1;
                }
                return drop_as(match error {
                    frame::Error::Length => &mut c.bad_length,
                    frame::Error::Foreign => &mut c.foreign,
                    frame::Error::Version => &mut c.unknown_version,
                    frame::Error::Key(_) => &mut c.wrong_key,
                    frame::Error::Tag => &mut c.forged,
                    frame::Error::Header => &mut c.malformed,
                });
            }
        };
        if header.origin == self.me.host {
            if same_address(from, self.me.address) {
                return drop_as(&mut self.counters.own);
            }
            // No other machine has this life.
            if header.stream == self.me.stream {
                return drop_as(&mut self.counters.own_returned);
            }
            self.counters.own_id_elsewhere += 1;
            return Ok(Received::OwnIdElsewhere);
        }
        let multicast = header.destination == frame::MULTICAST;
        if !multicast && header.destination != self.me.host.0 {
            return drop_as(&mut self.counters.wrong_destination);
        }
        if header.channel == Channel::Control {
            return self.control(now, from, &header, key_id, body);
        }
        let known = self.hosts[usize::from(header.origin.0)].windows.as_mut();
        let Some(windows) =
            known.filter(|w| w.stream == header.stream && same_address(w.address, from))
        else {
            self.counters.no_window += 1;
            return self.challenge(now, from, header.origin);
        };
        let window = if multicast {
            &mut windows.multicast
        } else {
            &mut windows.unicast
        };
        match window.take(header.sequence) {
            Freshness::Fresh => {}
            Freshness::Replayed => return drop_as(&mut self.counters.replayed),
            Freshness::TooOld => return drop_as(&mut self.counters.too_old),
        }
        windows.heard_at = now;
        windows.key_id = key_id;
        self.counters.accepted += 1;
        Ok(Received::Message {
            origin: header.origin,
            stream: header.stream,
            channel: header.channel,
            multicast,
            body,
        })
    }

    fn control<'a>(
        &mut self,
        now: u64,
        from: SocketAddr,
        header: &Header,
        key_id: u8,
        body: &[u8],
    ) -> Result<Received<'a>, Dropped> {
        let peer = header.origin;
        match Control::decode(body) {
            None => drop_as(&mut self.counters.malformed),
            Some(Control::Challenge { nonce }) => self.answer(now, from, peer, nonce),
            Some(Control::Answer {
                nonce,
                next_unicast,
                next_multicast,
                own_nonce,
            }) => {
                if !self
                    .nonces
                    .is_ours(now, Purpose::Challenge, peer, from, nonce)
                {
                    return drop_as(&mut self.counters.unasked);
                }
                if let Some(holder) = self.holder_against(now, peer, from, header.stream) {
                    let refusal = Refusal::InUse;
                    let bytes = self.refuse(now, from, peer, own_nonce, refusal)?;
                    self.counters.contested_refused += 1;
                    return Ok(Received::Contested {
                        host: peer,
                        holder,
                        bytes,
                    });
                }
                if let Some(known) = &self.hosts[usize::from(peer.0)].windows {
                    let same = same_address(known.address, from);
                    if header.stream < known.stream {
                        let refusal = Refusal::Stale {
                            incarnation: known.stream.incarnation,
                        };
                        let bytes = self.refuse(now, from, peer, own_nonce, refusal)?;
                        self.counters.stale_refused += 1;
                        return Ok(Received::Reply {
                            peer,
                            answer: false,
                            bytes,
                        });
                    }
                    if same && header.stream == known.stream {
                        // A second answer: the windows are open, and opening them
                        // again would drop what is under way.
                        return drop_as(&mut self.counters.unasked);
                    }
                }
                self.hosts[usize::from(peer.0)].windows = Some(Box::new(Windows {
                    stream: header.stream,
                    address: from,
                    unicast: Window::new(next_unicast),
                    multicast: Window::new(next_multicast),
                    heard_at: now,
                    key_id,
                }));
                self.counters.windows_opened += 1;
                Ok(Received::Opened(peer))
            }
            Some(Control::Refusal { nonce, refusal }) => {
                if !self.nonces.is_ours(now, Purpose::Answer, peer, from, nonce) {
                    return drop_as(&mut self.counters.unasked);
                }
                match refusal {
                    Refusal::InUse => {
                        self.counters.told_in_use += 1;
                        Ok(Received::InUse { by: peer })
                    }
                    // An equal incarnation is refused when its generation is old.
                    Refusal::Stale { incarnation } if incarnation >= self.me.stream.incarnation => {
                        self.counters.told_stale += 1;
                        Ok(Received::Outdated {
                            above: incarnation,
                            by: peer,
                        })
                    }
                    Refusal::Stale { .. } => drop_as(&mut self.counters.unasked),
                }
            }
        }
    }

    /// Where the machine is that keeps an id against a life at another address: the
    /// one that has it by membership, or that was heard a moment ago.
    fn holder_against(
        &self,
        now: u64,
        peer: HostId,
        from: SocketAddr,
        stream: Stream,
    ) -> Option<SocketAddr> {
        let state = &self.hosts[usize::from(peer.0)];
        if let Some(holder) = &state.holder {
            let refuses = holder.refuses(from, stream.incarnation);
            return refuses.then_some(holder.address);
        }
        let known = state.windows.as_ref()?;
        let is_held = !same_address(known.address, from) && now < known.heard_at + ADDRESS_HOLD;
        is_held.then_some(known.address)
    }

    /// Drops a datagram for which there is no window, with a challenge if the
    /// limits allow one.
    fn challenge<'a>(
        &mut self,
        now: u64,
        from: SocketAddr,
        peer: HostId,
    ) -> Result<Received<'a>, Dropped> {
        self.may_reply(now, from, peer, CHALLENGE_INTERVAL, |to| {
            &mut to.challenged_at
        })?;
        let nonce = self.nonces.make(now, Purpose::Challenge, peer, from);
        self.counters.challenges_sent += 1;
        Ok(Received::Reply {
            peer,
            answer: false,
            bytes: self.control_datagram(peer, &Control::Challenge { nonce }),
        })
    }

    fn answer<'a>(
        &mut self,
        now: u64,
        from: SocketAddr,
        peer: HostId,
        nonce: u64,
    ) -> Result<Received<'a>, Dropped> {
        self.may_reply(now, from, peer, REPLY_INTERVAL, |to| &mut to.answered_at)?;
        let answer = Control::Answer {
            nonce,
            next_unicast: self.next_unicast[usize::from(peer.0)],
            next_multicast: self.next_multicast,
            own_nonce: self.nonces.make(now, Purpose::Answer, peer, from),
        };
        self.counters.answers_sent += 1;
        Ok(Received::Reply {
            peer,
            answer: true,
            bytes: self.control_datagram(peer, &answer),
        })
    }

    fn refuse(
        &mut self,
        now: u64,
        from: SocketAddr,
        peer: HostId,
        nonce: u64,
        refusal: Refusal,
    ) -> Result<Vec<u8>, Dropped> {
        self.may_reply(now, from, peer, REPLY_INTERVAL, |to| &mut to.refused_at)?;
        Ok(self.control_datagram(peer, &Control::Refusal { nonce, refusal }))
    }

    fn control_datagram(&self, peer: HostId, control: &Control) -> Vec<u8> {
        let header = Header {
            channel: Channel::Control,
            origin: self.me.host,
            destination: peer.0,
            stream: self.me.stream,
            sequence: 0,
        };
        frame::write(&self.keys, &header, &control.encode())
    }

    /// Charges a reply of a kind to a host, if the limits allow one now.
    fn may_reply(
        &mut self,
        now: u64,
        to: SocketAddr,
        peer: HostId,
        interval: u64,
        kind: impl Fn(&mut Replies) -> &mut Option<u64>,
    ) -> Result<(), Dropped> {
        let state = &mut self.hosts[usize::from(peer.0)];
        let holder = state.holder.map(|holder| holder.address);
        let known = holder.or(state.windows.as_ref().map(|windows| windows.address));
        let (replies, limiter) = match known {
            Some(known) if same_address(known, to) => (&mut state.home, &mut self.home),
            _ => (&mut state.elsewhere, &mut self.elsewhere),
        };
        let last = kind(replies);
        let too_soon = last.is_some_and(|last| now < last + interval);
        if too_soon || !limiter.take(now) {
            return drop_as(&mut self.counters.rate_limited);
        }
        *last = Some(now);
        Ok(())
    }
}

/// Counts a drop.
fn drop_as<T>(counter: &mut u64) -> Result<T, Dropped> {
    *counter += 1;
    Err(Dropped)
}

/// Whether two socket addresses are the same, whatever their scope and flow.
fn same_address(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

#[cfg(test)]
mod tests;
