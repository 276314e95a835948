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
//! address, an answer for its id from another address is refused too, and
//! reported: two machines have been given the same id.
//!
//! Limits: challenges, answers and refusals are limited per host and altogether;
//! a reply is never larger than what caused it; tables have one entry per host id.

mod frame;

use std::net::SocketAddr;

use homing_common::host::{HostId, MAX_HOSTS};

pub use self::frame::{Channel, OVERHEAD_LEN};
use self::frame::{Control, Header, Refusal};
use super::{
    MS, SECOND, Stream,
    counters::counters,
    keys::Keys,
    window::{Freshness, Window},
};

/// A challenge to one host is repeated at most this often.
const CHALLENGE_INTERVAL: u64 = 50 * MS;
/// One host's challenges are answered, and its answers refused, at most this often.
const REPLY_INTERVAL: u64 = 25 * MS;
/// Replies of all kinds per second, to all hosts together.
const REPLIES_PER_SECOND: u64 = 2_000;
/// Replies that may go out at once.
const REPLIES_BURST: u64 = 500;
/// A nonce is good for one to two of these.
const NONCE_LIFE: u64 = 2 * SECOND;
/// A host id stays with the address it was heard from for this long.
const ADDRESS_HOLD: u64 = 5 * SECOND;

counters! {
    /// What happened to datagrams at the seal.
    Counters {
        /// Datagrams sealed.
        sealed,
        /// Datagrams accepted.
        accepted,
        /// Dropped: too short or too long to be a datagram of the POP.
        bad_length,
        /// Dropped: no datagram of Homing.
        foreign,
        /// Dropped: of a version that this agent does not speak.
        unknown_version,
        /// Dropped: sealed with another POP key.
        wrong_key,
        /// Dropped: the tag is wrong, so it was changed or forged.
        forged,
        /// Dropped: authentic, but its header makes no sense.
        malformed,
        /// Dropped: for another host.
        wrong_destination,
        /// Dropped: this host's own multicast, heard back.
        own,
        /// Dropped: another machine uses this host's id.
        own_id_elsewhere,
        /// Dropped: no window is open for its origin's present life and address.
        no_window,
        /// Dropped: its sequence number was used before.
        replayed,
        /// Dropped: its sequence number is too far behind to tell.
        too_old,
        /// Dropped: an answer or refusal to nothing that this host asked.
        unasked,
        /// Replies not sent because of their rate limit.
        rate_limited,
        /// Challenges sent.
        challenges_sent,
        /// Answers sent.
        answers_sent,
        /// Windows opened by an answer.
        windows_opened,
        /// Answers refused: the origin's life is older than a known one.
        stale_refused,
        /// Answers refused: the host id is in use at another address.
        contested_refused,
        /// Refusals heard: a member knows a later life of this host.
        told_stale,
        /// Refusals heard: a member hears this host's id at another address.
        told_in_use,
    }
}

/// Whom a datagram is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// One host.
    Host(HostId),
    /// Every host of the domain.
    Domain,
}

/// What a datagram turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A fresh message.
    Message {
        /// Who made it.
        origin: HostId,
        /// In which life.
        stream: Stream,
        /// For which protocol.
        channel: Channel,
        /// Whether it was multicast.
        multicast: bool,
        /// Its body.
        body: &'a [u8],
    },
    /// Something must be sent back to where the datagram came from.
    Reply {
        /// The host it goes to.
        peer: HostId,
        /// Whether this answers a challenge: the peer can hear us from now on.
        answer: bool,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// The windows of this host are open from now on.
    Opened(HostId),
    /// A later life of this very host is known in the POP: begin one whose
    /// incarnation is above this.
    Outdated {
        /// The incarnation that is known.
        above: u64,
        /// Who said so.
        by: HostId,
    },
    /// The POP hears this host's id at another address; this host is refused.
    InUse {
        /// Who said so.
        by: HostId,
    },
    /// Two machines use one host id. The one heard first keeps it.
    Contested {
        /// The id.
        host: HostId,
        /// Where the machine that keeps it is.
        holder: SocketAddr,
        /// The refusal for the other one.
        bytes: Vec<u8>,
    },
    /// Another machine uses this host's own id.
    OwnIdElsewhere,
}

/// A datagram was dropped; why is counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped;

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
    /// Known to this process alone; nonces are made from it.
    secret: [u8; 32],
    me: Identity,
    /// The next sequence number per destination.
    next_unicast: Vec<u64>,
    next_multicast: u64,
    hosts: Vec<HostState>,
    /// Replies that may still go out, in millionths, and as of when.
    tokens: u64,
    tokens_at: u64,
    /// What happened so far.
    pub counters: Counters,
}

/// What is kept per host id.
#[derive(Default)]
struct HostState {
    windows: Option<Box<Windows>>,
    /// When it was last challenged, answered and refused.
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
}

impl Seal {
    /// A seal for a host. `secret` must be random and new for each process.
    pub fn new(keys: Keys, me: Identity, secret: [u8; 32]) -> Self {
        Self {
            keys,
            secret,
            me,
            next_unicast: vec![1; MAX_HOSTS as usize],
            next_multicast: 1,
            hosts: std::iter::repeat_with(HostState::default)
                .take(MAX_HOSTS as usize)
                .collect(),
            tokens: REPLIES_BURST * SECOND,
            tokens_at: 0,
            counters: Counters::default(),
        }
    }

    /// Begins another life of this host: sequence numbers start over.
    pub fn restart(&mut self, stream: Stream) {
        self.me.stream = stream;
        self.next_unicast.fill(1);
        self.next_multicast = 1;
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
        let (header, body) = match frame::read(&self.keys, datagram) {
            Ok(parts) => parts,
            Err(error) => {
                let c = &mut self.counters;
                return drop_as(match error {
                    frame::Error::Length => &mut c.bad_length,
                    frame::Error::Foreign => &mut c.foreign,
                    frame::Error::Version => &mut c.unknown_version,
                    frame::Error::Key => &mut c.wrong_key,
                    frame::Error::Tag => &mut c.forged,
                    frame::Error::Header => &mut c.malformed,
                });
            }
        };
        if header.origin == self.me.host {
            if same_address(from, self.me.address) {
                return drop_as(&mut self.counters.own);
            }
            self.counters.own_id_elsewhere += 1;
            return Ok(Received::OwnIdElsewhere);
        }
        let multicast = header.destination == frame::MULTICAST;
        if !multicast && header.destination != self.me.host.0 {
            return drop_as(&mut self.counters.wrong_destination);
        }
        if header.channel == Channel::Control {
            return self.control(now, from, &header, body);
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
                if !self.is_own_nonce(now, Purpose::Challenge, peer, from, nonce) {
                    return drop_as(&mut self.counters.unasked);
                }
                if let Some(known) = &self.hosts[usize::from(peer.0)].windows {
                    let same = same_address(known.address, from);
                    if !same && now < known.heard_at + ADDRESS_HOLD {
                        let holder = known.address;
                        let refusal = Refusal::InUse;
                        let bytes = self.refuse(now, peer, own_nonce, refusal)?;
                        self.counters.contested_refused += 1;
                        return Ok(Received::Contested {
                            host: peer,
                            holder,
                            bytes,
                        });
                    }
                    if header.stream < known.stream {
                        let refusal = Refusal::Stale {
                            incarnation: known.stream.incarnation,
                        };
                        let bytes = self.refuse(now, peer, own_nonce, refusal)?;
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
                }));
                self.counters.windows_opened += 1;
                Ok(Received::Opened(peer))
            }
            Some(Control::Refusal { nonce, refusal }) => {
                if !self.is_own_nonce(now, Purpose::Answer, peer, from, nonce) {
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

    /// Drops a datagram for which there is no window, with a challenge if the
    /// limits allow one.
    fn challenge<'a>(
        &mut self,
        now: u64,
        from: SocketAddr,
        peer: HostId,
    ) -> Result<Received<'a>, Dropped> {
        let last = self.hosts[usize::from(peer.0)].challenged_at;
        if !self.may_reply(now, last, CHALLENGE_INTERVAL) {
            return Err(Dropped);
        }
        self.hosts[usize::from(peer.0)].challenged_at = Some(now);
        let nonce = self.nonce(now / NONCE_LIFE, Purpose::Challenge, peer, from);
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
        let last = self.hosts[usize::from(peer.0)].answered_at;
        if !self.may_reply(now, last, REPLY_INTERVAL) {
            return Err(Dropped);
        }
        self.hosts[usize::from(peer.0)].answered_at = Some(now);
        let answer = Control::Answer {
            nonce,
            next_unicast: self.next_unicast[usize::from(peer.0)],
            next_multicast: self.next_multicast,
            own_nonce: self.nonce(now / NONCE_LIFE, Purpose::Answer, peer, from),
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
        peer: HostId,
        nonce: u64,
        refusal: Refusal,
    ) -> Result<Vec<u8>, Dropped> {
        let last = self.hosts[usize::from(peer.0)].refused_at;
        if !self.may_reply(now, last, REPLY_INTERVAL) {
            return Err(Dropped);
        }
        self.hosts[usize::from(peer.0)].refused_at = Some(now);
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

    /// Whether the limits allow a reply now; if so, it is charged.
    fn may_reply(&mut self, now: u64, last: Option<u64>, interval: u64) -> bool {
        let elapsed = now.saturating_sub(self.tokens_at);
        self.tokens_at = now;
        self.tokens =
            (self.tokens + elapsed.saturating_mul(REPLIES_PER_SECOND)).min(REPLIES_BURST * SECOND);
        if last.is_some_and(|last| now < last + interval) || self.tokens < SECOND {
            self.counters.rate_limited += 1;
            return false;
        }
        self.tokens -= SECOND;
        true
    }

    fn nonce(&self, epoch: u64, purpose: Purpose, peer: HostId, address: SocketAddr) -> u64 {
        let mut hash = blake3::Hasher::new_keyed(&self.secret);
        hash.update(&[purpose as u8]);
        hash.update(&epoch.to_be_bytes());
        hash.update(&peer.0.to_be_bytes());
        hash.update(&address.port().to_be_bytes());
        match address.ip() {
            std::net::IpAddr::V4(ip) => hash.update(&ip.octets()),
            std::net::IpAddr::V6(ip) => hash.update(&ip.octets()),
        };
        let mut nonce = [0; 8];
        hash.finalize_xof().fill(&mut nonce);
        u64::from_be_bytes(nonce)
    }

    fn is_own_nonce(
        &self,
        now: u64,
        purpose: Purpose,
        peer: HostId,
        address: SocketAddr,
        nonce: u64,
    ) -> bool {
        let epoch = now / NONCE_LIFE;
        [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| self.nonce(epoch, purpose, peer, address) == nonce)
    }
}

/// What a nonce was made for.
#[derive(Clone, Copy)]
enum Purpose {
    Challenge,
    Answer,
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
