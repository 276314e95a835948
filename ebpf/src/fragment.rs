//! Fragments of datagrams to service addresses.
//!
//! Only the first fragment of a datagram says whose it is, and routers spread
//! fragments by their addresses alone or worse. So all fragments of a datagram meet
//! on one host, which what every one of them carries chooses: source, destination
//! and identification. There the first one is decided on, and the others follow it.
//! The host that they are for gets them marked as decided, and takes them whatever
//! it thinks of them: a fragment makes two hops through the tunnel at most.
//!
//! A later fragment that comes before the first one waits with the agent.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use homing_common::{
    host::HostId,
    net::{Address, Port, Service, TCP, UDP},
    outcome::Outcome,
    park::{Course, Datagram, Parked, Why},
    session::Tuple,
};

use crate::{
    End, control,
    encap::Origin,
    local,
    maps::{FRAGMENTS, SERVICES},
    owners,
    packet::{Flags, Frame, Ip},
    park::{self, Held},
    related, settings,
    uncommon::{Case, is_icmp},
};

const TCP_MIN_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// The IPv6 fragment header.
const HEADER_LEN: usize = 8;

/// Decides the way of a fragment.
#[inline(always)]
pub fn decide<const V4: bool>(case: &Case<'_>) -> Result<End, Outcome> {
    let malformed = case.either(Outcome::Malformed, Outcome::TunnelMalformed);
    let ip = Ip::parse::<V4>(&case.frame, case.start).ok_or(malformed)?;
    if !is_service_address(&ip.destination) {
        return Err(case.either(Outcome::Fragment, Outcome::TunnelNotService));
    }
    if case.tunnelled() && is_decided(case) {
        return Err(case.up::<V4>(Outcome::FragmentLocal, Outcome::StrippedFragment));
    }
    let piece = Piece::read::<V4>(&case.frame, &ip).ok_or(malformed)?;
    let key = settings::session_key();
    let protocol = if V4 { piece.protocol } else { 0 };
    let datagram = Datagram::new(
        ip.source,
        ip.destination,
        piece.identification,
        protocol,
        &key,
    );
    let me = settings::host();
    let entropy = datagram.rest as u32;
    if !case.tunnelled() {
        let meeting = control::meeting(datagram.slot());
        if meeting != me {
            let origin = Origin::Fragment {
                ttl: settings::hop_limit(),
                decided: false,
            };
            return case.send::<V4>(&ip, entropy, meeting, origin);
        }
    }
    let host = if piece.offset == 0 {
        let host = owner::<V4>(case, &ip, &piece)?;
        set_course(&datagram, host, case);
        host
    } else if piece.offset == 1 && piece.protocol == TCP {
        // It overlaps TCP's header (RFC 3128).
        return Err(Outcome::FragmentTiny);
    } else {
        course(&datagram, case)?
    };
    if host == me {
        return Err(case.up::<V4>(Outcome::FragmentLocal, Outcome::StrippedFragment));
    }
    let ttl = match case.ttl {
        _ if !case.tunnelled() => settings::hop_limit(),
        0 | 1 => return Err(Outcome::TunnelHops),
        ttl => ttl - 1,
    };
    let origin = Origin::Fragment { ttl, decided: true };
    case.send::<V4>(&ip, entropy, host, origin)
}

/// Whether an address is that of some service: it has an entry without port and
/// protocol.
#[inline(always)]
fn is_service_address(address: &Address) -> bool {
    SERVICES
        .get_ptr(&Service::new(*address, Port([0; 2]), 0))
        .is_some()
}

/// Whether the host that sent a fragment here has decided on it: the outer header
/// says so (see [`encap`](crate::encap)).
#[inline(always)]
fn is_decided(case: &Case<'_>) -> bool {
    let Some(outer) = case.frame.at::<[u8; 6]>(case.link_len) else {
        return false;
    };
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let outer = unsafe { *outer };
    if outer[0] >> 4 == 4 {
        outer[5] & 1 != 0
    } else {
        outer[3] & 1 != 0
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

/// The host that a datagram is for, as its first fragment says; this one, where no
/// other is known.
#[inline(always)]
fn owner<const V4: bool>(case: &Case<'_>, ip: &Ip, piece: &Piece) -> Result<HostId, Outcome> {
    let (protocol, upper) = if V4 {
        (piece.protocol, piece.body)
    } else {
        // All headers must be in the first fragment (RFC 7112).
        related::first_upper(&case.frame, piece.body, piece.protocol)
            .ok_or(Outcome::FragmentTiny)?
    };
    let end = ip.start + ip.len;
    let me = settings::host();
    let key = settings::session_key();
    if is_icmp::<V4>(protocol) {
        let icmp = Ip {
            protocol,
            upper,
            ..*ip
        };
        let about = related::session::<V4>(&case.frame, &icmp);
        let owner = about.and_then(|tuple| owners::owner_of(tuple.id(&key)));
        return Ok(owner.unwrap_or(me));
    }
    let header_len = match protocol {
        TCP => TCP_MIN_LEN,
        UDP => UDP_LEN,
        // Whatever it is, its fragments meet.
        _ => return Ok(me),
    };
    // So little would be sent to deceive (RFC 1858).
    if upper + header_len > end {
        return Err(Outcome::FragmentTiny);
    }
    let header: *const [u8; UDP_LEN] = case.frame.at(upper).ok_or(Outcome::FragmentTiny)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [s0, s1, d0, d1, ..] = unsafe { *header };
    let tuple = Tuple::new(
        ip.source,
        Port([s0, s1]),
        ip.destination,
        Port([d0, d1]),
        protocol,
    );
    if let Some(owner) = owners::owner_of(tuple.id(&key)) {
        return Ok(owner);
    }
    if protocol == TCP {
        let flags: *const [u8; TCP_MIN_LEN] = case.frame.at(upper).ok_or(Outcome::FragmentTiny)?;
        // SAFETY: as above.
        let flags = Flags(unsafe { (*flags)[13] });
        // The stack would reset it, and its owner may not have been heard of yet: the
        // client sends it again.
        if !flags.opens() && !local::is_open::<V4>(case.ctx, &tuple) {
            return Err(Outcome::FragmentUnknown);
        }
    }
    Ok(me)
}

/// Writes where a datagram's fragments go, and has those released that wait.
#[inline(always)]
fn set_course(datagram: &Datagram, host: HostId, case: &Case<'_>) {
    let course = Course::new(host.0, control::now_ns());
    if FRAGMENTS
        .insert(datagram, &course, BPF_NOEXIST as u64)
        .is_ok()
    {
        return;
    }
    let waiting = read(datagram).is_some_and(|course| course.host == 0);
    // Without room the next fragments wait in vain.
    let _ = FRAGMENTS.insert(datagram, &course, BPF_ANY as u64);
    if waiting {
        release(datagram, case);
    }
}

/// Where a datagram's first fragment went. If it has not come yet, this one waits.
#[inline(always)]
fn course(datagram: &Datagram, case: &Case<'_>) -> Result<HostId, Outcome> {
    let now_ns = control::now_ns();
    let mut waits = false;
    if let Some(course) = read(datagram) {
        if course.holds(now_ns) && course.host != 0 {
            return Ok(HostId(course.host));
        }
        waits = course.holds(now_ns);
    }
    match park::park(
        case.ctx,
        head(datagram, case),
        &Address(datagram.source),
        Why::Fragment,
        now_ns,
    ) {
        Held::Whole => {}
        _ => return Err(Outcome::FragmentLimited),
    }
    if !waits {
        wait(datagram, now_ns, case);
    }
    Err(Outcome::FragmentHeld)
}

/// Notes that a fragment waits for the first one, which may come this very moment
/// on another CPU: either that one finds the note, or this finds its course.
#[inline(always)]
fn wait(datagram: &Datagram, now_ns: u64, case: &Case<'_>) {
    let note = Course::new(0, now_ns);
    if FRAGMENTS
        .insert(datagram, &note, BPF_NOEXIST as u64)
        .is_ok()
    {
        return;
    }
    match read(datagram) {
        Some(course) if course.holds(now_ns) => {
            if course.host != 0 {
                release(datagram, case);
            }
        }
        // Of a datagram that had the same key a while ago.
        _ => {
            let _ = FRAGMENTS.insert(datagram, &note, BPF_ANY as u64);
        }
    }
}

#[inline(always)]
fn read(datagram: &Datagram) -> Option<Course> {
    // SAFETY: an entry is replaced whole; an element that is used anew meanwhile is a
    // course too, and no worse than one that has just been replaced.
    unsafe { FRAGMENTS.get(datagram) }.copied()
}

/// Tells the agent that a datagram's course is known.
#[inline(always)]
fn release(datagram: &Datagram, case: &Case<'_>) {
    park::tell(head(datagram, case), Why::Decided, control::now_ns());
}

#[inline(always)]
fn head(datagram: &Datagram, case: &Case<'_>) -> Parked {
    let nobody = Address([0; 16]);
    Parked {
        tuple: Tuple::new(nobody, Port([0; 2]), nobody, Port([0; 2]), 0),
        datagram: *datagram,
        id: 0,
        at_ns: 0,
        ifindex: 0,
        captured: 0,
        why: 0,
        from: case.from,
        flags: 0,
        zero: [0; 3],
    }
}
