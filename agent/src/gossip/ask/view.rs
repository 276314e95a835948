//! What goes into asks and comes out of them.

use homing_common::{ask::Question, host::HostId, session::SessionId};

use crate::{datapath::local::SessionKeys, gossip::claims::Claim, pop::counters::counters};

counters! {
    /// What happened to packets of unknown sessions, and to asks.
    Counters {
        /// Packets of unknown sessions taken in.
        ask_parked,
        /// Packets too long to be held: their sessions are asked about all the same.
        ask_too_long,
        /// Packets given back at once, because the session's owner was known by then.
        ask_known,
        /// Packets dropped because the table of owners has no room for their session.
        ask_unrouted,
        /// Packets that went up to the local stack because there is nobody to ask.
        ask_alone,
        /// Packets dropped because they came again too soon after an ask in vain.
        ask_early,
        /// Packets dropped because too many were held.
        ask_no_room,
        /// Sessions asked about.
        ask_sessions,
        /// Sessions not asked about in time, because asks are limited.
        ask_unasked,
        /// Asks sent, each about some sessions; repeats and relayed ones included.
        ask_datagrams,
        /// Sessions that another host was found to own.
        ask_answered,
        /// Sessions that another host was found to own after their packets were dropped.
        ask_late,
        /// Sessions of hosts that cannot be asked, of which another host told.
        ask_told,
        /// Sessions presumed to be of the only host that cannot be asked.
        ask_presumed,
        /// Sessions that another host keeps in TIME_WAIT.
        ask_closing,
        /// Sessions that another host closed a moment ago.
        ask_closed,
        /// Sessions that nobody owned when they were asked about for the first time.
        ask_silent,
        /// Sessions in vain asked about without everyone having heard.
        ask_unheard,
        /// Sessions that nobody owned when they were asked about again.
        ask_nobody,
        /// Packets dropped after an ask in vain.
        ask_dropped,
        /// Packets given back to the fast path.
        ask_returned,
        /// Packets handed to the local stack.
        ask_up,
        /// Packets lost because they could not be given back as fast as they came, and
        /// asks that the kernel did not answer.
        ask_lost,
        /// Packets lost because the kernel did not take them back.
        ask_refused,
        /// Parked packets dropped because they had waited for too long.
        ask_stale,
        /// Parked packets dropped because the agent was behind.
        ask_behind,
        /// Asks of other hosts heard.
        asked,
        /// Asks of other hosts dropped because of their limits.
        asked_limited,
        /// Asks of other hosts dropped because of their key of session ids, which this host
        /// does not have.
        asked_other_key,
        /// Sessions of other hosts' asks that this host knows.
        asked_found,
        /// Asks passed on to this domain.
        asked_passed_on,
        /// Reports sent.
        reports_sent,
        /// Reports not sent because there were too many: whoever asked will ask again.
        reports_limited,
        /// Messages about asks dropped because their origin is no member.
        ask_not_member,
        /// Messages about asks dropped because they make no sense.
        ask_malformed,
    }
}

/// A packet as it came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The interface it came in by.
    pub ifindex: u32,
    /// The host that sent it through the tunnel, if one did.
    pub tunnelled: bool,
    /// Its bytes from the Ethernet header on; none of a packet too long to be held.
    pub bytes: Vec<u8>,
}

/// Where a packet goes after it was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through the fast path once more.
    Reenter,
    /// Up to the local stack.
    Up,
}

/// A packet to give back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    /// Which way.
    pub way: Way,
    /// The packet.
    pub frame: Frame,
}

/// Questions of another host, to be put to this host's kernel.
#[derive(Clone)]
pub struct Lookup {
    pub(super) asker: HostId,
    pub(super) number: u64,
    pub(super) pass_on: bool,
    /// The public id of the asker's key of session ids, …
    pub(super) key: u8,
    /// … and the ids under it, in the order of the questions.
    pub(super) ids: Vec<SessionId>,
    /// The questions, with the ids that this host has; the kernel's answers are to be
    /// written into them.
    pub questions: Vec<Question>,
}

/// What gossip knows of a session's owner, as far as it matters to who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It is this host, in this generation of the session.
    Here(u16),
    /// It is another host, which cannot be asked itself, but may serve.
    Unaskable(Claim),
    /// Nobody, or a host that answers for itself.
    Nothing,
}

/// How one host asks.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This host.
    pub host: HostId,
    /// The keys of session ids …
    pub keys: SessionKeys,
    /// … and their public ids.
    pub key_ids: [u8; 2],
    /// The number of the first ask: another in each life of the agent.
    pub first: u64,
}

/// A claim that was answered, which is a route until gossip knows better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Provisional {
    /// The session.
    pub id: SessionId,
    /// Its owner.
    pub host: HostId,
    /// How often it has moved.
    pub generation: u16,
}

/// What is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Packets held.
    pub frames: usize,
    /// Sessions asked about.
    pub sessions: usize,
    /// Asks under way, on behalf of others included.
    pub asks: usize,
}
