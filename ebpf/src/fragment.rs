//! Fragments of datagrams to service addresses.
//!
//! Only the first fragment of a datagram says whose it is, and routers spread
//! fragments by their addresses alone or worse. So all fragments of a datagram meet
//! on one host, which what every one of them carries chooses: source, destination
//! and identification, under a key of their own: hosts agree on it also while they have
//! different keys of session ids. There the first one is decided on, and the others
//! follow it.
//! The host that they are for gets them marked as decided, and takes them whatever
//! it thinks of them: a fragment makes two hops through the tunnel at most.
//!
//! A later fragment that comes before the first one waits with the agent.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, xdp_md},
    programs::XdpContext,
};
use homing_common::{
    host::HostId,
    limit::Room,
    net::{Address, Port, Service, TCP, UDP},
    outcome::Outcome,
    park::{Course, Datagram, Parked, Why},
    session::{SessionId, Tuple},
};

use crate::{
    End, control, direct,
    encap::Origin,
    flow, limit,
    maps::{FRAGMENTS, SCRATCH, SERVICES},
    mark::Mark,
    moving, owners,
    packet::{Flags, Frame, Ip},
    park::{self, Head, Held},
    related, settings,
    uncommon::{Case, Uncommon, is_icmp},
};

const TCP_MIN_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// The IPv6 fragment header.
const HEADER_LEN: usize = 8;

/// Decides the way of a fragment.
#[inline(always)]
pub fn decide(case: &Case<'_>, read: u64) -> Result<End, Outcome> {
    let seen = Seen::unpack(read);
    let malformed = case.either(Outcome::Malformed, Outcome::TunnelMalformed);
    // SAFETY: a place of this CPU's own, where no other program runs meanwhile.
    let head = unsafe { &*SCRATCH.get_ptr_mut(0).ok_or(malformed)? };
    if seen.kind == Seen::MALFORMED {
        return Err(malformed);
    }
    if !is_service_address(&head.tuple.service) {
        return Err(case.either(Outcome::Fragment, Outcome::TunnelNotService));
    }
    // Only a first fragment has the tuple of a session.
    let moving = moving::find_at(&head.tuple);
    if case.tunnelled() && Mark::Decided.is_on(&case.frame, case.packet.link_len) {
        if moving.is_some() {
            return Err(Outcome::MovingFragment);
        }
        if begins_datagram(seen.kind, head) {
            flow::decide(&head.tuple, SessionId(head.id), flow::Arrival::Tunnel);
        }
        return Err(case.up(Outcome::FragmentLocal, Outcome::StrippedFragment));
    }
    if seen.kind == Seen::TINY {
        return Err(Outcome::FragmentTiny);
    }
    let me = settings::host();
    let entropy = head.datagram.rest as u32;
    if !case.tunnelled() {
        let meeting = control::meeting(head.datagram.slot());
        if meeting != me {
            let origin = Origin::Fragment {
                ttl: settings::hop_limit(),
                decided: false,
            };
            return case.send(seen.len, seen.tos, entropy, meeting, origin);
        }
    }
    let host = if seen.kind == Seen::LATER {
        course(head, case)?
    } else {
        let host = match moving {
            // What is held here is held whole.
            Some(found) if found.parks() => return Err(Outcome::MovingFragment),
            Some(found) => found.peer(),
            None => owner(case, head, seen.kind)?,
        };
        set_course(head, host, case);
        host
    };
    if host == me {
        return Err(case.up(Outcome::FragmentLocal, Outcome::StrippedFragment));
    }
    let ttl = match case.packet.ttl {
        _ if !case.tunnelled() => settings::hop_limit(),
        0 | 1 => return Err(Outcome::TunnelHops),
        ttl => ttl - 1,
    };
    let origin = Origin::Fragment { ttl, decided: true };
    case.send(seen.len, seen.tos, entropy, host, origin)
}

/// Whether an address is that of some service: it has an entry without port and
/// protocol.
#[inline(always)]
fn is_service_address(address: &Address) -> bool {
    SERVICES
        .get_ptr(Service::new(*address, Port([0; 2]), 0))
        .is_some()
}

/// The host that a datagram is for, as its first fragment says; this one, where no
/// other is known.
#[inline(always)]
fn owner(case: &Case<'_>, head: &Parked, kind: u64) -> Result<HostId, Outcome> {
    let me = settings::host();
    // Whatever belongs to no session: its fragments meet, and go up together.
    if head.tuple.protocol == 0 {
        return Ok(me);
    }
    let id = SessionId(head.id);
    if let Some(owner) = owners::owner_of(id)? {
        return Ok(owner);
    }
    // The datagrams of a flow meet here and there. So that they go to one host also
    // while the POP has not been told whose the flow is, its tuple chooses one: not by
    // its id, which hosts with different keys of session ids do not have in common.
    if begins_datagram(kind, head) {
        let chosen = head.tuple.id(&settings::fragments_key());
        let host = control::meeting(control::slot(chosen));
        if host != me && !flow::is_told(&head.tuple) && !flow::is_new(id) {
            return Ok(host);
        }
        flow::decide(&head.tuple, id, flow::Arrival::Tunnel);
        return Ok(me);
    }
    // The stack would reset it, and its owner may not have been heard of yet: the
    // client sends it again.
    let segment = head.tuple.protocol == TCP && kind == Seen::FIRST;
    let asks = segment && head.flags != 0 && !Flags(head.flags).opens();
    if asks && !case.has_socket(&head.tuple) {
        return Err(Outcome::FragmentUnknown);
    }
    Ok(me)
}

/// Whether it is the first fragment of a UDP packet to a service.
#[inline(always)]
fn begins_datagram(kind: u64, head: &Parked) -> bool {
    kind == Seen::FIRST && head.tuple.protocol == UDP && direct::is_service(&head.tuple.service())
}

/// Writes where a datagram's fragments go, and has those released that wait.
#[inline(always)]
fn set_course(head: &Parked, host: HostId, case: &Case<'_>) {
    let now_ns = control::now_ns();
    let course = Course::new(host.0, now_ns);
    if insert(head, &course, BPF_NOEXIST) {
        return limit::entry_made(Room::Fragments, now_ns);
    }
    let waiting = read(head).is_some_and(|course| course.host == 0);
    if !insert(head, &course, BPF_ANY) {
        limit::entry_lost(Room::Fragments);
    }
    if waiting {
        park::tell(case.ctx, &for_agent(head, case), Why::Decided, now_ns);
    }
}

/// Where a datagram's first fragment went. If it has not come yet, this one waits.
#[inline(always)]
fn course(head: &Parked, case: &Case<'_>) -> Result<HostId, Outcome> {
    let now_ns = control::now_ns();
    let known = read(head).filter(|course| course.holds(now_ns));
    if let Some(course) = known
        && course.host != 0
    {
        return Ok(HostId(course.host));
    }
    let source = Address(head.datagram.source);
    match park::park(
        case.ctx,
        &for_agent(head, case),
        &source,
        Why::Fragment,
        now_ns,
    ) {
        Held::Whole => {}
        _ => return Err(Outcome::FragmentLimited),
    }
    if known.is_none() {
        wait(head, now_ns, case);
    }
    Err(Outcome::FragmentHeld)
}

/// Notes that a fragment waits for the first one, which may come this very moment
/// on another CPU: either that one finds the note, or this finds its course.
#[inline(always)]
fn wait(head: &Parked, now_ns: u64, case: &Case<'_>) {
    let note = Course::new(0, now_ns);
    if insert(head, &note, BPF_NOEXIST) {
        return limit::entry_made(Room::Fragments, now_ns);
    }
    match read(head).filter(|course| course.holds(now_ns)) {
        Some(course) if course.host != 0 => {
            park::tell(case.ctx, &for_agent(head, case), Why::Decided, now_ns)
        }
        Some(_) => {}
        // Of a datagram that had the same key a while ago.
        None => {
            if !insert(head, &note, BPF_ANY) {
                limit::entry_lost(Room::Fragments);
            }
        }
    }
}

/// What the agent is told of a fragment: the datagram says all.
#[inline(always)]
fn for_agent<'a>(head: &'a Parked, case: &Case<'_>) -> Head<'a> {
    Head {
        tuple: &head.tuple,
        datagram: head.datagram,
        id: 0,
        from: case.packet.from,
        flags: 0,
    }
}

#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "without the borrow the key is copied to the stack"
)]
fn read(head: &Parked) -> Option<Course> {
    // SAFETY: an entry is replaced whole; an element that is used anew meanwhile is a
    // course too, and no worse than one that has just been replaced.
    unsafe { FRAGMENTS.get(&head.datagram) }.copied()
}

#[inline(always)]
#[expect(clippy::needless_borrows_for_generic_args, reason = "as above")]
fn insert(head: &Parked, course: &Course, flags: u32) -> bool {
    FRAGMENTS
        .insert(&head.datagram, course, flags as u64)
        .is_ok()
}

/// What [`fragment_read`] returns.
struct Seen {
    kind: u64,
    /// Length in bytes of the IP packet.
    len: usize,
    /// TOS or traffic class.
    tos: u8,
}

impl Seen {
    /// Its headers contradict themselves.
    const MALFORMED: u64 = 0;
    /// A first fragment without all headers, or one that overlaps them: so little is
    /// sent to deceive (RFC 1858, RFC 3128, RFC 7112).
    const TINY: u64 = 1;
    const FIRST: u64 = 2;
    const LATER: u64 = 3;
    /// The first one of an ICMP error about a session, or of what belongs to none.
    const OTHER: u64 = 4;

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        Self {
            kind: word >> 32,
            len: word as u16 as usize,
            tos: (word >> 16) as u8,
        }
    }
}

/// Reads a fragment, given [`Uncommon`], into `SCRATCH`: datagram and service; and if
/// it is the first one of a session's datagram, or of an error about it, the session's
/// tuple and id, and the flags of TCP. Returns [`Seen`]: kind (from bit 32 on), TOS
/// (bits 16 to 23), length (below).
///
/// A function of its own, and global: the verifier looks at it once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn fragment_read(ctx: *mut xdp_md, packet: u64) -> u64 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let Uncommon { start, v4, .. } = Uncommon::unpack(packet);
    // SAFETY: as in `decide`.
    let Some(head) = SCRATCH.get_ptr_mut(0).map(|head| unsafe { &mut *head }) else {
        return 0;
    };
    let seen = if v4 {
        Ip::parse::<true>(&frame, start)
            .map(|ip| (examine::<true>(&frame, &ip, head), ip.len, ip.tos))
    } else {
        Ip::parse::<false>(&frame, start)
            .map(|ip| (examine::<false>(&frame, &ip, head), ip.len, ip.tos))
    };
    match seen {
        Some((kind, len, tos)) => kind << 32 | (tos as u64) << 16 | len as u64,
        None => Seen::MALFORMED,
    }
}

/// Fills in the head; returns the kind.
#[inline(always)]
fn examine<const V4: bool>(frame: &Frame, ip: &Ip, head: &mut Parked) -> u64 {
    let Some(piece) = Piece::read::<V4>(frame, ip) else {
        return Seen::MALFORMED;
    };
    let key = settings::fragments_key();
    let protocol = if V4 { piece.protocol } else { 0 };
    let (source, destination) = (ip.source, ip.destination);
    head.datagram = Datagram::new(source, destination, piece.identification, protocol, &key);
    head.tuple = Tuple::new(source, Port([0; 2]), destination, Port([0; 2]), 0);
    (head.id, head.flags) = (0, 0);
    if piece.offset > 0 {
        let overlaps = piece.offset == 1 && piece.protocol == TCP;
        return if overlaps { Seen::TINY } else { Seen::LATER };
    }
    match session::<V4>(frame, ip, &piece) {
        Some(Some((tuple, flags, kind))) => {
            head.tuple = tuple;
            (head.id, head.flags) = (tuple.id(&settings::session_key()).0, flags);
            kind
        }
        Some(None) => Seen::OTHER,
        None => Seen::TINY,
    }
}

/// What a fragment says of itself.
struct Piece {
    identification: u32,
    /// In units of eight bytes.
    offset: u16,
    /// IPv6: of the header behind the fragment header.
    protocol: u8,
    /// Offset in the frame of what it carries.
    body: usize,
}

impl Piece {
    #[inline(always)]
    fn read<const V4: bool>(frame: &Frame, ip: &Ip) -> Option<Self> {
        if V4 {
            let header: *const [u8; 8] = frame.at(ip.start)?;
            // SAFETY: `at` has checked that the bytes lie within the frame.
            let [.., i0, i1, f0, f1] = unsafe { *header };
            return Some(Self {
                identification: u16::from_be_bytes([i0, i1]) as u32,
                offset: u16::from_be_bytes([f0, f1]) & 0x1fff,
                protocol: ip.protocol,
                body: ip.upper,
            });
        }
        if ip.upper + HEADER_LEN > ip.start + ip.len {
            return None;
        }
        let header: *const [u8; HEADER_LEN] = frame.at(ip.upper)?;
        // SAFETY: as above.
        let [protocol, _, f0, f1, i0, i1, i2, i3] = unsafe { *header };
        Some(Self {
            identification: u32::from_be_bytes([i0, i1, i2, i3]),
            offset: u16::from_be_bytes([f0, f1]) >> 3,
            protocol,
            body: ip.upper + HEADER_LEN,
        })
    }
}

/// The session of a first fragment, TCP's flags, and the kind of [`Seen`]; nothing, if
/// headers are missing, and no session, if it is of another protocol.
#[inline(always)]
fn session<const V4: bool>(
    frame: &Frame,
    ip: &Ip,
    piece: &Piece,
) -> Option<Option<(Tuple, u8, u64)>> {
    let (protocol, upper) = if V4 {
        (piece.protocol, piece.body)
    } else {
        related::first_upper(frame, piece.body, piece.protocol)?
    };
    if is_icmp::<V4>(protocol) {
        let icmp = Ip {
            protocol,
            upper,
            ..*ip
        };
        return Some(related::session::<V4>(frame, &icmp).map(|tuple| (tuple, 0, Seen::OTHER)));
    }
    let header_len = match protocol {
        TCP => TCP_MIN_LEN,
        UDP => UDP_LEN,
        _ => return Some(None),
    };
    if upper + header_len > ip.start + ip.len {
        return None;
    }
    let header: *const [u8; UDP_LEN] = frame.at(upper)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [s0, s1, d0, d1, ..] = unsafe { *header };
    let (client, service) = (Port([s0, s1]), Port([d0, d1]));
    let tuple = Tuple::new(ip.source, client, ip.destination, service, protocol);
    if protocol == UDP {
        return Some(Some((tuple, 0, Seen::FIRST)));
    }
    let header: *const [u8; TCP_MIN_LEN] = frame.at(upper)?;
    // SAFETY: as above.
    let flags = unsafe { (*header)[13] };
    Some(Some((tuple, flags, Seen::FIRST)))
}
