//! Outcomes: every packet ends in exactly one, and each has one counter.
//!
//! A counter's number is for ever: builds of different age count in one map, one
//! after the other. What comes new gets a new number, and the number of what has
//! gone is not given again.

/// What XDP does with a packet in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Up to the local stack.
    Pass,
    /// Out again: encapsulated to another host, or as an answer.
    Forward,
    /// Away.
    Drop,
}

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident, from $first:expr; $($(#[doc = $help:literal])+ $variant:ident = $index:literal, $label:literal $(, $verdict:ident)?;)+) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[doc = $help])+ $variant = $first + $index,)+ }

        impl $name {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Index of the counter in the map `STATS`.
            #[inline(always)]
            pub const fn index(self) -> u32 {
                self as u32
            }

            /// The one that a counter is of.
            #[inline(always)]
            pub const fn of_index(index: u32) -> Option<Self> {
                match index {
                    $(index if index == Self::$variant as u32 => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name in metrics and tables.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, in one line.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help),+),)+ }
            }
        }
        counters!(@verdict $name $($variant $($verdict)?;)+);
    };
    (@verdict $name:ident $($variant:ident $verdict:ident;)+) => {
        impl $name {
            /// What XDP does with the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }
        }
    };
    (@verdict $name:ident $($variant:ident;)+) => {};
}

counters! {
    /// How a packet's way through XDP ended.
    Outcome, from 0;
    /// Neither IPv4 nor IPv6, or cut short before its IP header.
    NotIp = 0, "not_ip", Pass;
    /// For no service of the POP.
    NotService = 1, "not_service", Pass;
    /// Its IP or TCP header contradicts itself or the frame's length.
    Malformed = 2, "malformed", Pass;
    /// A fragment to an address that is no service's.
    Fragment = 3, "fragment", Pass;
    /// A SYN of a session that no other host owns.
    LocalSyn = 4, "local_syn", Pass;
    /// This host has the session's socket.
    LocalSocket = 5, "local_socket", Pass;
    /// It completes a handshake by SYN cookie that this host's listener began.
    LocalCookie = 6, "local_cookie", Pass;
    /// Nobody is known to own its session, and nobody is asked: an RST, a SYN|ACK, or
    /// without ACK.
    Unknown = 7, "unknown", Pass;
    /// Came through the tunnel: this host has the session's socket.
    StrippedSocket = 8, "stripped_socket", Pass;
    /// Came through the tunnel: a SYN.
    StrippedSyn = 9, "stripped_syn", Pass;
    /// Came through the tunnel: it completes a handshake by SYN cookie.
    StrippedCookie = 10, "stripped_cookie", Pass;
    /// Came through the tunnel; nobody is known to own its session, and nobody is asked.
    StrippedUnknown = 11, "stripped_unknown", Pass;
    /// Encapsulated and sent to its owner by the interface it came from.
    Forwarded = 12, "forwarded", Forward;
    /// Encapsulated and sent to its owner by another interface.
    Redirected = 13, "redirected", Forward;
    /// Came through the tunnel and was sent on to the session's owner.
    SentOn = 14, "sent_on", Forward;
    /// Too large for the way to its owner once encapsulated.
    TooBig = 15, "too_big", Drop;
    /// The way to its owner is not known: not a member, or next hop unresolved.
    NoWay = 16, "no_way", Drop;
    /// The kernel gave no room for the outer header.
    NoHeadroom = 17, "no_headroom", Drop;
    /// Came through the tunnel from an address that is no member's.
    TunnelNotMember = 18, "tunnel_not_member", Drop;
    /// Came through the tunnel, with a header that contradicts itself or the frame.
    TunnelMalformed = 19, "tunnel_malformed", Drop;
    /// Came through the tunnel, for no service of the POP.
    TunnelNotService = 20, "tunnel_not_service", Drop;
    /// A tunnel packet within a tunnel packet.
    TunnelNested = 21, "tunnel_nested", Drop;
    /// Came through the tunnel, must be sent on, and has used up its hops.
    TunnelHops = 22, "tunnel_hops", Drop;
    /// Came through the tunnel from the very host that the table, or a move, gives it to.
    TunnelBounce = 23, "tunnel_bounce", Drop;
    /// This host closed the session a moment ago.
    LocalClosed = 24, "local_closed", Pass;
    /// Came through the tunnel: this host closed the session a moment ago.
    StrippedClosed = 25, "stripped_closed", Pass;
    /// A SYN on a host that takes no new sessions: sent to its rendezvous host.
    RendezvousSyn = 26, "rendezvous_syn", Forward;
    /// This host cannot know its session's owner: sent to its rendezvous host.
    Rendezvous = 27, "rendezvous", Forward;
    /// This host cannot know its session's owner, and knows no host that can.
    RendezvousNone = 28, "rendezvous_none", Drop;
    /// Came through the tunnel to a host that cannot know its session's owner either.
    TunnelUnready = 29, "tunnel_unready", Drop;
    /// Nobody here knows its session: held by the agent, which asks the POP.
    Asked = 30, "asked", Drop;
    /// The POP is asked about its session, but the frame is too long to be held.
    AskTooLong = 31, "ask_too_long", Drop;
    /// Nobody here knows its session, and its source has reached the limit of questions.
    AskLimitedSource = 32, "ask_limited_source", Drop;
    /// Nobody here knows its session, and the limit of all questions is reached.
    AskLimited = 33, "ask_limited", Drop;
    /// Nobody here knows its session, and the agent has not taken what was held for it.
    AskFull = 34, "ask_full", Drop;
    /// A member asked whether this kernel lives, and was answered.
    EchoAnswered = 35, "echo_answered", Forward;
    /// A question whether this kernel lives that is malformed, forged or no member's.
    EchoRefused = 36, "echo_refused", Drop;
    /// A member asked more often whether this kernel lives than is answered.
    EchoLimited = 37, "echo_limited", Drop;
    /// Came through the tunnel, was sent on to this host, and would have to be sent on again.
    TunnelAgain = 38, "tunnel_again", Drop;
    /// The table of owners was being written, or is none: the session may have an entry.
    OwnerUnsure = 39, "owner_unsure", Drop;
    /// Too large for the way to its owner once encapsulated: its sender was told.
    TooBigTold = 64, "too_big_told", Forward;
    /// An ICMP error about a session that no other host owns.
    IcmpLocal = 65, "icmp_local", Pass;
    /// Came through the tunnel: an ICMP error about a session.
    StrippedIcmp = 66, "stripped_icmp", Pass;
    /// A fragment of a datagram that no other host owns.
    FragmentLocal = 67, "fragment_local", Pass;
    /// Came through the tunnel: a fragment for this host.
    StrippedFragment = 68, "stripped_fragment", Pass;
    /// A fragment: sent to the host where its datagram's fragments meet.
    FragmentGathered = 69, "fragment_gathered", Forward;
    /// A fragment: sent from where they meet to the host that it is for.
    FragmentForwarded = 70, "fragment_forwarded", Forward;
    /// A fragment that came before its datagram's first one: held by the agent.
    FragmentHeld = 71, "fragment_held", Drop;
    /// A fragment that came before its datagram's first one, beyond what is held.
    FragmentLimited = 72, "fragment_limited", Drop;
    /// A first fragment without all headers, or one that overlaps them.
    FragmentTiny = 73, "fragment_tiny", Drop;
    /// A first fragment of a segment whose session nobody is known to own.
    FragmentUnknown = 74, "fragment_unknown", Drop;
    /// UDP: a flow of this host, which the POP has been told of.
    LocalFlow = 80, "local_flow", Pass;
    /// UDP: a flow that no other host is known to own.
    LocalFlowNew = 81, "local_flow_new", Pass;
    /// Came through the tunnel: a UDP flow of this host.
    StrippedFlow = 82, "stripped_flow", Pass;
    /// Came through the tunnel: a UDP flow that no other host is known to own.
    StrippedFlowNew = 83, "stripped_flow_new", Pass;
    /// Its session is moving to another host, or has moved: sent to that one.
    Diverted = 84, "diverted", Forward;
    /// Its session is moving here: held by the agent until it is served.
    Parked = 85, "parked", Drop;
    /// Its session is moving here, but the frame is too long to be held.
    ParkTooLong = 86, "park_too_long", Drop;
    /// Its session is moving here, and the agent has not taken what was held for it.
    ParkFull = 87, "park_full", Drop;
    /// A first fragment of a moving session, to a host where it can be neither held nor sent on.
    MovingFragment = 88, "moving_fragment", Drop;
    /// Came through the tunnel, diverted by a host that the session moves from, and is not served here.
    TunnelStray = 89, "tunnel_stray", Drop;
}

counters! {
    /// What the hooks on sockets and on leaving packets counted.
    Hook, from HOOKS_AT;
    /// Sessions recorded as open.
    Opened = 0, "sessions_opened";
    /// Sessions recorded as closed.
    Closed = 1, "sessions_closed";
    /// Sessions not recorded because `SESSIONS` was full.
    SessionsFull = 2, "sessions_full";
    /// Events lost because `EVENTS` was full.
    EventsLost = 3, "events_lost";
    /// SYN|ACKs of services that left with a lower MSS.
    MssLowered = 4, "mss_lowered";
    /// Sessions that this host closed itself less than 60 s ago and that `CLOSED` had no
    /// room for any more: at least so many.
    ClosedEvicted = 5, "closed_evicted_at_least";
    /// Fragmented datagrams of which a fragment came less than 5 s ago and that `FRAGMENTS`
    /// had no room for any more: at least so many.
    FragmentsEvicted = 6, "fragments_evicted_at_least";
    /// UDP flows that the POP has not heard of, begun less than 5 s ago, and that `FLOWS`
    /// had no room for any more: at least so many.
    FlowsEvicted = 7, "flows_evicted_at_least";
    /// Packets of UDP flows that were not recorded as sessions: too many at once, or
    /// flows have taken their share of `SESSIONS`.
    FlowsRefused = 16, "flows_refused";
    /// Packets of moving sessions that this host was about to send: dropped.
    MovingSilenced = 17, "moving_silenced";
    /// Sockets of moving sessions that were established or closed: recorded nowhere.
    MovingMuted = 18, "moving_muted";
}

/// Number of the first counter of [`Hook`]; those below are of [`Outcome`].
const HOOKS_AT: u32 = 192;
/// Number of counters in the map `STATS`, with room for those to come.
pub const STATS_ENTRIES: u32 = 256;

const _: () = {
    let mut n = 0;
    while n < Outcome::ALL.len() {
        assert!(Outcome::ALL[n].index() < HOOKS_AT);
        n += 1;
    }
    n = 0;
    while n < Hook::ALL.len() {
        assert!(Hook::ALL[n].index() < STATS_ENTRIES);
        n += 1;
    }
};
