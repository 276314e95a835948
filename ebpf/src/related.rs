//! ICMP errors about a session: the packet that they are about is in them, and
//! says whose they are. They go to the owner, whose kernel acts on them; nobody is
//! asked about them.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use homing_common::{
    net::{Address, Port, TCP, UDP},
    outcome::Outcome,
    park::Parked,
    session::{SessionId, Tuple},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    End, control, direct,
    encap::Origin,
    flow,
    maps::SCRATCH,
    mark::Mark,
    moving, owners,
    packet::{FRAGMENT, Frame, Ip, UPPER_FRAGMENT, UPPER_MASK, UPPER_VALID, ipv6_upper},
    settings,
    uncommon::{Case, Uncommon, is_icmp},
};

const ICMP_LEN: usize = 8;

/// ICMP: destination unreachable (fragmentation needed is one of its codes), time
/// exceeded, parameter problem (RFC 792).
const V4_ERRORS: [u8; 3] = [3, 11, 12];
/// ICMPv6: destination unreachable, packet too big, time exceeded, parameter
/// problem (RFC 4443).
const V6_ERRORS: [u8; 4] = [1, 2, 3, 4];

/// Decides the way of an ICMP packet.
#[inline(always)]
pub fn decide(case: &Case<'_>, read: u64) -> Result<End, Outcome> {
    let (kind, len, tos) = (read >> 32, read as u16 as usize, (read >> 16) as u8);
    let malformed = case.either(Outcome::Malformed, Outcome::TunnelMalformed);
    // SAFETY: a place of this CPU's own, where no other program runs meanwhile.
    let head = unsafe { &*SCRATCH.get_ptr_mut(0).ok_or(malformed)? };
    // Echo requests and the like are the local stack's business.
    let none = case.either(Outcome::NotService, Outcome::TunnelNotService);
    match kind {
        MALFORMED => return Err(malformed),
        NO_SESSION => return Err(none),
        _ => {}
    }
    if let Some(found) = moving::find_at(&head.tuple) {
        return moving::decide(case, head, len, tos, found);
    }
    let id = SessionId(head.id);
    let entropy = id.entropy();
    let owner = owners::owner_of(id)?;
    if !case.tunnelled()
        && let Some(owner) = owner
    {
        return case.send(len, tos, entropy, owner, Origin::Wire);
    }
    if !direct::is_service(&head.tuple.service()) {
        return Err(none);
    }
    if case.tunnelled() {
        // The session may have moved on since the sender heard of it.
        if let Some(owner) = owner
            && owner.0 != case.packet.from
            && !case.is_here(&head.tuple)
        {
            if Mark::SentOn.is_on(&case.frame, case.packet.link_len) {
                return Err(Outcome::TunnelAgain);
            }
            if case.packet.ttl <= 1 {
                return Err(Outcome::TunnelHops);
            }
            let origin = Origin::Tunnel {
                ttl: case.packet.ttl - 1,
            };
            return case.send(len, tos, entropy, owner, origin);
        }
    } else if (control::owners_full() || !control::knows(control::now_ns()))
        && !case.is_here(&head.tuple)
        && !flow::is_new(id)
        && let Some(host) = control::rendezvous(id)
    {
        let origin = Origin::Rendezvous { opens: false };
        return case.send(len, tos, entropy, host, origin);
    }
    Err(case.up(Outcome::IcmpLocal, Outcome::StrippedIcmp))
}

const MALFORMED: u64 = 0;
const NO_SESSION: u64 = 1;
const SESSION: u64 = 2;

/// Reads an ICMP packet, given [`Uncommon`]: if it is an error about a session, tuple
/// and id go to `SCRATCH`. Returns what it is (from bit 32 on), TOS
/// (bits 16 to 23) and length (below).
///
/// A function of its own, and global: the verifier looks at it once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn icmp_read(ctx: *mut xdp_md, packet: u64) -> u64 {
    let frame = Frame::of(&XdpContext::new(ctx));
    let Uncommon { start, v4, .. } = Uncommon::unpack(packet);
    // SAFETY: as in `decide`.
    let Some(head) = SCRATCH.get_ptr_mut(0).map(|head| unsafe { &mut *head }) else {
        return MALFORMED;
    };
    let read = if v4 {
        read::<true>(&frame, start, head)
    } else {
        read::<false>(&frame, start, head)
    };
    read.unwrap_or(MALFORMED)
}

#[inline(always)]
fn read<const V4: bool>(frame: &Frame, start: usize, head: &mut Parked) -> Option<u64> {
    let ip = Ip::parse::<V4>(frame, start)?;
    let rest = (ip.tos as u64) << 16 | ip.len as u64;
    let Some(tuple) = session::<V4>(frame, &ip) else {
        return Some(NO_SESSION << 32 | rest);
    };
    head.tuple = tuple;
    head.id = tuple.id(&settings::session_key()).0;
    Some(SESSION << 32 | rest)
}

/// The session that an ICMP error is about: the embedded packet was sent by this
/// host's side of it. Nothing, if it is no error, or about no packet of TCP or UDP,
/// or about a later fragment, or too much is missing to know; or if the embedded
/// packet was not sent by the address that the error is for.
#[inline(always)]
pub fn session<const V4: bool>(frame: &Frame, ip: &Ip) -> Option<Tuple> {
    if !is_icmp::<V4>(ip.protocol) {
        return None;
    }
    let end = ip.start + ip.len;
    let kind: *const [u8; 2] = frame.at(ip.upper)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let kind = unsafe { (*kind)[0] };
    let start = ip.upper + ICMP_LEN;
    let (client, service, protocol, upper) = if V4 {
        if !V4_ERRORS.contains(&kind) {
            return None;
        }
        let header: *const Ipv4Hdr = frame.at(start)?;
        // SAFETY: as above.
        let header = unsafe { &*header };
        let header_len = (header.vihl as usize & 0xf) * 4;
        let later = u16::from_be_bytes(header.frags) & 0x1fff != 0;
        if header.vihl >> 4 != 4 || header_len < size_of::<Ipv4Hdr>() || later {
            return None;
        }
        let client = Address::v4(header.dst_addr);
        let service = Address::v4(header.src_addr);
        (client, service, header.proto, start + header_len)
    } else {
        if !V6_ERRORS.contains(&kind) {
            return None;
        }
        let header: *const Ipv6Hdr = frame.at(start)?;
        // SAFETY: as above.
        let header = unsafe { &*header };
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        let upper = start + size_of::<Ipv6Hdr>();
        let (protocol, upper) = first_upper(frame, upper, header.next_hdr)?;
        let client = Address(header.dst_addr);
        (client, Address(header.src_addr), protocol, upper)
    };
    if protocol != TCP && protocol != UDP || service != ip.destination || upper + 4 > end {
        return None;
    }
    let ports: *const [u8; 4] = frame.at(upper)?;
    // SAFETY: as above.
    let ports = unsafe { *ports };
    Some(Tuple::new(
        client,
        Port([ports[2], ports[3]]),
        service,
        Port([ports[0], ports[1]]),
        protocol,
    ))
}

/// Walks IPv6 extension headers to the upper header, across the fragment header of
/// a first fragment. The offset returned lies in the first 8 KiB of the frame.
#[inline(always)]
pub fn first_upper(frame: &Frame, upper: usize, protocol: u8) -> Option<(u8, usize)> {
    let found = walk(frame, upper, protocol)?;
    if found & UPPER_FRAGMENT == 0 {
        return Some(((found >> 16) as u8, (found & UPPER_MASK) as usize));
    }
    let at = (found & UPPER_MASK) as usize;
    let header: *const [u8; 8] = frame.at(at)?;
    // SAFETY: `at` has checked that the bytes lie within the frame.
    let [next, _, high, low, ..] = unsafe { *header };
    if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
        return None;
    }
    let found = walk(frame, at + 8, next)?;
    // A fragment header behind a fragment header is nothing that anyone sends.
    (found & UPPER_FRAGMENT == 0).then_some(((found >> 16) as u8, (found & UPPER_MASK) as usize))
}

#[inline(always)]
fn walk(frame: &Frame, upper: usize, protocol: u8) -> Option<u32> {
    if protocol == FRAGMENT {
        return Some(UPPER_VALID | UPPER_FRAGMENT | upper as u32);
    }
    let found = ipv6_upper(frame.ctx(), upper as u32, protocol as u32);
    (found & UPPER_VALID != 0).then_some(found)
}
